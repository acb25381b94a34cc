"""The ablation study: which part of the method is worth what, over the 15 subsets, with intervals."""

from smml.study.presets import ARMS, EVERY_ARM, READINGS, RIVALS, STUDIES, Arm, StudyPreset, arm_label, study_preset
from smml.study.report import Study, compare_arms, read_study, write_study
from smml.study.run import run_study

__all__ = [
    "ARMS",
    "EVERY_ARM",
    "READINGS",
    "RIVALS",
    "STUDIES",
    "Arm",
    "Study",
    "StudyPreset",
    "arm_label",
    "compare_arms",
    "read_study",
    "run_study",
    "study_preset",
    "write_study",
]
