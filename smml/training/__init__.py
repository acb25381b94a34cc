"""Training the two students together."""

from smml.training.config import TrainingConfig
from smml.training.trainer import TrainingResult, train

__all__ = ["TrainingConfig", "TrainingResult", "train"]
