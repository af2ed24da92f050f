"""Classification layouts: MedMNIST, class folders, tables; and what each refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from samadapt.datasets import Dataset, open_dataset, open_like
from samadapt.types import SamAdaptError, SamAdaptWarning

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, ...] = (6, 8, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, size, dtype=np.uint8)).save(path)
    return path


# ---------------------------------------------------------------- MedMNIST


def arrays(labels: int = 1, colour: bool = False, side: int = 28, high: int = 3) -> dict[str, np.ndarray]:
    found = {}
    for part, count in (("train", 8), ("val", 4), ("test", 6)):
        shape = (count, side, side, 3) if colour else (count, side, side)
        found[f"{part}_images"] = RNG.integers(0, 256, shape, dtype=np.uint8)
        top = high if labels == 1 else 2
        found[f"{part}_labels"] = np.resize(np.arange(top, dtype=np.uint8), (count, labels))
        if labels > 1:
            found[f"{part}_labels"] = RNG.integers(0, 2, (count, labels)).astype(np.uint8)
    return found


def npz(path: Path, content: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(path, **content)
    return path


@pytest.mark.parametrize("side", [28, 64, 224])
def test_medmnist(tmp_path: Path, side: int) -> None:
    content = arrays(side=side)
    data = open_dataset(npz(tmp_path / "toymnist.npz", content))
    assert (data.name, data.task, data.classes, data.window) == (
        "toymnist",
        "classification",
        ("0", "1", "2"),
        "none",
    )
    assert len(data) == 18 and data.ids[0] == "train_00000" and data.parts["test_00003"] == "test"
    case = data.case("test_00003")
    assert case.image.shape == (1, 1, side, side) and case.image.dtype == torch.float32
    assert np.array_equal(case.image[0, 0].numpy(), content["test_images"][3])
    assert case.label is not None and int(case.label) == int(content["test_labels"][3, 0]) == 0
    assert case.label.dtype == torch.int64 and case.label.shape == ()
    assert int(data.label("val_00001")) == 1  # type: ignore[arg-type]
    split = data.split()
    assert (len(split.train), len(split.select), len(split.val)) == (8, 4, 6)


def test_medmnist_colours_and_several_labels(tmp_path: Path) -> None:
    content = arrays(labels=4, colour=True)
    data = open_dataset(npz(tmp_path / "chest.npz", content))
    case = data.case("val_00002")
    assert data.multilabel and data.classes == ("0", "1", "2", "3") and case.image.shape == (3, 1, 28, 28)
    assert torch.equal(case.image[:, 0], torch.from_numpy(content["val_images"][2]).permute(2, 0, 1).float())
    assert case.label is not None and case.label.dtype == torch.float32
    assert case.label.tolist() == content["val_labels"][2].tolist()


def changed(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = arrays()
    for name, change in changes.items():
        if change is None:
            del content[name]
        else:
            content[name] = change(content[name]) if callable(change) else change
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(val_labels=None), "array 'val_labels' is missing; expected exactly"),
        (changed(notes=np.zeros(3)), "array 'notes' is not one of them"),
        (changed(train_labels=lambda a: a.astype(object)), "'train_labels' is of object dtype.*unpickling"),
        (changed(train_labels=lambda a: a[:-1]), "train has 8 images and 7 labels"),
        (changed(train_images=lambda a: a.astype(np.float32)), r"train_images is float32 .*expected uint8"),
        (changed(test_labels=lambda a: a + 0.5), r"test_labels is float64 \(6, 1\); expected integers"),
        (changed(test_labels=lambda a: a[:, 0]), r"test_labels is uint8 \(6,\); expected integers \(N, 1\)"),
        (changed(val_labels=lambda a: np.hstack([a, a])), "the labels have different widths"),
        (changed(val_labels=lambda a: a.astype(np.int64) - 1), "val_labels has the value -1"),
        (changed(val_images=lambda a: np.stack([a] * 3, -1)), "some parts are grey, some RGB"),
        (changed(train_images=lambda a: a[0]), r"train_images is uint8 \(28, 28\)"),
        ({**arrays(labels=2), "val_labels": np.full((4, 2), 3)}, "of several columns has the value 3"),
    ],
)
def test_medmnist_that_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(SamAdaptError, match=message) as caught:
        open_dataset(npz(tmp_path / "bad.npz", content))
    assert "bad.npz" in str(caught.value)


# ---------------------------------------------------------------- class folders


def test_class_folders(tmp_path: Path) -> None:
    for kind, count in (("naevus", 3), ("melanoma", 2)):
        for number in range(count):
            picture(tmp_path / kind / f"{kind[0]}{number}.png")
    data = open_dataset(tmp_path)
    assert data.layout == "class folders" and data.classes == ("melanoma", "naevus") and len(data) == 5
    assert int(data.label("n0")) == 1 and data.case("m1").image.shape == (3, 1, 6, 8)  # type: ignore[arg-type]
    assert set(data.parts.values()) == {None} and data.window == "none"


def test_class_folders_with_parts_and_equal_names(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        for kind in ("a", "b"):
            for number in range(3):
                picture(tmp_path / part / kind / f"{number}.jpg")
    data = open_dataset(tmp_path)
    assert len(data) == 18 and data.ids[0] == "train__a__0" and data.parts["validation__b__2"] == "val"
    split = data.split()
    assert {data.parts[i] for i in split.select} == {"val"} and {data.parts[i] for i in split.val} == {"test"}
    for file in (tmp_path / "test/a").iterdir():
        file.unlink()
    with pytest.raises(SamAdaptError, match=r"test/a holds no images; expected some of every class"):
        open_dataset(tmp_path)


def test_volumes_with_a_class(tmp_path: Path) -> None:
    for kind in ("ill", "well"):
        (tmp_path / kind).mkdir()
        for number in range(2):
            image = nib.Nifti1Image(RNG.normal(size=(6, 5, 4)).astype(np.float32), np.diag([1, 1, 4, 1.0]))
            nib.save(image, tmp_path / kind / f"{kind}{number}.nii.gz")
    case = open_dataset(tmp_path).case("well1")
    assert case.image.shape == (1, 4, 5, 6) and case.label is not None and int(case.label) == 1


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        for number in range(4):
            picture(tmp_path / kind / f"{kind}{number}.png")
    Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8)).save(tmp_path / "b/b0.png")
    Image.fromarray(RNG.integers(0, 255, (6, 8, 4), dtype=np.uint8), "RGBA").save(tmp_path / "b/b1.png")
    (tmp_path / "b/b2.png").write_bytes((tmp_path / "b/b3.png").read_bytes()[:80])
    data = open_dataset(tmp_path)
    for name, message in (
        ("b0", "is a 16-bit picture"),
        ("b1", "with alpha"),
        ("b2", "damaged or cut off"),
    ):
        with pytest.raises(SamAdaptError, match=rf"{name}\.png .*{message}"):
            data.case(name)


# ---------------------------------------------------------------- tables


def table(root: Path, text: str, images: int = 6, suffix: str = ".png", **options: Any) -> Dataset:
    """labels.csv with the text, and images i0, i1, ..."""
    for number in range(images):
        if not (root / f"images/i{number}{suffix}").exists():
            picture(root / f"images/i{number}{suffix}")
    (root / "labels.csv").write_text(text)
    return open_dataset(root, **options)


def rows(*labels: object, column: str = "label") -> str:
    return f"image_id,{column}\n" + "".join(f"i{n},{label}\n" for n, label in enumerate(labels))


def test_table_of_names_and_of_numbers(tmp_path: Path) -> None:
    data = table(tmp_path, rows("mel", "nv", "nv"))
    assert data.classes == ("mel", "nv") and data.ids == ("i0", "i1", "i2") and not data.multilabel
    assert data.layout == "images and a table" and int(data.label("i2")) == 1  # type: ignore[arg-type]
    data = table(tmp_path, rows(10, 2, 3.0, 2, column="grade"))
    assert data.classes == ("2", "3", "10") and [int(data.label(i)) for i in data.ids] == [2, 0, 1, 0]  # type: ignore[arg-type]


def test_several_columns(tmp_path: Path) -> None:
    several = "image,mel,sk\ni0.png,0.0,0.0\ni1.png,1.0,0.0\nimages/i2.png,0.0,1.0\n"
    data = table(tmp_path, several)
    assert data.multilabel and data.classes == ("mel", "sk") and data.case("i1").label.tolist() == [1.0, 0.0]  # type: ignore[union-attr]
    one_hot = table(tmp_path, several.replace("i0.png,0.0", "i0.png,1.0"))
    assert not one_hot.multilabel and [int(one_hot.label(i)) for i in one_hot.ids] == [0, 0, 1]  # type: ignore[arg-type]
    single = table(tmp_path, several, label_column="sk")
    assert single.classes == ("0", "1") and int(single.label("i2")) == 1  # type: ignore[arg-type]
    assert table(tmp_path, several, label_column="sk, mel").classes == ("sk", "mel")


def test_patients_and_parts_in_a_table(tmp_path: Path) -> None:
    text = "path;patient_id;Split;label;site\n" + "".join(
        f"images/i{n}.png;p{n // 2};{'train' if n < 4 else 'test'};{'ab'[n % 2]};s{n % 3}\n" for n in range(6)
    )
    data = table(tmp_path, text)
    assert (
        data.groups["i3"] == "p1"
        and "3 patients, by column 'patient_id'" in data.group_rule
        and data.parts["i5"] == "test"
    )
    assert len(data.split(labels=1).train) == 2
    other = table(tmp_path, text, group="site")
    assert other.groups["i4"] == "s1" and "by column 'site'" in other.group_rule
    assert open_like(tmp_path, other.opening).groups == other.groups and data.opening.group is None
    with pytest.raises(
        SamAdaptError, match=r"group is 'ward'; expected .*columns are Split, label, path, patient_id, site"
    ):
        table(tmp_path, text, group="ward")
    with pytest.raises(
        SamAdaptError, match=r"labels\.csv, line 3: the split is 'later'; expected train, val or test"
    ):
        table(tmp_path, text.replace("p0;train;b", "p0;later;b"))
    with pytest.raises(SamAdaptError, match="line 4: column 'patient_id' is empty; expected the patient"):
        table(tmp_path, text.replace("p1;train;a", ";train;a"))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (rows("a", "b"), {"label_column": "diagnosis"}, "has no column 'diagnosis'; it has image_id, label"),
        (rows("a", "", "b"), {}, "line 3: column 'label' is empty"),
        (
            rows(0, 1, "mel", 0),
            {},
            "line 4: column 'label' is 'mel', but 3 rows have numbers and 1 have names",
        ),
        (rows("a", "b", 3, "a"), {}, "line 4: column 'label' is '3', but 1 rows have numbers and 3"),
        (rows("nan", 1, 0, 1), {}, "line 2: column 'label' is 'nan', but 3 rows have numbers"),
        (rows(0, 1, 0.37, 1), {}, "line 4: column 'label' is '0.37', a measurement"),
        (rows("a", "a", "a"), {}, "column 'label' is 'a' in all 3 rows; expected two classes"),
        (rows("a", "b") + "i0,b\n", {}, "line 4: 'i0' is listed again with two labels .first in line 2"),
        (rows("a", "b") + "images/i0.png,a\n", {}, "line 4: .*listed again with the same label"),
        (rows("a", "b") + "i77,b\n", {}, "line 4: image 'i77' does not exist; expected one file below"),
        (rows("a", "b") + ",b\n", {}, "line 4: the image is empty"),
        (rows("a", "b") + "i3,b,c\n", {}, "line 4: 3 cells; the header has 2 columns"),
        ("image_id,x,y\ni0,1,0\ni1,2,0\n", {}, "which column is the label. It has image_id, x, y"),
        (
            "image_id,x,y\ni0,1,0\ni1,2,0\n",
            {"label_column": "x,y"},
            "line 3: column 'x' is '2'; expected 0 or 1",
        ),
        (
            "name,label\ni0,a\ni1,b\n",
            {},
            "has no column of images; expected one called path, image, image_id",
        ),
        ("image_id,label,label\ni0,a,b\n", {}, "two columns of the same name"),
        ("image_id,label\n", {}, "has no rows"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SamAdaptError, match=message) as caught:
        table(tmp_path, text, **options)
    if "column 'label' is 'a' in all" not in message:
        assert "labels.csv" in str(caught.value)


def test_a_measurement_in_whole_numbers(tmp_path: Path) -> None:
    with pytest.raises(SamAdaptError, match="'label' has 40 different values in 40 rows"):
        table(tmp_path, rows(*range(40, 80)), images=40)
    with pytest.raises(SamAdaptError, match=r"'label' has 40 different values in 40 rows .one is 'n00'"):
        table(tmp_path, rows(*(f"n{n:02d}" for n in range(40))), images=40)


def test_an_image_name_that_is_two_files(tmp_path: Path) -> None:
    picture(tmp_path / "more/i0.jpg")
    with pytest.raises(SamAdaptError, match=r"line 2: image 'i0' could be .* or .*; expected one file"):
        table(tmp_path, rows("a", "b"))


def test_table_encodings(tmp_path: Path) -> None:
    table(tmp_path, rows("a", "b"))
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + rows("a", "b").replace("\n", "\r\n").encode())
    assert open_dataset(tmp_path / "labels.csv").classes == ("a", "b")
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / "labels.csv").write_bytes(rows("naïve", "b").encode(encoding))
        assert open_dataset(tmp_path).classes == ("b", "naïve")
    (tmp_path / "labels.csv").write_bytes(rows("naïve", "b").encode("latin-1"))
    with pytest.warns(SamAdaptWarning, match=r"labels\.csv is not UTF-8; it is read as Latin-1"):
        assert open_dataset(tmp_path).classes == ("b", "naïve")
    (tmp_path / "labels.csv").write_bytes(bytes(range(256)))
    with pytest.raises(SamAdaptError, match="is not a table of text"):
        open_dataset(tmp_path)


def test_masks_beside_a_table(tmp_path: Path) -> None:
    """As ISIC: train/ and val/, each with images, masks and a table. Segmentation unless told."""
    for part, names in (("train", ("i0", "i1", "i2")), ("val", ("i3", "i4"))):
        for name in names:
            picture(tmp_path / part / "images" / f"{name}.jpg")
            mask = np.zeros((6, 8), bool)
            mask[2:4, 2:5] = True
            (tmp_path / part / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / part / "masks" / f"{name}.png")
        lines = [f"{name},{n % 2}.0,{int(part == 'val')}.0" for n, name in enumerate(names)]
        (tmp_path / part / "labels.csv").write_text("\n".join(["image_id,mel,sk", *lines]))
    assert open_dataset(tmp_path).task == "segmentation"
    data = open_dataset(tmp_path, task="classification")
    assert data.task == "classification" and data.parts["i4"] == "val" and data.multilabel
    assert data.case("i4").label.tolist() == [1.0, 1.0] and len(data.split().val) == 2  # type: ignore[union-attr]


@pytest.mark.data
def test_real_classification_sets(shared_data: Path) -> None:
    breast = open_dataset(shared_data / "medmnist/breastmnist.npz")
    split = breast.split()
    assert (len(split.train), len(split.select), len(split.val)) == (546, 78, 156)
    retina = open_dataset(shared_data / "medmnist/retinamnist.npz")
    assert retina.classes == tuple("01234") and retina.case("test_00399").image.shape == (3, 1, 28, 28)
    isic = open_dataset(shared_data / "ISIC2017", task="classification")
    assert isic.classes == ("melanoma", "seborrheic_keratosis") and isic.multilabel and len(isic) == 2150
    assert len(isic.split(labels=0.1).train) == 200
