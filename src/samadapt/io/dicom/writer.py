"""A label map as DICOM SEG, with highdicom: patient, study, frame of reference and source images are those of the scan."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.files import replacing
from samadapt.io.dicom.codes import UNKNOWN, Meaning, meaning_of
from samadapt.io.dicom.headers import INSTALL, library, read_dataset, silent
from samadapt.io.dicom.series import read_series
from samadapt.io.pictures import class_colour
from samadapt.types import Case, SamAdaptError, SamAdaptWarning

_MAKER = "samadapt"
#: Attributes that a SEG must have and may leave empty; scans that were anonymised lack them.
_MAY_BE_EMPTY = [
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
]
_LONGEST_LABEL = 64  # characters of a segment's label


@dataclass(frozen=True)
class Legend:
    """What the numbers of a label map mean, and who made it."""

    classes: tuple[str, ...]  # by number; the first one is the background
    codes: Mapping[str, Meaning] = field(default_factory=dict)  # class -> the user's own meaning
    version: str = "0"
    model: str = ""  # the hash of the trained weights


def write_seg(path: Path, label: np.ndarray, case: Case, legend: Legend, binary: bool = False) -> None:
    """(i, j, k) uint8 on the voxels of a DICOM series -> one SEG object, as LABELMAP where highdicom can, else BINARY.

    Args:
        binary: BINARY in any case, for viewers that do not know LABELMAP.

    Raises:
        SamAdaptError: highdicom is not there, or the label map has classes without a name.
    """
    highdicom = _highdicom()
    assert case.source is not None
    series = read_series(case.source)
    if label.shape != series.geometry.shape:
        raise SamAdaptError(
            f"a label map of {label.shape} voxels does not fit {case.source} of {series.geometry.shape}; predict on this scan"
        )
    if int(label.max()) >= len(legend.classes):
        raise SamAdaptError(
            f"the label map has the class {label.max()}; there are names for 0 to {len(legend.classes) - 1}"
        )
    sources, frames = _sources(series), label.transpose(2, 1, 0)
    if series.frames[0].header.shape[2] > 1:  # highdicom takes the frames in the order of the file
        frames = frames[np.argsort([frame.index for frame in series.frames])]
    try:
        with silent():
            seg = _segmentation(highdicom, sources, frames, legend, binary)
    except (
        Exception
    ) as error:  # highdicom raises what it meets in a header that is not as the standard has it
        raise SamAdaptError(
            f"highdicom cannot write a segmentation of {case.source} ({type(error).__name__}): a header of the scan is not as "
            "DICOM demands; choose --format nifti, or correct the header"
        ) from error
    with silent(), replacing(path) as temporary:
        seg.save_as(temporary, enforce_file_format=True)


def _segmentation(
    highdicom: Any, sources: Sequence[Any], frames: np.ndarray, legend: Legend, binary: bool
) -> Any:
    """The SEG of (frames, rows, columns) uint8, in the order of the frames of the sources."""
    kind = _kind(highdicom, binary)
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=np.ascontiguousarray(frames),
        segmentation_type=kind,
        segment_descriptions=[_segment(highdicom, n, legend) for n in range(1, len(legend.classes))],
        series_instance_uid=library().uid.generate_uid(),
        series_number=_series_number(sources[0]),
        sop_instance_uid=library().uid.generate_uid(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=_MAKER,
        software_versions=legend.version,
        device_serial_number=legend.model[:16] or "0",
        content_label="SEGMENTATION",
        content_description="Automatic segmentation, not for diagnosis",
        series_description=f"{_MAKER} segmentation",
        omit_empty_frames=bool(frames.any()) and kind == highdicom.seg.SegmentationTypeValues.BINARY,
    )


def demand_writer(classes: Sequence[str], codes: Mapping[str, Meaning]) -> None:
    """Before anything is predicted: whether a SEG of these classes can be written; says which have no code."""
    _highdicom()
    for name in classes:
        if len(name) > _LONGEST_LABEL or "\\" in name:
            raise SamAdaptError(
                f"the class {name!r} cannot be the label of a segment, which has at most {_LONGEST_LABEL} characters and no "
                "backslash; choose another --format"
            )
    unknown = [name for name in classes[1:] if meaning_of(name, codes) == UNKNOWN]
    if unknown:
        warnings.warn(
            f"the classes {', '.join(unknown)} are in no table of codes and are written as {UNKNOWN.type.meaning!r} "
            "with their name as label in a DICOM SEG; give their codes (predict --codes)",
            SamAdaptWarning,
            stacklevel=2,
        )


def _highdicom() -> Any:
    library()
    try:
        import highdicom
    except ImportError:
        raise SamAdaptError(
            f"DICOM SEG is written with highdicom, which is not installed: {INSTALL}"
        ) from None
    return highdicom


def _kind(highdicom: Any, binary: bool) -> Any:
    """LABELMAP, one number for each voxel; versions of highdicom before 0.24 have BINARY, one bit for each segment."""
    kinds = highdicom.seg.SegmentationTypeValues
    return kinds.BINARY if binary else kinds.__members__.get("LABELMAP", kinds.BINARY)


def _segment(highdicom: Any, number: int, legend: Legend) -> Any:
    from pydicom.sr.codedict import codes

    name, meaning = legend.classes[number], meaning_of(legend.classes[number], legend.codes)

    def coded(code: Any) -> Any:
        return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_MAKER,
        family=codes.DCM.ArtificialIntelligence,
        version=legend.version,
        parameters={"weights": f"sha256 {legend.model}"} if legend.model else None,
    )
    found = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=coded(meaning.category),
        segmented_property_type=coded(meaning.type),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=library().uid.generate_uid(),
        tracking_id=name,
    )
    if meaning.side is not None:
        kind = found.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [coded(meaning.side)]
    found.RecommendedDisplayCIELabValue = list(_lab(class_colour(number)))
    return found


def _lab(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """sRGB 0..255 -> CIELab (D65, as highdicom and DCMTK have it) in the 16-bit numbers of DICOM PS3.3, C.10.7.1.1."""
    scaled = np.array(colour) / 255.0
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    x, y, z = to_xyz @ linear / np.array([0.95047, 1.0, 1.08883])
    fx, fy, fz = (v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in (x, y, z))
    lightness, a, b = 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)
    numbers = (lightness / 100 * 65535, (a + 128) / 255 * 65535, (b + 128) / 255 * 65535)
    first, second, third = (int(min(max(round(n), 0), 65535)) for n in numbers)
    return first, second, third


def _series_number(source: Any) -> int:
    """Behind those that scanners give."""
    with contextlib.suppress(TypeError, ValueError):
        return 1000 + int(source.SeriesNumber)
    return 1000


# ---------------------------------------------------------------- the scan's headers


def _plain_text(data: Any) -> None:
    """A character set that highdicom takes: none where it is empty, UTF-8 in place of those with code extensions."""
    named = data.get("SpecificCharacterSet")
    if "SpecificCharacterSet" in data and not named:
        del data.SpecificCharacterSet
    elif named and (not isinstance(named, str) or named.startswith("ISO 2022")):
        data.decode()
        data.SpecificCharacterSet = "ISO_IR 192"


def _sources(series: Any) -> list[Any]:
    """The headers of the scan's files in the order of the slices; what anonymising removed is filled in."""
    paths = dict.fromkeys(frame.header.path for frame in series.frames)
    found = [read_dataset(path) for path in paths]
    for data in found:
        meta = data.file_meta
        data.SOPClassUID = data.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
        data.SOPInstanceUID = data.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID")
        for name in _MAY_BE_EMPTY:
            if name not in data:
                setattr(data, name, None)
        _plain_text(data)
    instances = [str(data.SOPInstanceUID) for data in found]
    lacking = []
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if not found[0].get(name):
            lacking.append(name)
            made = library().uid.generate_uid(
                entropy_srcs=[name, *instances]
            )  # the same for every prediction of the scan
            for data in found:
                setattr(data, name, made)
    if lacking:
        warnings.warn(
            f"scans without {', '.join(lacking)} get new ones in the segmentation, so that a viewer may not put it beside its "
            "scan; give the scans as the archive has them",
            SamAdaptWarning,
            stacklevel=2,
        )
    return found
