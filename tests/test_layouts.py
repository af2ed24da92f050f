"""Masks are never images, several masks of one image are one label, and nothing is left out without a word."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samadapt import io
from samadapt.check import check
from samadapt.datasets import Dataset, open_dataset
from samadapt.evaluation import evaluate_folder
from samadapt.features import FeatureStore
from samadapt.folders import predict_folder
from samadapt.learner import Learner, fit
from samadapt.training import TrainConfig
from samadapt.types import SamAdaptError, SamAdaptWarning

RNG = np.random.default_rng(0)
AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])


def picture(path: Path, box: tuple[int, int] | None = (4, 12), **options: int) -> Path:
    """A bright square on noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 90, (24, 20)).astype(np.uint8)
    if box:
        array[box[0] : box[1], 5:15] += 120
    Image.fromarray(array).save(path, **options)
    return path


def mask(path: Path, box: tuple[int, int] | None = (4, 12), value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((24, 20), np.uint8)
    if box:
        array[box[0] : box[1], 5:15] = value
    Image.fromarray(array).save(path)
    return path


def volume(path: Path, label: bool = False, rows: slice = slice(2, 7), value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = np.zeros((12, 10, 3), np.uint8)
    inside[rows, 3:8] = value
    array = inside if label else (RNG.normal(size=inside.shape) + 9 * (inside > 0)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def busi(root: Path) -> Path:
    """As downloaded: pictures, masks beside them, a second mask for a second lesion, empty masks of what is normal."""
    for kind in ("benign", "malignant", "normal"):
        for number in range(1, 5):
            two = kind == "benign" and number == 1
            box = None if kind == "normal" else (4, 12)
            picture(root / kind / f"{kind} ({number}).png", box)
            mask(root / kind / f"{kind} ({number})_mask.png", box)
            if two:
                mask(root / kind / f"{kind} ({number})_mask_1.png", (15, 20))
    return root


def class_pairs(root: Path) -> Path:
    for kind in ("a", "b"):
        for number in range(4):
            picture(root / kind / "images" / f"{number}.png")
            mask(root / kind / "masks" / f"{number}.png")
    return root


def bids(root: Path) -> Path:
    for number in range(1, 5):
        name = f"sub-{number:02d}_ses-1"
        place = f"sub-{number:02d}/ses-1/anat"
        volume(root / place / f"{name}_T1w.nii.gz")
        volume(root / "derivatives/manual" / place / f"{name}_desc-manual_dseg.nii.gz", label=True, value=3)
    (root / "derivatives/manual/desc-manual_dseg.tsv").write_text("index\tname\n0\tbackground\n3\tlesion\n")
    return root


def organs(root: Path) -> Path:
    for number in range(4):
        case = root / f"s{number:04d}"
        volume(case / "ct.nii.gz")
        volume(case / "segmentations/liver.nii.gz", label=True, rows=slice(2, 5))
        if number:
            volume(case / "segmentations/spleen.nii.gz", label=True, rows=slice(5, 8))
    return root


@contextlib.contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SamAdaptWarning)
        yield


# ---------------------------------------------------------------- what is read as what


def test_masks_beside_the_pictures_of_a_class_are_no_pictures(tmp_path: Path) -> None:
    with silence():
        by_mask = open_dataset(busi(tmp_path))
    assert by_mask.layout == "masks beside images" and by_mask.task == "segmentation"
    assert len(by_mask) == 12 and len(by_mask.labelled_ids) == 12
    assert int(by_mask.label("benign (1)").sum()) == 10 * (8 + 5)  # type: ignore[union-attr]  # both lesions
    assert int(by_mask.label("normal (1)").sum()) == 0  # type: ignore[union-attr]
    with pytest.warns(
        SamAdaptWarning, match=r"left out of .*: 13 images in no case \(benign/benign \(1\)_mask"
    ):
        by_class = open_dataset(tmp_path, task="classification")
    assert by_class.classes == ("benign", "malignant", "normal") and by_class.ids == by_mask.ids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_dataset(tmp_path, prefer="classification").task == "classification"


def test_class_folders_with_images_and_masks_serve_both_tasks(tmp_path: Path) -> None:
    with silence():
        by_mask = open_dataset(class_pairs(tmp_path))
    assert (
        by_mask.layout == "images and masks" and by_mask.ids[0] == "a__0" and len(by_mask.labelled_ids) == 8
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_class = open_dataset(tmp_path, task="classification")
    assert by_class.classes == ("a", "b") and len(by_class) == 8


def test_label_maps_of_derivatives(tmp_path: Path) -> None:
    with silence():
        data = open_dataset(bids(tmp_path))
    assert data.layout == "BIDS" and data.classes == ("background", "lesion")
    assert data.groups["sub-01_ses-1"] == "sub-01" and data.label("sub-01_ses-1").max() == 1  # type: ignore[union-attr]
    for number in range(1, 5):
        volume(tmp_path / f"sub-{number:02d}/ses-1/anat/sub-{number:02d}_ses-1_FLAIR.nii.gz")
    with pytest.raises(SamAdaptError, match=r"2 channels \(FLAIR, T1w\).*--channels 0"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, channels=["T1w"]).case("sub-02_ses-1").image.shape[0] == 1
    volume(tmp_path / "derivatives/other/sub-01_ses-1_space-T1w_dseg.nii.gz", label=True)
    with pytest.raises(SamAdaptError, match="are label maps of the same case 'sub-01_ses-1'"):
        open_dataset(tmp_path, channels=["T1w"])


def test_a_mask_for_each_organ_becomes_one_label(tmp_path: Path) -> None:
    with silence():
        data = open_dataset(organs(tmp_path))
        labels = {case.id: case.label.numpy() for case in data}  # type: ignore[union-attr]
    assert data.layout == "TotalSegmentator" and data.classes == ("background", "liver", "spleen")
    assert data.window == "ct"
    assert set(np.unique(labels["s0000"])) == {0, 1} and set(np.unique(labels["s0001"])) == {0, 1, 2}
    before = data.hash
    volume(tmp_path / "s0001/segmentations/spleen.nii.gz", label=True, rows=slice(4, 8))
    changed = open_dataset(tmp_path)
    assert changed.hash != before
    with pytest.warns(SamAdaptWarning, match="masks of different classes overlap"):
        label = changed.label("s0001").numpy()  # type: ignore[union-attr]
    assert (label == 1).sum() == (labels["s0001"] == 1).sum()  # the first in the classes' order is kept


@pytest.mark.parametrize("word", ["_seg", "_label", "-label", "_mask", "_gt"])
def test_words_of_masks_beside_volumes(tmp_path: Path, word: str) -> None:
    for name in ("p1_t", "p2_t"):
        volume(tmp_path / f"{name}.nii.gz")
        volume(tmp_path / f"{name}{word}.nii.gz", label=True)
    with silence():
        data = open_dataset(tmp_path)
    assert data.ids == ("p1_t", "p2_t") and data.labelled_ids == data.ids


def test_a_mask_whose_image_is_lost_is_no_image(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        picture(tmp_path / "flat" / f"{name}.png")
        mask(tmp_path / "flat" / f"{name}_mask.png")
    (tmp_path / "flat" / "z.png").unlink()
    with pytest.raises(SamAdaptError, match=r"z_mask\.png has no image; expected .*z\."):
        open_dataset(tmp_path / "flat")
    busi(tmp_path / "busi")
    (tmp_path / "busi" / "benign" / "benign (2).png").unlink()
    with pytest.warns(SamAdaptWarning, match="left out"):
        data = open_dataset(tmp_path / "busi", task="classification")
    assert len(data) == 11 and not any("mask" in case for case in data.ids)


def test_masks_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        picture(tmp_path / f"{name}.png")
        mask(tmp_path / f"{name}_mask.png", (4, 12), value=1)
        mask(tmp_path / f"{name}_mask_1.png", (10, 16), value=2)
    with pytest.raises(
        SamAdaptError, match=r"x_mask_1\.png and the other masks of case 'x' give some voxels different"
    ):
        open_dataset(tmp_path).case("x")


# ---------------------------------------------------------------- what is left out


def test_formats_that_pillow_reads(tmp_path: Path) -> None:
    for suffix in ("bmp", "gif", "webp"):
        folder = tmp_path / suffix
        picture(folder / f"images/x.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
        mask(folder / f"masks/x.{'gif' if suffix == 'gif' else 'png'}")
        mask(folder / f"masks/y.{'gif' if suffix == 'gif' else 'png'}", None)
        picture(folder / f"images/y.{suffix}")
        with silence():
            data = open_dataset(folder)
        assert len(data) == 2 and data.case("x").image.shape[-2:] == (24, 20)
        assert int(data.label("x").sum()) == 80 and int(data.label("y").sum()) == 0  # type: ignore[union-attr]


def test_a_gif_mask_keeps_its_grey_values(tmp_path: Path) -> None:
    """Saving renumbers the palette: a mask of 0 and 2 has the indices 0 and 1."""
    array = np.zeros((8, 8), np.uint8)
    array[2:5] = 2
    Image.fromarray(array).convert("P").save(tmp_path / "x.gif")
    assert io.label_values(tmp_path / "x.gif") == {0: 40, 2: 24}


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        for number in range(5):
            picture(tmp_path / kind / f"{kind}{number}.png")
        picture(tmp_path / kind / ".ipynb_checkpoints" / f"{kind}0-checkpoint.png")
        picture(tmp_path / kind / f"._{kind}1.png")
        (tmp_path / kind / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "a" / "scan.mha").write_bytes(b"x")
    (tmp_path / "a" / "lost.png").symlink_to("/annex/not-fetched")
    picture(tmp_path / "overview.png")
    with pytest.warns(SamAdaptWarning) as said:
        data = open_dataset(tmp_path)
    assert len(said) == 1 and len(data) == 10
    text = str(said[0].message)
    for part in (
        "1 broken links (a/lost.png)",
        "1 in formats that are not read (a/scan.mha: convert them to NIfTI)",
        "4 hidden, or copies that a program made",
        "1 images in no case (overview.png)",
    ):
        assert part in text
    assert "Thumbs" not in text
    (finding,) = [f for f in check(data) if "left out" in f.found]
    assert finding.severity == "warning" and "1 broken links (a/lost.png)" in finding.found


def test_a_folder_of_files_that_are_not_read_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.mha").write_bytes(b"x")
    with pytest.raises(SamAdaptError, match=r"it has 1 in formats that are not read .*convert them to NIfTI"):
        open_dataset(tmp_path)


def own_folders(root: Path) -> None:
    run, maps = root / "runs/a", root / "features/123/x0-abc"
    for folder in (run, maps, root / "predictions/a/attention"):
        folder.mkdir(parents=True)
    for name in ("config.json", "environment.json", "split.json"):
        (run / name).write_text("{}")
    (maps / "frame.json").write_text("{}")
    np.save(maps / "neck@1.npy", np.zeros(3))
    (root / "predictions/a/predictions.json").write_text(json.dumps({}))
    picture(root / "predictions/a/attention/x0.png")


@pytest.mark.parametrize("layout", ["classes", "pairs", "table", "beside"])
def test_what_samadapt_wrote_into_the_data_folder_is_no_data(tmp_path: Path, layout: str) -> None:
    for number in range(6):
        kind = "ab"[number % 2]
        place = {"classes": kind, "pairs": "images", "table": "images", "beside": "."}[layout]
        picture(tmp_path / place / f"x{number}.png")
        if layout in ("pairs", "beside"):
            mask(tmp_path / ("masks" if layout == "pairs" else ".") / f"x{number}_mask.png")
    if layout == "table":
        (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"x{n},{n % 2}\n" for n in range(6)))
    with silence():
        before = open_dataset(tmp_path)
        own_folders(tmp_path)
        after = open_dataset(tmp_path)
    assert after == before and after.hash == before.hash and len(after) == 6


# ---------------------------------------------------------------- from files to scores


@pytest.mark.parametrize(
    ("make", "head"),
    [(busi, "unet"), (busi, "plain"), (class_pairs, "unet"), (bids, "unet"), (organs, "unet")],
)
def test_such_folders_train_predict_and_evaluate(tmp_path: Path, make, head: str) -> None:  # type: ignore[no-untyped-def]
    options = {"width": 2} if head == "unet" else {"backbone": "resnet18", "image_size": 32}
    learner = Learner(head, "pixels", side=32, options=options, augment="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamAdaptWarning)
        data: Dataset = open_dataset(
            make(tmp_path / "data"), prefer="classification" if head == "plain" else None
        )
        config = TrainConfig(steps=2, batch_size=2, device="cpu")
        run = fit(learner, data, data.split(), config, tmp_path / "run", FeatureStore(tmp_path / "features"))
        report = predict_folder(run, tmp_path / "data", tmp_path / "p", subset="all", device="cpu")
        found = evaluate_folder(tmp_path / "p", tmp_path / "data")
    assert report.done == len(data) and not report.failed
    assert {score.case for score in found.scores} == set(data.ids)


def test_masks_beside_scans_are_not_predicted_and_are_found_as_truth(tmp_path: Path) -> None:
    """`predict PATIENT_FOLDER` leaves the truth alone; `evaluate` finds NAME_gt for NAME."""
    data = bids(tmp_path / "data")
    learner = Learner("unet", "pixels", side=32, options={"width": 2}, augment="none")
    opened = open_dataset(data)
    run = fit(
        learner, opened, opened.split(), TrainConfig(steps=1, batch_size=2, device="cpu"), tmp_path / "run"
    )
    for name in ("patient1_frame01", "patient1_frame12"):
        volume(tmp_path / "patient1" / f"{name}.nii.gz")
        volume(tmp_path / "truth" / f"{name}_gt.nii.gz", label=True, value=3)
    volume(tmp_path / "patient1" / "patient1_frame01_gt.nii.gz", label=True)
    (tmp_path / "patient1" / "Thumbs.db").write_bytes(b"x")
    scans = tmp_path / "patient1"
    (scans / "series.dcm").write_bytes(b"x")
    with pytest.warns(SamAdaptWarning, match=r"left out of"):
        report = predict_folder(run, scans, tmp_path / "p", device="cpu")
    assert report.done == 2 and not (tmp_path / "p" / "patient1_frame01_gt.nii.gz").exists()
    found = evaluate_folder(tmp_path / "p", tmp_path / "truth")
    assert {score.case for score in found.scores} == {"patient1_frame01", "patient1_frame12"}
    assert set(found.patients.values()) == {"patient1"}
