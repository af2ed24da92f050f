"""Figures of the report: matplotlib without a display, as SVG that stands in the page, or as PNG."""

from __future__ import annotations

import base64
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from samadapt.metrics import metric_info
from samadapt.records import IGNORED
from samadapt.report.comparisons import Means
from samadapt.report.measures import class_answers
from samadapt.report.reading import CellResults, Level, MethodInfo, StudyResults
from samadapt.statistics import Estimate

# Okabe and Ito's palette, told apart with every common colour vision; yellow is left out on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
OUTLINES = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
#: Whether a method is a baseline -> its marker and its line, and those if another method has its colour.
_MARKS = {False: ("o-", "^-."), True: ("s--", "D:")}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "samadapt",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666",
    "xtick.color": "#444",
    "ytick.color": "#444",
    "axes.labelcolor": "#222",
}


def style() -> object:
    """A context in which figures are drawn; the settings of the caller's matplotlib stay as they are."""
    return mpl.rc_context(_STYLE)  # type: ignore[arg-type]


def colours(study: StudyResults) -> dict[str, str]:
    """A colour for each method."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(study.learners)}


def _is_repeated(study: StudyResults, learner: str) -> bool:
    """Whether another method has its colour already, because there are more methods than colours."""
    return list(study.learners).index(learner) >= len(COLOURS)


def to_svg(figure: Figure) -> str:
    """A whole SVG file, without a date: the same figure is the same file."""
    text = io.StringIO()
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """An <svg> element for a page: no header, no foreign address, its ids its own."""
    text = to_svg(figure)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"([^>]*?)height="[^"]*"', r"<svg \1\2", text, count=1)
    width = figure.get_size_inches()[0]
    style = f"max-width:{width:.2f}in"  # as wide as the page allows, and no wider than it was drawn
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" style="{style}" ', 1)


def to_png(figure: Figure, dpi: int = 110) -> bytes:
    """A PNG file."""
    content = io.BytesIO()
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        FigureCanvasAgg(figure).print_figure(content, dpi=dpi, format="png")
    return content.getvalue()


def inline_png(figure: Figure, dpi: int = 110) -> str:
    """A PNG as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(to_png(figure, dpi)).decode()


# ---------------------------------------------------------------- curves


def label_curves(
    study: StudyResults, means: Means, seeds: Mapping[tuple[str, Level], list[float]], name: str
) -> Figure:
    """Mean against labelled patients, bars over patients and seeds, one faint dot a seed."""
    figure = Figure(figsize=(10.6, 4.6), layout="constrained")
    axes = figure.subplots()
    place = {level: math.log2(max(level.patients, 1)) for level in study.levels}
    gap = min([b - a for a, b in zip(place.values(), list(place.values())[1:], strict=False)], default=1.0)
    learning = [
        n for n, learner in study.learners.items() if learner.learns and any(n == k[0] for k in means)
    ]
    paint = colours(study)
    for number, learner in enumerate(learning):
        shift = (number - (len(learning) - 1) / 2) * min(0.55 * gap / max(len(learning), 1), 0.09)
        levels = [level for level in study.levels if (learner, level) in means]
        x = [place[level] + shift for level in levels]
        mark = _MARKS[study.learners[learner].baseline][_is_repeated(study, learner)]
        _curve(
            axes,
            study.learners[learner],
            mark,
            x,
            [means[learner, level] for level in levels],
            paint[learner],
        )
        for at, level in zip(x, levels, strict=True):
            dots = seeds[learner, level]
            axes.plot([at] * len(dots), dots, ".", color=paint[learner], alpha=0.4, markersize=4, zorder=2)
    for learner, of in study.learners.items():
        first = next((means[k] for k in means if k[0] == learner), None)
        if not of.learns and first is not None:
            axes.axhline(first.mean, color=paint[learner], linestyle=":", linewidth=1.4, label=of.label)
    axes.set_xticks(list(place.values()), [str(level.patients) for level in study.levels])
    axes.set_xlim(min(place.values(), default=0) - 0.3 * gap, max(place.values(), default=0) + 0.3 * gap)
    axes.set_xlabel(f"number of labelled {study.unit}s")
    axes.set_ylabel(f"mean {metric_info(name).title}")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    order = [of.label for of in study.learners.values() if of.label in handles]
    figure.legend(
        [handles[t] for t in order],
        order,
        loc="outside lower center",
        ncols=min(4, len(order)),
        frameon=False,
        fontsize=9,
    )
    return figure


def _curve(
    axes: Axes, learner: MethodInfo, mark: str, x: list[float], found: Sequence[Estimate], colour: str
) -> None:
    y = np.array([e.mean for e in found])
    ends = np.nan_to_num([[e.mean - e.low, e.high - e.mean] for e in found])
    axes.errorbar(
        x, y, np.maximum(ends.T, 0), color=colour, linestyle=mark[1:], marker=mark[0], markersize=4.5,
        linewidth=1.6, elinewidth=1.1, label=learner.label, zorder=3,
    )  # fmt: skip


# ---------------------------------------------------------------- cases


def _panels(count: int, legend: int) -> tuple[Figure, int, int]:
    """A figure for so many squares, that uses the width of the page; its columns and rows.

    Args:
        legend: lines of the legend, above or below.
    """
    columns = min(4, count)
    rows = -(-count // columns)
    side = {1: 4.0, 2: 3.6, 3: 3.2}.get(columns, 2.5)
    size = (side * columns + 0.6, (side + 0.15) * rows + 0.7 + 0.2 * legend)
    return Figure(figsize=size, layout="constrained"), columns, rows


def case_scatter(study: StudyResults, baseline: str, points: Mapping[str, np.ndarray], name: str) -> Figure:
    """Small multiples: each case, a method (up) against the best baseline (right), by class.

    Args:
        points: learner -> (cases, targets) means over seeds; the baseline's too.
    """
    others = [n for n in points if n != baseline]
    figure, columns, rows = _panels(len(others), 1)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    low = max(0.0, min(float(np.nanmin(p)) for p in points.values()) - 0.03)
    for axes, learner in zip(grid.flat, others, strict=False):
        axes.plot([low, 1], [low, 1], color="#999", linewidth=0.8)
        for k, target in enumerate(study.targets):
            axes.scatter(
                points[baseline][:, k], points[learner][:, k], s=13, alpha=0.75, linewidths=0,
                color=COLOURS[k % len(COLOURS)], label=target if learner == others[0] else None,
            )  # fmt: skip
        axes.set(xlim=(low, 1.01), ylim=(low, 1.01), aspect="equal")
        axes.set_title(study.learners[learner].title, fontsize=9)
    for axes in list(grid.flat)[len(others) :]:
        axes.set_axis_off()
    figure.supxlabel(f"{metric_info(name).title} of each case, {study.learners[baseline].title}", fontsize=9)
    figure.supylabel(f"{metric_info(name).title} of each case", fontsize=9)
    figure.legend(loc="outside upper center", ncols=min(6, len(study.targets)), frameon=False, fontsize=8.5)
    return figure


def overlay(image: np.ndarray, labels: Mapping[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """One slice: the picture, and each label map outlined over it.

    Args:
        image: (h, w) grey or (h, w, 3) colours, 0..255.
        labels: title -> (h, w).
        classes: names by value; 0 is not drawn.
    """
    box = _box(list(labels.values()))
    height, width = np.empty(image.shape[:2])[box].shape
    panels_n = len(labels) + 1
    lines = {title: textwrap.fill(title, 18) for title in ("image", *labels)}
    top = 0.1 + 0.24 * max(text.count("\n") + 1 for text in lines.values())
    figure = Figure(figsize=(2.6 * panels_n, 2.6 * min(height / width, 1.3) + top))
    panels = figure.subplots(1, panels_n)
    figure.subplots_adjust(0, 0, 1, 1 - top / figure.get_size_inches()[1], 0.03)
    shown: list[tuple[str, np.ndarray | None]] = [("image", None), *labels.items()]
    for axes, (title, label) in zip(panels, shown, strict=True):
        axes.imshow(image[box], cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255)
        for value in range(1, len(classes)):
            mask = np.zeros((0, 0), bool) if label is None else label[box] == value
            if mask.any() and not mask.all() and min(mask.shape) > 1:
                # Near the inner side, so that of two classes that touch both outlines are seen.
                axes.contour(
                    mask, levels=[0.9], colors=[OUTLINES[(value - 1) % len(OUTLINES)]], linewidths=1.1
                )
        axes.set_axis_off()
        axes.set_title(lines[title], fontsize=13)  # two pictures stand side by side
    return figure


def _box(labels: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """The box around all outlines, with a margin: the organ may be a small part of the slice."""
    seen = np.any([(x > 0) & (x != IGNORED) for x in labels], axis=0)
    if not seen.any():
        return slice(None), slice(None)
    ends = []
    for axis in (0, 1):
        at = np.flatnonzero(seen.any(1 - axis))
        margin = max(12, (at[-1] - at[0]) // 2)
        ends.append(slice(max(0, at[0] - margin), at[-1] + margin + 1))
    return ends[0], ends[1]


def outline_legend(classes: Sequence[str]) -> list[tuple[str, str]]:
    """(class, colour) of the outlines."""
    return [(name, OUTLINES[(i - 1) % len(OUTLINES)]) for i, name in enumerate(classes) if i]


# ---------------------------------------------------------------- classification


def roc(study: StudyResults, cells: Mapping[str, Sequence[CellResults]]) -> Figure:
    """One panel per class against the rest, one line per method: the mean over its seeds."""
    targets = study.targets[1:] if _binary(study) else study.targets
    figure, columns, rows = _panels(len(targets), -(-len(cells) // 4))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    paint, at = colours(study), np.linspace(0, 1, 101)
    for axes, target in zip(grid.flat, targets, strict=False):
        k = study.targets.index(target)
        axes.plot([0, 1], [0, 1], color="#bbb", linewidth=0.8)
        for learner, of_seed in cells.items():
            curves = [
                _roc(study.values(c, "probability")[:, k], study.values(c, "truth")[:, k] > 0, at)
                for c in of_seed
            ]
            dashes = (
                ":" if _is_repeated(study, learner) else "--" if study.learners[learner].baseline else "-"
            )
            title = study.learners[learner].title if target == targets[0] else None
            axes.plot(at, np.mean(curves, 0), dashes, color=paint[learner], linewidth=1.4, label=title)
        axes.set(aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])  # short ones, so that neighbours do not meet
        axes.set_title(target, fontsize=9)
    for axes in list(grid.flat)[len(targets) :]:
        axes.set_axis_off()
    figure.supxlabel("false positive rate", fontsize=9)
    figure.supylabel("true positive rate", fontsize=9)
    figure.legend(loc="outside upper center", ncols=min(4, len(cells)), frameon=False, fontsize=8.5)
    return figure


def _binary(study: StudyResults) -> bool:
    return len(study.targets) == 2 and not study.note["data"].get("multilabel")


def _roc(scores: np.ndarray, positive: np.ndarray, at: np.ndarray) -> np.ndarray:
    """True positive rate at these false positive rates."""
    thresholds = np.r_[np.inf, np.unique(scores)[::-1]]
    called = scores[None] >= thresholds[:, None]
    rates = [(called & side).sum(1) / max(side.sum(), 1) for side in (~positive, positive)]
    return np.interp(at, *rates)


def reliability(study: StudyResults, cells: Mapping[str, Sequence[CellResults]]) -> Figure:
    """The share of correct answers against the predicted probability, over all seeds, in ten bins."""
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes, paint = figure.subplots(), colours(study)
    axes.plot([0, 1], [0, 1], color="#bbb", linewidth=0.8)
    for learner, of_seed in cells.items():
        pairs = [_answers(study, cell) for cell in of_seed]
        sure, right = (np.concatenate(x) for x in zip(*pairs, strict=True))
        bins = np.minimum((sure * 10).astype(int), 9)
        used = [b for b in range(10) if (bins == b).any()]
        x, y = ([float(v[bins == b].mean()) for b in used] for v in (sure, right))
        title = f"{study.learners[learner].title}"
        dashes = "s--" if study.learners[learner].baseline else "o-"
        axes.plot(x, y, dashes, color=paint[learner], markersize=4, linewidth=1.4, label=title)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("share that is correct")
    figure.legend(loc="outside right center", frameon=False, fontsize=8.5)
    return figure


def _answers(study: StudyResults, cell: CellResults) -> tuple[np.ndarray, np.ndarray]:
    """How sure each answer is, and 1 where it is right; of several labels a case, each label is an answer."""
    x = class_answers(study, cell)
    if x.multilabel:
        sure = np.maximum(x.probabilities, 1 - x.probabilities)
        return sure.ravel(), (x.answers == x.truth).ravel().astype(float)
    return x.probabilities.max(1), x.correct


def confusion(study: StudyResults, cells: Mapping[str, Sequence[CellResults]]) -> Figure:
    """Predicted classes (across) of each true class (down), over all seeds; shares of the true class."""
    size = 0.5 * len(study.targets) + 1.5
    figure = Figure(figsize=(size * len(cells), size), layout="constrained")
    panels = figure.subplots(1, len(cells), squeeze=False)[0]
    for axes, (learner, of_seed) in zip(panels, cells.items(), strict=True):
        counts = np.zeros((len(study.targets), len(study.targets)))
        for cell in of_seed:
            pairs = [study.values(cell, x).argmax(1) for x in ("truth", "probability")]
            np.add.at(counts, tuple(pairs), 1)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), share in np.ndenumerate(shares):
            colour = "white" if share > 0.55 else "#222"
            axes.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_xticks(range(len(study.targets)), study.targets, rotation=45, ha="right")
        axes.set_yticks(range(len(study.targets)), study.targets)
        axes.set_title(study.learners[learner].title, fontsize=9)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    return figure
