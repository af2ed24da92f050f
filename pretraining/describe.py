"""What each place of a picture lies in: size, place within, shape and brightness of its region and of what is around.

Dense supervised targets, computed from the label map: they say nothing of the place in the picture, so there is no
shortcut through it, and they cannot collapse. A frozen feature that tells "a bright disc of this size within a dark
ring, and here is its middle" is what a light head needs to find an organ from one patient.

Shapes: `N` pictures, `R` regions, `g` the side of the grid of stride 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.shapes import REGIONS
from samadapt.types import IGNORED

TARGETS = 16
_FAR = 6  # cells of stride 4: farther from a border than this is "far"
_SCALES = (5, 11)  # sides of the surroundings, in cells of stride 4


def _moments(hot: Tensor, xy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """hot (N, R, P), xy (P, 2) -> area (N, R), centre (N, R, 2), covariance (N, R, 3: xx, yy, xy)."""
    area = hot.sum(2)
    n = area.clamp(min=1.0)[..., None]
    centre = hot @ xy / n
    squares = torch.stack([xy[:, 0] ** 2, xy[:, 1] ** 2, xy[:, 0] * xy[:, 1]], 1)
    means = torch.stack([centre[..., 0] ** 2, centre[..., 1] ** 2, centre[..., 0] * centre[..., 1]], 2)
    return area, centre, hot @ squares / n - means


def _depth(labels: Tensor) -> Tensor:
    """(N, g, g) numbers -> (N, 1, g, g): cells to the nearest border of the region, at most `_FAR`."""
    x = labels[:, None].float()
    border = (F.max_pool2d(x, 3, 1, 1) != -F.max_pool2d(-x, 3, 1, 1)).float()
    depth = torch.zeros_like(border)
    for _ in range(_FAR):
        depth = depth + (1 - border)
        border = F.max_pool2d(border, 3, 1, 1)
    return depth


def _at_border(hot: Tensor, g: int) -> Tensor:
    """(N, R, g * g) -> (N, R): cells on the picture's outermost rows and columns."""
    grid = hot.unflatten(2, (g, g))
    return grid[..., 0, :].sum(2) + grid[..., -1, :].sum(2) + grid[..., 0].sum(2) + grid[..., -1].sum(2)


def describe(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of every cell of stride 4, and how much each counts.

    Args:
        images: (N, 3, S, S) normalised.
        labels: (N, S, S) region numbers, IGNORED where padded.

    Returns:
        (N, TARGETS, g, g) of about unit size, and (N, TARGETS, g, g) weights in 0..1.
    """
    cells = labels[:, 2::4, 2::4]
    g = cells.shape[-1]
    hot = (torch.arange(REGIONS, device=labels.device)[:, None] == cells.flatten(1)[:, None]).float()
    steps = torch.arange(g, device=labels.device, dtype=torch.float32)
    xy = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), 2).view(-1, 2)
    area, centre, cov = _moments(hot, xy)
    xx, yy, xy_ = cov[..., 0] + 0.1, cov[..., 1] + 0.1, cov[..., 2]
    root = (xx * yy - xy_ * xy_).clamp(min=0.01).sqrt()
    radius = (area / math.pi).clamp(min=0.5).sqrt()
    # One blob fills the ellipse of its moments; a crowd or a tree does not, and its centre means nothing.
    # Nor does that of a region cut by the picture's border: it would be the place in the picture.
    compact = (area / (4 * math.pi * root)).clamp(0.0, 1.0) * (_at_border(hot, g) < 0.05 * area).float()
    light = F.avg_pool2d(images.mean(1, keepdim=True), 4).flatten(2)  # (N, 1, P)
    shade = (hot @ light.transpose(1, 2))[..., 0] / area.clamp(min=1.0)
    table = torch.stack(
        [
            2 * radius.log() - 5,
            2 * (xx - yy) / (xx + yy),
            4 * xy_ / (xx + yy),
            shade,
            compact,
            centre[..., 0],
            centre[..., 1],
        ],
        2,
    )  # (N, R, 7)
    own = (table.transpose(1, 2) @ hot).unflatten(2, (g, g))  # (N, 7, g, g)
    size, shape, bright, trust = own[:, :1], own[:, 1:3], own[:, 3:4], own[:, 4:5]
    offset = (own[:, 5:7] - xy.t().view(1, 2, g, g)).mul(0.15)
    depth = _depth(cells) / 3.0 - 1
    seen = (cells != IGNORED).float()[:, None]
    around = torch.cat([size, bright, depth], 1) * seen
    context = []
    for side in _SCALES:
        share = F.avg_pool2d(seen, side, 1, side // 2).clamp(min=0.05)
        context.append(F.avg_pool2d(around, side, 1, side // 2) / share)
    wide = 3 * (context[1] - context[0])
    targets = torch.cat([size, shape, bright, depth, offset.clamp(-3, 3), *context, wide], 1)
    whole = torch.ones_like(size)
    weights = torch.cat([whole, trust.expand(-1, 2, -1, -1), whole, whole, trust.expand(-1, 2, -1, -1)], 1)
    weights = torch.cat([weights, whole.expand(-1, targets.shape[1] - weights.shape[1], -1, -1)], 1)
    return targets, weights * seen


class Description(nn.Module):
    """A linear readout of the targets from each tap, smooth L1."""

    def __init__(self, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.read = nn.ModuleDict({tap: nn.Conv2d(c, TARGETS, 1) for tap, c in channels.items()})

    def forward(self, features: Mapping[str, Tensor], targets: Tensor, weights: Tensor) -> Tensor:
        """Mean over the taps; a coarser tap answers for the mean of its cells."""
        losses = []
        for tap, read in self.read.items():
            answer = read(features[tap]).float()
            times = targets.shape[-1] // answer.shape[-1]
            weight = F.avg_pool2d(weights, times)
            target = F.avg_pool2d(targets * weights, times) / weight.clamp(min=1e-3)
            error = F.smooth_l1_loss(answer, target, reduction="none", beta=0.5)
            losses.append((error * weight).sum() / weight.sum().clamp(min=1.0))
        return torch.stack(losses).mean()
