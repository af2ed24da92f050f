"""What a training leaves in its run folder beside the model: its loss curve, a first look, and the choice of a clean-up."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

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
from samadapt.postprocessing import (
    CLEANUP,
    SMOOTHING,
    UNCHANGED,
    Postprocessing,
    best_smoothing,
    better_classes,
    choose_classes,
    choose_smoothing,
    chosen_by,
    read_postprocessing,
    write_postprocessing,
)
from samadapt.prediction import Classifier, Segmenter, load_run
from samadapt.settings import FinishOptions
from samadapt.types import IGNORED, Case, SamAdaptError


@dataclass(frozen=True)
class Finished:
    """What was left."""

    pictures: tuple[Path, ...]
    postprocessing: Postprocessing = UNCHANGED  # what was chosen
    calibration: Calibration | None = None
    too_few_steps: str | None = None  # what to say where the loss was still falling fast


def demand_calibration(split: Split) -> None:
    """Before the training: whether there are cases to calibrate on."""
    if not split.select:
        raise SamAdaptError(
            "--calibrate fits on the selection cases, and there are none; give --select 1 (or more; ten at least for the sets of "
            "classes of a classifier), which are then not trained on"
        )


def demand_selection(data: Dataset, split: Split, ending: FinishOptions) -> None:
    """Before the training: whether what is asked for can be chosen, or fitted, after it."""
    by_hand = {
        "--keep-largest": (ending.keep_largest, "chooses the classes to clean up", "--keep-largest all"),
        "--smooth-slices": (ending.smooth_slices, "chooses how far to smooth", "--smooth-slices 1"),
    }
    for flag, (asked, does, own) in by_hand.items():
        if asked and data.task != "segmentation":
            raise SamAdaptError(f"{flag} is about label maps, and the task is {data.task}; leave it out")
        if asked and not split.select:
            raise SamAdaptError(
                f"{flag} {does} on the selection cases, and there are none; give --select 1 (or more), or choose yourself when you "
                f"predict (samadapt predict {own})"
            )
    if ending.calibrate:
        demand_calibration(split)


def finish(
    run: Path,
    data: Dataset,
    split: Split,
    device: str = "auto",
    ending: FinishOptions | None = None,
) -> Finished:
    """Draw and choose what is not there yet; a run that has all of it is left as it is.

    Args:
        data: that the run was trained on.
        ending: what is chosen, and fitted, on the selection cases.
    """
    ending = ending or FinishOptions()
    pictures = run / "loss.png", run / "first_look.png"
    model = None
    if not pictures[0].is_file():
        draw_loss(run)
    if not pictures[1].is_file():
        model = load_run(run, device)
        what, ids = ("selection", split.select) if split.select else ("training", split.train)
        draw_first_look(model, map(data.case, ids), what, run)
    before = chosen_by(run)
    asked = {name for name in (CLEANUP, SMOOTHING) if getattr(ending, name)}
    if not asked <= before:
        model = model or load_run(run, device)
        assert isinstance(model, Segmenter)
        _choose(model, data, split, run, asked | before)
    if ending.calibrate and not (run / CALIBRATION).is_file():
        write_calibration(run, _calibrated(model or load_run(run, device), data, split))
    return Finished(pictures, read_postprocessing(run), read_calibration(run), Course.read(run).too_few_steps)


def _choose(model: Segmenter, data: Dataset, split: Split, run: Path, asked: Collection[str]) -> None:
    """The smoothing first, for the components are those of smoothed answers."""
    cases = [data.case(case_id) for case_id in split.select]
    why: dict[str, object] = {"selection_cases": list(split.select)}
    sigma, kept = 0.0, tuple[str, ...]()
    if SMOOTHING in asked:
        given = ((model.answers(case), _label(case).numpy()) for case in cases)
        dice = choose_smoothing(given, model.classes, IGNORED)
        sigma = best_smoothing(dice)
        why[f"{SMOOTHING}_dice"] = {f"{key:g}": value for key, value in dice.items()}
    if CLEANUP in asked:
        model = replace(model, postprocessing=Postprocessing(smooth_slices=sigma))
        answers = ((model.predict(case), _label(case).numpy()) for case in cases)
        by_class = choose_classes(answers, model.classes, IGNORED)
        kept, why[f"{CLEANUP}_dice"] = better_classes(by_class), by_class
    write_postprocessing(run, Postprocessing(kept, sigma), **why)


def _calibrated(model: Segmenter | Classifier, data: Dataset, split: Split) -> Calibration:
    cases = [data.case(case_id) for case_id in split.select]
    if isinstance(model, Segmenter):
        return fit_pixels(((model.answers(case), _label(case)) for case in cases), split.select)
    logits = [torch.stack([row for row, _ in model.logits(case)]) for case in cases]
    return fit_classes(logits, torch.stack([_label(case) for case in cases]), split.select)


def _label(case: Case) -> Tensor:
    assert case.label is not None  # selection cases are labelled
    return case.label
