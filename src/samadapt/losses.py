"""Losses over class maps, or over the share of each class in each cell. What is IGNORED counts nowhere.

Written here and not taken from MONAI because MONAI's losses cannot leave out single pixels of a multi-class
label. Everything is summed in float32, whatever the logits' type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from samadapt.types import IGNORED

SegmentationLoss = Callable[[Tensor, Tensor], Tensor]


def to_grid(logits: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """(B, K, h, w) -> (B, K, *size), bilinear."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def as_shares(target: Tensor, n_classes: int) -> Tensor:
    """(B, h, w) classes or IGNORED -> (B, K, h, w) shares, one or zero; shares as they are."""
    if target.dim() == 4:
        return target
    counts = target != IGNORED
    return (
        F.one_hot(torch.where(counts, target.long(), 0), n_classes).movedim(-1, 1).float() * counts[:, None]
    )


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs, since each of their losses depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def over_processes(x: Tensor) -> Tensor:
    """The sum over all processes that share a batch (`--devices`), with its gradient; x itself where there is but one.

    A loss of sums over the batch is then the same however many processes share it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    return _Sum.apply(x)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the cells that count; zero (not nan) when none does."""
    shares = as_shares(target, logits.shape[1])
    total = F.cross_entropy(logits.float(), shares, reduction="sum")
    return over_processes(total) / over_processes(shares.sum()).clamp_min(1)


def _overlap(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and shares of the classes (B, K, h, w), both zero where nothing is known."""
    shares = as_shares(target, logits.shape[1])
    return logits.float().softmax(1) * (shares.sum(1, keepdim=True) > 0), shares


def soft_dice(logits: Tensor, target: Tensor, batch: bool = True, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice of the foreground classes, averaged.

    Args:
        logits: (B, K, h, w); class 0 is the background.
        target: (B, h, w) classes or IGNORED, or (B, K, h, w) shares, all zero where nothing is known.
        batch: sums run over the whole batch, so that a slice without the organ is not a class of its own.
        smooth: pixels added to numerator and denominator; a class that nobody has is then learned as absent.
    """
    p, y = _overlap(logits, target)
    axes = (0, 2, 3) if batch else (2, 3)
    p, y = p[:, 1:], y[:, 1:]
    sums = torch.stack([(p * y).sum(axes), p.sum(axes) + y.sum(axes)])
    both, total = over_processes(sums) if batch else sums
    return 1 - ((2 * both + smooth) / (total + smooth)).mean()


def dice_ce(logits: Tensor, target: Tensor, batch: bool = True, dice: float = 0.5) -> Tensor:
    """Dice and cross-entropy, on the target's grid.

    Args:
        logits: (B, K, any, any).
        target: as for `soft_dice`.
        batch: see `soft_dice`.
        dice: weight of the Dice part; the cross-entropy has the rest. Multiplied by two, so that the
            default is their plain sum.
    """
    logits = to_grid(logits, target.shape[-2:])
    return 2 * (dice * soft_dice(logits, target, batch) + (1 - dice) * cross_entropy(logits, target))


def autosam_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The loss of AutoSAM's authors: cross-entropy + batch Dice of the foreground with squared denominators.

    After `loss_functions/dice_loss.py` (`soft_dice_per_batch_2`) of xhu248/AutoSAM: smoothing of one pixel, and
    a class whose Dice is perfect (loss not above zero) is dropped from the mean. Where all are dropped theirs
    is nan and ours zero.
    """
    logits = to_grid(logits, target.shape[-2:])
    p, y = (x[:, 1:] for x in _overlap(logits, target))
    axes = (0, 2, 3)
    sums = torch.stack([(p * y).sum(axes), p.square().sum(axes) + y.square().sum(axes)])
    both, total = over_processes(sums)
    loss = 1 - (2 * both + 1) / (total + 1)
    counted = loss > 0
    return cross_entropy(logits, target) + (loss * counted).sum() / counted.sum().clamp_min(1)


LOSSES: dict[str, SegmentationLoss] = {"dice_ce": dice_ce, "autosam": autosam_loss}
