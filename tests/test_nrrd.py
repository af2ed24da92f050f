"""NRRD against SimpleITK's own NIfTI of the same image, which nibabel reads: the same voxels at the same places."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from samadapt import io
from samadapt.types import SamAdaptError

HEAD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: {space}\nsizes: 4 3 2\nspace directions: {directions}\n"
    "kinds: domain domain domain\nendian: little\nencoding: {encoding}\nspace origin: (10,20,30)\n{more}\n"
)
VOXELS = np.arange(24, dtype="<i2").tobytes()


def nrrd(path: Path, content: bytes = VOXELS, **fields: str) -> Path:
    given = {
        "space": "left-posterior-superior",
        "directions": "(2,0,0) (0,3,0) (0,0,5)",
        "encoding": "raw",
        "more": "",
    }
    path.write_bytes(HEAD.format(**given | fields).encode() + content)
    return path


def oblique(channels: int = 1) -> SimpleITK.Image:
    """Turned about two axes, with three spacings; no two voxels alike."""
    rng = np.random.default_rng(channels)
    shape = (4, 5, 6, channels) if channels > 1 else (4, 5, 6)
    image = SimpleITK.GetImageFromArray(rng.normal(size=shape).astype(np.float32), isVector=channels > 1)
    a, b = 0.4, 1.1
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    image.SetDirection((turn @ tip).ravel().tolist())
    image.SetSpacing((0.7, 1.3, 4.0))
    image.SetOrigin((-31.0, 12.5, 7.25))
    return image


def test_the_same_voxels_at_the_same_places_as_in_nifti(tmp_path):
    image = oblique()
    for name in ("a.nrrd", "b.nii.gz"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    SimpleITK.WriteImage(image, str(tmp_path / "c.nrrd"), useCompression=True)
    ours, theirs = (io.read_case(tmp_path / name) for name in ("a.nrrd", "b.nii.gz"))
    assert (ours.image == theirs.image).all() and ours.axes == theirs.axes
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    np.testing.assert_allclose(ours.spacing_mm, theirs.spacing_mm, atol=1e-4)
    assert (io.read_case(tmp_path / "c.nrrd").image == ours.image).all()
    # A voxel's place, as SimpleITK says it: LPS there, RAS here.
    place = np.array(image.TransformIndexToPhysicalPoint((5, 1, 2))) * (-1, -1, 1)
    np.testing.assert_allclose((ours.affine @ (5, 1, 2, 1))[:3], place, atol=1e-5)


@pytest.mark.parametrize(("space", "sign"), [
    ("left-posterior-superior", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1)), ("LPS", (-1, -1, 1)),
    ("left-anterior-superior", (-1, 1, 1)),
])  # fmt: skip
def test_every_space_becomes_ras(tmp_path, space, sign):
    geometry = io.read_geometry(nrrd(tmp_path / "a.nrrd", space=space))
    expected = np.diag([*(np.array(sign) * (2, 3, 5)), 1.0])
    expected[:3, 3] = np.array(sign) * (10, 20, 30)
    np.testing.assert_allclose(geometry.affine, expected)
    assert geometry.spacing_mm == (2, 3, 5) and geometry.shape == (4, 3, 2) and geometry.dtype == "int16"


def test_components_are_channels(tmp_path):
    SimpleITK.WriteImage(oblique(3), str(tmp_path / "a.nrrd"))
    assert io.read_geometry(tmp_path / "a.nrrd").channels == 3
    case = io.read_case(tmp_path / "a.nrrd", channels=[0, 1, 2])
    plain = SimpleITK.VectorIndexSelectionCast(SimpleITK.ReadImage(str(tmp_path / "a.nrrd")), 1)
    SimpleITK.WriteImage(plain, str(tmp_path / "b.nii"))
    assert (case.image[1] == io.read_case(tmp_path / "b.nii").image[0]).all()


@pytest.mark.parametrize("source", ["a.nrrd", "b.nii.gz"])
def test_label_maps_lie_on_their_scan(tmp_path, source):
    """Written as NRRD from a scan of either format; compared by SimpleITK."""
    image = oblique()
    SimpleITK.WriteImage(image, str(tmp_path / source))
    case = io.read_case(tmp_path / source)
    label = 3 * (case.image[0] > 0.5).byte()
    path = io.write_label(tmp_path / "label.nrrd", label, case, "nrrd")
    read = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(read), 3 * (SimpleITK.GetArrayFromImage(image) > 0.5)
    )
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(read, get)(), getattr(image, get)(), atol=1e-4)
    assert (io.read_label(path, case) == label).all()


@pytest.mark.parametrize(("write", "message"), [
    (lambda p: nrrd(p, more="data file: /etc/hostname\n"), "keeps its voxels in another file"),
    (lambda p: nrrd(p, VOXELS[:-2]), "is cut off: its header needs"),
    (lambda p: nrrd(p, gzip.compress(VOXELS)[:-12], encoding="gzip"), "is damaged or cut off"),
    (lambda p: nrrd(p, directions="(2,0,0) (2,0,0) (0,0,5)"), "cannot be read as NRRD|do not say where"),
    (lambda p: nrrd(p, directions="(2,0,0) (0,nan,0) (0,0,5)"), "cannot be read as NRRD|do not say where"),
    (lambda p: p.write_bytes(b""), "is empty"),
    (lambda p: p.write_bytes(b"NRRD0004\ntype: short\n"), "has no NRRD header"),
    (lambda p: p.write_bytes(b"no nrrd\n\nat all"), "has no NRRD header"),
    (lambda p: p.write_bytes(HEAD.replace("4 3 2", "4 x 2").format(
        space="LPS", directions="", encoding="raw", more="").encode()), "has the sizes '4 x 2'"),
    (lambda p: p.write_bytes(HEAD.replace("4 3 2", "90000 90000 900").format(
        space="LPS", directions="(2,0,0) (0,3,0) (0,0,5)", encoding="gzip", more="").encode()), "at most 2147483648"),
])  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, write, message):
    write(tmp_path / "a.nrrd")
    with pytest.raises(SamAdaptError, match=message) as caught:
        io.read_case(tmp_path / "a.nrrd")
    assert "\n" not in str(caught.value)


def test_without_simpleitk_it_is_said(tmp_path, monkeypatch):
    import sys

    nrrd(tmp_path / "a.nrrd")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(SamAdaptError, match="need SimpleITK, which is not installed: pip install"):
        io.read_geometry(tmp_path / "a.nrrd")
