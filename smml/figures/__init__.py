"""Figures of the notebooks and the README: charts and slices in plotly, drawings of the method as SVG."""

from smml.figures.charts import drop_figure, subset_figure
from smml.figures.curves import curves_figure
from smml.figures.drawing import Drawing
from smml.figures.maps import map_figure
from smml.figures.method import method_figure
from smml.figures.pixels import intensity_window
from smml.figures.prompts import prompt_picture
from smml.figures.relations import matrix_figure
from smml.figures.reliability import reliability_figure
from smml.figures.sample import sample_figure
from smml.figures.slices import (
    add_class_legend,
    axial_picture,
    axial_pixel,
    heat_picture,
    modality_figure,
    panels,
    segmentation_figure,
    to_canonical,
    widest_slice,
)
from smml.figures.student import student_figure
from smml.figures.study import study_figure
from smml.figures.theme import use_theme

__all__ = [
    "Drawing",
    "add_class_legend",
    "axial_picture",
    "axial_pixel",
    "curves_figure",
    "drop_figure",
    "heat_picture",
    "intensity_window",
    "map_figure",
    "matrix_figure",
    "method_figure",
    "modality_figure",
    "panels",
    "prompt_picture",
    "reliability_figure",
    "sample_figure",
    "segmentation_figure",
    "student_figure",
    "study_figure",
    "subset_figure",
    "to_canonical",
    "use_theme",
    "widest_slice",
]
