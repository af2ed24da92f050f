"""Encoders whose network is one of transformers' own, with weights from the hub or from a folder that it saved.

What differs between families, the network and which of its maps are taps, stands in `sam2.py` and `dinov3.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from torch import Tensor, nn

from samadapt.encoders.checkpoints import read_transformers
from samadapt.encoders.entry import EncoderEntry
from samadapt.types import SamAdaptError, Taps
from samadapt.weights import HubModel, State


class Architecture(ABC):
    """A family's network at one size."""

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]  # what config.json calls the models that hold this network
    prefix: ClassVar[str]  # of the network's keys, in some files and versions and not in others
    unused: ClassVar[frozenset[str]] = frozenset()  # keys of published files that no map depends on
    step: ClassVar[int]  # every side is a multiple of it
    side: int  # S unless another one is asked for

    @abstractmethod
    def taps(self, side: int) -> dict[str, tuple[int, int, int]]:
        """Name -> (C, h, w), without the pixels."""

    @abstractmethod
    def network(self) -> nn.Module:
        """The network with untrained weights."""

    @abstractmethod
    def maps(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) -> {tap: (B, C, h, w)}, every one of `taps`."""


@final
class HubNetwork(nn.Module):
    """A network of transformers and the maps that its architecture takes from it."""

    def __init__(self, architecture: Architecture, network: nn.Module) -> None:
        super().__init__()
        self.architecture, self.network = architecture, network

    def forward(self, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        maps = self.architecture.maps(self.network, x)
        return {tap: maps[tap] for tap in maps if tap in wanted}

    def train(self, mode: bool = True) -> HubNetwork:
        """Stays in evaluation mode (DINOv3 shakes its positions in training); to tune it, `requires_grad_(True)`."""
        return super().train(False)


@final
@dataclass(frozen=True, kw_only=True)
class HubEncoder(EncoderEntry):
    """A network of transformers as an encoder. Taps: those of its architecture."""

    architecture: Architecture

    @property
    def version(self) -> str:  # type: ignore[override]
        return f"{self.architecture.family}-1"

    @property
    def step(self) -> int:
        return self.architecture.step

    def taps(self, side: int) -> Taps:
        return self.architecture.taps(side)

    def network(self, side: int) -> HubNetwork:
        return HubNetwork(self.architecture, self.architecture.network())

    def read(self, path: Path) -> State:
        return read_transformers(path, self.architecture.model_types)

    def loaded(self, state: State, side: int, source: str) -> HubNetwork:
        network = self.architecture.network()
        _load(network, self.architecture, state, source)
        return HubNetwork(self.architecture, network)


def hub_encoder(
    name: str, architecture: Architecture, tiny: Architecture, hub: HubModel, text: str
) -> HubEncoder:
    """A line of the table, and its tiny variant."""

    def entry(
        name: str, architecture: Architecture, text: str = "", small: HubEncoder | None = None
    ) -> HubEncoder:
        return HubEncoder(
            name=name, text=text, side=architecture.side, prepare="imagenet_stretched", published=hub,
            architecture=architecture, tiny=small,
        )  # fmt: skip

    return entry(name, architecture, text, entry(f"tiny_{architecture.family}", tiny))


def _load(network: nn.Module, architecture: Architecture, state: State, what: str) -> None:
    """The network's weights out of `state`, which may hold a whole model; neither one too few nor one too many."""
    own = {key.removeprefix(architecture.prefix): (key, p.shape) for key, p in network.state_dict().items()}
    found = {key.removeprefix(architecture.prefix): value for key, value in state.items()}
    parts = {key.partition(".")[0] for key in own}
    theirs = {key for key in found if key.partition(".")[0] in parts} - architecture.unused
    wrong = sorted(own.keys() ^ theirs) or sorted(
        key for key, (_, shape) in own.items() if found[key].shape != shape
    )
    if wrong:
        raise SamAdaptError(
            f"the checkpoint {what} differs from this network in {len(wrong)} of {len(own)} weights, such as "
            f"{wrong[0]!r}; choose the encoder that fits it, or give a complete one"
        )
    network.load_state_dict({name: found[key].float() for key, (name, _) in own.items()})
