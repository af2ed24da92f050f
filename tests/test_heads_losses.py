"""Dice and cross-entropy by hand, and that IGNORED pixels count nowhere."""

import math

import pytest
import torch

from samadapt.losses import LOSSES, cross_entropy, dice_ce, soft_dice
from samadapt.types import IGNORED


def certain(target: torch.Tensor, n_classes: int = 3) -> torch.Tensor:
    """Logits that are sure of the target."""
    known = torch.where(target == IGNORED, 0, target)
    return 100.0 * torch.nn.functional.one_hot(known, n_classes).movedim(-1, 1).float()


def test_a_perfect_answer_costs_nothing():
    target = torch.tensor([[[0, 1], [2, 2]]])
    for loss in LOSSES.values():
        assert loss(certain(target), target).item() == pytest.approx(0, abs=1e-6)


def test_dice_by_hand():
    target = torch.tensor([[[1, 1], [0, 0]]])
    answer = certain(torch.tensor([[[1, 0], [0, 0]]]), n_classes=2)
    # overlap 1, predicted 1, true 2, one pixel of smoothing: 1 - (2 + 1) / (3 + 1)
    assert soft_dice(answer, target).item() == pytest.approx(0.25)


def test_batch_dice_pools_the_slices_and_slice_dice_does_not():
    target = torch.tensor([[[1, 1]], [[0, 0]]])
    answer = certain(torch.tensor([[[1, 1]], [[1, 0]]]), n_classes=2)
    assert soft_dice(answer, target, batch=True).item() == pytest.approx(1 - 5 / 6)
    assert soft_dice(answer, target, batch=False).item() == pytest.approx((0 + (1 - 1 / 2)) / 2)


def test_cross_entropy_of_no_opinion():
    assert cross_entropy(torch.zeros(1, 4, 2, 2), torch.ones(1, 2, 2)).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_ignored_pixels_count_nowhere(loss):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    target = torch.randint(0, 3, (2, 8, 8))
    target[:, :, 5:] = IGNORED
    loss(logits, target).backward()
    assert not logits.grad[..., 5:].any()
    assert logits.grad[..., :5].all()
    cut = loss(logits[..., :5], target[..., :5])
    torch.testing.assert_close(loss(logits, target), cut)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_nothing_to_learn_is_zero_and_not_nan(loss):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((1, 4, 4), IGNORED))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


def test_logits_are_brought_to_the_targets_grid():
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[:, :4] = 1
    assert dice_ce(certain(target[:, ::4, ::4].long(), 2), target) < 0.5
