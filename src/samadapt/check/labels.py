"""Labels that do not lie on their image as those of the other cases do: mirrored, turned, exchanged or displaced.

Each case is described by how its image looks under its label (the mean and spread of each class against its
surroundings, how much of the variance the classes explain, how steep the image is at their edges) and by where the
classes lie. What is usual is the median over the cases. A label is called mirrored, turned or exchanged only where the
other hypothesis makes an unusual case a usual one, by a clear margin, and where for most other cases it does the
reverse by such a margin: a data set of round lesions does not tell left from right.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from samadapt.check.findings import Finding
from samadapt.check.measures import Measures
from samadapt.check.robust import FEWEST_CASES, centre_and_scale
from samadapt.check.turns import TURNS

# Found with labels of ACDC, Hippocampus, USGRA and ISIC 2017 that were mirrored, turned, exchanged and displaced: as small
# as possible without a false alarm on the sound ones.
_MARGIN = 2.0  # in mean squared deviations
_USUAL = 1.5  # times the deviation that nine of ten cases keep below
_BY_LOOKS = 0.5  # of the margin, what the image under the label must add
# The deviation of a misfit: at least, and times the one that nine of ten cases keep below. Of a label whose classes or edges
# are weaker than usual, by `_WORSE` scales; and of one under which a class is dark instead of bright.
_WEAKER = (7.0, 2.5)
_REVERSED = (5.0, 2.0)
_WORSE = 1.0
_CLEAR = 2.0  # scales from which a class is called bright or dark
_FARTHEST = 6.0  # scales: a single number counts no more than this
_FLOORS = {"look": 0.1, "place": 0.03, "size": 0.25}
_MOST_CLASSES = 5  # all exchanges of so many are tried, of more only those of two


@dataclass(frozen=True)
class _Profile:
    """N cases, T turns, K classes (0: the surroundings)."""

    looks: np.ndarray  # (N, T, K, F): mean and log spread of each class and channel
    whole: np.ndarray  # (N, T, F): explained variance of each channel, steepness at the edges
    places: np.ndarray  # (N, T, K, 6): centre, and centre against the surroundings'
    sizes: np.ndarray  # (N, 1, K, 1): log volume


@dataclass(frozen=True)
class _Deviation:
    """(N,) mean squared deviations from what is usual, in robust scales."""

    look: np.ndarray
    place: np.ndarray
    size: np.ndarray

    @property
    def fit(self) -> np.ndarray:
        return self.look + self.place


def misplaced_labels(cases: Sequence[Measures], classes: Sequence[str]) -> Iterator[Finding]:
    """At most one finding for each case.

    Args:
        classes: names by number.
    """
    shapes = Counter(case.fit.sums.shape for case in cases if case.fit)
    commonest = max(shapes, key=lambda shape: shapes[shape], default=())
    fitted = [case for case in cases if case.fit and case.fit.sums.shape == commonest]  # as many channels
    if len(fitted) < FEWEST_CASES:
        return
    profile = _profile(fitted)
    stored = _deviation(profile)
    exchanged = _exchanges(profile, stored, classes)
    turned = _turns(profile, stored)
    bad = _misfits(profile, stored.look)
    for n, case in enumerate(fitted):
        at = (
            max(case.classes.items(), key=lambda item: item[1].voxels)[1].slice_index
            if case.classes
            else None
        )
        if n in turned:
            yield Finding("warning", "turned label", *turned[n], (case.id,), at)
        elif n in exchanged:
            yield Finding("warning", "exchanged classes", *exchanged[n], (case.id,), at)
        elif bad[n]:
            yield Finding(
                "warning", "label does not fit", *_misfit(stored.look[n], stored.look), (case.id,), at
            )


def _misfit(own: float, every: np.ndarray) -> tuple[str, str]:
    return (
        "the image under the label looks unlike that of the other cases (deviation "
        f"{own:.1f}, half of the cases are below {np.nanmedian(every):.1f})",
        "look at the overlay: is the label displaced, or of another case, or is the image inverted or of another kind?",
    )


# ---------------------------------------------------------------- hypotheses


def _turns(profile: _Profile, stored: _Deviation) -> dict[int, tuple[str, str]]:
    """Case -> what is said of it, for labels that would fit if they were turned."""
    best: dict[int, tuple[float, str]] = {}
    for t, turn in enumerate(TURNS[1:], start=1):
        other = _deviation(profile, turn=t)
        likely = _likelier(stored.fit, other.fit) & (stored.look - other.look > _BY_LOOKS)
        for n in map(int, np.flatnonzero(likely)):
            best[n] = min(best.get(n, (np.inf, "")), (float(other.fit[n]), turn.text))
    return {
        n: (
            f"the label fits its image when it is {text} (deviation from the other cases {after:.1f}, as stored "
            f"{stored.fit[n]:.1f})",
            "look at the overlay; if the label is turned, save it again with the image's orientation",
        )
        for n, (after, text) in best.items()
    }


def _exchanges(profile: _Profile, stored: _Deviation, classes: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Case -> what is said of it, for labels that would fit if classes were exchanged."""
    before = stored.fit + stored.size
    best: dict[int, tuple[float, tuple[int, ...]]] = {}
    for order in _orders(len(classes)):
        other = _deviation(profile, order=order)
        after = other.fit + other.size
        for n in map(int, np.flatnonzero(_likelier(before, after))):
            best[n] = min(best.get(n, (np.inf, ())), (float(after[n]), order))
    return {n: _exchange(order, after, before[n], classes) for n, (after, order) in best.items()}


def _exchange(order: tuple[int, ...], after: float, before: float, classes: Sequence[str]) -> tuple[str, str]:
    changes = [f"{classes[is_]!r} looks like {classes[k]!r}" for k, is_ in enumerate(order) if k != is_]
    return (
        f"what is labelled {', '.join(changes)} of the other cases (deviation {before:.1f}, with the classes exchanged "
        f"{after:.1f})",
        "look at the overlay; if the classes are exchanged, correct the values in the label",
    )


def _orders(n_classes: int) -> Iterator[tuple[int, ...]]:
    """Orders of the classes other than their own; 0 stays."""
    if n_classes <= _MOST_CLASSES:
        yield from ((0, *order) for order in list(itertools.permutations(range(1, n_classes)))[1:])
        return
    for a, b in itertools.combinations(range(1, n_classes), 2):
        order = list(range(n_classes))
        order[a], order[b] = b, a
        yield tuple(order)


def _likelier(stored: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N,) whether the other hypothesis is clearly better for a case, where it is clearly worse for most cases."""
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all nan: a turn that no case allows
        quarter, half = np.nanquantile(other - stored, (0.25, 0.5))
        if not (quarter >= _MARGIN / 2 and half >= _MARGIN):
            return np.zeros(len(stored), bool)
        return (stored - other > _MARGIN) & (other < _USUAL * np.nanquantile(stored, 0.9))


def _misfits(profile: _Profile, look: np.ndarray) -> np.ndarray:
    """(N,) whether the label is bad: a small lesion of strong contrast is unusual too, but fits its image.

    Args:
        look: (N,) deviations of the labels as stored.
    """
    most = float(np.nanquantile(look, 0.9))
    whole, means = profile.whole[:, 0], profile.looks[:, 0, :, : profile.looks.shape[3] // 2]
    centre, scale = centre_and_scale(whole, _FLOORS["look"])
    usual, width = centre_and_scale(means, _FLOORS["look"])
    with np.errstate(invalid="ignore"):
        weaker = ((whole - centre) / scale < -_WORSE).any(1)
        clear = np.minimum(np.abs(usual), np.abs(means)) > _CLEAR * width
        reversed_ = ((means * usual < 0) & clear).any((1, 2))
    limits = [max(least, times * most) for least, times in (_WEAKER, _REVERSED)]
    return (weaker & (look > limits[0])) | (reversed_ & (look > limits[1]))


# ---------------------------------------------------------------- numbers


def _profile(cases: Sequence[Measures]) -> _Profile:
    fits = [case.fit for case in cases if case.fit is not None]
    sums = np.stack([fit.sums for fit in fits]).astype(np.float64)  # (N, T, K, C, 3)
    count, first, second = sums[..., 0], sums[..., 1], sums[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = count.sum(2, keepdims=True)
        mean = first.sum(2, keepdims=True) / total
        deviation = np.sqrt(np.maximum(second.sum(2, keepdims=True) / total - mean**2, 1e-8))
        means = (first / count - mean) / deviation
        spreads = np.sqrt(np.maximum(second / count - (first / count) ** 2, 0)) / deviation
    explained = (np.nan_to_num(means) ** 2 * count / total).sum(2)  # (N, T, C)
    explained[np.isnan(total[:, :, 0])] = np.nan
    edges = np.log(np.maximum(np.stack([fit.edges for fit in fits]), 1e-3))
    centres = np.stack([fit.centres for fit in fits]).astype(np.float64)
    places = np.concatenate([centres, centres - centres[:, :, :1]], -1)
    places[:, :, 0] = np.nan  # the surroundings are where the label is
    volumes = [
        [np.log(case.classes[k].volume) if k in case.classes else np.nan for k in range(sums.shape[2])]
        for case in cases
    ]
    return _Profile(
        np.concatenate([means, np.log(np.maximum(spreads, 1e-3))], -1),
        np.concatenate([explained, edges[..., None]], -1),
        places,
        np.array(volumes)[:, None, :, None],
    )


def _deviation(profile: _Profile, turn: int = 0, order: Sequence[int] | None = None) -> _Deviation:
    """How far each case is from what is usual, were its label turned or its classes in another order."""
    order = list(range(profile.looks.shape[2]) if order is None else order)
    n = len(profile.looks)

    def z(values: np.ndarray, kind: str, of_class: bool = True) -> np.ndarray:
        """(N, F) squared, of all classes one after the other."""
        centre, scale = centre_and_scale(values[:, 0], _FLOORS[kind])
        own = values[:, min(turn, values.shape[1] - 1)]
        own = own[:, order] if of_class else own
        return np.minimum(np.abs(own - centre) / scale, _FARTHEST).reshape(n, -1) ** 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all nan: a turn that the shape does not allow
        look = np.nanmean(np.concatenate([z(profile.looks, "look"), z(profile.whole, "look", False)], 1), 1)
        return _Deviation(
            look, np.nanmean(z(profile.places, "place"), 1), np.nanmean(z(profile.sizes, "size"), 1)
        )
