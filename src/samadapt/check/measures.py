"""What is kept of one case for the comparison with the others: a few kilobytes, whatever the size of the volume."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from samadapt.check.turns import TURNS, possible
from samadapt.transforms import image_hash
from samadapt.types import IGNORED, Case

_VOXELS = 16 << 20  # a larger volume is compared at every second or third pixel
_SAMPLE = 200_000  # voxels from which percentiles are taken
_PLACES = 20_000  # voxels of a class at which the image is looked at
_PIECES = 50  # of a class are looked at
_THUMB = 24  # side of the small pictures
_RING = 3  # pixels around the label that are its surroundings


@dataclass(frozen=True)
class Piece:
    """A connected piece of a class that is not its largest one."""

    voxels: int
    slice_index: int  # where it begins
    apart: float  # from the box of the largest piece: the gap over that box's side, the largest of the three axes


@dataclass(frozen=True)
class ClassMeasures:
    """One class in the label map of one case."""

    voxels: int
    volume: float  # mm3, or the share of the pixels where no spacing is known
    largest: int  # voxels of its largest connected piece
    others: tuple[Piece, ...]  # its other pieces, the largest first
    gaps: tuple[int, ...]  # slices without it, between slices that have it
    slice_index: int  # the slice that has most of it


@dataclass(frozen=True)
class Fit:
    """How the image looks under the label as stored, and as it would be stored otherwise.

    T turns, K classes (0: the surroundings of the label), C channels.
    """

    sums: (
        np.ndarray
    )  # (T, K, C, 3): voxels, sum and sum of squares of the windowed image; nan where a turn is not possible
    edges: np.ndarray  # (T,): mean gradient at the label's edges over that around it
    centres: (
        np.ndarray
    )  # (T, K, 3): mean place along D, H, W as a fraction of the shape; nan where a class is absent


@dataclass(frozen=True)
class Measures:
    """One case."""

    id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    image_hash: str
    thumbs: np.ndarray  # (3 or 1, side, side) float16, small pictures of its slices
    intensities: Mapping[str, float]
    repeated: tuple[int, ...] = ()  # slices that are equal to the one before them
    label_hash: str = ""
    classes: Mapping[int, ClassMeasures] = field(default_factory=dict)
    fit: Fit | None = None


def measure(case: Case, n_classes: int) -> Measures:
    """What is compared with other cases, from one reading.

    Args:
        n_classes: of the data set, the background among them.
    """
    image = case.image.numpy()
    label = case.label.numpy() if case.label is not None and case.label.ndim == 3 else None
    step = math.ceil(math.sqrt(max(1.0, image.size / _VOXELS)))
    coarse = (slice(None), slice(None, None, step), slice(None, None, step))
    shown = _windowed(image[:, *coarse])
    grey = shown.mean(0)
    varied = np.ptp(image, axis=(0, 2, 3)) > 0
    same = [d for d in range(1, len(varied)) if varied[d] and np.array_equal(image[:, d], image[:, d - 1])]
    return Measures(
        id=case.id,
        shape=(image.shape[1], image.shape[2], image.shape[3]),
        spacing_mm=case.spacing_mm,
        image_hash=image_hash(case),
        thumbs=_thumbs(grey),
        intensities=_intensities(image, grey),
        repeated=tuple(same),
        label_hash="" if case.label is None else hashlib.sha256(case.label.numpy().tobytes()).hexdigest(),
        classes={} if label is None else _classes(label, case.spacing_mm, n_classes),
        fit=None if label is None else _fit(shown, grey, label[coarse], n_classes),
    )


# ---------------------------------------------------------------- the image


def _windowed(image: np.ndarray) -> np.ndarray:
    """Each channel from its 1st to its 99th percentile as 0 to 1: scans of one kind have different scales."""
    channels = []
    for values in image:
        low, high = np.percentile(values.ravel()[:: max(1, values.size // _SAMPLE)], (1, 99))
        if high <= low:
            low, high = float(values.min()), float(values.max())
        channels.append(np.clip((values - low) / max(high - low, 1e-12), -0.5, 1.5))
    return np.stack(channels).astype(np.float32)


def _intensities(image: np.ndarray, grey: np.ndarray) -> dict[str, float]:
    """Numbers in which scans of one kind are alike."""
    sample = image.ravel()[:: max(1, image.size // _SAMPLE)].astype(np.float64)
    low, middle, high = np.percentile(sample, (1, 50, 99))
    spread = max(high - low, float(np.ptp(sample)) * 1e-3, 1e-12)
    steps = [
        float(np.abs(np.diff(grey, axis=axis)).mean()) if grey.shape[axis] > 1 else 0.0 for axis in range(3)
    ]
    within = max(steps[1] + steps[2], 1e-6)
    found = {
        "range": math.log(spread),
        "level": float(middle),
        "middle": float((middle - low) / spread),
        "contrast": float(grey.std()),
        "detail": math.log(within / max(float(grey.std()), 1e-6)),
    }
    if len(grey) > 2:
        found["change between slices"] = math.log(max(steps[0], 1e-6) / within)
    return found


def _thumbs(grey: np.ndarray) -> np.ndarray:
    """Small pictures of three slices (of a picture: one), without brightness, contrast and slow changes."""
    depth = len(grey)
    chosen = [0] if depth == 1 else [round((depth - 1) * at) for at in (0.25, 0.5, 0.75)]
    found = []
    for d in chosen:
        small = _shrunk(grey[d])
        small = small - ndimage.uniform_filter(small, 9)
        found.append(small / max(float(np.linalg.norm(small)), 1e-6))
    return np.stack(found).astype(np.float16)


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """(h, w) -> (side, side), each the mean of its area; small pictures are enlarged first."""
    height, width = picture.shape
    zoom = [max(1, -(-2 * _THUMB // n)) for n in (height, width)]
    picture = np.kron(picture, np.ones(zoom, np.float32)) if max(zoom) > 1 else picture
    rows, columns = (np.linspace(0, n, _THUMB + 1).round().astype(int) for n in picture.shape)
    sums = np.add.reduceat(np.add.reduceat(picture, rows[:-1], axis=0), columns[:-1], axis=1)
    return sums / np.outer(np.diff(rows), np.diff(columns))


# ---------------------------------------------------------------- the label


def _classes(
    label: np.ndarray, spacing_mm: tuple[float, float, float] | None, n_classes: int
) -> dict[int, ClassMeasures]:
    voxel = math.prod(spacing_mm) if spacing_mm else 1 / label.size
    found = {}
    boxes = ndimage.find_objects(np.where(label == IGNORED, 0, label), n_classes)
    for k, box in enumerate(boxes, start=1):
        if box is None or k >= n_classes:
            continue
        mask = label[box] == k
        numbered, _ = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(numbered.ravel())[1:]
        order = np.argsort(-sizes, kind="stable")[:_PIECES]
        parts = ndimage.find_objects(numbered)
        start, filled = int(box[0].start), mask.sum((1, 2))
        main = parts[order[0]]
        found[k] = ClassMeasures(
            voxels=int(sizes.sum()),
            volume=float(sizes.sum() * voxel),
            largest=int(sizes[order[0]]),
            others=tuple(
                Piece(int(sizes[i]), start + int(parts[i][0].start), _apart(parts[i], main))
                for i in order[1:]
            ),
            gaps=tuple(start + int(d) for d in np.flatnonzero(filled == 0)),
            slice_index=start + int(filled.argmax()),
        )
    return found


def _apart(piece: tuple[slice, ...], main: tuple[slice, ...]) -> float:
    """The gap between two boxes, as a share of the side of the larger one."""
    gaps = [
        max(p.start - m.stop, m.start - p.stop, 0) / (m.stop - m.start)
        for p, m in zip(piece, main, strict=True)
    ]
    return float(max(gaps))


def _fit(shown: np.ndarray, grey: np.ndarray, label: np.ndarray, n_classes: int) -> Fit | None:
    """None where there is no label to look under."""
    inside = (label > 0) & (label != IGNORED) & (label < n_classes)
    if not inside.any():
        return None
    disc = ndimage.generate_binary_structure(2, 1)[None]
    # In a box around the label: dilating a large volume takes longer than reading it.
    box = tuple(
        slice(max(0, s.start - _RING - 1), s.stop + _RING + 1) if axis else s
        for axis, s in enumerate(ndimage.find_objects(inside.astype(np.uint8))[0])
    )
    core = inside[box]
    ring = ndimage.binary_dilation(core, disc, iterations=_RING) & ~core & (label[box] != IGNORED)
    part = np.where(ring, 0, label[box])
    start = np.array([s.start for s in box])
    places = [start + _some(np.argwhere(ring))]
    places += [start + _some(np.argwhere(core & (part == k))) for k in range(1, n_classes)]
    kept = np.where(core, label[box], 0)
    edge = core & (
        (ndimage.maximum_filter(kept, (1, 3, 3)) != kept) | (ndimage.minimum_filter(kept, (1, 3, 3)) != kept)
    )
    rims = (start + _some(np.argwhere(edge)), start + _some(np.argwhere(core | ring)))
    steep = (
        sum(np.abs(g) for g in np.gradient(grey, axis=(1, 2)))
        if min(grey.shape[1:]) > 1
        else np.zeros_like(grey)
    )
    return _under_turns(shown, steep, places, rims)


def _some(places: np.ndarray) -> np.ndarray:
    return places[:: max(1, len(places) // _PLACES)]


def _under_turns(
    shown: np.ndarray, steep: np.ndarray, places: list[np.ndarray], rims: tuple[np.ndarray, np.ndarray]
) -> Fit:
    shape = steep.shape
    sums = np.full((len(TURNS), len(places), len(shown), 3), np.nan, np.float32)
    edges = np.full(len(TURNS), np.nan, np.float32)
    centres = np.full((len(TURNS), len(places), 3), np.nan, np.float32)
    for t, turn in enumerate(TURNS):
        if not possible(turn, shape):
            continue
        for k, of_class in enumerate(places):
            moved = turn(of_class, shape)
            values = shown[:, moved[:, 0], moved[:, 1], moved[:, 2]]  # (C, N)
            sums[t, k] = np.stack([np.full(len(shown), len(moved)), values.sum(1), (values**2).sum(1)], 1)
            if len(moved):
                centres[t, k] = (moved.mean(0) + 0.5) / shape
        rim, around = (steep[tuple(turn(x, shape).T)].mean() if len(x) else 0 for x in rims)
        edges[t] = rim / max(around, 1e-6)
    return Fit(sums, edges, centres)
