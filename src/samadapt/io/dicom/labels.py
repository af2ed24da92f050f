"""Labels that name their structures (SEG, RTSTRUCT) -> a label map on the voxels of a scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.io.dicom.headers import (
    Header,
    in_groups,
    kind_of,
    read_dataset,
    read_header,
    silent,
    telling_damage,
)
from samadapt.io.dicom.pixels import decoded, demand_whole
from samadapt.io.dicom.series import demand_size
from samadapt.io.geometry import LPS_TO_RAS, Geometry
from samadapt.types import SamAdaptError

_OFF = 0.1  # of a voxel: as far off its grid as a label may lie
_BACKGROUND = ("DCM", "125040")
_MOST = 1 << 36  # pixels in all frames of one file, which are decoded one after the other


@dataclass(frozen=True)
class Piece:
    """A part of one structure: the voxels `index` of a volume [i, j, k], and which of them are inside."""

    name: str
    index: tuple[Any, ...]
    inside: np.ndarray


def is_seg(path: Path) -> bool:
    """Whether the file is a DICOM SEG."""
    return kind_of(path) == "seg"


def paint(
    path: Path,
    pieces: Iterator[Piece],
    shape: tuple[int, int, int],
    classes: Mapping[str, int],
    first_wins: bool,
) -> np.ndarray:
    """(i, j, k) uint8 of pieces.

    Args:
        classes: name of a structure -> its number.
        first_wins: where structures overlap, whether the one with the lower number is kept, and structures without a
            number are background. False: both are errors.
    """
    label = np.zeros(shape, np.uint8)
    overlaps: Counter[tuple[int, int]] = Counter()
    for piece in pieces:
        number = classes.get(piece.name)
        if number is None:
            if first_wins:
                continue
            raise SamAdaptError(
                f"{path} has the structure {piece.name!r}; expected {', '.join(classes)}: choose the structures to learn "
                "(--structures), or correct the label"
            )
        there = label[piece.index]
        both = piece.inside & (there != 0) & (there != number)
        for other in np.unique(there[both]):
            overlaps[int(min(other, number)), int(max(other, number))] += int(
                np.count_nonzero(there[both] == other)
            )
        new = piece.inside & ((there == 0) | (number < there))
        label[piece.index] = np.where(new, number, there)
    if overlaps and not first_wins:
        (one, other), count = overlaps.most_common(1)[0]
        named = {number: name for name, number in classes.items()}
        raise SamAdaptError(
            f"{path}: {named[one]!r} and {named[other]!r} overlap in {count} voxels; a voxel has one class: name the "
            f"structures in the order in which they are kept (--structures {named[other]},{named[one]}), or remove the overlap"
        )
    return label


# ---------------------------------------------------------------- SEG


def seg_names(path: Path) -> tuple[str, ...]:
    """The segments, in the order of their numbers; the background is none of them."""
    data = read_dataset(path, tags=["SegmentSequence", "SOPClassUID"])
    return tuple(dict.fromkeys(_segments(path, data).values()))


@telling_damage
def read_seg(path: Path, geometry: Geometry, classes: Mapping[str, int], first_wins: bool) -> np.ndarray:
    """(i, j, k) uint8 on the voxels of a scan; its frames must lie on the grid of the scan.

    Raises:
        SamAdaptError: it lies elsewhere, has fractions in place of labels, or its segments overlap.
    """
    if geometry.affine is None:
        raise SamAdaptError(
            f"{path} is a label of a volume, and the image is a picture; expected a PNG of its classes"
        )
    header = read_header(path)
    demand_size([header], str(path), _MOST)
    _demand_whole_bits(header)
    data = read_dataset(path, pixels=True)
    kind = str(data.get("SegmentationType") or "")
    if kind not in ("BINARY", "LABELMAP"):
        raise SamAdaptError(
            f"{path} is a {kind or 'nameless'} segmentation; expected BINARY or LABELMAP: threshold the fractions and save it "
            "as a binary segmentation"
        )
    with silent():
        pieces = _seg_pieces(path, header, data, geometry, kind == "LABELMAP")
        return paint(path, pieces, geometry.shape, classes, first_wins)


def _demand_whole_bits(header: Header) -> None:
    if header.bits[0] not in (1, 8, 16):
        raise SamAdaptError(
            f"{header.path} has {header.bits[0]} bits for each pixel; expected 1, 8 or 16: export it again"
        )
    demand_whole(header)


def _segments(path: Path, data: Any) -> dict[int, str]:
    """Number -> name. Segments of one name (several lesions, each a segment) are one class."""
    found: dict[int, str] = {}
    for item in data.get("SegmentSequence") or []:
        number = int(item.SegmentNumber)
        code = (item.get("SegmentedPropertyTypeCodeSequence") or [{}])[0]
        if number == 0 or (code.get("CodingSchemeDesignator"), code.get("CodeValue")) == _BACKGROUND:
            continue
        found[number] = str(
            item.get("SegmentLabel") or code.get("CodeMeaning") or f"segment {number}"
        ).strip()
    if not found:
        raise SamAdaptError(f"{path} has no segments; expected a segmentation: export it again")
    return dict(sorted(found.items()))


def _seg_pieces(path: Path, header: Header, data: Any, geometry: Geometry, labelmap: bool) -> Iterator[Piece]:
    names = _segments(path, data)
    shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
    groups = data.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != header.shape[2]:
        raise SamAdaptError(
            f"{path} has {header.shape[2]} frames and describes {len(groups)}; export the segmentation again"
        )
    padding = data.get("PixelPaddingValue") if labelmap else None
    for number, pixels in enumerate(decoded(data, header)):
        index = _frame_index(path, number, groups[number], shared, geometry, pixels.shape)
        if not labelmap:
            segment = _segment_of(path, number, groups[number], shared, names)
            yield Piece(segment, index, pixels.T > 0)
            continue
        for value in np.unique(pixels):
            if value and value != padding:
                if int(value) not in names:
                    raise SamAdaptError(
                        f"{path} has the value {value}, which is none of its segments; export it again"
                    )
                yield Piece(names[int(value)], index, value == pixels.T)


def _segment_of(path: Path, number: int, group: Any, shared: Any, names: Mapping[int, str]) -> str:
    found = in_groups(group, shared, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
    if found is None or int(found) not in names:
        raise SamAdaptError(
            f"{path}: frame {number + 1} is of segment {found}, which is not described; export it again"
        )
    return names[int(found)]


def _frame_index(
    path: Path, number: int, group: Any, shared: Any, geometry: Geometry, shape: tuple[int, ...]
) -> tuple[Any, ...]:
    """Which voxels [i, j, k] of the scan the pixels [column, row] of a frame are."""
    position = in_groups(group, shared, "PlanePositionSequence", "ImagePositionPatient")
    orientation = in_groups(group, shared, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = in_groups(group, shared, "PixelMeasuresSequence", "PixelSpacing")
    if not (position and orientation and spacing):
        raise SamAdaptError(
            f"{path}: frame {number + 1} does not say where it lies (position, orientation, pixel spacing); export it again"
        )
    rows, columns = shape
    own = np.eye(4)
    own[:3, 0] = np.array(orientation[:3], float) * float(spacing[1])
    own[:3, 1] = np.array(orientation[3:], float) * float(spacing[0])
    own[:3, 3] = np.array(position, float)
    assert geometry.affine is not None
    # (column, row, 1) -> i, j, k
    across = (np.linalg.inv(geometry.affine) @ LPS_TO_RAS @ own)[:3][:, [0, 1, 3]]
    ends = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1], [1, 1, 1, 1]])
    corners = across @ ends
    turn = np.round(across[:, :2])
    start = np.round(across[:, 2])
    whole = np.column_stack([turn, start])
    ideal = whole @ ends
    off = float(np.abs(corners - ideal).max())
    inside = np.all(ideal >= 0) and np.all(ideal.max(1) < geometry.shape)
    if off > _OFF or not inside:
        what = f"off the scan's grid by {off:.2f} voxels" if off > _OFF else "outside of the scan"
        raise SamAdaptError(
            f"{path}: frame {number + 1} lies {what}; expected a segmentation on the voxels of its scan: resample it onto the "
            "scan, or give the series that it was made on"
        )
    if np.array_equal(turn, [[1, 0], [0, 1], [0, 0]]):
        i, j, k = start.astype(int)
        return slice(i, i + columns), slice(j, j + rows), int(k)
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij")).reshape(2, -1)
    places = (turn @ grid + start[:, None]).astype(int).reshape(3, columns, rows)
    return places[0], places[1], places[2]
