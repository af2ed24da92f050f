"""Prediction and evaluation of folders obey what training knew."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from fakes import tiny_model
from samadapt import folders
from samadapt.datasets import Split, open_dataset, open_like
from samadapt.evaluation import Evaluation, evaluate_folder, write_evaluation
from samadapt.folders import predict_folder
from samadapt.opening import Opening
from samadapt.prediction import Classifier, Segmenter
from samadapt.types import SamAdaptError, SamAdaptWarning
from test_prediction import BrightHead, MeanHead

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("tiny_encoder")


def picture(path: Path, depth: type = np.uint8, size: int = 24) -> np.ndarray:
    """A bright square on dark noise; its mask comes back."""
    mask = np.zeros((size, size), np.uint8)
    top, left = RNG.integers(2, 8, 2)
    mask[top : top + 10, left : left + 12] = 1
    image = RNG.integers(0, 60, mask.shape) + 180 * mask
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = 257 if depth is np.uint16 else 1
    Image.fromarray((image * scale).astype(depth)).save(path)
    return mask


def pairs(folder: Path, names: list[str], foreground: int = 255) -> Path:
    for name in names:
        mask = picture(folder / "images" / f"{name}.png")
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask * foreground).save(folder / "masks" / f"{name}.png")
    return folder


def volume(path: Path, spacing: float = 5.0) -> np.ndarray:
    label = np.zeros((14, 12, 3), np.uint8)
    label[3:9, 4:9] = 1
    image = (RNG.normal(size=label.shape) + 20 * label).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image, np.diag([1, 1, spacing, 1.0])), path)
    return label


@pytest.fixture
def a_run(tmp_path, monkeypatch):
    """Makes a run folder whose model calls bright pixels the class 1, as if it had been trained on such a data set."""

    def make(opening: Opening, **split: Any) -> Path:
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        (run / "head.safetensors").write_bytes(b"weights")
        lists = {part: tuple(split.get(part, ())) for part in ("train", "select", "val")}
        known = Split(
            **lists,
            pool=(),
            patients=(),
            labels=None,
            seed=0,
            rule="",
            patient_of=split.get("patient_of", {}),
        )
        (run / "split.json").write_text(json.dumps(known.to_json()))
        if opening.task == "segmentation":
            model = Segmenter(tiny_model(BrightHead(), side=64), opening)
        else:
            model = Classifier(tiny_model(MeanHead()), opening)
        monkeypatch.setattr(folders, "load_run", lambda *_: model)
        return run

    return make


def dice(found: Evaluation) -> float:
    return next(row.mean for row in found.summary if row.metric == "dsc")


PICTURES = Opening(
    "segmentation",
    ("background", "foreground"),
    depth="uint8",
    window="none",
    label_values={0: 0, 255: 1},
)
VOLUMES = Opening("segmentation", ("background", "block"), channel_names=("MRI",), label_values={0: 0, 1: 1})


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["IMG_0001.png", "IMG_0002.png", "IMG_0004.png"], ["IMG_0001", "IMG_0002", "IMG_0004"]),
        (["IMG_0000.png", "IMG_0001.png"], ["IMG_0000", "IMG_0001"]),
        (["a.png", "b_0001.png"], ["a", "b_0001"]),
    ],
)
def test_every_picture_has_an_answer_of_its_own(a_run, tmp_path, files, expected):
    for name in files:
        picture(tmp_path / "scans" / name)
    report = predict_folder(a_run(PICTURES), tmp_path / "scans", tmp_path / "out", device="cpu")
    assert report.done == len(files)
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == expected


def test_every_volume_has_an_answer_of_its_own(a_run, tmp_path):
    run = a_run(VOLUMES)
    for name in ("pat_0001", "pat_0002"):
        volume(tmp_path / "scans" / f"{name}.nii.gz")
    predict_folder(run, tmp_path / "scans", tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "pat_0001.nii.gz",
        "pat_0002.nii.gz",
        "predictions.json",
    }
    volume(tmp_path / "one" / "scan_0000.nii.gz")  # nnU-Net's name of a first channel
    predict_folder(run, tmp_path / "one" / "scan_0000.nii.gz", tmp_path / "out1")
    assert (tmp_path / "out1" / "scan.nii.gz").is_file()


def test_two_cases_of_one_name_are_refused_before_anything_is_written(a_run, tmp_path):
    picture(tmp_path / "scans" / "a.png")
    picture(tmp_path / "scans" / "a.tif")
    with pytest.raises(SamAdaptError, match="the same name"):
        predict_folder(a_run(PICTURES), tmp_path / "scans", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what training knew


def test_other_channels_and_depths_are_refused(a_run, tmp_path):
    run = a_run(VOLUMES)
    for channel in range(3):
        volume(tmp_path / "channels" / f"pat_{channel:04d}.nii.gz")
    with pytest.raises(SamAdaptError, match=r"3 channels of one case by their names; expected 1 \(MRI\)"):
        predict_folder(run, tmp_path / "channels", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run = a_run(PICTURES)
    picture(tmp_path / "deep.png", np.uint16)
    with pytest.raises(SamAdaptError, match=r"deep\.png is a 16-bit picture.* of an 8-bit picture"):
        predict_folder(run, tmp_path / "deep.png", tmp_path / "out")
    Image.fromarray(RNG.integers(0, 255, (24, 24, 3), np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(SamAdaptError, match=r"colour\.png has 3 channels; expected 1"):
        predict_folder(run, tmp_path / "colour.png", tmp_path / "out")
    volume(tmp_path / "volume.nii.gz")
    with pytest.raises(
        SamAdaptError, match="is a volume, and the intensities shown are those of an 8-bit picture"
    ):
        predict_folder(run, tmp_path / "volume.nii.gz", tmp_path / "out")


def test_grey_saved_as_colours_is_grey(tmp_path):
    grey = RNG.integers(0, 255, (24, 24), np.uint8)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "grey.png")
    case = PICTURES.read_case([tmp_path / "grey.png"], "grey")
    assert case.image.shape == (1, 1, 24, 24) and np.array_equal(case.image[0, 0].numpy(), grey)
    coloured = Opening(
        "segmentation", ("background", "x"), depth="uint8", channel_names=("red", "green", "blue")
    )
    Image.fromarray(grey).save(tmp_path / "one.png")
    with pytest.warns(SamAdaptWarning, match="grey pictures are used as colours"):
        assert coloured.read_case([tmp_path / "one.png"], "one").image.shape == (3, 1, 24, 24)


def test_one_channel_of_several_is_found_by_its_name(tmp_path):
    folder = tmp_path / "data"
    for number, value in ((0, 100.0), (1, 200.0)):
        label = volume(folder / "imagesTr" / f"a_{number:04d}.nii.gz")
        image = (RNG.normal(size=label.shape) + value).astype(np.float32)
        nib.save(
            nib.Nifti1Image(image, np.diag([1, 1, 5, 1.0])), folder / "imagesTr" / f"a_{number:04d}.nii.gz"
        )
    about = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "block": 1},
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    opening = open_dataset(folder, channels=["T2"]).opening
    assert open_dataset(folder, channels=["T2"]).case("a").image.mean() > 150
    (folder / "dataset.json").write_text(json.dumps(about | {"channel_names": {"0": "T2", "1": "T1"}}))
    assert open_like(folder, opening).case("a").image.mean() < 150  # T2 is the first file there
    (folder / "dataset.json").write_text(json.dumps(about | {"channel_names": {"0": "PD", "1": "FLAIR"}}))
    with pytest.warns(SamAdaptWarning, match="taken in this order"):
        assert open_like(folder, opening).case("a").image.mean() > 150
    (folder / "dataset.json").write_text(json.dumps(about | {"labels": {"background": 0, "other": 1}}))
    with pytest.raises(SamAdaptError, match="has the classes background, other; expected background, block"):
        open_like(folder, opening)


def test_class_folders_keep_the_numbers_of_the_training(tmp_path):
    for kind in ("benign", "malignant", "normal"):
        for number in range(2):
            picture(tmp_path / "all" / kind / f"{kind}{number}.png")
            if kind != "benign":
                picture(tmp_path / "two" / kind / f"{kind}{number}.png")
    opening = open_dataset(tmp_path / "all").opening
    two = open_like(tmp_path / "two", opening)
    assert two.classes == ("benign", "malignant", "normal")
    assert [int(two.label(i)) for i in two.ids] == [1, 1, 2, 2]  # type: ignore[arg-type]
    picture(tmp_path / "two" / "odd" / "odd.png")
    with pytest.raises(SamAdaptError, match="expected benign, malignant, normal"):
        open_like(tmp_path / "two", opening)


def test_an_opening_comes_back_from_disk():
    opening = Opening(
        "segmentation", ("background", "a"), channels=(1,), channel_names=("T1", "T2"), label_values={3: 255}
    )
    again = Opening.from_json(json.loads(json.dumps(opening.to_json())), Path("config.json"))
    assert again == opening
    with pytest.raises(SamAdaptError, match=r"config\.json does not say how its files were read"):
        Opening.from_json({"task": "segmentation"}, Path("config.json"))


# ---------------------------------------------------------------- which cases


def test_a_data_set_is_one_whatever_lies_beside_it(a_run, tmp_path):
    data = pairs(tmp_path / "data", ["a", "b", "c", "d"])
    run = a_run(open_dataset(data).opening, train=["a"], val=["c", "d"])
    picture(data / "readme_figure.png")
    with pytest.warns(SamAdaptWarning) as said:
        assert predict_folder(run, data, tmp_path / "val").done == 2
    texts = [str(warning.message) for warning in said]
    assert any("of the 4 cases of 'data' the 2 that were kept for scoring" in text for text in texts)
    assert any("left out" in text and "1 images in no case (readme_figure.png)" in text for text in texts)
    assert predict_folder(run, data, tmp_path / "train", subset="train").done == 1
    assert predict_folder(run, data, tmp_path / "all", subset="all").done == 4
    with pytest.raises(SamAdaptError, match=r"no case .* of the part 'test'; it has train, val"):
        predict_folder(run, data, tmp_path / "none", subset="test")
    with pytest.raises(SamAdaptError, match="not a data set, so it has no subset 'val'"):
        predict_folder(run, data / "images", tmp_path / "none", subset="val")
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------- bad scans, interruptions


def test_predictions_are_not_taken_for_images(a_run, tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/predictions.json").write_text("{}")
    with pytest.raises(
        SamAdaptError, match="predictions holds predictions of samadapt and no images; give the images"
    ):
        predict_folder(a_run(PICTURES), tmp_path / "predictions", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bad_scan_does_not_stop_the_others(a_run, tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / "scans" / f"{name}.png")
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / "scans" / "b.png")
    report = predict_folder(a_run(PICTURES), tmp_path / "scans", tmp_path / "out")
    assert report.done == 2 and list(report.failed) == ["b"] and "constant" in report.failed["b"]
    note = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert note["finished"] and list(note["failed"]) == ["b"]
    pairs(tmp_path / "truth", ["a", "b", "c"])
    found = evaluate_folder(tmp_path / "out", tmp_path / "truth" / "masks")
    assert any("1 more cases could not be predicted" in text and "'b'" in text for text in found.notes)


def test_a_bad_picture_does_not_stop_a_classifier(a_run, tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / "scans" / f"{name}.png")
    (tmp_path / "scans" / "a.png").write_bytes(b"not a picture")
    opening = Opening("classification", ("dark", "bright"), depth="uint8", window="none")
    report = predict_folder(a_run(opening), tmp_path / "scans", tmp_path / "out")
    assert report.done == 2 and list(report.failed) == ["a"]
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["b", "c"]


def test_an_interrupted_prediction_is_not_scored_and_goes_on(a_run, tmp_path, monkeypatch):
    data = pairs(tmp_path / "data", ["a", "b", "c"])
    run, out = a_run(open_dataset(data).opening), tmp_path / "out"
    written, predict_to = [], Segmenter.predict_to

    def interrupted(self, case, *args, **answers):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(case.id)
        predict_to(self, case, *args, **answers)

    monkeypatch.setattr(Segmenter, "predict_to", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(run, data, out)
    with pytest.raises(SamAdaptError, match="did not finish: 2 of 3 cases are there; run the same"):
        evaluate_folder(out, data)
    with pytest.raises(SamAdaptError, match="is not empty"):
        predict_folder(run, data, out, subset="all")  # another command does not go on with it
    monkeypatch.setattr(
        Segmenter, "predict_to", lambda *a, **k: (written.append(a[1].id), predict_to(*a, **k))
    )
    assert predict_folder(run, data, out).done == 3
    assert written == ["a", "b", "c"]
    assert dice(evaluate_folder(out, data)) > 0.9


def test_old_and_edited_notes_are_refused(a_run, tmp_path):
    data = pairs(tmp_path / "data", ["a", "b"])
    out = tmp_path / "out"
    predict_folder(a_run(open_dataset(data).opening), data, out)
    good = (out / "predictions.json").read_text()
    for text, message in (
        ('{"cases": null}', "did not finish"),
        ('{"cases": 3, "classes": []}', "another version"),
        ("{", "cannot be read"),
        (good.replace('"window"', '"widow"'), "does not say how its files were read"),
    ):
        (out / "predictions.json").write_text(text)
        with pytest.raises(SamAdaptError, match=message):
            evaluate_folder(out, data)
    (out / "predictions.json").write_text(good)
    (out / "a.png").rename(out / "strange.png")
    with pytest.raises(SamAdaptError, match="1 label maps are missing, the first is 'a' and 1 were added"):
        evaluate_folder(out, data)


# ---------------------------------------------------------------- evaluation


def test_a_folder_of_masks_scores_as_the_data_set(a_run, tmp_path):
    """The coding of the masks, 0 and 255, is the training's."""
    data = pairs(tmp_path / "data", ["a", "b", "c"])
    predict_folder(a_run(open_dataset(data).opening), data, tmp_path / "out")
    with_data, with_masks = (evaluate_folder(tmp_path / "out", truth) for truth in (data, data / "masks"))
    assert dice(with_data) > 0.9 and with_data.scores == with_masks.scores
    pairs(tmp_path / "other", ["a", "b", "c"], foreground=1)
    with pytest.raises(SamAdaptError, match=r"has the value 1 .*declares"):
        evaluate_folder(tmp_path / "out", tmp_path / "other" / "masks")


@pytest.mark.parametrize("rule", ["(p[0-9])", "table"])
def test_patients_are_those_of_the_training(a_run, tmp_path, rule):
    names = [f"p{n // 2}x{n % 2}" for n in range(6)]
    data = pairs(tmp_path / "data", names)
    group = rule
    if rule == "table":
        group = str(tmp_path / "groups.csv")
        Path(group).write_text("case,patient\n" + "".join(f"{n},{n[:2]}\n" for n in names))
    opened = open_dataset(data, group=group)
    patients = {case: patient for case, patient in opened.groups.items()}
    run = a_run(opened.opening, train=names[:2], val=names[2:], patient_of=patients)
    predict_folder(run, data, tmp_path / "out", subset="all")
    for truth in (data, data / "masks"):
        found = evaluate_folder(tmp_path / "out", truth)
        assert set(found.patients.values()) == {"p0", "p1", "p2"}
        assert {row.n_groups for row in found.summary} == {3}
        assert found.notes == (
            "2 of these 6 cases trained the model (the first is 'p0x0'): their scores say nothing about new cases",
        )
    if rule == "table":  # the table is gone: what the run recorded is used, and that is said
        Path(group).unlink()
        with pytest.warns(SamAdaptWarning, match="6 have the patient that was recorded with the run"):
            predict_folder(run, data, tmp_path / "again", subset="all")
        assert len(set(evaluate_folder(tmp_path / "again", data).patients.values())) == 3
    predict_folder(run, data / "images", tmp_path / "loose")
    assert len(set(evaluate_folder(tmp_path / "loose", data / "masks").patients.values())) == 3


def test_the_label_maps_of_another_program_are_scored_against_a_data_set_of_two_channels(tmp_path):
    folder = tmp_path / "data"
    for channel in range(2):
        label = volume(folder / "imagesTr" / f"a_{channel:04d}.nii.gz")
    for place in (folder / "labelsTr", tmp_path / "predictions"):
        place.mkdir()
        nib.save(nib.Nifti1Image(label, np.diag([1, 1, 5, 1.0])), place / "a.nii.gz")
    about = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "block": 1},
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    assert dice(evaluate_folder(tmp_path / "predictions", folder)) == 1.0
    with pytest.raises(SamAdaptError, match="does not say what its classes are called"):
        evaluate_folder(tmp_path / "predictions", folder / "labelsTr")


def test_scores_replace_only_what_was_written_for_these_predictions(a_run, tmp_path):
    data = pairs(tmp_path / "data", ["a", "b"])
    run = a_run(open_dataset(data).opening)
    evaluations = {}
    for name in ("one", "two"):
        predict_folder(run, data, tmp_path / name)
        evaluations[name] = evaluate_folder(tmp_path / name, data)
    one, two = tmp_path / "one", tmp_path / "two"
    assert write_evaluation(evaluations["one"], one, data) == one / "scores.csv"
    write_evaluation(evaluations["one"], one, data)  # its own table again
    summary = json.loads((one / "scores.summary.json").read_text())
    assert summary["patients"] == {"a": "a", "b": "b"} and summary["summary"][0]["metric"] == "dsc"
    for out in (one / "scores.csv", tmp_path / "mine.csv"):
        (tmp_path / "mine.csv").write_text("precious")
        with pytest.raises(SamAdaptError, match="is not a table that `evaluate` wrote for"):
            write_evaluation(evaluations["two"], two, data, out)
    assert (tmp_path / "mine.csv").read_text() == "precious"
    (one / "scores.csv").write_text("case,target,metric,value\n")  # edited since
    with pytest.raises(SamAdaptError, match="choose another --out"):
        write_evaluation(evaluations["one"], one, data)
    write_evaluation(evaluations["one"], one, data, overwrite=True)
    assert evaluate_folder(one, data).scores == evaluations["one"].scores  # the table is no label map


def test_a_case_from_its_channel_files_whatever_they_are_called(tmp_path):
    opening = Opening("segmentation", ("background", "block"), channel_names=("T1", "T2", "FLAIR"))
    for name in ("t1", "t2", "flair"):
        volume(tmp_path / f"{name}.nii.gz")
    model = Segmenter(tiny_model(BrightHead(), side=64), opening)
    case = model.case([tmp_path / f"{name}.nii.gz" for name in ("t1", "t2", "flair")])
    assert case.id == "t1" and case.image.shape[0] == 3


def test_a_format_that_is_not_read_says_what_to_do(a_run, tmp_path):
    (tmp_path / "scan.mha").write_bytes(b"x")
    run = a_run(VOLUMES)
    for given in (tmp_path / "scan.mha", tmp_path):
        with pytest.raises(SamAdaptError, match="convert them to NIfTI"):
            predict_folder(run, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
