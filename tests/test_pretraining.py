"""Synthetic pre-training: pictures, objectives, and a run that repeats and resumes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pretraining.draw import Draw
from pretraining.export import export
from pretraining.generate import Batch, generate
from pretraining.objectives import (
    Agreement,
    Cells,
    draw_prompts,
    mask_loss,
)
from pretraining.probe import separation, trained, untrained
from pretraining.render import draw_style, render
from pretraining.shapes import LAYERS, OUTSIDE, REGIONS, label_maps
from pretraining.train import Recipe, Trainer, batch_at, run

from samadapt.encoders import EncoderSpec
from samadapt.types import IGNORED

TINY = Recipe(steps=3, small=2, scale=0.2, asked_images=2, asked_masks=2, bf16=False)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return generate(Draw("test", 0), maps=4, views=2, side=64)


# ---------------------------------------------------------------- pictures


def test_a_draw_follows_its_key():
    assert Draw("a", 1).uniform(3).equal(Draw("a", 1).uniform(3))
    assert not Draw("a", 1).uniform(3).equal(Draw("a", 2).uniform(3))


def test_batches_repeat_with_their_key_and_differ_without(batch):
    again = generate(Draw("test", 0), maps=4, views=2, side=64)
    assert batch.images.equal(again.images) and batch.labels.equal(again.labels)
    assert not batch.images.equal(generate(Draw("test", 1), 4, 2, 64).images)


def test_pictures_are_finite_in_range_and_labelled(batch):
    assert batch.images.shape == (8, 3, 64, 64) and batch.images.isfinite().all()
    stored = batch.images * 62 + 114
    assert stored.min() > -1 and stored.max() < 256
    assert ((batch.labels < REGIONS) | (batch.labels == IGNORED)).all()


def test_padding_is_ignored_and_zero():
    labels = torch.zeros(64, 32, 32, dtype=torch.long)
    draw = Draw("pad")
    images, labels = render(draw, labels, draw_style(draw, 64))
    padded = labels == IGNORED
    assert padded.any() and not padded[:, 0, 0].any()
    assert (images.masked_select(padded[:, None].expand_as(images)) == 0).all()


def _overlap(first: torch.Tensor, second: torch.Tensor, dy: int, dx: int) -> float:
    """Share of cells that agree when `second` is moved, of those that both show."""
    side = first.shape[0]
    rows, columns = slice(max(dy, 0), side + min(dy, 0)), slice(max(dx, 0), side + min(dx, 0))
    back = slice(max(-dy, 0), side + min(-dy, 0)), slice(max(-dx, 0), side + min(-dx, 0))
    a, b = first[rows, columns], second[back]
    both = (a < OUTSIDE) & (b < OUTSIDE)
    return float((a == b)[both].float().mean()) if both.sum() > 400 else 0.0


def test_views_are_parts_of_one_map_in_looks_of_their_own():
    batch = generate(Draw("views"), maps=6, views=2, side=64)
    for (first, second), (one, other) in zip(
        batch.labels.unflatten(0, (6, 2)), batch.images.unflatten(0, (6, 2)), strict=True
    ):
        fits = [_overlap(first, second, dy, dx) for dy in range(-16, 17) for dx in range(-16, 17)]
        assert max(fits) == 1.0
        assert (one - other).abs().mean() > 0.2
    assert (batch.labels[::2] != batch.labels[1::2]).any(-1).any(-1).all()


def test_maps_are_varied():
    labels = label_maps(Draw("many"), 64, 64)
    counts = [len(m.unique()) for m in labels]
    assert min(counts) < 5 < max(counts)
    seen = set(labels.unique().tolist())
    assert len(seen) > 0.6 * REGIONS and max(seen) < OUTSIDE and LAYERS > 3


# ---------------------------------------------------------------- objectives


def _telling(batch: Batch) -> dict[str, torch.Tensor]:
    """Features that say the region outright."""
    hot = (
        torch.nn.functional.one_hot(batch.labels.clamp(max=REGIONS), REGIONS + 1).permute(0, 3, 1, 2).float()
    )
    at = {"stride4": hot[:, :, 2::4, 2::4]}
    at["neck"] = torch.nn.functional.avg_pool2d(at["stride4"], 2)
    at["stride16"] = torch.nn.functional.avg_pool2d(at["stride4"], 4)
    return at


def test_features_that_tell_the_region_satisfy_agreement_and_random_ones_do_not(batch):
    torch.manual_seed(0)
    telling = _telling(batch)
    agreement = Agreement({tap: REGIONS + 1 for tap in telling})
    cells = Cells.of(batch.labels, Draw("cells"))
    with torch.no_grad():
        good = agreement(telling, cells, batch.views)
        bad = agreement({t: torch.randn_like(x) for t, x in telling.items()}, cells, batch.views)
    assert good < 0.6 * bad


def test_cells_count_shares_and_ignore_padding():
    labels = torch.full((1, 16, 16), 5)
    labels[:, 8:] = IGNORED
    cells = Cells.of(labels, Draw("c"))
    assert cells.neck[0, 5].tolist() == [1, 1, 0, 0]
    assert cells.coarse[0, 5].item() == 0.5
    assert cells.fine.sum() == 8


def test_prompts_lie_where_they_say(batch):
    asks = draw_prompts(batch, Draw("prompts"), images=4, asked=2)
    for mask, points, kinds, box in zip(asks.masks, asks.points, asks.kinds, asks.boxes, strict=True):
        if mask.sum() == 0 or mask.mean() > 0.95:
            continue
        for (x, y), kind in zip(points.long().tolist(), kinds.tolist(), strict=True):
            assert mask[y, x] == kind
        rows, columns = mask.nonzero().unbind(1)
        slack = 0.11 * max(columns.max() - columns.min(), rows.max() - rows.min()) + 1e-3
        ends = torch.stack([columns.min(), rows.min(), columns.max(), rows.max()])
        assert ((box - ends).abs() <= slack).all()


def test_the_mask_loss_takes_the_best_candidate_and_skips_absent_regions():
    target = torch.zeros(2, 1, 8, 8)
    target[0, :, 2:5, 2:5] = 1
    good, bad = 20 * target - 10, 10 - 20 * target
    ones = torch.ones_like(target)
    both = mask_loss(torch.cat([bad, good], 1), torch.ones(2, 2), target, ones)
    assert both < 0.05 < mask_loss(bad, torch.ones(2, 1), target, ones)
    assert both == mask_loss(torch.cat([bad, good], 1)[:1], torch.ones(1, 2), target[:1], ones[:1])


# ---------------------------------------------------------------- runs


def test_the_same_seed_gives_the_same_losses():
    first, again = run(TINY, None), run(TINY, None)
    assert first == again and len(first) == 3
    assert first != run(Recipe(**{**vars(TINY), "seed": 1}), None)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_hundred_losses_of_the_real_recipe():
    first, again = run(Recipe(steps=100), None), run(Recipe(steps=100), None)
    assert first == again and len(first) == 100


def test_a_run_begins_with_small_pictures():
    sides = [batch_at(TINY, step).images.shape[-1] for step in range(4)]
    assert sides[:2] == [64, 64] and min(sides[2:]) >= 128


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    whole = run(TINY, tmp_path / "whole")
    run(Recipe(**{**vars(TINY), "steps": 2}), tmp_path / "parts")
    rest = run(TINY, tmp_path / "parts", resume=True)
    assert rest == whole[2:]


def test_a_step_without_finite_gradients_changes_no_weight(monkeypatch):
    trainer = Trainer(TINY)
    before = {name: x.clone() for name, x in trainer.net.named_parameters()}
    weight = trainer.net.backbone.stem[0].weight
    monkeypatch.setattr(trainer.net, "losses", lambda *_: {"agreement": (weight * torch.inf).sum()})
    assert not math.isfinite(trainer.update(batch_at(TINY, 0))["loss"]) and trainer.step == 1
    assert all(torch.equal(x, before[name]) for name, x in trainer.net.named_parameters())


def test_the_decoder_learns_more_slowly_after_a_warm_up():
    trainer = Trainer(TINY)
    trainer.update(batch_at(TINY, 0))
    first = TINY.lr / TINY.warmup
    rates = [group["lr"] for group in trainer.loop.optimizer.param_groups]
    assert rates == pytest.approx([first, TINY.decoder_lr * first, first])


def test_an_objective_with_weight_zero_is_left_out(tmp_path):
    run(Recipe(**{**vars(TINY), "steps": 1, "prompts": 0.0}), tmp_path)
    header, row = (tmp_path / "losses.csv").read_text().splitlines()
    assert header.endswith("prompts") and row.endswith(",")


def test_a_run_becomes_weights_of_the_package(tmp_path):
    run(TINY, tmp_path / "run")
    description = export(tmp_path / "run", tmp_path / "w.safetensors")
    assert description["steps"] == 3 and description["finished"]
    assert json.loads((tmp_path / "w.json").read_text())["recipe"]["seed"] == 0
    spec = EncoderSpec("sam_nano", str(tmp_path / "w.safetensors"), side=64)
    weight = trained(tmp_path / "run").stem[0].weight
    assert torch.allclose(spec.load().network.stem[0].weight, weight, atol=1e-3)
    assert torch.equal(trained(tmp_path / "w.safetensors").stem[0].weight, spec.load().network.stem[0].weight)
    assert "mask_decoder.iou_token.weight" in spec.decoder_state()


@pytest.mark.slow
def test_a_short_run_separates_regions_better_than_random_weights(tmp_path):
    # About what two minutes of two cores do; bounded by minutes, a busy machine would decide.
    run(Recipe(steps=600), tmp_path)
    assert separation(trained(tmp_path)) > separation(untrained()) + 0.01


def test_the_packages_weights_separate_regions_whatever_the_contrast():
    packaged = separation(trained(None), maps=12)
    assert packaged > separation(untrained(), maps=12) + 0.2
