"""Swin Transformer V2 through transformers: maps, not rows of tokens, between its stages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from samadapt.backbones.backbone import Backbone
from samadapt.backbones.convolutional import STAGES, refuse_small

SIDE = 256


class Embed(nn.Module):
    """(B, 3, H, W) -> patches as a map."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, x: Tensor) -> Tensor:
        tokens, size = self.embeddings(x)
        return as_map(tokens, size)


class Stage(nn.Module):
    """Patch merging, where there is one, then the blocks.

    transformers has the merging at the end of the stage before; here it opens the stage, so that what a gate
    sees after a stage is the map that the paper of Swin calls by its name.
    """

    def __init__(self, merge: nn.Module | None, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.merge, self.blocks = merge, blocks

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)  # (B, h * w, C)
        if self.merge is not None:
            tokens = self.merge(tokens, (height, width))
            height, width = (height + 1) // 2, (width + 1) // 2
        for block in self.blocks:
            tokens = block(tokens, (height, width))[0]
        return as_map(tokens, (height, width))


class ChannelNorm(nn.Module):
    """The network's last layer norm, over the channels of a map."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *size)


def _swin(width: int, depths: Sequence[int], heads: Sequence[int]) -> Backbone:
    from transformers.models.swinv2 import Swinv2Config, Swinv2Model

    config = Swinv2Config(
        image_size=SIDE, embed_dim=width, depths=list(depths), num_heads=list(heads), window_size=8
    )
    model = Swinv2Model(config, add_pooling_layer=False)
    layers: list[Any] = list(model.encoder.layers)
    merges = [None, *(layer.downsample for layer in layers[:-1])]
    stages = [Stage(merge, layer.blocks) for merge, layer in zip(merges, layers, strict=True)]
    parts = dict(zip(STAGES, [Embed(model.embeddings), *stages], strict=True))
    channels = dict(zip(STAGES, [width, *(width * 2**i for i in range(4))], strict=True))
    return Backbone(parts, channels, ChannelNorm(model.layernorm), SIDE, _rename)


def _rename(key: str) -> str:
    key = key.removeprefix("swinv2.")
    key = re.sub(r"^embeddings\.", "parts.stem.embeddings.", key)
    key = re.sub(r"^encoder\.layers\.(\d)\.downsample\.", lambda m: f"parts.stage{int(m[1]) + 2}.merge.", key)
    key = re.sub(r"^encoder\.layers\.(\d)\.blocks\.", lambda m: f"parts.stage{int(m[1]) + 1}.blocks.", key)
    return re.sub(r"^layernorm\.", "last.norm.", key)


def swinv2_tiny(small_input: bool) -> Backbone:
    refuse_small("swinv2_tiny", small_input)
    return _swin(96, (2, 2, 6, 2), (3, 6, 12, 24))


def swinv2_base(small_input: bool) -> Backbone:
    refuse_small("swinv2_base", small_input)
    return _swin(128, (2, 2, 18, 2), (4, 8, 16, 32))
