"""The Segment Anything Model: loading it, a tiny one that ships with the package, and prompts in voxels.

torchvision and segment-anything are imported when a SAM is built or loaded, not before.
"""

from smml.sam.cache import EmbeddingCache
from smml.sam.calls import answer, encode
from smml.sam.load import load_sam, read_tiny, save_tiny
from smml.sam.prior import SAMPrior, best_answers
from smml.sam.prompts import PromptRules, Prompts, coarse_prompts
from smml.sam.slices import SquareFit, intensity_window, to_input
from smml.sam.tiny import TinyConfig, build_tiny

__all__ = [
    "EmbeddingCache",
    "PromptRules",
    "Prompts",
    "SAMPrior",
    "SquareFit",
    "TinyConfig",
    "answer",
    "best_answers",
    "build_tiny",
    "coarse_prompts",
    "encode",
    "intensity_window",
    "load_sam",
    "read_tiny",
    "save_tiny",
    "to_input",
]
