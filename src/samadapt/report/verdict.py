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
    "head", "baseline", "none", "uncertain", "few patients", "one seed", "unfinished baseline", "waiting", "failed", "unknown", "no baseline",
    "no head", "nobody",
]  # fmt: skip


@dataclass(frozen=True)
class Conclusion:
    """What is to be used at one number of labelled patients."""

    level: Level
    kind: Kind
    head: str = ""  # the method on a pretrained encoder
    baseline: str = ""
    comparison: Comparison | None = None
    missing: tuple[str, ...] = ()  # what did not run yet, or failed, in words
    tests: int = 0  # comparisons at this level that Holm's correction counts
    aside: tuple[str, ...] = ()  # baselines not counted, for too few of their seeds are finished, in words

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
        sentence = f"unfinished, {len(study.done)} of {len(study.cells)} runs have scores: {sentence}"
    elif left:
        sentence = f"{sentence[:-1]} ({left} of {len(study.cells)} runs failed)."
    details = [_detail(study, f, shown) for f in conclusions if f.comparison is not None]
    return Verdict(
        sentence[0].upper() + sentence[1:], tuple(details), _rule(study, shown), tuple(conclusions)
    )


def _find(
    study: StudyResults, means: Means, comparisons: Sequence[Comparison], level: Level, metric: str
) -> Conclusion:
    heads = [n for n, of in study.learners.items() if of.role == "contender"]
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
        kind = "unfinished baseline"  # over what is finished of it, a baseline that is not counted is as good
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
    """What the comparison of the best head with the best baseline allows to say.

    Args:
        tests: comparisons at this level that Holm's correction counts.
        pending: whether heads, and whether baselines, have runs that are still to come.
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
        "use {heads}: {where}, its mean {shown} is higher than that of the best baseline ({baselines}){by}",
        "{where}, use {heads} rather than {baselines}{aside}",
    ),
    "control": (
        "do not use {heads}: {where}, the mean {shown} of a control ({baselines}) is higher{by}",
        "{where}, do not use {heads}: a control ({baselines}) does better",
    ),
    "baseline": (
        "use {baselines}: {where}, its mean {shown} is higher than that of the best method on a pretrained encoder "
        "({heads}){by}",
        "{where}, use {baselines} rather than {heads}{aside}",
    ),
    "none": (
        "no difference shown: {where}, the mean {shown} does not distinguish the best method on a pretrained encoder "
        "({heads}) from the best baseline ({baselines}){aside}",
        "{where}, no difference is shown between {heads} and {baselines}",
    ),
    "uncertain": (
        "not decided: {where}, {heads} and {baselines} differ in mean {shown}{by}, but after correction for the number of "
        "methods compared the difference may be due to chance",
        "{where}, the difference between {heads} and {baselines} may be due to chance after correction for the number of "
        "methods compared",
    ),
    "few patients": (
        "{patients} are too few to decide: {where}, {heads} and {baselines} differ in mean {shown}{by}, but with fewer than "
        "{needed} {unit}s no difference, however large, can be statistically significant",
        "{where}, {patients} are too few to decide between {heads} and {baselines} (at least {needed} are needed)",
    ),
    "one seed": (
        "not decided: {where}, {heads} and {baselines} have only one finished seed in common, and a single draw of labelled "
        "{unit}s is not enough to decide; run more seeds",
        "{where}, a single finished seed in common is not enough to decide between {heads} and {baselines}",
    ),
    "unfinished baseline": (
        "not decided: {where}, {heads} is better than {baselines}, but not than a baseline of which too few seeds have "
        "finished ({unfinished})",
        "{where}, {heads} is better than {baselines}, but not than a baseline of which too few seeds have finished "
        "({unfinished})",
    ),
    "waiting": (
        "{where}, nothing can be decided yet: {missing}",
        "{where}, nothing can be decided yet: {missing}",
    ),
    "failed": (
        "{where}, there is nothing to compare: {missing}",
        "{where}, there is nothing to compare: {missing}",
    ),
    "no baseline": (
        "nothing to decide: this study has no baseline, so it is not known whether {heads}, the best of its methods by mean "
        "{shown}, is worth using; add one, for example with --baselines unet",
        "{where}, there is no baseline",
    ),
    "no head": (
        "nothing to decide: only baselines were run; the best of them by mean {shown} is {baselines}",
        "{where}, only baselines were run",
    ),
    "nobody": (
        "nothing to decide: only methods that are prompted with the ground truth were run",
        "{where}, no method has been trained yet",
    ),
    "unknown": (
        "nothing can be said about {heads} and {baselines}: there are too few {unit}s for an interval, or the difference is "
        "the same for all of them",
        "{where}, nothing can be said about {heads} and {baselines}",
    ),
}


def _clause(study: StudyResults, conclusions: list[Conclusion], shown: str, whole: bool) -> str:
    first = conclusions[0]
    kind = (
        "control"
        if first.kind == "baseline" and study.learners[first.baseline].role == "control"
        else first.kind
    )
    gaps = [abs(f.comparison.difference.mean) for f in conclusions if f.comparison]
    by = f", by {min(gaps):.3f}" + (f" to {max(gaps):.3f}" if len(gaps) > 1 else "") if gaps else ""
    aside = _listed(text for f in conclusions for text in f.aside)
    if aside and first.kind in ("head", "baseline", "uncertain"):
        by += f" (not counted: {aside})"
    count = len(set(study.groups))
    return _WORDS[kind][not whole].format(
        heads=_listed(study.learners[f.head].title for f in conclusions if f.head),
        baselines=_listed(study.learners[f.baseline].title for f in conclusions if f.baseline),
        where=f"with {_labelled(study, conclusions)}",
        patients=f"{count} test {study.unit}s",
        needed=max(patients_needed(max(f.tests, 1)) for f in conclusions),
        missing=_listed(text for f in conclusions for text in f.missing) or "runs are missing",
        shown=shown,
        unit=study.unit,
        by=by,
        aside=f" (not counted: {aside})" if aside else "",
        unfinished=aside,
    )


def _detail(study: StudyResults, conclusion: Conclusion, shown: str) -> str:
    row = conclusion.comparison
    assert row is not None
    ours, theirs = (study.learners[name].title for name in (row.learner, row.baseline))
    seeds = "one seed" if len(row.seeds) == 1 else f"{len(row.seeds)} seeds"
    text = (
        f"With {_labelled(study, [conclusion])}, the mean {shown} is {row.ours:.3f} for {ours} and {row.theirs:.3f} for "
        f"{theirs} over the {seeds} in common. The difference is {signed(row.difference.mean)}"
    )
    if math.isnan(row.difference.low):
        return f"{text}; no interval can be given."
    ends = f"{signed(row.difference.low)} to {signed(row.difference.high)}"
    tested = f"; p {p_text(row.p_holm)} after Holm's correction" if not math.isnan(row.p_holm) else ""
    return f"{text} (95 % confidence interval {ends}{tested}): {_plain(row, conclusion, ours)}."


def _plain(row: Comparison, conclusion: Conclusion, ours: str) -> str:
    if conclusion.kind == "few patients":
        return "there are too few test patients to decide"
    if conclusion.kind == "one seed" or row.verdict == "not tested":
        return "the difference is not tested" + (
            ", because one seed is not enough" if len(row.seeds) == 1 else ""
        )
    if row.verdict == "no difference shown":
        return "no difference is shown"
    return f"{ours} is {row.verdict} than the baseline"


def _rule(study: StudyResults, shown: str) -> str:
    return (
        f"How this is decided: at each number of labelled {study.unit}s, every method is compared with the best baseline on "
        f"the same {study.unit}s, over the seeds that the method and the baselines have all finished. The best baseline is "
        f"the one with the highest mean {shown} among the study's baselines and controls; it is chosen by the same scores "
        "that it is compared on, which favours baselines. "
        "The page says “use” where the 95 % confidence interval of the difference excludes 0 and the p value, corrected by "
        f"Holm's method for all methods compared at that number, is below {ALPHA}, with at least {FEWEST_SEEDS} seeds in "
        "common. “No difference shown” does not mean that there is no difference. Methods prompted with the ground truth "
        "are excluded."
    )


def _labelled(study: StudyResults, conclusions: Sequence[Conclusion]) -> str:
    numbers = [f.level.patients for f in conclusions]
    return f"{_listed(map(str, numbers))} labelled {study.unit}{'' if numbers == [1] else 's'}"


def _listed(names: object) -> str:
    """ "a, b and c", each once."""
    unique = list(dict.fromkeys(names))  # type: ignore[call-overload]
    return " and ".join([", ".join(unique[:-1]), unique[-1]] if len(unique) > 1 else unique)


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign; a true minus."""
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
    """The gain of every method that learns, over the seeds that both levels have: the same seed's labels are nested."""
    found = []
    for learner, (low, high) in itertools.product(study.learners, itertools.pairwise(study.levels)):
        if not study.learners[learner].learns or high.patients == low.patients:
            continue
        matrix = difference(paired_contributions(study, Side(learner, high), Side(learner, low), name))
        if matrix is not None:
            found.append(Gain(learner, low, high, estimate(matrix / (high.patients - low.patients))))
    return found
