"""Scoring segmentations over the 15 subsets."""

from smml.evaluation.bootstrap import Interval, bootstrap_mean
from smml.evaluation.compare import compare, format_comparison, published, read_scores
from smml.evaluation.evaluate import evaluate
from smml.evaluation.scores import boundary_recall, dice, hd95
from smml.evaluation.tables import format_table, refinement_table, summary_table, write_report

__all__ = [
    "Interval",
    "bootstrap_mean",
    "boundary_recall",
    "compare",
    "dice",
    "evaluate",
    "format_comparison",
    "format_table",
    "hd95",
    "published",
    "read_scores",
    "refinement_table",
    "summary_table",
    "write_report",
]
