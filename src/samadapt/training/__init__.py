"""Training: one loop for anything with `loss(features, target)`, and the stream of batches it reads."""

from samadapt.training.config import TrainConfig, precision_note
from samadapt.training.loop import train

__all__ = ["TrainConfig", "precision_note", "train"]
