"""Training on unlabelled scans: no label of theirs is read, nobody who is scored is among them, and it resumes."""

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fakes import TinyHead, tiny_model, two_class_archive
from samadapt.datasets import Split, open_dataset
from samadapt.experiment import make_study, run_experiment
from samadapt.features import FeatureStore
from samadapt.heads.classification.classifier import classification_loss
from samadapt.learner import FitOptions, Learner, fit
from samadapt.losses import LOSSES, to_grid
from samadapt.phantom import make_phantom
from samadapt.report import read_study
from samadapt.settings import UnlabelledOptions
from samadapt.training import TrainConfig, loop, teacher
from samadapt.training.averager import Averager
from samadapt.training.teacher import Teacher, exchange_rectangles
from samadapt.tuning import trained_tensors
from samadapt.types import Head, SamAdaptError, SamAdaptWarning
from samadapt.unlabelled import unlabelled_cases
from test_training import Killed, killed_at

CONFIG = TrainConfig(steps=4, batch_size=4, check_every=2, device="cpu", precision="32", lr=0.01)
UNET = Learner("unet", "pixels", side=32, options={"width": 2})
POOL = FitOptions(unlabelled=UnlabelledOptions("pool", confidence=0.5))


@pytest.fixture
def data(tmp_path):
    make_phantom(tmp_path / "data", patients=5, size=48, slices=3)
    return open_dataset(tmp_path / "data")


def config_of(run):
    return json.loads((run / "config.json").read_text())


def probe(views):
    return Learner("probe", "tiny", views=views)


@pytest.fixture
def heads(tiny_encoder, monkeypatch):
    """A head on the tiny encoder, by the name `probe`."""
    from samadapt.heads import HEADS

    class Probe(TinyHead):
        name = "probe"
        loss = Head.loss

        def __init__(self, taps, n_classes):
            super().__init__(n_classes=n_classes)
            self.describe(n_classes)
            self.loss_fn = LOSSES["dice_ce"]

    monkeypatch.setitem(HEADS, "probe", Probe)


@pytest.mark.parametrize("views", [0, 2, None], ids=["encoder in every step", "stored maps", "U-Net"])
def test_no_label_of_an_unlabelled_case_is_read(heads, data, tmp_path, views):
    """Their label files are gone before it begins."""
    split = data.split(1)
    for entry in data.entries:
        if entry.id not in split.train:
            for file in entry.labels:
                file.unlink()
    learner = UNET if views is None else probe(views)
    run = fit(learner, data, split, CONFIG, tmp_path / "run", FeatureStore(tmp_path / "store"), POOL)
    told = config_of(run)["unlabelled"]
    assert set(told["cases"]) == set(split.pool) - set(split.train)
    assert not {data.groups[i] for i in told["cases"]} & {data.groups[i] for i in (*split.train, *split.val)}
    assert config_of(run)["data"]["train"] == list(split.train)
    written = Split.read(run / "split.json")
    assert set(written.unlabelled) == set(told["cases"]) and written.train == split.train
    assert written.learned(told["cases"][0]) and not written.learned(split.val[0])  # evaluation says so
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [2, 4, 6, 8]


@pytest.mark.parametrize("multilabel", [False, True])
def test_classification_reads_no_label_either(data, tmp_path, read_labels, multilabel):
    if multilabel:
        rows = "\n".join(f"{i:02}.png,{i % 2},{i // 2 % 2}" for i in range(20))
        (tmp_path / "labels.csv").write_text(f"image,a,b\n{rows}\n")
        from PIL import Image

        for i in range(20):
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32), np.uint8)).save(
                tmp_path / f"{i:02}.png"
            )
        data = open_dataset(tmp_path / "labels.csv", label_column="a,b")
    else:
        data = open_dataset(two_class_archive(tmp_path / "two.npz"))
    read_labels.clear()  # what opening may have read
    split = data.split(4)
    learner = Learner("plain", "pixels", side=32, options={"backbone": "resnet18"}, augment="none")
    options = FitOptions(unlabelled=UnlabelledOptions("pool", confidence=0.5))
    run = fit(learner, data, split, CONFIG, tmp_path / "run", None, options)
    assert read_labels == set(split.train)
    assert set(config_of(run)["unlabelled"]["cases"]) == set(split.pool) - set(split.train)


@pytest.mark.parametrize("step", [3, 4, 5, 7])
def test_killed_and_rerun_ends_as_if_undisturbed(data, tmp_path, monkeypatch, step):
    """Within the first training, at the first step of the second, and within it."""
    split = data.split(1)
    whole = fit(UNET, data, split, CONFIG, tmp_path / "whole", None, POOL)
    with monkeypatch.context() as patch:
        killed_at(step, patch)
        with pytest.raises(Killed):
            fit(UNET, data, split, CONFIG, tmp_path / "cut", None, POOL)
    cut = fit(UNET, data, split, CONFIG, tmp_path / "cut", None, POOL)
    expected, found = (load_file(run / "head.safetensors") for run in (whole, cut))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()


def test_the_first_training_is_that_on_labels_alone_and_others_follow(data, tmp_path):
    split = data.split(1)
    alone = fit(UNET, data, split, CONFIG, tmp_path / "alone")
    more = fit(UNET, data, split, CONFIG, tmp_path / "more", None, POOL)
    assert config_of(alone)["unlabelled"] is None
    first = (more / "metrics.csv").read_text().splitlines()
    assert first[:3] == (alone / "metrics.csv").read_text().splitlines()
    with pytest.raises(SamAdaptError, match="unlabelled"):
        fit(UNET, data, split, CONFIG, alone, None, POOL)


# ---------------------------------------------------------------- the teacher


def teacher_of(model, averager, confidence):
    return Teacher(model, averager, UnlabelledOptions("pool", confidence), 0, contextlib.nullcontext)


def test_the_averaged_weights_teach_what_they_are_certain_of(tiny_encoder):
    """The student's own weights have no part in it, and the head is as if not in training."""
    model = tiny_model(TinyHead())
    tensors = {f"head.{n}": x for n, x in trained_tensors(model.head).items()}
    averager = Averager(model, tensors, CONFIG, None)
    averager.update(1)
    x = {"neck": torch.randn(2, 8, 2, 2)}  # too few cells for rectangles
    target, blank = torch.zeros(2, 2, 8, 8), torch.zeros(2, 2, 8, 8)
    blank[:, 0, :, :4] = 1  # the right half is not of the image
    model.eval()
    sure, label = to_grid(model.head(x).softmax(1), (8, 8)).max(1)
    model.train()
    with torch.no_grad():
        for weight in model.head.parameters():
            weight.fill_(torch.nan)
    bound = sure.median().item()
    features, same, taught = teacher_of(model, averager, bound)((x, target), (x, blank), 0)
    assert torch.equal(features["neck"], torch.cat([x["neck"], x["neck"]])) and same is target
    known = taught.sum(1) > 0
    expected = sure >= bound
    expected[:, :, 4:] = False
    assert torch.equal(known, expected) and 0.2 < known[:, :, :4].float().mean() < 0.8
    assert torch.equal(taught.argmax(1)[known], label[known])
    assert model.head.training


def test_the_second_part_begins_with_the_weights_that_the_first_one_keeps(tiny_encoder):
    tensors = {"head.weight": torch.zeros(3)}
    averager = Averager(tiny_model(TinyHead()), tensors, CONFIG, None)
    for step in (1, 2):
        tensors["head.weight"] += 1
        averager.update(step)
    kept = averager.final_weights()["head.weight"].clone()
    assert not torch.equal(kept, tensors["head.weight"])
    averager.restart()
    assert torch.equal(tensors["head.weight"], kept) and torch.equal(averager.average["head.weight"], kept)


def test_uncertain_pictures_are_left_out():
    answer = torch.tensor([[4.0, 0, 0], [0.1, 0, 0], [0, 0, 3.0]])
    assert teacher._classes(answer, torch.zeros(3), 0.8).tolist() == [0, -100, 2]
    several = teacher._classes(answer, torch.zeros(3, 3), 0.8)
    assert torch.equal(several, answer.sigmoid())


def test_a_batch_without_a_certain_picture_teaches_nothing():
    """In the first steps of few labels no picture is certain; that is no reason to stop."""
    logits = torch.randn(4, 3, requires_grad=True)
    taught = teacher._classes(torch.zeros(4, 3), torch.zeros(4), 0.8)
    for weights in (None, torch.tensor([1.0, 2.0, 3.0])):
        loss = classification_loss(logits, taught, weights)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0 and not gradient.any()
    one = torch.tensor([-100, 1, -100, -100])
    assert torch.equal(classification_loss(logits, one), classification_loss(logits[1:2], one[1:2]))


def test_a_scan_that_changes_while_it_is_learned_from_is_refused(data, tmp_path, monkeypatch):
    split = data.split(1)
    other = next(i for i in split.pool if data.groups[i] not in split.patients)
    finish = loop._Run.steps

    def changing(self, *given):
        finish(self, *given)
        (file,) = data.entry(other).images
        file.write_bytes(file.read_bytes() + b"\0")

    monkeypatch.setattr(loop._Run, "steps", changing)
    with pytest.raises(SamAdaptError, match="was changed while the model learned from it"):
        fit(UNET, data, split, CONFIG, tmp_path / "run", None, POOL)


def test_rectangles_are_exchanged_alike_in_maps_and_targets():
    number = torch.arange(3.0)[:, None, None, None]
    maps = {"coarse": number.expand(3, 2, 8, 8), "fine": number.expand(3, 1, 64, 64)}
    mixed, target = exchange_rectangles(maps, number.expand(3, 4, 256, 256), torch.Generator().manual_seed(0))
    coarse = mixed["coarse"][:, 0]
    for n in range(3):
        assert set(coarse[n].unique().tolist()) == {n, (n - 1) % 3}
    assert torch.equal(mixed["fine"][:, 0, ::8, ::8], coarse)
    assert torch.equal(target[:, 0, 31::32, 31::32], coarse)
    few = {"neck": maps["coarse"][:, :, :3, :3]}
    assert torch.equal(exchange_rectangles(few, target, torch.Generator())[0]["neck"], few["neck"])


def test_the_student_learns_both(tiny_encoder, data, tmp_path, monkeypatch):
    """The loss is that of the labels and that of what was taught."""
    seen = []
    original = loop._Objective.forward

    def watched(self, x, target, taught=None, weight=1.0):
        seen.append((len(target), None if taught is None else len(taught), {len(v) for v in x.values()}))
        loss = original(self, x, target, taught, weight)
        if taught is not None:  # the more it weighs, the larger: it is there
            assert taught.sum() > 0 and original(self, x, target, taught, 3 * weight) > loss
        return loss

    monkeypatch.setattr(loop._Objective, "forward", watched)
    fit(UNET, data, data.split(1), CONFIG, tmp_path / "run", None, POOL)
    assert seen == [(4, None, {4})] * 4 + [(4, 4, {8})] * 4


def test_a_tuned_encoder_is_refused(heads, data, tmp_path):
    config = dataclasses.replace(CONFIG, tune="all")
    with pytest.raises(SamAdaptError, match="frozen one; leave out --unlabelled"):
        fit(probe(0), data, data.split(1), config, tmp_path / "run", None, POOL)


# ---------------------------------------------------------------- who may be among them


def test_patients_that_are_held_out_are_refused(data, tmp_path):
    split = data.split(1)
    folder = tmp_path / "scans"
    folder.mkdir()

    def put(case):
        for file in data.entry(case).images:
            shutil.copy(file, folder)

    with pytest.raises(SamAdaptError, match="does not exist"):
        unlabelled_cases(str(folder / "nowhere"), data, split)
    put(split.train[0])
    with pytest.raises(SamAdaptError, match="no scan that the training does not know"):
        unlabelled_cases(str(folder), data, split)
    other = next(i for i in split.pool if data.groups[i] not in split.patients)
    for file in data.entry(other).images:
        shutil.copy(file, folder / file.name.replace(other, "another_scan"))
    with pytest.warns(SamAdaptWarning, match="1 of the 2 scans"):
        found = unlabelled_cases(str(folder), data, split)
    assert found.ids == ("another_scan",) and found.case("another_scan").label is None
    options = FitOptions(unlabelled=UnlabelledOptions(str(folder)))
    with pytest.warns(SamAdaptWarning, match="1 of the 2 scans"):
        run = fit(UNET, data, split, CONFIG, tmp_path / "run", None, options)
    assert config_of(run)["unlabelled"]["cases"] == ["another_scan"]
    put(split.val[0])
    with pytest.raises(SamAdaptError, match=f"held out for scoring.*{data.groups[split.val[0]]}"):
        unlabelled_cases(str(folder), data, split)
    with pytest.raises(SamAdaptError, match="held out"):  # the data set itself has them too
        unlabelled_cases(str(data.root), data, split)


def test_patients_are_known_in_other_scans_of_theirs(data, tmp_path):
    """By the rule for patients of the data set, whatever the scan is called."""
    data = open_dataset(data.root, group=r"(patient\d+)")
    split, folder = data.split(1), tmp_path / "scans"
    folder.mkdir()

    def put(case, name):
        (file,) = data.entry(case).images
        shutil.copy(file, folder / file.name.replace(case, name))

    put(split.train[0], f"{data.groups[split.train[0]]}_later")
    with pytest.raises(SamAdaptError, match="no scan that the training does not know"):
        unlabelled_cases(str(folder), data, split)
    put(split.val[0], f"{data.groups[split.val[0]]}_later")
    with pytest.raises(SamAdaptError, match="held out for scoring"):
        unlabelled_cases(str(folder), data, split)


def test_patients_of_a_table_are_known_in_scans_that_it_names(data, tmp_path):
    held_out = data.split(1).val[0]
    rows = ["case,patient", *(f"{case},{patient}" for case, patient in data.groups.items())]
    (tmp_path / "patients.csv").write_text("\n".join([*rows, f"later,{data.groups[held_out]}"]))
    data = open_dataset(data.root, group=tmp_path / "patients.csv")
    split, folder = data.split(1), tmp_path / "scans"
    assert held_out in split.val
    folder.mkdir()
    (file,) = data.entry(held_out).images
    shutil.copy(file, folder / file.name.replace(held_out, "later"))
    with pytest.raises(SamAdaptError, match="held out for scoring"):
        unlabelled_cases(str(folder), data, split)


def test_copies_of_held_out_scans_are_known_by_their_bytes(data, tmp_path):
    split, folder = data.split(1), tmp_path / "scans"
    folder.mkdir()
    (file,) = data.entry(split.val[0]).images
    shutil.copy(file, folder / file.name.replace(split.val[0], "scan_from_the_archive"))
    patient = data.groups[split.val[0]]
    with pytest.raises(SamAdaptError, match=f"the scan scan_from_the_archive is a copy of one of {patient}"):
        unlabelled_cases(str(folder), data, split)


def test_a_pool_that_is_all_labelled_is_refused(data):
    with pytest.raises(SamAdaptError, match="no unlabelled scan is left"):
        unlabelled_cases("pool", data, data.split())


# ---------------------------------------------------------------- in a study


def test_a_study_compares_learners_with_and_without(data, tmp_path):
    settings = {
        "labels": [1],
        "seeds": [0],
        "encoder": {"encoder": "sam_nano", "side": 64, "views": 2},
        "train": {"steps": 3, "batch_size": 2, "device": "cpu", "precision": "32"},
        "learner": {
            "linear": {"head": "linear"},
            "linear+unlabelled": {"head": "linear", "unlabelled": "pool"},
            "unet+unlabelled": {
                "head": "unet", "side": 32, "options": {"width": 2}, "unlabelled": "pool",
            },
        },
    }  # fmt: skip
    grid, config = make_study(settings, "segmentation")
    roles = {name: method.role for name, method in grid.methods.items()}
    assert roles == {"linear": "contender", "linear+unlabelled": "contender", "unet+unlabelled": "baseline"}
    assert "unlabelled" not in grid.methods["linear"].spec  # its cells stay what they were
    outcome = run_experiment(data, grid, config, tmp_path / "study", FeatureStore(tmp_path / "store"))
    assert not outcome.failed
    costs = {cell.learner: cell.cost for cell in read_study(tmp_path / "study").cells}
    assert costs["linear"]["steps"] == 3 and costs["linear+unlabelled"]["steps"] == 6
    assert costs["unet+unlabelled"]["unlabelled"] == "6 unlabelled cases of 3 patients"
    assert "unlabelled" not in costs["linear"]
    settings["learner"]["linear"]["unlabelled"] = str(tmp_path)
    with pytest.raises(SamAdaptError, match="pool"):
        make_study(settings, "segmentation")
