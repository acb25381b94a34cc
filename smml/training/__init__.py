"""Training the two students together."""

from smml.training.config import TrainingConfig
from smml.training.trainer import train

__all__ = ["TrainingConfig", "train"]
