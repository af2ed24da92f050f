"""A U-Net whose encoder starts from ImageNet's classes: the simplest strong baseline with few labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from samadapt.backbones import RANDOM, build_backbone, published_weights
from samadapt.backbones.efficientnet_lite import fuse_norms
from samadapt.heads.options import loss_name, one_of, pictures_of_three
from samadapt.losses import LOSSES, to_grid
from samadapt.types import PIXELS, ZERO_TO_ONE, Head, SamAdaptError, Taps, Task, Units

NETWORKS = ("efficientnet_lite0", "efficientnet_lite2")


class Up(nn.Module):
    """To the grid of the skipped map, joined with it, two convolutions."""

    def __init__(self, inputs: int, skipped: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv(inputs + skipped, outputs), _conv(outputs, outputs))

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        return self.layers(torch.cat([to_grid(x, skipped.shape[-2:]), skipped], 1))


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@final
class UNetPretrained(Head):
    """EfficientNet-Lite with ImageNet's weights and a decoder with skip connections, trained end to end.

    The encoder learns at the small rate of what is pretrained; its batch statistics stay those of ImageNet, since
    a few patients' tell of these alone.

    Args:
        taps: the encoder's taps; only its pixels are read.
        n_classes: classes with the background.
        backbone: efficientnet_lite0 or efficientnet_lite2.
        weights: a file with weights of that network, or "random"; None: the published ones.
        loss: a name in `losses.LOSSES`.
        weights_of: name of the first weights, kept by run folders; does nothing.
        units: of the pixels that the encoder prepared; None: 0..1.
    """

    name: ClassVar[str] = "unet_pretrained"
    task: ClassVar[Task] = "segmentation"
    encoders: ClassVar[tuple[str, ...]] = ("pixels",)
    uses_encoder: ClassVar[bool] = False
    tiny: ClassVar[Mapping[str, Any]] = {"weights": "random"}
    WIDTHS = (128, 64, 48, 32)

    def __init__(
        self,
        taps: Taps,
        n_classes: int,
        backbone: str = NETWORKS[0],
        weights: str | None = None,
        loss: str = "dice_ce",
        weights_of: str | None = None,
        units: Units | None = None,
    ) -> None:
        super().__init__()
        one_of(self.name, "backbone", backbone, NETWORKS)
        _, *grid = pictures_of_three(self.name, taps)
        if min(grid) < 32:
            raise SamAdaptError(
                f"head {self.name!r} halves its input five times; {grid} pixels are too few, give 32"
            )
        published = published_weights(backbone)
        assert published is not None
        self.describe(
            n_classes,
            backbone=backbone,
            loss=loss_name(self.name, "fixed", loss),
            weights_of=weights or weights_of or published.file,
            units=units,
        )
        if weights is None and weights_of is None:
            weights = str(published.locate("--set weights="))
        self.units = units or ZERO_TO_ONE
        self.reads, self.loss_fn = {PIXELS: 1}, LOSSES[loss]
        self.network = build_backbone(backbone, weights)
        self.network.last = nn.Identity()  # of the classifier
        fuse_norms(self.network)
        stages = list(self.network.stages.values())
        inputs = [stages[-1], *self.WIDTHS]
        self.ups = nn.ModuleList(
            Up(below, skipped, width)
            for below, skipped, width in zip(inputs, stages[-2::-1], self.WIDTHS, strict=False)
        )
        self.classify = nn.Conv2d(self.WIDTHS[-1], n_classes, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        maps: list[Tensor] = []

        def keep(stage: str, x: Tensor) -> Tensor:
            maps.append(x)
            return x

        pictures = self.network.in_units(features[PIXELS], self.units).contiguous(
            memory_format=torch.channels_last
        )
        x = self.network(pictures, keep)
        for up, skipped in zip(self.ups, maps[-2::-1], strict=True):
            x = up(x, skipped)
        return to_grid(self.classify(x), pictures.shape[-2:])  # (B, K, S, S)

    def pretrained(self) -> list[nn.Parameter]:
        return list(self.network.parameters()) if self.spec["weights_of"] != RANDOM else []
