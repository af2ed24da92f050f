"""Encoders whose network is one of transformers' own, with weights from the hub or from a folder that it saved.

What differs between families, the network and which of its maps are taps, stands in `sam2.py` and `dinov3.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from torch import Tensor, nn

from samadapt.encoders.checkpoints import HubModel, read_transformers
from samadapt.encoders.network import RANDOM, NetworkEncoder, fitting_side
from samadapt.types import PIXELS, SamAdaptError
from samadapt.weights import State

_VERSION = 1  # of the numbers: raise it when the same weights would give other maps


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
class HubEncoder(NetworkEncoder):
    """A network of transformers. Taps: those of its architecture.

    Args:
        architecture: which network it is.
        network: with its weights.
        side: S, a multiple of the architecture's step.
        prepare: a name in `prepare.PREPARES`.
    """

    def __init__(self, architecture: Architecture, network: nn.Module, side: int, prepare: str) -> None:
        super().__init__(side, prepare)
        self.architecture, self.network = architecture, network
        self.taps = {PIXELS: (3, side, side), **architecture.taps(side)}
        self.hashed(f"{architecture.family}-{_VERSION}", network)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {PIXELS: x} | self.architecture.maps(self.network, x)
        return {tap: maps[tap] for tap in self.taps}

    def train(self, mode: bool = True) -> HubEncoder:
        """Stays in evaluation mode (DINOv3 shakes its positions in training); to tune it, `requires_grad_(True)`."""
        return super().train(False)


@dataclass(frozen=True)
class Model:
    """One entry of the table of encoders: how to build it and where its weights are."""

    name: str
    architecture: Architecture
    hub: HubModel
    prepare: str
    text: str = ""  # what it is, for `samadapt list encoders`

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.text)

    def __call__(
        self,
        checkpoint: str | Path | None = None,
        side: int | None = None,
        prepare: str | None = None,
        seed: int = 0,
    ) -> HubEncoder:
        """Build the encoder; see `load_encoder`."""
        own, step = self.architecture.side, self.architecture.step
        examples = f" from {2 * step}, such as {own}"
        side = fitting_side(f"encoder {self.name!r}", side or own, step, 2 * step, examples)
        state = None
        if checkpoint != RANDOM:
            state = read_transformers(checkpoint, self.hub, self.architecture.model_types)
        network = self.architecture.network()
        if state is not None:
            _load(network, self.architecture, state, f"{checkpoint or self.hub.repo} for {self.name!r}")
        return HubEncoder(self.architecture, network, side, prepare or self.prepare)


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
