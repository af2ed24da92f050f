"""What is measured, as what each patient adds to it, so that one kind of interval serves Dice, AUC and accuracy.

A cell's mean Dice over classes, its AUC and its accuracy are all written as a mean over patients: of contributions,
whose mean is the number itself. Seeds stand side by side: (patients, seeds).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from samadapt.metrics import LabelledProbabilities, clip_interval, mean_contributions
from samadapt.report.reading import CellResults, Level, StudyResults
from samadapt.statistics import Estimate, over_patients_and_seeds


@dataclass(frozen=True)
class Side:
    """A method at a number of labelled patients."""

    learner: str
    level: Level | None = None


def estimate(matrix: np.ndarray | None, metric: str = "") -> Estimate:
    """The mean of (patients, seeds), with its interval; of a metric, cut to what that can be."""
    if matrix is None or matrix.size == 0 or bool(np.isnan(matrix).any()):
        return Estimate(math.nan)
    found = over_patients_and_seeds(matrix)
    if not metric:
        return found
    low, high = clip_interval((found.low, found.high), metric)
    return dataclasses.replace(found, low=low, high=high)


def contributions(
    study: StudyResults,
    side: Side,
    metric: str = "dsc",
    target: str = "",
    seeds: Collection[int] | None = None,
) -> np.ndarray | None:
    """What each patient adds to the mean of a method, (patients, seeds). None: it has no such seeds.

    Args:
        target: one class; else the mean over the classes.
        seeds: of its finished ones, these alone.
    """
    cells = study.seeds(side.learner, side.level)
    by_case = [
        _of_cell(study, cell, metric, target)
        for seed, cell in sorted(cells.items())
        if seeds is None or seed in seeds
    ]
    return _by_patient(study.groups, by_case) if by_case else None


def paired_contributions(
    study: StudyResults, mine: Side, theirs: Side, metric: str, seeds: Collection[int] | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """`contributions` of two sides over the seeds, cases and classes that both have a value for. None: no such seeds.

    The difference of the two is that of the means, patient by patient and seed by seed.
    """
    by_case = [
        _of_two_cells(study, a, b, metric)
        for seed, a, b in _pairs(study, mine, theirs)
        if seeds is None or seed in seeds
    ]
    if not by_case:
        return None
    ours, others = zip(*by_case, strict=True)
    return _by_patient(study.groups, ours), _by_patient(study.groups, others)


def difference(sides: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray | None:
    """The first minus the second of `paired_contributions`."""
    return None if sides is None else sides[0] - sides[1]


def _pairs(study: StudyResults, mine: Side, theirs: Side) -> list[tuple[int, CellResults, CellResults]]:
    """Cells of the seeds in common; a method that learns nothing answers the same for every seed."""
    ours, others = (study.seeds(side.learner, side.level) for side in (mine, theirs))
    if ours and not study.learners[mine.learner].learns:
        ours = dict.fromkeys(others, next(iter(ours.values())))
    if others and not study.learners[theirs.learner].learns:
        others = dict.fromkeys(ours, next(iter(others.values())))
    return [(seed, ours[seed], others[seed]) for seed in sorted(set(ours) & set(others))]


# ---------------------------------------------------------------- what each case adds, (cases,)


def _of_cell(study: StudyResults, cell: CellResults, metric: str, target: str = "") -> np.ndarray:
    column = study.targets.index(target) if target else None
    if metric in ("auc", "acc"):
        answers = class_answers(study, cell)
        return answers.correct if metric == "acc" else answers.auc_contributions(column)
    values = study.values(cell, metric)
    return mean_contributions(values if column is None else values[:, [column]])


def _of_two_cells(
    study: StudyResults, a: CellResults, b: CellResults, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    if metric in ("auc", "acc"):
        return _of_cell(study, a, metric), _of_cell(study, b, metric)
    ours, others = study.values(a, metric), study.values(b, metric)
    both = ~np.isnan(ours) & ~np.isnan(others)
    mine, theirs = (mean_contributions(np.where(both, values, math.nan)) for values in (ours, others))
    return mine, theirs


def class_answers(study: StudyResults, cell: CellResults) -> LabelledProbabilities:
    """The probabilities of a classifier's cell, and the truth."""
    return LabelledProbabilities.from_indicators(
        study.values(cell, "probability"), study.values(cell, "truth")
    )


def _by_patient(groups: tuple[str, ...], by_case: Sequence[np.ndarray]) -> np.ndarray:
    """(cases,) for each seed -> (patients, seeds) with the same mean."""
    values = np.stack(by_case, axis=1)
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    mean = values.mean(0)
    moved = np.zeros((len(names), values.shape[1]))
    np.add.at(moved, member, values - mean)
    return mean + moved * (len(names) / len(values))
