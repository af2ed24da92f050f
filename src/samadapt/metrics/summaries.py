"""From scores to a table: means over cases, intervals over patients, and what the means leave out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samadapt.metrics.table import metric_info
from samadapt.records import SamAdaptError, Score
from samadapt.statistics import studentised_interval

#: The target of the rows that average the classes.
MEAN = "mean"


@dataclass(frozen=True)
class Summary:
    """One metric of one target over the cases. `low` and `high` are nan where no interval can be given."""

    target: str
    metric: str
    mean: float
    low: float
    high: float
    n: int  # values in the mean: one a case, in the rows of `MEAN` one a case and class
    n_groups: int  # patients that they are from
    n_nan: int = 0  # values that are nan, and so not in the mean
    n_miss: int = 0  # those of them where only one of the masks had voxels: the distance to nothing
    note: str = ""


@dataclass(frozen=True)
class _Values:
    """The values of one metric, as patients x targets."""

    sums: np.ndarray  # (G, T)
    counts: np.ndarray  # (G, T)
    n_nan: int
    left_out: tuple[str, ...]  # targets without any value

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        if self.n == 0:
            return math.nan
        return float((self.sums.sum(0) / self.counts.sum(0)).mean())


_Cases = dict[str, float]  # case -> value
_Table = dict[str, dict[str, _Cases]]  # metric -> target -> values


def summarise(
    scores: Iterable[Score],
    groups: Mapping[str, str],
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> list[Summary]:
    """The mean over the cases of every target and metric, with a patient-bootstrap interval.

    Where there are several targets, rows of the target `MEAN` follow: the mean of the targets' means.

    Args:
        groups: case -> patient.
    """
    table = _tabulate(scores)
    rows = []
    for metric, targets in _rows(table):
        values = _by_patient({t: table[metric][t] for t in targets}, groups)
        interval = studentised_interval(values.sums, values.counts, confidence, resamples, seed)
        low, high = clip_interval(interval, metric)
        misses = sum(len(_missed(table, metric, target)) for target in targets)
        note = f"no value for {', '.join(values.left_out)}" if values.left_out and values.n else ""
        target, counts = targets[0] if len(targets) == 1 else MEAN, (values.n, len(values.sums), values.n_nan)
        rows.append(Summary(target, metric, values.mean, low, high, *counts, misses, note))
    return rows


# ---------------------------------------------------------------- the table behind


def _tabulate(scores: Iterable[Score]) -> _Table:
    table: _Table = {}
    for score in scores:
        cases = table.setdefault(score.metric, {}).setdefault(score.target, {})
        if score.case in cases:
            raise SamAdaptError(
                f"{score.case} {score.target} {score.metric} is scored twice; each case is scored once"
            )
        cases[score.case] = float(score.value)
    if not table:
        raise SamAdaptError("no scores: nothing to summarise; score at least one case")
    for metric, targets in table.items():
        if MEAN in targets and len(targets) > 1:
            raise SamAdaptError(
                f"a class is called {MEAN!r}, as the mean over the classes ({metric}); rename the class"
            )
    return table


def _rows(table: _Table) -> list[tuple[str, list[str]]]:
    """(metric, targets that it averages), target by target, the mean over all of them at the end."""
    names = list(dict.fromkeys(target for targets in table.values() for target in targets))
    single = [(metric, [name]) for name in names for metric in table if name in table[metric]]
    return single + [(metric, list(targets)) for metric, targets in table.items() if len(targets) > 1]


def _by_patient(targets: Mapping[str, _Cases], groups: Mapping[str, str]) -> _Values:
    """Sums and counts by patient. In sorted order, so that the order of the cases changes no digit."""
    used = {t: cases for t, cases in targets.items() if any(not math.isnan(v) for v in cases.values())}
    n_all = sum(len(cases) for cases in targets.values())
    entries = sorted((c, t, v) for t, cases in used.items() for c, v in cases.items() if not math.isnan(v))
    missing = next((case for cases in targets.values() for case in cases if case not in groups), None)
    if missing is not None:
        raise SamAdaptError(f"case {missing!r} has no patient in `groups`; give one for every case")
    patients = {g: i for i, g in enumerate(sorted({groups[case] for case, _, _ in entries}))}
    columns = {t: i for i, t in enumerate(used)}
    sums, counts = np.zeros((len(patients), len(used))), np.zeros((len(patients), len(used)))
    for case, target, value in entries:
        place = patients[groups[case]], columns[target]
        sums[place] += value
        counts[place] += 1
    return _Values(sums, counts, n_all - len(entries), tuple(t for t in targets if t not in used))


def _missed(table: _Table, metric: str, target: str) -> list[str]:
    """Cases whose value is nan although their Dice is a number: one of the two masks was empty."""
    dice = table.get("dsc", {}).get(target, {})
    values = table[metric][target]
    return [case for case, v in values.items() if math.isnan(v) and not math.isnan(dice.get(case, math.nan))]


def clip_interval(interval: tuple[float, float], metric: str) -> tuple[float, float]:
    """Within what the metric can be; an unbounded end of an unbounded metric leaves no interval."""
    info = metric_info(metric)
    low, high = max(interval[0], info.low), min(interval[1], info.high)
    if math.isnan(interval[0]) or not (math.isfinite(low) and math.isfinite(high)):
        return math.nan, math.nan
    return low, high


# ---------------------------------------------------------------- what each case adds to a mean over classes


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


# ---------------------------------------------------------------- for the terminal


def mean_dice(scores: Iterable[Score]) -> dict[str, tuple[float, str]]:
    """Case -> (mean Dice of its classes, the same in words); nan where no class of it has a value."""
    found: dict[str, dict[str, float]] = {}
    for score in scores:
        if score.metric == "dsc":
            found.setdefault(score.case, {})[score.target] = score.value
    means = {}
    for case, dice in found.items():
        known = [value for value in dice.values() if not math.isnan(value)]
        mean = sum(known) / len(known) if known else math.nan
        each = ", ".join(f"{name} {value:.2f}" for name, value in dice.items() if not math.isnan(value))
        means[case] = mean, f"mean Dice {mean:.2f} ({each})" if len(known) > 1 else f"Dice {mean:.2f}"
    return means


def format_table(summaries: Sequence[Summary], confidence: float = 0.95) -> str:
    """Aligned text, one row per target and metric, what is left out beside each mean."""
    head = ["target", "metric", "mean", f"{confidence:.0%} interval", "n", "patients", "undefined", "missed"]
    body, notes, before = [], [], ""
    for row in summaries:
        digits = metric_info(row.metric).digits
        interval = "-" if math.isnan(row.low) else f"{row.low:.{digits}f} .. {row.high:.{digits}f}"
        mean = "-" if math.isnan(row.mean) else f"{row.mean:.{digits}f}"
        left_out = (str(row.n_nan - row.n_miss or "-"), str(row.n_miss or "-"))
        name = "" if row.target == before else row.target
        body.append([name, row.metric, mean, interval, str(row.n), str(row.n_groups), *left_out])
        before = row.target
        if row.note:
            notes.append(f"{row.target} {row.metric}: {row.note}")
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    right = [False, False] + [True] * (len(head) - 2)
    lines = [
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)
        )
        for line in [head, ["-" * w for w in widths], *body]
    ]
    return "\n".join(line.rstrip() for line in [*lines, *notes]) + "\n"
