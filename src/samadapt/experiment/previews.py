"""What a cell keeps for the pictures of the report, small, so that it needs no data and no torch.

A few slices of every test case with the answers, and saliency maps of a classifier for a few test cases.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from samadapt.figures import is_flat, range_title, telling_slices
from samadapt.files import replacing
from samadapt.metrics import LabelledProbabilities
from samadapt.prediction import Saliency
from samadapt.transforms import Window, apply_window
from samadapt.types import Case

_DRAWN = 4  # cases that are the same for every learner
_MISTAKES = 2  # further ones: what this learner got most surely wrong
_LARGEST, _LARGEST_MAP = 320, 96  # pixels along the longer side; larger slices are thinned out


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


class PreviewWriter:
    """Collects one method's answers on the telling slices of each case; image and truth are kept once for all.

    cases/<case>.npz: image (N, h, w) or (N, h, w, 3) uint8, truth (N, h, w) uint8, slices (N,)
    <cell>/slices.npz: <case> (N, h, w) uint8
    """

    def __init__(self, folder: Path, window: str) -> None:
        self.folder, self.window = folder, Window.parse(window)
        self.answers: dict[str, np.ndarray] = {}

    def keep(self, case: Case, answer: np.ndarray) -> None:
        """Remember the answer (D, H, W)."""
        assert case.label is not None
        truth = case.label.numpy()
        slices = telling_slices(truth)
        step = -(-max(truth.shape[1:]) // _LARGEST)
        self.answers[case.id] = answer[slices, ::step, ::step].astype(np.uint8)
        path = self.folder / f"{case.id}.npz"
        if path.is_file():
            return
        image = apply_window(case.image, self.window.fit(case.image)).numpy()[:, slices, ::step, ::step]
        shown = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
        content: dict[str, np.ndarray] = {
            "image": shown.astype(np.uint8),
            "truth": truth[slices, ::step, ::step],
            "slices": np.array(slices),
        }
        _save(path, content)

    def write(self, path: Path) -> None:
        """Write the answers."""
        _save(path, self.answers)


# ---------------------------------------------------------------- saliency


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
        step = -(-max(saliency.image.shape[1:]) // _LARGEST_MAP)
        image = np.clip(saliency.image[:, ::step, ::step], 0, 255).astype(np.uint8)
        arrays |= {
            f"{n}.image": np.moveaxis(image, 0, -1) if len(image) == 3 else image[0],
            f"{n}.slice": np.array([saliency.slice_index, case.image.shape[1]]),
            f"{n}.titles": np.array([range_title(title, values) for title, values in saliency.maps.items()]),
            f"{n}.maps": np.stack([_bytes(values[::step, ::step]) for values in saliency.maps.values()]),
        }
    _save(path, arrays)


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
