"""Self-training on unlabelled scans: no label of theirs is read, nobody who is scored is among them, and it resumes."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fakes import two_class_archive
from samadapt.datasets import Dataset, open_dataset
from samadapt.experiment import make_study, run_experiment
from samadapt.features import FeatureStore
from samadapt.learner import FitOptions, Learner, fit
from samadapt.phantom import make_phantom
from samadapt.report import read_study
from samadapt.settings import UnlabelledOptions
from samadapt.training import Mixture, TrainConfig
from samadapt.training.stream import Stream
from samadapt.types import IGNORED, SamAdaptError, SamAdaptWarning
from samadapt.unlabelled import least_confidence, unlabelled_cases
from test_training import Killed, killed_at

CONFIG = TrainConfig(steps=4, batch_size=4, check_every=2, device="cpu", precision="32", lr=0.01)
UNET = Learner("unet", "pixels", side=32, options={"width": 2})
POOL = FitOptions(unlabelled=UnlabelledOptions("pool", pseudo_rounds=2, pseudo_keep=0.5))


@pytest.fixture
def data(tmp_path):
    make_phantom(tmp_path / "data", patients=6, size=48, slices=3)
    return open_dataset(tmp_path / "data")


def config_of(run):
    return json.loads((run / "config.json").read_text())


def probe(views):
    return Learner("probe", "tiny", views=views)


@pytest.fixture
def heads(tiny_encoder, monkeypatch):
    """A head on the tiny encoder, by the name `probe`."""
    from fakes import TinyHead
    from samadapt.heads import HEADS

    class Probe(TinyHead):
        name = "probe"

        def __init__(self, taps, n_classes):
            super().__init__(n_classes=n_classes)
            self.describe(n_classes)

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
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("multilabel", [False, True])
def test_classification_reads_no_label_either(data, tmp_path, monkeypatch, multilabel):
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
    read, original = set(), Dataset._label

    def watched(self, entry, case):
        label = original(self, entry, case)
        if label is not None:
            read.add(entry.id)
        return label

    monkeypatch.setattr(Dataset, "_label", watched)
    split = data.split(4)
    learner = Learner("plain", "pixels", side=32, options={"backbone": "resnet18"}, augment="none")
    options = FitOptions(unlabelled=UnlabelledOptions("pool", pseudo_rounds=1, pseudo_keep=0.5))
    run = fit(learner, data, split, CONFIG, tmp_path / "run", None, options)
    assert read == set(split.train)
    with np.load(run / "pseudo-labels-1.npz") as archive:
        assert {name.split("/")[0] for name in archive} == {*config_of(run)["unlabelled"]["cases"], "least"}


@pytest.mark.parametrize("step", [3, 4, 5, 8, 11])
def test_killed_and_rerun_ends_as_if_undisturbed(data, tmp_path, monkeypatch, step):
    """Within the first training, at the first step of a round, and within a round."""
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
    for number in (1, 2):
        name = f"pseudo-labels-{number}.npz"
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_the_first_training_is_that_on_labels_alone_and_others_follow(data, tmp_path):
    split = data.split(1)
    alone = fit(UNET, data, split, CONFIG, tmp_path / "alone")
    more = fit(UNET, data, split, CONFIG, tmp_path / "more", None, POOL)
    assert config_of(alone)["unlabelled"] is None
    first = (more / "metrics.csv").read_text().splitlines()
    assert first[:3] == (alone / "metrics.csv").read_text().splitlines()
    assert first[3].split(",")[1] != first[1].split(",")[1]  # fresh weights, other examples
    with pytest.raises(SamAdaptError, match="unlabelled"):
        fit(UNET, data, split, CONFIG, alone, None, POOL)


def test_what_is_not_certain_is_unknown(data, tmp_path):
    from samadapt.features import MapSpec
    from samadapt.unlabelled import SelfTraining

    split = data.split(1)
    cases = unlabelled_cases("pool", data, split)
    model = UNET.build(len(data.classes))
    maps = MapSpec(model.spec, model.head.reads, data.window)
    for keep in (1.0, 0.25):
        options = UnlabelledOptions("pool", pseudo_keep=keep)
        teaching = SelfTraining(options, cases, data[split.train], maps, None)
        teaching.answer(model, tmp_path / "answers.npz")
        mixture = teaching.mixture(tmp_path / "answers.npz")
        assert mixture.labelled == sum(data.case(i).image.shape[1] for i in split.train)
        labels = torch.cat([mixture.pairs.data.case(i).label.flatten() for i in cases.ids])
        known = float((labels != IGNORED).float().mean())
        assert known == 1.0 if keep == 1.0 else 0.25 <= known < 0.5


def test_least_confidence_by_hand():
    counts = np.zeros((3, 256), int)
    counts[0, [10, 200, 255]] = 5, 3, 2  # of ten
    counts[1, 100] = 7
    assert least_confidence(counts, 0.2).tolist() == [255, 100, 255]
    assert least_confidence(counts, 0.5).tolist() == [200, 100, 255]
    assert least_confidence(counts, 0.51)[0] == 10
    assert least_confidence(counts, 1.0)[0] == 10


class Ten:
    """Ten items."""

    def __len__(self):
        return 10


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_a_batch_has_its_share_of_pseudo_labels(share):
    stream = Stream(Mixture(Ten(), 3, share), 10, 20, 0)
    for half in (range(0, 10), range(10, 20)):  # as two processes share it
        drawn = [stream.item_at(n) for n in half]
        assert abs(sum(item >= 3 for item in drawn) - share * 10) < 1
    drawn = [stream.item_at(n) for n in range(2000)]
    assert set(drawn) == set(range(10))
    assert np.mean([item >= 3 for item in drawn]) == pytest.approx(share, abs=0.001)


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
    options = FitOptions(unlabelled=UnlabelledOptions(str(folder), pseudo_rounds=1))
    with pytest.warns(SamAdaptWarning, match="1 of the 2 scans"):
        run = fit(UNET, data, split, CONFIG, tmp_path / "run", None, options)
    assert config_of(run)["unlabelled"]["cases"] == ["another_scan"]
    put(split.val[0])
    with pytest.raises(SamAdaptError, match=f"held out for scoring.*{data.groups[split.val[0]]}"):
        unlabelled_cases(str(folder), data, split)
    with pytest.raises(SamAdaptError, match="held out"):  # the data set itself has them too
        unlabelled_cases(str(data.root), data, split)


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
            "linear+unlabelled": {"head": "linear", "unlabelled": "pool", "pseudo_rounds": 1},
            "unet+unlabelled": {
                "head": "unet", "side": 32, "options": {"width": 2}, "unlabelled": "pool", "pseudo_rounds": 1,
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
    assert "1 round of pseudo-labels" in costs["unet+unlabelled"]["unlabelled"]
    assert "unlabelled" not in costs["linear"]
    settings["learner"]["linear"]["unlabelled"] = str(tmp_path)
    with pytest.raises(SamAdaptError, match="pool"):
        make_study(settings, "segmentation")
