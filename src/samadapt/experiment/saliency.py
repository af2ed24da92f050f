"""Saliency maps of a classifier for a few test cases, small, so that the report can show it without data or torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from samadapt.figures import is_flat, range_title
from samadapt.files import replacing
from samadapt.metrics import LabelledProbabilities
from samadapt.prediction import Saliency
from samadapt.types import Case

_DRAWN = 4  # cases that are the same for every learner
_MISTAKES = 2  # further ones: what this learner got most surely wrong
_LARGEST = 96  # pixels along the longer side; larger slices are thinned out


def drawn_cases(ids: Sequence[str], truth: np.ndarray, count: int = _DRAWN) -> list[str]:
    """Classes in turn, in an order that depends on the names alone: the same for every method, whatever it answers.

    Args:
        truth: (N,) class numbers, or (N, K) of 0 and 1.
    """
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).hexdigest())
    turns: Counter[str] = Counter()
    turn = {}
    for i in order:
        kind = str(truth[i].tolist())  # several labels together are a class of their own here
        turn[i], turns[kind] = turns[kind], turns[kind] + 1
    return [ids[i] for i in sorted(order, key=turn.__getitem__)[:count]]


def sure_mistakes(
    ids: Sequence[str], probabilities: np.ndarray, truth: np.ndarray, count: int = _MISTAKES
) -> list[str]:
    """The wrong answers of the highest probability, the surest first; of several labels, the surest wrong one counts."""
    x = LabelledProbabilities.of(probabilities, truth)
    if x.multilabel:
        sure = np.where(x.answers != x.truth, np.maximum(probabilities, 1 - probabilities), 0).max(1)
    else:
        sure = np.where(x.correct == 0, probabilities.max(1), 0)
    order = np.argsort(-sure, kind="stable")
    return [ids[i] for i in order[:count] if sure[i] > 0]


def save_saliency(path: Path, explained: Sequence[tuple[Case, Saliency]], drawn: int) -> None:
    """Write what the report draws, for the n-th case:

    cases (N,) names, drawn () how many of the first are the same for every learner,
    <n>.image (h, w) or (h, w, 3) uint8, <n>.slice (2,) which of how many,
    <n>.titles (M,) of the maps, <n>.maps (M, h, w) uint8 from the lowest to the highest value; flat ones are 0.
    """
    arrays: dict[str, np.ndarray] = {
        "cases": np.array([case.id for case, _ in explained]),
        "drawn": np.array(drawn),
    }
    for n, (case, saliency) in enumerate(explained):
        step = -(-max(saliency.image.shape[1:]) // _LARGEST)
        image = np.clip(saliency.image[:, ::step, ::step], 0, 255).astype(np.uint8)
        arrays |= {
            f"{n}.image": np.moveaxis(image, 0, -1) if len(image) == 3 else image[0],
            f"{n}.slice": np.array([saliency.slice_index, case.image.shape[1]]),
            f"{n}.titles": np.array([range_title(title, values) for title, values in saliency.maps.items()]),
            f"{n}.maps": np.stack([_bytes(values[::step, ::step]) for values in saliency.maps.values()]),
        }
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def keep_saliency(
    path: Path,
    explain: Callable[[Case], Saliency],
    read: Callable[[str], Case],
    answers: tuple[Sequence[str], np.ndarray, np.ndarray],
) -> None:
    """Choose the cases, explain them again, and write.

    Args:
        answers: names of the scored cases, their probabilities (N, K), and the truth (N,) or (N, K).
    """
    ids, probabilities, truth = answers
    drawn = drawn_cases(ids, truth)
    chosen = [*drawn, *(i for i in sure_mistakes(ids, probabilities, truth) if i not in drawn)]
    cases = [read(case_id) for case_id in chosen]
    save_saliency(path, [(case, explain(case)) for case in cases], len(drawn))


def _bytes(values: np.ndarray) -> np.ndarray:
    if is_flat(values):
        return np.zeros(values.shape, np.uint8)
    return np.round(255 * (values - values.min()) / np.ptp(values)).astype(np.uint8)
