"""Pictures that commands leave: sheets of predicted cases, extreme cases of an evaluation, the course of a training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from samadapt.course import Course
from samadapt.figures import Panel, curve_figure, save_figure, sheet_figure, telling_slices
from samadapt.prediction import Classifier, Segmenter
from samadapt.transforms import Window, apply_window, to_original
from samadapt.types import IGNORED, Case

_SHEET = 20  # slices of a case on one sheet
_COLUMNS = 5  # slices of a case beside the reference, and cases of a classifier in a row
_LOOKS = 3  # cases in a first look


# ---------------------------------------------------------------- slices of a case


def sheet_slices(label: np.ndarray, count: int = _SHEET) -> list[int]:
    """All slices, or so many of them: spread over those with a structure and one more at each end.

    Args:
        label: (D, H, W) classes.
    """
    depth = label.shape[0]
    if depth <= count:
        return list(range(depth))
    filled = np.flatnonzero((label > 0).any((1, 2)))
    first, last = (max(0, filled[0] - 1), min(depth - 1, filled[-1] + 1)) if len(filled) else (0, depth - 1)
    return sorted({round(x) for x in np.linspace(first, last, min(count, last - first + 1))})


def slice_note(case: Case) -> str:
    """How slices are numbered, where there are several."""
    return f"slices counted from 0 along axis {case.axes[0]} of the file" if case.image.shape[1] > 1 else ""


def _windowed(case: Case, window: str, slices: Sequence[int]) -> np.ndarray:
    """(C, N, H, W), 0..255."""
    limits = Window.parse(window).fit(case.image)
    return apply_window(case.image[:, list(slices)], limits).numpy()


def _panels(
    case: Case, window: str, slices: Sequence[int], labels: Sequence[np.ndarray | None] = (None,)
) -> list[Panel]:
    """A panel for each slice, for one label map after the other."""
    images = _windowed(case, window, slices)
    spacing = case.spacing_mm
    aspect = spacing[1] / spacing[2] if spacing else 1.0
    names = [f"slice {case.slice_in_file(i)}" if case.image.shape[1] > 1 else "" for i in slices]
    return [
        Panel(images[:, n], name, None if label is None else label[i], aspect)
        for label in labels
        for n, (i, name) in enumerate(zip(slices, names, strict=True))
    ]


def _title(*lines: str) -> str:
    return "; ".join(line for line in lines if line)


# ---------------------------------------------------------------- predict


def draw_sheet(
    case: Case,
    window: str,
    path: Path,
    said: str,
    label: np.ndarray | None = None,
    classes: Sequence[str] = (),
) -> Path:
    """The contact sheet of a predicted case.

    Args:
        said: beside the name of the case.
        label: (D, H, W), the prediction that is outlined; None for a classifier.
    """
    slices = sheet_slices(np.zeros((case.image.shape[1], 1, 1)) if label is None else label)
    left_out = case.image.shape[1] - len(slices)
    more = f"{len(slices)} of {case.image.shape[1]} slices" if left_out else ""
    panels = _panels(case, window, slices, (label,))
    return save_figure(
        sheet_figure(panels, _title(f"{case.id}: {said}", more, slice_note(case)), classes), path
    )


# ---------------------------------------------------------------- evaluate


@dataclass(frozen=True)
class Answered:
    """A scored case that can be drawn.

    Args:
        value: by which cases are ordered; higher is better, and nan is in no order.
        text: what is said of it: "mean Dice 0.81 (LV 0.9, RV 0.7)".
        load: the case with its reference label, and the prediction (D, H, W) or None.
    """

    case: str
    value: float
    text: str
    load: Callable[[], tuple[Case, np.ndarray | None]]


def extremes(answered: Iterable[Answered]) -> dict[str, Answered]:
    """The worst, the median and the best case, as far as there are so many."""
    ordered = sorted((a for a in answered if not math.isnan(a.value)), key=lambda a: (a.value, a.case))
    if not ordered:
        return {}
    found = {"worst": ordered[0], "median": ordered[(len(ordered) - 1) // 2], "best": ordered[-1]}
    chosen = {"median": found["median"]} if len(ordered) == 1 else found
    return {name: each for name, each in chosen.items() if len(ordered) != 2 or name != "median"}


def draw_extremes(
    answered: Sequence[Answered], classes: Sequence[str], window: str, folder: Path
) -> list[Path]:
    """`worst.png`, `median.png` and `best.png`: the reference and the prediction, outlined on the same slices."""
    found = []
    for name, each in extremes(answered).items():
        case, answer = each.load()
        assert answer is not None and case.label is not None
        reference = case.label.numpy()
        slices = _compared_slices(reference, answer)
        panels = _panels(case, window, slices, (reference, answer))
        title = _title(f"{name} of {len(answered)} cases: {each.case}, {each.text}", slice_note(case))
        figure = sheet_figure(panels, title, classes, len(slices), ("reference", "prediction"))
        found.append(save_figure(figure, folder / f"{name}.png"))
    return found


def _compared_slices(reference: np.ndarray, answer: np.ndarray) -> list[int]:
    """Spread over the structures of both, and the slice with the most wrong voxels among them."""
    wrong = ((answer != reference) & (reference != IGNORED)).sum((1, 2))
    structure = ((reference > 0) & (reference != IGNORED)) | (answer > 0)
    return sorted({int(wrong.argmax()), *telling_slices(structure, _COLUMNS - 1)})


def draw_classified(
    answered: Sequence[Answered], classes: Sequence[str], window: str, folder: Path
) -> list[Path]:
    """`cases.png`: the cases to whose reference class the lowest, middle and highest probabilities were given."""
    ordered = sorted(answered, key=lambda a: (a.value, a.case))
    count = min(_COLUMNS, max(1, len(ordered) // 3))
    middle = (len(ordered) - count) // 2
    rows = {"worst": ordered[:count], "median": ordered[middle : middle + count], "best": ordered[-count:]}
    panels = [
        _panel(each.load()[0], window, f"{each.case}\n{each.text}") for row in rows.values() for each in row
    ]
    title = f"{len(ordered)} cases by the probability that was given to their reference class"
    figure = sheet_figure(panels, title, (), count, list(rows))
    return [save_figure(figure, folder / "cases.png")]


def _panel(case: Case, window: str, title: str, index: int | None = None) -> Panel:
    """One slice of a case, the middle one unless another is named."""
    depth = case.image.shape[1]
    index = depth // 2 if index is None else index
    (panel,) = _panels(case, window, [index])
    place = f", slice {case.slice_in_file(index)}" if depth > 1 else ""
    return Panel(panel.image, title + place, None, panel.aspect)


# ---------------------------------------------------------------- train


def draw_loss(run: Path) -> Path:
    """`loss.png` of a run folder, from its `metrics.csv`."""
    course = Course.read(run)
    figure = curve_figure(course.steps, course.loss, course.selection, run.name)
    return save_figure(figure, run / "loss.png")


def draw_first_look(
    model: Segmenter | Classifier, cases: Iterable[Case], what: str, run: Path, count: int = _LOOKS
) -> Path:
    """`first_look.png` of a run folder: the first of these cases, as the trained model answers them.

    Args:
        cases: labelled ones.
        what: which cases these are: "selection", "training".
    """
    chosen = [case for case, _ in zip(cases, range(count), strict=False)]
    warning = (
        "; the model was trained on them, so this says nothing about new cases" if what == "training" else ""
    )
    draw = _look_at_classes if isinstance(model, Classifier) else _look_at_labels
    return save_figure(draw(model, chosen, f"{what} cases{warning}"), run / "first_look.png")  # type: ignore[arg-type]


def _look_at_labels(model: Segmenter, cases: Sequence[Case], title: str) -> Figure:
    """A row for each case: its telling slices, the reference beside the prediction."""
    panels, widest = [], 0
    for case in cases:
        assert case.label is not None
        reference = case.label.numpy()
        slices = telling_slices(np.where(reference == IGNORED, 0, reference), 2)
        answer = np.zeros_like(reference)
        answer[slices] = _answers_at(model, case, slices)
        of = [_panels(case, model.opening.window, [i], (reference, answer)) for i in slices]
        panels.append([panel for pair in of for panel in pair])
        widest = max(widest, len(panels[-1]))
    rows = [[*row, *row[-2:]][:widest] if len(row) < widest else row for row in panels]
    named = [
        dataclasses.replace(panel, title=_title(("reference", "prediction")[n % 2], panel.title))
        for row in rows
        for n, panel in enumerate(row)
    ]
    return sheet_figure(named, title, model.classes, widest, [case.id for case in cases])


@torch.inference_mode()
def _answers_at(model: Segmenter, case: Case, slices: Sequence[int]) -> np.ndarray:
    """(N, H, W) uint8 of some slices alone: a large encoder takes long for a whole volume."""
    seen, answers = model.view.of(case), []
    for index in slices:
        inputs, frame = model.inputs(seen, index)
        logits = model.head(model.features([inputs])).float().cpu()[0]
        answers.append(to_original(logits, frame).argmax(0).numpy().astype(np.uint8))
    return np.stack(answers)


def _look_at_classes(model: Classifier, cases: Sequence[Case], title: str) -> Figure:
    panels = []
    for case in cases:
        values = model.predict(case)
        panels.append(
            _panel(case, model.opening.window, f"{case.id}\n{class_text(values, case.label, model.classes)}")
        )
    return sheet_figure(panels, title, (), len(panels))


def class_text(values: np.ndarray, truth: object, classes: Sequence[str]) -> str:
    """ "reference benign, answer malignant (0.93)".

    Args:
        values: (K,) probabilities.
        truth: a class number, or (K,) numbers where a case can have several classes.
    """
    target = np.asarray(truth)
    if target.ndim:
        names = [n for n, x in zip(classes, target, strict=True) if x >= 0.5] or ["none"]
        answers = [f"{n} ({v:.2f})" for n, v in zip(classes, values, strict=True) if v >= 0.5] or ["none"]
        return f"reference {', '.join(names)}, answer {', '.join(answers)}"
    best = int(np.argmax(values))
    return f"reference {classes[int(target)]}, answer {classes[best]} ({values[best]:.2f})"
