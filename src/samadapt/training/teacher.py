"""The mean teacher: what a training learns from unlabelled slices.

The averaged weights (the teacher) answer for a view of a slice as it is, the weights in training (the student) for the same
view under what its head does to maps while it trains (`heads.fused.FeatureJitter`), with rectangles of other slices put
in. Where the teacher is certain the student is to answer the same. After Tarvainen & Valpola, "Mean teachers" (2017), Sohn
et al., "FixMatch" (2020), French et al., CutMix for segmentation (2020), and UniMatch's perturbation of features (2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from samadapt.adapted import AdaptedModel
from samadapt.features import Pairs
from samadapt.losses import to_grid
from samadapt.settings import UnlabelledOptions
from samadapt.training.averager import Averager
from samadapt.training.stream import Batch
from samadapt.transforms import seeded
from samadapt.types import UNCERTAIN

_FEWEST = 4  # cells of the coarsest map along a side, below which no rectangle of it is exchanged


@dataclass(frozen=True)
class Unlabelled:
    """Unlabelled scans, as a training is given them.

    Args:
        pairs: their targets are of no class; in a segmentation they say where the image is.
        described: what `config.json` says of them.
    """

    pairs: Pairs
    options: UnlabelledOptions
    described: Mapping[str, Any]


@final
class Teacher:
    """Makes the targets of unlabelled slices.

    Args:
        averager: holds the teacher's weights.
        seed: draws the rectangles, with the step.
        autocast: the context in which the student computes.
    """

    def __init__(
        self,
        model: AdaptedModel,
        averager: Averager,
        options: UnlabelledOptions,
        seed: int,
        autocast: Callable[[], Any],
    ) -> None:
        self.model, self.averager, self.options = model, averager, options
        self.seed, self.autocast = seed, autocast

    @torch.no_grad()
    def __call__(
        self, labelled: Batch, unlabelled: Batch, *key: object
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Two batches -> the maps of both, one after the other; the target of the first; that of the second.

        Args:
            key: draws the rectangles.
        """
        model, (x, target), (u, blank) = self.model, labelled, unlabelled
        x, u = (model.features({tap: v.to(model.device) for tap, v in given.items()}) for given in (x, u))
        teacher = {n.removeprefix("head."): v.to(model.device) for n, v in self.averager.average.items()}
        model.eval()
        with self.autocast():
            answer = torch.func.functional_call(model.head, teacher, (u,)).float()
        model.train()
        taught = _TARGETS[model.head.task](answer, blank.to(model.device), self.options.confidence)
        if model.head.task == "segmentation":
            u, taught = exchange_rectangles(u, taught, seeded("rectangles", self.seed, *key))
        return {tap: torch.cat([x[tap], u[tap]]) for tap in x}, target, taught


def _shares(answer: Tensor, blank: Tensor, confidence: float) -> Tensor:
    """(B, K, any, any) logits -> (B, K, h, w): all of a cell for its class, or nothing known."""
    p = to_grid(answer.softmax(1), blank.shape[-2:])
    sure, label = p.max(1)
    known = (sure >= confidence) & (blank.sum(1) > 0)
    return F.one_hot(label, p.shape[1]).movedim(-1, 1) * known[:, None].float()


def _classes(answer: Tensor, blank: Tensor, confidence: float) -> Tensor:
    """(B, K) logits -> (B,) classes, those that are not certain left out; of several labels, probabilities."""
    if blank.dim() == 2:
        return answer.sigmoid()
    sure, label = answer.softmax(1).max(1)
    return torch.where(sure >= confidence, label, UNCERTAIN)


_TARGETS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "segmentation": _shares,
    "classification": _classes,
}


def exchange_rectangles(
    features: Mapping[str, Tensor], target: Tensor, rng: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Every slice gets a rectangle of the one before it, in all maps and in the target.

    Its edges are those of cells of the coarsest map, so that no cell has something of two slices; its sides have a quarter
    to three quarters of the cells.
    """
    cells = min(min(x.shape[-2:]) for x in features.values())
    if cells < _FEWEST or len(target) < 2:
        return dict(features), target
    mask = torch.zeros(len(target), 1, cells, cells)
    for place in mask[:, 0]:
        height, width = (
            int(torch.randint(cells // 4, 3 * cells // 4 + 1, (), generator=rng)) for _ in range(2)
        )
        top, left = (int(torch.randint(0, cells - n + 1, (), generator=rng)) for n in (height, width))
        place[top : top + height, left : left + width] = 1

    def exchanged(x: Tensor) -> Tensor:
        here = F.interpolate(mask, size=x.shape[-2:], mode="nearest").to(x)
        return x * (1 - here) + x.roll(1, 0) * here

    return {tap: exchanged(x) for tap, x in features.items()}, exchanged(target)
