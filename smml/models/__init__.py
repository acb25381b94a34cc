"""The student network, the two-branch network of masked mutual learning, and the refinement of a branch."""

from smml.models.presets import PRESETS, Precision, StudentConfig, preset
from smml.models.refinement import RefinementNetwork, RefinementOutput
from smml.models.smml import SMML, SMMLOutput
from smml.models.student import SeparateHeads, Student, StudentEncoding, StudentOutput, StudentShares

__all__ = [
    "PRESETS",
    "SMML",
    "Precision",
    "RefinementNetwork",
    "RefinementOutput",
    "SMMLOutput",
    "SeparateHeads",
    "Student",
    "StudentConfig",
    "StudentEncoding",
    "StudentOutput",
    "StudentShares",
    "preset",
]
