"""Scoring segmentations over the 15 subsets."""

from smml.evaluation.added import Loss, added_sequences, format_added, largest_loss
from smml.evaluation.bootstrap import Interval, bootstrap_mean
from smml.evaluation.by_number import by_number_of_sequences
from smml.evaluation.calibration import Calibration, OutputCalibration, format_calibration
from smml.evaluation.compare import Comparison, compare, comparison_page, format_comparison, published
from smml.evaluation.conformal import conformal_quantile, fit_intervals, format_intervals, measure_intervals
from smml.evaluation.evaluate import evaluate
from smml.evaluation.formats import read_named_results, read_result
from smml.evaluation.lesions import LesionScores, lesion_scores, region_scores
from smml.evaluation.metrics import SurfaceScores, boundary_recall, dice, hd95, nsd, surface_scores
from smml.evaluation.next_scan import fit_gains, format_gains, format_next_scan, measure_next_scan
from smml.evaluation.overlap import false_alarms, misses, present_dice
from smml.evaluation.report import write_report
from smml.evaluation.scores import Scores
from smml.evaluation.tables import (
    case_table,
    format_table,
    lesion_table,
    overlap_table,
    refinement_table,
    summary_table,
)
from smml.evaluation.temperatures import Fitted, fit_temperature, fit_temperatures, measure_calibration

__all__ = [
    "Calibration",
    "Comparison",
    "Fitted",
    "Interval",
    "LesionScores",
    "Loss",
    "OutputCalibration",
    "Scores",
    "SurfaceScores",
    "added_sequences",
    "bootstrap_mean",
    "boundary_recall",
    "by_number_of_sequences",
    "case_table",
    "compare",
    "comparison_page",
    "conformal_quantile",
    "dice",
    "evaluate",
    "false_alarms",
    "fit_gains",
    "fit_intervals",
    "fit_temperature",
    "fit_temperatures",
    "format_added",
    "format_calibration",
    "format_comparison",
    "format_gains",
    "format_intervals",
    "format_next_scan",
    "format_table",
    "hd95",
    "largest_loss",
    "lesion_scores",
    "lesion_table",
    "measure_calibration",
    "measure_intervals",
    "measure_next_scan",
    "misses",
    "nsd",
    "overlap_table",
    "present_dice",
    "published",
    "read_named_results",
    "read_result",
    "refinement_table",
    "region_scores",
    "summary_table",
    "surface_scores",
    "write_report",
]
