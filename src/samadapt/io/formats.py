"""The table of file formats. A new one is an entry here; the contract test runs over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from samadapt.io import nifti, pictures
from samadapt.io.geometry import Geometry
from samadapt.types import Case

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
    picture: bool = False  # one slice that does not say where it lies, nor how large its pixels are
    lossy: bool = False  # values change a little when they are saved


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
_PNG = _picture("png", ".png", write_label=pictures.write_label)

#: By name, which is that of `Case.format`.
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        _NIFTI,
        _PNG,
        _picture("jpeg", ".jpg", ".jpeg", lossy=True),
        _picture("tiff", ".tif", ".tiff"),
        _picture("bmp", ".bmp"),
        _picture("gif", ".gif"),
        _picture("webp", ".webp"),
    )
}


def known_suffixes() -> tuple[str, ...]:
    """The suffixes of all formats, in lower case."""
    return tuple(suffix for each in FORMATS.values() for suffix in each.suffixes)


def suffix_of(path: Path) -> str:
    """`.nii.gz`, `.png`, ... in lower case; "" for what is not an image file."""
    name = path.name.lower()
    return max((s for s in known_suffixes() if name.endswith(s)), key=len, default="")


def find_format(path: Path) -> Format | None:
    """The format of a file by its name; None for what is not an image file."""
    suffix = suffix_of(path)
    return next((each for each in FORMATS.values() if suffix in each.suffixes), None)


def is_picture(path: Path) -> bool:
    """Whether the file is a picture; False for volumes and for what is not an image file."""
    found = find_format(path)
    return found is not None and found.picture


def is_lossy(path: Path) -> bool:
    """Whether saving the file has changed its values a little."""
    found = find_format(path)
    return found is not None and found.lossy


def scans_among(files: Sequence[Path]) -> list[Path]:
    """The scans among the files of one folder, each by the path that stands for it."""
    found = [path for each in FORMATS.values() if each.find is not None for path in each.find(files)]
    return found + [path for path in files if (each := find_format(path)) is not None and each.find is None]


def label_format(case: Case) -> Format:
    """The format in which label maps of a case are written."""
    own = FORMATS[case.format] if case.format is not None else None
    if own is not None and own.write_label is not None:
        return own
    return _PNG if case.affine is None else _NIFTI


def label_file(folder: Path, case: Case) -> Path:
    """Where the label map of a case stands in a folder of predictions."""
    return folder / f"{case.id}{label_format(case).suffixes[0]}"


def find_label(folder: Path, case_id: str) -> Path | None:
    """The label map of a case in a folder of predictions, of whatever format; None where there is none yet."""
    names = (f"{case_id}{each.suffixes[0]}" for each in FORMATS.values() if each.write_label is not None)
    return next((folder / name for name in names if (folder / name).is_file()), None)
