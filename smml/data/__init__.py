"""Cases: simulating, finding, reading, preparing and writing them."""

from smml.data.case import Case, read_case
from smml.data.labels import REGIONS, LabelScheme, scheme_for_classes
from smml.data.layouts import LAYOUTS, CaseFiles, find_case, find_cases
from smml.data.simulation.cohort import simulate_cohort
from smml.data.writing import write_case, write_probabilities, write_segmentation

__all__ = [
    "LAYOUTS",
    "REGIONS",
    "Case",
    "CaseFiles",
    "LabelScheme",
    "find_case",
    "find_cases",
    "read_case",
    "scheme_for_classes",
    "simulate_cohort",
    "write_case",
    "write_probabilities",
    "write_segmentation",
]
