"""Classes from the grey values of masks, for data sets without a description."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from samadapt import io
from samadapt.types import IGNORED, SamAdaptError

_FEW = 8  # at most so many grey values can be classes that were spread out to be visible
_FLOOR = 64  # values below are taken as class numbers


def classes_from_values(masks: Sequence[Path], root: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Class names and stored value -> class, from the values of all masks.

    0/255 is background and foreground; small numbers are the classes themselves, with 255 ignored; a few
    spread-out grey values (0, 128, 255) are the classes in their order. Anything else is not a mask.
    """
    seen: dict[int, Path] = {}
    of_mask = {mask: set(io.label_values(mask)) for mask in masks}
    for mask, present in of_mask.items():
        for value in present:
            seen.setdefault(value, mask)
    values = sorted(seen)
    inner = [v for v in values if v != 255]
    if not masks or values == [0]:
        return ("background", "foreground"), {0: 0, 1: 1, 255: 1}
    if set(values) <= {0, 255}:
        return ("background", "foreground"), {0: 0, 255: 1}
    if max(inner) < _FLOOR and not any(map(io.is_lossy, masks)):
        _demand_one_coding(of_mask)
        classes = ("background", *(f"class {v}" for v in range(1, max(inner) + 1)))
        return classes, {**{v: v for v in range(len(classes))}, 255: IGNORED}
    apart = min((b - a for a, b in itertools.pairwise(values)), default=256)
    if len(values) <= _FEW and values[0] == 0 and apart >= 16 and not any(map(io.is_lossy, masks)):
        return ("background", *(f"value {v}" for v in values[1:])), {v: n for n, v in enumerate(values)}
    odd = next(v for v in inner if v != 0)
    raise SamAdaptError(
        f"the masks of {root} have {len(values)} grey values ({', '.join(map(str, values[:6]))}, ...; {odd} is in "
        f"{seen[odd]}); expected 0 and 255, or class numbers 0, 1, 2, ...: such masks are softened at the edges or "
        "were saved as JPEG; threshold them and save them as PNG"
    )


def _demand_one_coding(of_mask: Mapping[Path, set[int]]) -> None:
    """255 is what is not to be scored in masks of small numbers, and the foreground in masks of 0 and 255."""
    small = [mask for mask, present in of_mask.items() if present - {0, 255}]
    large = [mask for mask, present in of_mask.items() if 255 in present and not present - {0, 255}]
    if small and large:
        raise SamAdaptError(
            f"{len(large)} masks have the values 0 and 255, as {large[0]}, and {len(small)} small numbers, as {small[0]} "
            f"({', '.join(map(str, sorted(of_mask[small[0]])))}); expected one coding: save all masks with 0 and 255, or all "
            "with class numbers"
        )
