"""Pictures for people: label maps and attention drawn over their slices. matplotlib only, no display needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from samadapt.files import replacing

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
            for value in range(1, len(classes)):
                mask = label[index] == value
                if mask.any():
                    colour = COLOURS[(value - 1) % len(COLOURS)]
                    axis.contour(mask, levels=[0.5], colors=[colour], linewidths=1.4)
            axis.set_axis_off()
    handles = [
        Line2D([], [], color=COLOURS[(value - 1) % len(COLOURS)], linewidth=2, label=name)
        for value, name in enumerate(classes)
        if value
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=9
    )
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
