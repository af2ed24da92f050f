"""EfficientNet-Lite with ImageNet's weights as a frozen encoder: what has seen nothing medical, and no masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from samadapt.backbones import Backbone, build_backbone, published_weights
from samadapt.backbones.efficientnet_lite import fold_norms
from samadapt.encoders.network import RANDOM, NetworkEncoder, fitting_side
from samadapt.types import PIXELS, SamAdaptError
from samadapt.weights import PublishedFile, demand_sha256

_VERSION = 1  # of the numbers: raise it when the same weights would give other maps
_COARSEST = 32


@final
class ImageNetEncoder(NetworkEncoder):
    """A classification network without its classifier. Taps: the map at the end of each stride, `stride2` to `stride32`.

    Args:
        backbone: stages at strides 2, 4, 8, 16 and 32; its batch normalisations are folded.
        side: S, a multiple of 32.
        prepare: a name in `prepare.PREPARES`.
    """

    def __init__(self, backbone: Backbone, side: int, prepare: str) -> None:
        super().__init__(side, prepare)
        fold_norms(backbone)
        self.stages = backbone.parts
        strides = [2 << i for i in range(len(backbone.stages))]
        self.taps = {PIXELS: (3, side, side)} | {
            f"stride{stride}": (channels, side // stride, side // stride)
            for stride, channels in zip(strides, backbone.stages.values(), strict=True)
        }
        self._names = [tap for tap in self.taps if tap != PIXELS]
        self.hashed(f"imagenet-{_VERSION}", self.stages)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found, y = {PIXELS: x}, x.contiguous(memory_format=torch.channels_last)
        for name, stage in zip(self._names, self.stages.values(), strict=True):
            if len(found) == len(self.taps):
                break
            y = stage(y)
            if name in self.taps:
                found[name] = y
        return found


@dataclass(frozen=True)
class Model:
    """One entry of the table of encoders: which network, and what it is."""

    backbone: str
    text: str
    side: int = 256

    @property
    def published(self) -> PublishedFile:
        """The weights that it starts from unless told otherwise."""
        found = published_weights(self.backbone)
        assert found is not None
        return found

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.text)

    def __call__(
        self,
        checkpoint: str | Path | None = None,
        side: int | None = None,
        prepare: str | None = None,
        seed: int = 0,
    ) -> ImageNetEncoder:
        """Build the encoder; see `load_encoder`."""
        examples = f" from {2 * _COARSEST}, such as {self.side}"
        side = fitting_side(self.backbone, side or self.side, _COARSEST, 2 * _COARSEST, examples)
        weights = str(self.published.locate()) if checkpoint is None else self._given(str(checkpoint))
        backbone = build_backbone(self.backbone, weights)
        return ImageNetEncoder(backbone.eval(), side, prepare or "imagenet_lite")

    def _given(self, checkpoint: str) -> str:
        """A file that somebody named, or the word random."""
        path = Path(checkpoint).expanduser()
        if checkpoint != RANDOM and not path.exists():
            raise SamAdaptError(
                f"checkpoint {checkpoint!r} does not exist; give a file with weights of {self.backbone}, the word random, "
                "or nothing for the published ones"
            )
        if path.name == self.published.file:  # another name, other weights
            demand_sha256(path, self.published.sha256)
        return checkpoint if checkpoint == RANDOM else str(path)


IMAGENET_MODELS: dict[str, Model] = {
    "imagenet_lite0": Model(
        "efficientnet_lite0",
        "EfficientNet-Lite0 trained on ImageNet's classes, 3.4 M parameters, side 256, strides 2 to 32.",
    ),
    "imagenet_lite2": Model(
        "efficientnet_lite2",
        "EfficientNet-Lite2 trained on ImageNet's classes, 4.8 M parameters, side 256, strides 2 to 32.",
    ),
}
