"""The ground floor: what every module may know. It imports nothing, so that a mistake is told before anything is loaded."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

#: Label value that no loss and no metric looks at: padding, and a data set's own "ignore" label.
IGNORED = 255

#: What a method of a study is there for: to be recommended, to be beaten, to show what the encoder's maps are worth
#: although nobody would use it (it counts among those to be beaten), or to show what is possible with the truth as prompt.
Role = Literal["contender", "baseline", "control", "oracle"]
ROLES: tuple[Role, ...] = get_args(Role)

#: Between the names of encoders that are read together.
TOGETHER = "+"


def encoder_names(encoder: str) -> tuple[str, ...]:
    """ "lite_medsam+imagenet_lite0" -> the names of both; of one encoder, its own."""
    return tuple(encoder.split(TOGETHER))


@dataclass(frozen=True)
class Score:
    """One row of a table of scores: ("patient012_frame01", "LV", "hd95_mm", 3.1). Undefined is nan."""

    case: str
    target: str
    metric: str
    value: float


class SamAdaptError(ValueError):
    """A user's mistake: what was wrong with its value, what is expected, what to do."""


class WriteError(SamAdaptError):
    """A file could not be written: the disk is full, or the place cannot be written to. The next file would fail as well."""


class SamAdaptWarning(UserWarning):
    """Something was assumed that the input does not say, or was left out: said once, with what to do if it is wrong."""


@contextlib.contextmanager
def others_silenced() -> Iterator[None]:
    """While it lasts, warnings of other packages are not shown; ours are.

    The filters are the process's: of two blocks that overlap in two threads, the last one leaves its own behind. So they let
    ours pass, or what was assumed of a scan would never be said again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", SamAdaptWarning)
        yield
