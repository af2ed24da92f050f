"""The ground floor: what every module may know. It imports nothing, so that a mistake is told before anything is loaded."""

from __future__ import annotations


class SamAdaptError(ValueError):
    """A user's mistake: what was wrong with its value, what is expected, what to do."""


class SamAdaptWarning(UserWarning):
    """Something was assumed that the input does not say, or was left out: said once, with what to do if it is wrong."""
