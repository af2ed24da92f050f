"""Pictures for people: label maps and attention drawn over their slices. matplotlib only, no display needed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from samadapt.files import replacing

_INCHES = 2.8  # width of a slice on a sheet
_LETTERS = 44  # of a title above it, in a line
# Okabe and Ito's palette: told apart with every common colour vision.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


def overlay_figure(
    image: np.ndarray, labels: Mapping[str, np.ndarray], classes: Sequence[str], slices: Sequence[int]
) -> Figure:
    """One row a slice, one column a label map, outlined over the image.

    Args:
        image: (C, D, H, W); 1 channel is shown grey, 3 as colours in 0..255.
        labels: column title -> (D, H, W) classes.
        classes: names by value; 0 is not drawn.
    """
    figure = Figure(figsize=(2.6 * len(labels), 2.6 * len(slices) + 0.5), layout="compressed")
    axes = figure.subplots(len(slices), len(labels), squeeze=False)
    low, high = np.percentile(image, (1, 99.5))
    for title, axis in zip(labels, axes[0], strict=True):
        axis.set_title(title, fontsize=10)
    for row, index in zip(axes, slices, strict=True):
        for axis, label in zip(row, labels.values(), strict=True):
            if image.shape[0] == 3:
                axis.imshow(np.clip(image[:, index].transpose(1, 2, 0) / 255, 0, 1))
            else:
                axis.imshow(image[0, index], cmap="gray", vmin=low, vmax=high)
            draw_outlines(axis, label[index], len(classes))
            axis.set_axis_off()
    _add_legend(figure, classes)
    return figure


def draw_outlines(axis: Axes, label: np.ndarray, n_classes: int) -> None:
    """Outline each class over a slice.

    A line of background around the slice closes the outlines of what reaches the slice's edge.

    Args:
        label: (H, W) classes; 0 is not drawn, nor is what is not below `n_classes`.
    """
    padded = np.pad(label, 1)
    rows, columns = (np.arange(-1, size + 1) for size in label.shape)
    limits = axis.get_xlim(), axis.get_ylim()
    for value in range(1, n_classes):
        mask = padded == value
        if mask.any():
            axis.contour(columns, rows, mask, levels=[0.5], colors=[colour_of(value)], linewidths=1.2)
    axis.set_xlim(limits[0])
    axis.set_ylim(limits[1])


def colour_of(value: int) -> str:
    """The colour of a class."""
    return COLOURS[(value - 1) % len(COLOURS)]


def _add_legend(figure: Figure, classes: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=colour_of(value), linewidth=2, label=name)
        for value, name in enumerate(classes)
        if value
    ]
    columns = 2 if max(map(len, classes)) > 30 else 4
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(columns, len(handles)),
        frameon=False,
        fontsize=9,
    )


@dataclass(frozen=True)
class Panel:
    """One slice to draw.

    Args:
        image: (C, H, W), 0..255; 1 channel is shown grey, 3 as colours, of others the first.
        title: above it.
        label: (H, W) classes to outline, if any.
        aspect: height of a pixel over its width.
    """

    image: np.ndarray
    title: str = ""
    label: np.ndarray | None = None
    aspect: float = 1.0


def sheet_figure(
    panels: Sequence[Panel],
    title: str,
    classes: Sequence[str] = (),
    columns: int = 0,
    rows: Sequence[str] = (),
) -> Figure:
    """A sheet of slices, row by row.

    Args:
        classes: names by label value, for the legend; empty where nothing is outlined.
        columns: how many to a row; 0: as many as make the sheet about as wide as it is high.
        rows: what stands at the left of each row.
    """
    columns = columns or max(min(len(panels), 2), math.ceil(math.sqrt(len(panels))))
    count = math.ceil(len(panels) / columns)
    height, width = panels[0].image.shape[-2:]
    ratio = min(max(height * panels[0].aspect / width, 0.4), 2.0)
    size = (max(_INCHES * columns, 4.5), (_INCHES * ratio + 0.35) * count + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(textwrap.fill(title, int(12 * size[0])), fontsize=10)
    axes = figure.subplots(count, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, len(classes))
    for axis, text in zip(axes[::columns], rows, strict=False):
        axis.set_ylabel(text, fontsize=10)
    if len(classes) > 1:
        _add_legend(figure, classes)
    return figure


def _draw_panel(axis: Axes, panel: Panel, n_classes: int) -> None:
    colour = panel.image.shape[0] == 3
    image = np.clip(panel.image.transpose(1, 2, 0) / 255, 0, 1) if colour else panel.image[0]
    axis.imshow(
        image, cmap=None if colour else "gray", vmin=0, vmax=None if colour else 255, aspect=panel.aspect
    )
    lines = [textwrap.fill(line, _LETTERS) for line in panel.title.splitlines()]
    axis.set_title("\n".join(lines), fontsize=8.5)
    if panel.label is not None:
        draw_outlines(axis, panel.label, n_classes)


def curve_figure(
    steps: Sequence[int], loss: Sequence[float], selection: Mapping[int, float], title: str
) -> Figure:
    """The loss over the steps of a training, each value light and their running mean dark.

    Args:
        selection: step -> score on the selection cases, with an axis of its own; empty: none.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(steps, loss, color=COLOURS[1], alpha=0.5, linewidth=1, label="loss of a batch")
    width = max(1, len(loss) // 10)
    if width > 1:
        mean = np.convolve(loss, np.ones(width) / width, "valid")
        axis.plot(steps[width - 1 :], mean, color=COLOURS[4], linewidth=2, label=f"mean of {width} values")
    axis.set(xlabel="step", ylabel="loss", title=title)
    axis.set_ylim(bottom=min(0.0, min(loss)))
    handles, names = axis.get_legend_handles_labels()
    if selection:
        other = axis.twinx()
        other.plot(
            *zip(*selection.items(), strict=True), "o-", color=COLOURS[5], markersize=4, label="selection"
        )
        other.set_ylabel("score on the selection cases")
        more = other.get_legend_handles_labels()
        handles, names = handles + more[0], names + more[1]
    axis.legend(handles, names, frameon=False, fontsize=9)
    return figure


def attention_figure(image: np.ndarray, maps: Mapping[str, np.ndarray], title: str) -> Figure:
    """One slice: the picture, and each map laid over it in colours of its own range, which stands below its title.

    Args:
        image: (C, H, W), 0..255; 1 channel is shown grey, 3 as colours.
        maps: title -> (H, W).
    """
    height = 2.2 * min(max(image.shape[1] / image.shape[2], 0.4), 1.6)
    figure = Figure(figsize=(2.2 * (len(maps) + 1), height + 0.8), layout="compressed")
    figure.suptitle(title, fontsize=10)
    first, *panels = figure.subplots(1, len(maps) + 1, squeeze=False)[0]
    colour = image.shape[0] == 3
    picture = np.clip(image.transpose(1, 2, 0) / 255, 0, 1) if colour else image[0]
    for axis in (first, *panels):
        axis.imshow(picture, cmap=None if colour else "gray", vmin=0, vmax=None if colour else 255)
        axis.set_axis_off()
    first.set_title("image\n", fontsize=9)
    for axis, (name, values) in zip(panels, maps.items(), strict=True):
        axis.set_title(range_title(name, values), fontsize=9)
        if not is_flat(values):
            axis.imshow(values, cmap="inferno", vmin=values.min(), vmax=values.max(), alpha=0.55)
    return figure


def is_flat(values: np.ndarray) -> bool:
    """Below the rounding of the numbers differences are noise, and no colour shall show them."""
    return bool(np.ptp(values) <= 1e-6 * np.abs(values).max())


def range_title(name: str, values: np.ndarray) -> str:
    """The name, and below it the map's range with as many digits as tell its ends apart."""
    low, high = float(values.min()), float(values.max())
    if is_flat(values):
        return f"{name}\nflat: {low:.3g}"
    if max(abs(low), abs(high)) < 0.001:
        return f"{name}\n{low:.2g} to {high:.2g}"
    digits = max(0, 1 - math.floor(math.log10(high - low)))
    return f"{name}\n{low:.{digits}f} to {high:.{digits}f}"


def save_figure(figure: Figure, path: Path) -> Path:
    """PNG or SVG by the suffix, written whole or not at all."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path


def telling_slices(label: np.ndarray, count: int = 3) -> list[int]:
    """Representative slices: spread over those with a label, or over all."""
    filled = np.flatnonzero((label > 0).any((1, 2)))
    if len(filled) == 0:
        filled = np.arange(label.shape[0])
    positions = np.linspace(0.15, 0.85, min(count, len(filled))) * (len(filled) - 1)
    return sorted({int(filled[round(p)]) for p in positions})
