"""Every method against the best baseline, over the seeds that are finished for all that is compared."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from samadapt.report.measures import Side, contributions, difference, estimate, paired_contributions
from samadapt.report.reading import Level, StudyResults
from samadapt.statistics import Estimate, holm

ALPHA = 0.05
#: Fewer seeds in common decide nothing: what the draw of the labelled patients adds is not known from one.
FEWEST_SEEDS = 2

Means = dict[tuple[str, Level], Estimate]


@dataclass(frozen=True)
class Comparison:
    """A method minus the best baseline (or another one that was asked for), at one number of labelled patients."""

    learner: str
    level: Level
    baseline: str
    ours: float  # means over the cases and the seeds that are compared, and that both have a value for
    theirs: float
    difference: Estimate
    seeds: tuple[int, ...] = ()  # finished for both, and for the other baselines
    p_holm: float = math.nan  # nan: no competitor, or no test

    @property
    def verdict(self) -> Literal["better", "worse", "no difference shown", "not tested"]:
        if math.isnan(self.p_holm) or math.isnan(self.difference.low):
            return "not tested"
        if self.p_holm < ALPHA and self.difference.low > 0:
            return "better"
        return "worse" if self.p_holm < ALPHA and self.difference.high < 0 else "no difference shown"


def all_means(study: StudyResults, name: str, target: str = "") -> Means:
    """The mean of every method at every level where it has a finished run, over its own finished seeds: for show, not to choose by."""
    found = {}
    for learner, level in itertools.product(study.learners, study.levels or (Level(0, 0),)):
        matrix = contributions(study, Side(learner, level), name, target)
        if matrix is not None:
            found[learner, level] = estimate(matrix, name)
    return found


def compare_all(study: StudyResults, means: Means, name: str, against: str = "") -> list[Comparison]:
    """Every method with the best baseline of its level; the p values corrected by Holm, level by level.

    The best baseline is chosen, and all means are taken, over the seeds that the method and the baselines have in
    common: a baseline whose runs failed for the hard draws would look better than it is. A baseline with fewer than
    `FEWEST_SEEDS` finished seeds is left aside where another one has them.

    Args:
        means: which methods have an answer at which level.
        against: a method to compare with instead, at every level.
    """
    rows = []
    for level in {level: None for _, level in means}:
        for learner in study.learners:
            if (learner, level) in means and (row := _compare(study, learner, level, name, against)):
                rows.append(row)
    given = {learner for learner, of in study.learners.items() if of.role == "oracle"}
    corrected: list[Comparison] = []
    for _, group in itertools.groupby(rows, key=lambda row: row.level):
        same = list(group)
        tested = [
            math.nan
            if given & {row.learner, row.baseline} or len(row.seeds) < FEWEST_SEEDS
            else row.difference.p
            for row in same
        ]
        corrected += [dataclasses.replace(x, p_holm=p) for x, p in zip(same, holm(tested), strict=True)]
    return corrected


def _compare(study: StudyResults, learner: str, level: Level, name: str, against: str) -> Comparison | None:
    rivals = [against] if against else rivals_of(study, level)
    if learner in rivals and (
        against or learner == _best(study, rivals, level, _common(study, rivals, level), name)
    ):
        return None
    seeds = _common(study, [learner, *rivals], level)
    if not seeds or not rivals:
        return None
    other = _best(study, rivals, level, seeds, name)
    if not other or other == learner:
        return None
    sides = paired_contributions(study, Side(learner, level), Side(other, level), name, seeds)
    if sides is None:
        return None
    ours, others = (estimate(side).mean for side in sides)
    return Comparison(learner, level, other, ours, others, estimate(difference(sides)), tuple(sorted(seeds)))


def rivals_of(study: StudyResults, level: Level) -> list[str]:
    """The baselines to be beaten: those with enough finished seeds, else those with any."""
    finished = {
        name: len(study.seeds(name, level)) if of.learns else FEWEST_SEEDS
        for name, of in study.learners.items()
        if of.baseline and study.seeds(name, level)
    }
    return [name for name, count in finished.items() if count >= FEWEST_SEEDS] or list(finished)


def _common(study: StudyResults, learners: Sequence[str], level: Level) -> set[int]:
    """Seeds that are finished for all of them; a method that learns nothing has an answer for every seed."""
    sets = [set(study.seeds(name, level)) for name in learners if study.learners[name].learns]
    if not sets:
        sets = [set(study.seeds(name, level)) for name in learners]
    return set.intersection(*sets) if sets else set()


def _best(study: StudyResults, names: Sequence[str], level: Level, seeds: set[int], name: str) -> str:
    found = {n: _mean(study, Side(n, level), name, seeds) for n in names}
    found = {n: value for n, value in found.items() if not math.isnan(value)}
    return max(found, key=lambda n: found[n], default="")


def _mean(study: StudyResults, side: Side, name: str, seeds: set[int]) -> float:
    own = seeds if study.learners[side.learner].learns else None
    return estimate(contributions(study, side, name, seeds=own)).mean


# ---------------------------------------------------------------- what can be shown, and what is missing


def tests_at(comparisons: Sequence[Comparison], level: Level) -> int:
    """The number of comparisons that are tested at a level, which Holm's correction counts."""
    return sum(c.level == level and not math.isnan(c.p_holm) for c in comparisons)


def smallest_p(study: StudyResults, tests: int) -> float:
    """The smallest p value that is possible after Holm's correction: so few patients can be flipped in so many ways only."""
    return min(1.0, tests * 2.0 ** (1 - len(set(study.groups))))


def patients_needed(tests: int) -> int:
    """How many scored patients it takes for a p value below `ALPHA` after Holm, however large the difference."""
    return next(n for n in itertools.count(2) if tests * 2.0 ** (1 - n) < ALPHA)


def labelled(study: StudyResults, level: Level) -> str:
    """ "1 labelled patient"; "all (38) labelled patients"."""
    return f"{level.text} labelled {study.unit}{'' if level.text == '1' else 's'}"


def missing_lines(study: StudyResults, comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for every comparison that lacks seeds: which, of whom, and why."""
    lines: dict[str, None] = {}
    for c in comparisons:
        for name in (c.learner, *rivals_of(study, c.level), *set_aside(study, c.level)):
            if text := missing_text(study, name, c.level):
                lines[f"With {labelled(study, c.level)}, {text}."] = None
        planned = study.planned(c.learner, c.level)
        if study.learners[c.learner].learns and len(c.seeds) < len(planned):
            lines[
                f"With {labelled(study, c.level)}, {study.learners[c.learner].title} is compared over {len(c.seeds)} of "
                f"{len(planned)} planned seeds ({_numbers(c.seeds)}), because only these have finished for it and for the "
                "baselines."
            ] = None
    return list(lines)


def set_aside(study: StudyResults, level: Level) -> list[str]:
    """Baselines that have cells at a level, and too few finished ones to be counted."""
    rivals = rivals_of(study, level)
    names = [n for n, of in study.learners.items() if of.baseline and n not in rivals]
    return [n for n in names if study.planned(n, level)]


def mean_gap(study: StudyResults, learner: str, other: str, level: Level, name: str) -> float:
    """How much better a method is than another over the seeds that both have finished; infinite where there are none."""
    seeds = _common(study, [learner, other], level)
    sides = paired_contributions(study, Side(learner, level), Side(other, level), name, seeds)
    return math.inf if sides is None else estimate(difference(sides)).mean


def missing_text(study: StudyResults, name: str, level: Level) -> str:
    """ "seeds 1, 2 of U-Net failed and seed 3 of U-Net has not run yet"; "" where nothing is missing."""
    if not study.learners[name].learns:
        return ""
    failed, pending = study.unfinished(name, level)
    parts = [
        f"{'seed' if len(seeds) == 1 else 'seeds'} {_numbers(seeds)} of {study.learners[name].title} "
        + (f"{'has' if len(seeds) == 1 else 'have'} not run yet" if seeds is pending else "failed")
        for seeds in (failed, pending)
        if seeds
    ]
    return " and ".join(parts)


def _numbers(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(seeds))) or "none"
