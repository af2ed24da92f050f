"""No encoder at all: the image itself, for heads that learn from scratch."""

from __future__ import annotations

from typing import final

from torch import Tensor

from samadapt.encoders.prepare import find_prepare, units_of
from samadapt.types import PIXELS, Encoder, Frame, SamAdaptError


@final
class Pixels(Encoder):
    """Gives the tap `pixels` and nothing else; has no weights.

    Args:
        side: S, in pixels.
        prepare: a name in `prepare.PREPARES`.
    """

    def __init__(self, side: int = 256, prepare: str = "unit") -> None:
        super().__init__()
        if side < 28:  # MedMNIST's
            raise SamAdaptError(f"side {side} is too small for encoder 'pixels'; give at least 28 pixels")
        self.side, self._prepare, self.units = side, find_prepare(prepare), units_of(prepare)
        self.taps = {PIXELS: (3, side, side)}
        self.fingerprint = f"pixels-1 side={side} prepare={prepare} float32"

    def prepare(self, image: Tensor) -> tuple[Tensor, Frame]:
        return self._prepare(image, self.side)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {PIXELS: x}


def build_pixels(
    checkpoint: str | None = None, side: int | None = None, prepare: str | None = None, seed: int = 0
) -> Pixels:
    """The image itself, side 256, no weights: for heads that learn from scratch (unet)."""
    if checkpoint is not None:
        raise SamAdaptError(f"encoder 'pixels' has no weights; leave out the checkpoint {checkpoint!r}")
    return Pixels(side or 256, prepare or "unit")
