"""RTSTRUCT: closed contours in the planes of the slices -> label maps. A voxel is inside where its centre is."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.io.dicom.headers import kind_of, read_dataset, silent, telling_damage
from samadapt.io.dicom.labels import Piece, paint
from samadapt.io.geometry import LPS_TO_RAS, Geometry
from samadapt.types import SamAdaptError, SamAdaptWarning

_OFF = 0.25  # of the distance between slices: as far off its slice as a contour may lie
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR", "")


def is_rtstruct(path: Path) -> bool:
    """Whether the file is a DICOM RTSTRUCT."""
    return kind_of(path) == "rtstruct"


def structure_names(path: Path) -> tuple[str, ...]:
    """The structures that have closed contours, in the order of their numbers; points and lines are no structures."""
    return tuple(dict.fromkeys(name for name, contours in _structures(path) if contours))


@telling_damage
def read_structures(
    path: Path, geometry: Geometry, classes: Mapping[str, int], first_wins: bool
) -> np.ndarray:
    """(i, j, k) uint8 on the voxels of a scan. Contours of one ROI in one slice are combined by exclusive or, so
    that an inner one is a hole. ROIs of one name (several lesions, each an ROI) are one class, the union of them.

    Raises:
        SamAdaptError: contours do not lie in the planes of the slices, or structures overlap.
    """
    if geometry.affine is None:
        raise SamAdaptError(
            f"{path} is a label of a volume, and the image is a picture; expected a PNG of its classes"
        )
    return paint(path, _pieces(path, geometry), geometry.shape, classes, first_wins)


_Roi = tuple[str, list[np.ndarray]]  # a name, and the closed contours, (points, 3) mm, LPS


def _structures(path: Path) -> list[_Roi]:
    """The ROIs in the order of their numbers; several may have one name."""
    data = read_dataset(path, tags=["StructureSetROISequence", "ROIContourSequence", "SOPClassUID"])
    with silent():
        try:
            return _read_structures(path, data)
        except SamAdaptError:
            raise
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise SamAdaptError(f"{path} is damaged ({type(error).__name__}); export it again") from None


def _read_structures(path: Path, data: Any) -> list[_Roi]:
    named = {
        int(roi.ROINumber): str(roi.get("ROIName") or f"ROI {roi.ROINumber}").strip()
        for roi in data.get("StructureSetROISequence") or []
    }
    found: dict[int, list[np.ndarray]] = {number: [] for number in sorted(named)}
    for roi in data.get("ROIContourSequence") or []:
        number = int(roi.ReferencedROINumber)
        if number not in named:
            raise SamAdaptError(
                f"{path} has contours of structure {number}, which has no name; export it again"
            )
        for contour in roi.get("ContourSequence") or []:
            if str(contour.get("ContourGeometricType") or "") in _CLOSED:
                points = np.array(contour.ContourData, float).reshape(-1, 3)
                if not np.all(np.isfinite(points)):
                    raise SamAdaptError(
                        f"{path}: a contour of {named[number]!r} has points that are not finite; export it again"
                    )
                found[number].append(points)
    if not any(found.values()):
        raise SamAdaptError(
            f"{path} has no closed contours; expected structures that were outlined in slices"
        )
    return [(named[number], contours) for number, contours in found.items()]


def _pieces(path: Path, geometry: Geometry) -> Iterator[Piece]:
    assert geometry.affine is not None
    inverse = np.linalg.inv(geometry.affine) @ LPS_TO_RAS  # mm, LPS -> voxels
    columns, rows, slices = geometry.shape
    outside = 0
    for name, contours in _structures(path):
        planes: dict[int, np.ndarray] = defaultdict(lambda: np.zeros((columns, rows), bool))
        for points in contours:
            at = points @ inverse[:3, :3].T + inverse[:3, 3]
            k = round(float(at[:, 2].mean()))
            off = float(np.abs(at[:, 2] - k).max())
            if off > _OFF and slices > 1:
                raise SamAdaptError(
                    f"{path}: a contour of {name!r} lies {off:.2f} slices beside the slices of the scan; expected contours in "
                    "its slices: give the series that they were drawn on"
                )
            if not 0 <= k < slices:
                outside += 1
                continue
            planes[k] ^= fill(at[:, :2], (columns, rows))
        for k, inside in planes.items():
            yield Piece(name, (slice(None), slice(None), k), inside)
    if outside:
        warnings.warn(
            f"{outside} contours lie beyond the first or the last slice of the scan and are left out",
            SamAdaptWarning,
            stacklevel=2,
        )


def fill(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(columns, rows) bool: the pixels whose centres are inside a closed polygon, by the even-odd rule.

    Args:
        points: (n, 2) in pixels, (0, 0) is the centre of the first one.
    """
    columns, rows = shape
    inside = np.zeros(shape, bool)
    x, y = points[:, 0], points[:, 1]
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    low, high = max(0, int(np.ceil(y.min()))), min(rows - 1, int(np.floor(y.max())))
    centres = np.arange(columns)
    for row in range(low, high + 1):
        crossed = (y <= row) != (y2 <= row)  # half open, so that a corner counts once
        at = x[crossed] + (row - y[crossed]) * (x2[crossed] - x[crossed]) / (y2[crossed] - y[crossed])
        inside[:, row] = np.searchsorted(np.sort(at), centres, side="left") % 2 == 1
    return inside
