"""Slices are painted in the colours of their scheme, or not at all."""

import dataclasses

import numpy as np
import pytest

from smml import figures
from smml.data import LAYOUTS, find_cases, read_case
from smml.data.labels import BRATS_2023
from smml.errors import InputError
from smml.figures.pixels import edge
from smml.figures.theme import CLASS_COLOURS, rgb


def test_labels_need_a_scheme_that_names_their_values():
    volume, labels = np.ones((6, 6, 2), np.float32), np.full((6, 6, 2), 3, np.uint8)
    with pytest.raises(InputError, match="without a scheme"):
        figures.axial_picture(volume, 0, labels)
    picture = figures.axial_picture(volume, 0, labels, BRATS_2023, opacity=1.0)
    assert (picture == rgb(CLASS_COLOURS["ET"])).all()


def test_the_classes_of_every_release_have_colours_of_their_own():
    for layout in LAYOUTS.values():
        names = layout.scheme.classes[1:]
        assert len({CLASS_COLOURS[name] for name in names}) == len(names)


def test_a_case_without_a_label_is_refused_by_name(small_cohort):
    case = dataclasses.replace(read_case(find_cases(small_cohort)[0]), label=None)
    with pytest.raises(InputError, match=f"{case.id} has no label"):
        figures.segmentation_figure(case, {})
    assert figures.modality_figure(case).data, "its sequences can be shown"


@pytest.mark.parametrize("width", [1, 2])
def test_an_edge_is_as_wide_as_asked_for_and_the_border_is_outside(width):
    inside = np.ones((9, 7), bool)
    assert edge(inside, width).sum() == 9 * 7 - (9 - 2 * width) * (7 - 2 * width)
