"""A U-Net from scratch: a head that reads the map called `pixels`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from torch import Tensor

from samadapt.heads.options import loss_name, tap_shape
from samadapt.losses import LOSSES
from samadapt.types import PIXELS, Head, SamAdaptError, Taps, Task


@final
class UNet(Head):
    """MONAI's `BasicUNet`: five levels, instance normalisation, leaky ReLU.

    Args:
        taps: the encoder's taps.
        n_classes: classes with the background.
        width: channels of the finest level; the deepest has eight times as many.
        loss: a name in `losses.LOSSES`.
    """

    name: ClassVar[str] = "unet"
    task: ClassVar[Task] = "segmentation"
    encoders: ClassVar[tuple[str, ...]] = ("pixels",)
    uses_encoder: ClassVar[bool] = False
    lr: ClassVar[float] = 3e-3  # at 1e-3 its loss falls half as fast

    def __init__(self, taps: Taps, n_classes: int, width: int = 32, loss: str = "dice_ce") -> None:
        super().__init__()
        from monai.networks.nets.basic_unet import BasicUNet  # here: importing MONAI takes seconds

        channels, *grid = tap_shape(self.name, taps, PIXELS)
        if not (isinstance(width, int) and width >= 1):
            raise SamAdaptError(
                f"head 'unet' cannot have a width of {width!r}; give a positive number of channels"
            )
        if min(grid) < 32:
            raise SamAdaptError(
                f"head 'unet' halves its input four times; {grid} pixels are too few, give 32"
            )
        self.describe(n_classes, width=width, loss=loss_name(self.name, "fixed", loss))
        self.reads, self.loss_fn = {PIXELS: 1}, LOSSES[loss]
        features = (width, width, 2 * width, 4 * width, 8 * width, width)
        self.net = BasicUNet(2, channels, n_classes, features)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.net(features[PIXELS])  # (B, K, S, S)
