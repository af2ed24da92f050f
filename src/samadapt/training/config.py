"""How a training runs: `TrainConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from samadapt.names import LOGS, PRECISIONS, TUNINGS
from samadapt.runs import has_bf16, pick_device
from samadapt.types import SamAdaptError


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast. Steps, not epochs: one labelled volume gets as many updates as ten."""

    steps: int = 1000
    batch_size: int = 8
    lr: float | None = None  # None: the head's own
    weight_decay: float = 1e-2
    warmup: float = 0.05  # share of the steps; then a cosine down to 1 % of lr
    ema: float = 0.99  # decay of the averaged weights, which are the ones kept; 0 keeps the last
    tune: str = "none"  # the encoder: "none" (frozen) or "all" (trained with the head)
    encoder_lr: float = 1e-4  # of what is pretrained: a tuned encoder, a classifier's own pretrained network
    balance: bool = False  # classification: draw the classes, or the answers to each label, equally often
    seed: int = 0
    precision: str = "auto"  # "32", "bf16", or "auto": bf16 where the device is fast at it
    device: str = "auto"
    workers: int = 0
    check_every: int = 100  # steps between checkpoints and, with selection cases, scores
    devices: int = 1  # processes that share every batch, each with a device of its own
    log: tuple[str, ...] = ()  # loggers beside metrics.csv: "tensorboard", "mlflow"

    def __post_init__(self) -> None:
        for name, allowed in (("tune", TUNINGS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise SamAdaptError(f"{name} is {getattr(self, name)!r}; known: {', '.join(allowed)}")
        for name in self.log:
            if name not in LOGS:
                raise SamAdaptError(f"log is {name!r}; known: {', '.join(LOGS)}")
        for name in ("steps", "batch_size", "check_every", "lr", "encoder_lr", "devices"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SamAdaptError(f"{name} is {value}; expected a number above 0")
        if self.workers < 0 or not 0 <= self.seed < 2**32:
            raise SamAdaptError(
                f"workers {self.workers} must be 0 or more, seed {self.seed} from 0 to {2**32 - 1}"
            )
        if not 0 <= self.ema < 1 or not 0 <= self.warmup <= 1:
            raise SamAdaptError(f"ema {self.ema} must be in [0, 1) and warmup {self.warmup} in [0, 1]")


def precision_note(config: TrainConfig) -> str | None:
    """What to say where bfloat16 is asked of a processor that only emulates it; None elsewhere."""
    device = pick_device(config.device).type
    if config.precision != "bf16" or has_bf16(device):
        return None
    return f"this {device} has no bfloat16 of its own: bf16 is slower here than 32; auto takes the faster one"
