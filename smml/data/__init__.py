"""Cases: simulating, finding, reading, preparing and writing them."""

from typing import TYPE_CHECKING

from smml.data.aligning import AlignedCase, Alignment, align_case
from smml.data.case import Case
from smml.data.labels import REGIONS, LabelScheme, Region, scheme_for_classes
from smml.data.layouts import LAYOUTS, CaseFiles, find_case, find_cases, layout_named
from smml.data.preprocessing import PreparedCase, prepare
from smml.data.reading import read_case
from smml.data.simulation.cohort import simulate_cohort
from smml.data.writing import write_case, write_probabilities, write_segmentation

if TYPE_CHECKING:
    from smml.data.dataset import CohortDataset

__all__ = [
    "LAYOUTS",
    "REGIONS",
    "AlignedCase",
    "Alignment",
    "Case",
    "CaseFiles",
    "CohortDataset",
    "LabelScheme",
    "PreparedCase",
    "Region",
    "align_case",
    "find_case",
    "find_cases",
    "layout_named",
    "prepare",
    "read_case",
    "scheme_for_classes",
    "simulate_cohort",
    "write_case",
    "write_probabilities",
    "write_segmentation",
]


def __getattr__(name: str):
    # Its transforms are MONAI's, which take longer to import than all the rest, and only training needs them.
    if name == "CohortDataset":
        from smml.data.dataset import CohortDataset

        return CohortDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
