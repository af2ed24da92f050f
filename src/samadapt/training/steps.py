"""The one step loop: optimiser steps on any module whose `forward` gives a loss, on Lightning Fabric.

Training, SimCLR and the pre-training of `sam_nano` differ in their modules, batches and learning rates, not in this.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from samadapt.types import SamAdaptError


class NotFiniteError(SamAdaptError):
    """A loss or its gradients are not finite. No weight was changed by this step."""


@final
class StepLoop:
    """Optimiser steps on a module, one after the other.

    Args:
        objective: called as `objective(*inputs)`, gives the loss (a scalar) of a batch.
        optimizer: makes the optimiser of parameters; its groups keep the learning rates that they are made with.
        device: "cpu", "cuda" or "mps".
        bf16: whether the forward pass computes in bfloat16 where that is safe (`torch.autocast`).
        devices: processes, each with a device of its own and a share of every batch.
        unused: whether some parameters may have no part in a loss; only several processes need to know.
        clip: the largest norm of the gradients of a step; None leaves them.
        skip: a step whose gradients are not finite changes no weight; else a loss that is not finite is an error.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        device: str = "cpu",
        bf16: bool = False,
        devices: int = 1,
        *,
        unused: bool = False,
        clip: float | None = 1.0,
        skip: bool = False,
    ) -> None:
        self.fabric, self.bf16 = launch(device, devices, unused), bf16
        raw = optimizer(objective)
        self._rates = [group["lr"] for group in raw.param_groups]
        self.objective, self.optimizer = self.fabric.setup(objective, raw)
        self.clip, self.skip, self.step = clip, skip, 0

    def update(self, *inputs: Any, rates: Sequence[float] | float = 1.0) -> Tensor:
        """One step; the loss before it.

        Args:
            rates: by which the groups' learning rates are multiplied in this step, one for all or one for each.
        """
        factors = [rates] * len(self._rates) if isinstance(rates, int | float) else rates
        for group, rate, factor in zip(self.optimizer.param_groups, self._rates, factors, strict=True):
            group["lr"] = rate * factor
        inputs = self.fabric.to_device(inputs)
        with self.autocast():
            loss = self.objective(*inputs)
        if not self.skip and not torch.isfinite(loss):
            raise self._not_finite(f"the loss is {loss.item()}")
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = loss.detach()
        if self.clip is not None:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(trained, self.clip)
        finite = bool(torch.isfinite(norm))
        if not self.skip and not finite:
            raise self._not_finite("the gradients are not finite")
        if finite:
            self.optimizer.step()
        self.step += 1
        return loss.detach()

    def restart(self) -> None:
        """Forget the moments of the gradients, as for weights that have not been trained; the steps are counted on."""
        self.optimizer.optimizer.state.clear()

    def autocast(self) -> Any:
        """The context of a forward pass."""
        # Not Fabric's own "bf16-mixed": it rounds what goes in, and with it the targets.
        return torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def _not_finite(self, what: str) -> NotFiniteError:
        return NotFiniteError(
            f"{what} at step {self.step}; lower the learning rate (now {self._rates[0]}), or compute in float32 "
            "(--precision 32)"
        )

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.fabric.is_global_zero)

    def mean(self, value: Tensor) -> float:
        """Over the processes."""
        return float(self.fabric.all_reduce(value, reduce_op="mean"))  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the module's tensors."""
        return {"step": self.step, "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """The opposite of `state`."""
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])


def launch(device: str = "cpu", devices: int = 1, unused: bool = False) -> Any:
    """Fabric, its processes started: all but the first run the same command again from its beginning."""
    from lightning.fabric import Fabric  # here: it takes a second

    several = "ddp_find_unused_parameters_true" if unused else "ddp"
    with quiet():
        fabric = Fabric(
            accelerator="gpu" if device == "cuda" else device,
            devices=devices,
            strategy=several if devices > 1 else "auto",
        )
        fabric.launch()
    return fabric


def warm_cosine(step: int, steps: int, warmup: float) -> float:
    """Of a learning rate: up in a line over a share of the steps, then down a cosine to a hundredth."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's notices help nobody here; its errors still come through."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("fabric", "pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*(isinstance|LeafSpec).*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
