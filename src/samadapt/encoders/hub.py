"""Encoders whose network is one of transformers' own, with weights from the hub or from a folder that it saved.

What differs between families, the network and which of its maps are taps, stands in `sam2.py` and `dinov3.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from torch import Tensor, nn

from samadapt.encoders.checkpoints import read_transformers
from samadapt.encoders.entry import EncoderEntry
from samadapt.weights import State, fill


@dataclass(frozen=True, kw_only=True)
class HubEncoder(EncoderEntry):
    """A network of transformers as an encoder; a subclass is a family."""

    prepare: str = "imagenet_stretched"

    model_types: ClassVar[tuple[str, ...]]  # what config.json calls the models that hold this network
    prefix: ClassVar[str]  # of the network's keys, in some files and versions and not in others
    unused: ClassVar[frozenset[str]] = frozenset()  # keys of published files that no map depends on

    @abstractmethod
    def build(self) -> nn.Module:
        """The network of transformers with untrained weights."""

    @abstractmethod
    def maps(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) -> {tap: (B, C, h, w)}, every one of `taps`."""

    def network(self, side: int) -> HubNetwork:
        return HubNetwork(self, self.build())

    def read(self, path: Path) -> State:
        return read_transformers(path, self.model_types)

    def loaded(self, state: State, side: int, source: str) -> HubNetwork:
        """Out of `state`, which may hold a whole model, the weights of the network's own parts."""
        network = self.build()
        own = {key.removeprefix(self.prefix): key for key in network.state_dict()}
        found = {key.removeprefix(self.prefix): value.float() for key, value in state.items()}
        parts = {key.partition(".")[0] for key in own}
        theirs = {key for key in found if key.partition(".")[0] in parts} - self.unused
        fill(network, {own.get(key, key): found[key] for key in theirs}, f"the checkpoint {source}")
        return HubNetwork(self, network)


@final
class HubNetwork(nn.Module):
    """A network of transformers and the maps that its encoder takes from it."""

    def __init__(self, entry: HubEncoder, network: nn.Module) -> None:
        super().__init__()
        self.entry, self.network = entry, network

    def forward(self, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        maps = self.entry.maps(self.network, x)
        return {tap: maps[tap] for tap in maps if tap in wanted}

    def train(self, mode: bool = True) -> HubNetwork:
        """Stays in evaluation mode (DINOv3 shakes its positions in training); to tune it, `requires_grad_(True)`."""
        return super().train(False)
