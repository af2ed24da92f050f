"""Where the voxels of a file lie: shape, spacing and affine, along the file's own axes."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from samadapt.types import SamAdaptError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM -> NIfTI, homogeneous coordinates


@dataclass(frozen=True)
class Geometry:
    """What a header says without its voxels, along the file's own axes."""

    shape: tuple[int, int, int]  # [i, j, k]; a picture is (rows, columns, 1)
    spacing_mm: tuple[float, float, float] | None  # None when the file does not say
    affine: np.ndarray | None  # (4, 4) index -> RAS; None for a picture
    channels: int
    dtype: str  # as stored, a numpy name
    #: Whether the header says how the axes lie in the body (sform or qform code above 0).
    oriented: bool = True
    modality: str = ""  # "CT", "MR", ... where the file says it

    @property
    def orientation(self) -> str | None:
        """Where the axes i, j, k point, "RAS" for example; None where the file does not say."""
        return orientation(self.affine) if self.affine is not None and self.oriented else None

    def axes(self, slice_axis: int | None = None) -> tuple[int, int, int]:
        """The file axes that lie along D, H, W.

        The slicing axis is the one given, else the only axis of length 1, else the one with the largest
        spacing (the thick slices); equal spacings mean the last axis.
        """
        if self.affine is None:
            return (2, 0, 1)
        if slice_axis is None:
            single = [axis for axis in range(3) if self.shape[axis] == 1]
            slice_axis = single[0] if len(single) == 1 else self._thickest()
        if slice_axis not in (0, 1, 2):
            raise SamAdaptError(f"slice axis is {slice_axis!r}; expected 0, 1 or 2: an axis of the file")
        width, height = (axis for axis in range(3) if axis != slice_axis)
        return (slice_axis, height, width)

    def spacing_along(self, axes: tuple[int, int, int]) -> tuple[float, float, float] | None:
        """The spacing in mm of these axes, in this order."""
        if self.spacing_mm is None:
            return None
        return self.spacing_mm[axes[0]], self.spacing_mm[axes[1]], self.spacing_mm[axes[2]]

    def _thickest(self) -> int:
        if self.spacing_mm is None:
            return 2
        largest = max(self.spacing_mm)
        return max(axis for axis in range(3) if self.spacing_mm[axis] >= largest * (1 - 1e-3))


def orientation(affine: np.ndarray) -> str:
    """Where the axes i, j, k point: "LPS", "RAS", ..."""
    return "".join(str(code) for code in nib.aff2axcodes(affine))


def same_place(a: Geometry, b: Geometry, tolerance: float = 0.1) -> bool:
    """Whether the voxels of equal shapes coincide: no corner is further off than `tolerance` of a voxel.

    Headers written by different programs differ in the last digits of their affines; a part of a voxel is
    what matters, not the digits.
    """
    if a.affine is None or b.affine is None:
        return True
    ends = [(0, n - 1) for n in a.shape]
    corners = np.array([(i, j, k, 1) for i in ends[0] for j in ends[1] for k in ends[2]], dtype=float)
    distance = np.linalg.norm((corners @ (a.affine - b.affine).T)[:, :3], axis=1).max()
    return bool(distance <= tolerance * voxel_sizes(a.affine).min())


def turn_onto(a: Geometry, b: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]] | None:
    """How an array on the voxels of `a` becomes one on those of `b`, where both store the same voxels in other orders.

    Returns:
        the axes of `a` that lie along i, j, k of `b`, and which of these run the other way; None where the voxels differ.
    """
    if a.affine is None or b.affine is None:
        return None
    turn = np.round((np.linalg.inv(b.affine) @ a.affine)[:3, :3]).astype(int)
    if not np.array_equal(np.abs(turn) @ np.ones(3), np.ones(3)) or not np.array_equal(
        np.ones(3) @ np.abs(turn), np.ones(3)
    ):
        return None
    i, j, k = (int(n) for n in np.abs(turn).argmax(1))
    flips = tuple(bool(turn[row].sum() < 0) for row in range(3))
    back = np.eye(4)  # index in b -> index in a
    back[:3, :3] = turn.T
    for row, axis in enumerate((i, j, k)):
        back[axis, 3] = a.shape[axis] - 1 if flips[row] else 0
    turned = Geometry((a.shape[i], a.shape[j], a.shape[k]), None, a.affine @ back, a.channels, a.dtype)
    if turned.shape != b.shape or not same_place(turned, b):
        return None
    return (i, j, k), (flips[0], flips[1], flips[2])
