"""Segmenting cases with a trained model."""

from smml.inference.contributions import Contributions, ContributionSums, contributions
from smml.inference.predictor import Predictor
from smml.inference.results import Encoding, Segmentation
from smml.inference.windows import Cancelled
from smml.models.gains import Gain, Gains
from smml.models.intervals import Volume, VolumeIntervals, volume_change

__all__ = [
    "Cancelled",
    "ContributionSums",
    "Contributions",
    "Encoding",
    "Gain",
    "Gains",
    "Predictor",
    "Segmentation",
    "Volume",
    "VolumeIntervals",
    "contributions",
    "volume_change",
]
