"""The linear heads: AutoSAM's "linear" up-sampling head, and a probe that is linear in fact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from torch import Tensor, nn

from samadapt.heads.mask_decoder import upscaling
from samadapt.heads.options import STARTS, Preset, last_tap, loss_name, one_of, tap_shape
from samadapt.losses import LOSSES
from samadapt.types import Head, Taps, Task


@final
class Probe(Head):
    """One 1x1 convolution: what the features say to a linear classifier of pixels.

    Args:
        taps: the encoder's taps.
        n_classes: classes with the background.
        tap: the map to read; None: the neck, or the last map of an encoder without one.
        loss: a name in `losses.LOSSES`.
    """

    name: ClassVar[str] = "probe"
    task: ClassVar[Task] = "segmentation"

    def __init__(self, taps: Taps, n_classes: int, tap: str | None = None, loss: str = "dice_ce") -> None:
        super().__init__()
        tap = tap or last_tap(self.name, taps)
        channels = tap_shape(self.name, taps, tap)[0]
        self.describe(n_classes, tap=tap, loss=loss_name(self.name, "fixed", loss))
        self.tap, self.reads, self.loss_fn = tap, {tap: 1}, LOSSES[loss]
        self.classify = nn.Conv2d(channels, n_classes, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.classify(features[self.tap])  # (B, K, h, w)


class SegDecoderLinear(nn.Module):
    """`SegDecoderLinear` of the authors' models/SamFeatSeg.py, with its key names."""

    def __init__(self, channels: int, n_classes: int, relu_on_logits: bool) -> None:
        super().__init__()
        width = channels // 8
        self.output_upscaling = upscaling(channels)
        self.final = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, n_classes, 1))
        if relu_on_logits:
            self.final.append(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.final(self.output_upscaling(x))


@final
class Linear(Head):
    """AutoSAM's linear head: SAM's transposed convolutions, then 1x1 convolutions, at four times the grid.

    Not linear in truth (GELU, layer norm, ReLU); for that see `Probe`. Like the authors' it starts from
    SAM's own up-sampling weights where the encoder has them.

    Args:
        taps: the encoder's taps.
        n_classes: classes with the background.
        pretrained: SAM's decoder weights, or None.
        preset: `faithful` ends in a ReLU on the logits, with which whole classes die; `fixed` does not.
        loss: a name in `losses.LOSSES`; None is the preset's own.
        start: `trained` loads the encoder's own up-sampling where it has one, `random` does not (a control).
    """

    name: ClassVar[str] = "linear"
    task: ClassVar[Task] = "segmentation"
    lr: ClassVar[float] = 1e-2  # after 300 steps on a pool patient: 0.14 Dice at 3e-3, 0.24 here

    def __init__(
        self,
        taps: Taps,
        n_classes: int,
        pretrained: Mapping[str, Tensor] | None = None,
        preset: Preset = "fixed",
        loss: str | None = None,
        start: str = "trained",
    ) -> None:
        super().__init__()
        channels = tap_shape(self.name, taps, "neck")[0]
        loss = loss_name(self.name, preset, loss)
        one_of(self.name, "start", start, STARTS)
        self.describe(n_classes, preset=preset, loss=loss, start=start)
        self.reads, self.loss_fn = {"neck": 1}, LOSSES[loss]
        self.mask_decoder = SegDecoderLinear(channels, n_classes, relu_on_logits=preset == "faithful")
        own = self.state_dict()
        given = pretrained if pretrained and start == "trained" else {}
        known = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
        self.load_state_dict(own | known)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.mask_decoder(features["neck"])  # (B, K, 4h, 4w)
