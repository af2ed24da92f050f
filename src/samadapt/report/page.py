"""The report: one HTML page that needs nothing else, one tidy table, one figure for a paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from samadapt.files import demand_writable, write_bytes
from samadapt.metrics import metric_info
from samadapt.records import SamAdaptError
from samadapt.report import about, figures, tables
from samadapt.report.attention import saliency_section
from samadapt.report.comparisons import Comparison, Means, all_means, compare_all, missing_lines
from samadapt.report.measures import Side, contributions
from samadapt.report.reading import Level, StudyResults, read_study, write_table
from samadapt.report.verdict import Gain, Verdict, gains, judge, signed
from samadapt.report.worst import seed_mean, shown_cases

#: Distances between surfaces, which overlap alone does not show: they are never folded away.
_SURFACE = ("hd95_mm", "hd95_px", "nsd", "nsd_px")
_ROC = "One class against the rest; each curve is the mean over the seeds."
_RELIABILITY = (
    "Predicted probability of the chosen class against how often it is correct, in ten bins over all seeds. On the "
    "diagonal, the probabilities are calibrated; below it, the method is overconfident."
)
_CONFUSION = "The share of each true class that was predicted as each class, over all seeds."


def write_report(
    experiment_dir: str | Path, out: str | Path | None = None, against: str | None = None
) -> Path:
    """Report a study from its scores alone: report.html, table.csv, comparisons.csv, <metric>_vs_labels.svg and .png.

    Args:
        experiment_dir: the `--out` of an experiment, finished or not.
        out: folder to write to; the study's own by default.
        against: a method that all others are compared with too, for a question that is not about the best baseline
            (what does a control lack?). The verdict stays with the best baseline.

    Returns:
        The page.

    Example:
        >>> write_report("experiments/acdc")  # doctest: +SKIP
        PosixPath('experiments/acdc/report.html')
    """
    study = read_study(experiment_dir)
    if against is not None and against not in study.learners:
        raise SamAdaptError(
            f"no method {against!r} in {experiment_dir}; --against knows: {', '.join(study.learners)}"
        )
    out = Path(experiment_dir if out is None else out)
    demand_writable(out, "--out")
    name = study.leading_metric
    means = all_means(study, name)
    comparisons = compare_all(study, means, name)
    verdict = judge(study, means, comparisons, name)
    asked = compare_all(study, means, name, against) if against else []
    write_table(study, out / "table.csv")
    others = [c for c in comparisons if c.baseline != against]  # each once
    tables.write_comparisons([*others, *asked], out / "comparisons.csv")
    with figures.style():  # type: ignore[attr-defined]
        curve = figures.label_curves(study, means, _seed_means(study, means, name), name)
        stem = f"{'auc' if study.classification else 'dice'}_vs_labels"
        write_bytes(out / f"{stem}.svg", figures.to_svg(curve).encode())
        write_bytes(out / f"{stem}.png", figures.to_png(curve, dpi=200))
        context = _context(study, name, means, comparisons, verdict, out)
        context["against"] = study.learners[against].title if against else ""
        context["asked"] = tables.comparison_table(study, asked, name, ("compared with", "its mean"))
        context["curve"] = Markup(
            figures.inline_svg(
                curve, "curve", f"mean {metric_info(name).title} by number of labelled {study.unit}s"
            )
        )
    page = _template().render(**context, stem=stem, contents=[])
    page = _template().render(**context, stem=stem, contents=about.chapters(page))
    write_bytes(out / "report.html", page.encode())
    return out / "report.html"


def _template() -> Any:
    text = files("samadapt.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def _seed_means(study: StudyResults, means: Means, name: str) -> dict[tuple[str, Level], list[float]]:
    found = {}
    for learner, level in means:
        matrix = contributions(study, Side(learner, level), name)
        assert matrix is not None  # it has a mean
        found[learner, level] = [float(x) for x in matrix.mean(0)]
    return found


def _context(
    study: StudyResults,
    name: str,
    means: Means,
    comparisons: Sequence[Comparison],
    verdict: Verdict,
    out: Path,
) -> dict[str, Any]:
    shown = metric_info(name)
    worth = gains(study, name)
    parts = (
        _classification(study, verdict) if study.classification else _segmentation(study, verdict, name, out)
    )
    one_seed = max((len(study.seeds(n, x)) for n, x in means), default=0) < 2
    return {
        "title": f"Few-label study of {study.note['data']['name']}" + (" (quick)" if study.quick else ""),
        "quick": study.quick,
        "verdict": verdict,
        "shown": shown,
        "unit": study.unit,
        "one_seed": one_seed,
        "missing": missing_lines(study, comparisons),
        "overlaps": [overlap.text for overlap in study.overlaps],
        "unseen": _unseen(study, name),
        "counts": {
            "done": len(study.done), "cells": len(study.cells), "cases": len(study.cases),
            "patients": len(set(study.groups)), "stacked": bool(study.note["protocol"].get("stacked")),
        },
        "means": tables.means_table(study, means, name),
        "comparisons": tables.comparison_table(study, comparisons, name),
        "gains": tables.gains_table(study, worth, name),
        "worth": _worth(study, worth, verdict, shown.title),
        "failed": tables.failed_table(study),
        "budget": tables.budget_table(study),
        "shared": tables.pretraining_lines(study),
        "facts": tables.facts(study),
        "glossary": about.glossary(study),
        "data_facts": about.data_facts(study),
        "data_table": about.data_table(study),
        "files": about.run_files(study, out),
        "commands": tables.commands(study),
        "hashes": tables.hash_table(study),
        **parts,
    }  # fmt: skip


def _unseen(study: StudyResults, name: str) -> tables.ReportTable | None:
    """The means over the scored cases that no encoder of the study has seen, where it is known which those are."""
    if any(overlap.seen is None for overlap in study.overlaps):
        return None
    seen = {case for overlap in study.overlaps for case in overlap.seen or ()}
    left = [case for case in study.cases if case not in seen]
    if not seen or not left:
        return None
    part = study.only(left)
    table = tables.means_table(part, all_means(part, name), name)
    return dataclasses.replace(table, caption=f"{table.caption}; {len(left)} of {len(study.cases)} cases")


def _worth(study: StudyResults, worth: Sequence[Gain], verdict: Verdict, shown: str) -> str:
    """One sentence, for the method that the study would recommend with most labels."""
    if not worth or not verdict.conclusions:
        return ""
    last = verdict.conclusions[-1]
    chosen = last.winner or last.head or last.baseline
    known = [g for g in worth if g.learner == chosen]
    if not known:
        return ""
    parts = [
        f"{signed(g.per_patient.mean, tables.gain_digits(worth))} between {g.low.patients} and {g.high.patients}"
        for g in known
    ]
    return (
        f"With {study.learners[chosen].title}, each additional labelled {study.unit} changes the mean {shown} by about "
        + " and by about ".join(parts)
        + f" labelled {study.unit}s."
    )


def _best_two(study: StudyResults, verdict: Verdict) -> list[Side]:
    """The methods that the verdict speaks of at the most labels, the better first."""
    last = verdict.conclusions[-1]
    names = [n for n in dict.fromkeys((last.winner, last.head, last.baseline)) if n]
    return [Side(name, last.level) for name in names]


def _segmentation(study: StudyResults, verdict: Verdict, name: str, out: Path) -> dict[str, Any]:
    sides = _best_two(study, verdict)
    last = verdict.conclusions[-1]
    scatter = ""
    if last.baseline and last.head:
        rivals = [n for n in study.learners if study.seeds(n, last.level)]
        points = {n: seed_mean(study, Side(n, last.level), name) for n in rivals}
        scatter = Markup(
            figures.inline_svg(figures.case_scatter(study, last.baseline, points, name), "cases", "each case")
        )
    surface = [m for m in study.metrics if m in _SURFACE]
    others = [m for m in study.metrics if m != name and m not in surface]
    return {
        "classification": False,
        "last": last.level,
        "scatter": scatter,
        "baseline": study.learners[last.baseline].title if last.baseline else "",
        "surface": [tables.means_table(study, all_means(study, m), m) for m in surface],
        "classes": [tables.class_table(study, m) for m in (name, *surface)],
        "others": [tables.class_table(study, m) for m in others],
        "worst": shown_cases(study, sides, name, out),
        "worst_of": study.learners[sides[0].learner].title if sides else "",
        "legend": figures.outline_legend(study.note["data"]["classes"]),
        "undefined": tables.undefined_table(study),
    }


def _classification(study: StudyResults, verdict: Verdict) -> dict[str, Any]:
    last = verdict.conclusions[-1]
    at_last = {n: list(study.seeds(n, last.level).values()) for n in study.learners}
    at_last = {n: cells for n, cells in at_last.items() if cells}
    two = {side.learner: at_last[side.learner] for side in _best_two(study, verdict)}
    accuracy = all_means(study, "acc")
    drawn = [
        ("ROC curves", _ROC, "roc", figures.roc(study, at_last)),
        ("Reliability diagram", _RELIABILITY, "reliability", figures.reliability(study, two)),
    ]
    if not study.note["data"].get("multilabel"):
        drawn.append(("Confusion matrices", _CONFUSION, "confusion", figures.confusion(study, two)))
    curve = figures.label_curves(study, accuracy, _seed_means(study, accuracy, "acc"), "acc")
    return {
        "classification": True,
        "last": last.level,
        "accuracy": tables.means_table(study, accuracy, "acc"),
        "accuracy_curve": Markup(
            figures.inline_svg(curve, "accuracy", f"mean accuracy by number of labelled {study.unit}s")
        ),
        "figures": [
            (title, caption, Markup(figures.inline_svg(figure, key, title)))
            for title, caption, key, figure in drawn
        ],
        "looked": saliency_section(study, last.level, list(two)),
        "classes": [tables.class_table(study, "auc")],
    }
