"""One entry of the table of encoders: what is known of it without its weights, and how its network is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from samadapt import weights
from samadapt.encoders.checkpoints import SHA256
from samadapt.types import SamAdaptError, Taps
from samadapt.weights import Published, PublishedFile, State

LARGEST_SIDE = 4096  # pixels; attention over more takes hundreds of gigabytes


@dataclass(frozen=True, kw_only=True)
class EncoderEntry(ABC):
    """A subclass is a family; its instances are lines of `ENCODERS`.

    Args:
        name: of the encoder.
        text: what it is, for `samadapt list encoders`.
        side: S unless another one is asked for.
        prepare: a name in `views.PREPARES`, the way that the weights were trained.
        published: the weights that it starts from unless others are named; None: it has none.
        tiny: a smaller entry of the same family, by which tests run it; None: it is small itself.
    """

    name: str
    text: str = ""
    side: int = 256
    prepare: str
    published: Published | None = None
    tiny: EncoderEntry | None = None

    version: ClassVar[str]  # of the numbers: raised when the same weights would give other maps
    one_preparation: ClassVar[bool] = False  # whether other ways to prepare images are refused
    #: Whether it takes less time for a picture than a head's training step: there is no need to store its views.
    cheap: ClassVar[bool] = False
    #: Whether its weights suit squares of any side; else they were trained on its own, as those of SAM's ViTs.
    any_side: ClassVar[bool] = False

    @property
    def step(self) -> int:
        """Every side is a multiple of it."""
        return 1

    @property
    def least(self) -> int:
        """The smallest side."""
        return 2 * self.step

    def is_published(self, checkpoint: str) -> bool:
        """Whether a checkpoint bears the name of a file that the authors published; loading it checks its hash."""
        if self.published is not None and checkpoint == self.published.identity:
            return True
        known = set(SHA256) | ({self.published.file} if isinstance(self.published, PublishedFile) else set())
        return Path(checkpoint).name in known

    @property
    def missing_file(self) -> PublishedFile | None:
        """The file of its weights, where it is one that a package or the user's cache holds, and is not here."""
        file = self.published
        return file if isinstance(file, PublishedFile) and file.find() is None else None

    @abstractmethod
    def taps(self, side: int) -> Taps:
        """Name -> (C, h, w), without the pixels, in the order in which the maps are computed."""

    @abstractmethod
    def network(self, side: int) -> nn.Module:
        """The network with weights drawn from torch's generator.

        Called as `network(x, wanted)`, x (B, 3, S, S), wanted names of taps; gives {tap: (B, C, h, w)} for these.
        """

    def read(self, path: Path) -> State:
        """The tensors of a checkpoint, its prompt encoder's and mask decoder's under SAM's original names."""
        return weights.read_weights(path)

    def loaded(self, state: State, side: int, source: str) -> nn.Module:
        """The network with the weights of a checkpoint.

        Args:
            source: where they come from, for messages.
        """
        network = self.network(side)
        weights.fill(network, state, f"the checkpoint {source}")
        return network

    def fitted_side(self, side: int | None) -> int:
        """The side, if the network can have it; its own for None."""
        side = self.side if side is None else side
        if not 1 <= side <= LARGEST_SIDE:
            raise SamAdaptError(f"side is {side}; expected 1 to {LARGEST_SIDE} pixels")
        if side % self.step or side < self.least:
            multiple = f"a multiple of {self.step}, " if self.step > 1 else ""
            raise SamAdaptError(
                f"side {side} does not fit encoder {self.name!r}; give {multiple}at least {self.least}, such as "
                f"{self.side}"
            )
        return side
