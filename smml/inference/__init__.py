"""Segmenting cases with a trained model."""

from smml.inference.predictor import Cancelled, Encoding, Predictor, Segmentation

__all__ = ["Cancelled", "Encoding", "Predictor", "Segmentation"]
