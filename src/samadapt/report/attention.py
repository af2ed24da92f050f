"""Saliency maps of the classifiers, as pictures of the few cases that the study kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samadapt.report.figures import inline_png
from samadapt.report.reading import CellResults, Level, StudyResults


@dataclass(frozen=True)
class Kept:
    """One case as a cell kept it."""

    image: np.ndarray  # (h, w) or (h, w, 3), 0..255
    slice_index: int
    depth: int  # slices of the case
    titles: tuple[str, ...]  # of the maps, with their ranges
    maps: np.ndarray  # (M, h, w) 0..255 from the lowest to the highest value; a flat one is 0


@dataclass(frozen=True)
class LookedAt:
    """One picture: a case, a row for each method that kept it."""

    case: str
    truth: str
    mistake: bool  # kept because it is one of the leading method's most confident errors
    picture: str


@dataclass(frozen=True)
class Section:
    """All pictures, and whose mistakes are among them."""

    pictures: tuple[LookedAt, ...] = ()
    lead: str = ""


def saliency_section(study: StudyResults, level: Level, preferred: Sequence[str]) -> Section:
    """The cases of the first method that kept some; the others' maps of the same cases below each other.

    Args:
        preferred: methods, the first that has maps leads; then the study's order.
    """
    order = [*preferred, *(n for n in study.learners if n not in preferred)]
    rows: dict[str, tuple[CellResults, dict[str, Kept], int]] = {}
    for learner in order:
        cells = study.seeds(learner, level)
        read = _read(study.folder / cells[min(cells)].digest / "attention.npz") if cells else None
        if read is not None:
            rows[learner] = (cells[min(cells)], *read)
    if not rows:
        return Section()
    lead, (_, cases, drawn) = next(iter(rows.items()))
    pictures = [
        LookedAt(
            case,
            _truth(study, rows[lead][0], case),
            n >= drawn,
            inline_png(_draw(study, rows, case)),
        )
        for n, case in enumerate(cases)
        if case in study.cases
    ]
    return Section(tuple(pictures), study.learners[lead].title)


def _read(path: Path) -> tuple[dict[str, Kept], int] | None:
    """{case: what was kept of it}, and how many of the first are the same for every method."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        cases = {}
        for n, case in enumerate(file["cases"]):
            index, depth = (int(x) for x in file[f"{n}.slice"])
            titles = tuple(str(x) for x in file[f"{n}.titles"])
            cases[str(case)] = Kept(file[f"{n}.image"], index, depth, titles, file[f"{n}.maps"])
        return cases, int(file["drawn"])


def _truth(study: StudyResults, cell: CellResults, case: str) -> str:
    row = study.values(cell, "truth")[study.cases.index(case)]
    return ", ".join(name for name, value in zip(study.targets, row, strict=True) if value > 0) or "none"


def _draw(
    study: StudyResults, rows: Mapping[str, tuple[CellResults, dict[str, Kept], int]], case: str
) -> Figure:
    """A row for each method: the image, and its maps; those of one name below each other."""
    kept = {learner: (cell, cases[case]) for learner, (cell, cases, _) in rows.items() if case in cases}
    names = max((_names(of) for _, of in kept.values()), key=len)
    height, width = next(iter(kept.values()))[1].image.shape[:2]
    tall = 1.25 * min(max(height / width, 0.5), 1.5)
    said = {learner: _said(study, learner, cell, case, of) for learner, (cell, of) in kept.items()}
    # As wide as the longest line takes at its font size.
    margin = max(1.5, 0.25 + 0.068 * max(len(line) for text in said.values() for line in text.split("\n")))
    figure = Figure(figsize=(1.3 * (len(names) + 1) + margin, (tall + 0.4) * len(kept) + 0.1))
    left, top = margin / figure.get_size_inches()[0], 1 - 0.4 / figure.get_size_inches()[1]
    grid = figure.subplots(len(kept), len(names) + 1, squeeze=False)
    figure.subplots_adjust(left, 0.01, 0.995, top, wspace=0.04, hspace=0.4 / tall)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (learner, (_, of)) in zip(grid, kept.items(), strict=True):
        line[0].text(
            -0.08, 0.5, said[learner], ha="right", va="center", transform=line[0].transAxes, fontsize=8
        )
        _panel(line[0], of.image, "image\n")
        for at, title, values in zip(_columns(_names(of), names), of.titles, of.maps, strict=True):
            _panel(line[at + 1], of.image, title, values)
    return figure


def _said(study: StudyResults, learner: str, cell: CellResults, case: str, of: Kept) -> str:
    """The method, its answer, and the slice, below each other."""
    scores = study.values(cell, "probability")[study.cases.index(case)]
    place = f"\nslice {of.slice_index}" if of.depth > 1 else ""
    return (
        f"{study.learners[learner].title}\n{study.targets[int(scores.argmax())]} ({scores.max():.2f}){place}"
    )


def _panel(axes: Axes, image: np.ndarray, title: str, values: np.ndarray | None = None) -> None:
    axes.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255)
    axes.set_title(title, fontsize=6.8)
    if values is not None and values.any():
        axes.imshow(values, cmap="inferno", vmin=0, vmax=255, alpha=0.55)


def _names(of: Kept) -> list[str]:
    return [title.split("\n")[0] for title in of.titles]


def _columns(names: Sequence[str], columns: Sequence[str]) -> list[int]:
    """The column of each map: that of its name, else the first that is free."""
    free = [n for n, column in enumerate(columns) if column not in names]
    return [columns.index(name) if name in columns else free.pop(0) for name in names]
