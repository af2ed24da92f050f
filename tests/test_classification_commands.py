"""Classification as a user types it; a new backbone and a new control go through the same commands."""

import csv
import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fakes import two_class_archive
from samadapt import answering, names
from samadapt.backbones import BACKBONES, Backbone
from samadapt.cli import app
from samadapt.figures import attention_figure
from samadapt.heads import HEADS
from samadapt.heads.classification import BackboneClassifier, BackboneOptions, Block
from samadapt.phantom import make_phantom
from samadapt.types import SamAdaptError

FAST = ["--steps", "3", "--batch-size", "4", "--device", "cpu", "--encoder", "pixels", "--side", "32", "-q"]


def type_(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return two_class_archive(tmp_path_factory.mktemp("data") / "two.npz")


@pytest.fixture
def tiny_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", tiny)


def rows_of(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def tiny(small_input):
    parts = {
        "a": nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        "b": nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
    }
    return Backbone(parts, {"a": 8, "b": 16}, side=32)


def test_predictions_are_scored_without_the_run_and_from_anywhere(
    archive, tiny_backbone, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    type_("train", archive, "--head", "plain", "--set", "backbone=tiny", "--out", "run", *FAST)
    type_("predict", "run", archive, "--out", "predictions", "--device", "cpu", "-q")
    (tmp_path / "run").rename(tmp_path / "gone")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "balanced_accuracy" in type_("evaluate", tmp_path / "predictions", archive)


def test_another_backbone(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", tiny)
    for head in ("plain", "se"):
        run, out = tmp_path / head, tmp_path / f"{head}_predictions"
        type_("train", archive, "--head", head, "--set", "backbone=tiny", "--out", run, *FAST)
        type_("predict", run, archive, "--out", out, "--device", "cpu", "-q")
        assert json.loads((run / "config.json").read_text())["head"]["backbone"] == "tiny"
        assert len(rows_of(out)) == 10
        for row in rows_of(out):
            assert float(row["prob_0"]) + float(row["prob_1"]) == pytest.approx(1, abs=1e-5)


class Doubling(Block):
    def __init__(self):
        super().__init__()
        self.strength = nn.Parameter(torch.ones(1))

    def forward(self, x, tap):
        return 2 * self.strength * x

    def attention(self, x, tap):
        return x.mean(1)


class Control(BackboneClassifier):
    name = "doubling"

    def __init__(self, taps, n_classes, backbone="resnet18"):
        super().__init__()
        for stage in self.start(BackboneOptions(backbone), taps, n_classes).stages:
            self.blocks[stage] = Doubling()
        self.spec = {"name": self.name, "n_classes": n_classes, "backbone": backbone}


def test_another_control(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", tiny)
    monkeypatch.setitem(HEADS, "doubling", Control)
    monkeypatch.setitem(names.HEADS, "doubling", "classification")
    run, out = tmp_path / "run", tmp_path / "predictions"
    type_("train", archive, "--head", "doubling", "--set", "backbone=tiny", "--out", run, *FAST)
    type_("predict", run, archive, "--out", out, "--device", "cpu", "-q")
    assert len(rows_of(out)) == 10


# ---------------------------------------------------------------- where it looked


def trained(archive, out, *head):
    type_("train", archive, "--head", *head, "--out", out, *FAST)
    return out


def test_predict_draws_where_a_classifier_looked(archive, tmp_path, tiny_backbone, monkeypatch):
    drawn = []

    def figure(image, maps, title):
        drawn.append((image, dict(maps), title))
        return attention_figure(image, maps, title)

    monkeypatch.setattr(answering, "attention_figure", figure)
    run = trained(archive, tmp_path / "run", "se", "--set", "backbone=tiny")
    plain = type_("predict", run, archive, "--out", tmp_path / "plain", "--device", "cpu", "-q")
    assert not (tmp_path / "plain" / "attention").exists() and "10 cases" in plain
    out = tmp_path / "looked"
    type_("predict", run, archive, "--out", out, "--attention", "--device", "cpu", "-q")
    assert rows_of(out) == rows_of(tmp_path / "plain")
    pictures = {path.name: path.read_bytes() for path in (out / "attention").iterdir()}
    assert set(pictures) == {f"{row['case']}.png" for row in rows_of(out)}
    assert all(content[:4] == b"\x89PNG" for content in pictures.values())
    for (image, maps, title), row in zip(drawn, rows_of(out), strict=True):
        assert image.shape == (1, 28, 28) and 50 < image.max() <= 255  # as stored, not as normalised
        assert list(maps) == ["a", "b", "Grad-CAM"]
        assert all(x.shape == (28, 28) for x in maps.values())
        assert title.startswith(f"{row['case']}: {row['prediction']} (0.")


def test_a_head_that_looks_nowhere_is_refused_before_anything_is_written(archive, tmp_path):
    run = trained(archive, tmp_path / "run", "linear_probe", "--set", "tap=pixels", "--live")
    with pytest.raises(SamAdaptError, match=r"'linear_probe' of .* has no map of where it looked"):
        type_("predict", run, archive, "--out", tmp_path / "p", "--attention")
    assert not (tmp_path / "p").exists()


def test_a_segmentation_run_has_no_attention(tmp_path):
    data = make_phantom(tmp_path / "data", patients=3, size=48, slices=3)
    run = tmp_path / "run"
    type_("train", data, "--head", "unet", "--set", "width=2", "--out", run, *FAST)
    with pytest.raises(SamAdaptError, match=r"attention is drawn for classifiers; .* is a segmentation run"):
        type_("predict", run, data, "--out", tmp_path / "p", "--attention")
    assert not (tmp_path / "p").exists()
