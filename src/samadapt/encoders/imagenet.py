"""EfficientNet-Lite with ImageNet's weights as a frozen encoder: what has seen nothing medical, and no masks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from samadapt.backbones import Backbone, build_backbone, published_weights
from samadapt.backbones.efficientnet_lite import fuse_norms
from samadapt.encoders.entry import EncoderEntry
from samadapt.types import Taps
from samadapt.weights import State

_COARSEST = 32


@final
class Stages(nn.Module):
    """A classification network without its classifier; its batch normalisations are folded."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        fuse_norms(backbone.eval())
        self.stages = backbone.parts

    def forward(self, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """(B, 3, S, S) -> {tap: (B, C, h, w)} for the taps that are wanted."""
        found: dict[str, Tensor] = {}
        x = x.contiguous(memory_format=torch.channels_last)
        for index, stage in enumerate(self.stages.values()):
            if len(found) == len(wanted):
                break
            x = stage(x)
            if (name := _tap(index)) in wanted:
                found[name] = x
        return found


def _tap(index: int) -> str:
    return f"stride{2 << index}"


@final
@dataclass(frozen=True, kw_only=True)
class ImageNetEncoder(EncoderEntry):
    """A backbone as an encoder. Taps: the map at the end of each stride, `stride2` to `stride32`.

    Args:
        backbone: a key of `BACKBONES` whose stages lie at strides 2, 4, 8, 16 and 32.
        channels: of its stages.
    """

    backbone: str
    channels: tuple[int, ...]
    version = "imagenet-1"
    cheap = True
    any_side = True

    @property
    def step(self) -> int:
        return _COARSEST

    def taps(self, side: int) -> Taps:
        return {
            _tap(index): (channels, side // (2 << index), side // (2 << index))
            for index, channels in enumerate(self.channels)
        }

    def network(self, side: int) -> Stages:
        return Stages(build_backbone(self.backbone))

    def loaded(self, state: State, side: int, source: str) -> Stages:
        backbone = build_backbone(self.backbone)
        backbone.fill(state, source)
        return Stages(backbone)


def _entry(name: str, backbone: str, channels: tuple[int, ...], text: str) -> ImageNetEncoder:
    return ImageNetEncoder(
        name=name, text=text, prepare="imagenet_lite", published=published_weights(backbone), backbone=backbone,
        channels=channels,
    )  # fmt: skip


IMAGENET_MODELS = (
    _entry("imagenet_lite0", "efficientnet_lite0", (16, 24, 40, 112, 320),
           "EfficientNet-Lite0 trained on ImageNet's classes, 3.4 M parameters, side 256, strides 2 to 32."),
    _entry("imagenet_lite2", "efficientnet_lite2", (16, 24, 48, 120, 352),
           "EfficientNet-Lite2 trained on ImageNet's classes, 4.8 M parameters, side 256, strides 2 to 32."),
)  # fmt: skip
