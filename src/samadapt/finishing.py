"""What a training leaves in its run folder beside the model: its loss curve, a first look, and the choice of a clean-up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samadapt.calibration import NAME as CALIBRATION
from samadapt.calibration import (
    Calibration,
    fit_classes,
    fit_pixels,
    read_calibration,
    write_calibration,
)
from samadapt.course import Course
from samadapt.datasets import Dataset, Split
from samadapt.pictures import draw_first_look, draw_loss
from samadapt.postprocessing import NAME, choose_classes, read_postprocessing, write_postprocessing
from samadapt.prediction import Classifier, Segmenter, load_run
from samadapt.types import IGNORED, Case, SamAdaptError


@dataclass(frozen=True)
class Finished:
    """What was left."""

    pictures: tuple[Path, ...]
    keep_largest: tuple[str, ...] = ()  # classes that the clean-up was chosen for
    calibration: Calibration | None = None
    too_few_steps: str | None = None  # what to say where the loss was still falling fast


def demand_calibration(split: Split) -> None:
    """Before the training: whether there are cases to calibrate on."""
    if not split.select:
        raise SamAdaptError(
            "--calibrate fits on the selection cases, and there are none; give --select 1 (or more; ten at least for the sets of "
            "classes of a classifier), which are then not trained on"
        )


def demand_selection(data: Dataset, split: Split) -> None:
    """Before the training: whether a clean-up can be chosen after it."""
    if data.task != "segmentation":
        raise SamAdaptError(f"--keep-largest is about label maps, and the task is {data.task}; leave it out")
    if not split.select:
        raise SamAdaptError(
            "--keep-largest chooses the classes to clean up on the selection cases, and there are none; give --select 1 "
            "(or more), or choose them yourself when you predict (samadapt predict --keep-largest all)"
        )


def finish(
    run: Path,
    data: Dataset,
    split: Split,
    device: str = "auto",
    choose_cleanup: bool = False,
    calibrate: bool = False,
) -> Finished:
    """Draw and choose what is not there yet; a run that has all of it is left as it is.

    Args:
        data: that the run was trained on.
        choose_cleanup: whether the classes of which the largest component is kept are chosen on the selection cases.
        calibrate: whether the probabilities are calibrated on the selection cases.
    """
    pictures = run / "loss.png", run / "first_look.png"
    model = None
    if not pictures[0].is_file():
        draw_loss(run)
    if not pictures[1].is_file():
        model = load_run(run, device)
        what, ids = ("selection", split.select) if split.select else ("training", split.train)
        draw_first_look(model, map(data.case, ids), what, run)
    if choose_cleanup and not (run / NAME).is_file():
        model = model or load_run(run, device)
        assert isinstance(model, Segmenter)
        _choose(model, data, split, run)
    if calibrate and not (run / CALIBRATION).is_file():
        write_calibration(run, _calibrated(model or load_run(run, device), data, split))
    return Finished(pictures, read_postprocessing(run), read_calibration(run), Course.read(run).too_few_steps)


def _choose(model: Segmenter, data: Dataset, split: Split, run: Path) -> None:
    def answers() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for case_id in split.select:
            case = data.case(case_id)
            assert case.label is not None
            yield model.predict(case), case.label.numpy()

    dice = choose_classes(answers(), model.classes, IGNORED)
    write_postprocessing(run, dice, split.select)


def _calibrated(model: Segmenter | Classifier, data: Dataset, split: Split) -> Calibration:
    cases = [data.case(case_id) for case_id in split.select]
    if isinstance(model, Segmenter):
        return fit_pixels(((model.answers(case), _label(case)) for case in cases), split.select)
    logits = [torch.stack([row for row, _ in model.logits(case)]) for case in cases]
    return fit_classes(logits, torch.stack([_label(case) for case in cases]), split.select)


def _label(case: Case) -> Tensor:
    assert case.label is not None  # selection cases are labelled
    return case.label
