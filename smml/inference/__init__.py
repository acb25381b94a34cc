"""Segmenting cases with a trained model."""

from smml.inference.predictor import Predictor
from smml.inference.results import Encoding, Segmentation
from smml.inference.windows import Cancelled

__all__ = ["Cancelled", "Encoding", "Predictor", "Segmentation"]
