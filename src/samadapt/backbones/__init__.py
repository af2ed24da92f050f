"""Classification networks whose stages a gate can step between: a table of builders, and one that builds by name.

A new one is a function `(small_input: bool) -> Backbone` and a line in `BACKBONES`.
"""

from __future__ import annotations

from collections.abc import Callable

from samadapt.backbones.backbone import Backbone
from samadapt.backbones.convolutional import densenet121, resnet18, resnet50, resnet152, senet154
from samadapt.backbones.efficientnet_lite import PUBLISHED, efficientnet_lite0, efficientnet_lite2
from samadapt.backbones.swin import swinv2_base, swinv2_tiny
from samadapt.types import SamAdaptError
from samadapt.weights import RANDOM, PublishedFile, locate, read_weights

BACKBONES: dict[str, Callable[[bool], Backbone]] = {
    "densenet121": densenet121,
    "efficientnet_lite0": efficientnet_lite0,
    "efficientnet_lite2": efficientnet_lite2,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet152": resnet152,
    "senet154": senet154,
    "swinv2_base": swinv2_base,
    "swinv2_tiny": swinv2_tiny,
}


def published_weights(name: str) -> PublishedFile | None:
    """The weights that this network starts from unless told otherwise; None: it starts untrained."""
    return PUBLISHED.get(name)


def build_backbone(name: str, weights: str | None = None, small_input: bool = False) -> Backbone:
    """A network with random weights (drawn from torch's generator), or with given ones.

    Args:
        name: a key of `BACKBONES`.
        weights: a file, a folder with a model, or a hub id with its revision; see `weights.locate`; or the word
            "random", as None.
        small_input: a first layer for pictures of about 28 px, which keeps their grid, where the network has one.

    Example:
        >>> build_backbone("resnet18").stages
        {'stem': 64, 'stage1': 64, 'stage2': 128, 'stage3': 256, 'stage4': 512}
    """
    if name not in BACKBONES:
        raise SamAdaptError(f"unknown backbone {name!r}; known: {', '.join(sorted(BACKBONES))}")
    backbone = BACKBONES[name](small_input)
    if weights is not None and weights != RANDOM:
        path = locate(weights, PUBLISHED.get(name), f"backbone {name!r}", "--set weights=")
        backbone.fill(read_weights(path), weights)
    return backbone
