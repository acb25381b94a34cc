"""Figures of the notebooks and the README, in plotly."""

from smml.figures.charts import drop_figure, subset_figure
from smml.figures.curves import curves_figure
from smml.figures.maps import map_figure
from smml.figures.pixels import intensity_window
from smml.figures.prompts import prompt_picture
from smml.figures.relations import matrix_figure
from smml.figures.reliability import reliability_figure
from smml.figures.slices import (
    add_class_legend,
    axial_picture,
    heat_picture,
    modality_figure,
    panels,
    segmentation_figure,
    to_canonical,
    widest_slice,
)
from smml.figures.study import study_figure
from smml.figures.theme import use_theme

__all__ = [
    "add_class_legend",
    "axial_picture",
    "curves_figure",
    "drop_figure",
    "heat_picture",
    "intensity_window",
    "map_figure",
    "matrix_figure",
    "modality_figure",
    "panels",
    "prompt_picture",
    "reliability_figure",
    "segmentation_figure",
    "study_figure",
    "subset_figure",
    "to_canonical",
    "use_theme",
    "widest_slice",
]
