"""Overlap and surface distances of two masks, in mm, with explicit rules for what is empty.

Both masks empty: every metric is nan (there was nothing to find and nothing was found).
One of them empty: Dice and NSD are 0, distances are nan; the tables count such a case as a miss.

The surface is the set of mask voxels with a face neighbour outside the mask; the edge of the volume counts as
outside, an ignored voxel does not. Distances run between voxel centres.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec

import numpy as np
from scipy import ndimage

from samadapt.metrics.table import NSD_TOLERANCE
from samadapt.records import IGNORED, SamAdaptError, Score

P = ParamSpec("P")


@dataclass(frozen=True)
class MaskPair:
    """A predicted and a true mask of one class, cropped to where either of them is."""

    prediction: np.ndarray  # bool, the axes that are longer than 1
    truth: np.ndarray
    ignored: np.ndarray  # bool: voxels that nobody looks at
    spacing: tuple[float, ...]  # of these axes: mm, or 1 each where the file does not say
    voxel: float  # volume of one voxel, all axes: mm^3, or 1

    @staticmethod
    def of(
        prediction: np.ndarray,
        truth: np.ndarray,
        spacing: Sequence[float] | None = None,
        ignored: np.ndarray | None = None,
    ) -> MaskPair:
        """Any two masks of equal shape, e.g. (D, H, W) bool. `spacing` along the same axes; None means pixels."""
        if prediction.shape != truth.shape:
            raise SamAdaptError(
                f"the prediction has shape {prediction.shape}, the truth {truth.shape}; they must be on one grid"
            )
        steps = tuple(float(s) for s in spacing) if spacing is not None else (1.0,) * truth.ndim
        if len(steps) != truth.ndim or not all(0 < s < math.inf for s in steps):
            raise SamAdaptError(
                f"spacing {steps} for masks of shape {truth.shape}: one number above 0 per axis"
            )
        ignored = np.zeros(truth.shape, bool) if ignored is None else ignored
        a, b = prediction.astype(bool) & ~ignored, truth.astype(bool) & ~ignored
        # A slice alone has no neighbours above and below: with that axis, all of its voxels would be surface.
        flat = tuple(axis for axis, n in enumerate(truth.shape) if n == 1)[: truth.ndim - 1]
        along = tuple(s for axis, s in enumerate(steps) if axis not in flat)
        box = _box(a | b)
        a, b, ignored = (np.squeeze(x[box], flat) for x in (a, b, ignored))
        return MaskPair(a, b, ignored, along, math.prod(steps))

    @property
    def both_empty(self) -> bool:
        return not self.truth.any() and not self.prediction.any()

    @property
    def one_empty(self) -> bool:
        return bool(self.truth.any()) != bool(self.prediction.any())

    @functools.cached_property
    def distances(self) -> tuple[np.ndarray, np.ndarray]:
        """From each surface voxel of the prediction to the truth's surface, and from the truth's to the prediction's."""
        a, b = _surface(self.prediction, self.ignored), _surface(self.truth, self.ignored)
        return _to_surface(b, self.spacing)[a], _to_surface(a, self.spacing)[b]


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around the mask, and one voxel more, whose content decides what is surface."""
    if not mask.any():
        return (slice(0, 1),) * mask.ndim
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        box.append(slice(max(0, int(hit[0]) - 1), int(hit[-1]) + 2))
    return tuple(box)


def _surface(mask: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    edge = mask & ~ndimage.binary_erosion(mask | ignored)
    return edge if edge.any() else mask & ~ndimage.binary_erosion(mask)  # ignored voxels on all sides


def _to_surface(surface: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Each voxel's distance to the surface."""
    return np.asarray(ndimage.distance_transform_edt(~surface, sampling=spacing))


def _empty_rules(one_empty: float) -> Callable[[Callable[P, float]], Callable[P, float]]:
    """Around a measure of a pair whose masks both have voxels: nan where both are empty, else `one_empty`."""

    def around(measure: Callable[P, float]) -> Callable[P, float]:
        @functools.wraps(measure)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> float:
            pair = args[0]
            assert isinstance(pair, MaskPair)
            if pair.both_empty:
                return math.nan
            return one_empty if pair.one_empty else measure(*args, **kwargs)

        return guarded

    return around


@_empty_rules(one_empty=0.0)
def dsc(pair: MaskPair) -> float:
    """Twice the common voxels over the sum of the voxels."""
    common = np.count_nonzero(pair.prediction & pair.truth)
    return 2 * common / (np.count_nonzero(pair.prediction) + np.count_nonzero(pair.truth))


@_empty_rules(one_empty=0.0)
def nsd(pair: MaskPair, tolerance: float = NSD_TOLERANCE) -> float:
    """Share of both surfaces' voxels that lie within `tolerance` (units of the spacing) of the other surface."""
    return float((np.concatenate(pair.distances) <= tolerance).mean())


@_empty_rules(one_empty=math.nan)
def hd95(pair: MaskPair) -> float:
    """The larger of the two directed 95th percentiles, as MONAI; MedPy pools them and is a little lower."""
    return float(max(np.percentile(direction, 95) for direction in pair.distances))


@_empty_rules(one_empty=math.nan)
def assd(pair: MaskPair) -> float:
    """The mean over the voxels of both surfaces together, as MONAI."""
    return float(np.concatenate(pair.distances).mean())


def volume_difference(pair: MaskPair) -> float:
    """Predicted minus true volume, mm^3 (or voxels). nan where both are empty; a miss has a number here."""
    if pair.both_empty:
        return math.nan
    return (np.count_nonzero(pair.prediction) - np.count_nonzero(pair.truth)) * pair.voxel


def score_case(
    case_id: str,
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float] | None,
    classes: Sequence[str],
    tolerance: float = NSD_TOLERANCE,
) -> list[Score]:
    """Every metric of every class but the background.

    Args:
        prediction: (D, H, W) integer, class per voxel.
        truth: (D, H, W) integer; voxels that are IGNORED in it are left out of everything.
        spacing_mm: along D, H, W. None gives distances in pixels, under names that say so.
        classes: names by label value; value 0 is the background.
        tolerance: of the NSD, in mm (or pixels); another than the usual one stands in the metric's name.
    """
    ignored = truth == IGNORED
    if prediction.shape == truth.shape:  # else MaskPair says so
        for what, values in (("prediction", prediction), ("label", truth)):
            _check_values(f"{what} of {case_id!r}", values[~ignored], classes)
    unit = "px" if spacing_mm is None else "mm"
    suffix = ("_px" if spacing_mm is None else "") + ("" if tolerance == NSD_TOLERANCE else f"_{tolerance:g}")
    volume, scale = ("volume_difference_px", 1) if spacing_mm is None else ("volume_difference_ml", 1000)
    scores = []
    for value, name in list(enumerate(classes))[1:]:
        pair = MaskPair.of(prediction == value, truth == value, spacing_mm, ignored)
        measured = {
            "dsc": dsc(pair),
            f"nsd{suffix}": nsd(pair, tolerance),
            f"hd95_{unit}": hd95(pair),
            f"assd_{unit}": assd(pair),
            volume: volume_difference(pair) / scale,
        }
        scores += [Score(case_id, name, metric, float(number)) for metric, number in measured.items()]
    return scores


def _check_values(what: str, values: np.ndarray, classes: Sequence[str]) -> None:
    extremes = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for value in extremes:
        if not 0 <= value < len(classes):
            raise SamAdaptError(
                f"the {what} holds the value {value}; the {len(classes)} classes ({', '.join(classes)}) "
                f"have the values 0..{len(classes) - 1}"
            )
