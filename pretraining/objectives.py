"""What the network is asked: the same region in another look, and the region's mask for a prompt.

Shapes: `N` = T * V pictures in map-major order, `C` channels, `h w` a feature map's grid, `R` regions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.draw import Draw
from pretraining.generate import Batch
from pretraining.shapes import REGIONS
from samadapt.heads.mask_decoder import PromptedDecoder
from samadapt.types import IGNORED

# ---------------------------------------------------------------- agreement


@dataclass(frozen=True)
class Cells:
    """The regions of a batch on its features' grids, made once a step.

    Only some cells of the finest grid are looked at, the same in all pictures: dense sums over many regions would
    cost as much as the network.
    """

    fine: Tensor  # (N, R, P) one-hot at the chosen cells of stride 4; all 0 where padded
    at: Tensor  # (P,) their indices in the flattened grid
    neck: Tensor  # (N, R, hw) share of each region in each cell of stride 8
    coarse: Tensor  # (N, R, hw) of stride 16

    @staticmethod
    def of(labels: Tensor, draw: Draw, most: int = 512) -> Cells:
        """(N, S, S) region numbers, IGNORED where padded."""
        sampled = labels[:, 2::4, 2::4]
        hot = torch.arange(REGIONS, device=labels.device)[:, None, None] == sampled[:, None]
        hot = hot.float()  # (N, R, g, g)
        at = torch.argsort(draw.uniform(sampled[0].numel()))[:most]
        return Cells(
            hot.flatten(2)[:, :, at],
            at,
            F.avg_pool2d(hot, 2).flatten(2),
            F.avg_pool2d(hot, 4).flatten(2),
        )


class Agreement(nn.Module):
    """Dense agreement: a cell must find its region's prototype, made from the *other* views alone.

    The other views lie at other places and look differently, so that what the features keep is shape and
    surroundings. Prototypes of a cell's own view would be found by its intensity.
    """

    def __init__(self, channels: Mapping[str, int], width: int = 64) -> None:
        super().__init__()
        self.project = nn.ModuleDict({tap: nn.Conv2d(c, width, 1) for tap, c in channels.items()})
        self.scale = nn.Parameter(torch.full((len(channels),), math.log(10.0)))

    def forward(self, features: Mapping[str, Tensor], cells: Cells, views: int) -> Tensor:
        """Cross-entropy over the map's regions, averaged over taps."""
        shares = {"stride4": cells.fine, "neck": cells.neck, "stride16": cells.coarse}
        losses = []
        for index, (tap, project) in enumerate(self.project.items()):
            embedded = project(features[tap]).flatten(2)
            if tap == "stride4":
                embedded = embedded[:, :, cells.at]
            scale = self.scale[index].clamp(max=math.log(50.0)).exp()
            losses.append(self._tap(F.normalize(embedded.float(), dim=1), shares[tap], views, scale))
        return torch.stack(losses).mean()

    @staticmethod
    def _tap(x: Tensor, mass: Tensor, views: int, scale: Tensor) -> Tensor:
        """x (N, C, P) of length 1, mass (N, R, P)."""
        sums = mass @ x.transpose(1, 2)  # (N, R, C)
        total = mass.sum(2)  # (N, R)
        parts, amount = sums.unflatten(0, (-1, views)), total.unflatten(0, (-1, views))
        others = (parts.sum(1, keepdim=True) - parts).flatten(0, 1)
        elsewhere = (amount.sum(1, keepdim=True) - amount).flatten(0, 1)
        return _nearest_region(x, mass, others, elsewhere > 0.5, scale)


def _nearest_region(x: Tensor, mass: Tensor, prototypes: Tensor, known: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each cell over the prototypes (N, R, C) that are known (N, R)."""
    logits = scale * F.normalize(prototypes, dim=2) @ x  # (N, R, P)
    logits = logits.masked_fill(~known[:, :, None], -1e4)
    target = mass * known[:, :, None]
    # Every region counts by the root of its size: small organs matter, single cells do not dominate.
    weight = target.sum(2).clamp(min=1e-6).rsqrt()[:, :, None] * target
    return -(weight * logits.log_softmax(1)).sum() / weight.sum().clamp(min=1.0)


# ---------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Prompts:
    """Some masks of some pictures, and how each is asked for."""

    images: Tensor  # (B,) rows of the batch
    masks: Tensor  # (M, S, S) float, M = B * asked, image-major
    valid: Tensor  # (M, 1, S, S) 0 where the picture is padded
    points: Tensor  # (M, P, 2) x y in pixels
    kinds: Tensor  # (M, P) 1 inside, 0 outside, -1 none
    boxes: Tensor  # (M, 4) x0 y0 x1 y1


def draw_prompts(batch: Batch, draw: Draw, images: int, asked: int) -> Prompts:
    """Ask for regions, and for unions of a layer's nested regions, with a box, one point or three."""
    n = batch.labels.shape[0]
    rows = torch.argsort(draw.uniform(n))[:images]
    labels = batch.labels[rows]
    side = labels.shape[-1]
    coarse = labels[:, 1::4, 1::4].flatten(1, 2)
    large = (coarse[:, None] == torch.arange(REGIONS, device=labels.device)[:, None]).sum(
        2
    ) > side * side // 1600
    chosen = torch.topk(draw.uniform(images, REGIONS) + large.float(), asked, dim=1).indices.flatten()  # (M,)
    many = labels.repeat_interleave(asked, 0)
    first = chosen - torch.remainder(chosen - 4, 6)  # a layer's numbers are neighbours: see shapes.LEVELS
    union = draw.chance(0.3, len(chosen)) & (chosen >= 4) & (chosen < REGIONS - 1)
    low, high = torch.where(union, first, chosen), torch.where(union, first + 5, chosen)
    masks = (many >= low[:, None, None]) & (many <= high[:, None, None])
    valid = many != IGNORED
    inside, outside = _point(masks, draw), _point(~masks & valid, draw)
    points = torch.stack([inside, _point(masks, draw), outside], 1)
    kinds = torch.tensor([1, 1, 0], device=labels.device).repeat(len(chosen), 1)
    return Prompts(rows, masks.float(), valid[:, None].float(), points, kinds, _box(masks, draw))


def _point(masks: Tensor, draw: Draw) -> Tensor:
    """(M, S, S) -> (M, 2): a random pixel of each mask; the last pixel where a mask is empty."""
    rank = masks.flatten(1).cumsum(1, dtype=torch.int32)
    total = rank[:, -1:]
    nth = (draw.uniform(len(masks), 1) * total).to(torch.int32) + 1
    side = masks.shape[-1]
    index = torch.searchsorted(rank, nth.minimum(total.clamp(min=1)))[:, 0].clamp(max=side * side - 1)
    return torch.stack([index % side, index // side], 1).float()


def _box(masks: Tensor, draw: Draw) -> Tensor:
    """(M, S, S) -> (M, 4), each side moved by up to a tenth of the box."""
    side = masks.shape[-1]
    at = torch.arange(side, device=masks.device)
    column, row = masks.any(1), masks.any(2)  # (M, S)
    ends = []
    for line in (column, row):
        ends.append(torch.where(line, at, side).amin(1).clamp(max=side - 1))
        ends.append(torch.where(line, at, -1).amax(1).clamp(min=0))
    x0, x1, y0, y1 = (e.float() for e in ends)
    size = torch.stack([x1 - x0, y1 - y0, x1 - x0, y1 - y0], 1)
    box = torch.stack([x0, y0, x1, y1], 1) + 0.05 * size * draw.normal(len(size), 4).clamp(-2, 2)
    return box.clamp(0, side - 1)


def promptable(
    decoder: PromptedDecoder, neck: Tensor, batch: Batch, draw: Draw, images: int, asked: int
) -> Tensor:
    """SAM's objective: a third of the steps each with boxes, with one point (three candidates), with three points."""
    asks = draw_prompts(batch, draw, images, asked)
    kind = int(draw.integers(0, 3, 1))
    points = None if kind == 0 else (asks.points, asks.kinds)
    if kind == 1:
        points = (asks.points[:, :1], asks.kinds[:, :1])
    side = batch.labels.shape[-1]
    logits, iou = decoder(
        neck[asks.images],
        points=points,
        boxes=asks.boxes if kind == 0 else None,
        multimask=kind == 1,
        side=side,
    )
    logits = logits.float()
    size = logits.shape[-2:]
    target = F.adaptive_avg_pool2d(asks.masks[:, None], size)
    valid = F.adaptive_avg_pool2d(asks.valid, size)
    return mask_loss(logits, iou.float(), target, valid)


def mask_loss(logits: Tensor, iou: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy and Dice of the best candidate, and the error of its predicted IoU.

    SAM's focal loss weighs the background three times: a small decoder then starts by answering nothing, and stays.

    Args:
        logits: (M, k, h, w), iou: (M, k); target, valid: (M, 1, h, w).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    entropy = (entropy * valid).sum((2, 3)) / valid.sum((2, 3)).clamp(min=1)
    p = logits.sigmoid() * valid
    overlap, total = (p * target).sum((2, 3)), (p + target).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    share = target.mean((2, 3))  # (M, 1): a prompt for a region that is absent, or everything, asks nothing
    asked = ((share > 0.002) & (share < 0.7)).float()
    each = entropy + dice
    best = each.argmin(1, keepdim=True)
    hard = ((logits > 0) & (valid > 0.5)).float()
    truth = (target > 0.5).float()
    shared = (hard * truth).sum((2, 3))
    reached = shared / (hard + truth - hard * truth).sum((2, 3)).clamp(min=1)
    quality = (iou - reached).square()
    loss = (each + quality).gather(1, best)
    return (loss * asked).sum() / asked.sum().clamp(min=1)
