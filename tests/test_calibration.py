"""A temperature and sets of classes, fitted on selection cases: by hand, on drawn numbers, and from train to evaluate."""

import csv
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fakes import two_class_archive
from samadapt.calibration import (
    Calibration,
    coverage_note,
    fit_pixels,
    fit_temperature,
    least_probability,
    read_calibration,
    write_calibration,
)
from samadapt.cli import app
from samadapt.evaluation import evaluate_folder
from samadapt.folders import predict_folder
from samadapt.prediction import load_run
from samadapt.types import SamAdaptError


def drawn(n, k=3, seed=0):
    """Logits whose softmax is the true probability of the classes that are drawn from it."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, k, generator=rng)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_that_the_logits_were_multiplied_with(factor):
    logits, target = drawn(20_000)
    temperature, before, after = fit_temperature(factor * logits, target)
    assert temperature == pytest.approx(factor, rel=0.05) and after <= before + 1e-9


def test_the_temperature_of_several_labels():
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 2, generator=rng)
    target = (torch.rand(20_000, 2, generator=rng) < logits.sigmoid()).float()
    assert fit_temperature(2 * logits, target)[0] == pytest.approx(2, rel=0.05)


def test_the_least_probability_by_hand():
    probabilities = torch.tensor([[p, 1 - p] for p in (0.9, 0.8, 0.7, 0.6, 0.55, 0.95, 0.99, 0.85, 0.75)])
    target = torch.zeros(9, dtype=torch.long)
    assert least_probability(probabilities, target) == pytest.approx(0.55)  # the ninth of nine scores
    assert least_probability(probabilities[:8], target[:8]) is None  # nine at least, for 90 %


def test_nine_sets_of_ten_hold_the_class():
    held = []
    for seed in range(200):
        logits, target = drawn(100, k=5, seed=seed)
        p = logits.softmax(1)
        found = Calibration(1.0, least_probability(p[:40], target[:40]), (), 0, 0)
        for row, label in zip(p[40:], target[40:], strict=True):
            names = found.classes({str(n): float(v) for n, v in enumerate(row)})
            held.append(str(int(label)) in names)
    assert 0.89 < np.mean(held) < 0.93


def test_unknown_pixels_are_left_out():
    logits = torch.randn(3, 6, 6)
    label = torch.full((2, 6, 6), 255, dtype=torch.uint8)
    label[0, :3] = logits.argmax(0)[:3]  # always right, so the temperature is as small as may be
    found = fit_pixels([([logits, logits], label)], ["a"])
    assert found.temperature < 0.26 and found.least is None and found.after < found.before


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    data = two_class_archive(folder / "two.npz")
    words = [
        "train",
        data,
        "--head",
        "plain",
        "--backbone",
        "resnet18",
        "--set",
        "weights=random",
        "--side",
        "64",
    ]
    words += [
        "--set",
        "image_size=64",
        "--steps",
        "4",
        "--batch-size",
        "4",
        "--select",
        "9",
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, [str(w) for w in (*words, "--calibrate", "--out", folder / "run")])
    assert result.exit_code == 0, result.exception
    assert "calibrated on 15 selection cases: temperature" in result.stdout
    return data, folder / "run"


def test_a_classifier_gives_calibrated_probabilities_and_sets(classifier, tmp_path):
    data, run = classifier
    found = read_calibration(run)
    assert found is not None and found.least is not None and len(found.cases) == 15
    predict_folder(run, data, tmp_path / "out", device="cpu")
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    for row in rows:
        p = {n[5:]: float(v) for n, v in row.items() if n.startswith("prob_")}
        assert set(row["set"].split("|")) == set(found.classes(p)) and row["prediction"] in row["set"]
    notes = " ".join(evaluate_folder(tmp_path / "out", data).notes)
    assert f"of {len(rows)} cases" in notes and "meant to hold 90%" in notes
    assert "temperature" in CliRunner().invoke(app, ["info", str(run)]).stdout


def test_probabilities_are_those_of_the_logits_over_the_temperature(classifier, tmp_path):
    import shutil

    data, run = classifier
    plain = tmp_path / "plain"
    shutil.copytree(run, plain)
    (plain / "calibration.json").unlink()
    other = tmp_path / "other"
    shutil.copytree(run, other)
    write_calibration(other, Calibration(2.0, None, (), 0, 0))
    cases = [load_run(r, "cpu") for r in (plain, other)]
    from samadapt.datasets import open_dataset

    opened = open_dataset(data)
    case = opened.case(opened.ids[0])
    logits = [next(iter(model.logits(case)))[0] for model in cases]
    assert torch.allclose(logits[0], 2 * logits[1])


def test_coverage_in_words():
    (text,) = coverage_note(["a|b", "a", "b"], [1, 0, 0], ["a", "b"])
    assert "2 of 3 cases (66.7%), 1.33 classes each" in text
    assert coverage_note([None, "a"], [0, 0], ["a"]) == ()


def test_calibration_needs_selection_cases(phantom, tmp_path):
    words = ["train", phantom, "--head", "unet", "--labels", "2", "--calibrate", "--steps", "1"]
    result = CliRunner().invoke(app, [str(w) for w in (*words, "--out", tmp_path / "run")])
    assert "--calibrate fits on the selection cases" in str(result.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["{}", '{"temperature": 0}', "no", '{"temperature": "x"}'])
def test_an_edited_file_is_refused(classifier, tmp_path, content):
    if content.startswith('{"'):
        whole = {"least": None, "cases": [], "before": 0, "after": 0} | json.loads(content)
        content = json.dumps(whole)
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(SamAdaptError, match=r"calibration\.json"):
        read_calibration(tmp_path)
