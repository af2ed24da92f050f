"""DICOM images: geometry, units, compression, pictures, names and patients, against SimpleITK where it can say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from pydicom.encaps import encapsulate

import dicoms
from samadapt import io
from samadapt.datasets import open_dataset
from samadapt.io.dicom import headers

OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)


def read_all(path: Path) -> np.ndarray:
    """(i, j, k) of a scan, along the axes of its file."""
    case = io.read_case(path)
    return io.to_file_axes(case.image.numpy(), case)[0]


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0), OBLIQUE]
)
def test_a_series_lies_where_simpleitk_puts_it(tmp_path, orientation):
    """Sorted by where the slices lie and not by their names, in Hounsfield units, along the axes of the file."""
    values = dicoms.volume()
    paths = dicoms.series(tmp_path, values, orientation=orientation)
    assert sorted(paths) != paths
    (path,) = io.find_files(tmp_path)
    array, geometry = io.FORMATS["dicom"].read(path)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    assert np.array_equal(array[0], sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    assert np.array_equal(array[0], values.transpose(2, 1, 0) - 24.0)
    lps = np.diag([-1, -1, 1, 1]) @ geometry.affine
    for index in ((0, 0, 0), (5, 7, 4), (2, 3, 1)):
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), (lps @ (*index, 1))[:3], atol=1e-4)
    assert geometry.modality == "CT" and geometry.spacing_mm == pytest.approx((1.5, 2, 3))


def test_every_slice_has_its_own_rescale(tmp_path):
    """As PET has."""
    values = np.full((3, 4, 5), 10, np.int16)
    values[:, 0, 0] = 0

    def change(data, number):
        data.RescaleSlope, data.RescaleIntercept = number + 1, -number

    dicoms.series(tmp_path, values, change)
    assert read_all(io.find_files(tmp_path)[0])[2, 2].tolist() == [10, 19, 28]


def test_bits_above_those_stored_are_left_out(tmp_path):
    values = np.arange(24, dtype=np.uint16).reshape(2, 3, 4) + 0x3000
    dicoms.series(tmp_path, values, dicoms.set_all(BitsStored=12, HighBit=11, RescaleIntercept=0))
    assert np.array_equal(read_all(io.find_files(tmp_path)[0]), values.transpose(2, 1, 0) & 0xFFF)


def test_physical_values_are_not_inverted(tmp_path):
    """MONOCHROME1 says how to show a volume, not what its numbers mean."""
    values = dicoms.volume(3)
    dicoms.series(tmp_path, values, dicoms.set_all(PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(read_all(io.find_files(tmp_path)[0]), values.transpose(2, 1, 0) - 24.0)


def multi_frame(path: Path, values: np.ndarray, **attributes) -> Path:
    """An enhanced CT whose frames are stored backwards, each with a rescale of its own."""
    data = dicoms.base(dicoms.ENHANCED_CT, "CT")
    dicoms.add_pixels(data, values[0])
    data.NumberOfFrames, data.PixelData = len(values), values[::-1].tobytes()
    measures = dicoms.item(PixelSpacing=[2, 1.5], SliceThickness=3)
    data.SharedFunctionalGroupsSequence = [
        dicoms.item(
            PixelMeasuresSequence=[measures],
            PlaneOrientationSequence=[dicoms.item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        )
    ]
    data.PerFrameFunctionalGroupsSequence = [
        dicoms.item(
            PlanePositionSequence=[dicoms.item(ImagePositionPatient=[-10, 20, 30 + 3 * k])],
            PixelValueTransformationSequence=[
                dicoms.item(RescaleSlope=1, RescaleIntercept=-24 + k, RescaleType="HU")
            ],
        )
        for k in reversed(range(len(values)))
    ]
    for name, value in attributes.items():
        setattr(data, name, value)
    return dicoms.save(data, path)


def test_a_multi_frame_file_is_a_volume(tmp_path):
    values = dicoms.volume(4)
    multi_frame(tmp_path / "many" / "enhanced.dcm", values)
    dicoms.series(tmp_path / "single", values)
    many, single = (io.find_files(tmp_path / name)[0] for name in ("many", "single"))
    assert np.allclose(io.read_geometry(many).affine, io.read_geometry(single).affine)
    assert np.array_equal(read_all(many), read_all(single) + np.arange(4))


# ---------------------------------------------------------------- compression


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless"])
def test_compressed_slices_have_the_same_values(tmp_path, syntax):
    values = dicoms.volume(3) + np.int16(600)

    def compress(data, number):
        data.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)

    dicoms.series(tmp_path, values.astype(np.uint16), compress)
    assert np.array_equal(read_all(io.find_files(tmp_path)[0]), values.transpose(2, 1, 0) - 24.0)


def test_what_pydicom_cannot_decode_is_decoded_by_gdcm(tmp_path):
    """JPEG Lossless has no decoder in pydicom's usual company; GDCM inside SimpleITK has one, and writes it here."""
    values = (dicoms.volume(2) + np.int16(600)).astype(np.uint16)
    for number, path in enumerate(dicoms.series(tmp_path, values)):
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(tmp_path / "compressed.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray(values[number : number + 1]))
        new, old = pydicom.dcmread(tmp_path / "compressed.dcm"), pydicom.dcmread(path)
        (tmp_path / "compressed.dcm").unlink()
        assert new.file_meta.TransferSyntaxUID == pydicom.uid.JPEGLosslessSV1
        old.PixelData, old.file_meta.TransferSyntaxUID = new.PixelData, pydicom.uid.JPEGLosslessSV1
        old["PixelData"].is_undefined_length = True
        dicoms.save(old, path)
    assert np.array_equal(read_all(io.find_files(tmp_path)[0]), values.transpose(2, 1, 0) - 24.0)


def test_jpeg_2000(tmp_path):
    values = np.random.default_rng(0).integers(0, 4000, (2, 32, 40)).astype(np.uint16)

    def compress(data, number):
        Image.fromarray(values[number]).save(tmp_path / "a.j2k", no_jp2=True, irreversible=False)
        data.PixelData = encapsulate([(tmp_path / "a.j2k").read_bytes()])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        (tmp_path / "a.j2k").unlink()

    dicoms.series(tmp_path / "scan", values, compress)
    assert np.array_equal(read_all(io.find_files(tmp_path / "scan")[0]), values.transpose(2, 1, 0) - 24.0)


# ---------------------------------------------------------------- pictures


def picture(path: Path, pixels: np.ndarray, sop_class: str = dicoms.DX, **attributes) -> Path:
    data = dicoms.base(sop_class, "DX" if sop_class == dicoms.DX else "US")
    dicoms.add_pixels(data, pixels)
    for name, value in attributes.items():
        setattr(data, name, value)
    return dicoms.save(data, path)


def test_a_radiograph_is_a_picture(tmp_path):
    pixels = np.arange(48, dtype=np.uint16).reshape(6, 8)
    path = picture(tmp_path / "a.dcm", pixels, BitsStored=12, HighBit=11)
    case = io.read_case(path)
    assert io.is_picture(path) and io.depth_of(path) == "uint16" and case.affine is None
    assert np.array_equal(case.image[0, 0], pixels) and io.patient_of(path) == "P7"
    inverted = picture(
        tmp_path / "b.dcm", pixels, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1"
    )
    assert np.array_equal(io.read_case(inverted).image[0, 0], 4095 - pixels)
    assert io.label_file(tmp_path, case).suffix == ".png"


def test_colours_are_red_green_and_blue(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    path = picture(tmp_path / "rgb.dcm", pixels, dicoms.PHOTO)
    assert np.array_equal(io.read_case(path).image[:, 0], pixels.transpose(2, 0, 1))
    smooth = np.zeros((16, 16, 3), np.uint8) + np.array([200, 40, 90], np.uint8)
    smooth[:8] = [10, 220, 30]
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    data = dicoms.base(dicoms.US, "US")
    dicoms.add_pixels(data, smooth)
    data.PhotometricInterpretation = "YBR_FULL"
    data.PixelData = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    jpeg = io.read_case(dicoms.save(data, tmp_path / "us.dcm"))
    assert np.abs(jpeg.image[:, 0].numpy() - smooth.transpose(2, 0, 1)).max() < 8
    palette = dicoms.base(dicoms.US, "US")
    dicoms.add_pixels(palette, np.array([[0, 1], [2, 3]], np.uint8))
    palette.PhotometricInterpretation = "PALETTE COLOR"
    for name, table in (
        ("Red", [0, 50, 100, 200]),
        ("Green", [1, 51, 101, 201]),
        ("Blue", [2, 52, 102, 202]),
    ):
        setattr(palette, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 8])
        setattr(palette, f"{name}PaletteColorLookupTableData", bytes(table))
    shown = io.read_case(dicoms.save(palette, tmp_path / "palette.dcm"))
    assert shown.image[:, 0].flatten(1).tolist() == [[0, 50, 100, 200], [1, 51, 101, 201], [2, 52, 102, 202]]


# ---------------------------------------------------------------- folders, names and patients


def hospital(root: Path) -> None:
    """Two patients, three series, in folders as an archive exports them, with files that are no images."""
    dicoms.series(root / "A" / "ST1" / "SE1", uid="1", patient="P1", names=[f"IM{n}" for n in range(5)])
    dicoms.series(root / "A" / "ST1" / "SE2", dicoms.volume(3), uid="2", patient="P1")
    dicoms.series(root / "B" / "ST1" / "SE1", dicoms.volume(4), uid="3", patient="P2")
    (root / "readme.txt").write_text("exported")
    dicoms.save(dicoms.base(dicoms.SR, "SR"), root / "A" / "report.dcm")
    scout = dicoms.base(dicoms.CT, "CT", series="9")
    dicoms.add_pixels(scout, np.ones((4, 4), np.int16))
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImagePositionPatient, scout.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dicoms.save(scout, root / "A" / "ST1" / "SE1" / "scout.dcm")
    directory = dicoms.base("1.2.840.10008.1.3.10", "")
    directory.DirectoryRecordSequence = []
    pydicom.dcmwrite(root / "DICOMDIR", directory, enforce_file_format=True)


def test_series_are_found_at_any_depth_and_the_rest_is_named(tmp_path):
    hospital(tmp_path)
    listing = io.list_scans(tmp_path)
    names = io.scan_names(listing.files, tmp_path)
    assert sorted(names.values()) == ["A__ST1__SE1", "B__ST1__SE1", "SE2"]
    assert {path.name: reason for path, reason in listing.left_out} == {
        "report.dcm": headers.NO_IMAGE, "scout.dcm": headers.LOCALIZER, "DICOMDIR": headers.DIRECTORY,
    }  # fmt: skip
    assert {io.patient_of(path) for path in listing.files} == {"P1", "P2"}


def test_series_of_one_folder_are_told_by_their_numbers(tmp_path):
    dicoms.series(tmp_path, names=[f"a{n}" for n in range(5)])
    dicoms.series(
        tmp_path, dicoms.volume(3), dicoms.set_all(SeriesNumber=5), uid="2", names=["b1", "b2", "b3"]
    )
    found = io.find_files(tmp_path)
    assert [io.case_name(path) for path in found] == [f"{tmp_path.name}_4", f"{tmp_path.name}_5"]
    assert [io.read_geometry(path).shape[2] for path in found] == [5, 3]
    assert [len(io.files_of(path)) for path in found] == [5, 3]


@pytest.mark.parametrize("folder", ["Zebedee_Quentin", "19630217", "acc4711x"])
def test_a_name_that_repeats_the_patients_is_not_used(tmp_path, folder):
    dicoms.series(tmp_path / folder)
    name = io.case_name(io.find_files(tmp_path / folder)[0])
    assert name.startswith("P7_4_") and folder.lower() not in name.lower()


def test_a_file_that_changes_is_read_again(tmp_path):
    paths = dicoms.series(tmp_path, dicoms.volume(3))
    assert io.read_geometry(paths[0]).shape[2] == 3
    paths[2].unlink()
    assert io.read_geometry(paths[0]).shape[2] == 2


def test_without_pydicom_dicom_files_are_left_out_by_name(tmp_path, monkeypatch):
    dicoms.series(tmp_path)
    monkeypatch.setattr(headers, "is_installed", lambda: False)
    listing = io.list_files(tmp_path)
    assert listing.files == () and len(listing.left_out) == 5
    assert "pip install 'samadapt[dicom]'" in io.in_words(listing.left_out, tmp_path)


def test_the_same_patient_trains_or_is_scored(tmp_path):
    """PatientID groups the cases, and every file of a series counts in the hash of the data set."""
    for patient, uid in (("P1", "1"), ("P1", "2"), ("P2", "3")):
        dicoms.series(tmp_path / uid, uid=uid, patient=patient)
        dicoms.seg(tmp_path / f"{uid}.seg", np.ones((1, 5, 8, 6), bool), ["liver"], series_uid=uid)
    data = open_dataset(tmp_path)
    assert data.layout == "DICOM" and data.groups == {"1": "P1", "2": "P1", "3": "P2"}
    assert "PatientID" in data.group_rule and data.channel_names == ("CT",) and data.window == "ct"
    before = data.hash
    changed = sorted((tmp_path / "1").iterdir())[3]
    dicom = pydicom.dcmread(changed)
    dicom.PixelData = dicom.PixelData[:-2] + b"\1\1"
    dicom.save_as(changed)
    assert open_dataset(tmp_path).hash != before
