"""No encoder at all: the image itself, for heads that learn from scratch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from samadapt.encoders.entry import EncoderEntry
from samadapt.types import Taps


class Nothing(nn.Module):
    """A network without maps."""

    def forward(self, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        return {}


@final
@dataclass(frozen=True, kw_only=True)
class Pixels(EncoderEntry):
    """Gives the tap `pixels` and nothing else; has no weights."""

    version = "pixels-1"
    any_side = True

    @property
    def least(self) -> int:
        return 28  # MedMNIST's pictures

    def taps(self, side: int) -> Taps:
        return {}

    def network(self, side: int) -> Nothing:
        return Nothing()


PIXELS_ENCODER = Pixels(
    name="pixels",
    text="The image itself, side 256, no weights: for heads that learn from scratch (unet).",
    prepare="unit",
)
