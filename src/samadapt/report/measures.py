"""What is measured, as what each patient adds to it, so that one kind of interval serves Dice, AUC and accuracy.

A cell's mean Dice over classes, its AUC and its accuracy are all written as a mean over patients: of the linearised
("influence") values, whose mean is the number itself. Seeds stand side by side: (patients, seeds).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from samadapt.report.reading import Cell, Level, Study
from samadapt.statistics import Estimate, over_patients_and_seeds


@dataclass(frozen=True)
class Measure:
    """How a number is called and printed."""

    name: str
    title: str
    digits: int = 3
    low: float = 0.0
    high: float = math.inf


#: name -> how it is shown; a metric that is not here is shown under its own name.
MEASURES = {
    m.name: m
    for m in (
        Measure("dsc", "Dice", high=1.0),
        Measure("nsd", "Normalised surface Dice (2 mm)", high=1.0),
        Measure("hd95_mm", "Hausdorff distance, 95th percentile (mm)", 2),
        Measure("assd_mm", "Average surface distance (mm)", 2),
        Measure("volume_difference_ml", "Predicted minus true volume (ml)", 2, -math.inf),
        Measure("nsd_px", "Normalised surface Dice (2 px)", high=1.0),
        Measure("hd95_px", "Hausdorff distance, 95th percentile (px)", 2),
        Measure("assd_px", "Average surface distance (px)", 2),
        Measure("volume_difference_px", "Predicted minus true volume (px)", 0, -math.inf),
        Measure("auc", "AUC", high=1.0),
        Measure("acc", "Accuracy", high=1.0),
    )
}


def measure(name: str) -> Measure:
    """The entry of `MEASURES`, or a plain one."""
    return MEASURES.get(name, Measure(name, name, low=-math.inf))


# ---------------------------------------------------------------- (cases, targets) -> what each case adds


def mean_influence(values: np.ndarray) -> np.ndarray:
    """(C, T) with nans -> (C,), whose mean is the mean over targets of their means over the defined cases."""
    known = ~np.isnan(values)
    values = values[:, known.any(0)]
    known = known[:, known.any(0)]
    if values.size == 0:
        return np.full(len(values), math.nan)
    n = known.sum(0)
    means = np.where(known, values, 0).sum(0) / n
    moved = np.where(known, values - means, 0) * (len(values) / n)
    return (means + moved).mean(1)


def auc_influence(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(C, T) probabilities and 0/1 -> (C,), whose mean is the mean one-vs-rest AUC (DeLong's components).

    Targets that all or none of the cases have say nothing and are left out; of two classes only the second counts.
    """
    columns = [k for k in range(truth.shape[1]) if 0 < truth[:, k].sum() < len(truth)]
    if truth.shape[1] == 2 and bool((truth.sum(1) == 1).all()):
        columns = [k for k in columns if k == 1]
    if not columns:
        return np.full(len(truth), math.nan)
    return np.mean([_one_auc(scores[:, k], truth[:, k] > 0) for k in columns], axis=0)


def _one_auc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    mine, others = scores[positive], scores[~positive]
    wins = (mine[:, None] > others) + 0.5 * (mine[:, None] == others)  # (positives, negatives)
    auc = wins.mean()
    result = np.empty(len(scores))
    result[positive] = auc + (wins.mean(1) - auc) * len(scores) / len(mine)
    result[~positive] = auc + (wins.mean(0) - auc) * len(scores) / len(others)
    return result


def correct_answers(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(C,) 1 where the answer is right; of several labels a case, the share of labels."""
    if bool((truth.sum(1) == 1).all()):
        return (scores.argmax(1) == truth.argmax(1)).astype(float)
    return ((scores > 0.5) == (truth > 0.5)).mean(1)


# ---------------------------------------------------------------- cells -> patients x seeds


def estimate(matrix: np.ndarray | None, shown: Measure | None = None) -> Estimate:
    """The mean of (patients, seeds), with its interval cut to what the measure can be."""
    if matrix is None or matrix.size == 0 or bool(np.isnan(matrix).any()):
        return Estimate(math.nan)
    found = over_patients_and_seeds(matrix)
    if shown is None or math.isnan(found.low):
        return found
    ends = max(found.low, shown.low), min(found.high, shown.high)
    return Estimate(found.mean, *ends, found.p, found.n_groups, found.n_seeds)


@dataclass(frozen=True)
class Side:
    """A learner at a number of labelled patients."""

    learner: str
    level: Level | None = None


def contributions(
    study: Study,
    mine: Side,
    theirs: Side | None = None,
    name: str = "dsc",
    target: str = "",
    seeds: Collection[int] | None = None,
) -> np.ndarray | None:
    """(patients, seeds) of one side, or of its difference to another, over the seeds that both have.

    A difference is over the cases and targets that both have a value for. None: no such seeds.

    Args:
        target: one class; else the mean over the classes.
        seeds: of all that both have, these alone.
    """
    columns = [i for i, t in enumerate(study.targets) if target in ("", t)]
    by_case = [
        _classified(study, a, b, name, columns)
        if name in ("auc", "acc")
        else _measured(study, a, b, name, columns)
        for a, b in _pairs(study, mine, theirs, seeds)
    ]
    return _by_patient(study.groups, np.stack(by_case, axis=1)) if by_case else None


def in_common(
    study: Study, mine: Side, theirs: Side, name: str, seeds: Collection[int]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """`contributions` of each of two sides over what both have a value for: their difference is that of the means."""
    columns = list(range(len(study.targets)))
    sides: list[tuple[np.ndarray, np.ndarray]] = []
    for a, b in _pairs(study, mine, theirs, seeds):
        assert b is not None
        if name in ("auc", "acc"):
            sides.append(
                (_classified(study, a, None, name, columns), _classified(study, b, None, name, columns))
            )
            continue
        own, other = study.values(a, name), study.values(b, name)
        both = ~np.isnan(own) & ~np.isnan(other)
        sides.append(
            (mean_influence(np.where(both, own, math.nan)), mean_influence(np.where(both, other, math.nan)))
        )
    if not sides:
        return None, None
    first, second = (np.stack(part, axis=1) for part in zip(*sides, strict=True))
    return _by_patient(study.groups, first), _by_patient(study.groups, second)


def _pairs(
    study: Study, mine: Side, theirs: Side | None, seeds: Collection[int] | None
) -> list[tuple[Cell, Cell | None]]:
    """Cells of the seeds in common; who learns nothing answers the same for every seed."""
    ours = study.seeds(mine.learner, mine.level)
    if theirs is None:
        return [(cell, None) for seed, cell in sorted(ours.items()) if seeds is None or seed in seeds]
    others = study.seeds(theirs.learner, theirs.level)
    if ours and not study.learners[mine.learner].learns:
        ours = dict.fromkeys(others, next(iter(ours.values())))
    if others and not study.learners[theirs.learner].learns:
        others = dict.fromkeys(ours, next(iter(others.values())))
    common = sorted(set(ours) & set(others))
    return [(ours[seed], others[seed]) for seed in common if seeds is None or seed in seeds]


def _measured(study: Study, cell: Cell, other: Cell | None, name: str, columns: list[int]) -> np.ndarray:
    values = study.values(cell, name)[:, columns]
    return mean_influence(values if other is None else values - study.values(other, name)[:, columns])


def _classified(study: Study, cell: Cell, other: Cell | None, name: str, columns: list[int]) -> np.ndarray:
    if other is not None:
        return _classified(study, cell, None, name, columns) - _classified(study, other, None, name, columns)
    scores, truth = study.values(cell, "probability"), study.values(cell, "truth")
    if name == "acc":
        return correct_answers(scores, truth)
    if len(columns) > 1 or truth.shape[1] == 1:
        return auc_influence(scores, truth)
    positive = truth[:, columns[0]] > 0
    mixed = 0 < positive.sum() < len(positive)
    return _one_auc(scores[:, columns[0]], positive) if mixed else np.full(len(positive), math.nan)


def _by_patient(groups: tuple[str, ...], by_case: np.ndarray) -> np.ndarray:
    """(cases, seeds) -> (patients, seeds) with the same mean."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    mean = by_case.mean(0)
    moved = np.zeros((len(names), by_case.shape[1]))
    np.add.at(moved, member, by_case - mean)
    return mean + moved * (len(names) / len(by_case))
