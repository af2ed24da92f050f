"""`train --fold all`, the folders it leaves, and what is said of numbers that a small data set does not allow."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from samadapt.cli import app
from samadapt.datasets import open_dataset
from samadapt.experiment import quick_settings
from samadapt.phantom import make_phantom
from samadapt.postprocessing import Postprocessing, classes_to_clean, write_postprocessing
from samadapt.predicted import read_predictions
from samadapt.runs import open_run, read_config
from samadapt.settings import SplitOptions
from samadapt.types import SamAdaptError

FAST = [
    "--head",
    "unet",
    "--set",
    "width=4",
    "--side",
    "48",
    "--batch-size",
    "2",
    "--steps",
    "2",
    "--device",
    "cpu",
]


@pytest.fixture
def phantom(tmp_path):
    """Four patients, whose file has two folds."""
    root = make_phantom(tmp_path / "data", patients=4, size=48, slices=3)
    names = open_dataset(root).ids
    half = len(names) // 2
    parts = [{"train": names[:half], "val": names[half:]}, {"train": names[half:], "val": names[:half]}]
    (root / "splits_final.json").write_text(json.dumps(parts))
    return root


def type_(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def run_folder(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_folds_are_predicted_again_with_another_clean_up(phantom, tmp_path):
    words = ("train", phantom, "--fold", "all", "--select", "1", "--out", tmp_path / "cv", *FAST)
    type_(*words)
    chosen = tmp_path / "cv" / "predictions" / "fold_0"
    assert read_predictions(chosen).keep_largest == ()
    name = open_dataset(phantom).classes[1]
    write_postprocessing(tmp_path / "cv" / "fold_0", Postprocessing((name,)))
    untouched = (tmp_path / "cv" / "predictions" / "fold_1" / "predictions.json").stat().st_mtime_ns
    type_(*words)
    assert read_predictions(chosen).keep_largest == (name,)
    assert (tmp_path / "cv" / "predictions" / "fold_1" / "predictions.json").stat().st_mtime_ns == untouched
    type_("predict", tmp_path / "cv" / "fold_0", phantom, "--subset", "all", "--out", chosen, "--overwrite")
    type_(*words)
    assert read_predictions(chosen).subset is None


def test_folds_are_predicted_and_scored_from_files_as_they_were_opened(phantom, tmp_path):
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    for folder in ("imagesTr", "labelsTr"):
        file = sorted((phantom / folder).iterdir())[0]
        shutil.move(file, outside / f"{folder}_{file.name}")
        file.symlink_to(outside / f"{folder}_{file.name}")
    taken = ("--allow-outside", "--modality", "MR", "--anonymous", tmp_path / "key.csv")
    type_("train", phantom, "--fold", "all", *taken, "--out", tmp_path / "cv", *FAST)
    summary = json.loads((tmp_path / "cv" / "scores.summary.json").read_text())
    assert sorted(summary["folds"]) == ["fold_0", "fold_1"]


def test_all_folds_are_not_put_into_the_run_folder_of_one_training(phantom, tmp_path):
    run = run_folder(tmp_path / "run")
    with pytest.raises(SamAdaptError, match="is the run folder of a single training"):
        type_("train", phantom, "--fold", "all", "--out", run, *FAST)
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_a_folder_that_holds_other_run_folders_is_not_overwritten(tmp_path):
    run_folder(tmp_path / "cv" / "fold_0")
    with pytest.raises(SamAdaptError, match="--overwrite deletes run folders only"):
        open_run(tmp_path / "cv", {}, overwrite=True)
    mixed = run_folder(tmp_path / "mixed")
    run_folder(mixed / "fold_0")
    with pytest.raises(
        SamAdaptError, match=r"holds other run folders \(fold_0\), which --overwrite would delete"
    ):
        open_run(mixed, {}, overwrite=True)
    assert (mixed / "fold_0" / "config.json").is_file()


def test_the_runs_in_a_folder_of_folds_are_named(tmp_path):
    for fold in range(2):
        run_folder(tmp_path / "cv" / f"fold_{fold}")
    with pytest.raises(
        SamAdaptError, match=r"holds run folders: fold_0, fold_1; name one of them, such as .*fold_0"
    ):
        read_config(tmp_path / "cv")


def test_a_fold_is_a_number_or_all():
    with pytest.raises(SamAdaptError, match=r"fold is 'All'; expected a whole number from 0 on, or all$"):
        SplitOptions(fold="All")


def test_all_stands_alone_beside_the_classes_to_clean_up():
    with pytest.raises(SamAdaptError, match="kept of all, 1; 'all' stands alone"):
        classes_to_clean(("all", "1"), ("background", "1", "2"))
    with pytest.raises(SamAdaptError, match="kept of 1, none; 'none' stands alone"):
        classes_to_clean(("1", "none"), ("background", "1", "2"))


def test_a_first_look_is_no_study_from_a_file(phantom, tmp_path):
    (tmp_path / "grid.toml").write_text('learners = ["unet"]\n')
    with pytest.raises(SamAdaptError, match="--quick is a study of its own"):
        type_("experiment", phantom, "--quick", "--grid", tmp_path / "grid.toml", "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_first_look_asks_for_no_more_patients_than_there_are(phantom):
    data = open_dataset(phantom)
    assert quick_settings("segmentation", data)["labels"] == [2]
    names = [name for name in data.ids if data.groups[name] == data.groups[data.ids[0]]]
    parts = [{"train": names, "val": [name for name in data.ids if name not in names]}]
    (phantom / "splits_final.json").write_text(json.dumps(parts))
    assert quick_settings("segmentation", open_dataset(phantom))["labels"] == [1]
