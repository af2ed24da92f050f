"""The tables of the page, as rows of text."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.files import write_csv
from samadapt.metrics import Metric, metric_info
from samadapt.report.comparisons import Comparison, Means, all_means
from samadapt.report.reading import CellResults, Level, StudyResults, labels_text
from samadapt.report.verdict import Gain, p_text, signed
from samadapt.statistics import Estimate


@dataclass(frozen=True)
class ReportTable:
    """Heads and rows of text; `marks` names a row's kind for its style."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...] = ()
    caption: str = ""
    words: int = 1  # columns from the left that are text, not numbers


def number(value: float, digits: int = 3) -> str:
    """A true minus; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def with_interval(e: Estimate, shown: Metric) -> str:
    """ "0.812 (0.774 to 0.850)"; round brackets are 95 % intervals everywhere."""
    if math.isnan(e.mean) or math.isnan(e.low):
        return number(e.mean, shown.digits)
    return f"{number(e.mean, shown.digits)} ({number(e.low, shown.digits)} to {number(e.high, shown.digits)})"


def means_table(study: StudyResults, means: Means, name: str) -> ReportTable:
    """Methods down, labelled patients across."""
    shown, levels = metric_info(name), list(dict.fromkeys(level for _, level in means))
    names = [n for n in study.learners if any(n == k[0] for k in means)]
    rows = [
        (
            study.learners[n].label,
            *(_with_seeds(study, n, x, means[n, x], shown) if (n, x) in means else "–" for x in levels),
        )
        for n in names
    ]
    head = ("method", *(f"{x.text} labelled" for x in levels))
    caption = (
        f"Mean {shown.title}, in brackets its 95 % confidence interval over the scored {study.unit}s and over the draws of "
        f"labelled {study.unit}s"
    )
    return ReportTable(head, tuple(rows), tuple(study.learners[n].mark for n in names), caption)


def _with_seeds(study: StudyResults, learner: str, level: Level, e: Estimate, shown: Metric) -> str:
    """Marked where it is not over all seeds: such a mean cannot be compared with the others."""
    done, planned = len(study.seeds(learner, level)), len(study.planned(learner, level))
    return with_interval(e, shown) + (f", {done} of {planned} seeds" if done < planned else "")


def comparison_table(
    study: StudyResults,
    comparisons: Sequence[Comparison],
    name: str,
    other: tuple[str, str] = ("best baseline", "mean of the baseline"),
) -> ReportTable:
    """Largest difference first, at each number of labelled patients.

    Args:
        other: the heads of the columns of who is compared with, and of its mean.
    """
    digits = metric_info(name).digits
    oracles = {n for n, of in study.learners.items() if of.role == "oracle"}
    ordered = sorted(
        comparisons,
        key=lambda c: (c.level.patients, c.learner in oracles, -c.difference.mean),
    )
    rows = [
        (
            c.level.text,
            study.learners[c.learner].label,
            study.learners[c.baseline].title,
            number(c.ours, digits),
            number(c.theirs, digits),
            signed(c.difference.mean, digits),
            str(len(c.seeds)),
            "–" if math.isnan(c.difference.low)
            else f"{signed(c.difference.low, digits)} to {signed(c.difference.high, digits)}",
            p_text(c.difference.p).removeprefix("= ") if c.learner not in oracles else "–",
            p_text(c.p_holm).removeprefix("= "),
            "excluded (ground truth)" if c.learner in oracles else c.verdict,
        )
        for c in ordered
    ]  # fmt: skip
    head = (
        "labelled", "method", other[0], "mean of the method", other[1], "difference", "seeds", "95 % interval", "p",
        "p (Holm)", "verdict",
    )  # fmt: skip
    firsts = [i == 0 or ordered[i - 1].level != c.level for i, c in enumerate(ordered)]
    marks = [
        f"{study.learners[c.learner].mark} {c.verdict.split()[0]}{' first' if first else ''}"
        for c, first in zip(ordered, firsts, strict=True)
    ]
    return ReportTable(head, tuple(rows), tuple(marks), words=3)


def write_comparisons(comparisons: Sequence[Comparison], path: Path) -> Path:
    """Every comparison in full, one a line; empty where there is no interval or no test."""
    head = (
        "learner", "compared_with", "labels", "labelled_patients", "seeds", "mean", "mean_compared_with",
        "difference", "ci95_low", "ci95_high", "p", "p_holm", "verdict",
    )  # fmt: skip

    def row(c: Comparison) -> tuple[object, ...]:
        d = c.difference
        numbers = (c.ours, c.theirs, d.mean, d.low, d.high, d.p, c.p_holm)
        written = ("" if math.isnan(x) else f"{x:.6g}" for x in numbers)
        labels = labels_text(c.level.labels)
        return (c.learner, c.baseline, labels, c.level.patients, d.n_seeds, *written, c.verdict)

    return write_csv(path, head, map(row, comparisons))


def gains_table(study: StudyResults, gains: Sequence[Gain], name: str) -> ReportTable:
    """What one more labelled patient is worth."""
    steps = list(dict.fromkeys((g.low, g.high) for g in gains))
    found = {(g.learner, g.low, g.high): g.per_patient for g in gains}
    names = [n for n in study.learners if any(g.learner == n for g in gains)]
    digits = gain_digits(gains)

    def field(e: Estimate | None) -> str:
        if e is None or math.isnan(e.mean):
            return "–"
        ends = "" if math.isnan(e.low) else f" ({signed(e.low, digits)} to {signed(e.high, digits)})"
        return signed(e.mean, digits) + ends

    rows = [(study.learners[n].label, *(field(found.get((n, *step))) for step in steps)) for n in names]
    head = ("method", *(f"from {a.patients} to {b.patients}" for a, b in steps))
    return ReportTable(head, tuple(rows), tuple(study.learners[n].mark for n in names))


def gain_digits(gains: Sequence[Gain]) -> int:
    """More where one of many labelled pictures changes little."""
    return 3 if max((abs(g.per_patient.mean) for g in gains), default=1.0) >= 0.005 else 5


def class_table(study: StudyResults, name: str) -> ReportTable:
    """Method and number of labels down, classes across, the mean over the classes last."""
    shown = metric_info(name)
    each = {target: all_means(study, name, target) for target in study.targets}
    overall = all_means(study, name) if len(study.targets) > 1 else {}
    columns = [*each.values(), *([overall] if overall else [])]
    rows, marks = [], []
    for learner in study.learners:
        levels = [x for n, x in columns[0] if n == learner]
        for level in levels if study.learners[learner].learns else levels[:1]:
            text = level.text if study.learners[learner].learns else "none"
            fields = (with_interval(c[learner, level], shown) for c in columns)
            rows.append((study.learners[learner].label, text, *fields))
            marks.append(study.learners[learner].mark)
    head = ("method", "labelled", *each, *(["mean"] if overall else []))
    return ReportTable(head, tuple(rows), tuple(marks), shown.title)


# ---------------------------------------------------------------- what is missing


def undefined_table(study: StudyResults) -> ReportTable:
    """How often a structure was missed, was predicted although it is absent, or is absent in both masks, over all seeds."""
    volume = next((m for m in study.metrics if m in ("volume_difference_ml", "volume_difference_px")), "")
    rows, marks = [], []
    for learner, level in _learner_levels(study):
        cells = list(study.seeds(learner, level).values())
        counts = np.sum([_missing(study, cell, volume) for cell in cells], axis=0)
        labelled = level.text if level else "none"
        rows.append((study.learners[learner].label, labelled, *(str(int(n)) for n in counts)))
        marks.append(study.learners[learner].mark)
    head = (
        "method",
        "labelled",
        "masks compared",
        "missed",
        "predicted but absent",
        "absent in both",
        "predicted, but no overlap (Dice 0)",
    )
    return ReportTable(head, tuple(rows), tuple(marks))


def _missing(study: StudyResults, cell: CellResults, volume: str) -> tuple[int, int, int, int, int]:
    """Masks compared, missed, predicted but absent, absent in both, and Dice 0 with both masks filled (or unknown which)."""
    dice = study.values(cell, "dsc")
    zero, undefined = dice == 0, np.isnan(dice)
    if not volume:
        return dice.size, 0, 0, int(undefined.sum()), int(zero.sum())
    distance = next(m for m in study.metrics if m in ("hd95_mm", "hd95_px"))
    one_empty = zero & np.isnan(study.values(cell, distance))
    gap = study.values(cell, volume)
    missed, invented = one_empty & (gap < 0), one_empty & (gap > 0)
    return (
        dice.size, int(missed.sum()), int(invented.sum()), int(undefined.sum()), int((zero & ~one_empty).sum()),
    )  # fmt: skip


def _learner_levels(study: StudyResults) -> list[tuple[str, Level | None]]:
    pairs: list[tuple[str, Level | None]] = []
    for name, learner in study.learners.items():
        levels = list(study.levels) if learner.learns else [None]
        pairs += [(name, level) for level in levels if study.seeds(name, level)]
    return pairs


def failed_table(study: StudyResults) -> ReportTable:
    """Every run without scores, with its message."""
    rows = [
        (
            study.learners[c.learner].title,
            labels_text(c.labels) if study.learners[c.learner].learns else "none",
            str(c.seed),
            c.failure or "It has not run yet.",
        )
        for c in study.cells
        if not c.done
    ]
    return ReportTable(("method", "labelled", "seed", "what happened"), tuple(rows), words=4)


# ---------------------------------------------------------------- what it cost


def budget_table(study: StudyResults) -> ReportTable:
    """Means over the seeds; what differs between seeds is not averaged away but listed."""
    rows: list[tuple[str, ...]] = []
    marks, unlabelled = [], []
    for learner, level in _learner_levels(study):
        costs = [dict(cell.cost or {}) for cell in study.seeds(learner, level).values()]
        unlabelled.append(_all(costs, "unlabelled"))
        trained = [c.get("training", {}) for c in costs]
        answered = [c.get("prediction", {}) for c in costs]
        rows.append(
            (
                study.learners[learner].label,
                level.text if level else "none",
                _all(costs, "steps"),
                _all(costs, "batch_size"),
                _all(costs, "parameters", thousands=True),
                _mean(trained, "wall_s"),
                _mean(trained, "cpu_s"),
                _mean(trained, "peak_rss_mib", 0),
                _mean(trained, "peak_gpu_mib", 0),
                _mean([{"s": a["wall_s"] / a["cases"]} for a in answered if a.get("cases")], "s", 2),
                _all(costs, "augmentation"),
                _all(costs, "selection"),
            )
        )
        marks.append(study.learners[learner].mark)
    head: tuple[str, ...] = (
        "method", "labelled", "steps", "batch size", "trained parameters", "wall time (s)", "CPU time (s)",
        "peak memory (MiB)", "peak GPU memory (MiB)", "inference time per case (s)", "augmentation",
        "checkpoint selection",
    )  # fmt: skip
    if any((cell.cost or {}).get("unlabelled") for cell in study.done):  # most studies have none
        head = (*head, "unlabelled scans")
        rows = [(*row, text) for row, text in zip(rows, unlabelled, strict=True)]
    return ReportTable(head, tuple(rows), tuple(marks))


def pretraining_lines(study: StudyResults) -> list[str]:
    """What was spent outside of the cells' own training."""
    lines = []
    path = study.folder / "encoding.json"
    if path.is_file():
        e = json.loads(path.read_text())
        lines.append(
            f"The frozen encoders ran once for all methods together: {e['slices']} slices and augmented views in "
            f"{e['seconds']:.0f} s, {e['bytes'] / 2**20:.0f} MiB of feature maps. This time is not in the table."
        )
    shared: dict[str, None] = {}
    for cell in study.done:
        spent = (cell.cost or {}).get("pretraining")
        if isinstance(spent, Mapping):
            shared[
                f"The pre-training of {study.learners[cell.learner].title} with seed {cell.seed} took "
                f"{float(spent.get('wall_s', 0)):.0f} s ({spent.get('steps', '?')} steps on {spent.get('slices', '?')} "
                f"unlabelled slices) and is shared {spent.get('shared', '')}. This time is not in the table."
            ] = None
    return [*lines, *shared]


def _all(costs: Sequence[Mapping[str, Any]], key: str, thousands: bool = False) -> str:
    values = dict.fromkeys(c[key] for c in costs if c.get(key) is not None)
    texts = [f"{v:,}".replace(",", " ") if thousands and isinstance(v, int) else str(v) for v in values]
    return " / ".join(texts) or "–"


def _mean(costs: Sequence[Mapping[str, float]], key: str, digits: int = 1) -> str:
    values = [c[key] for c in costs if key in c]
    return f"{np.mean(values):,.{digits}f}".replace(",", " ") if values else "–"


# ---------------------------------------------------------------- where it comes from


def facts(study: StudyResults) -> list[tuple[str, str]]:
    """What else could change the numbers."""
    note, data = study.note, study.note["data"]
    environment = note.get("environment", {})
    protocol = ", ".join(f"{k} {v}" for k, v in note["protocol"].items() if v not in (None, ""))
    packages = ", ".join(f"{k} {v}" for k, v in environment.get("packages", {}).items())
    machine = f"{environment.get('platform', '?')}, Python {environment.get('python', '?')}"
    return [
        ("data set", f"{data['name']}: {data.get('cases', '?')} cases; {data.get('group_rule', '')}"),
        ("data hash", str(data["hash"])),
        ("classes", ", ".join(map(str, data["classes"]))),
        (
            "test cases",
            f"{len(study.cases)} cases"
            + (f" of {len(set(study.groups))} patients" if study.unit == "patient" else "")
            + " held out for testing, the same for every method and seed",
        ),
        ("encoders", encoders(study)),
        ("protocol", protocol),
        ("samadapt", str(note.get("version", "?"))),
        ("packages", packages),
        (
            "machine",
            f"{machine}; {environment.get('gpu') or 'no GPU'}; threads per run: {note.get('threads', '?')}",
        ),
    ]


def encoders(study: StudyResults) -> str:
    """Which encoder each method reads, in words; methods that read the same one stand together."""
    readers: dict[str, list[str]] = {}
    for name, of in study.note["learners"].items():
        spec = of.get("spec", {})
        if spec.get("encoder", "pixels") != "pixels":
            checkpoint, side = spec.get("checkpoint"), spec.get("side")
            text = spec["encoder"] + (f" ({Path(str(checkpoint)).name} weights)" if checkpoint else "")
            readers.setdefault(text + (f", side {side}" if side else ""), []).append(
                study.learners[name].title
            )
    return "; ".join(f"{encoder}: {', '.join(titles)}" for encoder, titles in readers.items()) or "none"


def commands(study: StudyResults) -> list[str]:
    """The commands as they were typed, without the folder of the program; with the encoder, whose default may differ elsewhere."""
    given = study.note.get("encoder")
    return [
        shlex.join([Path(words[0]).name, *words[1:]])
        + (f" --encoder {given}" if given and not {"--encoder", "--grid"} & set(words) else "")
        for words in study.note.get("commands", [])
        if words
    ]


def hash_table(study: StudyResults) -> ReportTable:
    """Every finished run with the hash of its scores."""
    rows = [
        (
            study.learners[c.learner].title,
            labels_text(c.labels),
            str(c.seed),
            c.digest,
            str((c.cost or {}).get("scores_sha256", "–")),
        )
        for c in study.cells
        if c.done
    ]
    return ReportTable(
        ("method", "labelled", "seed", "folder", "SHA-256 of scores.csv"), tuple(rows), words=5
    )
