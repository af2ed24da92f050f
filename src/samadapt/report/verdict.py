"""What the study says: one sentence for the decision, and what it rests on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from samadapt.metrics import metric_info
from samadapt.report.comparisons import (
    ALPHA,
    FEWEST_SEEDS,
    Comparison,
    Means,
    mean_gap,
    missing_text,
    patients_needed,
    set_aside,
    smallest_p,
    tests_at,
)
from samadapt.report.measures import Side, difference, estimate, paired_contributions
from samadapt.report.reading import Level, StudyResults
from samadapt.statistics import Estimate

Kind = Literal[
    "head", "baseline", "none", "uncertain", "few patients", "one seed", "waiting", "failed", "unknown", "no baseline",
    "no head", "nobody",
]  # fmt: skip


@dataclass(frozen=True)
class Conclusion:
    """What is to be used at one number of labelled patients."""

    level: Level
    kind: Kind
    head: str = ""  # the learner on a pretrained encoder
    baseline: str = ""
    comparison: Comparison | None = None
    missing: tuple[str, ...] = ()  # what did not run yet, or failed, in words
    tests: int = 0  # comparisons at this level that Holm's correction counts
    aside: tuple[
        str, ...
    ] = ()  # baselines that are not counted, for too few of their seeds are finished, in words

    @property
    def winner(self) -> str:
        return {"head": self.head, "baseline": self.baseline}.get(self.kind, "")


@dataclass(frozen=True)
class Verdict:
    """The first sentence of the page, what it rests on, and the rule that made it."""

    sentence: str
    details: tuple[str, ...]
    rule: str
    conclusions: tuple[Conclusion, ...]


def judge(study: StudyResults, means: Means, comparisons: Sequence[Comparison], name: str) -> Verdict:
    """The decision, level by level, then said in one sentence."""
    every = [_find(study, means, comparisons, level, name) for level in {level: None for _, level in means}]
    # A method that is prompted with the truth has an answer at every level, also where nobody has learned yet.
    conclusions = [f for f in every if f.kind != "nobody"] or every
    shown = metric_info(name).title
    groups = [list(g) for _, g in itertools.groupby(conclusions, key=lambda f: (f.kind, f.winner, f.missing))]
    whole = len(groups) == 1
    parts = [_clause(study, g, shown, whole) for g in groups]
    sentence = "; ".join(parts) + ("" if whole else f" (by mean {shown})") + "."
    left = len(study.cells) - len(study.done)
    if any(cell.failure is None and not cell.done for cell in study.cells):
        sentence = f"unfinished: {len(study.done)} of {len(study.cells)} cells; {sentence}"
    elif left:
        sentence = f"{sentence[:-1]} ({left} of {len(study.cells)} cells failed)."
    details = [_detail(study, f, shown) for f in conclusions if f.comparison is not None]
    return Verdict(
        sentence[0].upper() + sentence[1:], tuple(details), _rule(study, shown), tuple(conclusions)
    )


def _find(
    study: StudyResults, means: Means, comparisons: Sequence[Comparison], level: Level, metric: str
) -> Conclusion:
    heads = [n for n, of in study.learners.items() if of.contender]
    baselines = [n for n, of in study.learners.items() if of.baseline]
    done = [[n for n in names if (n, level) in means] for names in (heads, baselines)]
    tests = tests_at(comparisons, level)
    if not any(done):
        return Conclusion(level, "nobody")
    best = [max(names, key=lambda n: means[n, level].mean, default="") for names in done]
    if not heads or not baselines:
        return Conclusion(level, "no head" if not heads else "no baseline", best[0], best[1])
    missing = tuple(text for n in (*baselines, *heads) if (text := missing_text(study, n, level)))
    pending = [any(study.unfinished(n, level)[1] for n in names) for names in (heads, baselines)]
    here = {c.learner: c for c in comparisons if c.level == level and c.learner in heads}
    if not here:
        return Conclusion(level, "waiting" if any(pending) else "failed", best[0], best[1], missing=missing)
    row = _leading(here, study, means, level)
    aside = set_aside(study, level)
    kind = _kind(study, row, tests, pending)
    if kind == "head" and any(mean_gap(study, row.learner, name, level, metric) <= 0 for name in aside):
        kind = "one seed"  # over what is finished of it, a baseline that is not counted is as good
    told = tuple(
        f"{study.learners[n].title}, {len(study.seeds(n, level))} of {len(study.planned(n, level))} seeds finished"
        for n in aside
    )
    return Conclusion(
        level, kind, row.learner, row.baseline, row, missing if kind == "waiting" else (), tests, told
    )


def _leading(here: dict[str, Comparison], study: StudyResults, means: Means, level: Level) -> Comparison:
    """The comparison that the level is decided by: of the best head that is better, else of the best that is tested."""
    for verdicts in (("better",), ("worse", "no difference shown"), ("not tested",)):
        rows = [c for c in here.values() if c.verdict in verdicts]
        if rows:
            return max(rows, key=lambda c: (c.ours, means[c.learner, level].mean))
    raise AssertionError("every comparison has one of these verdicts")


def _kind(study: StudyResults, row: Comparison, tests: int, pending: Sequence[bool]) -> Kind:
    """Args:
    pending: whether heads, and whether baselines, have cells that did not run yet.
    """
    if len(row.seeds) < FEWEST_SEEDS and study.learners[row.learner].learns:
        return "waiting" if any(pending) else "one seed"
    if row.verdict == "not tested":
        return "unknown"
    if smallest_p(study, tests) >= ALPHA:
        return "few patients"
    if row.verdict == "better":
        return "waiting" if pending[1] else "head"
    if any(pending):
        return "waiting"
    if row.verdict == "worse":
        return "baseline"
    return "none" if row.difference.low <= 0 <= row.difference.high else "uncertain"


# ---------------------------------------------------------------- in words


#: kind -> how it is said where all numbers of labelled patients say the same, and for some of them.
_WORDS: dict[str, tuple[str, str]] = {
    "head": (
        "use {heads}: {where} its mean {shown} is higher than that of the best baseline ({baselines}){by}",
        "{where} use {heads} rather than {baselines}{aside}",
    ),
    "control": (
        "do not use {heads}: {where} the mean {shown} of a control ({baselines}) is higher{by}",
        "{where} do not use {heads}: a control ({baselines}) does better",
    ),
    "baseline": (
        "use {baselines}: {where} its mean {shown} is higher than that of the best learner on a pretrained encoder "
        "({heads}){by}",
        "{where} use {baselines} rather than {heads}{aside}",
    ),
    "none": (
        "no difference shown: {where}, the best learner on a pretrained encoder ({heads}) and the best baseline "
        "({baselines}) cannot be told apart by their mean {shown}",
        "{where} no difference shown between {heads} and {baselines}",
    ),
    "uncertain": (
        "not decided: {where} the mean {shown} of {heads} and of {baselines} differ{by}, but chance is not ruled out once "
        "it is counted how many learners were compared",
        "{where} the difference between {heads} and {baselines} may be chance, counting how many learners were compared",
    ),
    "few patients": (
        "{patients} are too few to decide: {where} the mean {shown} of {heads} and of {baselines} differ{by}, and no "
        "difference, however large, could be shown with fewer than {needed} {unit}s",
        "{where} {patients} are too few to decide between {heads} and {baselines} (at least {needed})",
    ),
    "one seed": (
        "not decided: {where} {heads} and {baselines} have one finished seed in common, and one draw of labelled {unit}s "
        "decides nothing; run more seeds",
        "{where} one finished seed in common decides nothing between {heads} and {baselines}",
    ),
    "waiting": ("{where} nothing is decided yet: {missing}", "{where} nothing is decided yet: {missing}"),
    "failed": (
        "{where} there is nothing to compare: {missing}",
        "{where} there is nothing to compare: {missing}",
    ),
    "no baseline": (
        "nothing to decide: no baseline is part of this study, so it is not known whether {heads}, the best of these by "
        "mean {shown}, is worth using; add unet to the learners",
        "{where} there is no baseline",
    ),
    "no head": (
        "nothing to decide: only baselines were run; the best by mean {shown} is {baselines}",
        "{where} only baselines were run",
    ),
    "nobody": (
        "nothing to decide: only methods that are prompted with the ground truth were run",
        "{where} nobody has learned yet",
    ),
    "unknown": (
        "nothing can be told between {heads} and {baselines}: too few {unit}s, or all alike, for an interval",
        "{where} nothing can be told between {heads} and {baselines}",
    ),
}


def _clause(study: StudyResults, conclusions: list[Conclusion], shown: str, whole: bool) -> str:
    first = conclusions[0]
    kind = "control" if first.kind == "baseline" and study.learners[first.baseline].control else first.kind
    gaps = [abs(f.comparison.difference.mean) for f in conclusions if f.comparison]
    by = f", by {min(gaps):.3f}" + (f" to {max(gaps):.3f}" if len(gaps) > 1 else "") if gaps else ""
    aside = _listed(text for f in conclusions for text in f.aside)
    if aside and first.kind in ("head", "baseline", "none", "uncertain"):
        by += f" (not counted: {aside})"
    count = len(set(study.groups))
    return _WORDS[kind][not whole].format(
        heads=_listed(study.learners[f.head].title for f in conclusions if f.head),
        baselines=_listed(study.learners[f.baseline].title for f in conclusions if f.baseline),
        where=f"with {_labelled(study, conclusions)}",
        patients=f"{count} scored {study.unit}s",
        needed=max(patients_needed(max(f.tests, 1)) for f in conclusions),
        missing=_listed(text for f in conclusions for text in f.missing) or "cells did not run yet",
        shown=shown,
        unit=study.unit,
        by=by,
        aside=f" (not counted: {aside})" if aside else "",
    )


def _detail(study: StudyResults, conclusion: Conclusion, shown: str) -> str:
    row = conclusion.comparison
    assert row is not None
    ours, theirs = (study.learners[name].title for name in (row.learner, row.baseline))
    text = (
        f"With {_labelled(study, [conclusion])}: {ours} {row.ours:.3f}, {theirs} {row.theirs:.3f} mean {shown} over the "
        f"{len(row.seeds)} seed{'s' if len(row.seeds) != 1 else ''} in common; difference {signed(row.difference.mean)}"
    )
    if math.isnan(row.difference.low):
        return f"{text}, without an interval."
    ends = f"{signed(row.difference.low)} to {signed(row.difference.high)}"
    tested = f", p {p_text(row.p_holm)} after Holm" if not math.isnan(row.p_holm) else ""
    return f"{text}, 95 % interval {ends}{tested}: {_plain(row, conclusion)}."


def _plain(row: Comparison, conclusion: Conclusion) -> str:
    if conclusion.kind == "few patients":
        return "too few scored patients to decide"
    if conclusion.kind == "one seed":
        return "not tested, for one seed decides nothing"
    return (
        row.verdict
        if row.verdict in ("no difference shown", "not tested")
        else f"{row.verdict} than the baseline"
    )


def _rule(study: StudyResults, shown: str) -> str:
    return (
        f"The rule: at each number of labelled {study.unit}s, every learner is compared with the best baseline (of the "
        "networks from scratch, those that start from ImageNet's classes, and the controls, the one with the highest mean "
        f"{shown}) on the same {study.unit}s and over the "
        "seeds that are finished for the learner and for the baselines. The best baseline is chosen by the scores that it "
        "is compared on, which favours baselines. “Use” is said where the 95 % interval of the difference leaves "
        f"out 0 and its p value, corrected by Holm for all learners compared at that number, is below {ALPHA}, with "
        f"{FEWEST_SEEDS} seeds in common at least. “No difference shown” does not mean that there is none. "
        "Methods prompted with the ground truth are excluded."
    )


def _labelled(study: StudyResults, conclusions: Sequence[Conclusion]) -> str:
    numbers = [f.level.patients for f in conclusions]
    return f"{_listed(map(str, numbers))} labelled {study.unit}{'' if numbers == [1] else 's'}"


def _listed(names: object) -> str:
    """ "a, b and c", each once."""
    unique = list(dict.fromkeys(names))  # type: ignore[call-overload]
    return " and ".join([", ".join(unique[:-1]), unique[-1]] if len(unique) > 1 else unique)


def signed(value: float, digits: int = 3) -> str:
    """With its sign; a true minus."""
    return "–" if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "−")


def p_text(p: float) -> str:
    """A p value."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"= {p:.3f}"


# ---------------------------------------------------------------- one more patient


@dataclass(frozen=True)
class Gain:
    """What one more labelled patient is worth between two consecutive levels."""

    learner: str
    low: Level
    high: Level
    per_patient: Estimate


def gains(study: StudyResults, name: str) -> list[Gain]:
    """Of every learner that learns, over the seeds that both levels have: the same seed's labels are nested."""
    found = []
    for learner, (low, high) in itertools.product(study.learners, itertools.pairwise(study.levels)):
        if not study.learners[learner].learns or high.patients == low.patients:
            continue
        matrix = difference(paired_contributions(study, Side(learner, high), Side(learner, low), name))
        if matrix is not None:
            found.append(Gain(learner, low, high, estimate(matrix / (high.patients - low.patients))))
    return found
