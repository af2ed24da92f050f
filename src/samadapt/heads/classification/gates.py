"""What steps between two stages of a classifier: maps of an encoder, or the stage's own map, as channel weights.

Spatially Localized Channel Attention as reconstructed in docs/classification.md: local average pooling, 1x1
convolution, ReLU, 1x1 convolution, gate, resized to the stage's grid and multiplied onto its map.

Every block is called as `block(x, tap)` with x (B, C, h, w) of the stage and tap (B, S, h', w'), already pooled
over its window, or None; and says where it looked with `attention(x, tap)` -> (B, h, w).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.transforms import pool


def double_sigmoid(x: Tensor) -> Tensor:
    """In (0, 2), one where x is zero: a gate that can also let more through."""
    return 2 * torch.sigmoid(x)


def channel_softmax(x: Tensor) -> Tensor:
    """(B, C, h, w), mean one over the channels."""
    return x.shape[1] * x.softmax(1)


@dataclass(frozen=True)
class Activation:
    """A gate function, and the bias at which it lets everything through as it is."""

    call: Callable[[Tensor], Tensor]
    open_bias: float


GATES: dict[str, Activation] = {
    "sigmoid2": Activation(double_sigmoid, 0.0),
    "softmax": Activation(channel_softmax, 0.0),
    "sigmoid": Activation(torch.sigmoid, 4.0),  # 0.982: as near to one as still has a slope
}


@dataclass(frozen=True)
class GateOptions:
    """What all blocks of a head have in common."""

    gate: str = "sigmoid2"
    fusion: str = "multiply"
    resize: str = "nearest"
    window: int = 0  # of the stage's own map; an encoder's tap comes pooled
    identity: bool = True  # whether the block changes nothing before it is trained


def coarsen(tap: Tensor, size: torch.Size) -> Tensor:
    """A tap finer than the stage's grid is averaged down to it; a coarser one stays."""
    target = (min(tap.shape[-2], size[0]), min(tap.shape[-1], size[1]))
    return tap if tap.shape[-2:] == target else F.adaptive_avg_pool2d(tap, target)


def stretch_to(weights: Tensor, size: torch.Size, mode: str) -> Tensor:
    """(B, C, h', w') -> (B, C, *size)."""
    if weights.shape[-2:] == size or weights.shape[-2:] == (1, 1):
        return weights.expand(*weights.shape[:2], *size)
    if mode == "nearest":
        return F.interpolate(weights, size=size, mode="nearest-exact")
    return F.interpolate(weights, size=size, mode="bilinear", align_corners=False)


def place_norm(tap: Tensor) -> Tensor:
    """(B, S, h, w) -> zero mean and unit variance over the channels of every place.

    As a ViT's own next layer reads it: taps differ in scale by orders of magnitude. No place sees another.
    """
    return F.layer_norm(tap.movedim(1, -1), tap.shape[1:2]).movedim(-1, 1)


class Block(nn.Module, ABC):
    """The interface of everything between two stages."""

    @abstractmethod
    def forward(self, x: Tensor, tap: Tensor | None) -> Tensor:
        """The stage's map, changed: (B, C, h, w)."""

    @abstractmethod
    def attention(self, x: Tensor, tap: Tensor | None) -> Tensor:
        """(B, h, w), larger where the block looks: the mean weight of the channels there."""


@final
class ChannelWeights(nn.Module):
    """(B, S, h', w') -> weights (B, C, h', w'): W2 ReLU(W1 .) and the gate function.

    Args:
        inputs: S.
        outputs: C.
        hidden: channels between.
        normalise: see `place_norm`; a classifier's own maps need none.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: int, gate: str, identity: bool, normalise: bool
    ) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(inputs, hidden, 1), nn.Conv2d(hidden, outputs, 1)
        self.gate, self.normalise = GATES[gate], normalise
        if identity:
            nn.init.zeros_(self.excite.weight)
            assert self.excite.bias is not None
            nn.init.constant_(self.excite.bias, self.gate.open_bias)

    def forward(self, tap: Tensor) -> Tensor:
        if self.normalise:
            tap = place_norm(tap)
        return self.gate.call(self.excite(F.relu(self.squeeze(tap))))


@final
class WeightBlock(Block):
    """X * A, or X * (1 + s A): the attention's weights on the stage's map.

    Args:
        channels: C of the stage.
        source: S of the tap; None: the stage's own map is the source (Squeeze-and-Excitation with a window).
        hidden: channels between the two convolutions.
    """

    def __init__(self, channels: int, source: int | None, hidden: int, options: GateOptions) -> None:
        super().__init__()
        self.options, self.own = options, source is None
        plain = options.fusion == "multiply"
        self.weights = ChannelWeights(
            source or channels, channels, hidden, options.gate, options.identity and plain, not self.own
        )
        # The residual form starts as nothing added; the size of what it adds is learned.
        self.scale = None if plain else nn.Parameter(torch.full((), 0.0 if options.identity else 1.0))

    def forward(self, x: Tensor, tap: Tensor | None) -> Tensor:
        weights = self.map(x, tap)
        return x * weights if self.scale is None else x * (1 + self.scale * weights)

    def map(self, x: Tensor, tap: Tensor | None) -> Tensor:
        """A, on the stage's grid: (B, C, h, w)."""
        source = pool(x, self.options.window) if self.own else _given(tap)
        return stretch_to(self.weights(coarsen(source, x.shape[-2:])), x.shape[-2:], self.options.resize)

    def attention(self, x: Tensor, tap: Tensor | None) -> Tensor:
        return self.map(x, tap).mean(1)


@final
class FeatureBlock(Block):
    """X + s W (F * A), or W' [X, W (F * A)]: the gated features of the encoder themselves.

    Args:
        channels: C of the stage.
        source: S of the tap, whose own channels A weighs; None: the stage's own map.
        hidden: channels between the two convolutions.
    """

    def __init__(self, channels: int, source: int | None, hidden: int, options: GateOptions) -> None:
        super().__init__()
        self.options, self.own = options, source is None
        width = source or channels
        self.weights = ChannelWeights(width, width, hidden, options.gate, options.identity, not self.own)
        self.project = nn.Conv2d(width, channels, 1)
        # Both forms start as nothing added; `add` learns how much, `concat` learns a mixture.
        self.merge = _mixture(channels, options.identity) if options.fusion == "concat" else None
        self.scale = None if self.merge else nn.Parameter(torch.full((), 0.0 if options.identity else 1.0))

    def forward(self, x: Tensor, tap: Tensor | None) -> Tensor:
        features = stretch_to(self.project(self.gated(x, tap)), x.shape[-2:], self.options.resize)
        if self.merge is not None:
            return self.merge(torch.cat([x, features], dim=1))
        assert self.scale is not None
        return x + self.scale * features

    def gated(self, x: Tensor, tap: Tensor | None) -> Tensor:
        """F * A on the tap's grid: (B, S, h', w')."""
        source = coarsen(pool(x, self.options.window) if self.own else _given(tap), x.shape[-2:])
        weights = self.weights(source)
        return (source if self.own else place_norm(source)) * weights

    def attention(self, x: Tensor, tap: Tensor | None) -> Tensor:
        """The size of what is added, as a length over the channels."""
        added = self.project(self.gated(x, tap))
        return stretch_to(added.norm(dim=1, keepdim=True), x.shape[-2:], self.options.resize)[:, 0]


def _mixture(channels: int, identity: bool) -> nn.Conv2d:
    """2C -> C channels; at the start the first C as they are."""
    merge = nn.Conv2d(2 * channels, channels, 1)
    if identity:
        nn.init.dirac_(merge.weight)
        assert merge.bias is not None
        nn.init.zeros_(merge.bias)
    return merge


BLOCKS: dict[str, Callable[[int, int | None, int, GateOptions], Block]] = {
    "multiply": WeightBlock,
    "residual": WeightBlock,
    "add": FeatureBlock,
    "concat": FeatureBlock,
}


def _given(tap: Tensor | None) -> Tensor:
    assert tap is not None, "a block that reads a tap is called with one"
    return tap


@final
class CbamBlock(Block):
    """Convolutional Block Attention Module (Woo et al. 2018): channels by mean and maximum, then places.

    Args:
        channels: C of the stage.
        hidden: channels between the two convolutions of the channel part.
        kernel: of the convolution that weighs places.
    """

    def __init__(self, channels: int, hidden: int, gate: str, identity: bool, kernel: int = 7) -> None:
        super().__init__()
        self.gate = GATES[gate]
        self.channel = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.place = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.bias = nn.Parameter(torch.full((2,), self.gate.open_bias if identity else 0.0))
        if identity:
            nn.init.zeros_(self.channel.get_parameter("2.weight"))
            nn.init.zeros_(self.place.weight)

    def forward(self, x: Tensor, tap: Tensor | None) -> Tensor:
        x = x * self._channels(x)
        return x * self._places(x)

    def attention(self, x: Tensor, tap: Tensor | None) -> Tensor:
        return self._places(x * self._channels(x))[:, 0]

    def _channels(self, x: Tensor) -> Tensor:
        mean, largest = x.mean((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
        return self.gate.call(self.channel(mean) + self.channel(largest) + self.bias[0])

    def _places(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return self.gate.call(self.place(summary) + self.bias[1])
