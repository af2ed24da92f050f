"""Faults planted into copies of the real data: `check` finds every one of them, and nothing in the sound copies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from samadapt.check import Finding, check
from samadapt.datasets import open_dataset

pytestmark = pytest.mark.data

# ---------------------------------------------------------------- sound copies


def hippocampus(shared: Path, folder: Path) -> list[str]:
    """30 crops of T1 MR in the MSD layout."""
    about = json.loads((shared / "Task04_Hippocampus/dataset.json").read_text())
    about["training"] = about["training"][:30]
    for item in about["training"]:
        for file in item.values():
            copy(shared / "Task04_Hippocampus" / file, folder / file)
    write_text(folder / "dataset.json", about)
    return [Path(item["label"]).name.removesuffix(".nii.gz") for item in about["training"]]


def heart(shared: Path, folder: Path) -> list[str]:
    """Short-axis MR of 9 patients in nnU-Net's layout, with its split."""
    source = shared / "Dataset027_ACDC"
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").iterdir())[:18]
    for case in cases:
        for file in (f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz"):
            copy(source / file, folder / file)
    copy(source / "dataset.json", folder / "dataset.json")
    write_text(folder / "splits_final.json", [{"train": cases[:14], "val": cases[14:]}])
    return cases


def lesions(shared: Path, folder: Path) -> list[str]:
    """60 photographs of skin with a mask of the lesion."""
    cases = sorted(path.stem for path in (shared / "ISIC2017/val/images").iterdir())[:60]
    for case in cases:
        copy(shared / f"ISIC2017/val/images/{case}.jpg", folder / f"images/{case}.jpg")
        (mask,) = (shared / "ISIC2017/val/masks").glob(f"{case}*.png")
        copy(mask, folder / "masks" / mask.name)
    return cases


def breast(shared: Path, folder: Path) -> list[str]:
    """BreastMNIST: 28 x 28 ultrasound, benign or malignant; of each part the first pictures."""
    arrays = dict(np.load(shared / "medmnist/breastmnist.npz"))
    write_npz(folder, {key: values[:60] for key, values in arrays.items()})
    return [f"train_{n:05d}" for n in range(60)]


def copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, to)


def write_text(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def write_npz(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "breastmnist.npz", **arrays)


DATA: dict[str, tuple[Callable[[Path, Path], list[str]], str]] = {
    "hippocampus": (hippocampus, ""), "heart": (heart, ""), "lesions": (lesions, ""),
    "breast": (breast, "breastmnist.npz"),
}  # fmt: skip

# ---------------------------------------------------------------- how faults are planted


class Copy(NamedTuple):
    """A copy of a data set that may be spoiled."""

    folder: Path
    cases: list[str]

    def files(self, n: int) -> tuple[Path, Path]:
        case = self.cases[n]
        (image,) = [
            p for p in self.folder.glob(f"images*/{case}*") if p.name.split(".")[0] in (case, f"{case}_0000")
        ]
        (label,) = [p for p in self.folder.glob(f"[lm]a*/{case}*") if p.name.startswith(case)]
        return image, label

    def on_label(self, n: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
        rewrite(self.files(n)[1], change)

    def on_image(self, n: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
        rewrite(self.files(n)[0], change)

    def on_both(self, n: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.on_label(n, change)
        self.on_image(n, change)

    def headers(
        self, n: int, change: Callable[[np.ndarray], np.ndarray], files: tuple[int, ...] = (0, 1)
    ) -> None:
        for file in (self.files(n)[i] for i in files):
            volume = nib.load(file)
            nib.save(nib.Nifti1Image(np.asarray(volume.dataobj), change(volume.affine)), file)

    def on_arrays(self, change: Callable[[dict[str, np.ndarray]], None]) -> None:
        arrays = dict(np.load(self.folder / "breastmnist.npz"))
        change(arrays)
        write_npz(self.folder, arrays)


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    if path.suffix in (".png", ".jpg"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path, quality=85)
        return
    volume = nib.load(path)
    array = np.asarray(volume.dataobj)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(change(array)), volume.affine), path)


def exchanged(a: int, b: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.where(x == a, b, np.where(x == b, a, x)).astype(x.dtype)


def without(value: int, keep: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """All but `keep` voxels of a class removed."""

    def change(label: np.ndarray) -> np.ndarray:
        label = label.copy()
        label.ravel()[np.flatnonzero(label == value)[keep:]] = 0
        return label

    return change


def noisy(image: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.03 * float(np.ptp(image)), image.shape)
    return np.clip(image + noise, image.min(), image.max()).astype(image.dtype)


def only_noise(image: np.ndarray) -> np.ndarray:
    return image.mean() * np.random.default_rng(0).random(image.shape, dtype=np.float32)


def with_island(label: np.ndarray) -> np.ndarray:
    label = label.copy()
    label[1:4, 1:4, 2:4] = 1
    return label


def with_gap(label: np.ndarray) -> np.ndarray:
    """Without one slice in the middle."""
    label = label.copy()
    filled = np.flatnonzero((label > 0).any((0, 1)))
    label[..., filled[len(filled) // 2]] = 0
    return label


def grown(label: np.ndarray) -> np.ndarray:
    return np.where(label > 0, label, ndimage.grey_dilation(label, (7, 7, 7))).astype(label.dtype)


def plant_image_of(
    to: int, source: int, change: Callable[[np.ndarray], np.ndarray]
) -> Callable[[Copy], None]:
    """The image and label of another case, changed, under this case's name."""

    def plant(data: Copy) -> None:
        for old, new in zip(data.files(source), data.files(to), strict=True):
            shutil.copy(old, new)
        data.on_image(to, change)

    return plant


def plant_same_label(data: Copy) -> None:
    """The label of one phase of the heart is saved as that of the other."""
    shutil.copy(data.files(2)[1], data.files(3)[1])


def plant_split(data: Copy) -> None:
    """One frame of a patient trains, the other is scored."""
    write_text(data.folder / "splits_final.json", [{"train": data.cases[:15], "val": data.cases[15:]}])


def plant_cut_file(data: Copy) -> None:
    file = data.files(4)[0]
    file.write_bytes(file.read_bytes()[:5000])


def plant_leak(arrays: dict[str, np.ndarray]) -> None:
    arrays["test_images"][5] = noisy(arrays["train_images"][7])
    arrays["test_labels"][5] = arrays["train_labels"][7]


def plant_two_classes(arrays: dict[str, np.ndarray]) -> None:
    arrays["train_images"][5] = arrays["train_images"][7]
    arrays["train_labels"][5] = 1 - arrays["train_labels"][7]


def plant_rare_class(arrays: dict[str, np.ndarray]) -> None:
    for part in ("train", "val", "test"):
        arrays[f"{part}_labels"][...] = 1
        arrays[f"{part}_labels"][:1] = 0


def set_nan(image: np.ndarray) -> np.ndarray:
    image = image.astype(np.float32)
    image[3, 3, 3] = np.nan
    return image


def black_slices(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[..., :2] = 0
    return image


def moved(mm: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(affine: np.ndarray) -> np.ndarray:
        affine = affine.copy()
        affine[0, 3] += mm
        return affine

    return change


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda affine: affine @ np.diag([factor, factor, factor, 1])


class Fault(NamedTuple):
    """A fault, how it is planted, and what `check` must call it."""

    about: str
    data: str
    plant: Callable[[Copy], None]
    kind: str
    severity: str = "warning"


FAULTS = [
    Fault("label mirrored left to right", "hippocampus", lambda d: d.on_label(3, lambda x: x[::-1]), "turned label"),
    Fault("label mirrored front to back", "hippocampus", lambda d: d.on_label(4, lambda x: x[:, ::-1]), "turned label"),
    Fault("label with its slices reversed", "hippocampus", lambda d: d.on_label(5, lambda x: x[..., ::-1]), "turned label"),
    Fault("label turned by 180 degrees", "heart", lambda d: d.on_label(6, lambda x: x[::-1, ::-1]), "turned label"),
    Fault("label mirrored left to right", "heart", lambda d: d.on_label(2, lambda x: x[::-1]), "turned label"),
    Fault("two classes exchanged", "hippocampus", lambda d: d.on_label(6, exchanged(1, 2)), "exchanged classes"),
    Fault("RV and LV exchanged", "heart", lambda d: d.on_label(4, exchanged(1, 3)), "exchanged classes"),
    Fault("myocardium and LV exchanged", "heart", lambda d: d.on_label(9, exchanged(2, 3)), "exchanged classes"),
    Fault("label displaced", "hippocampus", lambda d: d.on_label(7, lambda x: np.roll(x, 8, 0)), "label does not fit"),
    Fault("intensities inverted", "heart", lambda d: d.on_image(5, lambda x: x.max() - x), "label does not fit"),
    Fault("mask of the background", "lesions", lambda d: d.on_label(8, lambda x: np.where(x, 0, 255).astype(np.uint8)), "label does not fit"),
    Fault("image and label mirrored", "hippocampus", lambda d: d.on_both(8, lambda x: x[:, ::-1]), "turned image"),
    Fault("a patient twice", "hippocampus", plant_image_of(9, 2, lambda x: x), "duplicate"),
    Fault("a patient twice, with noise", "hippocampus", plant_image_of(10, 2, noisy), "near duplicate"),
    Fault("a patient twice, brighter", "heart", plant_image_of(10, 2, lambda x: x * 1.5 + 80), "near duplicate"),
    Fault("a picture twice, compressed again", "lesions", plant_image_of(10, 2, lambda x: x), "near duplicate"),
    Fault("a picture twice, mirrored", "lesions", plant_image_of(11, 2, lambda x: x[:, ::-1].copy()), "near duplicate"),
    Fault("a picture of the training in the test, with noise", "breast", lambda d: d.on_arrays(plant_leak), "near duplicate"),
    Fault("a picture with two classes", "breast", lambda d: d.on_arrays(plant_two_classes), "duplicate", "error"),
    Fault("three cases of a class", "breast", lambda d: d.on_arrays(plant_rare_class), "class balance"),
    Fault("the label of another case", "heart", plant_same_label, "same label"),
    Fault("empty label", "hippocampus", lambda d: d.on_label(11, np.zeros_like), "empty label"),
    Fault("a class of four voxels", "hippocampus", lambda d: d.on_label(12, without(2, 4)), "tiny label"),
    Fault("a class not drawn", "heart", lambda d: d.on_label(12, without(1)), "missing class"),
    Fault("a blob in the corner", "hippocampus", lambda d: d.on_label(13, with_island), "islands"),
    Fault("a slice not drawn", "heart", lambda d: d.on_label(13, with_gap), "gap in label"),
    Fault("label grown by three voxels", "hippocampus", lambda d: d.on_label(14, grown), "label volume"),
    Fault("spacing of 3 mm", "hippocampus", lambda d: d.headers(15, scaled(3.0)), "spacing"),
    Fault("spacing in cm", "heart", lambda d: d.headers(3, scaled(0.1)), "spacing"),
    Fault("intensities times 40", "heart", lambda d: d.on_image(8, lambda x: x * 40.0), "intensities"),
    Fault("noise for an image", "hippocampus", lambda d: d.on_image(16, only_noise), "intensities"),
    Fault("noise for a picture", "lesions", lambda d: d.on_image(16, lambda x: (only_noise(x) * 1.5).astype(np.uint8)), "intensities"),
    Fault("a third of the slices", "heart", lambda d: d.on_both(7, lambda x: x[..., : x.shape[2] // 3]), "size"),
    Fault("two black slices", "heart", lambda d: d.on_image(6, black_slices), "constant slices"),
    Fault("every slice twice", "heart", lambda d: d.on_image(6, lambda x: x[..., np.arange(x.shape[2]) // 2 * 2]), "repeated slices"),
    Fault("header of the label moved by 5 mm", "hippocampus", lambda d: d.headers(17, moved(5.0), (1,)), "cannot be used", "error"),
    Fault("one voxel that is no number", "hippocampus", lambda d: d.on_image(18, set_nan), "cannot be used", "error"),
    Fault("constant image", "hippocampus", lambda d: d.on_image(19, lambda x: x * 0 + 7), "cannot be used", "error"),
    Fault("a value that is no class", "hippocampus", lambda d: d.on_label(20, lambda x: np.where(x == 2, 9, x).astype(np.uint8)), "cannot be used", "error"),
    Fault("a file cut short", "heart", plant_cut_file, "cannot be used", "error"),
    Fault("a patient on both sides of the split", "heart", plant_split, "split", "error"),
]  # fmt: skip


def serious(data: str, folder: Path) -> list[Finding]:
    return [f for f in check(open_dataset(folder / DATA[data][1])) if f.severity != "note"]


@pytest.fixture(scope="module")
def sound(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list[str], list[Finding]]]:
    """Of each data set the cases, and what is found in a sound copy."""
    found = {}
    for name, (make, _) in DATA.items():
        folder = tmp_path_factory.mktemp("sound") / name
        found[name] = make(shared_data, folder), serious(name, folder)
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.data}: {f.about}")
def test_a_planted_fault_is_found(fault: Fault, sound, shared_data: Path, tmp_path: Path) -> None:
    cases = DATA[fault.data][0](shared_data, tmp_path / "copy")
    fault.plant(Copy(tmp_path / "copy", cases))
    before = {(f.kind, f.cases) for f in sound[fault.data][1]}
    new = [f for f in serious(fault.data, tmp_path / "copy") if (f.kind, f.cases) not in before]
    assert (fault.kind, fault.severity) in {(f.kind, f.severity) for f in new}, [
        (f.kind, f.found) for f in new
    ]


@pytest.mark.parametrize("name", ["hippocampus", "heart", "lesions"])
def test_nothing_is_found_in_a_sound_copy(sound, name: str) -> None:
    assert sound[name][1] == []


def test_all_of_the_hippocampus_data_are_sound(shared_data: Path) -> None:
    found = check(open_dataset(shared_data / "Task04_Hippocampus"))
    assert [f for f in found if f.severity != "note"] == []
