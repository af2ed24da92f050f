"""What commands leave for people and programs: pictures, the course of a training, --json, info, habits, folds, clean-up, flips."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fakes import disc_case, two_class_archive
from samadapt import io
from samadapt.cli import app
from samadapt.cli.habits import HABITS, understood
from samadapt.course import Course
from samadapt.datasets import count_folds, open_dataset
from samadapt.encoders import side_for
from samadapt.experiment import make_study, quick_settings
from samadapt.figures import Panel, sheet_figure
from samadapt.flips import answers_over_flips, demand_flips
from samadapt.learner import Learner, side_note
from samadapt.phantom import make_phantom
from samadapt.pictures import Answered, class_text, extremes, sheet_slices
from samadapt.postprocessing import choose_classes, classes_to_clean, keep_largest
from samadapt.prediction import load_run
from samadapt.types import SamAdaptError

FAST = ["--head", "unet", "--set", "width=4", "--side", "64", "--batch-size", "2", "--device", "cpu"]
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "unet"
    words = ("--labels", "2", "--select", "1", "--keep-largest", "--augment", "mirror", "--steps", "20")
    document = as_json("train", phantom, *words, "--out", out, *FAST)
    assert document["run"] == str(out) and document["finished"]
    return out


def type_(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def as_json(*words):
    """The document on stdout; all of stdout, or it is no JSON."""
    return json.loads(type_(*words, "--json").stdout)


# ---------------------------------------------------------------- pictures


def test_outlines_close_where_a_structure_reaches_the_edge():
    label = np.zeros((10, 12), np.uint8)
    label[0:4, 6:12] = 1
    figure = sheet_figure([Panel(np.zeros((1, 10, 12)), "a", label)], "title", ("background", "x"), 1)
    (outline,) = figure.axes[0].collections
    (path,) = outline.get_paths()
    (corners,) = path.to_polygons(closed_only=False)
    assert np.array_equal(corners[0], corners[-1])
    assert figure.axes[0].get_xlim() == (-0.5, 11.5)


def test_a_sheet_has_all_slices_or_those_around_the_structures():
    label = np.zeros((100, 4, 4), np.uint8)
    label[40:50] = 1
    assert sheet_slices(label[:7]) == list(range(7))
    assert sheet_slices(label, 20) == list(range(39, 51))
    assert len(sheet_slices(0 * label, 20)) == 20 and sheet_slices(0 * label)[-1] == 99


def test_slices_are_numbered_as_the_file_counts_them():
    case = disc_case(0, depth=4)
    assert case.slice_in_file(1) == 1
    assert dataclasses.replace(case, flips=(True, False, False)).slice_in_file(1) == 2


def test_worst_median_and_best():
    def of(*values):
        cases = [Answered(str(n), value, "", lambda: None) for n, value in enumerate(values)]
        return {name: each.case for name, each in extremes(cases).items()}

    assert of(0.5, 0.1, math.nan, 0.9) == {"worst": "1", "median": "0", "best": "3"}
    assert of(0.5, 0.1) == {"worst": "1", "best": "0"}
    assert of(0.5) == {"median": "0"} and of(math.nan) == {}


def test_classes_in_words():
    names = ("benign", "malignant")
    assert (
        class_text(np.array([0.07, 0.93]), torch.tensor(0), names)
        == "reference benign, answer malignant (0.93)"
    )
    assert class_text(np.array([0.7, 0.2]), torch.tensor([0.0, 1.0]), names) == (
        "reference malignant, answer benign (0.70)"
    )


def test_commands_leave_pictures_and_say_what_is_next(run, phantom, tmp_path):
    assert [(run / name).read_bytes()[:4] for name in ("loss.png", "first_look.png")] == [PNG] * 2
    said = type_("predict", run, phantom, "--out", tmp_path / "p", "--pictures", "--device", "cpu").stdout
    assert said.splitlines()[-1] == f"next: samadapt evaluate {tmp_path / 'p'} {phantom} --pictures"
    labels = {io.case_name(path) for path in io.find_files(tmp_path / "p")}
    assert {path.stem for path in (tmp_path / "p" / "pictures").iterdir()} == labels and labels
    document = as_json("evaluate", tmp_path / "p", phantom, "--pictures")
    assert [path.split("/")[-1] for path in document["pictures"]] == ["worst.png", "best.png"]
    assert {row["metric"] for row in document["summary"]} >= {"dsc", "hd95_mm"}
    again = as_json(
        "evaluate", tmp_path / "p", phantom / "labelsTr", "--pictures", "--out", tmp_path / "b.csv"
    )
    first, second = (
        (tmp_path / p).read_bytes() for p in ("p/scores.pictures/worst.png", "b.pictures/worst.png")
    )
    assert first[:4] == PNG and first == second and len(again["pictures"]) == 2


def test_a_classifier_leaves_pictures(tmp_path):
    data = two_class_archive(tmp_path / "two.npz")
    head = (
        "--head",
        "linear_probe",
        "--encoder",
        "sam_nano",
        "--checkpoint",
        "random",
        "--side",
        "32",
        "--labels",
        "8",
    )
    type_(
        "train",
        data,
        "--out",
        tmp_path / "r",
        *head,
        "--steps",
        "2",
        "--device",
        "cpu",
        "--store",
        tmp_path / "f",
    )
    type_("predict", tmp_path / "r", data, "--out", tmp_path / "p", "--pictures", "--device", "cpu")
    (picture,) = as_json("evaluate", tmp_path / "p", data, "--pictures")["pictures"]
    drawn = [picture, tmp_path / "r" / "first_look.png", *(tmp_path / "p" / "pictures").iterdir()]
    assert len(drawn) > 3 and all(Path(path).read_bytes()[:4] == PNG for path in drawn)


# ---------------------------------------------------------------- the course of a training


@pytest.mark.parametrize(
    ("loss", "few"),
    [
        ([2.0, 1.9], True),  # 20 steps
        ([2.1, 1.9, 1.55, 1.4, 1.4, 1.36], True),  # ACDC, 60 steps
        (list(np.geomspace(2, 0.2, 20)), False),  # the demo: falls to the end, and has learned
        ([0.4, 0.3, 0.24, 0.29, 0.29], False),  # a linear probe that has come to rest
        ([1.3, 0.9, 0.8, 0.75, 0.7], False),
        ([0.4] * 30, False),
    ],
)
def test_too_few_steps(loss, few):
    course = Course(tuple(range(10, 10 * len(loss) + 1, 10)), tuple(loss), {})
    assert (course.too_few_steps is not None) == few


# ---------------------------------------------------------------- info and --json


def test_info_says_what_a_run_is(run, phantom, tmp_path):
    type_("predict", run, phantom, "--out", tmp_path / "p", "--device", "cpu")
    type_("evaluate", tmp_path / "p", phantom)
    about = as_json("info", run)
    assert about["command"] == "info" and about["task"] == "segmentation"
    assert about["classes"] == ["background", "RV", "MYO", "LV"]
    assert (about["labelled"]["training_cases"], about["labelled"]["patients"]) == (2, 2)
    assert (about["steps"], about["seed"], about["tuning"], about["head"]["name"]) == (20, 0, "none", "unet")
    assert about["sha256"]["head"] and about["bytes"] > 1000 and "torch" in about["environment"]["packages"]
    assert str(tmp_path / "p") in about["scores"] and "too few steps" in about["too_few_steps"]
    text = type_("info", run).stdout
    assert "2 training and 2 selection cases of 2 labelled patients" in text and "dsc" in text


def test_info_marks_an_encoder_that_has_seen_the_data(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["encoder"]["name"], config["head"]["name"] = "lite_medsam", "fused"
    config["data"]["name"] = "ACDC"
    (copy / "config.json").write_text(json.dumps(config))
    assert "lite_medsam *" in type_("info", copy).stdout


def test_notes_do_not_disturb_the_document(phantom):
    result = type_("check", phantom, "--json")
    document = json.loads(result.stdout)
    assert document["cases"] == 8 and isinstance(document["findings"], list)
    assert json.loads(type_("list", "heads", "--json").stdout)["heads"]["heads for segmentation"]["unet"]


def test_an_error_is_a_document_too(monkeypatch, capsys):
    from samadapt.cli import main

    monkeypatch.setattr("sys.argv", ["samadapt", "info", "nowhere", "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 2 and "nowhere does not exist" in json.loads(said.out)["error"]
    assert said.err.startswith("samadapt: nowhere does not exist")


# ---------------------------------------------------------------- habits


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("predict run -i scans -o out", "predict run -o out scans"),
        ("predict run scans --output=out --gpu", "predict run scans --out out --device cuda"),
        ("train -i data --iterations 20 -d cpu -f 1", "train --steps 20 --device cpu --fold 1 data"),
        ("predict run scans --tta", "predict run scans --flips"),
        ("train data -- -i", "train data -- -i"),
        ("nothing -i x", "nothing -i x"),
    ],
)
def test_options_of_other_programs_are_understood(typed, meant):
    assert understood(typed.split()) == meant.split()


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("train data --epochs 50", "give --steps"),
        ("evaluate p t -d cpu", "without an option"),
        ("predict -m run scans", "samadapt predict RUN SCANS"),
        ("report study --gpu", "report has no such choice"),
    ],
)
def test_or_answered(typed, answer):
    with pytest.raises(SamAdaptError, match=answer):
        understood(typed.split())


def test_no_habit_hides_an_option_of_our_own():
    """A command's own option always wins; and what a habit is turned into is an option somewhere."""
    import typer

    commands = typer.main.get_command(app).commands
    own = {name for command in commands.values() for parameter in command.params for name in parameter.opts}
    assert {habit.option for habit in HABITS.values() if habit.option} <= own
    assert understood(["train", "data", "-o", "run"]) == ["train", "data", "-o", "run"]


def test_a_bare_list_has_everything_with_the_tasks_apart():
    text = type_("list").stdout
    titles = ("encoders", "heads for segmentation", "heads for classification", "metrics of classification")
    assert all(title in text.splitlines() for title in titles)
    segmentation = text[text.index("heads for segmentation") : text.index("heads for classification")]
    assert "fused" in segmentation and "slca" not in segmentation


# ---------------------------------------------------------------- clean-up and flips


def test_the_largest_component_of_a_class_is_kept():
    label = np.zeros((3, 8, 8), np.uint8)
    label[0, :3, :3], label[1, 6, 6], label[2, 0, 7] = 1, 1, 2
    label[2, 7, 0:2] = 2
    cleaned = keep_largest(label, [1])
    assert cleaned[1, 6, 6] == 0 and (cleaned[0] == label[0]).all() and (cleaned[2] == label[2]).all()
    assert (keep_largest(label, [1, 2]) == 2).sum() == 2


def test_classes_to_clean_by_name():
    classes = ("background", "RV", "LV")
    assert classes_to_clean(["all"], classes) == ("RV", "LV") and classes_to_clean(["none"], classes) == ()
    assert classes_to_clean(["LV"], classes) == ("LV",)
    with pytest.raises(SamAdaptError, match=r"'XV'; the classes of the model are RV, LV"):
        classes_to_clean(["XV"], classes)


def test_the_clean_up_is_chosen_where_it_raises_the_dice():
    truth = np.zeros((1, 8, 8), np.uint8)
    truth[0, :3, :3], truth[0, 5:7, 0], truth[0, 5, 7] = 1, 2, 2
    answer = truth.copy()
    answer[0, 7, 7] = 1  # wrong, and apart: without it the answer is better; class 2 has two parts in truth
    dice = choose_classes([(answer, truth)], ("background", "a", "b"), 255)
    assert dice["a"]["largest"] == 1 > dice["a"]["all"] and dice["b"]["largest"] < dice["b"]["all"] == 1


def test_predictions_record_the_clean_up_and_obey_the_run(run, phantom, tmp_path):
    chosen = json.loads((run / "postprocessing.json").read_text())["keep_largest"]
    notes = {}
    for name, words in (
        ("run", ()),
        ("all", ("--keep-largest", "all")),
        ("none", ("--keep-largest", "none")),
    ):
        type_("predict", run, phantom, "--out", tmp_path / name, *words, "--device", "cpu")
        notes[name] = json.loads((tmp_path / name / "predictions.json").read_text())["keep_largest"]
    assert notes == {"run": chosen, "all": ["RV", "MYO", "LV"], "none": []}
    case = next(iter(io.find_files(tmp_path / "all")))
    label, raw = (np.asarray(io.read_truth(tmp_path / n / case.name).label) for n in ("all", "none"))
    assert np.array_equal(label, keep_largest(raw, [1, 2, 3]))


def test_flips_are_averaged_so_that_a_flipped_case_has_the_flipped_answer(run, phantom):
    model, data = load_run(run, "cpu"), open_dataset(phantom)
    case = data.case(data.ids[0])
    mirrored = dataclasses.replace(case, image=case.image.flip([-1]), label=None)
    answers = torch.stack([x.exp() for x in answers_over_flips(model, case)])
    of_mirrored = torch.stack([x.exp() for x in answers_over_flips(model, mirrored)])
    assert torch.allclose(answers, of_mirrored.flip([-1]), atol=1e-4)
    alone = torch.stack([x.softmax(0) for x in model.answers(case)])
    assert not torch.allclose(answers, alone, atol=1e-3)


def test_flips_are_refused_where_training_saw_none(run, phantom, tmp_path):
    type_("predict", run, phantom, "--flips", "--out", tmp_path / "p", "--device", "cpu")
    assert json.loads((tmp_path / "p" / "predictions.json").read_text())["flips"]
    with pytest.raises(SamAdaptError, match="augmentation 'default', which flips no slices"):
        demand_flips("default", "runs/a")


@pytest.mark.parametrize(
    ("encoder", "extent", "side"),
    [
        ("sam_nano", 50, 128), ("sam_nano", 20, 128), ("sam_nano", 70, 192), ("sam_nano", 100, None),
        ("pixels", 50, 128), ("imagenet_lite0", 64, 128), ("lite_medsam", 50, 128),
        ("sam_vit_b", 50, None),  # its weights know the places of a square of 1024
        ("lite_medsam+imagenet_lite0", 50, 128),
    ],
)  # fmt: skip
def test_the_square_follows_small_slices(encoder, extent, side):
    assert side_for(encoder, extent) == side


def test_a_side_is_chosen_where_none_is_given_and_said(tmp_path, capsys):
    data = make_phantom(tmp_path / "data", patients=4, size=48, slices=3)
    document = as_json("train", data, "--out", tmp_path / "run", "--labels", "1", "--steps", "1", *FAST[:4])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["encoder"]["side"] == 128, document
    opened = open_dataset(data)
    assert opened.shape(opened.ids[0]) == tuple(opened.case(opened.ids[0]).image.shape[1:])
    asked = Learner("unet", "pixels")
    assert "side 128, since the slices are small" in (side_note(asked, asked.suited_to(opened)) or "")
    given = Learner("unet", "pixels", side=64)
    assert given.suited_to(opened) == given and side_note(given, given) is None
    grid, _ = make_study({"learners": ["unet"]}, "segmentation", opened)
    assert grid.methods["unet"].learner.side == 128


def test_a_clean_up_needs_selection_cases(phantom, tmp_path):
    with pytest.raises(SamAdaptError, match="give --select 1"):
        type_("train", phantom, "--keep-largest", "--out", tmp_path / "r", *FAST)
    assert not (tmp_path / "r").exists()


# ---------------------------------------------------------------- folds, names, a first look


def test_all_folds_are_trained_and_scored(phantom, tmp_path):
    phantom = shutil.copytree(phantom, tmp_path / "data")
    (phantom / "splits_final.json").unlink()  # which has one fold
    words = ("train", phantom, "--fold", "all", "--steps", "2", "--out", tmp_path / "cv", *FAST)
    document = as_json(*words)
    folds = count_folds(open_dataset(phantom))
    assert len(document["runs"]) == folds == 4
    parts = [json.loads((tmp_path / "cv" / f"fold_{n}" / "split.json").read_text()) for n in range(folds)]
    tested = [case for part in parts for case in part["val"]]
    assert sorted(tested) == sorted(open_dataset(phantom).ids)
    summary = json.loads((tmp_path / "cv" / "scores.summary.json").read_text())
    assert sorted(summary["folds"]) == [f"fold_{n}" for n in range(folds)]
    assert next(row for row in document["summary"] if row["metric"] == "dsc")["n"] == len(tested)
    weights = (tmp_path / "cv" / "fold_3" / "head.safetensors").stat().st_mtime_ns
    assert as_json(*words)["summary"] == document["summary"]
    assert (tmp_path / "cv" / "fold_3" / "head.safetensors").stat().st_mtime_ns == weights


def test_an_official_part_has_no_folds(tmp_path):
    with pytest.raises(SamAdaptError, match="has an official test part to score on, and so no folds"):
        count_folds(open_dataset(two_class_archive(tmp_path / "two.npz")))


def test_the_classes_of_medmnist_have_names(tmp_path):
    for name in ("breastmnist.npz", "breastmnist_64.npz"):
        assert open_dataset(two_class_archive(tmp_path / name)).classes == ("malignant", "normal, benign")
    assert open_dataset(two_class_archive(tmp_path / "dermamnist.npz")).classes == ("0", "1")  # it has seven


def test_a_run_that_numbers_the_classes_of_medmnist_still_opens_it(tmp_path):
    from samadapt.datasets import open_like

    path = two_class_archive(tmp_path / "breastmnist.npz")
    opening = dataclasses.replace(open_dataset(path).opening, classes=("0", "1"))
    assert open_like(path, opening).classes == ("0", "1")


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_the_first_looks_are_studies(task):
    grid, _ = make_study(quick_settings(task), task)
    assert grid.quick and grid.seeds == (0,) and grid.encoder in ("imagenet_lite0", "sam_nano")
    assert {method.role for method in grid.methods.values()} >= {"contender", "baseline"}


def test_a_quick_study_is_marked(phantom, tmp_path):
    grid = tmp_path / "grid.toml"
    small = '[learner.small]\nhead = "unet"\nencoder = "pixels"\nside = 32\noptions = {width = 2}\n'
    grid.write_text(f'learners = ["small"]\nquick = true\n{small}')
    out = ("--labels", "1", "--seeds", "1", "--steps", "1", "--out", tmp_path / "s", "--device", "cpu")
    words = ("experiment", phantom, "--grid", grid, "--store", tmp_path / "f", *out)
    assert "quick: a first look" in type_(*words).stdout
    assert [row["quick"] for row in as_json(*words)["results"]] == [True]
    page = type_("report", tmp_path / "s").stdout.split()[-1]
    assert "Quick: a first look" in Path(page).read_text()
    grid.write_text(f'learners = ["small"]\n{small}')
    with pytest.raises(SamAdaptError, match="another length"):
        type_(*words)
