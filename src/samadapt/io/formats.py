"""The table of file formats. A new one is an entry here; the contract test runs over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from samadapt.io import nifti, nrrd, pictures
from samadapt.io.dicom import contours, examples, headers, labels, naming, pixels, series, writer
from samadapt.io.geometry import Geometry
from samadapt.types import Case, SamAdaptError

Read = Callable[[Path], tuple[np.ndarray, Geometry]]


@dataclass(frozen=True)
class Format:
    """How files of one format are found, read and written; arrays lie in the file's own axis order."""

    name: str
    suffixes: tuple[str, ...]  # in lower case; files are written with the first
    geometry: Callable[[Path], Geometry]  # from the header alone; the voxels stay on disk
    read: Read  # (C, i, j, k) float32, values as stored; a picture is (C, rows, columns, 1)
    example: Callable[[Path], Path]  # writes a tiny file into a folder, for tests
    read_label: Read | None = None  # (i, j, k) numbers as stored; None: as an image is read
    #: A label map (i, j, k) uint8 in the geometry of the case's source, which is of this format or None. None: label
    #: maps of its cases are written as NIfTI, those of pictures as PNG.
    write_label: Callable[[Path, np.ndarray, Case], None] | None = None
    #: The scans among the files of one folder, each by the path that stands for it. None: each file of a suffix is one.
    find: Callable[[Sequence[Path]], Sequence[Path]] | None = None
    #: Whether a file is of this format by its content, for formats whose files share a suffix or have none.
    matches: Callable[[Path], bool] | None = None
    case_name: Callable[[Path], str] | None = None  # of the scan of a file; None: its name without the suffix
    files: Callable[[Path], Sequence[Path]] | None = None  # all files of the scan; None: the file alone
    patient: Callable[[Path], str | None] | None = None  # as the header says it; None: it does not
    modality: Callable[[Path], str] | None = None  # "CT", "MR", ... as the header says it; None: it does not
    #: Of the files of one folder: those that look like scans and are none, and why.
    left_out: Callable[[Sequence[Path]], Sequence[tuple[Path, str]]] | None = None
    picture: bool = False  # one slice that does not say where it lies, nor how large its pixels are
    lossy: bool = False  # values change a little when they are saved


@dataclass(frozen=True)
class StructureFormat:
    """Labels that name their structures and lie in the body, so that they are read on the voxels of a scan."""

    name: str
    suffix: str
    matches: Callable[[Path], bool]
    names: Callable[[Path], tuple[str, ...]]  # of the structures in a file
    #: (i, j, k) uint8 on the voxels of the geometry. The mapping has the number of each structure; the last argument says
    #: whether, where structures overlap, that with the lower number is kept and structures without one are background.
    read: Callable[[Path, Geometry, Mapping[str, int], bool], np.ndarray]
    example: Callable[
        [Path, np.ndarray, Case], Path
    ]  # writes (i, j, k) uint8 as liver (1) and spleen (2), for tests
    #: (i, j, k) uint8 on the voxels of the case's source, which must be of the format `source`. None: it is not written.
    write: Callable[[Path, np.ndarray, Case, writer.Legend], None] | None = None
    source: str = ""


def _picture(
    name: str,
    *suffixes: str,
    write_label: Callable[[Path, np.ndarray, Case], None] | None = None,
    lossy: bool = False,
) -> Format:
    return Format(
        name,
        suffixes,
        pictures.read_geometry,
        pictures.read,
        partial(pictures.example, suffix=suffixes[0]),
        pictures.read_label,
        write_label,
        picture=True,
        lossy=lossy,
    )


_NIFTI = Format(
    "nifti",
    (".nii.gz", ".nii"),
    nifti.read_geometry,
    nifti.read,
    nifti.example,
    nifti.read_label,
    nifti.write_label,
)
_NRRD = Format(
    "nrrd", (".nrrd",), nrrd.read_geometry, nrrd.read, nrrd.example, nrrd.read_label, nrrd.write_label
)
_PNG = _picture("png", ".png", write_label=pictures.write_label)


def _seg(name: str, write: Callable[[Path, np.ndarray, Case, writer.Legend], None]) -> StructureFormat:
    return StructureFormat(
        name, ".dcm", labels.is_seg, labels.seg_names, labels.read_seg, examples.seg, write, "dicom"
    )


_DICOM = Format(
    "dicom",
    headers.SUFFIXES,
    pixels.read_geometry,
    pixels.read,
    examples.series,
    find=series.find_volumes,
    matches=series.is_volume,
    case_name=naming.case_name,
    files=series.files_of,
    patient=naming.patient_of,
    modality=naming.modality_of,
    left_out=headers.left_out,
)
_DICOM_PICTURE = Format(
    "dicom-picture",
    headers.SUFFIXES,
    pixels.read_picture_geometry,
    pixels.read_picture,
    examples.picture,
    find=series.find_pictures,
    matches=series.is_picture,
    case_name=naming.case_name,
    patient=naming.patient_of,
    modality=naming.modality_of,
    picture=True,
)

#: By name, which is that of `Case.format`.
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        _NIFTI,
        _NRRD,
        _PNG,
        _picture("jpeg", ".jpg", ".jpeg", lossy=True),
        _picture("tiff", ".tif", ".tiff"),
        _picture("bmp", ".bmp"),
        _picture("gif", ".gif"),
        _picture("webp", ".webp"),
        _DICOM,
        _DICOM_PICTURE,
    )
}

#: By name.
STRUCTURE_FORMATS: dict[str, StructureFormat] = {
    each.name: each
    for each in (
        _seg("dicom-seg", writer.write_seg),
        _seg("dicom-seg-binary", partial(writer.write_seg, binary=True)),
        StructureFormat(
            "rtstruct",
            ".dcm",
            contours.is_rtstruct,
            contours.structure_names,
            contours.read_structures,
            examples.rtstruct,
        ),
    )
}


def known_suffixes() -> tuple[str, ...]:
    """The suffixes of all formats, in lower case."""
    return tuple(dict.fromkeys(suffix for each in FORMATS.values() for suffix in each.suffixes))


def suffix_of(path: Path) -> str:
    """`.nii.gz`, `.png`, ... in lower case; "" for what is not called like an image file."""
    name = path.name.lower()
    likely = (
        each for each in FORMATS.values() if name.endswith(each.suffixes)
    )  # asked of every file, several times
    return max((s for each in likely for s in each.suffixes if name.endswith(s)), key=len, default="")


def find_format(path: Path) -> Format | None:
    """The format of a file by its name, and by its content where names do not tell; None for what is not an image file."""
    suffix = suffix_of(path)
    named = [each for each in FORMATS.values() if suffix in each.suffixes]
    if named and named[0].matches is None:
        return named[0]
    told = (each for each in FORMATS.values() if each.matches is not None and each.matches(path))
    return next(told, named[0] if named else None)


def structures_of(path: Path) -> StructureFormat | None:
    """The format of a label that names its structures; None for every other file."""
    return next((each for each in STRUCTURE_FORMATS.values() if each.matches(path)), None)


def is_picture(path: Path) -> bool:
    """Whether the file is a picture; False for volumes and for what is not an image file."""
    found = find_format(path)
    return found is not None and found.picture


def is_lossy(path: Path) -> bool:
    """Whether saving the file has changed its values a little."""
    found = find_format(path)
    return found is not None and found.lossy


def scans_among(files: Sequence[Path]) -> list[Path]:
    """The scans and labels among the files of one folder, each by the path that stands for it."""
    found = [path for each in FORMATS.values() if each.find is not None for path in each.find(files)]
    by_content = {suffix for each in FORMATS.values() if each.find is not None for suffix in each.suffixes}
    by_content |= {each.suffix for each in STRUCTURE_FORMATS.values()}
    other = [path for path in files if (suffix := suffix_of(path)) and suffix not in by_content]
    return found + [path for path in files if structures_of(path)] + other


def not_scans_among(files: Sequence[Path]) -> list[tuple[Path, str]]:
    """The files of one folder that look like scans and are none, and why."""
    return [item for each in FORMATS.values() if each.left_out is not None for item in each.left_out(files)]


def is_whole_image(path: Path) -> bool:
    """Whether it is called like a file that holds a whole image; one of DICOM may be a slice of many."""
    suffix = suffix_of(path)
    return bool(suffix) and not any(
        suffix in each.suffixes for name, each in FORMATS.items() if name.startswith("dicom")
    )


def is_found_by_content(path: Path) -> bool:
    """Whether the file is of a scan that is found and named by what stands in its files, wherever they lie."""
    return any(each.matches(path) for each in FORMATS.values() if each.find and each.matches is not None)


def names_structures(name: str) -> bool:
    """Whether labels of a format name their structures."""
    return name in STRUCTURE_FORMATS


def series_of_structures(path: Path) -> tuple[str, ...]:
    """The UIDs of the series that a label refers to."""
    return headers.read_header(path).refers


def files_of(path: Path) -> tuple[Path, ...]:
    """All files of the scan that a path stands for."""
    found = find_format(path)
    return (path,) if found is None or found.files is None else tuple(found.files(path))


def patient_of(path: Path) -> str | None:
    """The patient as the header says it; None where it does not."""
    found = find_format(path)
    return None if found is None or found.patient is None else found.patient(path)


def modality_of(path: Path) -> str:
    """The modality as the header says it; "" where it does not."""
    found = find_format(path)
    return "" if found is None or found.modality is None else found.modality(path)


def label_format(case: Case, asked: str | None = None) -> Format | StructureFormat:
    """The format in which label maps of a case are written.

    Args:
        asked: its name; None: that of the source where it can be written, else NIfTI, or PNG for a picture.

    Raises:
        SamAdaptError: this format cannot hold label maps of such a case.
    """
    if asked in STRUCTURE_FORMATS and STRUCTURE_FORMATS[asked].write is not None:
        if case.format != STRUCTURE_FORMATS[asked].source:
            raise SamAdaptError(
                f"{case.source or case.id} is of the format {case.format or 'of no file'}; {asked} needs a DICOM volume "
                "(a series or a multi-frame file), to whose images it refers: choose another --format"
            )
        return STRUCTURE_FORMATS[asked]
    own = FORMATS[case.format] if case.format is not None else None
    usual = (
        own if own is not None and own.write_label is not None else _PNG if case.affine is None else _NIFTI
    )
    if asked in (None, usual.name):
        return usual
    if FORMATS[asked].write_label is None or FORMATS[asked].picture != usual.picture:
        raise SamAdaptError(
            f"{case.source or case.id} is a {'picture' if usual.picture else 'volume'}, whose label maps are not written as "
            f"{asked}; choose --format {usual.name}"
        )
    return FORMATS[asked]


def suffix_for(written: Format | StructureFormat) -> str:
    """The suffix that files of a format are written with."""
    return written.suffix if isinstance(written, StructureFormat) else written.suffixes[0]


def label_file(folder: Path, case: Case, asked: str | None = None) -> Path:
    """Where the label map of a case stands in a folder of predictions.

    Args:
        asked: as for `label_format`.
    """
    return folder / f"{case.id}{suffix_for(label_format(case, asked))}"


def find_label(folder: Path, case_id: str) -> Path | None:
    """The label map of a case in a folder of predictions, of whatever format; None where there is none yet."""
    written: list[Format | StructureFormat] = [f for f in FORMATS.values() if f.write_label is not None]
    written += [each for each in STRUCTURE_FORMATS.values() if each.write is not None]
    names = (f"{case_id}{suffix_for(each)}" for each in written)
    return next((folder / name for name in names if (folder / name).is_file()), None)
