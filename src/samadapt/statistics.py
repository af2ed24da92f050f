"""Intervals and tests whose unit is the patient: scans of one patient are not independent. No torch in here.

The interval of a mean is a studentised bootstrap (bootstrap-t). Percentile and BCa intervals of so few patients
are too narrow: docs/decisions/005 has the coverage of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

#: Up to so many patients, resampling them cannot give the tails of the t statistic; Student's are taken.
_FEW = 4
#: Up to so many patients, the sign-flip test goes through all flips.
_EXACT = 14
#: Flips drawn where they are too many to go through.
_FLIPS = 10_000


def resample_weights(n_groups: int, resamples: int, seed: int) -> np.ndarray:
    """(R, G) float64: how often each of G patients is drawn, for R resamples."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples).astype(float)


def mean_and_error(
    sums: np.ndarray, counts: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of column means and its standard error, for each row of weights.

    Args:
        sums: (G, T) sum of the values of each patient and target.
        counts: (G, T) how many values these are.
        weights: (R, G).

    Returns:
        (R,) means, nan where some target has no value; (R,) standard errors, with patients as the unit.
    """
    groups = len(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = weights @ counts  # (R, T)
        means = (weights @ sums) / n
        # How far each patient moves the result: the linearised ratio of sums, averaged over targets.
        influence = ((sums - means[:, None] * counts) / n[:, None]).mean(-1)  # (R, G)
        variance = (weights * influence**2).sum(-1) * groups / (groups - 1)
    return means.mean(-1), np.sqrt(variance)


def studentised_interval(
    sums: np.ndarray, counts: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Interval of the mean of column means, of (G, T) sums and counts. (nan, nan): it cannot be given.

    That is so for fewer than two patients, and where all patients are alike: a width of zero would claim a
    certainty that nobody has.
    """
    groups = len(sums)
    if groups < 2:
        return math.nan, math.nan
    mean, error = (float(x[0]) for x in mean_and_error(sums, counts, np.ones((1, groups))))
    if not error > 1e-9 * max(abs(mean), 1e-9):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    if groups <= _FEW:
        t = float(stdtrit(groups - 1, 1 - tail))
        return mean - t * error, mean + t * error
    weights = resample_weights(groups, resamples, seed)
    rows = max(1, 4_000_000 // sums.size)  # bounds the memory
    parts = [mean_and_error(sums, counts, weights[i : i + rows]) for i in range(0, resamples, rows)]
    means, errors = (np.concatenate(part) for part in zip(*parts, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        t_values = (means - mean) / errors
    t_values = t_values[~np.isnan(t_values)]
    if len(t_values) < resamples / 2:  # most resamples lack a target
        return math.nan, math.nan
    low, high = np.quantile(t_values, [tail, 1 - tail], method="closest_observation")
    return mean - float(high) * error, mean - float(low) * error


def percentile_interval(replicates: np.ndarray, n_groups: int, confidence: float) -> tuple[float, float]:
    """Percentiles of bootstrap replicates (R,), widened for few patients as Student's t is (Hesterberg 2015).

    For statistics without a standard error, such as the AUC. Replicates that are nan do not count; where they
    are the majority, or all others are alike, there is no interval.
    """
    values = replicates[~np.isnan(replicates)]
    if n_groups < 2 or len(values) <= len(replicates) / 2 or np.ptp(values) == 0:
        return math.nan, math.nan
    t = float(stdtrit(n_groups - 1, (1 + confidence) / 2)) * math.sqrt(n_groups / (n_groups - 1))
    tail = NormalDist().cdf(-t)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def sign_flip_p(contributions: np.ndarray, seed: int) -> float:
    """Two-sided p value of a mean paired difference, by flipping the sign of whole patients.

    Args:
        contributions: (G,) what each patient adds to the mean difference. If the two methods were
            exchangeable, each could as well have had the other sign.
    """
    groups = len(contributions)
    if groups == 0:
        return math.nan
    observed = abs(contributions.sum()) - 1e-12 * np.abs(contributions).sum()  # ties in spite of rounding
    if groups <= _EXACT:
        # A flip and its mirror image count alike: the first patient keeps its sign.
        codes = np.arange(2 ** (groups - 1))[:, None] >> np.arange(groups - 1) & 1
        totals = contributions[0] + (1 - 2 * codes) @ contributions[1:]
        return float((np.abs(totals) >= observed).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_FLIPS, groups))
    hits = int((np.abs(signs @ contributions) >= observed).sum())
    return (1 + hits) / (1 + _FLIPS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for the number of comparisons. nan stays nan and does not count."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


# ---------------------------------------------------------------- patients and seeds


@dataclass(frozen=True)
class Estimate:
    """A mean over patients and seeds. Nan where it cannot be given."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan  # two-sided, of a mean of zero
    n_groups: int = 0  # patients
    n_seeds: int = 0


def over_patients_and_seeds(
    values: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of (G, S) values, patients x seeds, and its interval at both levels.

    Patients and seeds are crossed: every seed (a draw of labelled patients and a training) is scored on the same
    patients. Patients are resampled (`studentised_interval` of the means over seeds). Seeds are too few to be
    resampled: what they add to the variance, (MS seeds - MS residual) / GS as in an analysis of variance, widens
    each side, times Student's quantile of S - 1. For one seed nothing can be added.

    The p value is the larger of the sign-flip test by patient and the Student test that the interval of both
    levels gives: chance in either the patients or the seeds must not look like an effect.
    """
    groups, seeds = values.shape
    by_patient, mean = values.mean(1), float(values.mean()) if groups and seeds else math.nan
    low, high = studentised_interval(by_patient[:, None], np.ones((groups, 1)), confidence, resamples, seed)
    p = sign_flip_p(by_patient, seed) if groups > 1 else math.nan
    if groups < 2 or seeds < 2 or math.isnan(low):
        return Estimate(mean, low, high, p, groups, seeds)
    of_patients, of_seeds = _variances(values)
    tail = (1 + confidence) / 2
    added = float(stdtrit(seeds - 1, tail)) ** 2 * of_seeds
    low, high = (
        mean - math.hypot(mean - low, math.sqrt(added)),
        mean + math.hypot(high - mean, math.sqrt(added)),
    )
    return Estimate(
        mean, low, high, max(p, _two_level_p(mean, of_patients, of_seeds, groups, seeds)), groups, seeds
    )


def _variances(values: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of (G, S) values: by the patients (with the residual), and what the seeds add."""
    groups, seeds = values.shape
    rows, columns, mean = values.mean(1, keepdims=True), values.mean(0, keepdims=True), values.mean()
    ms_patients = seeds * float(((rows - mean) ** 2).sum()) / (groups - 1)
    ms_seeds = groups * float(((columns - mean) ** 2).sum()) / (seeds - 1)
    ms_residual = float(((values - rows - columns + mean) ** 2).sum()) / ((groups - 1) * (seeds - 1))
    return ms_patients / (groups * seeds), max(ms_seeds - ms_residual, 0.0) / (groups * seeds)


def _two_level_p(mean: float, of_patients: float, of_seeds: float, groups: int, seeds: int) -> float:
    """The p at which Student's interval of both levels just touches zero, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        p = (low + high) / 2
        squares = [float(stdtrit(n - 1, 1 - p / 2)) ** 2 for n in (groups, seeds)]
        touches = squares[0] * of_patients + squares[1] * of_seeds >= mean**2
        low, high = (p, high) if touches else (low, p)
    return high
