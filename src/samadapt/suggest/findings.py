"""What a simulation shows: each strategy against random in the same draws, and how many labels it saves, if any."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samadapt.statistics import Estimate, holm, over_patients_and_seeds
from samadapt.types import Score

RANDOM = "random"
ALPHA = 0.05
#: Fewer draws than this decide nothing.
FEWEST_DRAWS = 2

#: (strategy, number of labelled patients) -> seed -> patient -> score.
Results = Mapping[tuple[str, int], Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Saved:
    """How many patients more random would have to label for the same score; infinite: more than were tried.

    Args:
        low, high: of the interval of the difference, by random's curve of means.
        most: how far random's curve goes beyond this number of patients.
    """

    labels: float
    low: float
    high: float
    most: int

    def text(self) -> str:
        """In words."""

        def one(value: float) -> str:
            return f"more than {self.most}" if math.isinf(value) else f"{value:.1f}"

        return f"{one(self.labels)} ({one(self.low)} to {one(self.high)})"


@dataclass(frozen=True)
class Finding:
    """A strategy at one number of labelled patients.

    Args:
        score: mean over patients and draws.
        difference: to random with as many labels, in the same draws.
        p: corrected by Holm for all comparisons of the simulation.
        saved: None where random's curve does not rise, so that scores cannot be told in labels.
    """

    strategy: str
    labels: int
    score: float
    difference: Estimate | None = None
    p: float = math.nan
    saved: Saved | None = None

    @property
    def verdict(self) -> str:
        """ "better", "worse", "no difference shown" or "not tested"; "" of random itself."""
        if self.difference is None:
            return ""
        if math.isnan(self.p) or math.isnan(self.difference.low):
            return "not tested"
        if self.p < ALPHA and self.difference.low > 0:
            return "better"
        return "worse" if self.p < ALPHA and self.difference.high < 0 else "no difference shown"


def patient_scores(scores: Sequence[Score], patient_of: Mapping[str, str], task: str) -> dict[str, float]:
    """Patient -> mean Dice over cases and structures, or share of right answers. Undefined values do not count."""
    found: dict[str, list[float]] = defaultdict(list)
    if task == "segmentation":
        for score in scores:
            if score.metric == "dsc" and not math.isnan(score.value):
                found[patient_of[score.case]].append(score.value)
    else:
        cases: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"probability": [], "truth": []})
        for score in scores:
            cases[score.case][score.metric].append(score.value)
        for case, values in cases.items():
            answer, truth = np.array(values["probability"]), np.array(values["truth"])
            one = truth.sum() == 1 and abs(answer.sum() - 1) < 1e-3
            right = answer.argmax() == truth.argmax() if one else ((answer >= 0.5) == (truth > 0)).mean()
            found[patient_of[case]].append(float(right))
    return {patient: float(np.mean(values)) for patient, values in found.items()}


def compare(results: Results) -> list[Finding]:
    """Each strategy with random, over the draws that both have finished; random's own curve first."""
    curve = {n: _mean(by_seed) for (name, n), by_seed in sorted(results.items()) if name == RANDOM}
    found = [Finding(RANDOM, n, score) for n, score in curve.items()]
    rows = []
    for (name, n), by_seed in results.items():
        if name == RANDOM or (RANDOM, n) not in results:
            continue
        other = results[RANDOM, n]
        seeds = [seed for seed in by_seed if seed in other]
        difference = over_patients_and_seeds(_differences(by_seed, other, seeds))
        rows.append(Finding(name, n, _mean(by_seed), difference, saved=_saved(curve, n, difference)))
    tested = [
        row.difference.p if row.difference and row.difference.n_seeds >= FEWEST_DRAWS else math.nan
        for row in rows
    ]
    return found + [
        Finding(row.strategy, row.labels, row.score, row.difference, p, row.saved)
        for row, p in zip(rows, holm(tested), strict=True)
    ]


def _mean(by_seed: Mapping[int, Mapping[str, float]]) -> float:
    return float(np.mean([np.mean(list(scores.values())) for scores in by_seed.values()]))


def _differences(
    ours: Mapping[int, Mapping[str, float]], theirs: Mapping[int, Mapping[str, float]], seeds: Sequence[int]
) -> np.ndarray:
    """(G, S) of the patients that have a score in all of them."""
    sets = [set(side[seed]) for side in (ours, theirs) for seed in seeds]
    patients = sorted(set.intersection(*sets)) if sets else []
    return np.array([[ours[s][p] - theirs[s][p] for s in seeds] for p in patients], float).reshape(
        len(patients), len(seeds)
    )


def _saved(curve: Mapping[int, float], n: int, difference: Estimate) -> Saved | None:
    counts = sorted(curve)
    rising = np.maximum.accumulate([curve[count] for count in counts])
    if not rising[-1] > rising[0]:
        return None

    def labels_for(score: float) -> float:
        """The fewest labels with which random's curve reaches a score; infinite where it does not."""
        above = np.flatnonzero(rising >= score)
        if math.isnan(score) or not len(above):
            return math.nan if math.isnan(score) else math.inf
        i = int(above[0])
        if i == 0:
            return float(counts[0])
        share = (score - rising[i - 1]) / (rising[i] - rising[i - 1])
        return float(counts[i - 1] + share * (counts[i] - counts[i - 1]))

    own = labels_for(curve[n])
    labels, low, high = (
        labels_for(curve[n] + d) - own for d in (difference.mean, difference.low, difference.high)
    )
    return Saved(labels, low, high, counts[-1] - n)


# ---------------------------------------------------------------- in words


def findings_text(findings: Sequence[Finding], metric: str) -> str:
    """A table for the terminal, and what follows from it."""
    head = ("strategy", "labelled", metric, "minus random (95 %)", "p (Holm)", "labels saved")
    rows: list[tuple[str, ...]] = [head]
    for row in findings:
        cells = [row.strategy, str(row.labels), f"{row.score:.3f}", "", "", ""]
        if row.difference is not None:
            d = row.difference
            interval = "" if math.isnan(d.low) else f" ({d.low:+.3f} to {d.high:+.3f})"
            cells[3] = f"{d.mean:+.3f}{interval}"
            cells[4] = "not tested" if math.isnan(row.p) else f"{row.p:.3f}"
            cells[5] = _saved_text(row)
        rows.append(tuple(cells))
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip() for cells in rows
    ]
    return "\n".join([*lines, verdict_text(findings)])


def _saved_text(row: Finding) -> str:
    if row.saved is None:
        return "cannot be told: random's curve does not rise"
    if row.verdict == "better":
        return row.saved.text()
    return "none can be shown"


def verdict_text(findings: Sequence[Finding]) -> str:
    """Which strategies are better than random, or that none is."""
    compared = [row for row in findings if row.difference is not None]
    better = [f"{row.strategy} with {row.labels}" for row in compared if row.verdict == "better"]
    worse = [f"{row.strategy} with {row.labels}" for row in compared if row.verdict == "worse"]
    if not compared:
        return "No strategy was compared with random."
    patients = max(row.difference.n_groups for row in compared if row.difference)
    draws = max(row.difference.n_seeds for row in compared if row.difference)
    far = f"as far as {patients} scored patients and {draws} draw{'s'[: draws != 1]} can tell"
    lines = []
    if all(row.verdict == "not tested" for row in compared):
        return f"Nothing was tested: {patients} scored patients and {draws} draws are too few."
    lines.append(
        f"Better than random: {', '.join(better)} labelled patients."
        if better
        else f"No strategy was shown to be better than random: random does as well, {far}."
    )
    if worse:
        lines.append(f"Worse than random: {', '.join(worse)} labelled patients.")
    return "\n".join(lines)
