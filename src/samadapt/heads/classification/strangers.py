"""A control: every image's gates come from another image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from samadapt.heads.options import Taps

KEPT = 8  # training images whose maps stay with the head


@final
class Strangers(nn.Module):
    """Permutes the taps over the images of a batch while training; afterwards lends those of training images.

    A predicted image comes alone, so there is nothing to permute: it gets the maps of one of the first training
    images, which are kept with the weights. The pixels decide which, so that an answer can be repeated.

    Args:
        shapes: tap -> (C, h, w) as the head sees it, pooled.
    """

    def __init__(self, shapes: Taps) -> None:
        super().__init__()
        self.names = list(shapes)
        # Half precision as integers: what is averaged over training steps (floating buffers) must not touch them.
        for index, shape in enumerate(shapes.values()):
            self.register_buffer(f"kept{index}", torch.zeros(KEPT, *shape, dtype=torch.int16))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.count: Tensor

    def forward(self, taps: Mapping[str, Tensor], pixels: Tensor) -> dict[str, Tensor]:
        """{tap: (B, C, h, w)} of the images -> the same of others."""
        if self.training:
            self._keep(taps)
        size = pixels.shape[0]
        if self.training and size > 1:
            shift = int(torch.randint(1, size, ()))
            return {tap: x.roll(shift, 0) for tap, x in taps.items()}
        if int(self.count) == 0:  # never trained: at least nobody keeps their own
            return {tap: x.roll(1, 0) for tap, x in taps.items()}
        chosen = self._chosen(pixels)
        return {
            tap: self._kept(index)[chosen].view(torch.float16).to(taps[tap].dtype)
            for index, tap in enumerate(self.names)
        }

    def _kept(self, index: int) -> Tensor:
        return self.get_buffer(f"kept{index}")

    @torch.no_grad()
    def _keep(self, taps: Mapping[str, Tensor]) -> None:
        have = int(self.count)
        if have == KEPT:
            return
        new = min(KEPT - have, next(iter(taps.values())).shape[0])
        for index, tap in enumerate(self.names):
            self._kept(index)[have : have + new] = taps[tap][:new].half().contiguous().view(torch.int16)
        self.count += new

    def _chosen(self, pixels: Tensor) -> Tensor:
        """(B,) indices of kept images, from the bits of the pixels: the same alone and in a batch."""
        bits = pixels.float().contiguous().view(torch.int32).flatten(1).long()
        return (bits % 1009).sum(1) % int(self.count)
