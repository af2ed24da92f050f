"""One batch of training: templates, their views, their pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretraining.draw import Draw
from pretraining.render import acquisitions, render
from pretraining.shapes import label_maps


@dataclass(frozen=True)
class Batch:
    """N = templates * views pictures in template-major order; a region has one number in all views of a template."""

    images: Tensor  # (N, 3, S, S) normalised
    labels: Tensor  # (N, S, S) int64 below REGIONS, or IGNORED
    views: int


@torch.no_grad()
def generate(draw: Draw, templates: int, views: int, side: int) -> Batch:
    """A batch that depends on the draw's key alone."""
    labels = label_maps(draw, templates, views, side)
    images, labels = render(draw, labels, acquisitions(draw, templates, views))
    return Batch(images, labels, views)
