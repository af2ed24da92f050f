"""Simulated studies with known means: the report's intervals cover them, its test is not fooled by chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samadapt.statistics import over_patients_and_seeds

STUDIES = 1500  # one standard error of a coverage of 95 % is then 0.56 points


def simulate(patients, seeds, of_patients, of_seeds, rest, skewed=False):
    """(STUDIES, patients, seeds), mean 0: patients differ, seeds differ, and each cell has its own noise."""
    rng = np.random.default_rng(patients * 100 + seeds)
    shape = (STUDIES, patients, 1)
    hard = rng.beta(8, 1.5, shape) - 8 / 9.5 if skewed else rng.normal(size=shape)
    hard *= of_patients / (np.sqrt(8 * 1.5 / (9.5**2 * 10.5)) if skewed else 1)
    return (
        hard
        + of_seeds * rng.normal(size=(STUDIES, 1, seeds))
        + rest * rng.normal(size=(STUDIES, patients, seeds))
    )


@pytest.mark.parametrize(
    ("patients", "seeds", "of_seeds", "skewed"),
    [(10, 1, 0.0, False), (10, 3, 0.0, False), (10, 3, 0.02, True), (10, 3, 0.1, False), (20, 5, 0.05, True)],
)
def test_the_interval_covers_and_the_test_is_honest(patients, seeds, of_seeds, skewed):
    found = [
        over_patients_and_seeds(x, resamples=300)
        for x in simulate(patients, seeds, 0.1, of_seeds, 0.04, skewed)
    ]
    covered = np.mean([e.low <= 0 <= e.high for e in found])
    false_positives = np.mean([e.p < 0.05 for e in found])
    assert 0.93 <= covered <= 0.97
    assert false_positives <= 0.05 + 2 * 0.0056


def test_ignoring_the_seeds_would_cover_far_too_little():
    """What the second level is for."""
    found = [
        over_patients_and_seeds(x.mean(1, keepdims=True), resamples=300)
        for x in simulate(10, 3, 0.1, 0.1, 0.04)[:500]
    ]
    assert np.mean([e.low <= 0 <= e.high for e in found]) < 0.8


def test_an_effect_is_found():
    found = [over_patients_and_seeds(x + 0.2, resamples=300) for x in simulate(10, 3, 0.1, 0.02, 0.04)[:200]]
    assert np.mean([e.p < 0.05 and e.low > 0 for e in found]) > 0.95


def test_one_patient_or_no_difference_has_no_interval():
    one = over_patients_and_seeds(np.array([[0.1, 0.2, 0.3]]))
    assert one.mean == pytest.approx(0.2) and math.isnan(one.low) and math.isnan(one.p)
    assert math.isnan(over_patients_and_seeds(np.full((5, 3), 0.1)).low)


def test_numbers_by_hand():
    """Two seeds that differ by 0.2 for every patient: variance of the mean 0.01 more, Student's t of 1 degree."""
    values = np.array([[0.1], [0.2], [0.3], [0.4]]) + np.array([[-0.1, 0.1]])
    alone = over_patients_and_seeds(values.mean(1, keepdims=True))
    both = over_patients_and_seeds(values)
    t = 12.7062
    assert both.mean == pytest.approx(0.25)
    assert both.high - 0.25 == pytest.approx(math.hypot(alone.high - 0.25, t * 0.1), rel=1e-4)
    assert both.p > alone.p
