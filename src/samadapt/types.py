"""The nouns of samadapt: contracts without behaviour.

Shape legend, used in every module:
`B` batch, `V` views, `C` channels, `K` classes, `D` slices, `H W` original pixels,
`S` encoder side (its input is a square), `h w` feature grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from samadapt.records import (  # noqa: F401  # for every module
    IGNORED,
    TOGETHER,
    SamAdaptError,
    SamAdaptWarning,
    Score,
    encoder_names,
)

Task = Literal["segmentation", "classification"]

#: Side of the square label grid on which every segmentation head is trained.
LABEL_GRID = 256
#: Class of an image whose class is not known well enough to be learned.
UNCERTAIN = -100
#: The tap that every encoder gives: its input, as prepared.
PIXELS = "pixels"
#: What a head may read beside maps: (1,), a whole number that all views of one image share.
IDENTITY = "identity"


@dataclass(frozen=True)
class Case:
    """One examination: a volume, or a photograph (a volume of one slice)."""

    id: str
    image: Tensor  # (C, D, H, W) float32, values as stored (HU, 0-255, ...)
    label: Tensor | None  # (D, H, W) uint8 class per voxel, () int64 class, or (K,) float32 multi-label
    spacing_mm: tuple[float, float, float] | None  # along D, H, W; None when the file does not say
    affine: np.ndarray | None  # (4, 4) of the file, index order of the *file* -> RAS mm
    group: str  # the patient: no split cuts through a group
    axes: tuple[int, int, int] = (0, 1, 2)  # the file's axes that lie along D, H, W
    flips: tuple[bool, bool, bool] = (False, False, False)  # whether D, H, W run against these axes
    source: Path | None = None  # the (first) image file; its header is copied to predictions
    format: str | None = None  # of the source, its name in `io.FORMATS`; None: the case is no file

    def slice_in_file(self, index: int) -> int:
        """The number of slice `index` along the file's own axis, from 0: what a viewer of the file shows."""
        return self.image.shape[1] - 1 - index if self.flips[0] else index


@dataclass(frozen=True)
class Frame:
    """How a slice lies in the encoder's square, and so the way back.

    The slice fills the top left `input_size` of the square; the rest is padding.
    """

    original_size: tuple[int, int]  # (H, W)
    input_size: tuple[int, int]  # (H, W) after resizing, before padding
    side: int  # S


def encoder_taps(reads: Mapping[str, int]) -> dict[str, int]:
    """Those of `reads` that only the encoder can give."""
    return {tap: window for tap, window in reads.items() if tap not in (PIXELS, IDENTITY)}


#: Of an encoder's maps: name -> (C, h, w).
Taps = Mapping[str, tuple[int, int, int]]


def tap_of(encoder: str, tap: str) -> str:
    """What a map is called where several encoders are read: "lite_medsam:neck"; of a single one (""), as it is."""
    return f"{encoder}:{tap}" if encoder else tap


def by_encoder(taps: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The inverse of `tap_of`: encoder ("" where there is one only) -> {its own tap: what was given for it}."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in encoder_taps(taps).items():
        encoder, _, tap = name.rpartition(":")
        found.setdefault(encoder, {})[tap] = value
    return found


#: Means and deviations of the three channels: picture * deviations + means is in 0..255.
Units = tuple[tuple[float, float, float], tuple[float, float, float]]
ZERO_TO_ONE: Units = ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))


class Head(nn.Module, ABC):
    """A trainable head: reads feature maps, knows its own loss."""

    name: ClassVar[str]  # its key in `heads.HEADS`
    task: ClassVar[Task]
    #: Read unless another encoder is named: the first one whose weights are on the machine.
    encoders: ClassVar[tuple[str, ...]] = ("lite_medsam", "sam_nano")
    uses_encoder: ClassVar[bool] = True  # False: it never reads more than pixels
    lr: ClassVar[float] = 1e-3  # learning rate unless another one is named
    tiny: ClassVar[Mapping[str, Any]] = {}  # options of a small variant that needs no file, for tests
    reads: Mapping[str, int]  # tap -> pooling window (1: the map as it is; 0: its global mean)
    min_cases: int = 1  # how many cases must train, at least
    spec: Mapping[str, object]  # the arguments of `build_head` that build it again; JSON-able
    loss_fn: Callable[[Tensor, Tensor], Tensor]  # of logits and target

    @abstractmethod
    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{tap: (B, C, h, w)} -> logits (B, K, any, any) or (B, K)."""

    def loss(self, features: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """Scalar: `loss_fn` of the answer, unless a head has a loss of another kind.

        Args:
            target: segmentation: (B, K, LABEL_GRID, LABEL_GRID) float32, the share of each class in each cell, all zero
                where nothing is known. Classification: (B,) int64, or (B, K) float32 where a case can have several
                classes.
        """
        return self.loss_fn(self(features), target)

    def describe(self, n_classes: int, **options: object) -> None:
        """Set `spec`: the options with which it was built, as they were resolved."""
        self.spec = {"name": self.name, "n_classes": n_classes, **options}

    @staticmethod
    def is_control(options: Mapping[str, Any]) -> bool:
        """Whether these options make a control of it, which shows what the encoder's maps are worth."""
        return False

    @property
    def pixels_only(self) -> bool:
        """Whether it never needs the encoder."""
        return not encoder_taps(self.reads)

    def pretrained(self) -> list[nn.Parameter]:
        """Weights that start from a training of their own and are only tuned: they get the small learning rate."""
        return []
