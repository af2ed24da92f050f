"""One batch of training: label maps, their views, their pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretraining.draw import Draw
from pretraining.render import draw_style, render
from pretraining.shapes import label_maps

MARGIN = 1.25  # of a map to the part of it that a view shows


@dataclass(frozen=True)
class Batch:
    """N = maps * views pictures in map-major order; a region has one number in all views of a map."""

    images: Tensor  # (N, 3, S, S) normalised
    labels: Tensor  # (N, S, S) int64 below REGIONS, or IGNORED
    views: int


@torch.no_grad()
def generate(draw: Draw, maps: int, views: int, side: int) -> Batch:
    """A batch that depends on the draw's key alone.

    A view is a part of its label map at a place of its own, in a look of its own: contrast, texture, noise and all
    else are drawn anew, so that only shape and surroundings tell which region is which.
    """
    whole = 2 * round(MARGIN * side / 2)
    labels = label_maps(draw, maps, whole).repeat_interleave(views, 0)
    corners = draw.integers(0, whole - side + 1, maps * views, 2).tolist()
    parts = [map_[y : y + side, x : x + side] for map_, (y, x) in zip(labels, corners, strict=True)]
    images, seen = render(draw, torch.stack(parts), draw_style(draw, maps * views))
    return Batch(images, seen, views)
