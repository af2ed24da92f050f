"""Tiny DICOM files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from samadapt.files import replacing
from samadapt.io.dicom.headers import library
from samadapt.io.dicom.writer import Legend, write_seg
from samadapt.io.geometry import Geometry
from samadapt.types import Case

CT = "1.2.840.10008.5.1.4.1.1.2"
_DX = "1.2.840.10008.5.1.4.1.1.1.1"
_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def dataset(sop_class: str, modality: str, number: int, shape: tuple[int, int]) -> Any:
    """The attributes that every image of one small study has; pixels are missing."""
    dicom = library()
    data = dicom.Dataset()
    data.file_meta = dicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = dicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = sop_class, f"1.2.826.0.1.3680043.8.498.1.{number}"
    data.file_meta.MediaStorageSOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = (
        "1.2.826.0.1.3680043.8.498.2",
        "1.2.826.0.1.3680043.8.498.3",
    )
    data.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.4"
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "P1", "", "", ""
    data.AccessionNumber, data.StudyID, data.StudyDate, data.StudyTime = "", "", "", ""
    data.ReferringPhysicianName, data.Modality, data.SeriesNumber, data.InstanceNumber = (
        "",
        modality,
        2,
        number,
    )
    data.Rows, data.Columns = shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    return data


def write(path: Path, data: Any, pixels: np.ndarray | None = None) -> Path:
    """A data set as a file, with these pixels, (rows, columns) uint16."""
    if pixels is not None:
        data.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()
    with replacing(path) as temporary:
        library().dcmwrite(temporary, data, enforce_file_format=True)
    return path


def series(folder: Path) -> Path:
    """Four slices of 5 rows and 6 columns, whose files are not named in their order."""
    values = np.arange(120).reshape(4, 5, 6)
    for number, name in enumerate(("c", "a", "d", "b")):
        data = dataset(CT, "CT", number + 1, (5, 6))
        data.ImagePositionPatient = [-20.0, -7.0, 6.0 * number]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [2.0, 1.5], 6.0
        data.RescaleSlope, data.RescaleIntercept = 2, -100
        write(folder / f"{name}.dcm", data, values[number])
    return folder / "a.dcm"


def picture(folder: Path) -> Path:
    """A radiograph of 6 rows and 10 columns."""
    data = dataset(_DX, "DX", 1, (6, 10))
    return write(folder / "example.dcm", data, np.arange(0, 240, 4).reshape(6, 10))


def seg(path: Path, label: np.ndarray, case: Case) -> Path:
    """A SEG of the structures `liver` (1) and `spleen` (2)."""
    write_seg(path, label, case, Legend(("background", "liver", "spleen")))
    return path


def rtstruct(path: Path, label: np.ndarray, case: Case) -> Path:
    """An RTSTRUCT of the structures `liver` (1) and `spleen` (2), which are boxes along the axes in each slice."""
    dicom = library()
    data = dataset(_RTSTRUCT, "RTSTRUCT", 9, (1, 1))
    for name in ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"):
        delattr(data, name)
    data.StructureSetLabel, data.SeriesInstanceUID = "example", "1.2.826.0.1.3680043.8.498.5"
    series_, study, frame = dicom.Dataset(), dicom.Dataset(), dicom.Dataset()
    series_.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.3"
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series_], [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number, name in ((1, "liver"), (2, "spleen")):
        roi, contours = dicom.Dataset(), dicom.Dataset()
        roi.ROINumber, roi.ROIName = number, name
        contours.ReferencedROINumber = number
        contours.ContourSequence = [
            _box(label[..., k] == number, k, case)
            for k in range(label.shape[2])
            if np.any(label[..., k] == number)
        ]
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(contours)
    return write(path, data)


def _box(inside: np.ndarray, k: int, case: Case) -> Any:
    """The outline of a box of pixels, half a pixel around their centres."""
    i, j = np.nonzero(inside)
    corners = [(i.min(), j.min()), (i.max() + 1, j.min()), (i.max() + 1, j.max() + 1), (i.min(), j.max() + 1)]
    contour = library().Dataset()
    assert case.affine is not None
    points = [case.affine @ (x - 0.5, y - 0.5, k, 1) * (-1, -1, 1, 1) for x, y in corners]
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
    contour.ContourData = [round(float(value), 4) for point in points for value in point[:3]]
    return contour


def geometry_of(case: Case) -> Geometry:
    """Where the voxels of a case lie along the axes of its file."""
    shape = [case.image.shape[1:][axis] for axis in np.argsort(case.axes)]
    return Geometry((shape[0], shape[1], shape[2]), None, case.affine, 1, "")
