"""Slices are painted in the colours of their scheme, or not at all."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from smml import figures
from smml.data import LAYOUTS, Case, find_cases, read_case
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


@pytest.mark.parametrize("turned", [False, True], ids=["as shown", "axes of the file exchanged"])
def test_slices_and_maps_have_the_shape_of_the_head_whatever_the_voxels_have(turned):
    """8 voxels of 5 mm across, 30 of 1 mm to the back: 40 mm by 30."""
    volume, labels = np.ones((8, 30, 4), np.float32), np.zeros((8, 30, 4), np.uint8)
    labels[2:4, 8:20, 1] = 3
    affine = np.diag([5.0, 1.0, 3.0, 1.0])
    if turned:
        volume, labels, affine = volume.swapaxes(0, 1), labels.swapaxes(0, 1), affine[:, [1, 0, 2, 3]]
    case = Case("a", {"t2": volume}, labels, affine, "brats2023")
    assert figures.axial_pixel(affine) == (1.0, 5.0)
    for figure in (figures.modality_figure(case), figures.segmentation_figure(case, {"all": labels})):
        picture = Image.open(io.BytesIO(base64.b64decode(figure.data[0].source.split(",")[1])))
        assert picture.size[0] / picture.size[1] == pytest.approx(40 / 30)
    values = figures.to_canonical(labels, affine).astype(float)
    brain = np.ones(values.shape, bool)
    options = {"z": 1, "limit": 1.0, "unit": "nats", "pixel": figures.axial_pixel(affine)}
    assert figures.map_figure({"a": values}, values, brain, **options).layout.yaxis.scaleratio == 1 / 5


def test_a_resection_cavity_does_not_choose_the_slice():
    labels = np.zeros((20, 20, 12), np.uint8)
    labels[2:17, 2:17, 5] = 4
    labels[4:8, 4:8, 9] = 3
    assert figures.widest_slice(labels, LAYOUTS["brats2024"].scheme) == 9
    assert LAYOUTS["brats2024"].scheme.classes[4] == "RC"
