"""What the benchmarks share: competitors take turns in one process, and how fast the machine is stands beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from samadapt.adapted import AdaptedModel
from samadapt.runs import has_bf16
from samadapt.training.steps import StepLoop

Run = Callable[[], object]
#: Rows and columns of the product that tells how fast the machine is; where it is slow.
_MATRIX, _SMALL = 1024, 256


def seconds(run: Run, device: str = "cpu") -> float:
    """That a call takes; with one thread of a processor those that the processor spent on it."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def in_turn(runs: Mapping[str, Run], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Name -> seconds in each round; every other round goes backwards, so that none is always the first."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else list(reversed(runs)):
            times[name].append(seconds(runs[name], device))
    return times


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """Of each round."""
    return [a / b for a, b in zip(slower, faster, strict=True)]


def matmul_rate(dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """GFLOP/s of one product of square matrices, after one that is not timed."""
    size = _SMALL if dtype == torch.bfloat16 and not has_bf16(device) else _MATRIX
    a = torch.randn(size, size, device=device).to(dtype)
    a @ a
    return 2 * size**3 / seconds(lambda: a @ a, device) / 1e9


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def flops(run: Run) -> int:
    """Floating point operations of products and convolutions, a multiplication and an addition being two."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


class _Loss(nn.Module):
    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: dict[str, Tensor], target: Tensor) -> Tensor:
        return self.model.head.loss(self.model.features(x), target)


def head_loop(model: AdaptedModel, lr: float = 1e-3, bf16: bool = False) -> StepLoop:
    """What takes the optimiser steps of a head, as a training does."""
    model.train()
    return StepLoop(
        _Loss(model),
        lambda module: torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad], lr=lr, fused=True
        ),
        bf16=bf16,
    )
