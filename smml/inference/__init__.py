"""Segmenting cases with a trained model."""

from smml.inference.predictor import Predictor
from smml.inference.results import Cancelled, Encoding, Segmentation

__all__ = ["Cancelled", "Encoding", "Predictor", "Segmentation"]
