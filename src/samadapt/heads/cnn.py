"""AutoSAM's convolutional head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from torch import Tensor, nn

from samadapt.heads.options import Preset, loss_name, tap_shape
from samadapt.losses import LOSSES
from samadapt.types import Head, SamAdaptError, Taps, Task


def _conv(inputs: int, outputs: int, kernel: int, norm: bool) -> list[nn.Module]:
    middle = [nn.GroupNorm(8, outputs)] if norm else []
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), *middle, nn.ReLU()]


class SegDecoderCNN(nn.Module):
    """`SegDecoderCNN` of the authors' models/SamFeatSeg.py; its key names when there is no normalisation.

    Channels halve from `top * 2 ** depth` to `top`. Every block doubles the grid, except, when there are more
    than two, the first two.
    """

    def __init__(self, channels: int, n_classes: int, depth: int, top: int, norm: bool) -> None:
        super().__init__()
        widths = [top * 2 ** (depth - i) for i in range(depth + 1)]
        self.input_block = nn.Sequential(
            *_conv(channels, widths[0], 1, norm), *_conv(widths[0], widths[0], 1, norm)
        )
        self.blocks = nn.ModuleList()
        for i in range(depth):
            wide, narrow = widths[i], widths[i + 1]
            if depth > 2 > i:
                layers = [*_conv(wide, wide, 3, norm), *_conv(wide, narrow, 3, norm)]
            else:
                up = nn.ConvTranspose2d(wide, narrow, 2, stride=2)
                layers = [*_conv(wide, wide, 3, norm), *_conv(wide, wide, 3, norm), up]
            self.blocks.append(nn.Sequential(*layers))
        self.final = nn.Sequential(nn.Conv2d(top, top, 3, padding=1), nn.Conv2d(top, n_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_block(x)
        for block in self.blocks:
            x = block(x)
        return self.final(x)


@final
class CNN(Head):
    """Convolutions and transposed convolutions on the neck.

    Args:
        taps: the encoder's taps.
        n_classes: classes with the background.
        preset: `faithful` is the authors': depth 4, no normalisation, twenty million parameters;
            `fixed` is depth 2 with group normalisation, less than a tenth of that.
        depth: number of blocks; None is the preset's own.
        top: channels of the last block.
        loss: a name in `losses.LOSSES`; None is the preset's own.
    """

    name: ClassVar[str] = "cnn"
    task: ClassVar[Task] = "segmentation"

    def __init__(
        self,
        taps: Taps,
        n_classes: int,
        preset: Preset = "fixed",
        depth: int | None = None,
        top: int = 64,
        loss: str | None = None,
    ) -> None:
        super().__init__()
        channels = tap_shape(self.name, taps, "neck")[0]
        loss = loss_name(self.name, preset, loss)
        depth = depth or (4 if preset == "faithful" else 2)
        if not 1 <= depth <= 5 or top % 8:
            raise SamAdaptError(
                f"head 'cnn' cannot be built with depth {depth} and top {top}; "
                "give a depth of 1 to 5 and a top that is a multiple of 8"
            )
        self.describe(n_classes, preset=preset, depth=depth, top=top, loss=loss)
        self.reads, self.loss_fn = {"neck": 1}, LOSSES[loss]
        self.mask_decoder = SegDecoderCNN(channels, n_classes, depth, top, norm=preset == "fixed")

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.mask_decoder(features["neck"])
