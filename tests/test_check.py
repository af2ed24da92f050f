"""The data doctor finds what was put there, and nothing in a sound data set."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samadapt.check import Finding, check, summary, to_json, write_page
from samadapt.datasets import Dataset, open_dataset
from samadapt.types import SamAdaptError


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 5.0, 1.0]) if affine is None else affine), path)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four sound cases in nnU-Net raw layout."""
    rng = np.random.default_rng(0)
    for number in range(4):
        write(tmp_path / f"imagesTr/p{number}_0000.nii.gz", rng.normal(size=(8, 8, 3)).astype(np.float32))
        label = np.zeros((8, 8, 3), np.uint8)
        label[2:5, 2:5], label[5:7], label[7, number] = 1, 2, 2
        write(tmp_path / f"labelsTr/p{number}.nii.gz", label)
    about = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    return tmp_path


def found(path: Path | Dataset, level: str) -> list[str]:
    data = open_dataset(path) if isinstance(path, Path) else path
    return [f"{f.cases[0] if f.cases else ''}: {f.found}" for f in check(data) if f.severity == level]


def test_a_sound_data_set(scans: Path) -> None:
    seen: list[int] = []
    findings = check(open_dataset(scans), seen.append)
    assert [finding.found for finding in findings] == [
        "4 cases are too few to call one of them unusual (at least 8 are needed): intensities, spacing, volumes and the fit "
        "of the labels were not compared",
        "of 4 labelled cases: a in 4, b in 4",
        "thick slices as acquired, axial or closest to it; every volume is turned to RAS, as closely as its axes allow",
        "read as segmentation, laid out as nnU-Net raw; classes: background, a, b",
        "patients: each case is a patient of its own (assign patients with --group)",
    ]
    assert seen == [1, 2, 3, 4]


def test_unreadable_case_is_one_finding(scans: Path) -> None:
    (scans / "imagesTr/p1_0000.nii.gz").write_bytes(b"")
    (error,) = found(scans, "error")
    assert error.startswith("p1: ") and "is empty" in error


def test_odd_labels(scans: Path) -> None:
    write(scans / "labelsTr/p0.nii.gz", np.zeros((8, 8, 3), np.uint8))
    write(scans / "labelsTr/p1.nii.gz", np.full((8, 8, 3), 7, np.uint8))
    (scans / "labelsTr/p2.nii.gz").unlink()
    assert any("p1: " in e and "has the value 7" in e for e in found(scans, "error"))
    assert any(w.startswith("p0: the label is empty") for w in found(scans, "warning"))
    assert any(
        text.startswith("p2: 1 of 4 cases have no label (the first is 'p") for text in found(scans, "note")
    )


def test_a_class_that_nobody_has(scans: Path) -> None:
    about = json.loads((scans / "dataset.json").read_text())
    about["labels"]["ghost"] = 3
    (scans / "dataset.json").write_text(json.dumps(about))
    assert found(scans, "warning") == [
        ": class 'ghost' is declared, but occurs in none of the 4 labels that could be read"
    ]


def test_constant_slices_and_near_constant_images(scans: Path) -> None:
    image = np.random.default_rng(1).normal(size=(8, 8, 3)).astype(np.float32)
    image[..., 1] = 4.0
    write(scans / "imagesTr/p0_0000.nii.gz", image)
    dull = np.zeros((20, 20, 3), np.float32)
    dull[0, 0, 0] = 1.0
    write(scans / "imagesTr/p1_0000.nii.gz", dull)
    (scans / "labelsTr/p1.nii.gz").unlink()
    warnings = found(scans, "warning")
    assert "p0: 1 of 3 slices are constant: 1" in warnings
    assert any(w.startswith("p1: 99.9% of the voxels have the same value") for w in warnings)


def test_duplicates(scans: Path) -> None:
    image = (scans / "imagesTr/p0_0000.nii.gz").read_bytes()
    (scans / "imagesTr/p1_0000.nii.gz").write_bytes(image)
    (scans / "labelsTr/p1.nii.gz").write_bytes((scans / "labelsTr/p0.nii.gz").read_bytes())
    assert any("the same image as 'p0' under another patient" in w for w in found(scans, "warning"))
    write(scans / "labelsTr/p1.nii.gz", np.ones((8, 8, 3), np.uint8))
    assert any("p1: the same image as 'p0' with another label" in e for e in found(scans, "error"))


def test_duplicates_across_an_official_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            for number in range(5):
                path = tmp_path / part / kind / f"{part}{kind}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (9, 9), dtype=np.uint8)).save(path)
    assert not found(tmp_path, "error") and not found(tmp_path, "warning")
    copy = tmp_path / "test/cat/testcat0.png"
    copy.write_bytes((tmp_path / "train/cat/traincat0.png").read_bytes())
    (error,) = found(tmp_path, "error")
    assert (
        error.startswith("testcat0: the same image as 'traincat0'") and "in test, that one in train" in error
    )
    copy.unlink()
    assert found(tmp_path, "warning") == []
    for number in (1, 2, 3):
        (tmp_path / f"test/cat/testcat{number}.png").unlink()
        (tmp_path / f"train/cat/traincat{number}.png").unlink()
    assert any("class 'cat' has only 3 cases" in w for w in found(tmp_path, "warning"))


def test_a_split_that_cuts_a_patient(scans: Path) -> None:
    (scans / "splits_final.json").write_text(json.dumps([{"train": ["p0", "p1"], "val": ["p2", "p3"]}]))
    assert found(scans, "error") == []
    data = open_dataset(scans, group="^(p)")  # all of them are one patient
    (error,) = found(data, "error")
    assert "fold 0 of splits_final.json cuts through patient 'p'" in error


def test_mixed_files(scans: Path) -> None:
    rng = np.random.default_rng(5)
    image = rng.normal(size=(8, 8, 3)).astype(np.float32)
    for name in ("imagesTr/p0_0000.nii.gz", "labelsTr/p0.nii.gz"):
        array = image if "images" in name else (image > 0).astype(np.uint8)
        write(scans / name, array, np.diag([-4.0, 1.0, 1.0, 1.0]))
    nib.save(nib.Nifti1Image(image, None), scans / "imagesTr/p1_0000.nii.gz")
    (scans / "labelsTr/p1.nii.gz").unlink()
    warnings_ = found(scans, "warning")
    assert any(
        "1 cases were acquired in thick slices of another plane (the first is 'p0')" in w for w in warnings_
    )
    assert any(
        "1 files do not store their orientation in the body (the first is 'p1')" in w for w in warnings_
    )
    notes = found(scans, "note")
    assert any(
        "different orientations" in n and "brought into one" in n and "LAS" in n and "RAS" in n for n in notes
    )
    assert any("1 files do not store their voxel spacing (the first is 'p1')" in n for n in notes)


def test_signs_that_patients_are_told_apart_wrongly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def pictures(folder: str, names: list[str]) -> Path:
        for name in names:
            for part in ("images", "masks"):
                (tmp_path / folder / part).mkdir(parents=True, exist_ok=True)
                array = rng.integers(0, 255, (9, 9), dtype=np.uint8)
                Image.fromarray((array > 99) * np.uint8(255) if part == "masks" else array).save(
                    tmp_path / folder / part / f"{name}.png"
                )
        return tmp_path / folder

    leaking = pictures("leaking", [f"p{n}_{letter}" for n in range(10) for letter in "ab"])
    (warning,) = [f for f in check(open_dataset(leaking)) if f.severity == "warning"]
    assert "trains and" in warning.found and "is scored; if 'p" in warning.found
    assert len(warning.cases) == 2 and "--group" in warning.advice
    assert found(open_dataset(leaking, group=r"(p\d+)"), "warning") == []
    assert any("20 cases of 10 patients" in n for n in found(open_dataset(leaking, group=r"(p\d+)"), "note"))
    assert found(pictures("sound", [f"BraTS20_Training_{n:03d}" for n in range(12)]), "warning") == []
    crowded = pictures("crowded", [f"a{n}" for n in range(12)] + ["b1", "b2"])
    (warning,) = found(open_dataset(crowded, group="^(a|b)"), "warning")
    assert "12 of 14 cases are of one patient, 'a'" in warning


def test_no_labels_at_all(scans: Path) -> None:
    for file in (scans / "labelsTr").iterdir():
        file.unlink()
    assert ": no case has a label: nothing can be trained or evaluated" in found(scans, "error")


def test_constant_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        for number in range(5):
            colour = rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)
            colour[..., 1] = 7 if (kind, number) == ("a", 0) else colour[..., 1]
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(colour).save(tmp_path / kind / f"{kind}{number}.png")
    assert found(tmp_path, "warning") == ["a0: channel 1 is constant (7)"]


def test_one_odd_label_is_said_once_and_with_its_file(scans: Path) -> None:
    for number in (1, 2, 3):
        (scans / f"imagesTr/p{number}_0000.nii.gz").unlink()
        (scans / f"labelsTr/p{number}.nii.gz").unlink()
    write(scans / "labelsTr/p0.nii.gz", np.full((8, 8, 3), 7, np.uint8))
    findings = [f for f in check(open_dataset(scans)) if f.severity != "note" and f.kind != "split"]
    assert [(f.severity, f.kind, f.cases) for f in findings] == [("error", "cannot be used", ("p0",))]
    assert str(scans / "labelsTr/p0.nii.gz") in findings[0].found


def test_declared_classes_that_nobody_has_are_one_finding(scans: Path) -> None:
    about = json.loads((scans / "dataset.json").read_text())
    about["labels"] |= {"ghost": 3, "spirit": 4}
    (scans / "dataset.json").write_text(json.dumps(about))
    (finding,) = [f for f in check(open_dataset(scans)) if f.severity == "warning"]
    assert finding.found.startswith(
        "classes 'ghost', 'spirit' are declared, but occur in none of the 4 labels"
    )
    assert str(scans / "dataset.json") in finding.advice


def test_slices_that_are_repeated(scans: Path) -> None:
    image = np.random.default_rng(1).normal(size=(8, 8, 3)).astype(np.float32)
    image[..., 2] = image[..., 1]
    write(scans / "imagesTr/p0_0000.nii.gz", image)
    assert found(scans, "warning") == ["p0: 1 slices are equal to the slice before them: 2"]


def test_summary() -> None:
    findings = [
        Finding("error", "duplicate", "bad", "mend it", ("p1", "p2", "p3", "p4", "p5")),
        Finding("note", "layout", "odd " * 20),
        *(Finding("note", "size", f"number {n}") for n in range(10)),
    ]
    lines = summary(findings, 3, width=100).splitlines()
    assert lines[0].split("  ")[0] == "severity" and lines[0].endswith("what was found, and what to do")
    assert lines[1].split() == ["error", "duplicate", "p1,", "p2,", "p3", "and", "2", "more", "bad"]
    assert lines[2].strip() == "-> mend it"
    assert all(len(line) <= 100 for line in lines)
    assert "number 7" in lines[-4] and "... and 2 more of this kind" in " ".join(lines[-3:])
    assert lines[-1] == "3 cases read: 1 error, 0 warnings, 11 notes"


def test_json_names_the_files(scans: Path) -> None:
    write(scans / "labelsTr/p0.nii.gz", np.zeros((8, 8, 3), np.uint8))
    data = open_dataset(scans)
    document = json.loads(json.dumps(to_json(check(data), data)))
    (warning,) = [f for f in document["findings"] if f["severity"] == "warning"]
    assert warning["kind"] == "empty label" and warning["cases"] == ["p0"] and warning["advice"]
    assert warning["files"] == [str(scans / "imagesTr/p0_0000.nii.gz"), str(scans / "labelsTr/p0.nii.gz")]


def test_the_page_needs_no_network_and_shows_the_suspects(scans: Path, tmp_path_factory) -> None:
    (scans / "imagesTr/p1_0000.nii.gz").write_bytes((scans / "imagesTr/p0_0000.nii.gz").read_bytes())
    (scans / "imagesTr/p2_0000.nii.gz").write_bytes(b"")
    data = open_dataset(scans)
    page = write_page(check(data), data, tmp_path_factory.mktemp("page") / "check.html").read_text()
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)
    assert page.count("<img") == page.count('src="data:image/png;base64,') == 2
    assert "labelsTr/p0.nii.gz" in page and "p2_0000.nii.gz is empty" in page
    assert "the same image as &#39;p0&#39; with another label" in page


@pytest.mark.data
def test_leak_in_a_published_data_set(shared_data: Path) -> None:
    """One image of BreastMNIST is in train and in test."""
    errors = found(shared_data / "medmnist/breastmnist.npz", "error")
    assert len(errors) == 1 and errors[0].startswith("test_00076: the same image as 'train_00115'")


def test_a_page_replaces_nothing_but_a_page(scans: Path, tmp_path: Path) -> None:
    data, scan = open_dataset(scans), tmp_path / "scan.nii.gz"
    scan.write_bytes(b"not a page")
    with pytest.raises(SamAdaptError, match=r"scan\.nii\.gz is there and is no page of samadapt check"):
        write_page([], data, scan)
    assert scan.read_bytes() == b"not a page"
    for _ in range(2):
        write_page([], data, tmp_path / "page.html")
