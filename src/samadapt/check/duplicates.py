"""Images and labels that are in the data set twice: the same, or nearly the same as after noise or another compression."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from samadapt.check.findings import Finding
from samadapt.check.measures import Measures
from samadapt.check.robust import FEWEST_CASES
from samadapt.datasets import Dataset

# A copy with 5 % of noise, another contrast or another compression correlates by 0.85 to 1 with the original, other
# patients by at most 0.6 in volumes; pictures of one kind are more alike, so that the limit follows the data set.
_LEAST_ALIKE = 0.8
_BETWEEN = 0.75  # the limit lies so far between the usual nearest neighbour and 1
_NEIGHBOUR = 4  # three copies of one picture are expected at most
_CLOSER = 0.5  # a copy is so much closer than the `_NEIGHBOUR`th nearest case
_FEW_ALIKE = 0.97  # where there are too few cases to subtract what they have in common
_BLOCK = 2000  # rows of the table of all pairs that are in memory

_KEEP_ONE = "keep one of them, or give both to one patient (--group)"
_LEAK = "remove it from one of the parts: scores would be too optimistic"


def duplicates(cases: Sequence[Measures], data: Dataset) -> Iterator[Finding]:
    """Of images, then of labels."""
    same = defaultdict(list)
    for case in cases:
        same[case.image_hash].append(case)
    for group in same.values():
        for other in group[1:]:
            yield from _same_image(group[0], other, data)
    known = {frozenset((a.id, b.id)) for group in same.values() for a in group for b in group}
    yield from _near(cases, known, data)
    yield from _same_labels(cases, data)


def _same_image(first: Measures, other: Measures, data: Dataset) -> Iterator[Finding]:
    same, both = f"the same image as {first.id!r}", (other.id, first.id)
    if data.parts[first.id] != data.parts[other.id]:
        sides = f"{data.parts[other.id] or 'no part'}, that one in {data.parts[first.id] or 'no part'}"
        text = f"{same}, but this one is in {sides}: scores would be too optimistic"
        yield Finding("error", "duplicate", text, _LEAK, both)
    elif first.label_hash != other.label_hash:
        advice = "compare the two labels and keep one of the cases"
        yield Finding("error", "duplicate", f"{same} with another label", advice, both)
    elif data.groups[first.id] != data.groups[other.id]:
        text = f"{same} under another patient: a split may cut between them"
        yield Finding("warning", "duplicate", text, _KEEP_ONE, both)
    else:
        yield Finding("warning", "duplicate", same, "keep one of them", both)


def _same_labels(cases: Sequence[Measures], data: Dataset) -> Iterator[Finding]:
    """Label maps that are equal though the images are not: one was saved under the wrong name."""
    equal = defaultdict(list)
    for case in cases:
        if case.classes:
            equal[case.label_hash, case.shape].append(case)
    for group in equal.values():
        different = list({case.image_hash: case for case in group}.values())
        if len(different) > 1:
            names = tuple(case.id for case in different)
            yield Finding(
                "warning", "same label", "the label maps of these cases are equal, voxel for voxel, and their images are not",
                "look at the overlays: one of them is probably saved under the wrong name", names,
            )  # fmt: skip


# ---------------------------------------------------------------- nearly the same


#: How the copy of an image may have been mirrored, as augmented pictures are.
_MIRRORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    ", mirrored left to right": lambda x: x[..., ::-1],
    ", mirrored upside down": lambda x: x[..., ::-1, :],
    ", turned by 180 degrees": lambda x: x[..., ::-1, ::-1],
}


def _near(cases: Sequence[Measures], known: set[frozenset[str]], data: Dataset) -> Iterator[Finding]:
    """Pairs of different patients or parts."""
    for depth in {len(case.thumbs) for case in cases}:
        alike = [case for case in cases if len(case.thumbs) == depth]
        for a, b, value, how in _pairs(alike, data):
            if frozenset((a.id, b.id)) in known:
                continue
            parts = data.parts[a.id], data.parts[b.id]
            text = f"nearly the same image as {b.id!r}{how} (correlation {value:.3f}), under another patient"
            if parts[0] != parts[1]:
                text += f"; this one is in {parts[0] or 'no part'}, that one in {parts[1] or 'no part'}"
            if data.task == "classification" and a.label_hash != b.label_hash:
                text += ", with another class"
            advice = _LEAK if parts[0] != parts[1] else _KEEP_ONE
            yield Finding(
                "warning",
                "near duplicate",
                text,
                f"compare them; if it is one picture, {advice}",
                (a.id, b.id),
            )


def _pairs(cases: list[Measures], data: Dataset) -> Iterator[tuple[Measures, Measures, float, str]]:
    """Pairs of cases of different patients that are more alike than cases usually are, the most alike first."""
    if len(cases) < 2:
        return
    thumbs = np.stack([case.thumbs for case in cases]).astype(np.float32)
    few = len(cases) < FEWEST_CASES
    mean = np.zeros_like(thumbs[0]) if few else thumbs.mean(0)  # what all of them have in common
    own = _unit(thumbs - mean)
    apart = _apart(cases, data)
    limits = np.full(len(cases), _FEW_ALIKE) if few else _limits(own, apart)
    found: dict[tuple[int, int], tuple[float, str]] = {}
    for how, mirror in _MIRRORS.items():
        other = _unit(mirror(thumbs) - mean)
        for start in range(0, len(cases), _BLOCK):
            values = own[start : start + _BLOCK] @ other.T
            rows = np.arange(start, start + len(values))
            values[~apart(rows)] = -1
            for i, j in np.argwhere(values > np.maximum(limits[rows, None], limits)):
                pair = min(i + start, j), max(i + start, j)
                found[pair] = max(found.get(pair, (0.0, "")), (float(values[i, j]), how))
    for (i, j), (value, how) in sorted(found.items(), key=lambda item: -item[1][0]):
        yield cases[i], cases[j], value, how


def _apart(cases: Sequence[Measures], data: Dataset) -> Callable[[np.ndarray], np.ndarray]:
    """Rows -> (rows, N) whether two cases are of different patients or parts."""
    patients = np.unique([data.groups[case.id] for case in cases], return_inverse=True)[1]
    parts = np.unique([str(data.parts[case.id]) for case in cases], return_inverse=True)[1]
    return lambda rows: (patients[rows, None] != patients) | (parts[rows, None] != parts)


def _limits(own: np.ndarray, apart: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(N,) how alike another case must be to be called a copy of this one."""
    nearest, further = [], []
    for start in range(0, len(own), _BLOCK):
        values = own[start : start + _BLOCK] @ own.T
        values[~apart(np.arange(start, start + len(values)))] = -1
        values.sort(axis=1)
        nearest.append(values[:, -1])
        further.append(values[:, -_NEIGHBOUR])
    usual = 1 - (1 - _BETWEEN) * (1 - float(np.median(np.concatenate(nearest))))
    return np.maximum(max(_LEAST_ALIKE, usual), 1 - _CLOSER * (1 - np.concatenate(further)))


def _unit(thumbs: np.ndarray) -> np.ndarray:
    """(N, F), of length one. Roots, so that a black border does not decide alone."""
    flat = thumbs.reshape(len(thumbs), -1)
    flat = np.sign(flat) * np.sqrt(np.abs(flat))
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
