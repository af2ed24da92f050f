"""What every head checks first: that the encoder gives the taps it reads, and the names and values of its options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from samadapt.losses import LOSSES
from samadapt.options import Declarations, declared_by
from samadapt.types import PIXELS, Head, SamAdaptError, Taps, by_encoder

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
    several = [encoder for encoder in by_encoder(taps) if encoder]
    if tap not in taps and several:
        raise SamAdaptError(
            f"head {head!r} reads [{tap!r}] of one encoder, and several are read together, which give {sorted(taps)}; name one "
            "encoder, or use a head that reads several (fused)"
        )
    if tap not in taps:
        raise SamAdaptError(
            f"head {head!r} reads [{tap!r}], which the encoder does not give; it gives {sorted(taps)}"
        )
    return taps[tap]


def pictures_of_three(head: str, taps: Taps) -> tuple[int, int, int]:
    """(3, S, S) of the pixels, for a head whose network takes pictures of three channels."""
    channels, height, width = tap_shape(head, taps, PIXELS)
    if channels != 3:
        raise SamAdaptError(
            f"head {head!r} reads pictures of 3 channels, and encoders that are read together have {channels}, three for each "
            "of them; name one encoder"
        )
    return channels, height, width


def last_tap(head: str, taps: Taps) -> str:
    """The neck, or the last map of an encoder that has none."""
    if len(by_encoder(taps)) > 1:
        raise SamAdaptError(
            f"head {head!r} reads one map, and several encoders give {sorted(taps)}; choose one of them (--set tap=...), or "
            "name one encoder"
        )
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
