"""Scoring segmentations over the 15 subsets."""

from smml.evaluation.evaluate import evaluate
from smml.evaluation.scores import boundary_recall, dice, hd95
from smml.evaluation.tables import format_table, refinement_table, summary_table, write_report

__all__ = [
    "boundary_recall",
    "dice",
    "evaluate",
    "format_table",
    "hd95",
    "refinement_table",
    "summary_table",
    "write_report",
]
