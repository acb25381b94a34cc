"""Prompts are drawn where they are: in radiological convention, over the voxels that they name."""

import numpy as np
import pytest

from smml.figures import prompt_picture
from smml.figures.prompts import BOX_COLOUR, MASK_COLOUR, TRUTH_COLOUR
from smml.figures.theme import rgb

SHAPE = (20, 16, 4)


@pytest.fixture
def volume() -> np.ndarray:
    """RAS+: brighter towards the patient's left (large x) and front (large y)."""
    x, y, _ = np.indices(SHAPE)
    return (1 + x + 10 * y).astype(np.float32)


def places(picture: np.ndarray, colour: str) -> np.ndarray:
    """(row, column) of the pixels of one colour."""
    return np.argwhere((picture == np.asarray(rgb(colour))).all(axis=-1))


def test_a_box_lies_over_its_voxels_with_the_patients_right_on_the_left(volume):
    picture = prompt_picture(volume, 1, boxes=np.array([[2.0, 9.0, 6.0, 12.0]]))
    assert picture.shape == (3 * SHAPE[1], 3 * SHAPE[0], 3)
    found = places(picture, BOX_COLOUR)
    # x from 2 to 6 of 20 is on the patient's right: columns counted from the right edge of the picture.
    assert (found[:, 1].min(), found[:, 1].max()) == (3 * (20 - 6), 3 * (20 - 2) - 1)
    assert (found[:, 0].min(), found[:, 0].max()) == (3 * (16 - 12), 3 * (16 - 9) - 1)
    assert len(found) == 2 * (12 + 9) - 4  # an outline, not a surface


def test_the_mask_is_painted_and_the_truth_is_an_outline(volume):
    mask = np.zeros(SHAPE[:2])
    mask[5, 3] = 1
    picture = prompt_picture(volume, 1, mask=mask, opacity=1.0)
    assert len(places(picture, MASK_COLOUR)) == 9
    assert places(picture, MASK_COLOUR).min(axis=0).tolist() == [3 * (16 - 4), 3 * (20 - 6)]
    truth = np.zeros(SHAPE[:2], bool)
    truth[4:8, 4:8] = True
    bright = len(places(prompt_picture(volume, 1), TRUTH_COLOUR))  # white of the image itself, elsewhere
    assert len(places(prompt_picture(volume, 1, truth=truth), TRUTH_COLOUR)) - bright == 4 * 12 - 4


def test_points_have_the_colour_of_their_label_and_padding_is_not_drawn(volume):
    points = np.array([[5.0, 5.0], [10.0, 5.0], [15.0, 5.0]])
    plain = prompt_picture(volume, 1)
    both = prompt_picture(volume, 1, points=points, point_labels=np.array([1, 0, -1]))
    changed = np.argwhere((plain != both).any(axis=-1))
    columns = {int(column) // 3 for column in changed[:, 1]}
    assert columns <= {20 - 1 - x for x in (4, 5, 6, 9, 10, 11)}
    assert len({tuple(both[row, column]) for row, column in changed}) == 2


def test_a_box_beyond_the_slice_is_cut(volume):
    picture = prompt_picture(volume, 1, boxes=np.array([[-3.0, -3.0, 30.0, 30.0]]))
    assert picture.shape == (3 * SHAPE[1], 3 * SHAPE[0], 3)
    assert len(places(picture, BOX_COLOUR)) > 0
