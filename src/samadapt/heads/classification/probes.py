"""What the encoder's features say about the class by themselves: no network on the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.heads.classification.attention import SaliencyHead
from samadapt.heads.classification.classifier import WeightedLoss
from samadapt.heads.options import last_tap, tap_shape
from samadapt.types import Head, SamAdaptError, Taps, Task


@final
class LinearProbe(Head):
    """The mean of one map over the image, normalised, through one linear layer.

    Args:
        taps: the encoder's taps.
        n_classes: number of classes.
        tap: the map to read; None: the neck, or the last map of an encoder without one.
        class_weights: of the loss, one for each class.
    """

    name: ClassVar[str] = "linear_probe"
    task: ClassVar[Task] = "classification"

    def __init__(
        self, taps: Taps, n_classes: int, tap: str | None = None, class_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        tap = tap or last_tap(self.name, taps)
        channels = tap_shape(self.name, taps, tap)[0]
        self.describe(
            n_classes, tap=tap, class_weights=list(class_weights) if class_weights is not None else None
        )
        self.tap, self.reads = tap, {tap: 0}
        self.classify = nn.Linear(channels, n_classes)
        self.loss_fn = WeightedLoss(self.name, n_classes, class_weights)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        x = features[self.tap].mean((-2, -1))
        return self.classify(F.layer_norm(x, x.shape[1:]))


@final
class AttentiveProbe(Head, SaliencyHead):
    """One learned query looks at all places of a map; a linear layer reads what it found.

    Args:
        taps: the encoder's taps.
        n_classes: number of classes.
        tap: the map to read; None: the neck, or the last map of an encoder without one.
        window: cells that are averaged first.
        heads: of the attention; a divisor of the map's channels.
        class_weights: of the loss, one for each class.
    """

    name: ClassVar[str] = "attentive_probe"
    task: ClassVar[Task] = "classification"

    def __init__(
        self,
        taps: Taps,
        n_classes: int,
        tap: str | None = None,
        window: int = 2,
        heads: int = 8,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        tap = tap or last_tap(self.name, taps)
        channels = tap_shape(self.name, taps, tap)[0]
        if heads < 1 or channels % heads or window < 1:
            raise SamAdaptError(
                f"head {self.name!r} cannot look at {channels} channels with {heads} heads and window {window}; "
                "give a divisor of the channels, and a window from 1"
            )
        self.describe(
            n_classes,
            tap=tap,
            window=window,
            heads=heads,
            class_weights=list(class_weights) if class_weights is not None else None,
        )
        self.tap, self.reads, self.heads = tap, {tap: window}, heads
        self.query = nn.Parameter(0.02 * torch.randn(channels))
        self.keys = nn.Linear(channels, channels, bias=False)  # a bias would raise all places alike
        self.values = nn.Linear(channels, channels)
        self.classify = nn.Linear(channels, n_classes)
        self.loss_fn = WeightedLoss(self.name, n_classes, class_weights)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        tokens = self._tokens(features)
        weights = self._weights(tokens)  # (B, heads, places)
        values = self.values(tokens).unflatten(2, (self.heads, -1))  # (B, places, heads, C / heads)
        return self.classify(torch.einsum("bhn,bnhc->bhc", weights, values).flatten(1))

    def attention(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{tap: (B, h, w)}: the weight of every place, summing to one; the mean of the heads."""
        weights = self._weights(self._tokens(features)).mean(1)
        return {self.tap: weights.unflatten(1, features[self.tap].shape[-2:]).detach()}

    def saliency(self, features: Mapping[str, Tensor], target: Tensor | None = None) -> dict[str, Tensor]:
        """The attention: it is the same for every class."""
        return self.attention(features)

    def _tokens(self, features: Mapping[str, Tensor]) -> Tensor:
        tokens = features[self.tap].flatten(2).transpose(1, 2)  # (B, places, C)
        return F.layer_norm(tokens, tokens.shape[2:])

    def _weights(self, tokens: Tensor) -> Tensor:
        keys = self.keys(tokens).unflatten(2, (self.heads, -1))
        query = self.query.unflatten(0, (self.heads, -1))
        return (torch.einsum("bnhc,hc->bhn", keys, query) / keys.shape[-1] ** 0.5).softmax(-1)
