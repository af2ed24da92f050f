"""NIfTI files: arrays in the file's index order, geometry from the header, label maps with the source's header."""

from __future__ import annotations

import gzip
import math
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from samadapt.files import replacing
from samadapt.io.geometry import Geometry
from samadapt.io.limits import MOST_HEADER, SLACK, demand_size, demand_there, gunzip
from samadapt.types import Case, SamAdaptError, SamAdaptWarning

#: First number of a header -> where the offset of the voxels stands in it, its type, and where extensions begin.
_OFFSETS = {348: (108, "f", 348), 540: (168, "q", 540)}
_PLANAR = 1e-4  # volume of a voxel over the product of its sides: below, two axes run the same way
_UNITS = {1: "meter", 2: "mm", 3: "micron"}
_MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001}  # "mm" and "unknown" are taken as mm


def read_geometry(path: Path) -> Geometry:
    """The geometry of a file, read from its header alone."""
    return geometry(load_header(path), path)


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """(C, i, j, k) float32; a fourth axis of the file becomes the channels."""
    image = load_header(path)
    found = geometry(image, path)
    array = read_array(image, path, np.float32)
    return (array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)), found


def read_label(path: Path) -> tuple[np.ndarray, Geometry]:
    """(i, j, k) as stored; whole numbers that were stored with a scale, and so rounded, are whole again."""
    image = load_header(path)
    found = geometry(image, path)
    array = read_array(image, path, None)
    if array.dtype.kind == "f" and (image.dataobj.slope != 1.0 or image.dataobj.inter != 0.0):
        whole = np.round(array)
        array = np.where(np.isclose(array, whole, rtol=1e-4, atol=1e-4), whole, array)
    return array, found


def load_header(path: Path) -> Any:
    """The nibabel image, its voxels still on disk."""
    return _guarded(path, lambda: _loaded(path))


def _loaded(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        _demand_small_header(path)
    return nib.load(path, mmap=False)


def _demand_small_header(path: Path) -> None:
    """nibabel reads as much of extensions as they say, and of compressed ones that may be without end."""
    with gzip.open(path) as file:
        head = file.read(544)
        order = next(
            (o for o in "<>" if len(head) == 544 and struct.unpack(f"{o}i", head[:4])[0] in _OFFSETS), ""
        )
        if not order:
            return  # nibabel says what is wrong with it
        place, kind, start = _OFFSETS[struct.unpack(f"{order}i", head[:4])[0]]
        (offset,) = struct.unpack_from(order + kind, head, place)
        if not 0 <= offset <= MOST_HEADER:  # also where it is nan
            raise ValueError(f"its voxels begin at byte {offset:g}")
        if head[start] == 0:
            return
        head += file.read(max(0, int(offset) - len(head)))
    at = start + 4
    while int(offset) - at >= 16:
        size = struct.unpack_from(f"{order}i", head, at)[0] if at + 4 <= len(head) else 0
        if not 8 <= size <= int(offset) - at:
            raise ValueError(f"an extension of its header has {size} bytes")
        at += size


def geometry(image: Any, path: Path) -> Geometry:
    """The geometry of a nibabel image. Axes of length 1 beyond the third are left out; a 2-D file gets a third axis."""
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4 or len(shape) < 2:
        raise SamAdaptError(f"{path} has {len(shape)} axes {shape}; expected a volume of 3 axes")
    if min(shape) < 1:
        raise SamAdaptError(f"{path} has no voxels (shape {shape}); export it again")
    demand_size(path, shape)
    channels = shape[3] if len(shape) == 4 else 1
    i, j, k = (*shape, 1)[:3]
    affine = np.asarray(image.affine)
    if not np.all(np.isfinite(affine)) or not abs(np.linalg.det(affine[:3, :3])) > _PLANAR * np.prod(
        voxel_sizes(affine)
    ):
        raise SamAdaptError(
            f"{path}: the affine of the header is {'singular' if np.all(np.isfinite(affine)) else 'not finite'} "
            f"({np.array2string(affine[:3].ravel(), precision=3, max_line_width=1000)}), so it does not say where its voxels "
            "lie; correct the header (sform, qform) or export the scan again"
        )
    oriented = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
    return Geometry((i, j, k), _spacing_mm(image), affine, channels, _dtype(image, path), oriented)


def _dtype(image: Any, path: Path) -> str:
    dtype = image.get_data_dtype()
    if dtype.kind not in "biuf":
        raise SamAdaptError(f"{path} stores {dtype} voxels; expected real numbers: save it as a grey volume")
    return str(dtype)


def _spacing_mm(image: Any) -> tuple[float, float, float] | None:
    header = image.header
    says_where = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    zooms = np.array([*header.get_zooms()[:3], 1.0, 1.0][:3], dtype=float)
    code = int(header["xyzt_units"]) % 8
    if code not in (0, *_UNITS):
        warnings.warn(
            f"files with the unit code {code}, which NIfTI does not define, are taken to be in millimetres",
            SamAdaptWarning,
            stacklevel=2,
        )
    units = _UNITS.get(code, "unknown")
    sizes = voxel_sizes(image.affine) if says_where else zooms
    if not says_where and units == "unknown" and np.all(zooms == 1.0):
        return None  # nothing in the header but its defaults
    if not np.all(np.isfinite(sizes)) or np.any(sizes <= 0):
        return None
    i, j, k = (float(size) * _MM_PER_UNIT.get(units, 1.0) for size in sizes)
    return (i, j, k)


def read_array(image: Any, path: Path, dtype: type | None) -> np.ndarray:
    """The voxels with `scl_slope` and `scl_inter` applied, (i, j, k) or (i, j, k, channels)."""
    array = _guarded(path, lambda: np.asanyarray(_checked(image, path).dataobj, dtype=dtype))
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array[..., None] if array.ndim == 2 else array


def _checked(image: Any, path: Path) -> Any:
    """A file that has all its bytes; a `.gz` is read to its end, where its checksum stands: nibabel would not see damage."""
    needed = int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize
    if path.suffix.lower() != ".gz":
        demand_there(path, needed, path.stat().st_size)
        return image
    content = gunzip(path, needed + SLACK)
    demand_there(path, needed, len(content))
    return type(image).from_bytes(content)


def write_label(path: Path, label: np.ndarray, case: Case) -> None:
    """(i, j, k) uint8 with the header of the case's source: affine, sform and qform codes, units.

    What describes the grey values of the source (scaling, display range, intent, extensions, which may name
    the patient) is not copied.
    """
    source = case.source
    if source is None:
        image = nib.Nifti1Image(label, case.affine)
        image.header.set_xyzt_units("mm")
    else:
        original = load_header(source)
        expected = geometry(original, source).shape
        if label.shape != expected:
            raise SamAdaptError(
                f"a label map of {label.shape} voxels does not fit {source} of {expected}; predict on this scan"
            )
        header = original.header.copy()
        header.extensions.clear()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1.0, 0.0)
        header.set_intent("none")
        header["cal_max"], header["cal_min"] = 0, 0
        for field in ("descrip", "aux_file", "db_name"):  # older programs keep the patient's name in the last
            if field in header.keys():  # noqa: SIM118  # NIfTI-2 has no `db_name`, and a header is no dict
                header[field] = b""
        flat = len(original.shape) == 2
        image = type(original)(label[..., 0] if flat else label, original.affine, header)
    with replacing(path) as temporary:
        nib.save(image, temporary)


def write_volume(path: str | Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """(i, j, k) of any real type as a new NIfTI file, in millimetres of scanner space."""
    path = Path(path)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with replacing(path) as temporary:
        nib.save(image, temporary)
    return path


def example(folder: Path) -> Path:
    """A tiny file for tests."""
    affine = np.array([[-1.5, 0, 0, 20], [0, 0, 6.0, -3], [0, -2.0, 0, 7], [0, 0, 0, 1]])
    return write_volume(folder / "example.nii.gz", np.arange(120, dtype=np.int16).reshape(6, 5, 4), affine)


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except FileNotFoundError:
        raise SamAdaptError(f"{path} does not exist; check the name and the folder") from None
    except SamAdaptError:
        raise
    except Exception as error:  # nibabel raises whatever the bytes happen to mean
        size = path.stat().st_size if path.is_file() else 0
        why = (str(error).splitlines() or [type(error).__name__])[0]
        what = "is empty" if size == 0 else f"cannot be read ({why})"
        raise SamAdaptError(
            f"{path} {what}; expected a whole NIfTI file: copy or export it again ({size} bytes are there)"
        ) from error
