"""What each case adds to a mean over classes, so that one kind of interval serves every measure.

The contributions of the cases are the linearised ("influence") values, whose mean is the number itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from samadapt.records import Score


def score_matrix(
    scores: Iterable[Score], metric: str, cases: Sequence[str], targets: Sequence[str]
) -> np.ndarray:
    """The values of one metric, (cases, targets); nan where undefined or not scored."""
    matrix = np.full((len(cases), len(targets)), math.nan)
    case_at, target_at = ({x: i for i, x in enumerate(names)} for names in (cases, targets))
    for score in scores:
        if score.metric == metric:
            matrix[case_at[score.case], target_at[score.target]] = score.value
    return matrix


def mean_contributions(values: np.ndarray) -> np.ndarray:
    """What each case adds to the mean over targets of their means over the defined cases.

    Args:
        values: (N, T), nan where undefined.

    Returns:
        (N,), whose mean is that mean; nan where no value is defined.
    """
    known = ~np.isnan(values)
    values = values[:, known.any(0)]
    known = known[:, known.any(0)]
    if values.size == 0:
        return np.full(len(values), math.nan)
    n = known.sum(0)
    means = np.where(known, values, 0).sum(0) / n
    moved = np.where(known, values - means, 0) * (len(values) / n)
    return (means + moved).mean(1)
