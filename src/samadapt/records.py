"""The ground floor: what every module may know. It imports nothing, so that a mistake is told before anything is loaded."""

from __future__ import annotations

from typing import Literal, get_args

#: What a method of a study is there for: to be recommended, to be beaten, to show what the encoder's maps are worth
#: although nobody would use it (it counts among those to be beaten), or to show what is possible with the truth as prompt.
Role = Literal["contender", "baseline", "control", "oracle"]
ROLES: tuple[Role, ...] = get_args(Role)


class SamAdaptError(ValueError):
    """A user's mistake: what was wrong with its value, what is expected, what to do."""


class SamAdaptWarning(UserWarning):
    """Something was assumed that the input does not say, or was left out: said once, with what to do if it is wrong."""
