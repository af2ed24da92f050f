"""What is done between a head's answers and the label map: probabilities smoothed over slices, the largest component kept.

Both are off unless they are asked for, by hand (`samadapt predict`) or as chosen on selection cases (`samadapt train`).
"""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from samadapt.files import write_json
from samadapt.metrics import MaskPair, dsc
from samadapt.types import SamAdaptError

#: In a run folder: what the training chose on its selection cases.
NAME = "postprocessing.json"
#: What can be chosen, as the options and the fields of the file are called.
CLEANUP, SMOOTHING = "keep_largest", "smooth_slices"
MOST_SMOOTHING = 10.0  # slices
#: Standard deviations, in slices, among which a training chooses.
SMOOTHINGS = (0.0, 0.5, 1.0, 1.5)
_CONNECTED = ndimage.generate_binary_structure(3, 3)  # voxels that share a face, an edge or a corner


@dataclass(frozen=True)
class Postprocessing:
    """What becomes of the answers of a segmentation."""

    keep_largest: tuple[str, ...] = ()  # classes of which the largest connected component is kept
    #: Standard deviation, in slices, of the Gaussian by which probabilities are averaged over neighbouring slices; 0: not.
    smooth_slices: float = 0.0

    @property
    def text(self) -> str:
        """For people."""
        parts = [f"largest component of {', '.join(self.keep_largest)}"] if self.keep_largest else []
        parts += [f"smoothed over slices (sigma {self.smooth_slices:g})"] if self.smooth_slices else []
        return "; ".join(parts) or "none"


UNCHANGED = Postprocessing()


def smoothed(answers: Iterable[Tensor], sigma: float) -> Iterator[Tensor]:
    """Answers of slices in order, averaged over their neighbours; a slice at an end has fewer.

    Args:
        answers: logits (K, H, W).
        sigma: standard deviation of the weights, in slices; three of them are looked at to either side. 0: as they are.

    Returns:
        Per slice the logarithm of the mean probabilities (K, H, W), which takes the place of logits.
    """
    if not sigma:
        yield from answers
        return
    radius = math.ceil(3 * sigma)
    weights = {step: math.exp(-0.5 * (step / sigma) * (step / sigma)) for step in range(-radius, radius + 1)}
    waiting = iter(answers)
    near: deque[tuple[int, Tensor]] = deque()  # slices with their numbers, no more than the mean needs

    def take(number: int) -> None:
        answer = next(waiting, None)
        if answer is not None:
            near.append((number, answer.softmax(0)))

    for number in range(radius):
        take(number)
    for middle in itertools.count():
        take(middle + radius)
        while near and near[0][0] < middle - radius:
            near.popleft()
        if not near or near[-1][0] < middle:
            return
        mean = torch.stack([weights[n - middle] * p for n, p in near]).sum(0)
        yield (mean / sum(weights[n - middle] for n, _ in near)).clamp_min(1e-12).log()


def keep_largest(label: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """The label map with one connected component left of each of these classes; the rest of them becomes background.

    Args:
        label: (D, H, W) classes.
    """
    kept = label.copy()
    for value in values:
        components, count = ndimage.label(label == value, _CONNECTED)
        if count > 1:
            sizes = np.bincount(components.ravel())[1:]
            kept[(components > 0) & (components != 1 + int(sizes.argmax()))] = 0
    return kept


def classes_to_clean(asked: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The classes of which the largest component is to be kept.

    Args:
        asked: names of classes, or "all" alone, or "none" alone.
        classes: of the model, the background first.
    """
    foreground = tuple(classes[1:])
    named = {"all": foreground, "none": ()}
    if len(asked) == 1 and asked[0] in named and asked[0] not in foreground:
        return named[asked[0]]
    unknown = [name for name in asked if name not in foreground]
    if unknown and unknown[0] in named:
        raise SamAdaptError(
            f"the largest component is to be kept of {', '.join(asked)}; {unknown[0]!r} stands alone: give it and nothing else, "
            f"or some of the classes of the model ({', '.join(foreground)})"
        )
    if unknown:
        raise SamAdaptError(
            f"the largest component is to be kept of {unknown[0]!r}; the classes of the model are {', '.join(foreground)}: "
            "give some of these, or all, or none"
        )
    return tuple(name for name in foreground if name in asked)


# ---------------------------------------------------------------- chosen on the selection cases


def choose_classes(
    answers: Iterable[tuple[np.ndarray, np.ndarray]], classes: Sequence[str], ignored: int
) -> dict[str, dict[str, float]]:
    """Of each class the mean Dice of some cases, as answered and with the largest component alone.

    Args:
        answers: (label map of the network, reference), (D, H, W) each.
        ignored: value of the reference that is not scored.

    Returns:
        class -> {"all": Dice, "largest": Dice}; a class that no case has, or that none was answered, is left out.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in classes[1:]}
    for answer, reference in answers:
        unknown = reference == ignored
        for value, name in enumerate(classes[1:], start=1):
            before, after = (
                dsc(MaskPair.of(label == value, reference == value, ignored=unknown))
                for label in (answer, keep_largest(answer, [value]))
            )
            if not math.isnan(before):
                # Nothing is left where nothing is, because what was kept lies where nobody knows: that is right.
                found[name].append((before, 1.0 if math.isnan(after) else after))
    return {
        name: {"all": float(np.mean([a for a, _ in dice])), "largest": float(np.mean([b for _, b in dice]))}
        for name, dice in found.items()
        if dice
    }


def choose_smoothing(
    cases: Iterable[tuple[Iterable[Tensor], np.ndarray]], classes: Sequence[str], ignored: int
) -> dict[float, float]:
    """The mean Dice of some cases by each of `SMOOTHINGS`, over the classes that are there or were answered.

    Args:
        cases: (logits (K, H, W) of the slices in order, reference (D, H, W)) each.
        ignored: value of the reference that is not scored.
    """
    dice: dict[float, list[float]] = {sigma: [] for sigma in SMOOTHINGS}
    for answers, reference in cases:
        # All at once, so that the network runs once and no volume of probabilities is kept.
        copies = itertools.tee(answers, len(SMOOTHINGS))
        ways = [smoothed(copy, sigma) for copy, sigma in zip(copies, SMOOTHINGS, strict=True)]
        slices = (
            [x.argmax(0).to(torch.uint8).numpy() for x in of_slice] for of_slice in zip(*ways, strict=True)
        )
        for sigma, label in zip(SMOOTHINGS, zip(*slices, strict=True), strict=True):
            answer, unknown = np.stack(label), reference == ignored
            found = [
                dsc(MaskPair.of(answer == value, reference == value, ignored=unknown))
                for value in range(1, len(classes))
            ]
            dice[sigma].append(float(np.nanmean(found)) if not np.isnan(found).all() else 1.0)
    return {sigma: float(np.mean(values)) for sigma, values in dice.items()}


def best_smoothing(dice: Mapping[float, float]) -> float:
    """The least one of the best."""
    return min(dice, key=lambda sigma: (-dice[sigma], sigma))


def better_classes(dice: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """The classes whose Dice the largest component alone has raised; see `choose_classes`."""
    return tuple(name for name, of in dice.items() if of["largest"] > of["all"])


def write_postprocessing(run: Path, chosen: Postprocessing, **why: Any) -> None:
    """Record in a run folder what its predictions do, and by which scores it was chosen."""
    write_json(
        run / NAME, {"keep_largest": list(chosen.keep_largest), "smooth_slices": chosen.smooth_slices, **why}
    )


def chosen_by(run: Path) -> set[str]:
    """What of it was chosen on selection cases, `CLEANUP` and `SMOOTHING`."""
    fields = _content(run / NAME)
    # Before there was a smoothing, the scores of the clean-up were called after the selection.
    known = {CLEANUP: ("keep_largest_dice", "selection_dice"), SMOOTHING: ("smooth_slices_dice",)}
    return {name for name, scores in known.items() if any(score in fields for score in scores)}


def read_postprocessing(run: Path, classes: Sequence[str] | None = None) -> Postprocessing:
    """What a run's predictions do; nothing where nothing was chosen.

    Args:
        classes: of the model, the background first; where they are given, others are refused.
    """
    path = run / NAME
    if not path.is_file():
        return UNCHANGED
    found = _content(path)
    kept, sigma = found.get(CLEANUP), found.get(SMOOTHING, 0.0)
    if not isinstance(kept, list) or not all(isinstance(name, str) for name in kept):
        raise _unreadable(path, f"{CLEANUP} is {kept!r}, expected a list of classes")
    if unknown := [name for name in kept if classes is not None and name not in classes[1:]]:
        raise _unreadable(
            path, f"{CLEANUP} names {unknown[0]!r}, expected classes of {', '.join((classes or ())[1:])}"
        )
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 <= sigma <= MOST_SMOOTHING:
        raise _unreadable(path, f"{SMOOTHING} is {sigma!r}, expected 0 to {MOST_SMOOTHING:g}")
    return Postprocessing(tuple(kept), float(sigma))


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: object) -> SamAdaptError:
    return SamAdaptError(f"{path} cannot be read ({error}); copy the whole run folder again")
