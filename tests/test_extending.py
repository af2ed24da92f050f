"""What a new head, encoder, tuning or method costs: one class or function of at most twenty lines, and its line in a table.

The new file format is in `test_formats.py`. Each is used through the command line, as a user would.
"""

import ast
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fakes import Nowhere
from samadapt import names, overlap
from samadapt.encoders import ENCODERS, EncoderEntry
from samadapt.experiment import TrainedMethod
from samadapt.experiment.registry import METHODS, NamedMethod
from samadapt.heads import HEADS
from samadapt.losses import dice_ce
from samadapt.phantom import make_phantom
from samadapt.tuning import TUNINGS, Tuning
from samadapt.types import Head
from test_cli import FAST, type_

NANO = ("--encoder", "sam_nano", "--side", "64", "--views", "2")


class OneConvolution(Head):
    """A head of one convolution on the encoder's neck."""

    task = "segmentation"

    def __init__(self, taps: Mapping[str, tuple[int, int, int]], n_classes: int, width: int = 3) -> None:
        super().__init__()
        self.reads, self.spec = {"neck": 1}, {"name": "toy", "n_classes": n_classes, "width": width}
        self.net = nn.Conv2d(taps["neck"][0], n_classes, width, padding=width // 2)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.net(features["neck"])

    def loss(self, features: Mapping[str, Tensor], target: Tensor) -> Tensor:
        return dice_ce(self(features), target)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Means(EncoderEntry):
    """An encoder of one map: the means of small squares of the picture."""

    version = "means-1"

    def taps(self, side):
        return {"neck": (3, side // 4, side // 4)}

    def network(self, side):
        return Pooling()

    def loaded(self, state, side, source):
        return Pooling()

    def read(self, path):
        return {}


class Pooling(nn.Module):
    """The network of `Means`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x, wanted):
        return {"neck": F.avg_pool2d(x, 4) * self.scale}


class Norms(Tuning):
    """Only the encoder's normalisations are trained."""

    text = "its normalisations are trained"
    frozen = False

    def begin(self, extractor):
        extractor.requires_grad_(False)
        for module in extractor.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(True)

    def tensors(self, extractor):
        return {n: p for n, p in extractor.network.named_parameters() if p.requires_grad}


def narrow_unet(base, options):
    """A method of a study."""
    learner = dataclasses.replace(base, head="unet", encoder="pixels", options={"width": 2}, prepare=None)
    return TrainedMethod(learner, declared="control")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("extending") / "data", patients=4, size=48, slices=3)


def trained(data: Path, out: Path, *more: str) -> Path:
    """A run of the command line, whose predictions are scored."""
    type_("train", data, "--labels", "1", "--out", out, "--store", out.parent / "features", *more, *FAST)
    type_("predict", out, data, "--out", out / "predictions", "-q")
    assert "dsc" in type_("evaluate", out / "predictions", data)
    return out


def test_a_head(data, tmp_path, monkeypatch):
    monkeypatch.setitem(HEADS, "toy", OneConvolution)
    monkeypatch.setitem(names.HEADS, "toy", "segmentation")
    run = trained(data, tmp_path / "run", "--head", "toy", "--set", "width=5", *NANO)
    assert load_file(run / "head.safetensors")["net.weight"].shape[-1] == 5
    assert "toy" in type_("list", "heads")


def test_an_encoder(data, tmp_path, monkeypatch):
    entry = Means(name="toy", text="Means of squares.", side=64, prepare="unit", published=Nowhere())
    monkeypatch.setitem(ENCODERS, "toy", entry)
    monkeypatch.setattr(names, "ENCODERS", names.ENCODERS)
    monkeypatch.setitem(overlap.TRAININGS, "toy", overlap.Training("nothing at all"))
    names.ENCODERS.append("toy")
    try:
        run = trained(data, tmp_path / "run", "--head", "probe", "--encoder", "toy")
        assert "Means of squares." in type_("list", "encoders")
    finally:
        names.ENCODERS.remove("toy")
    assert json.loads((run / "config.json").read_text())["encoder"]["side"] == 64
    assert list((tmp_path / "features").glob("*/*/neck@1.npy"))


def test_a_tuning(data, tmp_path, monkeypatch):
    monkeypatch.setitem(TUNINGS, "norms", Norms())
    names.TUNINGS.append("norms")
    try:
        run = trained(
            data, tmp_path / "run", "--head", "probe", "--tune", "norms", "--encoder-lr", "0.1", *NANO
        )
    finally:
        names.TUNINGS.remove("norms")
    before = ENCODERS["sam_nano"].read(ENCODERS["sam_nano"].published.locate())
    after = load_file(run / "encoder.safetensors")
    moved = {name for name in after if not torch.equal(after[name], before[f"image_encoder.{name}"])}
    assert moved and all("norm" in name or name.split(".")[1] == "1" for name in moved)


def test_a_method_of_a_study(data, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS["segmentation"], "toy", NamedMethod(narrow_unet))
    (tmp_path / "grid.toml").write_text(
        'learners = ["toy"]\nlabels = [1]\nseeds = 1\n[train]\nsteps = 2\nbatch_size = 2\n'
        '[encoder]\nencoder = "sam_nano"\nside = 64\n'
    )
    out = tmp_path / "study"
    assert "toy" in type_(
        "experiment", data, "--grid", tmp_path / "grid.toml", "--out", out, "--store", tmp_path
    )
    assert json.loads((out / "experiment.json").read_text())["learners"]["toy"]["role"] == "control"


def test_each_takes_at_most_twenty_lines():
    tree = ast.parse(Path(__file__).read_text())
    sizes = {
        node.name: node.end_lineno - node.lineno + 1
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        or (isinstance(node, ast.FunctionDef) and node.name == "narrow_unet")
    }
    assert set(sizes) == {"OneConvolution", "Means", "Pooling", "Norms", "narrow_unet"}
    assert max(sizes.values()) <= 20 and sizes["Means"] + sizes["Pooling"] <= 27
