"""What is usual in a data set, and how far a case is from it, so that a few faulty cases do not hide themselves."""

from __future__ import annotations

import warnings

import numpy as np

FEWEST_CASES = 8  # with fewer nothing can be called unusual
_RARE = 0.05  # what more cases have than this share of them is a second kind of data and no fault


def centre_and_scale(values: np.ndarray, floor: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median over the first axis, and 1.4826 times the median deviation from it, at least `floor`.

    Nan where fewer than `FEWEST_CASES` have a value.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all nan is nan
        centre = np.nanmedian(values, axis=0)
        scale = np.maximum(1.4826 * np.nanmedian(np.abs(values - centre), axis=0), floor)
    enough = (~np.isnan(values)).sum(0) >= FEWEST_CASES
    return np.where(enough, centre, np.nan), np.where(enough, scale, np.nan)


def is_rare(count: int, cases: int) -> bool:
    """Whether so few of the cases have something that it may be a fault of theirs."""
    return count == 1 or count <= _RARE * cases
