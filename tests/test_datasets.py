"""Segmentation layouts told by content, patients, and the data set's own behaviour."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from samadapt.datasets import Dataset, open_dataset
from samadapt.datasets.patient_names import patients_by_name
from samadapt.types import SamAdaptError, SamAdaptWarning

LABELS = {"background": 0, "a": 1, "b": 2}


def scan(path: Path, shape: tuple[int, ...] = (6, 5, 3), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 5.0, 1.0])), path)
    return path


def mask(path: Path, values: tuple[int, ...] = (0, 1, 2), shape: tuple[int, ...] = (6, 5, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.resize(np.array(values, np.uint8), shape)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 5.0, 1.0])), path)
    return path


def picture(path: Path, values: tuple[int, ...] | None = None, mode: str = "L") -> Path:
    """Noise, or the given values over and over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        shape = (6, 8, 3) if mode == "RGB" else (6, 8)
        array = np.random.default_rng(len(path.name)).integers(0, 255, shape, dtype=np.uint8)
    else:
        array = np.resize(np.array(values, np.uint8), (6, 8))
    Image.fromarray(array).save(path)
    return path


def nnunet(root: Path, names: tuple[str, ...] = ("x1", "x2", "x3"), **about: Any) -> Path:
    for number, name in enumerate(names):
        scan(root / f"imagesTr/{name}_0000.nii.gz", seed=number)
        mask(root / f"labelsTr/{name}.nii.gz")
    content = {"channel_names": {"0": "MRI"}, "labels": LABELS, "file_ending": ".nii.gz", **about}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


# ---------------------------------------------------------------- nnU-Net and MSD


def test_nnunet(tmp_path: Path) -> None:
    data = open_dataset(nnunet(tmp_path, name="Heart"))
    assert (data.name, data.task, data.layout) == ("Heart", "segmentation", "nnU-Net raw")
    assert data.classes == ("background", "a", "b") and data.ids == ("x1", "x2", "x3") == data.labelled_ids
    assert data.window == "percentile" and data.channel_names == ("MRI",) and data.channels is None
    case = data.case("x2")
    assert case.image.shape == (1, 3, 5, 6) and case.label is not None and case.group == "x2"
    assert case.label.unique().tolist() == [0, 1, 2]


def test_nnunet_test_part_and_unlabelled(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "labelsTr/x3.nii.gz").unlink()
    scan(tmp_path / "imagesTs/y1_0000.nii.gz")
    data = open_dataset(tmp_path)
    assert data.labelled_ids == ("x1", "x2") and data.parts["y1"] == "test" and data["x3"].label is None
    split = data.split(val_fraction=0.5)
    assert set(split.train + split.val) == {"x1", "x2"} and "y1" not in split.pool + split.val
    assert "x3" in split.pool  # an image to pre-train on
    mask(tmp_path / "labelsTs/y1.nii.gz")
    split = open_dataset(tmp_path).split()
    assert split.val == ("y1",) and set(split.train) == {"x1", "x2"}


def test_nnunet_ct_and_ignore(tmp_path: Path) -> None:
    nnunet(tmp_path, channel_names={"0": "CT"}, labels={**LABELS, "ignore": 3})
    mask(tmp_path / "labelsTr/x1.nii.gz", (0, 1, 2, 3))
    data = open_dataset(tmp_path)
    assert data.window == "ct" and data.classes == ("background", "a", "b")
    assert data.case("x1").label.unique().tolist() == [0, 1, 2, 255]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({**LABELS, "whole": [1, 2]}, r"label 'whole' is a region \[1, 2\].*not supported"),
        ({"background": 0, "a": 2}, r"values in labels are \[0, 2\]; expected 0 \(background\), 1"),
        ({"background": 0, "a": 0}, "label 'a' has the value 0; expected a number of its own"),
        ({"background": 0, "a": "one"}, "label 'a' has the value 'one'"),
        ([], r"labels is \[\]"),
    ],
)
def test_nnunet_labels_that_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(SamAdaptError, match=message):
        open_dataset(nnunet(tmp_path, labels=labels))


def test_nnunet_files_that_do_not_fit(tmp_path: Path) -> None:
    nnunet(tmp_path)
    mask(tmp_path / "labelsTr/ghost.nii.gz")
    with pytest.raises(SamAdaptError, match=r"ghost\.nii\.gz has no image; expected .*ghost_0000\.nii\.gz"):
        open_dataset(tmp_path)
    (tmp_path / "labelsTr/ghost.nii.gz").unlink()
    nnunet(tmp_path, channel_names={"0": "T1", "1": "T2"})
    with pytest.raises(SamAdaptError, match=r"'x1' has the channels \[0\]; expected 2 .*add x1_0001"):
        open_dataset(tmp_path)
    (tmp_path / "imagesTr/x1_0000.nii.gz").rename(tmp_path / "imagesTr/x1.nii.gz")
    with pytest.raises(
        SamAdaptError, match=r"x1\.nii\.gz is not called CASE_0000\.nii\.gz as the 2 others are"
    ):
        open_dataset(tmp_path)
    nnunet(tmp_path, file_ending=".mha")
    with pytest.raises(SamAdaptError, match=r"file_ending is '\.mha'; known: \.nii"):
        open_dataset(tmp_path)
    nnunet(tmp_path, file_ending=".png")
    with pytest.raises(SamAdaptError, match=r"imagesTr holds no CASE_0000\.png"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(SamAdaptError, match=r"dataset\.json cannot be read as JSON"):
        open_dataset(tmp_path)


def test_undeclared_class_names_the_file(tmp_path: Path) -> None:
    nnunet(tmp_path)
    path = mask(tmp_path / "labelsTr/x2.nii.gz", (0, 1, 6))
    data = open_dataset(tmp_path)
    with pytest.raises(SamAdaptError, match=rf"{path.name} has the value 6 .*\[0, 1, 2\] = background, a, b"):
        data.case("x2")


def test_a_splits_file_of_another_kind(tmp_path: Path) -> None:
    nnunet(tmp_path)
    for content, message in (
        ([{"train": ["x1"]}], r"fold 0 is .*expected a list of"),
        ({"train": ["x1"], "val": []}, "expected a list of"),
        ([], "expected a list of"),
        ([{"train": ["x1"], "val": ["ghost"]}], "fold 0 names 'ghost', which is no case of the data set"),
        ([{"train": ["x1", "x2"], "val": ["x2"]}], "fold 0 has 'x2' in train and in val"),
        ([{"train": ["x1", "x1 "], "val": ["x2"]}], "fold 0 has 'x1' twice"),
    ):
        (tmp_path / "splits_final.json").write_text(json.dumps(content))
        with pytest.raises(SamAdaptError, match=rf"splits_final\.json.*{message}"):
            open_dataset(tmp_path)
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["x1"], "val": []}]))
    with pytest.raises(SamAdaptError, match=r"splits_final\.json .*fold 0 has no case in val"):
        open_dataset(tmp_path).split()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_names": ["MRI"]}, None),
        ({"channel_names": {"MRI": 0}}, None),
        ({"channel_names": "MRI"}, None),
        ({"training": [{"image": "a", "label": "b"}]}, None),  # left over from nnU-Net's first version
        ({"labels": {"0": "background", "1": "a", "2": "b"}}, None),
        ({"name": None}, None),
        ({"channel_names": {"0": "MRI", "2": "T2"}}, "channel_names is"),
        ({"channel_names": 3}, "channel_names is 3"),
        ({"channel_names": {"0": True}}, "channel_names is"),
        ({"channel_names": {"0": 5}}, "channel_names is"),
        ({"labels": {"background": 0, "a": 10**400}}, "label 'a' has the value 1000"),
        ({"channel_names": {}}, "channel_names is"),
        (
            {"labels": {"background": 1, "a": 0, "b": 2}},
            "labels gives background the value 1 and 'a' the value 0",
        ),
        ({"labels": {"background": 0, "a": 1, "b": "2x"}}, "label 'b' has the value '2x'"),
        ({"labels": {"background": 0, "mean": 1, "b": 2}}, "calls a class 'mean'"),
        ({"labels": {"background": 0, "": 1, "b": 2}}, "calls a class ''"),
    ],
)
def test_descriptions_of_other_shapes(tmp_path: Path, change: dict[str, Any], message: str | None) -> None:
    nnunet(tmp_path, **change)
    if message is None:
        data = open_dataset(tmp_path)
        assert data.channel_names == ("MRI",) and data.classes == ("background", "a", "b") and len(data) == 3
    else:
        with pytest.raises(SamAdaptError, match=message):
            open_dataset(tmp_path)


def test_descriptions_that_are_no_plain_json(tmp_path: Path) -> None:
    nnunet(tmp_path)
    good = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_bytes(good.encode("utf-16"))
    assert len(open_dataset(tmp_path)) == 3
    for text, message in (
        ("[" * 100_000, r"dataset\.json cannot be read as JSON"),
        (good.replace('"file_ending"', '"labels": {}, "file_ending"'), "the key 'labels' is there twice"),
        ("[1]", r"dataset\.json holds '\[1\]'; expected an object"),
    ):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(SamAdaptError, match=message):
            open_dataset(tmp_path)


def test_a_picture_in_one_file_of_three_channels(tmp_path: Path) -> None:
    """nnU-Net v2 keeps an RGB picture as CASE_0000.png."""
    (tmp_path / "imagesTr").mkdir()
    for name in ("a", "b"):
        array = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
        Image.fromarray(array).save(tmp_path / f"imagesTr/{name}_0000.png")
    content = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "x": 1},
        "file_ending": ".png",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    data = open_dataset(tmp_path)
    assert data.case("a").image.shape == (3, 1, 6, 8) and data.ids == ("a", "b")
    assert open_dataset(tmp_path, channels=["G"]).case("a").image.shape == (1, 1, 6, 8)


def test_channels_are_chosen(tmp_path: Path) -> None:
    names = {str(n): name for n, name in enumerate(("T1", "T2", "FLAIR", "ADC"))}
    nnunet(tmp_path, channel_names=names)
    for name in ("x1", "x2", "x3"):
        for channel in range(1, 4):
            scan(tmp_path / f"imagesTr/{name}_{channel:04d}.nii.gz", seed=channel)
    with pytest.raises(SamAdaptError, match=r"4 channels \(T1, T2, FLAIR, ADC\); an encoder sees one"):
        open_dataset(tmp_path)
    one = open_dataset(tmp_path, channels=["FLAIR"])
    assert one.channels == (2,) and one.case("x1").image.shape[0] == 1
    three = open_dataset(tmp_path, channels=[3, "T2", "0"])
    assert three.channels == (3, 1, 0)
    assert torch.equal(three.case("x1").image[1], open_dataset(tmp_path, channels=[1]).case("x1").image[0])
    for wrong in ("PD", 4, -1):
        with pytest.raises(SamAdaptError, match=f"no channel {wrong!r}; the data set has 0 T1"):
            open_dataset(tmp_path, channels=[wrong])


def test_msd(tmp_path: Path) -> None:
    for number in (1, 2):
        scan(tmp_path / f"imagesTr/la_{number:03d}.nii.gz")
        mask(tmp_path / f"labelsTr/la_{number:03d}.nii.gz")
    scan(tmp_path / "imagesTs/la_009.nii.gz")
    pairs = [
        {"image": f"./imagesTr/la_{n:03d}.nii.gz", "label": f"./labelsTr/la_{n:03d}.nii.gz"} for n in (1, 2)
    ]
    about = {
        "name": "Heart",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": pairs,
        "test": ["./imagesTs/la_009.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    data = open_dataset(tmp_path)
    assert data.layout == "MSD" and data.classes == ("background", "a", "b") and data.window == "ct"
    assert data.ids == ("la_001", "la_002", "la_009") and data.labelled_ids == ("la_001", "la_002")
    assert set(data.groups.values()) == set(data.ids)  # la_001 is not a frame of "la"
    # nnU-Net's first version stored the channel's number and did not list it
    (tmp_path / "imagesTr/la_001.nii.gz").rename(tmp_path / "imagesTr/la_001_0000.nii.gz")
    assert open_dataset(tmp_path).case("la_001").label is not None
    for test, message in (([3], "`test` has the item .3"), (None, ""), ([["imagesTs/none.nii.gz", "x"]], "")):
        (tmp_path / "dataset.json").write_text(json.dumps({**about, "test": test}))
        with pytest.raises(SamAdaptError, match=message) if message else contextlib.nullcontext():
            assert len(open_dataset(tmp_path)) == 2
    (tmp_path / "labelsTr/la_002.nii.gz").unlink()
    with pytest.raises(SamAdaptError, match=r"lists .*la_002\.nii\.gz, which does not exist"):
        open_dataset(tmp_path)
    for change, message in (
        ({"labels": {"background": 0}}, r"values in labels are \[0\]"),
        ({"labels": 3}, "labels is 3; expected names with numbers"),
        ({"training": []}, r"training is .*expected a list"),
        ({"training": 2}, "training is .2.; expected a list"),
        ({"training": ["a.nii.gz"]}, "has the item 'a.nii.gz'; expected"),
    ):
        (tmp_path / "dataset.json").write_text(json.dumps({**about, "test": [], **change}))
        with pytest.raises(SamAdaptError, match=message):
            open_dataset(tmp_path)


def test_msd_with_channels_in_the_file(tmp_path: Path) -> None:
    scan(tmp_path / "imagesTr/p1.nii.gz", (6, 5, 3, 2))
    mask(tmp_path / "labelsTr/p1.nii.gz")
    about = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [{"image": "imagesTr/p1.nii.gz", "label": "labelsTr/p1.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    assert open_dataset(tmp_path, channels=["ADC"]).case("p1").image.shape == (1, 3, 5, 6)


# ---------------------------------------------------------------- images and masks


@pytest.mark.parametrize("folder", ["masks", "labels"])
def test_images_and_binary_masks(tmp_path: Path, folder: str) -> None:
    picture(tmp_path / "images/a.jpg", mode="RGB")
    picture(tmp_path / "images/b.jpg", mode="RGB")
    picture(tmp_path / "images/c.jpg", mode="RGB")
    picture(tmp_path / f"{folder}/a.png", (0, 255))
    picture(tmp_path / f"{folder}/b_segmentation.png", (0, 0, 255))
    data = open_dataset(tmp_path)
    assert data.task == "segmentation" and data.classes == ("background", "foreground")
    assert data.window == "none" and data.channel_names == ("red", "green", "blue")
    assert data.labelled_ids == ("a", "b") and data.ids == ("a", "b", "c")
    assert data.case("b").label.float().mean() == pytest.approx(1 / 3)  # type: ignore[union-attr]
    assert open_dataset(tmp_path, classes=["skin", "lesion"]).classes == ("skin", "lesion")
    with pytest.raises(SamAdaptError, match="3 class names were given; the data set has 2"):
        open_dataset(tmp_path, classes=["a", "b", "c"])


@pytest.mark.parametrize(
    ("values", "classes", "label"),
    [
        ((0, 1), ("background", "class 1"), [0, 1]),
        ((0, 1, 3), ("background", "class 1", "class 2", "class 3"), [0, 1, 3]),
        ((0, 1, 2, 255), ("background", "class 1", "class 2"), [0, 1, 2, 255]),
        ((0, 128, 255), ("background", "value 128", "value 255"), [0, 1, 2]),
    ],
)
def test_classes_from_mask_values(
    tmp_path: Path, values: tuple[int, ...], classes: tuple[str, ...], label: list[int]
) -> None:
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "masks/a.png", values)
    data = open_dataset(tmp_path)
    assert data.classes == classes and data.case("a").label.unique().tolist() == label  # type: ignore[union-attr]


@pytest.mark.parametrize(("values", "suffix"), [((0, 60, 130, 200, 255, 254), ".png"), ((0, 255), ".jpg")])
def test_softened_masks_are_refused(tmp_path: Path, values: tuple[int, ...], suffix: str) -> None:
    picture(tmp_path / "images/a.png")
    rng = np.random.default_rng(0)
    (tmp_path / "masks").mkdir()
    if suffix == ".jpg":  # what JPEG makes of a mask
        Image.fromarray((rng.random((40, 40)) > 0.5).astype(np.uint8) * 255).save(
            tmp_path / "masks/a.jpg", quality=60
        )
    else:
        picture(tmp_path / "masks/a.png", values)
    with pytest.raises(SamAdaptError, match=r"grey values .*masks.*threshold them and save them as PNG"):
        open_dataset(tmp_path)


def test_few_values_in_a_jpeg_are_no_classes(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    blocks = np.kron(np.array([[0, 3], [3, 0]], np.uint8), np.ones((16, 16), np.uint8))
    (tmp_path / "masks").mkdir()
    Image.fromarray(blocks).save(tmp_path / "masks/a.jpg", quality=100)
    assert set(np.unique(np.asarray(Image.open(tmp_path / "masks/a.jpg")))) == {0, 3}
    with pytest.raises(SamAdaptError, match="threshold them and save them as PNG"):
        open_dataset(tmp_path)


def test_numbers_of_photographs_are_not_channels(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"images/IMG_{number:04d}.png")
        picture(tmp_path / f"masks/IMG_{number:04d}.png", (0, 255))
    assert open_dataset(tmp_path).labelled_ids == ("IMG_0000", "IMG_0001", "IMG_0002")
    for folder in ("images", "masks"):  # one of each name: only the masks tell that 0000 is no channel
        for number in (1, 2):
            (tmp_path / folder / f"IMG_{number:04d}.png").rename(tmp_path / folder / f"DSC{number}_0000.png")
    assert open_dataset(tmp_path).labelled_ids == ("DSC1_0000", "DSC2_0000", "IMG_0000")
    for folder in ("images", "masks"):
        for number in (1, 2):
            (tmp_path / folder / f"DSC{number}_0000.png").rename(tmp_path / folder / f"IMG_{number:04d}.png")
    for number in range(3):
        (tmp_path / f"images/IMG_{number:04d}.png").rename(tmp_path / f"images/x{number}_0000.png")
        (tmp_path / f"masks/IMG_{number:04d}.png").rename(tmp_path / f"masks/x{number}.png")
    assert open_dataset(tmp_path).labelled_ids == ("x0", "x1", "x2")


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "masks/b.png", (0, 255))
    with pytest.raises(SamAdaptError, match=r"masks/b\.png has no image; expected .*images/b\."):
        open_dataset(tmp_path)
    (tmp_path / "masks/b.png").unlink()
    picture(tmp_path / "masks/a.png", (0, 255))
    picture(tmp_path / "masks/a_mask.png", (0, 255))  # a second one of the same picture
    assert [file.name for file in open_dataset(tmp_path).entry("a").labels] == ["a.png", "a_mask.png"]


def test_nested_parts(tmp_path: Path) -> None:
    for part, names in (("train", "abcd"), ("val", "ef")):
        for name in names:
            picture(tmp_path / part / "images" / f"{name}.png")
            picture(tmp_path / part / "masks" / f"{name}.png", (0, 255))
    data = open_dataset(tmp_path)
    assert data.ids == tuple("abcdef") and [data.parts[i] for i in "aef"] == ["train", "val", "val"]
    split = data.split(labels=2)
    assert split.val == ("e", "f") and len(split.train) == 2 and set(split.train) <= set("abcd")
    assert split.rule.endswith("scored on the official val part")
    (tmp_path / "valid/images").mkdir(parents=True)
    with pytest.raises(SamAdaptError, match="are both the val part"):
        open_dataset(tmp_path)


def test_16_bit_pictures(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 900).save(
            tmp_path / f"images/{name}.png"
        )
        picture(tmp_path / f"masks/{name}.png", (0, 1))
    data = open_dataset(tmp_path)
    assert data.window == "percentile" and data.case("a").image.max() == 47 * 900
    picture(tmp_path / "images/a.png")  # the first has 8 bits now
    with pytest.raises(SamAdaptError, match=r"b\.png is a 16-bit picture, and .* those of an 8-bit picture"):
        open_dataset(tmp_path).case("b")


def test_acdc_as_published(tmp_path: Path) -> None:
    for part, patient in (("training", 1), ("training", 2), ("testing", 101)):
        for frame in (1, 12):
            name = tmp_path / part / f"patient{patient:03d}" / f"patient{patient:03d}_frame{frame:02d}"
            scan(Path(f"{name}.nii.gz"))
            mask(Path(f"{name}_gt.nii.gz"), (0, 1, 2, 3))
        scan(name.parent / f"patient{patient:03d}_4d.nii.gz", (6, 5, 3, 4))
    data = open_dataset(tmp_path)
    assert (
        data.layout == "masks beside images"
        and data.classes == ("background", "RV", "MYO", "LV")
        and len(data) == 6
    )
    assert data.groups["patient101_frame12"] == "patient101" and "by the patient's folder" in data.group_rule
    assert set(data.split().val) == {"patient101_frame01", "patient101_frame12"}


# ---------------------------------------------------------------- patients


def groups(root: Path, names: tuple[str, ...], **options: Any) -> Dataset:
    return open_dataset(nnunet(root, names), **options)


#: Names that occur, their patients, and whether the rule is said to be unsure.
OWN: list[str] = []
NAMES = [
    (("patient002_frame01", "patient002_frame12"), ["patient002", "patient002"], False),
    (
        ("patient005 frame01", "patient005 frame12", "patient006 frame01"),
        ["patient005", "patient005", "patient006"],
        False,
    ),
    (("patient-012-ED", "patient-012-ES"), ["patient-012", "patient-012"], False),
    (("sub-01_ses-1_T1w", "sub-02_ses-1_T1w"), ["sub-01", "sub-02"], False),
    (("visit1_patient3", "visit2_patient3"), ["patient3", "patient3"], False),
    (("site1_patient3_a", "site2_patient3_a"), ["site1_patient3", "site2_patient3"], False),
    (("pat1_L", "pat1_R"), ["pat1", "pat1"], False),
    (("p7_visit1_slice_003", "p7_visit2_slice_001"), ["p7", "p7"], True),
    (("case1_ED", "case1_ES", "case2_ED"), ["case1", "case1", "case2"], True),
    (("P01_T1_slice003", "P01_T2_slice003"), ["P01", "P01"], True),
    (("case_0001_slice_12", "case_0001_slice_13"), ["case_0001", "case_0001"], True),
    (("TCGA-02-0047_1997.09.22", "TCGA-02-0047_1998.09.22"), ["TCGA-02-0047", "TCGA-02-0047"], False),
    (("scan1_baseline", "scan1_followup"), ["scan1", "scan1"], True),
    (("001_20190101", "001_20200131"), ["001", "001"], True),
    (tuple(f"p1_slice_{n}" for n in range(40)), ["p1"] * 40, True),  # slices are many by nature
    (("hippocampus_001", "hippocampus_003"), OWN, False),
    (("prostate_scan1", "prostate_scan2"), OWN, False),  # no patient's number
    (("site1_scan_000", "site1_scan_001", "site2_scan_000"), OWN, False),  # the number of a place
    (("BraTS20_Training_001", "BraTS20_Training_002"), OWN, False),
    (("LIDC-IDRI-0001", "LIDC-IDRI-0002"), OWN, False),
    (("1.2.840.113619.2.20190101", "1.2.840.113619.2.20190102"), OWN, False),
    (("IMG_0001", "IMG_0002"), OWN, False),
    (("benign (12)", "benign (13)"), OWN, False),
    (("pattern1", "pattern2"), OWN, False),
]


@pytest.mark.parametrize(("names", "patients", "unsure"), NAMES, ids=[names[0] for names, _, _ in NAMES])
def test_patients_from_names(names: tuple[str, ...], patients: list[str], unsure: bool) -> None:
    told = patients_by_name({name: f"images/{name}" for name in names})
    assert [told.patients.get(name, name) for name in names] == (patients or list(names))
    if not patients and names[0] != "LIDC-IDRI-0001":  # an archive whose names are those of its patients
        assert told.rule.startswith("each case is a patient of its own")
    assert ("if that is wrong" in told.rule) == unsure
    if patients:
        assert f"{len(names)} cases of {len(set(patients))} patient" in told.rule
        assert f"{names[0]!r} is patient {patients[0]!r}" in told.rule


def test_many_scans_of_few_patients_are_not_merged_and_that_is_said() -> None:
    names = [f"{letter}1_scan{n}" for letter in "ab" for n in range(12)]
    told = patients_by_name({name: name for name in names})
    assert not told.patients and told.rule.startswith(
        "each case is a patient of its own (by their names 24 would be 2"
    )
    assert "--group '(a\\d+)'" in told.rule


def test_patients_as_told(tmp_path: Path) -> None:
    names = ("ab1", "ab2", "cd1")
    data = groups(tmp_path, names, group="^([a-z]+)")
    assert (
        list(data.groups.values()) == ["ab", "ab", "cd"]
        and "2 patients, by the pattern '^([a-z]+)'" in data.group_rule
    )
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\nab1,P\nab2,P\ncd1,Q\n")
    assert list(groups(tmp_path, names, group=table).groups.values()) == ["P", "P", "Q"]
    for encoding in ("latin-1", "utf-16", "utf-8-sig"):
        table.write_bytes("Fall;Müller\nab1;P\nab2;P\ncd1;Q\n".encode(encoding))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamAdaptWarning)
            assert list(groups(tmp_path, names, group=table).groups.values()) == ["P", "P", "Q"]
    table.write_text("file,age,patient_id\nab1_0000.nii.gz,3,P\nab2.nii.gz,4,P\ncd1,5,Q\n")
    assert list(groups(tmp_path, names, group=table).groups.values()) == ["P", "P", "Q"]
    table.write_text("ab1,P\nab2,P\ncd1,Q\n")
    with pytest.raises(SamAdaptError, match="begins with the case 'ab1'; expected a header first"):
        groups(tmp_path, names, group=table)
    table.write_text("case,patient\nab1,P\nab1,Q\n")
    with pytest.raises(SamAdaptError, match="gives case 'ab1' two patients, 'P' and 'Q'"):
        groups(tmp_path, names, group=table)
    table.write_text("case,patient\nab1,P\n")
    with pytest.raises(
        SamAdaptError, match=r"patients\.csv gives no patient for 2 of 3 cases, the first is 'ab2'"
    ):
        groups(tmp_path, names, group=table)
    for wrong, message in (
        ("patient", "expected a regular expression with one group"),
        ("(a)(b)", "has 2 groups; expected one"),
        ("(a", "is not a regular expression"),
        ("(x\\d)", "gives no patient for 3 of 3"),
        (str(tmp_path / "none.csv"), "cannot be read"),
    ):
        with pytest.raises(SamAdaptError, match=message):
            groups(tmp_path, names, group=wrong)


# ---------------------------------------------------------------- the data set itself


def test_subsets_and_views(tmp_path: Path) -> None:
    data = open_dataset(nnunet(tmp_path))
    some = data[["x3", "x1"]]
    assert some.ids == ("x3", "x1") and len(some) == 2 and some.classes == data.classes
    assert [case.id for case in data] == ["x1", "x2", "x3"] and data["x3"].id == "x3"
    assert [case.id for case in some] == ["x3", "x1"]
    assert torch.equal(data.label("x1"), data.case("x1").label)  # type: ignore[arg-type]
    with pytest.raises(SamAdaptError, match=r"no case 'x9'; it has x"):
        data["x9"]
    with pytest.raises(SamAdaptError, match="no cases"):
        data[[]]


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "imagesTr/x2_0000.nii.gz").write_bytes(b"")
    data = open_dataset(tmp_path)
    assert data.case("x1").id == "x1"
    with pytest.raises(SamAdaptError, match=r"x2_0000\.nii\.gz is empty"):
        data.case("x2")


def test_hash_follows_the_content(tmp_path: Path) -> None:
    data = open_dataset(nnunet(tmp_path / "here"))
    same = open_dataset(nnunet(tmp_path / "there"))
    assert data.hash == same.hash and data[["x1"]].hash != data.hash
    assert data[["x2", "x1"]].hash == data[["x1", "x2"]].hash
    scan(tmp_path / "there/imagesTr/x2_0000.nii.gz", seed=99)
    changed_image = open_dataset(tmp_path / "there").hash
    mask(tmp_path / "here/labelsTr/x2.nii.gz", (0, 2, 1))
    changed_label = open_dataset(tmp_path / "here").hash
    regrouped = open_dataset(tmp_path / "here", group="(x)").hash
    assert len({data.hash, changed_image, changed_label, regrouped}) == 4


def test_large_images_are_hashed_by_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samadapt.datasets.dataset._WHOLE_FILE", 100)
    monkeypatch.setattr("samadapt.datasets.dataset._END", 40)
    nnunet(tmp_path)
    image = tmp_path / "imagesTr/x2_0000.nii.gz"
    hashes = {open_dataset(tmp_path).hash}
    for place in (5, -5):  # a header, and the checksum that ends a .gz
        content = bytearray(image.read_bytes())
        content[place] ^= 0xFF
        image.write_bytes(content)
        hashes.add(open_dataset(tmp_path).hash)
    assert len(hashes) == 3


def test_a_name_is_one_case(tmp_path: Path) -> None:
    for part in ("train", "val"):
        picture(tmp_path / part / "images/a.png")
        picture(tmp_path / part / "masks/a.png", (0, 255))
    assert open_dataset(tmp_path).ids == ("train__a", "val__a")  # called by their folders
    for suffix in ("jpg", "png"):
        picture(tmp_path / f"train/images/b.{suffix}")
    with pytest.raises(SamAdaptError, match="have the same name"):
        open_dataset(tmp_path)


def test_empty_masks_are_masks(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "masks/a.png", (0,))
    data = open_dataset(tmp_path)
    assert data.classes == ("background", "foreground") and int(data.label("a").sum()) == 0  # type: ignore[union-attr]


def test_slice_axis_is_told(tmp_path: Path) -> None:
    data = open_dataset(nnunet(tmp_path), slice_axis=0)
    assert data.opening.plane.slice_axis == 0 and data.case("x1").image.shape == (1, 6, 3, 5)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(SamAdaptError, match=r"nowhere does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(
        SamAdaptError, match=r"has no known layout\. Known layouts: .*nnU-Net raw: dataset\.json"
    ):
        open_dataset(tmp_path)
    with pytest.raises(SamAdaptError, match="has no known layout for classification"):
        open_dataset(nnunet(tmp_path), task="classification")
    empty = tmp_path / "empty"
    (empty / "images").mkdir(parents=True)
    (empty / "masks").mkdir()
    with pytest.raises(SamAdaptError, match="the images folder is empty"):
        open_dataset(empty)


# ---------------------------------------------------------------- real data


@pytest.mark.data
def test_real_segmentation_sets(shared_data: Path) -> None:
    acdc = open_dataset(shared_data / "Dataset027_ACDC")
    assert len(acdc) == 100 and len(set(acdc.groups.values())) == 50
    split = acdc.split(labels=5)
    assert len(split.train) == 10 and len(split.patients) == 5 and len(split.val) == 20 and not split.select
    hippocampus = open_dataset(shared_data / "Task04_Hippocampus")
    assert len(hippocampus) == 160 and hippocampus.classes == ("background", "Anterior", "Posterior")
    assert hippocampus.case("hippocampus_003").label.max() == 2  # type: ignore[union-attr]
    isic = open_dataset(shared_data / "ISIC2017")
    assert isic.task == "segmentation" and len(isic) == 2150
