"""The orientation of slices: by anatomical directions, not by the order of voxels in a file."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from samadapt.io.geometry import Geometry
from samadapt.types import SamAdaptError, SamAdaptWarning

Axes = tuple[int, int, int]
Flips = tuple[bool, bool, bool]
Directions = tuple[tuple[float, float, float], ...]  # of D, H, W: unit vectors in RAS

_THICK = 2.0  # slices so many times as thick as the pixels are wide were acquired as slices
_OBLIQUE = 0.5  # cosine: slices turned by more than this were acquired in another plane
_PLACES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_NAMES = ("sagittal", "coronal", "axial")  # the planes that are cut across these directions
_AS_STORED = (
    "volumes whose header stores no orientation in the body (sform and qform codes are 0) are taken as stored, as if they "
    "had that of most of the data set; correct their headers if they do not",
    "the volumes that were trained on store no orientation in the body, so others cannot be reoriented to match them; "
    "they are taken as stored",
)
_ACROSS = (
    "some volumes were acquired in thick slices of another plane; they are cut in the plane of the data set, across their "
    "slices: leave such volumes out if that is not meant",
    "some volumes were acquired in thick slices of another plane than those of the data set; they are used as they were "
    "acquired: leave such volumes out if that is not meant",
)


@dataclass(frozen=True)
class Plane:
    """How the slices of one file lie, the reference; every other file is turned to lie as nearly like it as it can.

    A file is turned by quarter turns and mirrored storage is undone; nothing is resampled, and no patient is mirrored.
    Slices that were acquired thick are kept, whichever way the acquisition was tilted (short-axis views of the heart are
    tilted differently in every patient); volumes without thick slices are cut in the plane of the reference.
    """

    directions: Directions | None = None  # of the reference's D, H, W; None: files are taken as stored
    #: Of files as stored; None: of each file the only one of length 1 or the thickest.
    slice_axis: int | None = None
    thick: bool = False  # whether the reference was acquired in thick slices

    @property
    def orientation(self) -> str | None:
        """The anatomical directions of W, H and D, to the nearest axis: "RAS" of axial slices; None where files are taken as stored."""
        if self.directions is None:
            return None
        affine = np.eye(4)
        affine[:3, :3] = np.array(self.directions[::-1]).T
        return "".join(str(code) for code in nib.aff2axcodes(affine))

    @property
    def name(self) -> str:
        """ "axial", "coronal", "sagittal", whichever is closest; "" where the files do not say."""
        return _NAMES[_PLACES[self.orientation[2]]] if self.orientation else ""

    def place(self, geometry: Geometry, path: Path) -> tuple[Axes, Flips]:
        """The file's axes that lie along D, H, W, and whether they run the other way.

        A picture, and a volume that does not say how it lies, is taken as it is stored.

        Args:
            path: for messages.
        """
        if self.directions is None or geometry.orientation is None:
            if geometry.affine is not None and (self.directions or geometry.orientation):
                warnings.warn(_AS_STORED[self.directions is None], SamAdaptWarning, stacklevel=2)
            return geometry.axes(self.slice_axis), (False, False, False)
        assert geometry.affine is not None
        own = _unit_columns(geometry.affine)
        reference = np.array(self.directions)  # rows D, H, W
        cosines = reference @ own
        acquired = _thick_axis(geometry) if self.thick else None
        if self.is_across(geometry):
            warnings.warn(_ACROSS[self.thick], SamAdaptWarning, stacklevel=2)
        orders = [(d, h, w) for d, h, w in itertools.permutations(range(3)) if acquired in (None, d)]
        _, axes, signs = max(_turn(reference, own, cosines, order) for order in orders)
        self._demand_slices(geometry, axes, path)
        return axes, (signs[0] < 0, signs[1] < 0, signs[2] < 0)

    def is_across(self, geometry: Geometry) -> bool:
        """Whether the file was acquired in thick slices of another plane than the reference."""
        acquired = _thick_axis(geometry)
        if (
            acquired is None
            or self.directions is None
            or geometry.affine is None
            or geometry.orientation is None
        ):
            return False
        return (
            abs(float(np.array(self.directions[0]) @ _unit_columns(geometry.affine)[:, acquired])) < _OBLIQUE
        )

    def _demand_slices(self, geometry: Geometry, axes: Axes, path: Path) -> None:
        if geometry.shape[axes[0]] > 1 and 1 in (geometry.shape[axes[1]], geometry.shape[axes[2]]):
            raise SamAdaptError(
                f"{path} has {geometry.shape} voxels and so no {self.name} slices, which are what is used here; expected "
                "a volume with them: choose other files, or another plane for the whole data set (--slice-axis)"
            )


def _turn(
    reference: np.ndarray, own: np.ndarray, cosines: np.ndarray, order: Axes
) -> tuple[float, Axes, tuple[float, float, float]]:
    """How nearly the file's axes in this order lie like the reference, with the best signs that mirror no patient."""
    along = cosines[[0, 1, 2], order]
    signs = np.where(along < 0, -1.0, 1.0)
    if np.linalg.det(own[:, order] * signs) * np.linalg.det(reference) < 0:
        signs[np.abs(along).argmin()] *= -1
    return float((signs * along).sum()), order, (float(signs[0]), float(signs[1]), float(signs[2]))


def _unit_columns(affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)


def _directions(affine: np.ndarray, slice_axis: int) -> Directions:
    width, height = (axis for axis in range(3) if axis != slice_axis)
    columns = _unit_columns(affine)[:, [slice_axis, height, width]].T.round(6)
    return tuple((float(x), float(y), float(z)) for x, y, z in columns)


def _thick_axis(geometry: Geometry) -> int | None:
    """The axis along which the file has its only or clearly thickest slices."""
    single = [axis for axis in range(3) if geometry.shape[axis] == 1]
    if len(single) == 1:
        return single[0]
    if geometry.spacing_mm is None:
        return None
    _, second, largest = sorted(geometry.spacing_mm)
    return geometry.spacing_mm.index(largest) if largest >= _THICK * second else None


def common_plane(geometries: Iterable[Geometry], slice_axis: int | None = None) -> Plane:
    """How most volumes of a data set lie, and the plane in which most of them are cut.

    Args:
        slice_axis: the axis of files stored in the commonest orientation that becomes D; None: along which most
            files have their only or their thickest slices.
    """
    volumes = [g for g in geometries if g.affine is not None]
    if slice_axis not in (None, 0, 1, 2):
        raise SamAdaptError(f"slice axis is {slice_axis!r}; expected 0, 1 or 2: an axis of the file")
    oriented = [g for g in volumes if g.orientation is not None]
    if not oriented:
        cut = Counter(g.axes(slice_axis)[0] for g in volumes)
        return Plane(None, cut.most_common(1)[0][0] if cut else slice_axis)
    commonest = Counter(g.orientation for g in oriented).most_common(1)[0][0]
    reference = next(g for g in oriented if g.orientation == commonest)
    thick = Counter(_thick_axis(g) is not None for g in oriented).most_common(1)[0][0]
    if slice_axis is None:
        slice_axis = _thick_axis(reference) if thick else None
    if slice_axis is None:
        across = Counter(_PLACES[g.orientation[g.axes()[0]]] for g in oriented if g.orientation)
        chosen = across.most_common(1)[0][0]
        slice_axis = next(a for a in range(3) if _PLACES[(reference.orientation or "RAS")[a]] == chosen)
    assert reference.affine is not None
    acquired = _thick_axis(reference) == slice_axis
    return Plane(_directions(reference.affine, slice_axis), slice_axis, thick and acquired)
