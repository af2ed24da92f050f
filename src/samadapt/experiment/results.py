"""The finished cells of a study as one table for the terminal."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.experiment.grid import read_experiment
from samadapt.metrics import LabelledProbabilities, mean_contributions, read_cell_scores, score_matrix
from samadapt.overlap import MARK, Overlap
from samadapt.types import SamAdaptError, Score


def cell_result(scores: list[Score]) -> tuple[str, float]:
    """(metric, value) of one cell: the mean Dice over classes and cases, or the AUC."""
    cases, targets = (list(dict.fromkeys(getattr(s, key) for s in scores)) for key in ("case", "target"))
    if any(score.metric == "probability" for score in scores):
        sides = (score_matrix(scores, metric, cases, targets) for metric in ("probability", "truth"))
        return "auc", float(LabelledProbabilities.from_indicators(*sides).auc_contributions().mean())
    return "dsc", float(mean_contributions(score_matrix(scores, "dsc", cases, targets)).mean())


def results_table(out: str | Path) -> str:
    """Aligned text: one row per method, one column per number of labels, the mean over the seeds and their range.

    Square brackets are ranges over seeds; round ones, in the report, are 95 % intervals.
    """
    out = Path(out)
    note = read_experiment(out)
    if note is None:
        raise SamAdaptError(
            f"{out} is not an experiment: it has no experiment.json; give the --out of `experiment`"
        )
    values: dict[tuple[str, Any], list[float]] = defaultdict(list)
    metric = ""
    for digest, cell in note["cells"].items():
        if (out / digest / "scores.csv").is_file():
            metric, value = cell_result(read_cell_scores(out / digest)[0])
            values[
                cell["learner"], cell["labels"] if note["learners"][cell["learner"]]["learns"] else "-"
            ].append(value)
    columns = sorted(
        {labels for _, labels in values}, key=lambda n: (n != "-", n is None, n if n != "-" else 0)
    )
    names = list(note["learners"])
    planned = _planned(note)
    head = [f"mean {metric} [lowest to highest seed]", *["all" if n is None else str(n) for n in columns]]
    marks = {name: MARK if note.get("overlaps", {}).get(name) else "" for name in names}
    body = [
        [name + marks[name], *[_field(values.get((name, n), []), planned[name, n]) for n in columns]]
        for name in names
    ]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *body]
    ]
    return "\n".join([*lines, *_overlap_lines(note)])


def _overlap_lines(note: dict[str, Any]) -> list[str]:
    """What the marks mean, each encoder once."""
    every = [x for rows in note.get("overlaps", {}).values() for x in rows]
    return list(dict.fromkeys(f"* {Overlap.from_json(x).text}" for x in every))


def _planned(note: dict[str, Any]) -> Counter[tuple[str, Any]]:
    """The number of cells of a method at a number of labels."""
    learns = {name: of["learns"] for name, of in note["learners"].items()}
    return Counter(
        (c["learner"], c["labels"] if learns[c["learner"]] else "-") for c in note["cells"].values()
    )


def _field(values: list[float], planned: int) -> str:
    if not values:
        return f"0 of {planned} cells" if planned else ""
    spread = f" [{min(values):.3f} to {max(values):.3f}]" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}" + (
        f" {len(values)} of {planned} cells" if len(values) < planned else ""
    )
