"""The Segment Anything Model: loading it, a tiny one that ships with the package, and prompts in voxels.

torchvision and segment-anything are imported when a SAM is built or loaded, not before.
"""

from smml.sam.cache import EmbeddingCache
from smml.sam.load import load_sam, read_tiny, save_tiny
from smml.sam.prior import SAMPrior
from smml.sam.prompts import CoarsePrompts, PromptRules, coarse_prompts
from smml.sam.slices import SquareFit, decode, encode, intensity_window, predict_masks, to_input
from smml.sam.tiny import TinyConfig, build_tiny

__all__ = [
    "CoarsePrompts",
    "EmbeddingCache",
    "PromptRules",
    "SAMPrior",
    "SquareFit",
    "TinyConfig",
    "build_tiny",
    "coarse_prompts",
    "decode",
    "encode",
    "intensity_window",
    "load_sam",
    "predict_masks",
    "read_tiny",
    "save_tiny",
    "to_input",
]
