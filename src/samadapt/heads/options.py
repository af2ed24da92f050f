"""What every head checks first: that the encoder gives the taps it reads, and the names and values of its options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from samadapt.losses import LOSSES
from samadapt.options import Declarations, declared_by
from samadapt.types import PIXELS, Head, SamAdaptError, Taps

#: `faithful` repeats the authors' code with its oddities; `fixed` is what we recommend (METHODS A.8).
Preset = Literal["fixed", "faithful"]
PRESETS = get_args(Preset)
#: What a head that can start from the encoder's own decoder starts from.
STARTS = ("trained", "random")
#: What the caller gives a head, not the user.
_GIVEN = ("taps", "n_classes", "pretrained", "units")


def options_of(head: type[Head]) -> Declarations:
    """The options of a head, as its constructor declares them."""
    return declared_by(head, without=_GIVEN)


def tap_shape(head: str, taps: Taps, tap: str) -> tuple[int, int, int]:
    """(C, h, w) of a tap that the head cannot do without."""
    if tap not in taps:
        raise SamAdaptError(
            f"head {head!r} reads [{tap!r}], which the encoder does not give; it gives {sorted(taps)}"
        )
    return taps[tap]


def last_tap(taps: Taps) -> str:
    """The neck, or the last map of an encoder that has none."""
    maps = [tap for tap in taps if tap != PIXELS]
    return "neck" if "neck" in maps or not maps else maps[-1]


def one_of(head: str, option: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in (known := list(choices)):
        raise SamAdaptError(
            f"head {head!r} has no {option} {value!r}; give one of {', '.join(map(str, known))}"
        )


def loss_name(head: str, preset: str, loss: str | None) -> str:
    """The preset's own loss unless another one is asked for."""
    one_of(head, "preset", preset, PRESETS)
    name = loss or ("autosam" if preset == "faithful" else "dice_ce")
    one_of(head, "loss", name, LOSSES)
    return name
