"""Synthetic data sets: the same from the same seed, readable by our own door, and with something to learn."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from benchmarks.photos import make_photo_phantom
from scipy import ndimage

from samadapt import io
from samadapt.check import check
from samadapt.datasets import open_dataset
from samadapt.phantom import CLASSES, make_phantom
from samadapt.types import SamAdaptError


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom") / "heart", patients=4, size=64, slices=6)


def digest(folder: Path) -> str:
    """Of every file's name and content."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    content = [f.relative_to(folder).as_posix().encode() + f.read_bytes() for f in files]
    return hashlib.sha256(b"".join(content)).hexdigest()


def test_it_is_a_sound_data_set(phantom: Path) -> None:
    data = open_dataset(phantom)
    assert data.layout == "nnU-Net raw" and data.classes == CLASSES and len(data) == 8
    assert sorted(set(data.groups.values())) == [f"patient{n:03d}" for n in (1, 2, 3, 4)]
    assert [f for f in check(data) if f.severity != "note"] == []
    split = data.split(labels=2)
    assert {data.groups[i] for i in split.val} == {"patient004"} and len(split.train) == 4


def test_anatomy(phantom: Path) -> None:
    """Muscle surrounds the cavity; it contracts; the RV is beside and not inside."""
    data = open_dataset(phantom)
    for patient in sorted(set(data.groups.values())):
        volumes = {}
        for frame in ("frame01", "frame10"):
            case = data.case(f"{patient}_{frame}")
            assert case.label is not None and case.spacing_mm is not None
            label = case.label.numpy()
            assert set(np.unique(label)) == {0, 1, 2, 3}
            for image, plane in zip(case.image[0].numpy(), label, strict=True):
                if (plane == 3).sum() > 4:
                    around = ndimage.binary_dilation(plane == 3) & (plane != 3)
                    assert set(np.unique(plane[around])) == {2}
                    assert image[plane == 3].mean() > 1.3 * image[plane == 2].mean()
            volumes[frame] = (label == 3).sum()
        assert volumes["frame10"] < 0.75 * volumes["frame01"]


def test_patients_differ_in_geometry(phantom: Path) -> None:
    affines = [nib.load(f).affine for f in sorted((phantom / "imagesTr").iterdir())]
    assert len({tuple(a.ravel()) for a in affines}) == 4  # both frames of a patient lie alike
    assert {np.sign(np.linalg.det(a)) for a in affines} == {-1.0, 1.0}
    image = io.read_geometry(next(iter((phantom / "imagesTr").iterdir())))
    assert image.spacing_mm is not None and image.spacing_mm[2] > 4 * image.spacing_mm[0]


def test_same_seed_same_bytes(phantom: Path, tmp_path: Path) -> None:
    again = make_phantom(tmp_path / "heart", patients=4, size=64, slices=6)
    assert digest(again) == digest(phantom)
    other = make_phantom(tmp_path / "other", patients=4, size=64, slices=6, seed=1)
    assert digest(other / "imagesTr") != digest(phantom / "imagesTr")
    more = make_phantom(tmp_path / "more", patients=5, size=64, slices=6)
    name = "imagesTr/patient003_frame10_0000.nii.gz"  # a patient depends on the seed and its own number alone
    assert (more / name).read_bytes() == (phantom / name).read_bytes()


def test_nothing_is_overwritten(phantom: Path, tmp_path: Path) -> None:
    before = digest(phantom)
    times = [f.stat().st_mtime_ns for f in sorted(phantom.rglob("*"))]
    make_phantom(phantom, patients=4, size=64, slices=6)
    assert digest(phantom) == before and times == [f.stat().st_mtime_ns for f in sorted(phantom.rglob("*"))]
    with pytest.raises(SamAdaptError, match="holds something else"):
        make_phantom(phantom, patients=5, size=64, slices=6)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(SamAdaptError, match="holds something else"):
        make_phantom(tmp_path / "mine")
    assert [f.name for f in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_a_broken_off_phantom_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(io, "write_volume", fail)
    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path / "heart", patients=3, size=48, slices=3)
    assert list(tmp_path.iterdir()) == []


def test_photographs(tmp_path: Path) -> None:
    out = make_photo_phantom(tmp_path / "spots", images=32, size=48)
    data = open_dataset(out)
    assert (
        data.layout == "class folders" and data.classes == ("irregular", "regular") and data.window == "none"
    )
    split = data.split()
    assert len(split.train) == 24 and len(split.val) == 8
    assert [f for f in check(data) if f.severity != "note"] == []
    ragged = {}
    for case_id in data.ids:  # a ragged contour is long for its area
        spot = io.read_case(out / "masks" / f"{case_id}.png").image[0, 0].numpy() > 0
        edge = spot & ~ndimage.binary_erosion(spot)
        ragged.setdefault(int(data.label(case_id)), []).append(edge.sum() / np.sqrt(spot.sum()))  # type: ignore[arg-type]
    assert np.mean(ragged[0]) > np.mean(ragged[1]) * 1.05
    assert digest(make_photo_phantom(tmp_path / "again", images=32, size=48)) == digest(out)
    other = make_photo_phantom(tmp_path / "other", images=32, size=48, seed=1)
    assert digest(other / "train") != digest(out / "train")


@pytest.mark.parametrize(
    "call",
    [
        lambda p: make_phantom(p, patients=2),
        lambda p: make_phantom(p, size=10),
    ],
)
def test_too_small(tmp_path: Path, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SamAdaptError, match="expected at least"):
        call(tmp_path / "x")
