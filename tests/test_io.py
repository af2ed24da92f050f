"""Files in and out: geometry laws, and what is refused."""

from __future__ import annotations

import dataclasses
import gzip
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image

from samadapt import io
from samadapt.types import SamAdaptError, SamAdaptWarning


def volume(shape: tuple[int, ...] = (6, 5, 4), dtype: type = np.float32) -> np.ndarray:
    """Every voxel another value."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def some_label(shape: tuple[int, ...] = (6, 5, 4)) -> np.ndarray:
    """No two lines of voxels alike, so that nothing can be moved unnoticed."""
    return np.random.default_rng(3).integers(0, 4, shape).astype(np.uint8)


def save(
    path: Path, array: np.ndarray, affine: np.ndarray | None = None, sform: int = 1, qform: int = 1
) -> Path:
    affine = np.diag([1.5, 1.5, 8.0, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform, strip_shears=True)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


# ---------------------------------------------------------------- geometry laws


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Oblique, left- or right-handed, any axis order (LPS, RAS, ...), any row or column negated."""
    angles = [draw(st.floats(-3.1, 3.1)) for _ in range(3)]
    rotation = np.eye(3)
    for axis, angle in enumerate(angles if draw(st.booleans()) else [0.0] * 3):
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        a, b = [n for n in range(3) if n != axis]
        turn[[a, a, b, b], [a, b, a, b]] = cos, -sin, sin, cos
        rotation = rotation @ turn
    order = draw(st.permutations(range(3)))
    signs = np.array([draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)])
    sizes = np.array([draw(st.sampled_from([0.7, 1.5, 3.0, 10.0])) for _ in range(3)])
    affine = np.eye(4)
    affine[:3, :3] = rotation[:, order] * signs * sizes
    affine[:3, 3] = [draw(st.floats(-200, 200)) for _ in range(3)]
    return affine


@given(
    affine=affines(),
    slice_axis=st.sampled_from([None, 0, 1, 2]),
    codes=st.sampled_from([(1, 1), (2, 0), (0, 1), (4, 2), (0, 0), (3, 3)]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
@settings(max_examples=60, deadline=None)
def test_a_label_goes_back_to_its_voxels(
    affine: np.ndarray, slice_axis: int | None, codes: tuple[int, int], suffix: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = save(folder / f"scan{suffix}", volume(), affine, *codes)
        label = some_label()
        truth = folder / f"truth{suffix}"
        source = nib.load(image)
        nib.save(nib.Nifti1Image(label, source.affine, source.header), truth)
        case = io.read_case(image, truth, plane=io.Plane(None, slice_axis))
        written = nib.load(io.write_label(folder / f"out{suffix}", case.label, case))
        stored = np.asarray(written.dataobj)

    assert np.array_equal(stored, label)
    assert np.array_equal(written.affine, source.affine)
    for key in ("sform_code", "qform_code", "xyzt_units", "quatern_b", "qoffset_x"):
        assert written.header[key] == source.header[key], key
    assert np.array_equal(written.header["pixdim"], source.header["pixdim"])  # [0] is the handedness
    assert written.get_data_dtype() == np.uint8


@given(affine=affines(), slice_axis=st.sampled_from([None, 0, 1, 2]))
@settings(max_examples=40, deadline=None)
def test_a_voxel_keeps_its_place_in_space(affine: np.ndarray, slice_axis: int | None) -> None:
    """The value at (d, h, w) is the file's value there, and the spacing is the distance of neighbours."""
    with tempfile.TemporaryDirectory() as name:
        path = save(Path(name) / "scan.nii", volume(), affine)
        case = io.read_case(path, plane=io.Plane(None, slice_axis))
        stored = np.asarray(nib.load(path).dataobj)
    at = [0, 0, 0]
    for place, axis in zip((1, 2, 3), case.axes, strict=True):
        at[axis] = place
    assert case.image[0, 1, 2, 3] == stored[tuple(at)]
    assert case.spacing_mm == pytest.approx(
        [np.linalg.norm(affine[:3, axis]) for axis in case.axes], rel=1e-4
    )
    assert sorted(case.axes) == [0, 1, 2] and case.axes[1] > case.axes[2]


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "LAS", "IPL"])
def test_reoriented_files_hold_the_same_body(tmp_path: Path, orientation: str) -> None:
    """The same body stored in another order gives the same value at the same millimetre."""
    affine = np.diag([-1.0, 2.0, 5.0, 1.0])
    ornt = ornt_transform(axcodes2ornt("LAS"), axcodes2ornt(orientation))
    turned = nib.orientations.apply_orientation(volume(), ornt)
    placed = affine @ inv_ornt_aff(ornt, (6, 5, 4))
    case = io.read_case(save(tmp_path / "turned.nii", turned, placed))
    assert case.spacing_mm is not None and case.spacing_mm[0] == 5.0
    index = np.zeros(4)
    index[3] = 1
    for place, axis in zip((1, 2, 3), case.axes, strict=True):
        index[axis] = place
    body = np.round(np.linalg.inv(affine) @ placed @ index).astype(int)
    assert case.image[0, 1, 2, 3] == volume()[tuple(body[:3])]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("change", ["mirror", "shift"])
def test_a_mirrored_or_shifted_answer_is_another_file(tmp_path: Path, axis: int, change: str) -> None:
    """The round trip above can fail: what is moved before writing is found moved in the file."""
    label = some_label()
    case = io.read_case(save(tmp_path / "scan.nii", volume()), save(tmp_path / "truth.nii", label))
    assert case.label is not None
    moved = case.label.flip(axis) if change == "mirror" else case.label.roll(1, axis)
    written = nib.load(io.write_label(tmp_path / "out.nii", moved, case))
    assert not np.array_equal(np.asarray(written.dataobj), label)


def test_slicing_axis(tmp_path: Path) -> None:
    def axes(sizes: tuple[float, float, float], shape: tuple[int, ...] = (6, 5, 4)) -> tuple[int, ...]:
        path = save(tmp_path / "scan.nii", volume(shape), np.diag([*sizes, 1.0]))
        return io.read_case(path).axes

    assert axes((1, 1, 8)) == (2, 1, 0)
    assert axes((8, 1, 1)) == (0, 2, 1)
    assert axes((1, 8, 1)) == (1, 2, 0)
    assert axes((1, 1, 1)) == (2, 1, 0)  # equal: the last
    assert axes((1.00001, 1, 1)) == (2, 1, 0)  # digits are not thickness
    assert axes((1, 1, 8), (1, 5, 4)) == (0, 2, 1)  # the only slice
    with pytest.raises(SamAdaptError, match="slice axis is 3"):
        io.read_case(tmp_path / "scan.nii", plane=io.Plane(None, 3))


def test_values_are_as_the_header_scales_them(tmp_path: Path) -> None:
    image = nib.Nifti1Image(volume(dtype=np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "ct.nii.gz")
    case = io.read_case(tmp_path / "ct.nii.gz")
    assert case.image.dtype == torch.float32
    stored = np.asarray(nib.load(tmp_path / "ct.nii.gz").dataobj)
    assert torch.equal(case.image[0], torch.from_numpy(stored.astype(np.float32).T.copy()))
    label = io.write_label(tmp_path / "label.nii.gz", torch.ones_like(case.image[0]), case)
    with gzip.open(label) as file:
        header = nib.Nifti1Header.from_fileobj(file)
    assert float(header["scl_inter"]) in (0.0,) or np.isnan(header["scl_inter"])
    assert np.asarray(nib.load(label).dataobj).max() == 1


def test_what_the_source_says_of_grey_values_is_not_copied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(volume(), np.eye(4))
    image.header["cal_max"], image.header["descrip"] = 900, b"Jane Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, tmp_path / "scan.nii")
    case = io.read_case(tmp_path / "scan.nii")
    io.write_label(tmp_path / "label.nii", torch.ones_like(case.image[0]), case)
    assert b"Jane" not in (tmp_path / "label.nii").read_bytes()
    assert nib.load(tmp_path / "label.nii").header["cal_max"] == 0


def test_spacing_that_the_file_does_not_say(tmp_path: Path) -> None:
    image = nib.Nifti1Image(volume(), None)
    nib.save(image, tmp_path / "bare.nii")
    assert io.read_geometry(tmp_path / "bare.nii").spacing_mm is None
    image.header.set_zooms((0.5, 0.5, 3.0))
    nib.save(image, tmp_path / "sized.nii")
    assert io.read_geometry(tmp_path / "sized.nii").spacing_mm == (0.5, 0.5, 3.0)
    metres = nib.Nifti1Image(volume(), np.diag([0.001, 0.001, 0.005, 1.0]))
    metres.header.set_xyzt_units("meter")
    nib.save(metres, tmp_path / "metres.nii")
    assert io.read_geometry(tmp_path / "metres.nii").spacing_mm == pytest.approx((1, 1, 5))


def test_two_dimensional_and_trailing_axes(tmp_path: Path) -> None:
    flat = io.read_case(save(tmp_path / "flat.nii", volume((6, 5))))
    assert flat.image.shape == (1, 1, 5, 6)
    written = nib.load(io.write_label(tmp_path / "label.nii", torch.ones(1, 5, 6), flat))
    assert written.shape == (6, 5)
    nib.save(nib.Nifti1Image(volume((6, 5, 4, 1)), np.eye(4)), tmp_path / "four.nii")
    case = io.read_case(tmp_path / "four.nii")
    assert case.image.shape == (1, 4, 5, 6)
    assert nib.load(io.write_label(tmp_path / "label.nii", torch.ones(4, 5, 6), case)).shape == (6, 5, 4)


# ---------------------------------------------------------------- channels


def test_channels_from_files_and_from_a_fourth_axis(tmp_path: Path) -> None:
    stack = volume((6, 5, 4, 3))
    nib.save(nib.Nifti1Image(stack, np.eye(4)), tmp_path / "stack.nii")
    files = [save(tmp_path / f"a_{n:04d}.nii", stack[..., n], np.eye(4)) for n in range(3)]
    case = io.read_case(files, channels=[2, 0])
    assert torch.equal(case.image, io.read_case(tmp_path / "stack.nii", channels=[2, 0]).image)
    assert case.image.shape == (2, 4, 5, 6) and case.image[0, 0, 0, 0] == 2
    with pytest.raises(SamAdaptError, match=r"stack\.nii has 4 axes .*--channels"):
        io.read_case(tmp_path / "stack.nii")
    with pytest.raises(SamAdaptError, match="channel 3 was asked for"):
        io.read_case(files, channels=[3])
    shifted = save(tmp_path / "b_0001.nii", volume(), np.diag([1, 1, 1.2, 1]))
    with pytest.raises(SamAdaptError, match=r"b_0001\.nii lies elsewhere"):
        io.read_case([files[0], shifted])


def test_names_of_cases_and_channels(tmp_path: Path) -> None:
    for name in (
        "b_0000.nii.gz",
        "b_0001.nii.gz",
        "a_0000.nii.gz",
        "a_0001.nii.gz",
        "notes.txt",
        ".c_0000.nii",
    ):
        (tmp_path / name).touch()
    files = io.find_files(tmp_path)
    assert [f.name for f in files] == ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"]
    groups = io.group_channels(files)
    assert {k: [f.name for f in v] for k, v in groups.items()} == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
    }
    assert io.case_name(files[0], channels=True) == "a" and io.case_name(files[0]) == "a_0000"
    with pytest.raises(SamAdaptError, match="'b' has the channels"):
        io.group_channels(files[:3])
    years = [Path("scan_2021.png"), Path("scan_2022.png")]  # four digits that are not channels
    assert set(io.group_channels(years)) == {"scan_2021", "scan_2022"}
    photographs = [Path(f"IMG_{n:04d}.png") for n in range(3)]
    assert len(io.group_channels(photographs)) == 3
    frames = [Path(f"cine_{n:04d}.nii.gz") for n in range(30)]
    assert len(io.group_channels(frames)) == 30
    assert io.group_channels([]) == {}
    with pytest.raises(SamAdaptError, match="same channel of a case"):
        io.group_channels([Path("a_0000.nii"), Path("a_0000.nii.gz")])
    with pytest.raises(SamAdaptError, match="same name"):
        io.group_channels([Path("a.png"), Path("a.jpg")])


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (volume() / 2, r"truth\.nii has the value 0\.5 .*not whole numbers"),
        (volume() - 3, r"truth\.nii has the value -3; expected class numbers"),
        (volume() * 10, r"truth\.nii has the value 1190"),
        (np.where(volume() == 7, np.nan, 0), r"truth\.nii has the value nan"),
        (volume((6, 5, 3)), r"truth\.nii has \(6, 5, 3\) voxels, but .*scan\.nii has \(6, 5, 4\)"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    scan = save(tmp_path / "scan.nii", volume())
    truth = save(tmp_path / "truth.nii", array.astype(np.float32))
    with pytest.raises(SamAdaptError, match=message):
        io.read_case(scan, truth)


def test_label_geometry_has_a_tolerance(tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii", volume())
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    near, far = affine.copy(), affine.copy()
    near[0, 1], far[0, 3] = 1e-6, 1.5  # the eighth digit; one voxel
    label = np.ones((6, 5, 4), np.uint8)
    assert io.read_case(scan, save(tmp_path / "near.nii", label, near)).label is not None
    with pytest.raises(SamAdaptError, match=r"far\.nii lies elsewhere .*affine\[0, 3\] is 1\.5"):
        io.read_case(scan, save(tmp_path / "far.nii", label, far))
    mirrored = affine @ np.diag([-1.0, 1, 1, 1])
    with pytest.raises(SamAdaptError, match="lies elsewhere"):
        io.read_case(scan, save(tmp_path / "mirrored.nii", label, mirrored))


def test_declared_values(tmp_path: Path) -> None:
    scan = io.read_case(save(tmp_path / "scan.nii", volume()))
    label = np.zeros((6, 5, 4), np.uint8)
    label[0, 0, 0], label[1, 0, 0] = 9, 5
    path = save(tmp_path / "truth.nii", label)
    read = io.read_label(path, scan, {0: 0, 5: 1, 9: 255})
    assert sorted(read.unique().tolist()) == [0, 1, 255] and read[0, 0, 1] == 1
    with pytest.raises(SamAdaptError, match=r"has the value 9 .*declares \[0, 5\] = background, tumour"):
        io.read_label(path, scan, {0: 0, 5: 1}, ("background", "tumour"))
    assert io.label_values(path) == {0: 118, 5: 1, 9: 1}
    alone = io.read_truth(path)
    assert alone.label is not None and torch.equal(alone.label, io.read_label(path, scan))
    empty = io.read_truth(
        save(tmp_path / "empty.nii", np.zeros((6, 5, 4), np.uint8))
    )  # no structure: no error
    assert empty.spacing_mm == (8.0, 1.5, 1.5)


# ---------------------------------------------------------------- damaged and odd files


def test_damaged_volumes(tmp_path: Path) -> None:
    whole = save(tmp_path / "scan.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20))).read_bytes()
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(SamAdaptError, match=r"empty\.nii\.gz is empty; expected a whole NIfTI"):
        io.read_case(tmp_path / "empty.nii.gz")
    for end in (200, len(whole) // 2, len(whole) - 9):
        (tmp_path / "cut.nii.gz").write_bytes(whole[:end])
        with pytest.raises(SamAdaptError, match=r"cut\.nii\.gz cannot be read .*copy or export it again"):
            io.read_case(tmp_path / "cut.nii.gz")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    (tmp_path / "flipped.nii.gz").write_bytes(flipped)
    with pytest.raises(SamAdaptError, match=r"flipped\.nii\.gz cannot be read"):
        io.read_case(tmp_path / "flipped.nii.gz")
    (tmp_path / "text.nii").write_text("not a volume" * 100)
    with pytest.raises(SamAdaptError, match=r"text\.nii cannot be read"):
        io.read_case(tmp_path / "text.nii")
    with pytest.raises(SamAdaptError, match=r"missing\.nii does not exist"):
        io.read_case(tmp_path / "missing.nii")
    with pytest.raises(SamAdaptError, match=r"scan\.mha is of no format that is read \(\.nii"):
        io.read_case(tmp_path / "scan.mha")


def test_values_that_are_refused(tmp_path: Path) -> None:
    array = volume()
    array[2, 1, 0], array[0, 0, 0] = np.nan, np.inf
    with pytest.raises(SamAdaptError, match=r"odd\.nii has 2 voxels that are NaN or infinite"):
        io.read_case(save(tmp_path / "odd.nii", array))
    with pytest.raises(SamAdaptError, match=r"flat\.nii is constant: every voxel is 7"):
        io.read_case(save(tmp_path / "flat.nii", np.full((6, 5, 4), 7.0)))
    rgb = np.zeros((6, 5, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    with pytest.raises(SamAdaptError, match="expected real numbers"):
        io.read_case(tmp_path / "rgb.nii")


def test_shapes_that_are_no_volume(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(volume((2, 2, 2, 2, 2)), np.eye(4)), tmp_path / "five.nii")
    with pytest.raises(SamAdaptError, match=r"five\.nii has 5 axes"):
        io.read_geometry(tmp_path / "five.nii")
    nib.save(nib.Nifti1Image(volume((2, 2, 2, 2)).astype(np.uint8), np.eye(4)), tmp_path / "four.nii")
    scan = save(tmp_path / "scan.nii", volume((2, 2, 2)))
    with pytest.raises(SamAdaptError, match=r"four\.nii has 4 axes .*expected a label map of 3"):
        io.read_case(scan, tmp_path / "four.nii")


def test_an_answer_that_does_not_fit(tmp_path: Path) -> None:
    case = io.read_case(save(tmp_path / "scan.nii", volume()))
    with pytest.raises(SamAdaptError, match="does not fit case"):
        io.write_label(tmp_path / "out.nii", torch.zeros(4, 5, 5), case)
    with pytest.raises(SamAdaptError, match=r"classes 0\.\.255"):
        io.write_label(tmp_path / "out.nii", torch.full((4, 5, 6), 300), case)
    with pytest.raises(SamAdaptError, match=r"cannot be written to .*out\.png"):
        io.write_label(tmp_path / "out.png", torch.zeros(4, 5, 6), case)
    save(tmp_path / "scan.nii", volume((6, 5, 3)))  # changed since it was read
    with pytest.raises(SamAdaptError, match=r"does not fit .*predict on this scan"):
        io.write_label(tmp_path / "out.nii", torch.zeros(4, 5, 6), case)
    assert not (tmp_path / "out.nii").exists()


# ---------------------------------------------------------------- probabilities


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_probabilities_lie_as_the_label_map_does(tmp_path: Path, slice_axis: int) -> None:
    case = io.read_case(save(tmp_path / "scan.nii", volume()), plane=io.Plane(None, slice_axis))
    maps = torch.rand(3, *case.image.shape[1:], generator=torch.Generator().manual_seed(0))
    slices = (maps[:, d] for d in range(maps.shape[1]))
    stored = np.load(io.write_probabilities(tmp_path / "p.npy", slices, 3, case), mmap_mode="r")
    assert stored.shape == (3, 6, 5, 4) and stored.dtype == np.float16
    label = nib.load(io.write_label(tmp_path / "label.nii", maps.argmax(0), case))
    assert np.array_equal(np.asarray(stored, np.float32).argmax(0), np.asarray(label.dataobj))
    with pytest.raises(SamAdaptError, match="has another suffix"):
        io.write_probabilities(tmp_path / "p.nii", iter(()), 3, case)


# ---------------------------------------------------------------- pictures


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (7, 5), **options: object) -> Path:
    rng = np.random.default_rng(0)
    channels = {"RGB": 3, "RGBA": 4, "LA": 2, "CMYK": 4}.get(mode, 1)
    array = rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    image = Image.fromarray(array[..., 0] if channels == 1 else array, mode if channels > 1 else None)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures_are_as_stored(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / f"a{suffix}")
    case = io.read_case(path)
    stored = np.asarray(Image.open(path))
    assert case.image.shape == (3, 1, 5, 7) and case.spacing_mm is None and case.affine is None
    assert np.array_equal(case.image[:, 0].permute(1, 2, 0).numpy(), stored)
    grey = io.read_case(picture(tmp_path / f"grey{suffix}", "L"))
    assert grey.image.shape == (1, 1, 5, 7)
    deep = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000
    Image.fromarray(deep).save(tmp_path / f"deep{suffix}")
    assert np.array_equal(io.read_case(tmp_path / f"deep{suffix}").image[0, 0].numpy(), deep)
    assert io.read_geometry(tmp_path / f"deep{suffix}").dtype == "uint16"


def test_a_palette_is_its_colours_and_black_and_white_is_0_and_255(tmp_path: Path) -> None:
    picture(tmp_path / "rgb.png")
    image = Image.open(tmp_path / "rgb.png").quantize(16)
    image.save(tmp_path / "p.png")
    colours = np.asarray(image.convert("RGB"))
    assert np.array_equal(io.read_case(tmp_path / "p.png").image[:, 0].permute(1, 2, 0).numpy(), colours)
    Image.fromarray(np.eye(5, 7) > 0).save(tmp_path / "bw.png")
    assert sorted(io.read_case(tmp_path / "bw.png").image.unique().tolist()) == [0, 255]
    assert io.label_values(tmp_path / "bw.png") == {0: 30, 255: 5}


def test_a_picture_label_goes_back_indexed(tmp_path: Path) -> None:
    case = io.read_case(picture(tmp_path / "a.jpg"))
    label = torch.arange(35).reshape(1, 5, 7) % 4
    path = io.write_label(tmp_path / "a.png", label, case)
    image = Image.open(path)
    assert image.mode == "P" and np.array_equal(np.asarray(image), label[0].numpy())
    assert len(image.convert("RGB").getcolors()) == 4  # told apart by eye
    assert torch.equal(io.read_label(path, case), label.to(torch.uint8))
    with pytest.raises(SamAdaptError, match=r"use \.png"):
        io.write_label(tmp_path / "a.nii.gz", label, case)


@pytest.mark.parametrize(
    ("mode", "suffix", "message"),
    [
        ("CMYK", ".jpg", "is CMYK; expected .*colour profile"),
        ("CMYK", ".tif", "is CMYK"),
        ("RGBA", ".png", "is colour with alpha"),
        ("LA", ".png", "is grey with alpha"),
    ],
)
def test_colour_that_would_be_guessed(tmp_path: Path, mode: str, suffix: str, message: str) -> None:
    path = picture(tmp_path / f"a{suffix}", mode)
    for read in (io.read_case, io.read_geometry):
        with pytest.raises(SamAdaptError, match=rf"a{suffix} {message}"):
            read(path)


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(SamAdaptError, match=r"turned\.jpg is turned .*orientation 6"):
        io.read_case(picture(tmp_path / "turned.jpg", exif=exif))
    with pytest.raises(SamAdaptError, match=r"turned\.png is turned"):
        io.read_case(picture(tmp_path / "turned.png", exif=exif))
    whole = picture(tmp_path / "whole.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SamAdaptError, match=r"cut\.jpg is damaged or cut off"):
        io.read_case(tmp_path / "cut.jpg")
    (tmp_path / "empty.png").touch()
    with pytest.raises(SamAdaptError, match=r"empty\.png is empty"):
        io.read_case(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(SamAdaptError, match=r"text\.png is not a picture"):
        io.read_case(tmp_path / "text.png")
    with pytest.raises(SamAdaptError, match=r"none\.png does not exist"):
        io.read_case(tmp_path / "none.png")
    pages = [Image.fromarray(np.full((4, 4), n, np.uint8)) for n in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(SamAdaptError, match=r"stack\.tif holds 3 pictures"):
        io.read_case(tmp_path / "stack.tif")


def test_16_bit_colour_is_not_cut_to_8_bits(tmp_path: Path) -> None:
    import tifffile

    deep = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    with pytest.raises(SamAdaptError, match=r"deep\.tif has 16-bit colour"):
        io.read_case(tmp_path / "deep.tif")
    (tmp_path / "deep.png").write_bytes(_png16(deep))
    with pytest.raises(SamAdaptError, match=r"deep\.png has 16-bit colour"):
        io.read_case(tmp_path / "deep.png")


def _png16(array: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which PIL cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = array.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def test_colour_masks(tmp_path: Path) -> None:
    case = io.read_case(picture(tmp_path / "a.png"))
    with pytest.raises(SamAdaptError, match=r"a\.png is a colour picture; expected a mask"):
        io.read_label(tmp_path / "a.png", case)
    grey = np.repeat((np.eye(5, 7) * 255).astype(np.uint8)[..., None], 3, 2)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert io.read_label(tmp_path / "grey.png", case, {0: 0, 255: 1}).sum() == 5


def test_no_kind_is_mixed_with_another(tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii", volume((6, 5, 1)))
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(SamAdaptError, match="a picture and a volume"):
        io.read_case(scan, tmp_path / "mask.png")


# ---------------------------------------------------------------- npz


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    np.savez(tmp_path / "bad.npz", a=np.array([Bomb()], dtype=object))
    with pytest.raises(SamAdaptError, match="'a' is of object dtype"):
        io.open_npz(tmp_path / "bad.npz")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "bad.npz").read_bytes()[:100])
    with pytest.raises(SamAdaptError, match=r"cut\.npz cannot be read as \.npz"):
        io.open_npz(tmp_path / "cut.npz")
    with pytest.raises(SamAdaptError, match="does not exist"):
        io.open_npz(tmp_path / "none.npz")


def test_an_array_that_is_damaged(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(5000))
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[20000] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(SamAdaptError, match=r"a\.npz: array 'x' is damaged"):
        io.open_npz(tmp_path / "a.npz").read("x")


def test_npz_that_was_rewritten_is_read_again(tmp_path: Path) -> None:
    import os

    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    arrays = io.open_npz(tmp_path / "a.npz")
    assert arrays.headers == {"x": ((3,), np.dtype(float))} and arrays.read("x").sum() == 0
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    os.utime(tmp_path / "a.npz", ns=(1, 1))
    assert arrays.read("x").sum() == 3


# ---------------------------------------------------------------- real data


@pytest.mark.data
def test_real_scan_round_trip(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "Dataset027_ACDC"
    truth = sorted((folder / "labelsTr").glob("*.nii.gz"))[0]
    scan = folder / "imagesTr" / truth.name.replace(".nii.gz", "_0000.nii.gz")
    case = io.read_case(scan, truth)
    assert case.spacing_mm == (10.0, 1.5, 1.5) and case.label is not None
    written = nib.load(io.write_label(tmp_path / truth.name, case.label, case))
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(nib.load(truth).dataobj))
    assert np.array_equal(written.affine, nib.load(scan).affine)
    assert dataclasses.replace(case, label=None).label is None


@pytest.mark.parametrize("field", ["sform", "qform"])
def test_an_affine_that_says_nothing_is_refused(tmp_path: Path, field: str) -> None:
    image = nib.Nifti1Image(volume(), np.diag([1.5, 1.5, 8, 1]))
    image.set_sform(image.affine, code=int(field == "sform"))
    image.set_qform(image.affine, code=1)
    for value, what in ((np.nan, "not finite"), *([(0.0, "singular")] if field == "sform" else [])):
        header = image.header.copy()
        if field == "sform":
            header["srow_x"][0] = value
        else:
            header["pixdim"][1] = value
        (tmp_path / "bad.nii").write_bytes(nib.Nifti1Image(volume(), None, header).to_bytes())
        raw = bytearray((tmp_path / "bad.nii").read_bytes())
        raw[:348] = bytes(header.structarr.tobytes())[:348]
        (tmp_path / "bad.nii").write_bytes(bytes(raw))
        with pytest.raises(SamAdaptError, match=rf"bad\.nii: the affine of the header is {what}"):
            io.read_case(tmp_path / "bad.nii")


def test_a_unit_code_that_is_not_defined_is_taken_as_mm(tmp_path: Path) -> None:
    raw = bytearray(nib.Nifti1Image(volume(), np.diag([1.5, 2, 8, 1])).to_bytes())
    raw[123] = 7
    (tmp_path / "odd.nii").write_bytes(bytes(raw))
    with pytest.warns(SamAdaptWarning, match="unit code 7"):
        assert io.read_geometry(tmp_path / "odd.nii").spacing_mm == (1.5, 2.0, 8.0)


def test_classes_stored_with_a_scale_are_whole_numbers(tmp_path: Path) -> None:
    label = np.resize(np.array([0, 1, 2], np.int16), (6, 5, 3))
    image = nib.Nifti1Image(label * 1000, np.eye(4))
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.00100002, 0.0)
    nib.save(image, tmp_path / "scaled.nii")
    raw = bytearray((tmp_path / "scaled.nii").read_bytes())
    raw[352:] = (label * 1000).astype("<i2").tobytes(order="F")
    raw[112:116] = np.float32(0.00100002).tobytes()  # scl_slope
    (tmp_path / "scaled.nii").write_bytes(bytes(raw))
    stored = np.asanyarray(nib.load(tmp_path / "scaled.nii").dataobj)
    assert not np.array_equal(stored, np.round(stored))
    assert io.label_values(tmp_path / "scaled.nii").keys() == {0, 1, 2}
    nib.save(nib.Nifti1Image(label.astype(np.float32) * 1.001, np.eye(4)), tmp_path / "odd.nii")
    with pytest.raises(SamAdaptError, match="are not whole numbers"):
        io.label_values(tmp_path / "odd.nii")
