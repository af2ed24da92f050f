"""What stands in the files of a folder: one `Header` for each DICOM file, read without pixels and kept while it does not change.

Of what tells who the patient is, only PatientID leaves this module. Name, birth date and accession number are read so that
a name of a folder that repeats them is not taken as the name of a case.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from samadapt.records import others_silenced
from samadapt.types import SamAdaptError

P = ParamSpec("P")
T = TypeVar("T")
Kind = Literal["slice", "volume", "picture", "seg", "rtstruct", "other", "broken"]

SUFFIXES = (".dcm", ".ima", ".dicom")
INSTALL = "pip install 'samadapt[dicom]'"
NOT_INSTALLED = f"DICOM files, which need pydicom ({INSTALL})"
NO_IMAGE = "DICOM files that hold no image (reports, presentation states, plans, doses)"
LOCALIZER = "DICOM localizers"
DIRECTORY = "DICOM directories, which only list other files"
BROKEN = "files that cannot be read as DICOM"

#: Suffixes of files that are never DICOM, so that large folders of them are not opened one by one.
_OTHERS = frozenset(
    [
        ".nii",
        ".gz",
        ".png",
        ".jpg",
        ".jpeg",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".webp",
        ".nrrd",
        ".nhdr",
        ".mha",
        ".mhd",
        ".npy",
        ".npz",
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".xml",
        ".html",
        ".md",
        ".pdf",
        ".toml",
        ".yaml",
        ".yml",
        ".log",
        ".zip",
        ".py",
        ".pt",
        ".pth",
        ".safetensors",
    ]
)
_MAGIC = 128  # bytes before the letters DICM
_CLASSES: dict[str, Kind] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "seg",
    "1.2.840.10008.5.1.4.1.1.66.7": "seg",  # label map segmentation
    "1.2.840.10008.5.1.4.1.1.481.3": "rtstruct",
}
_DIRECTORY = "1.2.840.10008.1.3.10"
#: With pixels, but no images of a patient that a model could be trained on: dose, parametric map, whole-slide tiles.
_NO_IMAGES = {"1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.30", "1.2.840.10008.5.1.4.1.1.77.1.6"}
_SLICED = {"CT", "MR", "PT", "NM"}  # what they acquire has a place, so a file without one is damaged
DEFLATED = "1.2.840.10008.1.2.1.99"
_TAGS = [
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "AccessionNumber",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "GantryDetectorTilt",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "SharedFunctionalGroupsSequence",
]


@dataclass(frozen=True, slots=True)
class Header:
    """One file."""

    path: Path
    kind: Kind
    reason: str = ""  # why it is no image, or what is wrong with it
    syntax: str = ""  # UID of the transfer syntax: how the pixels are compressed
    sop_uid: str = ""
    series_uid: str = ""
    frame_uid: str = ""  # of the frame of reference
    patient: str = ""  # PatientID
    number: str = ""  # of the series
    modality: str = ""
    shape: tuple[int, int, int, int] = (0, 0, 0, 0)  # rows, columns, frames, samples per pixel
    bits: tuple[int, int, bool] = (0, 0, False)  # allocated, stored, signed
    photometric: str = ""
    position: tuple[float, ...] = ()  # (x, y, z) of the first pixel, mm, LPS
    orientation: tuple[float, ...] = ()  # of a row and of a column
    spacing: tuple[float, ...] = ()  # between rows, between columns; mm
    thickness: float | None = None  # between slices, or of a slice; mm
    refers: tuple[str, ...] = ()  # UIDs of the series that a label object is of
    personal: frozenset[str] = frozenset()  # words that say who the patient is; never written anywhere

    @property
    def dtype(self) -> str:
        """Of the stored numbers, a numpy name."""
        return f"{'int' if self.bits[2] else 'uint'}{self.bits[0]}"


def library() -> Any:
    """pydicom."""
    try:
        import pydicom
    except ImportError:
        raise SamAdaptError(f"DICOM files need pydicom, which is not installed: {INSTALL}") from None
    return pydicom


@functools.lru_cache(maxsize=1)
def is_installed() -> bool:
    """Whether DICOM files can be read."""
    return importlib.util.find_spec("pydicom") is not None


def is_dicom(path: Path) -> bool:
    """Whether the file begins as DICOM files do, or is called like one."""
    if path.name.startswith("."):
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        return _has_magic(path)
    except OSError:
        return False


def read_folder(folder: Path) -> tuple[Header, ...]:
    """The headers of all DICOM files right in a folder, by name."""
    try:
        paths = sorted(Path(entry.path) for entry in os.scandir(folder))
    except OSError:
        return ()
    return tuple(found for path in paths if (found := _kept(path)) is not None)


def _kept(path: Path) -> Header | None:
    """The header of a file; None where it is no DICOM file, or no file."""
    if not _may_be(path):
        return None
    try:
        stamp = path.stat()
    except OSError:
        return None
    return kept_header(path, stamp.st_mtime_ns, stamp.st_size) if stat.S_ISREG(stamp.st_mode) else None


@functools.lru_cache(maxsize=1 << 18)  # about a kilobyte each; a file that was changed since is a miss
def kept_header(path: Path, mtime_ns: int, size: int) -> Header | None:
    """By path and stamp; None where it is no DICOM file."""
    return _header(path) if is_dicom(path) else None


def _may_be(path: Path) -> bool:
    """Whether a file must be opened to know: DICOM files have any suffix or none, but not that of another kind of file."""
    return path.suffix.lower() not in _OTHERS


def read_header(path: Path) -> Header:
    """The header of one file; one that cannot be read is an error that names it."""
    if not path.is_file():
        raise SamAdaptError(f"{path} does not exist; check the name and the folder")
    found = _kept(path) or _header(path)
    if found.kind == "broken":
        raise SamAdaptError(f"{path} cannot be read as DICOM ({found.reason}); copy or export it again")
    return found


def kind_of(path: Path) -> Kind | None:
    """What a file holds; None where it is no DICOM file, or pydicom is not there to say."""
    found = _kept(path) if is_installed() else None
    return None if found is None else found.kind


def left_out(files: Sequence[Path]) -> list[tuple[Path, str]]:
    """The DICOM files among those of one folder that are no images and no labels, and why."""
    if not is_installed():
        return [(path, NOT_INSTALLED) for path in files if _may_be(path) and is_dicom(path)]
    return [(each.path, each.reason) for each in headers_of(files, "other")] + [
        (each.path, BROKEN) for each in headers_of(files, "broken")
    ]


def headers_of(files: Sequence[Path], *kinds: Kind) -> list[Header]:
    """The headers of these kinds among some files."""
    if not is_installed():
        return []
    return [found for path in files if (found := _kept(path)) is not None and found.kind in kinds]


# ---------------------------------------------------------------- one file


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """pydicom's warnings repeat values of the header, which may name the patient."""
    with others_silenced():
        yield


def telling_damage(read: Callable[P, T]) -> Callable[P, T]:
    """For a function whose first argument is a file: what pydicom meets in a broken value becomes a message of ours.

    Elements are only looked into when they are asked for, so that any of them can fail anywhere.
    """

    @functools.wraps(read)
    def told(*given: P.args, **options: P.kwargs) -> T:
        try:
            return read(*given, **options)
        except (SamAdaptError, OSError, MemoryError):
            raise
        except Exception as error:
            raise SamAdaptError(
                f"{given[0]} cannot be read as DICOM: a value in its header is damaged ({type(error).__name__}); copy or "
                "export it again"
            ) from error

    return told


def read_dataset(path: Path, pixels: bool = False, tags: Sequence[str] | None = None) -> Any:
    """The pydicom data set of a file.

    Raises:
        SamAdaptError: it cannot be read; the message repeats nothing of its content.
    """
    dicom = library()
    try:
        with silent():
            found = dicom.dcmread(
                path, stop_before_pixels=not pixels, specific_tags=tags, force=not _has_magic(path)
            )
            if "TransferSyntaxUID" not in found.file_meta and tags is not None and "SOPClassUID" not in found:
                raise ValueError("no DICOM header")
    except FileNotFoundError:
        raise SamAdaptError(f"{path} does not exist; check the name and the folder") from None
    except Exception as error:  # pydicom raises what it meets in a broken file
        raise SamAdaptError(
            f"{path} cannot be read as DICOM ({_why(path, error)}); copy or export it again"
        ) from None
    return found


def _why(path: Path, error: Exception) -> str:
    size = path.stat().st_size if path.is_file() else 0
    return f"{type(error).__name__}, {size} bytes are there" if size else "it is empty"


def _has_magic(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(_MAGIC + 4)[_MAGIC:] == b"DICM"


def _header(path: Path) -> Header:
    dicom = library()
    try:
        with silent():
            if _has_magic(path):
                meta = dicom.filereader.read_file_meta_info(path)
                if meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
                    return Header(path, "other", DIRECTORY)
                if meta.get("TransferSyntaxUID") == DEFLATED:
                    return Header(path, "broken", "its header is compressed (deflated), which is not read")
            return _from_dataset(path, read_dataset(path, tags=_TAGS))
    except SamAdaptError as error:
        return Header(path, "broken", str(error).partition("(")[2].rpartition(")")[0])
    except Exception as error:  # a value that is none of its kind
        return Header(path, "broken", _why(path, error))


def _from_dataset(path: Path, data: Any) -> Header:
    meta = data.file_meta
    sop_class = str(data.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
    shared = (data.get("SharedFunctionalGroupsSequence") or [None])[0]
    place = (data.get("ImagePositionPatient"), data.get("ImageOrientationPatient"))
    frames = int(data.get("NumberOfFrames") or 1)
    modality = str(data.get("Modality") or "")
    kind, reason = _kind(data, sop_class, shared is not None, all(place) or modality in _SLICED)
    patient = str(data.get("PatientID") or "").strip()
    thickness = data.get("SpacingBetweenSlices") or data.get("SliceThickness")
    return Header(
        path=path,
        kind=kind,
        reason=reason,
        syntax=str(meta.get("TransferSyntaxUID") or "1.2.840.10008.1.2"),
        sop_uid=str(data.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID") or ""),
        series_uid=str(data.get("SeriesInstanceUID") or ""),
        frame_uid=str(data.get("FrameOfReferenceUID") or ""),
        patient=patient,
        number="" if data.get("SeriesNumber") is None else str(data.SeriesNumber),
        modality=modality,
        shape=(
            int(data.get("Rows") or 0),
            int(data.get("Columns") or 0),
            frames,
            int(data.get("SamplesPerPixel") or 1),
        ),
        bits=(
            int(data.get("BitsAllocated") or 0),
            int(data.get("BitsStored") or data.get("BitsAllocated") or 0),
            bool(data.get("PixelRepresentation") or 0),
        ),
        photometric=str(data.get("PhotometricInterpretation") or ""),
        position=numbers(place[0]),
        orientation=numbers(place[1]),
        spacing=numbers(data.get("PixelSpacing")),
        thickness=abs(float(thickness)) if thickness else None,
        refers=_refers(data) if kind in ("seg", "rtstruct") else (),
        personal=_personal(data, patient),
    )


def _kind(data: Any, sop_class: str, enhanced: bool, placed: bool) -> tuple[Kind, str]:
    if sop_class in _CLASSES:
        return _CLASSES[sop_class], ""
    if "Rows" not in data or "Columns" not in data or sop_class in _NO_IMAGES:
        return "other", NO_IMAGE
    if "LOCALIZER" in [str(word).upper() for word in _list(data.get("ImageType"))]:
        return "other", LOCALIZER
    if enhanced or (placed and int(data.get("NumberOfFrames") or 1) > 1):
        return "volume", ""
    return ("slice" if placed else "picture"), ""


def _list(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def in_groups(group: Any, shared: Any, sequence: str, tag: str) -> Any:
    """A value of a multi-frame file's functional groups: of the frame where it has one, else of all frames, else None."""
    items = (each.get(sequence) for each in (group, shared))
    return next((value for item in items if item and (value := item[0].get(tag))), None)


def numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(number) for number in value) if value else ()


def _refers(data: Any) -> tuple[str, ...]:
    """The series that a SEG (directly) or an RTSTRUCT (by study) names."""
    series = list(data.get("ReferencedSeriesSequence") or [])
    for frame in data.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            series += study.get("RTReferencedSeriesSequence") or []
    return tuple(dict.fromkeys(str(each.SeriesInstanceUID) for each in series))


def _personal(data: Any, patient: str) -> frozenset[str]:
    words = re.split(r"[\W_]+", str(data.get("PatientName") or "").lower())
    found = {word for word in words if len(word) > 2 and not word.isdigit()}
    found |= {str(data.get(tag) or "").strip().lower() for tag in ("PatientBirthDate", "AccessionNumber")}
    return frozenset(word for word in found if len(word) > 2 and word not in patient.lower())
