"""What encoders with a network and a named preparation have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Self

from torch import Tensor, nn

from samadapt.encoders.fingerprint import WeightsHash
from samadapt.encoders.prepare import find_prepare, units_of
from samadapt.types import PIXELS, Encoder, Frame, SamAdaptError

RANDOM = "random"  # in place of a checkpoint: untrained weights, drawn from the seed


def fitting_side(what: str, side: int, step: int, least: int, examples: str) -> int:
    """The side, a multiple of `step` from `least` on.

    Args:
        what: which encoder, for the message.
        examples: sides that fit, for the message.
    """
    if side % step or side < least:
        raise SamAdaptError(f"side {side} does not fit {what}; give a multiple of {step}{examples}")
    return side


class NetworkEncoder(Encoder):
    """A subclass sets `taps` in its constructor, calls `hashed`, and gives in `forward` no more than `taps` says.

    Args:
        side: S.
        prepare: a name in `prepare.PREPARES`.
    """

    def __init__(self, side: int, prepare: str) -> None:
        super().__init__()
        self.side, self.prepare_name = side, prepare
        self._prepare, self.units = find_prepare(prepare), units_of(prepare)

    def hashed(self, family: str, network: nn.Module) -> None:
        """Remember whose weights the fingerprint is of, and under which name and version."""
        self._family, self._hash = family, WeightsHash(network)

    def prepare(self, image: Tensor) -> tuple[Tensor, Frame]:
        return self._prepare(image, self.side)

    def only(self, taps: Iterable[str]) -> Self:
        """The same network giving fewer taps: a map that nobody reads costs no memory."""
        view = copy.copy(self)
        view.taps = {tap: self.taps[tap] for tap in self.taps if tap in set(taps) | {PIXELS}}
        return view

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Of the weights as they are now, the side, the preparation and the type."""
        return f"{self._family} {self._hash()} side={self.side} prepare={self.prepare_name} float32"
