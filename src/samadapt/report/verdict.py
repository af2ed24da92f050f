"""What the study says: every learner against the best baseline, and one sentence for the decision."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from samadapt.report.measures import Side, contributions, estimate, measure
from samadapt.report.reading import Level, Study
from samadapt.statistics import Estimate, holm

ALPHA = 0.05
Kind = Literal["head", "baseline", "none", "unknown", "no baseline", "no head", "nobody"]


@dataclass(frozen=True)
class Comparison:
    """A learner minus the best baseline (or another one that was asked for), at one number of labelled patients."""

    learner: str
    level: Level
    baseline: str
    ours: float  # means over the patients and all seeds of each
    theirs: float
    difference: Estimate
    p_holm: float = math.nan  # nan: no competitor, or no test

    @property
    def verdict(self) -> Literal["better", "worse", "no difference shown", "not tested"]:
        if math.isnan(self.p_holm) or math.isnan(self.difference.low):
            return "not tested"
        if self.p_holm < ALPHA and self.difference.low > 0:
            return "better"
        return "worse" if self.p_holm < ALPHA and self.difference.high < 0 else "no difference shown"


@dataclass(frozen=True)
class Finding:
    """What is to be used at one number of labelled patients."""

    level: Level
    kind: Kind
    head: str = ""  # the learner on a pretrained encoder
    baseline: str = ""
    comparison: Comparison | None = None

    @property
    def winner(self) -> str:
        return {"head": self.head, "baseline": self.baseline}.get(self.kind, "")


@dataclass(frozen=True)
class Verdict:
    """The first sentence of the page, what it rests on, and the rule that made it."""

    sentence: str
    details: tuple[str, ...]
    rule: str
    findings: tuple[Finding, ...]


Means = dict[tuple[str, Level], Estimate]


def all_means(study: Study, name: str, target: str = "") -> Means:
    """Of every learner at every level where it has a finished cell."""
    found = {}
    for learner, level in itertools.product(study.learners, study.levels or (Level(0, 0),)):
        matrix = contributions(study, Side(learner, level), None, name, target)
        if matrix is not None:
            found[learner, level] = estimate(matrix, measure(name))
    return found


def compare_all(study: Study, means: Means, name: str, against: str = "") -> list[Comparison]:
    """Every learner with the best baseline of its level; the p values corrected by Holm, level by level.

    Args:
        against: a learner to compare with instead, at every level.
    """
    rows = []
    for level in {level: None for _, level in means}:
        other = against or best(study, means, level, baselines=True)
        for learner in study.learners:
            if learner == other or (learner, level) not in means or (other, level) not in means:
                continue
            matrix = contributions(study, Side(learner, level), Side(other, level), name)
            ours, theirs = means[learner, level].mean, means[other, level].mean
            rows.append(Comparison(learner, level, other, ours, theirs, estimate(matrix)))
    given = {learner for learner, of in study.learners.items() if of.uses_truth}
    corrected: list[Comparison] = []
    for _, group in itertools.groupby(rows, key=lambda row: row.level):
        same = list(group)
        tested = [math.nan if given & {row.learner, row.baseline} else row.difference.p for row in same]
        corrected += [dataclasses.replace(x, p_holm=p) for x, p in zip(same, holm(tested), strict=True)]
    return corrected


def smallest_p(study: Study, comparisons: Sequence[Comparison]) -> float:
    """What p could be at the least, after Holm: so few patients can be flipped in so many ways only."""
    tests = [c.level for c in comparisons if not math.isnan(c.p_holm)]
    most = max((tests.count(level) for level in tests), default=0)
    return min(1.0, most * 2.0 ** (1 - len(set(study.groups))))


def best(study: Study, means: Means, level: Level, baselines: bool) -> str:
    """The baseline, or the learner on a pretrained encoder, with the highest mean; "" where there is none."""
    rivals = {
        name: means[name, level].mean
        for name, learner in study.learners.items()
        if (name, level) in means and learner.baseline == baselines and not learner.uses_truth
    }
    rivals = {name: mean for name, mean in rivals.items() if not math.isnan(mean)}
    return max(rivals, key=lambda name: rivals[name], default="")


# ---------------------------------------------------------------- in words


def judge(study: Study, means: Means, comparisons: Sequence[Comparison], name: str) -> Verdict:
    """The decision, level by level, then said in one sentence."""
    every = [_find(study, means, comparisons, level) for level in {level: None for _, level in means}]
    # A learner that is given the truth has an answer at every level, also where nobody has learned yet.
    findings = [f for f in every if f.kind != "nobody"] or every
    shown = measure(name).title
    groups = [list(g) for _, g in itertools.groupby(findings, key=lambda f: (f.kind, f.winner))]
    whole = len(groups) == 1
    parts = [_whole(study, g, shown) if whole else _part(study, g) for g in groups]
    sentence = "; ".join(parts)
    sentence = sentence[0].upper() + sentence[1:] + ("" if whole else f" (by mean {shown})") + "."
    details = [_detail(study, f, shown) for f in findings if f.comparison is not None]
    return Verdict(sentence, tuple(details), _rule(study, shown), tuple(findings))


def _find(study: Study, means: Means, comparisons: Sequence[Comparison], level: Level) -> Finding:
    head, baseline = (best(study, means, level, baselines=side) for side in (False, True))
    if not baseline:
        return Finding(level, "no baseline" if head else "nobody", head)
    if not head:
        return Finding(level, "no head", "", baseline)
    here = {c.learner: c for c in comparisons if c.level == level and not study.learners[c.learner].baseline}
    better = [c.learner for c in here.values() if c.verdict == "better"]
    if better:
        head = max(better, key=lambda learner: means[learner, level].mean)
    kinds: dict[str, Kind] = {"better": "head", "worse": "baseline", "no difference shown": "none"}
    return Finding(level, kinds.get(here[head].verdict, "unknown"), head, baseline, here[head])


def _whole(study: Study, findings: list[Finding], shown: str) -> str:
    """Where all numbers of labelled patients say the same."""
    heads = _listed(study.learners[f.head].title for f in findings if f.head)
    baselines = _listed(study.learners[f.baseline].title for f in findings if f.baseline)
    where = f"with {_labelled(study, findings)}"
    gaps = [abs(f.comparison.difference.mean) for f in findings if f.comparison]
    by = ""
    if gaps:
        by = f", by {min(gaps):.3f}" + (f" to {max(gaps):.3f}" if len(gaps) > 1 else "")
    match findings[0].kind:
        case "head":
            return (
                f"use {heads}: {where} its mean {shown} is higher than that of the best baseline "
                f"({baselines}){by}"
            )
        case "baseline" if study.learners[findings[0].baseline].control:
            return f"do not use {heads}: {where} the mean {shown} of a control ({baselines}) is higher{by}"
        case "baseline":
            return (
                f"use {baselines}: {where} its mean {shown} is higher than that of the best learner on a "
                f"pretrained encoder ({heads}){by}"
            )
        case "none":
            return (
                f"no difference shown: {where}, the best learner on a pretrained encoder ({heads}) and the best "
                f"baseline ({baselines}) cannot be told apart by their mean {shown}"
            )
        case "no baseline":
            return (
                f"nothing to decide: no baseline was run, so it is not known whether {heads}, the best of "
                f"these by mean {shown}, is worth using; add unet to the learners"
            )
        case "no head":
            return f"nothing to decide: only baselines were run; the best by mean {shown} is {baselines}"
        case "nobody":
            return "nothing to decide: only learners that are given the truth were run"
    return f"nothing can be told between {heads} and {baselines}: too few {study.unit}s, or all alike, for an interval"


def _part(study: Study, findings: list[Finding]) -> str:
    """One of several answers, each for some numbers of labelled patients."""
    where = f"with {_labelled(study, findings)}"
    heads = _listed(study.learners[f.head].title for f in findings if f.head)
    baselines = _listed(study.learners[f.baseline].title for f in findings if f.baseline)
    match findings[0].kind:
        case "head":
            return f"{where} use {heads} rather than {baselines}"
        case "baseline" if study.learners[findings[0].baseline].control:
            return f"{where} do not use {heads}: a control ({baselines}) does better"
        case "baseline":
            return f"{where} use {baselines} rather than {heads}"
        case "none":
            return f"{where} no difference shown between {heads} and {baselines}"
    return f"{where} nothing can be told"


def _detail(study: Study, finding: Finding, shown: str) -> str:
    row = finding.comparison
    assert row is not None
    ours, theirs = (study.learners[name].title for name in (row.learner, row.baseline))
    text = (
        f"With {_labelled(study, [finding])}: {ours} {row.ours:.3f}, {theirs} {row.theirs:.3f} mean {shown}; "
        f"difference {signed(row.difference.mean)}"
    )
    if math.isnan(row.difference.low):
        return f"{text}, without an interval."
    ends = f"{signed(row.difference.low)} to {signed(row.difference.high)}"
    return f"{text}, 95 % interval {ends}, p {p_text(row.p_holm)} after Holm: {_plain(row)}."


def _plain(row: Comparison) -> str:
    return (
        row.verdict
        if row.verdict in ("no difference shown", "not tested")
        else f"{row.verdict} than the baseline"
    )


def _rule(study: Study, shown: str) -> str:
    return (
        f"The rule: at each number of labelled {study.unit}s, every learner is compared with the best baseline, the "
        f"learner without a pretrained encoder that has the highest mean {shown}, on the same {study.unit}s and the same "
        "seeds. “Use” is said where the 95 % interval of the difference leaves out 0 and its p value, corrected "
        f"by Holm for all learners compared at that number, is below {ALPHA}. Everything else is “no difference "
        "shown”, which does not mean that there is none. Learners that are given the truth never count."
    )


def _labelled(study: Study, findings: Sequence[Finding]) -> str:
    numbers = [f.level.patients for f in findings]
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


def gains(study: Study, name: str) -> list[Gain]:
    """Of every learner that learns, over the seeds that both levels have: the same seed's labels are nested."""
    found = []
    for learner, (low, high) in itertools.product(study.learners, itertools.pairwise(study.levels)):
        if not study.learners[learner].learns or high.patients == low.patients:
            continue
        matrix = contributions(study, Side(learner, high), Side(learner, low), name)
        if matrix is not None:
            found.append(Gain(learner, low, high, estimate(matrix / (high.patients - low.patients))))
    return found
