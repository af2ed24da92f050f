"""Which way the slices of a volume are cut and turned: by the body's directions, not by the order in a file."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from samadapt.io.nifti import Geometry
from samadapt.types import SamAdaptError, SamAdaptWarning

Axes = tuple[int, int, int]
Flips = tuple[bool, bool, bool]

_DIRECTIONS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_AS_STORED = (
    "volumes that do not say how they lie in the body (sform and qform codes are 0) are taken as stored, as if they lay "
    "like most of the data set; correct their headers if they do not",
    "the volumes that were trained on do not say how they lie in the body, so others cannot be turned to lie like them; "
    "they are taken as stored",
)
_NAMES = ("sagittal", "coronal", "axial")  # the planes that are cut across these directions


@dataclass(frozen=True)
class Plane:
    """The file whose slices are taken as they are; every other file is turned to lie like that one.

    D is its axis `slice_axis`, H and W the other two in reversed order (usually D=k, H=j, W=i).
    """

    orientation: str | None = (
        None  # where that file's axes i, j, k point: "RAS"; None: files are taken as stored
    )
    slice_axis: int | None = (
        None  # one of that file's axes; None: of each file the only one of length 1 or the thickest
    )

    def place(self, geometry: Geometry, path: Path) -> tuple[Axes, Flips]:
        """The file's axes that lie along D, H, W, and whether they run the other way.

        An oblique file is turned by the directions that its axes are closest to. A picture, and a volume that does
        not say how it lies, is taken as it is stored.

        Args:
            path: for messages.
        """
        if self.orientation is None or geometry.orientation is None:
            if geometry.affine is not None and (self.orientation or geometry.orientation):
                warnings.warn(_AS_STORED[self.orientation is None], SamAdaptWarning, stacklevel=2)
            return geometry.axes(self.slice_axis), (False, False, False)
        assert self.slice_axis is not None and geometry.affine is not None
        turn = ornt_transform(io_orientation(geometry.affine), axcodes2ornt(self.orientation))
        own = np.argsort(turn[:, 0])  # axis of the reference -> axis of this file
        width, height = (axis for axis in range(3) if axis != self.slice_axis)
        axes = (int(own[self.slice_axis]), int(own[height]), int(own[width]))
        self._demand_slices(geometry, axes, path)
        return axes, (bool(turn[axes[0], 1] < 0), bool(turn[axes[1], 1] < 0), bool(turn[axes[2], 1] < 0))

    def _demand_slices(self, geometry: Geometry, axes: Axes, path: Path) -> None:
        if geometry.shape[axes[0]] > 1 and 1 in (geometry.shape[axes[1]], geometry.shape[axes[2]]):
            raise SamAdaptError(
                f"{path} has {geometry.shape} voxels and so no {self.name} slices, which are what is used here; expected "
                f"a volume with them: choose other files, or another plane for the whole data set (--slice-axis)"
            )

    @property
    def name(self) -> str:
        """ "axial", "coronal", "sagittal"; "" where the files do not say."""
        if self.orientation is None or self.slice_axis is None:
            return ""
        return _NAMES[_DIRECTIONS[self.orientation[self.slice_axis]]]


def common_plane(geometries: Iterable[Geometry], slice_axis: int | None = None) -> Plane:
    """How most volumes of a data set lie, and the plane in which most of them are cut.

    Args:
        slice_axis: the axis of files stored in the commonest orientation that becomes D; None: along which most
            files have their only or their thickest slices.
    """
    volumes = [g for g in geometries if g.affine is not None]
    oriented = Counter(g.orientation for g in volumes if g.orientation is not None)
    if not oriented:
        cut = Counter(g.axes(slice_axis)[0] for g in volumes)
        return Plane(None, cut.most_common(1)[0][0] if cut else slice_axis)
    reference = oriented.most_common(1)[0][0]
    assert reference is not None
    if slice_axis is None:
        across = Counter(
            _DIRECTIONS[g.orientation[g.axes()[0]]] for g in volumes if g.orientation is not None
        )
        chosen = across.most_common(1)[0][0]
        slice_axis = next(axis for axis in range(3) if _DIRECTIONS[reference[axis]] == chosen)
    elif slice_axis not in (0, 1, 2):
        raise SamAdaptError(f"slice axis is {slice_axis!r}; expected 0, 1 or 2: an axis of the file")
    return Plane(reference, slice_axis)
