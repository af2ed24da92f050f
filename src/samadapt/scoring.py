"""Label maps against the labels of their cases, in the file's own geometry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from samadapt.metrics import score_case
from samadapt.types import Case, SamAdaptError, Score


def score_labels(predictions: Iterable[tuple[Case, np.ndarray]], classes: Sequence[str]) -> list[Score]:
    """Every metric of every case, in the file's own geometry.

    Args:
        predictions: a labelled case and its predicted label map (D, H, W).
        classes: names by label value; value 0 is the background and is not scored.
    """
    scores: list[Score] = []
    for case, label in predictions:
        scores += score_case(case.id, label, truth_of(case, label), case.spacing_mm, classes)
    return scores


def truth_of(case: Case, answer: np.ndarray) -> np.ndarray:
    """(D, H, W): the label of a case, once it is certain that an answer can be compared with it."""
    if case.label is None:
        raise SamAdaptError(f"case {case.id!r} has no label: it cannot be scored")
    if answer.shape != tuple(case.label.shape):
        raise SamAdaptError(
            f"the answer for {case.id!r} has shape {answer.shape}, its label {tuple(case.label.shape)}; "
            "predict this very file, not a resampled copy"
        )
    return case.label.numpy()
