"""A case from its files, and answers back into files; the table of formats says how each file is read and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samadapt.files import replacing, reserve
from samadapt.io.dicom.writer import Legend
from samadapt.io.formats import (
    Format,
    StructureFormat,
    find_format,
    is_picture,
    known_suffixes,
    label_format,
    structures_of,
    suffix_for,
    suffix_of,
)
from samadapt.io.geometry import Geometry, same_place, turn_onto
from samadapt.io.listing import cure
from samadapt.io.planes import Plane
from samadapt.types import IGNORED, Case, SamAdaptError


def read_geometry(path: str | Path) -> Geometry:
    """Shape, spacing and affine from the header alone; the voxels stay on disk."""
    path = Path(path)
    return format_of(path).geometry(path)


def depth_of(path: str | Path) -> str | None:
    """The type of the numbers in a picture, "uint8" for example; None for a volume."""
    path = Path(path)
    return read_geometry(path).dtype if is_picture(path) else None


def read_case(
    image_paths: str | Path | Sequence[str | Path],
    label_path: str | Path | None = None,
    case_id: str = "case",
    group: str | None = None,
    plane: Plane | None = None,
    channels: Sequence[int] | None = None,
) -> Case:
    """A case from its image files, values as stored, and its label file.

    Args:
        image_paths: one file, or one for each channel.
        label_path: class values, voxel on voxel.
        group: the patient; None: the case is a patient of its own.
        plane: which anatomical directions become D, H, W; None: the file's axes as they are, with D the only axis
            of length 1, else that of the largest spacing.
        channels: which channels to keep. With it, the fourth axis of a 4-D file holds the channels; without it, a
            4-D file is an error, because the axis could as well be time.
    """
    paths = [Path(p) for p in ([image_paths] if isinstance(image_paths, str | Path) else image_paths)]
    if channels is not None and len(paths) > 1:
        _demand_channels(channels, len(paths), paths[0])
        paths, channels = [paths[channel] for channel in channels], None
    arrays, geometries = zip(*(_read_image(path, channels is not None) for path in paths), strict=True)
    for path, other in zip(paths[1:], geometries[1:], strict=True):
        _demand_same_place(paths[0], geometries[0], path, other)
    image = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if channels is not None:
        _demand_channels(channels, len(image), paths[0])
        image = image if list(channels) == list(range(len(image))) else image[list(channels)]
    _demand_values(image, paths[0])
    axes, flips = (plane or Plane()).place(geometries[0], paths[0])
    case = Case(
        id=case_id,
        image=torch.from_numpy(_positive(_turned(image, axes, flips))),
        label=None,
        spacing_mm=geometries[0].spacing_along(axes),
        affine=geometries[0].affine,
        group=case_id if group is None else group,
        axes=axes,
        flips=flips,
        source=paths[0],
        format=format_of(paths[0]).name,
    )
    return case if label_path is None else dataclasses.replace(case, label=read_label(label_path, case))


def make_case(image: np.ndarray, case_id: str, group: str | None = None, source: Path | None = None) -> Case:
    """(H, W) or (H, W, 3) of any number type -> a case of one slice, for pictures that are not files."""
    array = np.asarray(image, dtype=np.float32)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return Case(
        id=case_id,
        image=torch.from_numpy(np.ascontiguousarray(array[:, None])),
        label=None,
        spacing_mm=None,
        affine=None,
        group=case_id if group is None else group,
        axes=(2, 0, 1),
        source=source,
    )


def read_label(
    path: str | Path,
    case: Case,
    values: Mapping[int, int] | None = None,
    names: Sequence[str] = (),
    first_wins: bool = False,
) -> Tensor:
    """A label file -> (D, H, W) uint8 on the voxels of `case`.

    Args:
        values: stored value -> class (or IGNORED), for every value that the data set declares; None takes
            the stored values 0..254 as classes, and 255 as IGNORED.
        names: of the classes, by number. Structures of a SEG or an RTSTRUCT are told by them; () numbers them in their
            order. For other files they are for the message only.
        first_wins: of structures that overlap, whether the one of the lower class is kept, and structures of no class are
            background; False: both are errors.
    """
    path = Path(path)
    shape = tuple(np.array(case.image.shape[1:])[np.argsort(case.axes)].tolist())
    if (own := structures_of(path)) is not None:
        names = names or ("background", *own.names(path))
        numbers = {name: number for number, name in enumerate(names) if number}
        painted = own.read(path, Geometry(shape, None, case.affine, 1, ""), numbers, first_wins)
        return torch.from_numpy(np.array(_turned(painted, case.axes, case.flips), order="C"))
    array, geometry = _read_classes(path)
    image = case.source or path
    place = Geometry(shape, None, case.affine, 1, "")
    if (turn := turn_onto(geometry, place)) is not None:  # the same voxels, perhaps stored in another order
        array = _turned(array, *turn)
    else:
        _demand_same_place(image, place, path, geometry)
    stored = _turned(array, case.axes, case.flips)
    return torch.from_numpy(
        np.array(stored, order="C") if values is None else _classes(stored, path, values, names)
    )


def _classes(stored: np.ndarray, path: Path, values: Mapping[int, int], names: Collection[str]) -> np.ndarray:
    """Stored values -> classes, each of them declared."""
    table = np.full(256, -1, dtype=np.int16)
    for value, label in values.items():
        table[value] = label
    present = np.flatnonzero(np.bincount(stored.ravel(), minlength=256))
    unknown = [int(v) for v in present if table[v] < 0]
    if unknown:
        count = int(np.isin(stored, unknown).sum())
        raise SamAdaptError(
            f"{path} has the value {unknown[0]} ({count} voxels are of undeclared classes); the data set declares "
            f"{sorted(values)}{' = ' + ', '.join(names) if names else ''}: correct the label or declare the class"
        )
    return np.ascontiguousarray(table[stored].astype(np.uint8))


def read_truth(
    path: str | Path,
    case_id: str = "case",
    plane: Plane | None = None,
    values: Mapping[int, int] | None = None,
    names: Collection[str] = (),
) -> Case:
    """A label file without its scan, to score against: the label, and itself in place of the image.

    Args:
        plane: as for `read_case`.
        values, names: as for `read_label`.
    """
    path = Path(path)
    if (own := structures_of(path)) is not None:
        raise SamAdaptError(
            f"{path} ({own.name}) is read on the voxels of its scan; give the data set that has both as the truth"
        )
    array, geometry = _read_classes(path)
    axes, flips = (plane or Plane()).place(geometry, path)
    stored = np.ascontiguousarray(_turned(array, axes, flips))
    label = torch.from_numpy(stored if values is None else _classes(stored, path, values, names))
    return Case(
        id=case_id,
        image=label[None].float(),
        label=label,
        spacing_mm=geometry.spacing_along(axes),
        affine=geometry.affine,
        group=case_id,
        axes=axes,
        flips=flips,
        source=path,
        format=format_of(path).name,
    )


def label_values(path: str | Path) -> dict[int, int]:
    """Stored value -> how many voxels of a label file have it."""
    counts = np.bincount(_read_classes(Path(path))[0].ravel(), minlength=256)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def write_label(
    path: str | Path,
    label: Tensor | np.ndarray,
    case: Case,
    asked: str | None = None,
    legend: Legend | None = None,
) -> Path:
    """(D, H, W) classes -> a label map on the voxels of the case's source, written whole or not at all.

    It is of the source's format where that can be written, else NIfTI, or an indexed PNG for a picture; `path` must have
    the suffix of it, as `label_file` gives.

    Args:
        asked: the name of another format, as for `label_format`.
        legend: what the classes are, for formats that hold it; None: they are called by their numbers.
    """
    path = Path(path)
    array = np.asarray(label)
    if array.dtype != np.uint8:
        if array.min(initial=0) < 0 or array.max(initial=0) > IGNORED or np.any(array != np.round(array)):
            raise SamAdaptError(
                f"a label map holds classes 0..{IGNORED}; this one has {array.dtype} values beyond"
            )
        array = array.astype(np.uint8)
    if array.shape != tuple(case.image.shape[1:]):
        raise SamAdaptError(
            f"a label map of {array.shape} does not fit case {case.id!r} of {tuple(case.image.shape[1:])} (D, H, W)"
        )
    written = label_format(case, asked)
    suffixes = (suffix_for(written),) if isinstance(written, StructureFormat) else written.suffixes
    if suffix_of(path) not in suffixes:
        raise SamAdaptError(
            f"a label map of {case.source or case.id} cannot be written to {path}; use {' or '.join(suffixes)}"
        )
    if isinstance(written, StructureFormat):
        assert written.write is not None  # `label_format` gives formats that can be written
        numbered = Legend(("background", *(f"class {n}" for n in range(1, int(array.max(initial=1)) + 1))))
        written.write(path, to_file_axes(array, case), case, legend or numbered)
        return path
    assert written.write_label is not None  # `label_format` gives formats that can be written
    if case.format != written.name:  # the header of another format cannot be copied
        case = dataclasses.replace(case, source=None)
    written.write_label(path, to_file_axes(array, case), case)
    return path


def write_probabilities(path: str | Path, slices: Iterable[Tensor], n_classes: int, case: Case) -> Path:
    """Probabilities slice by slice into a `.npy`: (K, i, j, k) float16, [i, j, k] as in the label map.

    Only one slice is in memory: `.npy` can be written in place, and holds float16, which NIfTI does not.
    Read it with `numpy.load(path, mmap_mode="r")`.

    Args:
        slices: D tensors (K, H, W), in order.
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise SamAdaptError(f"probabilities are written as .npy; {path} has another suffix")
    shape = np.array(case.image.shape[1:])[np.argsort(case.axes)].tolist()
    with replacing(path) as temporary:
        # Fortran order puts the last file axis outermost: the usual slice is one run of bytes.
        stored = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float16, shape=(n_classes, *shape), fortran_order=True
        )
        reserve(temporary)
        view = _turned(stored, case.axes, case.flips)  # (K, D, H, W), the same memory
        count = 0
        for probabilities in slices:
            assert count < view.shape[1], f"case {case.id!r} has {view.shape[1]} slices; more were given"
            view[:, count] = np.asarray(probabilities, dtype=np.float16)
            count += 1
        assert count == view.shape[1], f"case {case.id!r} has {view.shape[1]} slices; {count} were given"
        stored.flush()
    return path


def to_file_axes(array: np.ndarray, case: Case) -> np.ndarray:
    """(..., D, H, W) of a case -> (..., i, j, k) as its source file stores it."""
    back = tuple(axis - 3 for axis in np.argsort(case.axes))
    flipped = np.flip(array, _mirrored(case.flips))
    return np.ascontiguousarray(
        flipped.transpose(*range(array.ndim - 3), *(array.ndim + axis for axis in back))
    )


# ---------------------------------------------------------------- reading


def _turned(array: np.ndarray, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> np.ndarray:
    """(..., i, j, k) -> (..., D, H, W), in the same memory."""
    lead = array.ndim - 3
    turned = array.transpose(*range(lead), *(lead + axis for axis in axes))
    return np.flip(turned, _mirrored(flips))


def _positive(array: np.ndarray) -> np.ndarray:
    """A copy where the array is mirrored, because torch has no negative strides; else the array itself."""
    return np.ascontiguousarray(array) if any(stride < 0 for stride in array.strides) else array


def _mirrored(flips: tuple[bool, bool, bool]) -> tuple[int, ...]:
    """The last three axes that are mirrored."""
    return tuple(axis - 3 for axis, flip in enumerate(flips) if flip)


def format_of(path: Path) -> Format:
    """The format of a file by its name; a file of no known format is an error."""
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise SamAdaptError(
            f"{path} is no file with content (a folder, a pipe or a device); give an image file"
        )
    found = find_format(path)
    if found is None:
        raise SamAdaptError(
            f"{path} is of no format that is read ({', '.join(known_suffixes())})"
            + (f"; {advice}" if (advice := cure(path)) else "")
            + ("" if path.exists() else " (and it does not exist)")
        )
    return found


def _read_image(path: Path, stacked: bool) -> tuple[np.ndarray, Geometry]:
    """(C, i, j, k) float32."""
    own = format_of(path)
    array, geometry = own.read(path)
    if geometry.channels > 1 and not stacked and not own.picture:
        raise SamAdaptError(
            f"{path} has 4 axes {(*geometry.shape, geometry.channels)}; expected 3: save each time point or channel as a "
            "volume of its own (channels as CASE_0000, CASE_0001, ...), or name the channels to use (--channels 0)"
        )
    return array, geometry


def _read_classes(path: Path) -> tuple[np.ndarray, Geometry]:
    """(i, j, k) uint8."""
    own = format_of(path)
    array, geometry = (own.read_label or own.read)(path)
    if geometry.channels > 1:
        raise SamAdaptError(
            f"{path} has 4 axes {(*geometry.shape, geometry.channels)}; expected a label map of 3 axes"
        )
    array = array if own.read_label else array[0]
    if array.dtype == np.uint8:
        return array, geometry
    wrong = ~np.isfinite(array) | (array != np.round(array)) if array.dtype.kind == "f" else None
    if wrong is not None and wrong.any():
        raise SamAdaptError(
            f"{path} has the value {array[wrong].flat[0]:g} ({int(wrong.sum())} voxels are not whole numbers); "
            "expected class numbers: was it resampled with interpolation, or is it an image?"
        )
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise SamAdaptError(
            f"{path} has the value {low if low < 0 else high:g}; expected class numbers 0..255: is it an image?"
        )
    return array.astype(np.uint8), geometry


def _demand_channels(channels: Sequence[int], count: int, path: Path) -> None:
    wrong = [channel for channel in channels if not 0 <= channel < count]
    if wrong or not channels:
        raise SamAdaptError(f"channel {wrong[0] if wrong else None} was asked for; {path} has 0..{count - 1}")


def _demand_values(image: np.ndarray, path: Path) -> None:
    low, high = float(image.min()), float(image.max())  # nan when any voxel is nan
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(image.size - np.count_nonzero(np.isfinite(image)))
        raise SamAdaptError(
            f"{path} has {count} voxels that are NaN or infinite; expected finite numbers: "
            "replace them (e.g. with the value of air) and save it again"
        )
    if low == high:
        raise SamAdaptError(f"{path} is constant: every voxel is {low:g}; expected an image: export it again")


def _demand_same_place(image: Path, a: Geometry, other: Path, b: Geometry) -> None:
    if a.shape != b.shape:
        raise SamAdaptError(
            f"{other} has {b.shape} voxels, but {image} has {a.shape}; expected one for each: "
            "resample it onto the image (nearest neighbour for labels)"
        )
    if (a.affine is None) != (b.affine is None):
        raise SamAdaptError(f"{other} and {image} are a picture and a volume; expected two of a kind")
    if not same_place(a, b):
        assert a.affine is not None and b.affine is not None
        where = np.abs(a.affine - b.affine)
        row, column = np.unravel_index(int(where.argmax()), where.shape)
        raise SamAdaptError(
            f"{other} lies elsewhere than {image}: affine[{row}, {column}] is {b.affine[row, column]:g}, in the "
            f"image {a.affine[row, column]:g}; expected the same voxels: resample it onto the image, or, if "
            "only its header is wrong, save it with the image's header"
        )
