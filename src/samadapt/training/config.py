"""How a training runs, and what to say about it beforehand."""

from __future__ import annotations

from samadapt.runs import has_bf16, pick_device
from samadapt.settings import TrainConfig


def precision_note(config: TrainConfig) -> str | None:
    """What to say where bfloat16 is asked of a processor that only emulates it; None elsewhere."""
    device = pick_device(config.device).type
    if config.precision != "bf16" or has_bf16(device):
        return None
    return f"this {device} has no bfloat16 of its own: bf16 is slower here than 32; auto takes the faster one"


__all__ = ["TrainConfig", "precision_note"]
