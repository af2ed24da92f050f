"""Training: one loop for anything with `loss(features, target)`, and the stream of batches it reads."""

from samadapt.settings import TrainConfig
from samadapt.training.loop import train
from samadapt.training.teacher import Unlabelled
