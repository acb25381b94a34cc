"""Segmenting cases with a trained model."""

from smml.inference.predictor import Encoding, Predictor, Segmentation

__all__ = ["Encoding", "Predictor", "Segmentation"]
