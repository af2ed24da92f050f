"""The weights that a training keeps: a running average; where there are selection cases, the best of its states."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from samadapt.adapted import AdaptedModel
from samadapt.features import Pairs
from samadapt.metrics import ALL, classification_metrics
from samadapt.settings import TrainConfig


@final
class Averager:
    """The running average of what is trained.

    Args:
        tensors: name -> tensor that the training changes; looked at after every step.
        select: labelled cases that choose the best state, if any.
    """

    def __init__(
        self, model: AdaptedModel, tensors: Mapping[str, Tensor], config: TrainConfig, select: Pairs | None
    ) -> None:
        self.model, self.tensors, self.config, self.select = model, tensors, config, select
        self.average: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}
        self.best_score, self.score = -math.inf, math.nan

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After so many steps."""
        decay = min(self.config.ema, step / (step + 9))  # an average of few steps must not remember the start
        for name, tensor in self.tensors.items():
            if decay == 0 or name not in self.average or not tensor.is_floating_point():
                self.average[name] = tensor.clone()
            else:
                self.average[name] = self.average[name].to(tensor.device).lerp_(tensor, 1 - decay)
        if self.select is not None and (step % self.config.check_every == 0 or step == self.config.steps):
            self.score = self._score(self.select)
            if self.score > self.best_score:
                self.best_score, self.best = self.score, {k: v.clone() for k, v in self.average.items()}

    def restart(self) -> None:
        """Begin another training from the weights that the last one kept, which are the average at first."""
        self.average, self.best = self.final_weights(), {}
        self.best_score, self.score = -math.inf, math.nan
        put(self.tensors, self.average)

    def _score(self, select: Pairs) -> float:
        """The averaged weights on the selection cases."""
        now = {name: tensor.clone() for name, tensor in self.tensors.items()}
        put(self.tensors, self.average)
        self.model.eval()
        logits, targets = [], []
        for begin in range(0, len(select), self.config.batch_size):
            x, target = select.batch(range(begin, min(len(select), begin + self.config.batch_size)))
            x = {tap: value.to(self.model.device) for tap, value in x.items()}
            logits.append(self.model.head(self.model.features(x)).float().cpu())
            targets.append(target)
        self.model.train()
        put(self.tensors, now)
        return SELECTION[self.model.head.task](torch.cat(logits), torch.cat(targets))

    def final_weights(self) -> dict[str, Tensor]:
        """The best on the selection cases, else the average."""
        return self.best or self.average

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {key: getattr(self, key) for key in ("average", "best", "best_score", "score")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The opposite of `state`."""
        for key, value in state.items():
            setattr(self, key, value)


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Overwrite tensors with values of the same names."""
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _mean_dice(logits: Tensor, target: Tensor) -> float:
    """Mean foreground Dice over all voxels of the label grid: coarse, and enough to choose a step."""
    size = (target.shape[-2], target.shape[-1])
    answer = nn.functional.interpolate(logits, size=size, mode="bilinear").argmax(1)
    seen, target = target.sum(1) > 0, target.argmax(1)
    dice = []
    for label in range(1, logits.shape[1]):
        a, b = (answer == label) & seen, (target == label) & seen
        if a.any() or b.any():
            dice.append(float(2 * (a & b).sum() / (a.sum() + b.sum())))
    return float(np.mean(dice)) if dice else 0.0


def _mean_auc(logits: Tensor, target: Tensor) -> float:
    """Mean one-against-rest AUC; 0.5, which chooses nothing, where one class alone is there."""
    scores = logits.softmax(1) if target.dim() == 1 else logits.sigmoid()
    auc = classification_metrics(scores.numpy(), target.numpy())[ALL, "auc"]
    return 0.5 if math.isnan(auc) else auc


SELECTION: dict[str, Callable[[Tensor, Tensor], float]] = {
    "segmentation": _mean_dice,
    "classification": _mean_auc,
}
