"""How a training went, read from the `metrics.csv` of its run folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samadapt.records import SamAdaptError

#: The values are looked at in five parts of equal length.
_PARTS = 5
#: A training has hardly learned where the mean of the last part is above this share of the first one's ...
_HIGH = 0.62
#: ... and the loss still falls where the second half is lower than the first by this share,
_FALLING = 0.1
#: and the last part is not above the middle one by more than this share: then it has come to rest, however high.
_RESTED = 0.1


@dataclass(frozen=True)
class Course:
    """The values that were written every few steps; each is of one batch."""

    steps: tuple[int, ...]
    loss: tuple[float, ...]
    selection: dict[int, float]  # step -> score on the selection cases

    @staticmethod
    def read(run: Path) -> Course:
        """Of a run folder."""
        path = run / "metrics.csv"
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            return Course(
                tuple(int(row["step"]) for row in rows),
                tuple(float(row["loss"]) for row in rows),
                {int(row["step"]): float(row["selection"]) for row in rows if row["selection"]},
            )
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise SamAdaptError(
                f"{path} cannot be read ({error}); copy the whole run folder again"
            ) from error

    @property
    def too_few_steps(self) -> str | None:
        """Says that the loss had hardly fallen and was still falling when the training ended; None where it was not so.

        The end of the curve alone does not tell: the learning rate falls to nothing there, and values of single batches
        scatter. The limits are measured: decision 022.
        """
        loss = self.loss
        if not loss:
            return None
        parts = [_mean(loss, n / _PARTS, (n + 1) / _PARTS) for n in range(_PARTS)]
        falls = _mean(loss, 0.5, 1) < (1 - _FALLING) * _mean(loss, 0, 0.5)
        rests = parts[-1] > (1 + _RESTED) * parts[_PARTS // 2]
        if parts[-1] <= _HIGH * parts[0] or (len(loss) >= _PARTS and (rests or not falls)):
            return None
        return (
            f"too few steps: the loss was {parts[0]:.3g} at the beginning of the {self.steps[-1]} steps and {parts[-1]:.3g} at "
            f"their end; train longer (--steps {max(300, 4 * self.steps[-1])})"
        )


def _mean(values: Sequence[float], begin: float, end: float) -> float:
    """Of the values between two shares of their number, of one at least."""
    first = int(begin * len(values))
    part = values[first : max(int(end * len(values)), first + 1)]
    return sum(part) / len(part)
