"""Probabilities that mean what they say, within the label budget: a temperature, and sets of classes that hold the truth.

Both are fitted on the selection cases of a run (`train --select 20 --calibrate`), which its weights were not trained on.

The temperature divides the logits (Guo et al., "On calibration of modern neural networks", 2017, section 4.2). The sets are
those of split conformal prediction with the probability of the class as the score (Sadinle et al., 2019; Angelopoulos & Bates,
arXiv 2107.07511, section 1): of cases like the selection cases, 90 % have their class in the set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from samadapt.files import write_json
from samadapt.runs import read_json
from samadapt.types import IGNORED, SamAdaptError

NAME = "calibration.json"
COVERAGE = 0.9
_PIXELS = 2000  # of a slice; more of them say the same
#: Of the temperature. Where all of a few cases are answered rightly, the likelihood would make answers as sure as it may.
_LIMITS = (0.25, 20.0)


@dataclass(frozen=True)
class Calibration:
    """What was fitted.

    Args:
        temperature: by which logits are divided.
        least: probability from which a class is in the set; None: no sets (label maps, several labels, too few cases).
        cases: on which it was fitted.
        before, after: mean negative log likelihood of these cases, in nats, without the temperature and with it.
    """

    temperature: float
    least: float | None
    cases: tuple[str, ...]
    before: float
    after: float

    def classes(self, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        """The set: classes that are likely enough, the likeliest always."""
        assert self.least is not None
        likeliest = max(probabilities, key=lambda name: probabilities[name])
        return tuple(n for n, p in probabilities.items() if p >= self.least or n == likeliest)


def fit_temperature(logits: Tensor, target: Tensor) -> tuple[float, float, float]:
    """The temperature with the smallest negative log likelihood, and this likelihood without it and with it.

    Args:
        logits: (N, K).
        target: (N,) classes, or (N, K) answers of several labels.
    """

    from scipy.optimize import minimize_scalar  # predictions, which only read what was fitted, start faster

    def likelihood(log_t: float) -> float:
        z = logits.double() / math.exp(log_t)
        if target.dim() == 2:
            return float(F.binary_cross_entropy_with_logits(z, target.double()))
        return float(F.cross_entropy(z, target.long()))

    found = minimize_scalar(likelihood, bounds=tuple(map(math.log, _LIMITS)), method="bounded")
    return math.exp(found.x), likelihood(0.0), float(found.fun)


def least_probability(probabilities: Tensor, target: Tensor, coverage: float = COVERAGE) -> float | None:
    """The probability from which a class is in the set; None where there are too few cases for this coverage.

    Args:
        probabilities: (N, K).
        target: (N,) classes.
    """
    n = len(target)
    rank = math.ceil((n + 1) * coverage)
    if rank > n:
        return None
    scores = 1 - probabilities.gather(1, target.long()[:, None])[:, 0]
    return float(1 - scores.sort().values[rank - 1])


def fit_classes(logits: Sequence[Tensor], target: Tensor, cases: Sequence[str]) -> Calibration:
    """Of a classifier.

    Args:
        logits: of each case, (D, K) of its slices.
        target: (N,) or (N, K).
    """
    rows = torch.cat(list(logits))
    slices = torch.cat([t.expand(len(z), *t.shape) for z, t in zip(logits, target, strict=True)])
    temperature, before, after = fit_temperature(rows, slices)
    least = None
    if target.dim() == 1:
        probabilities = torch.stack([(z / temperature).softmax(1).mean(0) for z in logits])
        least = least_probability(probabilities, target)
    return Calibration(temperature, least, tuple(cases), before, after)


def fit_pixels(answers: Iterable[tuple[Iterable[Tensor], Tensor]], cases: Sequence[str]) -> Calibration:
    """Of a segmenter.

    Args:
        answers: of each case, the logits (K, H, W) of its slices in order, and its label (D, H, W).
    """
    rows, targets = zip(*_drawn(answers), strict=True)
    temperature, before, after = fit_temperature(torch.cat(rows), torch.cat(targets))
    return Calibration(temperature, None, tuple(cases), before, after)


def _drawn(answers: Iterable[tuple[Iterable[Tensor], Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    for slices, label in answers:
        for logits, target in zip(slices, label, strict=True):
            known = (target.flatten() != IGNORED).nonzero()[:, 0]
            chosen = known[torch.randperm(len(known), generator=rng)[:_PIXELS]]
            yield logits.flatten(1).T[chosen].float(), target.flatten()[chosen]


def write_calibration(run: Path, found: Calibration) -> None:
    """Record it in a run folder, whose predictions obey it."""
    write_json(run / NAME, asdict(found) | {"coverage": COVERAGE})


def read_calibration(run: Path) -> Calibration | None:
    """Of a run folder; None where none was fitted."""
    path = run / NAME
    if not path.is_file():
        return None
    try:
        content = read_json(path, "copy the whole run folder again")
        fields = {name: content[name] for name in ("temperature", "least", "before", "after")}
        found = Calibration(**fields, cases=tuple(content["cases"]))
        sound = 0.99 * _LIMITS[0] <= found.temperature <= 1.01 * _LIMITS[1]
    except (KeyError, TypeError) as error:
        raise SamAdaptError(f"{path} cannot be read ({error}); copy the whole run folder again") from error
    if not sound:
        raise SamAdaptError(
            f"{path} has a temperature of {found.temperature}, expected {_LIMITS[0]} to {_LIMITS[1]}; it was edited: copy the "
            "whole run folder again"
        )
    return found


def coverage_note(
    sets: Sequence[str | None], labels: Sequence[int], classes: Sequence[str]
) -> tuple[str, ...]:
    """How often the sets of a table of predictions hold the class; nothing where it has none.

    Args:
        sets: of each case, names joined by |.
    """
    found = [set(text.split("|")) for text in sets if text]
    if not found or len(found) < len(labels):
        return ()
    held = sum(classes[label] in names for label, names in zip(labels, found, strict=True))
    size = sum(map(len, found)) / len(found)
    return (
        f"the sets of classes, meant to hold {COVERAGE:.0%}, hold the reference class in {held} of {len(found)} cases "
        f"({held / len(found):.1%}), {size:.2f} classes each",
    )
