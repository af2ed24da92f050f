"""The finished runs of a study as one table for the terminal."""

from __future__ import annotations

from pathlib import Path

from samadapt.overlap import MARK
from samadapt.report.measures import Side, contributions
from samadapt.report.reading import Level, StudyResults, labels_text, read_study


def results_table(folder: str | Path) -> str:
    """Aligned text: one row per method, one column per number of labels, the mean over the seeds and their range.

    Square brackets are ranges over seeds; round ones, in the report, are 95 % intervals.
    """
    study = read_study(folder)
    unlearned = [None] if any(not of.learns for of in study.learners.values()) else []
    levels: list[Level | None] = [*unlearned, *study.levels]
    head = [f"mean {study.leading_metric} [lowest to highest seed]"]
    head += ["-" if level is None else labels_text(level.labels) for level in levels]
    body = [
        [
            name + (MARK if study.note.get("overlaps", {}).get(name) else ""),
            *(_field(study, name, x) for x in levels),
        ]
        for name in study.learners
    ]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *body]
    ]
    quick = [study.quick] if study.quick else []
    return "\n".join([*lines, *(f"* {overlap.text}" for overlap in study.overlaps), *quick])


def results_rows(folder: str | Path) -> list[dict[str, object]]:
    """The same numbers as data: one row per method, number of labels and seed, and whether its encoder has seen the data."""
    study = read_study(folder)
    unlearned = [None] if any(not of.learns for of in study.learners.values()) else []
    return [
        {
            "method": name,
            "labels": None if level is None else labels_text(level.labels),
            "seed": seed,
            "metric": study.leading_metric,
            "value": float(values.mean()),
            "quick": bool(study.quick),
            "overlap": bool(study.note.get("overlaps", {}).get(name)),
        }
        for name, of in study.learners.items()
        for level in (*unlearned, *study.levels)
        if of.learns == (level is not None)
        for seed in sorted(study.seeds(name, level))
        if (values := contributions(study, Side(name, level), study.leading_metric, seeds=[seed])) is not None
    ]


def _field(study: StudyResults, name: str, level: Level | None) -> str:
    """Of one method at one number of labels; None is the column of the methods that learn nothing."""
    if study.learners[name].learns == (level is None):
        return ""
    planned = len(study.planned(name, level))
    matrix = contributions(study, Side(name, level), study.leading_metric)
    if matrix is None:
        return f"0 of {planned} cells" if planned else ""
    values = matrix.mean(0)
    spread = f" [{values.min():.3f} to {values.max():.3f}]" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}" + (
        f" {len(values)} of {planned} cells" if len(values) < planned else ""
    )
