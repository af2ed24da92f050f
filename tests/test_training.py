import csv
import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from fakes import TinyEncoder, TinyHead, TinyNetwork, fake_data, tiny, tiny_model
from samadapt.encoders import ENCODERS
from samadapt.features import FeatureStore, MapSpec, Pairs
from samadapt.training import TrainConfig, averager, loop, train
from samadapt.training.stream import Stream
from samadapt.types import SamAdaptError

pytestmark = pytest.mark.usefixtures("tiny_encoder")
CONFIG = TrainConfig(steps=24, batch_size=2, check_every=6, device="cpu")


def pairs(*numbers, encoder=None, **options):
    return Pairs(
        fake_data(*numbers), MapSpec(encoder or tiny(), {"neck": 1}, augmentation="default"), **options
    )


def read_metrics(out):
    with open(out / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


class Killed(BaseException):
    pass


def killed_at(step, monkeypatch):
    """Make the loop die at a step, as `kill -9` would: nothing gets a chance to tidy up."""
    original = loop.StepLoop.update

    def dying(self, *inputs, **options):
        if self.step == step:
            raise Killed
        return original(self, *inputs, **options)

    monkeypatch.setattr(loop.StepLoop, "update", dying)


def test_a_run_learns_and_explains_itself(tmp_path):
    out = train(
        tiny_model(TinyHead()),
        pairs(1, 2),
        config=TrainConfig(steps=60, batch_size=4, lr=0.01, device="cpu"),
        out=tmp_path / "run",
    )
    rows = read_metrics(out)
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert [int(r["step"]) for r in rows] == [10, 20, 30, 40, 50, 60]
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["train"] == ["p1_a", "p2_a"]
    assert config["data"]["select"] == []
    assert config["selection"].startswith("none")
    assert config["encoder"]["name"] == "tiny"
    assert set(load_file(out / "head.safetensors")) == set(TinyHead().state_dict())
    assert json.loads((out / "environment.json").read_text())["packages"]["torch"]


@pytest.mark.parametrize("step", [3, 6, 14])
def test_killed_and_rerun_ends_as_if_undisturbed(tmp_path, monkeypatch, step):
    """`step` 3 dies before the first checkpoint, 6 right after it, 14 between two."""
    whole = train(tiny_model(TinyHead()), pairs(1, 2), select=pairs(3), config=CONFIG, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_at(step, patch)
        with pytest.raises(Killed):
            train(tiny_model(TinyHead()), pairs(1, 2), select=pairs(3), config=CONFIG, out=tmp_path / "cut")
    assert not (tmp_path / "cut" / "head.safetensors").exists()
    cut = train(tiny_model(TinyHead()), pairs(1, 2), select=pairs(3), config=CONFIG, out=tmp_path / "cut")
    expected, found = load_file(whole / "head.safetensors"), load_file(cut / "head.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()


def test_rerunning_a_finished_run_does_nothing(tmp_path):
    out = train(tiny_model(TinyHead()), pairs(1), config=CONFIG, out=tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    train(tiny_model(TinyHead()), pairs(1), config=CONFIG, out=out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_another_configuration_needs_overwrite(tmp_path):
    out = train(tiny_model(TinyHead()), pairs(1), config=CONFIG, out=tmp_path / "run")
    other = TrainConfig(**{**CONFIG.__dict__, "lr": 0.5})
    with pytest.raises(SamAdaptError, match=r"train\.lr: 0\.001 there, 0\.5 now"):
        train(tiny_model(TinyHead()), pairs(1), config=other, out=out)
    with pytest.raises(SamAdaptError, match="data"):
        train(tiny_model(TinyHead()), pairs(1, 2), config=CONFIG, out=out)
    train(tiny_model(TinyHead()), pairs(1), config=other, out=out, overwrite=True)
    assert json.loads((out / "config.json").read_text())["train"]["lr"] == 0.5


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(SamAdaptError, match="not a run folder"):
            train(tiny_model(TinyHead()), pairs(1), config=CONFIG, out=tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_frozen_encoder_stays_and_a_tuned_one_moves(tmp_path):
    model = tiny_model(TinyHead())
    before = model.load().network.conv.weight.clone()
    train(model, pairs(1), config=CONFIG, out=tmp_path / "frozen")
    assert torch.equal(model.extractor.network.conv.weight, before)
    assert not (tmp_path / "frozen" / "encoder.safetensors").exists()
    tuned = TrainConfig(**{**CONFIG.__dict__, "tune": "all"})
    train(model, pairs(1), config=tuned, out=tmp_path / "tuned")
    assert not torch.equal(model.extractor.network.conv.weight, before)
    saved = load_file(tmp_path / "tuned" / "encoder.safetensors")
    assert torch.equal(saved["conv.weight"], model.extractor.network.conv.weight)


class Normed(TinyNetwork):
    """With batch statistics."""

    def __init__(self, generator=None):
        super().__init__(generator)
        self.norm = torch.nn.BatchNorm2d(8)

    def forward(self, x, wanted):
        return {tap: self.norm(y) for tap, y in super().forward(x, wanted).items()}


@pytest.mark.parametrize(
    ("tune", "seed", "stay"),
    [("none", None, True), ("none", 0, True), ("all", None, True), ("all", 0, False)],
)
def test_batch_statistics_move_only_where_the_encoder_starts_from_nothing(
    tmp_path, monkeypatch, tune, seed, stay
):
    monkeypatch.setitem(ENCODERS, "tiny", TinyEncoder(kind=Normed))
    model = tiny_model(TinyHead(), seed=seed)
    config = TrainConfig(**{**CONFIG.__dict__, "tune": tune})
    train(model, pairs(1, encoder=model.spec), config=config, out=tmp_path / "run")
    assert bool(model.extractor.network.norm.num_batches_tracked == 0) == stay


def test_tuning_refuses_stored_maps(tmp_path):
    store, maps, data = FeatureStore(tmp_path / "store"), MapSpec(tiny(), {"neck": 1}), fake_data(1)
    store.encode([data.case("p1_a")], maps)
    stored = Pairs(data, maps, store)
    with pytest.raises(SamAdaptError, match="store"):
        train(
            tiny_model(TinyHead()), stored, config=TrainConfig(tune="all", device="cpu"), out=tmp_path / "run"
        )
    model, built = tiny_model(TinyHead()), TinyNetwork.built
    train(model, stored, config=CONFIG, out=tmp_path / "run")
    assert model.extractor is None and TinyNetwork.built == built  # stored maps need no network


def test_without_selection_the_kept_weights_are_the_average(tmp_path):
    plain = TrainConfig(**{**CONFIG.__dict__, "ema": 0.0})
    a = load_file(
        train(tiny_model(TinyHead()), pairs(1), config=CONFIG, out=tmp_path / "a") / "head.safetensors"
    )
    b = load_file(
        train(tiny_model(TinyHead()), pairs(1), config=plain, out=tmp_path / "b") / "head.safetensors"
    )
    assert not torch.equal(a["net.1.weight"], b["net.1.weight"])


def test_selection_keeps_the_best_step(tmp_path, monkeypatch):
    values = iter([0.2, 0.9, 0.4, 0.3])
    kept = []

    def score(self, select):
        kept.append({k: v.clone() for k, v in self.average.items()})
        return next(values)

    monkeypatch.setattr(averager.Averager, "_score", score)
    out = train(tiny_model(TinyHead()), pairs(1), select=pairs(2), config=CONFIG, out=tmp_path / "run")
    saved = load_file(out / "head.safetensors")
    assert torch.equal(saved["net.1.weight"], kept[1]["head.net.1.weight"])
    column = [r["selection"] for r in read_metrics(out) if r["selection"]]
    assert [round(float(v), 3) for v in column] == [0.2, 0.9, 0.4, 0.3]


def test_a_diverging_loss_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyHead, "loss", lambda self, f, t: self(f).sum() * float("nan"))
    with pytest.raises(SamAdaptError, match="loss is nan at step 0"):
        train(tiny_model(TinyHead()), pairs(1), config=CONFIG, out=tmp_path / "run")


@pytest.mark.parametrize("where", ["loss", "gradients"])
def test_the_batch_of_a_diverging_step_is_kept_with_the_weights_before_it(tmp_path, monkeypatch, where):
    """Both can be looked into: the batch in these weights makes the loss, or its gradients, what they were."""
    original, before, updated = TinyHead.loss, {}, loop.StepLoop.update

    def loss(self, features, target):
        value = original(self, features, target)
        if not before:
            return value
        # The square root has no finite gradient at 0, and its value is finite.
        return (
            value * float("nan") if where == "loss" else value + (self.net[1].weight * 0).abs().sum().sqrt()
        )

    def update(self, *inputs, **options):
        if self.step == 5:
            before.update({n: x.detach().clone() for n, x in model.head.state_dict().items()})
            before["batch"] = inputs
        return updated(self, *inputs, **options)

    monkeypatch.setattr(TinyHead, "loss", loss)
    monkeypatch.setattr(loop.StepLoop, "update", update)
    model = tiny_model(TinyHead())
    said = "the loss is nan at step 5" if where == "loss" else "the gradients are not finite at step 5"
    with pytest.raises(SamAdaptError, match=rf"{said}; lower the .* are in .*not_finite\.safetensors"):
        train(model, pairs(1), config=CONFIG, out=tmp_path / "run")
    kept = load_file(tmp_path / "run" / "not_finite.safetensors")
    (x, target), weights = before.pop("batch"), before
    assert torch.equal(kept["batch.target"], target) and all(torch.equal(kept[f"batch.{t}"], x[t]) for t in x)
    assert all(torch.equal(kept[f"weights.head.{name}"], tensor) for name, tensor in weights.items())
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert all(torch.equal(tensor, model.head.state_dict()[name]) for name, tensor in weights.items())


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(state, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("samadapt.training.loop.torch.save", full)
    with pytest.raises(SamAdaptError, match=r"No space left.*resumes"):
        train(tiny_model(TinyHead()), pairs(1), config=CONFIG, out=tmp_path / "run")


@pytest.mark.parametrize(
    "options",
    [{"tune": "halves"}, {"steps": 0}, {"ema": 1.0}, {"warmup": 2.0}, {"precision": "8"}, {"lr": -1.0}],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(SamAdaptError, match=next(iter(options))):
        TrainConfig(**options)


def test_unknown_device_is_refused(tmp_path):
    with pytest.raises(SamAdaptError, match="unknown device 'tpu'"):
        train(tiny_model(TinyHead()), pairs(1), config=TrainConfig(device="tpu"), out=tmp_path / "run")


def test_balance_draws_the_classes_equally_often():
    class Rare:
        """Nine cases of class 0, one of class 1."""

        items: ClassVar = [(str(n), 0) for n in range(10)]
        data = SimpleNamespace(label=lambda case_id: torch.tensor(int(case_id == "9")))

        def __len__(self):
            return len(self.items)

    def share(balance):
        stream = Stream(Rare(), 50, 8, 0, balance)
        return sum(stream.item_at(n) == 9 for n in range(400)) / 400

    assert share(False) == 0.1
    assert 0.4 < share(True) < 0.6


def test_balance_of_several_labels_draws_the_rare_answers_of_each():
    labels = torch.zeros(20, 2)
    labels[0, 0] = labels[1:11, 1] = 1  # the first label is rare, the second is half and half
    pairs = SimpleNamespace(
        items=[(str(n), 0) for n in range(20)],
        data=SimpleNamespace(label=lambda case_id: labels[int(case_id)]),
    )
    stream = Stream(pairs, 50, 8, 0, balance=True)
    drawn = torch.stack([labels[stream.item_at(n)] for n in range(600)])
    rare = (1 + 0.1) / (1 + 0.1 + 19 / 19 + 19 * 0.1)  # of the sum of the weights, halved on both sides
    assert drawn[:, 0].mean() == pytest.approx(rare, abs=0.06) and rare > 5 / 20


def test_balance_is_not_for_segmentation(tmp_path):
    with pytest.raises(SamAdaptError, match="a segmentation's cases have none"):
        train(tiny_model(TinyHead()), pairs(1), config=TrainConfig(balance=True), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class HalfPretrained(TinyHead):
    def pretrained(self):
        return [next(self.parameters())]


def test_what_is_pretrained_moves_at_the_small_learning_rate(tmp_path):
    moved = {}
    for kind in (TinyHead, HalfPretrained):
        torch.manual_seed(0)
        head = kind()
        before = next(head.parameters()).detach().clone()
        config = TrainConfig(
            steps=1, lr=0.1, encoder_lr=1e-6, weight_decay=0.0, warmup=0.0, ema=0.0, device="cpu"
        )
        train(tiny_model(head), pairs(1), config=config, out=tmp_path / kind.__name__)
        moved[kind] = (next(head.parameters()).detach() - before).abs().max()
    assert moved[TinyHead] > 0.05 and moved[HalfPretrained] < 1e-5


class Eager(TinyHead):
    lr: ClassVar[float] = 0.05


@pytest.mark.parametrize(("asked", "used"), [(None, 0.05), (0.2, 0.2)])
def test_a_head_has_a_learning_rate_of_its_own(tmp_path, asked, used):
    config = TrainConfig(steps=1, warmup=0.0, lr=asked, device="cpu")
    out = train(tiny_model(Eager()), pairs(1), config=config, out=tmp_path / "run")
    assert json.loads((out / "config.json").read_text())["train"]["lr"] == used
    assert float(read_metrics(out)[-1]["lr"]) == pytest.approx(used)
