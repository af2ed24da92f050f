"""The contract of every file format: found, read, written and read back where it was. The tests know no format's name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from samadapt import io
from samadapt.cli import app
from samadapt.io.geometry import same_place
from samadapt.phantom import make_phantom
from samadapt.types import Case, SamAdaptError


@pytest.fixture(params=sorted(io.FORMATS))
def each(request: pytest.FixtureRequest) -> io.Format:
    return io.FORMATS[request.param]


def answer_for(case: Case) -> torch.Tensor:
    """A label map with no two lines alike, so that nothing can be moved unnoticed."""
    return torch.randint(0, 4, tuple(case.image.shape[1:]), generator=torch.Generator().manual_seed(0)).byte()


def test_a_scan_is_found_and_read_as_its_header_says(each: io.Format, tmp_path: Path) -> None:
    path = each.example(tmp_path)
    assert io.FORMATS[each.name] is each and io.format_of(path) is each
    assert io.find_files(tmp_path) == [path]
    array, geometry = each.read(path)
    header = io.read_geometry(path)
    assert array.dtype == np.float32 and array.shape == (header.channels, *header.shape)
    assert len(set(header.shape)) == 3, "an example whose axes could be exchanged unnoticed"
    assert dataclasses.replace(geometry, affine=None) == dataclasses.replace(header, affine=None)
    assert (header.affine is None) == (header.spacing_mm is None) == each.picture
    case = io.read_case(path)
    assert case.format == each.name and case.source == path
    assert np.array_equal(io.to_file_axes(case.image.numpy(), case), array)


def test_a_label_map_goes_back_to_its_voxels(each: io.Format, tmp_path: Path) -> None:
    case = io.read_case(each.example(tmp_path), case_id="a")
    out, label = tmp_path / "out", answer_for(case)
    path = io.label_file(out, case)
    assert io.find_label(out, "a") is None
    io.write_label(path, label, case)
    assert io.find_label(out, "a") == path and io.find_files(out) == [path]
    assert torch.equal(io.read_label(path, case), label)
    assert each.write_label is None or io.format_of(path) is each
    assert not io.format_of(path).lossy
    source, written = io.read_geometry(case.source or ""), io.read_geometry(path)
    assert (written.shape, written.spacing_mm) == (source.shape, source.spacing_mm)
    assert written.orientation == source.orientation and same_place(written, source, 1e-6)
    again = io.read_truth(path, "a")
    assert again.label is not None and torch.equal(again.label, label) and again.spacing_mm == case.spacing_mm


def test_what_is_no_file_of_the_format_is_refused_by_name(each: io.Format, tmp_path: Path) -> None:
    path = each.example(tmp_path)
    case = io.read_case(path)
    with pytest.raises(SamAdaptError, match=r"cannot be written to .*answer\.txt; use \."):
        io.write_label(tmp_path / "answer.txt", answer_for(case), case)
    for content in (path.read_bytes()[:20], b""):
        path.write_bytes(content)
        with pytest.raises(SamAdaptError, match=path.name):
            io.read_case(path)
    path.unlink()
    with pytest.raises(SamAdaptError, match=path.name):
        io.read_case(path)


# ---------------------------------------------------------------- one more


def toy_geometry(path: Path) -> io.Geometry:
    note = json.loads(path.with_suffix(".json").read_text())
    affine = np.array(note["affine"])
    spacing = tuple(float(x) for x in np.linalg.norm(affine[:3, :3], axis=0))
    return io.Geometry(tuple(note["shape"]), spacing, affine, 1, "int16")  # type: ignore[arg-type]


def toy_read(path: Path) -> tuple[np.ndarray, io.Geometry]:
    geometry = toy_geometry(path)
    return np.fromfile(path, np.int16).reshape((1, *geometry.shape)).astype(np.float32), geometry


def toy_write(path: Path, array: np.ndarray, case: Case) -> None:
    assert case.affine is not None
    path.write_bytes(array.astype(np.int16).tobytes())
    path.with_suffix(".json").write_text(json.dumps({"shape": array.shape, "affine": case.affine.tolist()}))


TOY = io.Format("toy", (".raw",), toy_geometry, toy_read, lambda folder: folder, write_label=toy_write)


def toy_scan(folder: Path, name: str) -> Path:
    image = np.random.default_rng(0).integers(0, 99, (6, 5, 4))
    case = Case("a", torch.zeros(1), None, None, np.diag([1.0, 2.0, 9.0, 1.0]), "a")
    toy_write(folder / name, image, case)
    return folder / name


def test_where_a_format_cannot_be_written_label_maps_are_nifti(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(io.FORMATS, "toy", dataclasses.replace(TOY, write_label=None))
    case = io.read_case(toy_scan(tmp_path, "a.raw"), case_id="a")
    label = answer_for(case)
    path = io.write_label(io.label_file(tmp_path / "out", case), label, case)
    assert path == io.find_label(tmp_path / "out", "a") == tmp_path / "out" / "a.nii.gz"
    assert torch.equal(io.read_label(path, case), label)
    assert case.affine is not None and np.allclose(nib.load(path).affine, case.affine)


def test_a_format_may_say_which_of_its_files_is_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a series of slices, of which one stands for all."""

    def first(files: Sequence[Path]) -> list[Path]:
        return sorted(path for path in files if path.suffix == ".raw")[:1]

    monkeypatch.setitem(io.FORMATS, "toy", dataclasses.replace(TOY, find=first))
    scans = [toy_scan(tmp_path, f"slice{number}.raw") for number in (1, 2, 3)]
    assert io.find_files(tmp_path) == scans[:1]


def test_a_new_format_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(io.FORMATS, "toy", TOY)
    data = make_phantom(tmp_path / "data", patients=3, size=48, slices=3)

    def type_(*words: str | Path) -> None:
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == 0, done.output

    unet = ("--head", "unet", "--set", "width=4", "--side", "64", "--steps", "4", "--device", "cpu", "-q")
    type_("train", data, "--labels", "1", "--out", tmp_path / "run", *unet)
    scan = io.read_case(next((data / "imagesTr").iterdir()), case_id="scan")
    (tmp_path / "scans").mkdir()
    toy_write(tmp_path / "scans" / "scan.raw", io.to_file_axes(scan.image[0].numpy(), scan), scan)
    for given, out in ((tmp_path / "scans", "toy"), (scan.source or "", "nifti")):
        type_("predict", tmp_path / "run", given, "--out", tmp_path / out, "--device", "cpu", "-q")
    (answer,) = io.find_files(tmp_path / "toy")
    (same,) = io.find_files(tmp_path / "nifti")
    assert answer.name == "scan.raw" and np.allclose(toy_geometry(answer).affine, nib.load(same).affine)
    assert np.array_equal(toy_read(answer)[0][0], np.asarray(nib.load(same).dataobj))
    assert len(np.unique(toy_read(answer)[0])) > 1
