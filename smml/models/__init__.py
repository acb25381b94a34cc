"""The student network and the two-branch network of masked mutual learning."""

from smml.models.presets import PRESETS, StudentConfig, preset
from smml.models.smml import SMML, SMMLOutput
from smml.models.student import Student, StudentEncoding, StudentOutput

__all__ = ["PRESETS", "SMML", "SMMLOutput", "Student", "StudentConfig", "StudentEncoding", "StudentOutput", "preset"]
