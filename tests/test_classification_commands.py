"""Classification as a user types it; a new backbone and a new control go through the same commands."""

import csv
import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from samadapt.backbones import BACKBONES, Backbone
from samadapt.cli import app
from samadapt.heads import HEADS
from samadapt.heads.classification import Block, Classifier, Trunk

FAST = ["--steps", "3", "--batch-size", "4", "--device", "cpu", "--encoder", "pixels", "--side", "32", "-q"]


def type_(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A MedMNIST archive of two classes, one brighter than the other."""
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 12), ("val", 6), ("test", 8)):
        labels = np.arange(count) % 2
        images = rng.integers(0, 150, (count, 28, 28)) + 100 * labels[:, None, None]
        arrays |= {
            f"{part}_images": images.astype(np.uint8),
            f"{part}_labels": labels[:, None].astype(np.uint8),
        }
    path = tmp_path_factory.mktemp("data") / "two.npz"
    np.savez(path, **arrays)
    return path


def rows_of(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def tiny(small_input):
    parts = {
        "a": nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        "b": nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
    }
    return Backbone(parts, {"a": 8, "b": 16}, side=32)


def test_another_backbone(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", tiny)
    for head in ("plain", "se"):
        run, out = tmp_path / head, tmp_path / f"{head}_predictions"
        type_("train", archive, "--head", head, "--set", "backbone=tiny", "--out", run, *FAST)
        type_("predict", run, archive, "--out", out, "--device", "cpu", "-q")
        assert json.loads((run / "config.json").read_text())["head"]["backbone"] == "tiny"
        assert len(rows_of(out)) == 8
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


class Control(Classifier):
    name = "doubling"

    def __init__(self, taps, n_classes, backbone="resnet18"):
        super().__init__()
        for stage in self.start(Trunk(backbone), taps, n_classes).stages:
            self.blocks[stage] = Doubling()
        self.spec = {"name": self.name, "n_classes": n_classes, "backbone": backbone}


def test_another_control(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", tiny)
    monkeypatch.setitem(HEADS, "doubling", Control)
    run, out = tmp_path / "run", tmp_path / "predictions"
    type_("train", archive, "--head", "doubling", "--set", "backbone=tiny", "--out", run, *FAST)
    type_("predict", run, archive, "--out", out, "--device", "cpu", "-q")
    assert len(rows_of(out)) == 8
