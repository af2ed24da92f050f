"""A control: every image's gates come from another image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from samadapt.types import Taps

KEPT = 8  # training images whose maps stay with the head


@final
class ShuffledTaps(nn.Module):
    """Lends every image the maps of another one: of its batch or of an earlier one in training, of training images after.

    An image is told by its identity, a number that all of its views share, and never gets maps of its own: with two
    labelled images each gets the other's. A predicted image gets the maps of one of the first training images, which are
    kept with the weights; its pixels decide which, so that an answer can be repeated. Where no other image has been seen
    yet (the first step, if its batch holds views of one image), the maps are zero.

    Args:
        shapes: tap -> (C, h, w) as the head sees it, pooled.
    """

    def __init__(self, shapes: Taps) -> None:
        super().__init__()
        self.names = list(shapes)
        # Half precision as integers: what is averaged over training steps (floating buffers) must not touch them.
        for index, shape in enumerate(shapes.values()):
            self.register_buffer(f"kept{index}", torch.zeros(KEPT, *shape, dtype=torch.int16))
        self.register_buffer("owners", torch.zeros(KEPT, dtype=torch.int64))  # identities of the kept images
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.owners: Tensor
        self.count: Tensor

    def forward(self, taps: Mapping[str, Tensor], pixels: Tensor, identity: Tensor) -> dict[str, Tensor]:
        """{tap: (B, C, h, w)} of the images -> the same of others.

        Args:
            pixels: (B, 3, S, S).
            identity: (B, 1) whole numbers, equal for all views of one image.
        """
        owners = identity.flatten().long()
        if self.training:
            self._keep(taps, owners)
        kept = {tap: self._kept(index, taps[tap].dtype) for index, tap in enumerate(self.names)}
        lenders = [self.owners[: int(self.count)]]
        if self.training:
            kept = {tap: torch.cat([kept[tap], x]) for tap, x in taps.items()}
            lenders.append(owners)
        chosen = self._chosen(owners, torch.cat(lenders), pixels)
        return {
            tap: torch.stack([torch.zeros_like(x[0]) if n is None else kept[tap][n] for n in chosen])
            for tap, x in taps.items()
        }

    def _chosen(self, owners: Tensor, lenders: Tensor, pixels: Tensor) -> list[int | None]:
        """For each image one of the lenders that is not the image itself."""
        draws = self._draws(pixels)
        places = [(lenders != owner).nonzero()[:, 0] for owner in owners]
        return [
            int(place[draw % len(place)]) if len(place) else None
            for place, draw in zip(places, draws, strict=True)
        ]

    def _draws(self, pixels: Tensor) -> list[int]:
        """Random in training; afterwards from the bits of the pixels: the same alone and in a batch."""
        if self.training:
            return [int(n) for n in torch.randint(2**31, (len(pixels),))]
        bits = pixels.float().contiguous().view(torch.int32).flatten(1).long()
        return [int(n) for n in (bits % 1009).sum(1)]

    def _kept(self, index: int, dtype: torch.dtype) -> Tensor:
        return self.get_buffer(f"kept{index}")[: int(self.count)].view(torch.float16).to(dtype)

    @torch.no_grad()
    def _keep(self, taps: Mapping[str, Tensor], owners: Tensor) -> None:
        """The first images that pass, one view of each."""
        for row, owner in enumerate(owners):
            have = int(self.count)
            if have == KEPT:
                return
            if bool((self.owners[:have] == owner).any()):
                continue
            for index, tap in enumerate(self.names):
                self.get_buffer(f"kept{index}")[have] = taps[tap][row].half().contiguous().view(torch.int16)
            self.owners[have] = owner
            self.count += 1
