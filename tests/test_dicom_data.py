"""Real DICOM: a CT series in JPEG 2000 from a hospital's archive, and the SEG objects of dcmqi's tests with their NRRD twins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from typer.testing import CliRunner

from samadapt import io
from samadapt.cli import app
from samadapt.datasets import open_dataset
from samadapt.phantom import make_phantom

pytestmark = pytest.mark.data
UNET = ("--head", "unet", "--set", "width=4", "--side", "64", "--steps", "20", "--device", "cpu", "-q")


@pytest.fixture
def dicom(shared_data: Path) -> Path:
    return shared_data / "dicom"


def type_(*words: object) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def along_file(path: Path) -> np.ndarray:
    """(i, j, k) of an image as SimpleITK reads it."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)


@pytest.mark.parametrize("asked", ["dicom-seg", "dicom-seg-binary"])
def test_a_predicted_seg_lies_voxel_for_voxel_on_the_series(dicom, tmp_path, asked):
    """As the NIfTI answer does, through physical coordinates; by highdicom and by pydicom."""
    data = make_phantom(tmp_path / "data", patients=3, size=48, slices=3)
    type_("train", data, "--labels", "1", "--out", tmp_path / "run", *UNET)
    for name, options in (("seg", ("--format", asked)), ("nifti", ())):
        type_(
            "predict",
            tmp_path / "run",
            dicom / "ct_series",
            "--out",
            tmp_path / name,
            "--device",
            "cpu",
            "--modality",  # the phantom says that it is MR
            "MR",
            "-q",
            *options,
        )
    seg, nifti = (
        tmp_path / "seg" / "ct_series.dcm",
        sitk.ReadImage(str(tmp_path / "nifti" / "ct_series.nii.gz")),
    )
    expected = sitk.GetArrayFromImage(nifti)
    assert len(np.unique(expected)) > 1
    volume = highdicom.seg.segread(seg).get_volume(combine_segments=True)
    found = np.zeros_like(expected)
    for k in range(volume.shape[0]):
        corner = volume.affine @ (k, 0, 0, 1)  # of highdicom: slice, row, column -> LPS, as SimpleITK has it
        i, j, slice_ = nifti.TransformPhysicalPointToIndex(corner[:3].tolist())
        end = volume.affine @ (k, volume.shape[1] - 1, volume.shape[2] - 1, 1)
        turned = [
            int(np.sign(b - a))
            for a, b in zip((i, j), nifti.TransformPhysicalPointToIndex(end[:3].tolist())[:2], strict=True)
        ]
        found[slice_] = volume.array[k][:: turned[1], :: turned[0]]
    assert np.array_equal(found, expected)
    plain = pydicom.dcmread(seg)
    again = np.zeros_like(expected)
    for pixels, group in zip(plain.pixel_array, plain.PerFrameFunctionalGroupsSequence, strict=True):
        place = nifti.TransformPhysicalPointToIndex(
            [float(x) for x in group.PlanePositionSequence[0].ImagePositionPatient]
        )
        number = (
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber if plain.BitsAllocated == 1 else 1
        )
        assert plain.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[
            0
        ].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
        assert place[:2] == (0, 0)
        again[place[2]] += (pixels * number).astype(np.uint8)
    assert np.array_equal(again, expected)


def test_the_label_map_of_another_program_fits_the_series(dicom):
    """Converted to NIfTI elsewhere, its rows run backwards; SimpleITK resamples it to the same voxels."""
    case = io.read_case(io.find_files(dicom / "ct_series")[0])
    own = io.read_label(dicom / "ct_series_labels.nii.gz", case)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(dicom / "ct_series"))
    names = sorted(names or map(str, (dicom / "ct_series").iterdir()), reverse=True)
    image = sitk.ReadImage(names)
    label = sitk.Resample(
        sitk.ReadImage(str(dicom / "ct_series_labels.nii.gz")),
        image,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
    )
    for ours, theirs in ((case.image[0], image), (own, label)):
        assert np.array_equal(
            io.to_file_axes(ours.numpy(), case), sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
        )
    assert case.image.min() == -1024 and len(own.unique()) > 10


@pytest.mark.parametrize(
    ("seg", "scan", "twin", "padding"),
    [
        ("liver.dcm", "ct-3slice", "liver_seg.nrrd", None),
        ("sparse-labelmap-noppv.dcm", "24x38x3/image", "sparse_labelmap_noppv_seg.nrrd", None),
        ("sparse-labelmap-ppv5.dcm", "24x38x3/image", "sparse_labelmap_ppv5_seg.nrrd", 5),
    ],
)
def test_segs_of_another_program_are_as_their_twins(dicom, seg, scan, twin, padding):
    """BINARY and LABELMAP, dense and sparse; a padding value is what is not labelled."""
    folder = dicom / "dcmqi"
    case = io.read_case(io.find_files(folder / scan)[0])
    label = io.to_file_axes(io.read_label(folder / seg, case).numpy(), case)
    expected = along_file(folder / twin)
    assert (
        np.array_equal(label, np.where(expected == padding, 0, expected) if padding else expected)
        and label.any()
    )


def test_a_multi_frame_twin_has_the_same_voxels(dicom):
    for name in ("23x38x3", "24x38x3"):
        single, many = (
            io.read_case(io.find_files(dicom / "dcmqi" / name / kind)[0]) for kind in ("image", "multiframe")
        )
        assert torch.equal(single.image, many.image) and np.allclose(single.affine, many.affine, atol=1e-4)


def test_training_on_dicom_and_on_its_nifti_twin_is_the_same(dicom, tmp_path):
    """Images, labels and, after a few steps, every weight. The twin is written by SimpleITK."""
    folder, twin = tmp_path / "dicom", tmp_path / "twin"
    for name in ("imagesTr", "labelsTr"):
        (twin / name).mkdir(parents=True)
    sources = {"a": ("24x38x3/image", "24x38x3/seg/label.seg"), "b": ("ct-3slice", "liver.dcm")}
    for case, (scan, seg) in sources.items():
        shutil.copytree(dicom / "dcmqi" / scan, folder / case)
        shutil.copy(dicom / "dcmqi" / seg, folder / f"{case}.seg")
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder / case)))
        sitk.WriteImage(image, str(twin / "imagesTr" / f"{case}_0000.nii.gz"))
    liver = sitk.ReadImage(str(dicom / "dcmqi" / "liver_seg.nrrd"), sitk.sitkUInt8)
    sitk.WriteImage(liver, str(twin / "labelsTr" / "b.nii.gz"))
    frames = highdicom.seg.segread(folder / "a.seg").get_volume(combine_segments=True)
    small = sitk.GetImageFromArray(frames.array.astype(np.uint8))
    small.CopyInformation(sitk.ReadImage(str(twin / "imagesTr" / "a_0000.nii.gz")))
    sitk.WriteImage(small, str(twin / "labelsTr" / "a.nii.gz"))
    about = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "Liver": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (twin / "dataset.json").write_text(json.dumps(about))
    (tmp_path / "patients.csv").write_text("case,patient\na,123456\nb,99000\n")
    ours, theirs = open_dataset(folder), open_dataset(twin, group=tmp_path / "patients.csv")
    assert (ours.ids, ours.classes, ours.window, ours.groups) == (
        theirs.ids,
        theirs.classes,
        theirs.window,
        theirs.groups,
    )
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.image, other.image) and torch.equal(one.label, other.label) and one.label.any()
        assert np.allclose(one.spacing_mm, other.spacing_mm, atol=1e-4)
    for name, data, more in (("one", folder, ()), ("two", twin, ("--group", tmp_path / "patients.csv"))):
        type_("train", data, "--labels", "1", "--out", tmp_path / name, *UNET, *more)
    assert (tmp_path / "one" / "head.safetensors").read_bytes() == (
        tmp_path / "two" / "head.safetensors"
    ).read_bytes()
