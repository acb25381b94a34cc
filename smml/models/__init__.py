"""The student network, the two-branch network of masked mutual learning, and the refinement of a branch."""

from smml.models.presets import PRESETS, StudentConfig, preset
from smml.models.refinement import RefinementNetwork, RefinementOutput
from smml.models.smml import SMML, SMMLOutput
from smml.models.student import Student, StudentEncoding, StudentOutput

__all__ = [
    "PRESETS",
    "SMML",
    "RefinementNetwork",
    "RefinementOutput",
    "SMMLOutput",
    "Student",
    "StudentConfig",
    "StudentEncoding",
    "StudentOutput",
    "preset",
]
