"""Neighbouring slices: shown to the encoder as colours (`--slices 3`), and answers smoothed over them (`--smooth-slices`)."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from samadapt import io
from samadapt.cli import app
from samadapt.datasets import open_dataset
from samadapt.encoders import EncoderSpec
from samadapt.export import runner
from samadapt.features import MapSpec
from samadapt.learner import Learner
from samadapt.postprocessing import (
    SMOOTHINGS,
    Postprocessing,
    best_smoothing,
    choose_smoothing,
    read_postprocessing,
    smoothed,
    write_postprocessing,
)
from samadapt.prediction import load_run
from samadapt.types import Case, SamAdaptError


def type_(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def case_of(image: torch.Tensor) -> Case:
    return Case("a", image, None, (1.0, 1.0, 1.0), None, "a")


# ---------------------------------------------------------------- shown as colours


def test_a_slice_is_shown_between_its_neighbours_and_the_ends_are_their_own():
    case = case_of(torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 32, 32))
    spec = EncoderSpec("pixels", side=32, slices=3)
    seen = spec.view("0,3").of(case)
    shown = [(seen(i)[0][:, 0, 0] * 3).round().int().tolist() for i in range(4)]
    assert shown == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    alone = EncoderSpec("pixels", side=32).view("0,3").of(case)
    assert (alone(2)[0][:, 0, 0] * 3).round().int().tolist() == [2, 2, 2]


def test_the_same_turn_is_drawn_for_all_three():
    """Else neighbours would not lie on each other."""
    image = torch.rand(1, 1, 16, 16).expand(1, 3, 16, 16)  # three equal slices
    seen = EncoderSpec("pixels", side=32, slices=3).view("0,1", "default").of(case_of(image))
    pixels, _, _ = seen(1, ("key",))
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[1], pixels[2])


def test_maps_of_three_slices_are_other_maps_in_the_store():
    one, three = (MapSpec(EncoderSpec("sam_nano", slices=n), {"neck": 1}) for n in (1, 3))
    assert one.key != three.key and "slices" not in one.encoder.fingerprint
    both = EncoderSpec("imagenet_lite0+sam_nano", checkpoint="random", slices=3)
    assert all(part.slices == 3 for part in both.parts.values())


def test_a_learner_of_one_slice_is_the_learner_that_it_was():
    assert "slices" not in Learner("fused", "sam_nano").identity()
    assert Learner("fused", "sam_nano", slices=3).identity()["slices"] == 3


@pytest.mark.parametrize("slices", [0, 2, 5])
def test_other_numbers_are_refused(slices):
    with pytest.raises(SamAdaptError, match=r"slices is \d; expected 1, or 3"):
        EncoderSpec("sam_nano", slices=slices)


def test_colour_pictures_have_no_room_for_neighbours():
    seen = EncoderSpec("pixels", side=32, slices=3).view("none")
    with pytest.raises(SamAdaptError, match=r"3 channels.*--slices 1"):
        seen.of(case_of(torch.rand(3, 1, 8, 8)))


# ---------------------------------------------------------------- smoothed answers


def by_hand(logits: torch.Tensor, sigma: float) -> torch.Tensor:
    p, n = logits.softmax(1), torch.arange(len(logits), dtype=torch.float64)
    apart = (n[:, None] - n[None]).abs()
    weights = torch.exp(-0.5 * (apart / sigma) ** 2) * (apart <= np.ceil(3 * sigma))
    weights = (weights / weights.sum(1, keepdim=True)).float()
    return torch.einsum("ij,jkhw->ikhw", weights, p)


@pytest.mark.parametrize("depth", [1, 2, 3, 9, 20])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_smoothing_is_a_gaussian_mean_of_the_probabilities(depth, sigma):
    logits = 4 * torch.randn(depth, 3, 4, 5, generator=torch.Generator().manual_seed(depth))
    found = torch.stack(list(smoothed(iter(logits), sigma)))
    assert torch.allclose(found.exp(), by_hand(logits, sigma), atol=1e-6)
    exported = np.stack(list(runner.smoothed(iter(logits.numpy()), sigma)))
    assert np.allclose(exported, found.exp().numpy(), atol=1e-6)


def test_without_smoothing_answers_stay_as_they_are():
    logits = torch.randn(3, 2, 4, 4)
    assert torch.equal(torch.stack(list(smoothed(iter(logits), 0))), logits)
    assert not list(smoothed(iter(()), 1.0))


def test_smoothing_reads_no_further_ahead_than_it_needs():
    taken = []

    def answers():
        for n in range(50):
            taken.append(n)
            yield torch.randn(2, 3, 3)

    next(smoothed(answers(), 1.0))
    assert len(taken) == 4


def test_the_smoothing_that_serves_the_selection_cases_is_chosen():
    truth = np.zeros((7, 6, 6), np.uint8)
    truth[:, 2:5, 2:5] = 1
    logits = torch.stack([torch.from_numpy(1.0 - truth), torch.from_numpy(1.0 * truth)], 1) * 2
    logits[3] = logits[3].flip(0)  # one slice is answered the wrong way
    dice = choose_smoothing([(iter(logits), truth)], ("background", "a"), 255)
    assert set(dice) == set(SMOOTHINGS) and dice[1.0] > dice[0.0]
    assert best_smoothing(dice) > 0
    assert best_smoothing({0.0: 0.8, 0.5: 0.8, 1.0: 0.7}) == 0  # no more than what pays


def test_what_was_chosen_is_read_again(tmp_path):
    write_postprocessing(tmp_path, Postprocessing(("a",), 1.5), why="x")
    assert read_postprocessing(tmp_path) == Postprocessing(("a",), 1.5)
    (tmp_path / "postprocessing.json").write_text('{"keep_largest": ["a"]}')  # of an earlier version
    assert read_postprocessing(tmp_path) == Postprocessing(("a",), 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"keep_largest": [], "smooth_slices": -1}', "smooth_slices is -1"),
        ('{"keep_largest": [], "smooth_slices": true}', "smooth_slices is True"),
        ('{"keep_largest": [], "smooth_slices": 1e300}', "smooth_slices is 1e"),
        ('{"keep_largest": ["nope"]}', "keep_largest names 'nope', expected classes of a"),
        ('{"keep_largest": ["background"]}', "keep_largest names 'background'"),
        ('{"keep_largest": "a"}', "keep_largest is 'a', expected a list"),
        ('{"keep_largest": {"a": false}}', "expected a list"),
        ("{}", "keep_largest is None"),
        ("[]", "keep_largest is None"),
        ("{", "cannot be read"),
    ],
)
def test_an_edited_file_is_refused(content, said, tmp_path):
    """Else a choice would be dropped without a word, or the first prediction would end in an internal error."""
    (tmp_path / "postprocessing.json").write_text(content)
    with pytest.raises(SamAdaptError, match=said):
        read_postprocessing(tmp_path, ("background", "a"))


def test_a_tiny_smoothing_is_none():
    logits = torch.randn(3, 2, 4, 4)
    assert torch.allclose(torch.stack(list(smoothed(iter(logits), 1e-200))), logits.log_softmax(1), atol=1e-5)


# ---------------------------------------------------------------- from end to end


def test_train_with_neighbours_and_a_chosen_smoothing(phantom, tmp_path):
    run = tmp_path / "run"
    words = (
        "--encoder",
        "sam_nano",
        "--side",
        "64",
        "--steps",
        "15",
        "--batch-size",
        "2",
        "--labels",
        "2",
        "--select",
        "1",
    )
    type_("train", phantom, *words, "--slices", "3", "--smooth-slices", "--keep-largest", "--out", run)
    config = json.loads((run / "config.json").read_text())
    assert config["encoder"]["slices"] == 3
    chosen = json.loads((run / "postprocessing.json").read_text())
    assert list(chosen["smooth_slices_dice"]) == ["0", "0.5", "1", "1.5"] and "keep_largest_dice" in chosen
    model = load_run(run, "cpu")
    assert model.view.slices == 3
    type_(
        "predict", run, phantom, "--smooth-slices", "1", "--keep-largest", "none", "--out", tmp_path / "one"
    )
    note = json.loads((tmp_path / "one" / "predictions.json").read_text())
    assert note["smooth_slices"] == 1.0
    data = open_dataset(phantom)
    case = data.case(next(iter(note["cases"])))
    model = dataclasses.replace(model, postprocessing=Postprocessing(smooth_slices=1.0))
    written = next((tmp_path / "one").glob(f"{case.id}*"))
    values = {v: v for v in range(len(data.classes))}
    assert np.array_equal(io.read_label(written, case, values, data.classes).numpy(), model.predict(case))


@pytest.mark.parametrize("first", ["--keep-largest", "--smooth-slices"])
def test_what_is_asked_for_later_is_chosen_too(first, phantom, tmp_path):
    """A finished run says "as chosen on the selection cases" of nothing that was not."""
    words = (
        "--head",
        "unet",
        "--set",
        "width=4",
        "--side",
        "64",
        "--steps",
        "3",
        "--labels",
        "2",
        "--select",
        "1",
    )
    command = ("train", phantom, *words, "--out", tmp_path / "run")
    type_(*command, first)
    path = tmp_path / "run" / "postprocessing.json"
    before = json.loads(path.read_text())
    type_(*command, "--keep-largest", "--smooth-slices")
    after = json.loads(path.read_text())
    assert {"keep_largest_dice", "smooth_slices_dice"} <= set(after) and not {
        "keep_largest_dice",
        "smooth_slices_dice",
    } <= set(before)
    changed = path.stat().st_mtime_ns
    type_(*command, first)
    assert path.stat().st_mtime_ns == changed  # what is there is kept


def test_smoothing_needs_selection_cases_or_a_number(phantom, tmp_path):
    with pytest.raises(
        SamAdaptError, match=r"--smooth-slices chooses how far to smooth on the selection cases.*--select 1"
    ):
        type_("train", phantom, "--smooth-slices", "--out", tmp_path / "r")
