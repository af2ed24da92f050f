"""NRRD files, as 3D Slicer saves them, through SimpleITK; their headers are looked at first, as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.files import replacing
from samadapt.io.geometry import LPS_TO_RAS, Geometry
from samadapt.io.limits import demand_size, demand_there
from samadapt.types import Case, SamAdaptError

_MOST_HEADER = 1 << 22  # bytes of text; a segmentation's header lists its segments
_MAGIC = b"NRRD"
_DETACHED = ("data file", "datafile")
_NUMBERS = {
    "uint8": ("UInt8", 1), "int8": ("Int8", 1), "uint16": ("UInt16", 2), "int16": ("Int16", 2), "uint32": ("UInt32", 4),
    "int32": ("Int32", 4), "uint64": ("UInt64", 8), "int64": ("Int64", 8), "float32": ("Float32", 4), "float64": ("Float64", 8),
}  # fmt: skip


def read_geometry(path: Path) -> Geometry:
    """The geometry of a file, read from its header alone."""
    return _opened(path)[1]


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """(C, i, j, k) float32; components of a voxel, and a fourth axis, are the channels."""
    array, geometry = _array(path)
    return array.astype(np.float32), geometry


def read_label(path: Path) -> tuple[np.ndarray, Geometry]:
    """(i, j, k) as stored."""
    array, geometry = _array(path)
    return array[0], geometry


def write_label(path: Path, label: np.ndarray, case: Case) -> None:
    """(i, j, k) uint8, compressed, on the voxels of the case."""
    sitk = _library()
    affine = case.affine
    if affine is None or label.ndim != 3:
        raise SamAdaptError(
            f"case {case.id!r} is a picture, whose label maps are written as PNG; choose --format png"
        )
    image = sitk.GetImageFromArray(np.ascontiguousarray(label.transpose(2, 1, 0)))
    matrix = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:  # what it says of a full disk
            raise OSError(f"SimpleITK could not write it ({_last_line(error)})") from error


def example(folder: Path) -> Path:
    """A tiny file for tests."""
    text = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
        "space directions: (1.5,0,0) (0,0,-2) (0,6,0)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        "space origin: (-20,3,7)\n\n"
    )
    path = folder / "example.nrrd"
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode() + np.arange(120, dtype="<i2").tobytes())
    return path


def _library() -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise SamAdaptError(
            "NRRD files need SimpleITK, which is not installed: pip install 'samadapt[dicom]'"
        ) from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def _fields(path: Path) -> tuple[Mapping[str, str], int]:
    """What stands in the header, in lower case, and where the voxels begin."""
    try:
        with open(path, "rb") as file:
            head = file.read(_MOST_HEADER)
    except FileNotFoundError:
        raise SamAdaptError(f"{path} does not exist; check the name and the folder") from None
    ends = [end for mark in (b"\n\n", b"\r\n\r\n") if (end := head.find(mark) + len(mark)) >= len(mark)]
    if not head.startswith(_MAGIC) or not ends:
        what = "is empty" if not head else "has no NRRD header"
        raise SamAdaptError(f"{path} {what}; expected a whole NRRD file: copy or export it again")
    lines = head[: min(ends)].decode("utf-8", errors="replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line and ":=" not in line and line[0] != "#")
    return {name.strip().lower(): value.strip().lower() for name, value in pairs}, min(ends)


def _opened(path: Path) -> tuple[Any, Geometry]:
    """A SimpleITK reader that has read the header, and what the header says, believed."""
    fields, start = _fields(path)
    if any(name in fields for name in _DETACHED):
        raise SamAdaptError(
            f"{path} keeps its voxels in another file; expected one file with both, as 3D Slicer saves it: save it as .nrrd again"
        )
    sizes = fields.get("sizes", "").split()
    if not sizes or not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise SamAdaptError(
            f"{path} has the sizes {' '.join(sizes)[:60]!r}; expected a number for each axis: export it again"
        )
    demand_size(path, [int(size) for size in sizes])
    sitk = _library()
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise SamAdaptError(
            f"{path} cannot be read as NRRD ({_last_line(error)}); copy or export it again"
        ) from None
    geometry, width = _geometry(sitk, reader, fields, path)
    if fields.get("encoding", "raw") == "raw":
        demand_there(path, start + math.prod(map(int, sizes)) * width, path.stat().st_size)
    return reader, geometry


def _geometry(sitk: Any, reader: Any, fields: Mapping[str, str], path: Path) -> tuple[Geometry, int]:
    """And the bytes of a number."""
    size, components = [int(n) for n in reader.GetSize()], int(reader.GetNumberOfComponents())
    known = {
        getattr(sitk, f"sitk{kind}{name}"): (dtype, width)
        for dtype, (name, width) in _NUMBERS.items()
        for kind in ("", "Vector")
    }
    if (
        reader.GetPixelIDValue() not in known
        or not 2 <= len(size) <= 4
        or (len(size) == 4 and components > 1)
    ):
        raise SamAdaptError(
            f"{path} has {len(size)} axes {tuple(size)} of {sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())}; expected a "
            "volume of 3 axes of real numbers"
        )
    dtype, width = known[reader.GetPixelIDValue()]
    axes = min(len(size), 3)
    affine, full = np.eye(4), len(size)
    direction = np.array(reader.GetDirection()).reshape(full, full)
    affine[:axes, :axes] = (direction * np.array(reader.GetSpacing()))[:axes, :axes]
    affine[:axes, 3] = reader.GetOrigin()[:axes]
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine)) < 1e-12:
        raise SamAdaptError(
            f"{path}: its space directions do not say where its voxels lie; correct the header or export the scan again"
        )
    says_size = "space directions" in fields or "spacings" in fields
    spacing = (*(float(x) for x in reader.GetSpacing()[:axes]), 1.0)[:3]
    channels = size[3] if len(size) == 4 else components
    i, j, k = (*size, 1)[:3]
    geometry = Geometry(
        (i, j, k),
        (spacing[0], spacing[1], spacing[2]) if says_size else None,
        LPS_TO_RAS @ affine,
        channels,
        dtype,
        "space" in fields and "space directions" in fields,
    )
    return geometry, width


def _array(path: Path) -> tuple[np.ndarray, Geometry]:
    """(C, i, j, k)"""
    reader, geometry = _opened(path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise SamAdaptError(
            f"{path} is damaged or cut off ({_last_line(error)}); copy or export it again"
        ) from None
    array = _library().GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:  # (k, j, i, C)
        array = np.moveaxis(array, -1, 0)
    array = array.reshape(geometry.channels, *geometry.shape[::-1])  # (C, k, j, i)
    return array.transpose(0, 3, 2, 1), geometry


def _last_line(error: Exception) -> str:
    """Of SimpleITK's messages, what is wrong, without the place in its own code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
