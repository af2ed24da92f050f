"""`samadapt suggest`: the pool by patient, what a model and the maps say of it, no label read; and its simulation."""

import csv
import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fakes import two_class_archive
from samadapt.cli import app
from samadapt.datasets import Split, open_dataset
from samadapt.encoders import EncoderSpec
from samadapt.features import FeatureStore, MapSpec
from samadapt.inputs import Taken
from samadapt.learner import Learner, fit
from samadapt.metrics import read_cell_scores
from samadapt.names import STRATEGIES as NAMES
from samadapt.phantom import make_phantom
from samadapt.prediction import load_run
from samadapt.settings import SuggestOptions, SuggestStudySettings
from samadapt.suggest import STRATEGIES, ColdStart, suggest_patients
from samadapt.suggest.findings import compare, findings_text, patient_scores, verdict_text
from samadapt.suggest.looking import (
    FeatureVectors,
    coarsest,
    entropy_sum,
    load_members,
    patient_vector,
    uncertainty_of,
)
from samadapt.suggest.pool import pool_of_run
from samadapt.suggest.simulation import simulate
from samadapt.training import TrainConfig
from samadapt.types import SamAdaptError, Score

CONFIG = TrainConfig(steps=3, batch_size=2, device="cpu", precision="32", lr=0.01)
FAST = ["--head", "linear", "--encoder", "sam_nano", "--side", "64", "--batch-size", "2", "--device", "cpu"]
NANO = Learner("linear", "sam_nano", side=64, views=0)


def type_(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight patients of two scans."""
    return make_phantom(tmp_path_factory.mktemp("suggest") / "data", patients=8, size=48, slices=3)


@pytest.fixture(scope="module")
def heads(data, tmp_path_factory):
    """Two heads, of which each is a run too."""
    out = tmp_path_factory.mktemp("runs") / "two"
    result = type_(
        "train", data, "--labels", "2", "--steps", "3", "--heads-ensemble", "2", "--out", out, *FAST
    )
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def run(heads):
    return heads / "head_0"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


def without_label_files(data, tmp_path):
    """A copy whose label files cannot be read, though their names are there."""
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    for file in (copy / "labelsTr").iterdir():
        file.write_bytes(b"nothing to read")
    return copy


def test_the_names_are_those_of_the_table():
    assert tuple(sorted(STRATEGIES)) == NAMES and all(each.text for each in STRATEGIES.values())


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("strategy", NAMES)
def test_no_label_of_the_pool_is_read(run, data, store, tmp_path, read_labels, strategy):
    copy = without_label_files(data, tmp_path)
    options = SuggestOptions(k=2, strategy=strategy)
    found = suggest_patients(run, copy, options, FeatureStore(store), device="cpu")
    assert len(found.patients) == 2 and not read_labels
    split = Split.read(run / "split.json")
    apart = {split.patient_of.get(i, i) for i in (*split.train, *split.val)}
    assert not apart & {row.patient for row in found.patients}
    assert found.pool == 8 - len(apart)


def test_patients_are_suggested_and_not_scans(run, data, store, tmp_path):
    table = tmp_path / "next.csv"
    result = type_("suggest", run, data, "-k", 3, "-o", table, "--store", store, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["strategy"] == "both" and len({row["patient"] for row in told["patients"]}) == 3
    assert all(len(row["cases"]) == 2 for row in told["patients"])
    assert all(0 <= row["uncertainty"] <= 1 and row["distance"] > 0 for row in told["patients"])
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["patient"] for row in rows] == [row["patient"] for row in told["patients"]]
    assert [row["rank"] for row in rows] == ["1", "2", "3"] and len(rows[0]["cases"].split()) == 2
    notes = " ".join(told["notes"])
    assert "left out, since the model was trained on them" in notes and "kept for scoring" in notes
    assert "have a label file already" in notes and all(row["labelled"] for row in told["patients"])


def test_the_terminal_says_what_was_assumed_and_what_to_do_next(run, data, store):
    result = type_("suggest", run, data, "-k", 1, "--store", store, "--device", "cpu")
    lines = result.stdout.splitlines()
    assert "note: patients: the patient's ID in the name" in lines[0]
    assert re.search(r"1 of \d patients to label next, by strategy both", result.stdout)
    assert lines[-1].startswith("next: label all scans of these patients") and "samadapt train" in lines[-1]


def test_without_a_run_the_maps_decide(data, store, tmp_path, read_labels):
    scans = data / "imagesTr"
    words = ("-k", 2, "--encoder", "sam_nano", "--store", store, "--device", "cpu", "--json")
    told = [json.loads(type_("suggest", place, *words).stdout) for place in (data, scans)]
    assert all(each["strategy"] == "typical" and each["pool"] == 8 for each in told)
    assert all(row["uncertainty"] is None for each in told for row in each["patients"])
    # The folder of scans is opened as the data set is, so that it is the same choice.
    assert [row["patient"] for row in told[0]["patients"]] == [row["patient"] for row in told[1]["patients"]]
    assert "16 scans of 8 patients, by their names" in " ".join(told[1]["notes"])
    assert not read_labels


def test_a_folder_of_pictures_is_a_pool(store, tmp_path):
    from PIL import Image

    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"lesion{i}.png")
    found = suggest_patients(
        None, tmp_path, SuggestOptions(k=3, strategy="coverage"), FeatureStore(store),
        start=ColdStart("sam_nano", side=64), device="cpu",
    )  # fmt: skip
    assert len(found.patients) == 3 and found.pool == 5 and found.patients[0].distance is None


def test_maps_are_encoded_once_and_taken_from_the_store(run, data, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path / "store")
    options = SuggestOptions(k=2, strategy="coverage")
    first = suggest_patients(run, data, options, store, device="cpu")
    monkeypatch.setattr(EncoderSpec, "load", lambda *a, **k: pytest.fail("the encoder was loaded again"))
    monkeypatch.setattr("samadapt.adapted.AdaptedModel.load", lambda self, drawn=False: None)
    assert suggest_patients(run, data, options, store, device="cpu") == first


def test_views_that_a_training_stored_are_read(data, tmp_path):
    """View 0 of six is the image itself: its maps are found under the key of the training."""
    opened = open_dataset(data)
    store = FeatureStore(tmp_path / "store")
    spec = EncoderSpec("sam_nano", side=64)
    taps = coarsest(spec)
    many = MapSpec(spec, taps, opened.window, 2, "default")
    store.encode(opened, many)
    folders = sorted(path.name for path in (tmp_path / "store").iterdir())
    vectors = FeatureVectors(MapSpec(spec, taps, opened.window), store, [many])
    vectors.encode(opened, torch.device("cpu"))
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == folders
    case = opened.case(opened.ids[0])
    own = FeatureVectors(MapSpec(spec, taps, opened.window), FeatureStore(tmp_path / "other"))
    own.encode(opened[[case.id]], torch.device("cpu"))
    assert np.allclose(vectors(case), own(case), atol=2e-2)


def test_labelled_patients_elsewhere_count_for_distances(run, data, store, tmp_path):
    """The pool is a folder of others: without --labelled nobody is known, and it is said."""
    split = Split.read(run / "split.json")
    others = tmp_path / "new"
    others.mkdir()
    learned = {split.patient_of.get(i, i) for i in split.train}
    for file in (data / "imagesTr").iterdir():
        if file.name.split("_")[0] not in learned:
            shutil.copy(file, others)
    options = dict(k=1, strategy="coverage")
    alone = suggest_patients(run, others, SuggestOptions(**options), FeatureStore(store), device="cpu")
    assert alone.patients[0].distance is None and "give their data set" in " ".join(alone.notes)
    known = suggest_patients(
        run, others, SuggestOptions(**options, labelled=str(data)), FeatureStore(store), device="cpu"
    )
    assert known.patients[0].distance > 0 and "give their data set" not in " ".join(known.notes)


def test_a_u_net_reads_no_encoder_and_is_compared_by_another(data, store, tmp_path):
    unet = Learner("unet", "pixels", side=32, options={"width": 2})
    opened = open_dataset(data)
    run = fit(unet, opened, opened.split(2), CONFIG, tmp_path / "unet")
    found = suggest_patients(
        run,
        data,
        SuggestOptions(k=2),
        FeatureStore(store),
        start=ColdStart("sam_nano", side=64),
        device="cpu",
    )
    assert found.encoder == "sam_nano" and all(row.uncertainty is not None for row in found.patients)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("{run}", "{data}", "-k", "50"), r"50 patients were asked for, and .* has 4 that could be labelled next; ask for at most 4 \(-k\); 2 patients"),
        (("{run}",), r"is a run folder, and no pool was given; give both"),
        (("{run}", "{data}", "{data}"), r"3 places were given .*; expected RUN and POOL, or POOL alone"),
        (("{data}", "--strategy", "both"), r"the strategy 'both' asks how unsure a model is, and no RUN was given"),
        (("{data}", "--strategy", "badge"), r"--strategy is 'badge'; known: both, coverage"),
        (("{data}", "-k", "0"), r"-k is 0; expected a whole number from 1 on"),
        (("{run}", "nowhere"), r"nowhere does not exist; give a folder of scans, or a data set"),
        (("nowhere",), r"nowhere does not exist; give a folder of scans, or a data set"),
        (("nowhere", "{data}"), r"nowhere does not exist; give the --out of `samadapt train`"),
        (("{data}", "--labelled", "x"), r"--labelled x says what a RUN was trained on, and no RUN was given"),
        (("{run}", "{data}", "--labelled", "x"), r"--labelled x does not exist; give the data set that RUN was trained on"),
        (("{run}", "{data}", "--side", "96"), r"--side 96 is for the maps of another encoder .* have the side 64"),
        (("{run}", "{data}", "--group", "(p)"), r"--group '\(p\)' is for a pool without a RUN"),
    ],
)  # fmt: skip
def test_mistakes_are_told(run, data, store, words, told):
    typed = [word.format(run=run, data=data) for word in words]
    result = type_("suggest", *typed, "--store", store, "--device", "cpu")
    assert result.exit_code and re.search(told, str(result.exception)), result.exception


def test_a_pool_of_known_patients_alone_is_refused(run, data, tmp_path):
    split = Split.read(run / "split.json")
    for file in (data / "imagesTr").iterdir():
        if any(file.name.startswith(case) for case in split.train):
            shutil.copy(file, tmp_path)
    with pytest.raises(
        SamAdaptError, match=r"has no patient that could be labelled next: 2 patients .* trained on them"
    ):
        pool_of_run(tmp_path, load_run(run, "cpu").opening, split, Taken())


def test_a_data_set_that_nobody_learned_from_is_no_labelled_one(run, data, store, tmp_path):
    other = make_phantom(tmp_path / "other", patients=3, size=48, slices=3)
    (other / "splits_final.json").unlink()
    for folder in ("imagesTr", "labelsTr"):
        for file in (other / folder).iterdir():
            file.rename(file.with_name(file.name.replace("patient", "person")))
    options = SuggestOptions(k=1, labelled=str(other))
    with pytest.raises(SamAdaptError, match=r"has none of the 4 cases that RUN was trained on"):
        suggest_patients(run, data, options, FeatureStore(store), device="cpu")


# ---------------------------------------------------------------- uncertainty and features


def test_entropy_is_that_of_the_voxels_that_may_be_foreground():
    p = torch.tensor([[[0.5, 0.95, 0.0]], [[0.5, 0.05, 1.0]]])  # K=2; the middle voxel is surely background
    total, count = entropy_sum(p)
    assert count == 2 and total == pytest.approx(1 + 0)
    thirds = torch.full((3, 1, 1), 1 / 3)
    assert entropy_sum(thirds)[0] == pytest.approx(1)


def test_uncertainty_of_one_head_and_of_several(heads, run, data, store):
    cases = [open_dataset(data).case(i) for i in open_dataset(data).ids[:2]]
    one = load_members([run], "cpu")
    logits = [x for case in cases for x in one[0].model.answers(case)]
    p = torch.stack([x.softmax(0).double() for x in logits])
    looked_at = 1 - p[:, 0] >= 0.1
    entropy = -(p * p.clamp_min(1e-300).log()).sum(1) / math.log(p.shape[1])
    expected = float(entropy[looked_at].mean()) if looked_at.any() else 1.0
    assert uncertainty_of(one, cases, FeatureStore(store)) == pytest.approx(expected, abs=1e-5)
    two = load_members([heads / "head_0", heads / "head_1"], "cpu")
    maps = [[m.model.predict(case) for m in two] for case in cases]
    per_case = []
    for a, b in maps:
        dice = [
            2 * ((a == k) & (b == k)).sum() / n for k in (1, 2, 3) if (n := (a == k).sum() + (b == k).sum())
        ]
        per_case.append(1 - np.mean(dice) if dice else 1.0)
    assert uncertainty_of(two, cases, FeatureStore(store)) == pytest.approx(np.mean(per_case), abs=1e-6)
    alike = load_members([run, run], "cpu")
    assert uncertainty_of(alike, cases, FeatureStore(store)) in (0.0, 1.0)  # 1: no head finds anything


def test_a_classifier_is_unsure_where_its_probabilities_are_even(tmp_path, store, read_labels):
    archive = two_class_archive(tmp_path / "two.npz")
    data = open_dataset(archive)
    learner = Learner("plain", "pixels", side=32, options={"backbone": "resnet18"}, augment="none")
    run = fit(learner, data, data.split(4), dataclasses.replace(CONFIG, lr=1e-4), tmp_path / "run")
    read_labels.clear()
    start = ColdStart("sam_nano", side=64)
    found = suggest_patients(
        run,
        archive,
        SuggestOptions(k=5, strategy="uncertainty"),
        FeatureStore(store),
        start=start,
        device="cpu",
    )
    assert not read_labels
    values = [row.uncertainty for row in found.patients]
    assert values == sorted(values, reverse=True)
    model = load_run(run, "cpu")
    p = model.predict(data.case(found.patients[0].cases[0]))
    assert values[0] == pytest.approx(-sum(x * math.log(x) for x in p if x) / math.log(2), abs=1e-5)
    assert values[0] > 0


def test_a_patient_is_the_mean_and_the_deviation_of_all_slices():
    first, second = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[5.0, 3.0]])
    assert patient_vector([first, second]) == pytest.approx([3, 1, math.sqrt(8 / 3), math.sqrt(2)])


def test_the_coarsest_map_is_read():
    spec = EncoderSpec("sam_nano", side=64)
    assert coarsest(spec) == {"stride32": 1}
    assert coarsest(spec, {"pixels": 1, "neck": 2, "stride4": 1}) == {"neck": 2}
    assert coarsest(spec, {"pixels": 1}) == {"stride32": 1}
    both = coarsest(EncoderSpec("sam_nano+imagenet_lite0"))
    assert sorted(both) == ["imagenet_lite0:stride32", "sam_nano:stride32"]


# ---------------------------------------------------------------- the simulation


SMALL = SuggestStudySettings(k=1, start=1, rounds=1, seeds=2, strategies=("coverage", "uncertainty"))


@pytest.fixture(scope="module")
def simulated(data, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("simulated") / "sim"
    said = []
    found = simulate(open_dataset(data), NANO, CONFIG, SMALL, out, FeatureStore(store), say=said.append)
    return out, found, said


def test_a_simulation_compares_in_the_same_draws(simulated, data):
    out, found, said = simulated
    assert [(f.strategy, f.labels) for f in found.findings] == [
        ("random", 1), ("random", 2), ("random", 3), ("coverage", 2), ("uncertainty", 2),
    ]  # fmt: skip
    assert found.trained + found.found == len(said) == 10 and found.trained > 4
    choices = json.loads((out / "choices.json").read_text())
    opened = open_dataset(data)
    for seed in (0, 1):
        split = opened.split(1, seed)
        own = [each for each in choices.values() if each["seed"] == seed]
        assert all(each["known"][0] == split.patients[0] for each in own)
        held_out = {opened.groups[i] for i in split.val}
        assert not held_out & {p for each in own for p in (*each["known"], *each["chosen"])}
        assert all(len(each["chosen"]) == 1 and not set(each["chosen"]) & set(each["known"]) for each in own)
    assert (out / "findings.csv").read_text().count("\n") == 6


def test_a_training_of_a_simulation_learns_from_what_was_chosen(simulated, data):
    out, _, _ = simulated
    choices = json.loads((out / "choices.json").read_text()).values()
    wanted = {frozenset((*each["known"], *each["chosen"])) for each in choices}
    opened = open_dataset(data)
    splits = [Split.read(path) for path in out.glob("*/split.json")]
    learned = {frozenset(opened.groups[i] for i in split.train) for split in splits}
    assert wanted <= learned and all(split.val == splits[0].val and not split.select for split in splits)
    assert all(len(read_cell_scores(path.parent)[0]) > 0 for path in out.glob("*/scores.csv"))


def test_choosing_reads_no_label(simulated, data, store, tmp_path, read_labels):
    """Of patients that are not labelled in the draw: only the trainings and the scores read any."""
    out, _, _ = simulated
    shutil.copytree(out, tmp_path / "again")
    (tmp_path / "again" / "choices.json").unlink()
    found = simulate(open_dataset(data), NANO, CONFIG, SMALL, tmp_path / "again", FeatureStore(store))
    assert found.trained == 0 and not read_labels
    assert (tmp_path / "again" / "choices.json").read_text() == (out / "choices.json").read_text()


def test_a_simulation_is_found_again_and_another_one_is_refused(simulated, data, store):
    out, before, _ = simulated
    again = simulate(open_dataset(data), NANO, CONFIG, SMALL, out, FeatureStore(store))
    assert again.trained == 0 and again.findings == before.findings
    for settings, config, told in (
        (SuggestStudySettings(k=2, seeds=2), CONFIG, "another protocol"),
        (SMALL, TrainConfig(steps=4, device="cpu"), "another train"),
    ):
        with pytest.raises(SamAdaptError, match=told):
            simulate(open_dataset(data), NANO, config, settings, out, FeatureStore(store))


def test_a_pool_that_is_too_small_is_refused_before_anything_is_trained(data, store, tmp_path):
    settings = SuggestStudySettings(k=3, rounds=1, seeds=2)
    with pytest.raises(
        SamAdaptError, match=r"are 7 labelled patients, and 'phantom' has 6 to learn from; ask for fewer"
    ):
        simulate(open_dataset(data), NANO, CONFIG, settings, tmp_path / "sim", FeatureStore(store))
    assert not (tmp_path / "sim").exists()


def test_a_folder_of_something_else_is_left_alone(data, store, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(SamAdaptError, match="is not empty and not a simulation"):
        simulate(open_dataset(data), NANO, CONFIG, SMALL, tmp_path, FeatureStore(store))


def test_the_command_of_the_simulation(simulated, data, store):
    """It finds the trainings of the function: what is typed means the same."""
    out = simulated[0]
    words = ["--strategies", "coverage,uncertainty", "--views", 0, "--steps", 3, "--lr", 0.01, *FAST]
    words += ["--out", out, "--store", store, "-k", 1, "--seeds", 2, "--precision", "32"]
    told = json.loads(type_("suggest-study", data, *words, "--json").stdout)
    assert told["trained"] == 0 and len(told["findings"]) == 5 and told["verdict"]
    shown = type_("suggest-study", data, *words).stdout
    assert "minus random (95 %)" in shown and shown.rstrip().endswith(told["verdict"])


def test_a_simulation_of_a_classification(store, tmp_path):
    data = open_dataset(two_class_archive(tmp_path / "two.npz"))
    learner = Learner("plain", "pixels", side=32, options={"backbone": "resnet18"}, augment="none")
    settings = SuggestStudySettings(k=1, start=4, seeds=2, strategies=("typical", "uncertainty"))
    found = simulate(data, learner, CONFIG, settings, tmp_path / "sim", FeatureStore(store))
    assert [(f.strategy, f.labels) for f in found.findings[:3]] == [
        ("random", 4),
        ("random", 5),
        ("random", 6),
    ]
    assert all(0 <= f.score <= 1 for f in found.findings) and found.findings[-1].difference.n_groups == 10
    few = dataclasses.replace(settings, start=1)
    with pytest.raises(
        SamAdaptError, match=r"expected two classes at least: .*the first 1 patients of draw 0: --start"
    ):
        simulate(data, learner, CONFIG, few, tmp_path / "few", FeatureStore(store))


# ---------------------------------------------------------------- what it shows


def results(gain, patients=12, seeds=4, noise=0.01):
    """Random's curve rises by 0.1 from 1 to 3 labels and by 0.05 to 5; a strategy gains so much at 3."""
    rng = np.random.default_rng(0)
    level = {1: 0.5, 3: 0.6, 5: 0.65}
    base = {p: 0.05 * rng.normal() for p in range(patients)}

    def draw(mean):
        return {s: {f"p{p}": mean + base[p] + noise * rng.normal() for p in base} for s in range(seeds)}

    found = {("random", n): draw(mean) for n, mean in level.items()}
    return found | {("typical", 3): draw(0.6 + gain)}


def test_a_gain_is_shown_with_the_labels_that_it_saves():
    finding = compare(results(0.025))[-1]
    assert finding.verdict == "better" and finding.difference.low > 0
    assert finding.saved.labels == pytest.approx(1.0, abs=0.5)  # halfway from 3 to 5 labels
    assert finding.saved.low <= finding.saved.labels <= finding.saved.high
    text = findings_text(compare(results(0.025)), "Dice")
    assert "Better than random: typical with 3 labelled patients." in text
    far = compare(results(0.2))[-1]
    assert math.isinf(far.saved.labels) and "more than 2" in far.saved.text()


def test_random_that_does_as_well_is_said():
    found = compare(results(0.0, noise=0.05))
    assert found[-1].verdict == "no difference shown"
    text = findings_text(found, "Dice")
    assert "random does as well, as far as 12 scored patients and 4 draws can tell" in text
    assert "none can be shown" in text


def test_a_loss_is_said():
    text = verdict_text(compare(results(-0.05)))
    assert "Worse than random: typical with 3" in text and "random does as well" in text


def test_one_draw_decides_nothing():
    found = compare(results(0.1, seeds=1))
    assert found[-1].verdict == "not tested" and "Nothing was tested" in verdict_text(found)


def test_scores_by_patient():
    scores = [
        Score("a_1", "LV", "dsc", 0.8), Score("a_1", "RV", "dsc", math.nan), Score("a_2", "LV", "dsc", 0.6),
        Score("b_1", "LV", "dsc", 0.5), Score("b_1", "LV", "hd95_mm", 9.0),
    ]  # fmt: skip
    patients = {"a_1": "a", "a_2": "a", "b_1": "b"}
    assert patient_scores(scores, patients, "segmentation") == {"a": pytest.approx(0.7), "b": 0.5}
    rows = [("a_1", (0.6, 0.4), (0, 1)), ("a_2", (0.3, 0.7), (0, 1)), ("b_1", (0.9, 0.1), (1, 0))]
    answers = [
        Score(case, name, metric, value)
        for case, p, truth in rows
        for k, name in enumerate(("x", "y"))
        for metric, value in (("probability", p[k]), ("truth", truth[k]))
    ]
    assert patient_scores(answers, patients, "classification") == {"a": 0.5, "b": 1.0}
