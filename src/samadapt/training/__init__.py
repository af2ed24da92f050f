"""Training: one loop for anything with `loss(features, target)`, and the stream of batches it reads."""

from samadapt.training.loop import TrainConfig, precision_note, train

__all__ = ["TrainConfig", "precision_note", "train"]
