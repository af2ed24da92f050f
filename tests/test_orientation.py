"""A scan has one answer, however its file stores it."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from fakes import tiny_model
from samadapt import io
from samadapt.datasets import open_dataset
from samadapt.evaluation import evaluate_folder
from samadapt.folders import predict_folder
from samadapt.io import nifti
from samadapt.learner import Learner, fit
from samadapt.opening import Opening
from samadapt.prediction import Segmenter
from samadapt.training import TrainConfig
from samadapt.types import Head, SamAdaptError, SamAdaptWarning

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("tiny_encoder")
#: Right or left, anterior or posterior, superior or inferior, in any order: all ways in which a file can store a volume.
CODES = [
    "".join(sign[axis] for axis, sign in zip(order, signs, strict=True))
    for order in itertools.permutations(range(3))
    for signs in itertools.product(("RAS", "LPI"), repeat=3)
]


def plane_of(code: str, thickness: float = 1.0) -> io.Plane:
    """That of files whose axes point right or left, front or back, up or down, as the code says."""
    affine = np.diag([*(1.0 if letter in "RAS" else -1.0 for letter in code), 1.0])
    affine[2, 2] *= thickness
    return io.common_plane([io.Geometry((4, 5, 6), (1.0, 1.0, thickness), affine, 1, "int16")])


RAS = Opening("segmentation", ("background", "bright"), plane=plane_of("RAS"))
#: Oblique by some degrees about every axis, voxels of three sizes.
OBLIQUE = np.array([[1.4, -0.2, 0.3, 5], [0.2, 1.1, -0.4, -7], [-0.25, 0.3, 2.6, 9], [0, 0, 0, 1]])


class Lopsided(Head):
    """Bright pixels, moved to the right and down, and fewer of them at the top: no two orientations look alike to it."""

    task = "segmentation"

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.spec = {"pixels": 1}, {"name": "lopsided", "n_classes": 2}

    def forward(self, features):
        bright = torch.roll(features["pixels"].mean(1), (5, 9), (-2, -1))
        bright = bright + torch.linspace(-0.2, 0.2, bright.shape[-2])[:, None]
        return torch.stack([-bright, bright], dim=1)

    def loss(self, features, target):
        raise NotImplementedError


def turned(image: nib.Nifti1Image, code: str) -> nib.Nifti1Image:
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(code)))


@pytest.mark.parametrize("affine", [np.diag([1.5, 1.5, 1.5, 1]), OBLIQUE], ids=["straight", "oblique"])
def test_predicting_and_turning_can_be_exchanged(tmp_path: Path, affine: np.ndarray) -> None:
    """predict(turn(scan)) = turn(predict(scan)), voxel for voxel, for all 48 orientations."""
    assert len(set(CODES)) == 48
    model = Segmenter(tiny_model(Lopsided(), side=64), RAS)
    scan = nib.Nifti1Image(RNG.normal(size=(12, 10, 7)).astype(np.float32), affine)
    answers = {}
    for code in CODES:
        path = tmp_path / f"{code}.nii"
        nib.save(turned(scan, code), path)
        case = model.case(path)
        assert case.spacing_mm == pytest.approx(model.case(tmp_path / f"{CODES[0]}.nii").spacing_mm)
        model.predict_to(case, tmp_path / f"{code}_answer.nii", tmp_path / f"{code}.npy")
        written = nib.load(tmp_path / f"{code}_answer.nii")
        assert np.allclose(written.affine, nib.load(path).affine)
        answers[code] = np.asanyarray(turned(written, "RAS").dataobj)
        bright = np.load(tmp_path / f"{code}.npy")[1]  # the probabilities lie as the label map does
        agree = (np.asanyarray(written.dataobj) == 1) == (bright > 0.5)
        assert agree.mean() > 0.99  # probabilities are rounded to float16
    assert 0.2 < answers["RAS"].mean() < 0.8
    for code in CODES:
        assert np.array_equal(answers[code], answers["RAS"]), code


def test_the_test_would_see_a_scan_that_is_not_turned(tmp_path: Path) -> None:
    as_stored = Opening("segmentation", ("background", "bright"), plane=io.Plane(None, 2))
    scan = nib.Nifti1Image(RNG.normal(size=(12, 10, 7)).astype(np.float32), np.diag([1.5, 1.5, 1.5, 1]))
    found = []
    for code in ("RAS", "LAS"):
        nib.save(turned(scan, code), tmp_path / f"{code}.nii")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamAdaptWarning)
            model = Segmenter(tiny_model(Lopsided(), side=64), as_stored)
            found.append(model.predict(tmp_path / f"{code}.nii"))
    assert not np.array_equal(found[0], found[1][:, :, ::-1])


def test_a_label_is_turned_as_its_scan(tmp_path: Path) -> None:
    label = RNG.integers(0, 3, (6, 5, 4)).astype(np.uint8)
    image = nib.Nifti1Image(RNG.normal(size=(6, 5, 4)).astype(np.float32), OBLIQUE)
    seen = set()
    for code in ("RAS", "PIR", "SLA"):
        nib.save(turned(image, code), tmp_path / "scan.nii")
        nib.save(turned(nib.Nifti1Image(label, OBLIQUE), code), tmp_path / "label.nii")
        case = io.read_case(tmp_path / "scan.nii", tmp_path / "label.nii", plane=RAS.plane)
        assert case.label is not None
        seen.add((case.image.numpy().tobytes(), case.label.numpy().tobytes()))
        io.write_label(tmp_path / "back.nii", case.label, case)
        back = np.asanyarray(nib.load(tmp_path / "back.nii").dataobj)
        assert np.array_equal(back, np.asanyarray(nib.load(tmp_path / "label.nii").dataobj))
        truth = io.read_truth(tmp_path / "label.nii", plane=RAS.plane)
        assert truth.label is not None and torch.equal(truth.label, case.label)
    assert len(seen) == 1


def pairs(folder: Path, scans: dict[str, nib.Nifti1Image]) -> Path:
    for name, image in scans.items():
        for part, array in (
            ("images", image.dataobj),
            ("masks", (np.asanyarray(image.dataobj) > 0).astype(np.uint8)),
        ):
            (folder / part).mkdir(parents=True, exist_ok=True)
            header = image.header.copy()
            header.set_data_dtype(np.asanyarray(array).dtype)
            nib.save(
                nib.Nifti1Image(np.asanyarray(array), image.affine, header), folder / part / f"{name}.nii.gz"
            )
    return folder


def noise(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], code: str = "RAS"
) -> nib.Nifti1Image:
    image = nib.Nifti1Image(RNG.normal(size=shape).astype(np.float32), np.diag([*spacing, 1.0]))
    return turned(image, code)


def test_the_plane_is_that_of_most_volumes_and_not_that_of_each_file(tmp_path: Path) -> None:
    """Slices of 1.0 mm with pixels of 1.5 mm are still the slices that the others have."""
    data = open_dataset(
        pairs(
            tmp_path,
            {
                "a": noise((8, 7, 3), (1, 1, 5)),
                "b": noise((8, 7, 3), (1, 1, 5), "LPS"),
                "c": noise((8, 7, 3), (1, 1, 5), "RAS"),
                "thin": noise((8, 7, 3), (1.5, 1.5, 1.0)),
                "sagittal": noise((8, 7, 3), (1, 1, 5), "SRA"),
            },
        )
    )
    assert data.opening.plane == plane_of("RAS", 5.0)
    assert data.opening.slices.startswith(
        "thick slices as acquired, axial or closest to it; every volume is turned to RAS"
    )
    assert {tuple(case.image.shape) for case in data} == {(1, 3, 7, 8)}
    assert open_dataset(tmp_path, slice_axis=0).case("sagittal").image.shape == (1, 8, 3, 7)


def test_volumes_that_do_not_say_how_they_lie_are_taken_as_stored_and_that_is_said(tmp_path: Path) -> None:
    silent = nib.Nifti1Image(RNG.normal(size=(8, 7, 3)).astype(np.float32), None)
    silent.header.set_zooms((1, 1, 5))
    data = open_dataset(pairs(tmp_path / "mixed", {"a": noise((8, 7, 3), (1, 1, 5)), "silent": silent}))
    with pytest.warns(SamAdaptWarning, match="sform and qform codes are 0"):
        assert data.case("silent").image.shape == (1, 3, 7, 8)
    alone = open_dataset(pairs(tmp_path / "alone", {"silent": silent, "again": silent}))
    assert alone.opening.plane == io.Plane(None, 2) and "store no orientation" in alone.opening.slices
    nib.save(noise((8, 7, 3), (1, 1, 5), "LPS"), tmp_path / "lps.nii")
    with pytest.warns(SamAdaptWarning, match="cannot be reoriented"):
        alone.opening.read_case([tmp_path / "lps.nii"], "lps")


def test_a_file_without_slices_of_the_plane_is_refused(tmp_path: Path) -> None:
    nib.save(noise((8, 1, 9), (1, 5, 1)), tmp_path / "coronal.nii")
    with pytest.raises(SamAdaptError, match=r"coronal\.nii has \(8, 1, 9\) voxels and so no axial slices"):
        RAS.read_case([tmp_path / "coronal.nii"], "coronal")


def tilted(angle: float, code: str = "RAS") -> nib.Nifti1Image:
    """Thick slices, tilted about the left-right axis by an angle in degrees."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]])
    return turned(
        nib.Nifti1Image(
            np.arange(8 * 7 * 3, dtype=np.float32).reshape(8, 7, 3), turn @ np.diag([1, 1, 8, 1])
        ),
        code,
    )


def test_thick_slices_stay_slices_however_the_acquisition_was_tilted(tmp_path: Path) -> None:
    """Short-axis views of the heart are tilted by any angle: the closest axis of the body differs from patient to patient."""
    plane = io.common_plane([nifti.geometry(tilted(20), Path("a")), nifti.geometry(tilted(30), Path("b"))])
    assert plane.thick and plane.name == "axial"
    for angle in (0, 20, 44, 46, 58):
        seen = set()
        for code in ("RAS", "LPS", "SRA", "PIL"):
            nib.save(tilted(angle, code), tmp_path / "scan.nii")
            case = io.read_case(tmp_path / "scan.nii", plane=plane)
            assert case.image.shape == (1, 3, 7, 8)
            seen.add(case.image.numpy().tobytes())
        assert len(seen) == 1
    nib.save(tilted(88), tmp_path / "across.nii")
    with pytest.warns(SamAdaptWarning, match="acquired in thick slices of another plane"):
        assert io.read_case(tmp_path / "across.nii", plane=plane).image.shape == (1, 3, 7, 8)


def test_no_patient_is_mirrored(tmp_path: Path) -> None:
    """Whatever a file's axes are, the turned volume has the handedness of the reference."""
    plane = plane_of("LPS")
    for code in CODES:
        geometry = nifti.geometry(turned(nib.Nifti1Image(np.zeros((4, 5, 6)), OBLIQUE), code), Path("x"))
        axes, flips = plane.place(geometry, Path("x"))
        own = geometry.affine[:3, list(axes)] * np.where(flips, -1, 1)  # type: ignore[index]
        assert np.linalg.det(own) * np.linalg.det(np.array(plane.directions)) > 0


@pytest.mark.data
def test_hippocampi_stored_otherwise_score_the_same(shared_data: Path, tmp_path: Path) -> None:
    data = open_dataset(shared_data / "Task04_Hippocampus")
    split = data.split(labels=5, seed=0)
    learner = Learner("unet", "pixels", side=64, options={"width": 8}, augment="none")
    config = TrainConfig(steps=300, batch_size=8, device="cpu")
    run = fit(learner, data, split, config, tmp_path / "run")
    dice = {}
    for code in ("RAS", "LPS", "PIR", "RSA"):
        for case in split.val[:10]:
            for part, path in (("scans", data.entry(case).images[0]), ("truth", data.entry(case).labels[0])):
                folder = tmp_path / code / part
                folder.mkdir(parents=True, exist_ok=True)
                nib.save(turned(nib.load(path), code), folder / f"{case}.nii.gz")
        predict_folder(run, tmp_path / code / "scans", tmp_path / code / "p", device="cpu")
        found = evaluate_folder(tmp_path / code / "p", tmp_path / code / "truth")
        dice[code] = next(row.mean for row in found.summary if (row.target, row.metric) == ("mean", "dsc"))
    assert dice["RAS"] > 0.3, dice  # taken as stored, LPS and PIR had hardly any overlap
    assert max(dice.values()) - min(dice.values()) < 0.01, dice
