"""Synthetic DICOM files, written with pydicom attribute by attribute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498.77"
CT, MR, DX, US = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "4", "1.1.1", "6.1"))
PHOTO, SR, ENHANCED_CT = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("77.1.4", "88.11", "2.1"))
SEG, RTSTRUCT = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("66.4", "481.3"))
NAME, BIRTH, ACCESSION = "Zebedee^Quentin", "19630217", "ACC4711X"

Change = Callable[[Dataset, int], None]


def base(sop_class: str, modality: str, number: int = 0, series: str = "1", patient: str = "P7") -> Dataset:
    """A data set with all that identifies a patient, and without an image."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
    data.SOPInstanceUID = f"{ROOT}.{series}.{number + 1}.{sum(map(ord, sop_class + patient))}"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{ROOT}.100", f"{ROOT}.200.{series}"
    data.FrameOfReferenceUID = f"{ROOT}.300"
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = patient, NAME, BIRTH, "O"
    data.AccessionNumber, data.StudyID, data.StudyDate, data.StudyTime = ACCESSION, "S", "20200101", "101010"
    data.Modality, data.SeriesNumber, data.InstanceNumber = modality, 4, number + 1
    data.ReferringPhysicianName, data.PositionReferenceIndicator = "", ""
    return data


def add_pixels(data: Dataset, pixels: np.ndarray) -> None:
    """(rows, columns) or (rows, columns, 3), 8 or 16 bits, signed or not."""
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)


def save(data: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def volume(slices: int = 5, rows: int = 8, columns: int = 6) -> np.ndarray:
    """(slices, rows, columns) int16, no two lines alike."""
    return np.random.default_rng(slices).integers(-500, 1500, (slices, rows, columns)).astype(np.int16)


def series(
    folder: Path,
    values: np.ndarray | None = None,
    change: Change | None = None,
    *,
    uid: str = "1",
    patient: str = "P7",
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    names: Sequence[str] = (),
) -> list[Path]:
    """A CT series of slices 3 mm apart with pixels of 2 mm (rows) by 1.5 mm (columns), sorted along the normal.

    Args:
        change: of each data set and its number, before it is written.
        names: of the files; by default not in the order of the slices.
    """
    values = volume() if values is None else values
    row, column = np.array(orientation).reshape(2, 3)
    normal = np.cross(row, column)
    names = names or [f"IM{(number * 7) % 11:03}.dcm" for number in range(len(values))]
    assert len(set(names)) == len(values)
    paths = []
    for number, pixels in enumerate(values):
        data = base(CT, "CT", number, uid, patient)
        add_pixels(data, pixels)
        data.ImagePositionPatient = [round(float(x), 6) for x in (-10, 20, 30) + 3 * number * normal]
        data.ImageOrientationPatient = list(orientation)
        data.PixelSpacing, data.SliceThickness = [2, 1.5], 3
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, -24, "HU"
        if change:
            change(data, number)
        paths.append(save(data, folder / names[number]))
    return paths


def set_all(**attributes: Any) -> Change:
    """The same attributes for every slice; None deletes one."""

    def change(data: Dataset, number: int) -> None:
        for name, value in attributes.items():
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)

    return change


def set_one(which: int, **attributes: Any) -> Change:
    """Attributes of one slice alone."""
    all_ = set_all(**attributes)
    return lambda data, number: all_(data, number) if number == which else None


def item(**attributes: Any) -> Dataset:
    found = Dataset()
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


def seg(
    path: Path,
    masks: np.ndarray,
    names: Sequence[str] = ("liver", "spleen"),
    *,
    kind: str = "BINARY",
    origin: Sequence[float] = (-10, 20, 30),
    series_uid: str = "1",
    segments: Sequence[int] | None = None,
) -> Path:
    """A SEG on the grid of `series`, without the frames that are empty.

    Args:
        masks: (segments, slices, rows, columns) bool.
        segments: numbers of the segments that the frames refer to.
    """
    count, slices, rows, columns = masks.shape
    data = base(SEG, "SEG", 90)
    frames = [(n, k) for n in range(count) for k in range(slices) if masks[n, k].any()]
    bits = np.packbits(np.stack([masks[n, k] for n, k in frames]).ravel(), bitorder="little").tobytes()
    data.Rows, data.Columns, data.NumberOfFrames, data.SamplesPerPixel = rows, columns, len(frames), 1
    data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored, data.HighBit = "MONOCHROME2", 1, 1, 0
    data.PixelRepresentation, data.SegmentationType = 0, kind
    data.SegmentSequence = [item(SegmentNumber=n + 1, SegmentLabel=name) for n, name in enumerate(names)]
    data.ReferencedSeriesSequence = [item(SeriesInstanceUID=f"{ROOT}.200.{series_uid}")]
    data.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[item(PixelSpacing=[2, 1.5], SliceThickness=3)],
        )
    ]
    numbers = segments or range(1, count + 1)
    data.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[origin[0], origin[1], origin[2] + 3 * k])],
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=numbers[n])],
        )
        for n, k in frames
    ]
    data.PixelData = bits + b"\0" * (len(bits) % 2)
    return save(data, path)


def rtstruct(
    path: Path,
    contours: dict[str, list[Sequence[float]]],
    *,
    series_uid: str = "1",
    geometry: str = "CLOSED_PLANAR",
    names: Sequence[str] = (),
) -> Path:
    """An RTSTRUCT of contours, each a flat list x, y, z, x, y, z, ... in mm.

    Args:
        names: of the ROIs, where several have one; by default the keys of `contours`.
    """
    data = base(RTSTRUCT, "RTSTRUCT", 91)
    study = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=f"{ROOT}.200.{series_uid}")])
    data.ReferencedFrameOfReferenceSequence = [item(RTReferencedStudySequence=[study])]
    data.StructureSetROISequence = [
        item(ROINumber=n, ROIName=name) for n, name in enumerate(names or contours, start=1)
    ]
    data.ROIContourSequence = [
        item(
            ReferencedROINumber=n,
            ContourSequence=[
                item(ContourGeometricType=geometry, NumberOfContourPoints=len(p) // 3, ContourData=list(p))
                for p in lists
            ],
        )
        for n, lists in enumerate(contours.values(), start=1)
    ]
    return save(data, path)


def box(columns: tuple[int, int], rows: tuple[int, int], k: float) -> list[float]:
    """The outline of pixels first..last (both included) in slice k of `series`, around their centres."""
    (c, c2), (r, r2) = columns, rows
    corners = [(c - 0.5, r - 0.5), (c2 + 0.5, r - 0.5), (c2 + 0.5, r2 + 0.5), (c - 0.5, r2 + 0.5)]
    return [value for x, y in corners for value in (-10 + 1.5 * x, 20 + 2 * y, 30 + 3 * k)]
