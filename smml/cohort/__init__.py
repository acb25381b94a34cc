"""Segmenting a folder of cases in one call: answers, a table, and a slice of each to look through."""

from smml.cohort.predict import predict_cohort
from smml.cohort.rows import CohortRow

__all__ = ["CohortRow", "predict_cohort"]
