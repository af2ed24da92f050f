"""The ways in which a label can lie wrongly on its image: mirrored, turned by quarter turns, or both."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

_AXES = ("from the last slice to the first", "upside down", "left to right")  # along D, H, W


@dataclass(frozen=True)
class Turn:
    """Where the voxels of a label would lie if it were stored otherwise."""

    flips: tuple[bool, bool, bool]  # along D, H, W, after the rows and columns are exchanged
    exchange: bool = False  # of rows and columns

    def __call__(self, places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(N, 3) voxels of an array of this shape -> (N, 3); an exchange needs a square."""
        moved = places[:, [0, 2, 1]] if self.exchange else places.copy()
        for axis, flip in enumerate(self.flips):
            if flip:
                moved[:, axis] = shape[axis] - 1 - moved[:, axis]
        return moved

    @property
    def text(self) -> str:
        """ "mirrored left to right", for example."""
        names = [name for name, flip in zip(_AXES, self.flips, strict=True) if flip]
        mirrored = f"mirrored {' and '.join(names)}" if names else ""
        exchanged = "with rows and columns exchanged" if self.exchange else ""
        return " and ".join(x for x in (mirrored, exchanged) if x) or "as stored"


#: The first is the label as it is stored.
TURNS = tuple(Turn((d, h, w), exchange) for exchange, d, h, w in itertools.product((False, True), repeat=4))


def possible(turn: Turn, shape: tuple[int, ...]) -> bool:
    """Whether a label of this shape could be stored so: rows and columns of a square only, slices of a volume only."""
    return not (turn.exchange and shape[1] != shape[2]) and not (turn.flips[0] and shape[0] == 1)
