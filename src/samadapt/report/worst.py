"""The worst, median and best cases of the best learners, as pictures of the slices that the study kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samadapt.metrics import metric_info
from samadapt.records import IGNORED
from samadapt.report.about import prediction_link
from samadapt.report.figures import inline_png, overlay
from samadapt.report.measures import Side
from samadapt.report.reading import CellResults, StudyResults


@dataclass(frozen=True)
class ShownCase:
    """One picture, and what is said beside it."""

    case: str
    values: tuple[tuple[str, str], ...]  # learner, its value
    slice_index: int
    picture: str
    place: str = "worst"  # or "median", "best"
    file: str = ""  # a link to the first side's label map, where it was kept


def seed_mean(study: StudyResults, side: Side, name: str) -> np.ndarray:
    """(cases, targets) mean over seeds; nan where no seed has a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all nan is nan
        cells = study.seeds(side.learner, side.level).values()
        return np.nanmean([study.values(cell, name) for cell in cells], axis=0)


def case_means(values: np.ndarray) -> np.ndarray:
    """(cases, targets) -> (cases,): mean over the classes that have a value."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(1) / known.sum(1)


def shown_cases(
    study: StudyResults, sides: Sequence[Side], name: str, out: Path | None = None, count: int = 5
) -> list[ShownCase]:
    """The cases that the first side did worst, its median case and its best, with the other sides' answers to the same slice.

    Args:
        out: folder of the page, for links.
        count: of worst cases; the others are one each.
    """
    if not sides:
        return []
    means = [case_means(seed_mean(study, side, name)) for side in sides]
    order = [int(i) for i in np.argsort(means[0], kind="stable") if not math.isnan(means[0][i])]
    count = min(count, max(1, len(order) // 2))  # of few cases, the median is not among the worst
    places = dict.fromkeys(order[:count], "worst")
    for place, at in (("median", len(order) // 2), ("best", len(order) - 1)):
        if at >= count:
            places[order[at]] = place
    cells = study.seeds(sides[0].learner, sides[0].level)
    digits, found = metric_info(name).digits, []
    for i, place in places.items():
        drawn = _draw(study, sides, study.cases[i])
        if drawn is None:
            continue
        values = tuple(
            (study.learners[s.learner].title, "undefined" if math.isnan(m[i]) else f"{m[i]:.{digits}f}")
            for s, m in zip(sides, means, strict=True)
        )
        file = prediction_link(study, cells[min(cells)], study.cases[i], out) if out else ""
        found.append(ShownCase(study.cases[i], values, *drawn, place, file))
    return found


def _draw(study: StudyResults, sides: Sequence[Side], case: str) -> tuple[int, str] | None:
    """The slice that the first side got most wrong, with the answers of the lowest seed."""
    cells = [next(iter(sorted(study.seeds(s.learner, s.level).items())))[1] for s in sides]
    best: tuple[int, str, int] | None = None
    for file in _files(study, case):
        kept, answers = _load(study.folder / "cases" / f"{file}.npz"), _answer(study, cells[0], file)
        if kept is None or answers is None or answers.shape != kept["truth"].shape:
            continue
        wrong = ((answers != kept["truth"]) & (kept["truth"] != IGNORED)).sum((1, 2))
        at = int(wrong.argmax())
        if best is None or wrong[at] > best[0]:
            best = int(wrong[at]), file, at
    if best is None:
        return None
    _, file, at = best
    kept = _load(study.folder / "cases" / f"{file}.npz")
    assert kept is not None
    labels = {"ground truth": kept["truth"][at]}
    for side, cell in zip(sides, cells, strict=True):
        answers = _answer(study, cell, file)
        if answers is not None and answers.shape == kept["truth"].shape:
            labels[study.learners[side.learner].title] = answers[at]
    classes = study.note["data"]["classes"]
    return int(kept["slices"][at]), inline_png(overlay(kept["image"][at], labels, classes))


def _files(study: StudyResults, case: str) -> list[str]:
    """The case, or all scans of the patient where these were scored as one."""
    scored = study.note["scored"]
    return [case] if case in scored else [c for c, patient in scored.items() if patient == case]


def _answer(study: StudyResults, cell: CellResults, file: str) -> np.ndarray | None:
    slices = _load(study.folder / cell.digest / "slices.npz")
    return None if slices is None else slices.get(file)


def _load(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as content:
        return dict(content)
