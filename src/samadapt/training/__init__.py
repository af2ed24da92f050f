"""Training: one loop for anything with `loss(features, target)`, and the stream of batches it reads."""

from samadapt.training.loop import TrainConfig, train

__all__ = ["TrainConfig", "train"]
