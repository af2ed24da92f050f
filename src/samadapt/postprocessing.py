"""Connected components of label maps: of a class that is one piece in the body, the largest one may be kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from samadapt.files import write_json
from samadapt.metrics import MaskPair, dsc
from samadapt.types import SamAdaptError

#: In a run folder: what the training chose on its selection cases.
NAME = "postprocessing.json"
_CONNECTED = ndimage.generate_binary_structure(3, 3)  # voxels that share a face, an edge or a corner


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


def write_postprocessing(
    run: Path, dice: Mapping[str, Mapping[str, float]], cases: Sequence[str]
) -> tuple[str, ...]:
    """Record in a run folder the classes whose Dice the clean-up raised on these cases; these classes."""
    better = tuple(name for name, of in dice.items() if of["largest"] > of["all"])
    write_json(
        run / NAME, {"keep_largest": list(better), "selection_dice": dice, "selection_cases": list(cases)}
    )
    return better


def read_postprocessing(run: Path) -> tuple[str, ...]:
    """The classes of which a run's predictions keep the largest component; none where nothing was chosen."""
    path = run / NAME
    if not path.is_file():
        return ()
    try:
        return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))["keep_largest"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SamAdaptError(f"{path} cannot be read ({error}); copy the whole run folder again") from error
