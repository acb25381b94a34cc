"""Prompts drawn from known objects: boxes round them, points truly inside and outside, and the baselines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from smml.sam.training.prompts import JITTER, draw_points, fill_box, fill_ellipse, iou, jittered_box, mask_box


@st.composite
def masks(draw) -> np.ndarray:
    """Any mask of up to 40 x 40 voxels that is not empty: a box, speckles, or both cut to what lies in the slice."""
    height, width = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    mask = np.zeros((height, width), bool)
    row, column = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    mask[row : row + draw(st.integers(1, 40)), column : column + draw(st.integers(1, 40))] = True
    if draw(st.booleans()):
        mask &= np.random.default_rng(draw(st.integers(0, 99))).random(mask.shape) < 0.7
        mask[row, column] = True
    return mask


seeds = st.integers(0, 2**32 - 1)


@given(masks())
def test_the_box_of_a_mask_holds_all_of_it_and_no_line_more(mask):
    top, left, bottom, right = mask_box(mask)
    inside = mask[top:bottom, left:right]
    assert inside.sum() == mask.sum()
    assert inside[0].any()
    assert inside[-1].any()
    assert inside[:, 0].any()
    assert inside[:, -1].any()


@given(masks(), seeds, st.sampled_from([0.0, JITTER, 0.3]))
def test_a_jittered_box_stays_near_its_mask_and_in_the_slice(mask, seed, jitter):
    exact = np.array(mask_box(mask))
    box = jittered_box(mask, np.random.default_rng(seed), jitter)
    lengths = np.tile(exact[2:] - exact[:2], 2)
    # A voxel at most where the share is less than that; a small object keeps two thirds of its box.
    limits = np.maximum(jitter * lengths, np.minimum(1, np.maximum(jitter, 1 / 6) * lengths))
    assert (np.abs(box - exact) <= limits + 1e-4).all()
    assert box.dtype == np.float32
    assert (box >= 0).all()
    assert (box <= np.tile(mask.shape, 2)).all()
    assert (box[2:] - box[:2] >= 0.39 * lengths[:2]).all()


def test_jitter_moves_every_side_both_ways():
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:60] = True
    random = np.random.default_rng(0)
    moved = np.array([jittered_box(mask, random) - mask_box(mask) for _ in range(300)])
    # Up to a tenth of 20 rows and 30 columns.
    assert moved.min(axis=0) == pytest.approx([-2, -3, -2, -3], abs=0.1)
    assert moved.max(axis=0) == pytest.approx([2, 3, 2, 3], abs=0.1)


@given(masks(), st.integers(0, 4), st.integers(0, 4), seeds)
def test_points_lie_where_their_labels_say(mask, inside, outside, seed):
    points, labels = draw_points(mask, inside, outside, np.random.default_rng(seed))
    assert points.shape == (inside + outside, 2)
    assert points.dtype == np.float32
    rows, columns = points.astype(int).T
    assert (labels[:inside] == 1).all()
    assert mask[rows[:inside], columns[:inside]].all()
    # Nowhere to put a point outside: padding, which SAM ignores.
    assert set(labels[inside:]) <= {0, -1}
    assert not points[labels == -1].any()
    negative = labels == 0
    assert not ndimage.binary_dilation(mask)[rows[negative], columns[negative]].any()
    top, left, bottom, right = mask_box(mask)
    assert (np.abs(rows[negative] + 0.5 - (top + bottom) / 2) <= bottom - top + 1).all()
    assert (np.abs(columns[negative] + 0.5 - (left + right) / 2) <= right - left + 1).all()


@given(masks(), seeds)
def test_the_first_point_is_deep_inside(mask, seed):
    (row, column), _ = (values[0] for values in draw_points(mask, 1, 0, np.random.default_rng(seed)))
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    assert depth[int(row), int(column)] >= depth.max() / 2


def test_a_mask_that_fills_its_slice_has_no_points_outside():
    points, labels = draw_points(np.ones((5, 9), bool), 1, 2, np.random.default_rng(0))
    assert labels.tolist() == [1, -1, -1]
    assert not points[1:].any()


def test_points_outside_come_from_the_surroundings_of_a_given_box():
    mask = np.zeros((60, 80), bool)
    mask[10:14, 10:14] = True
    box = np.array([39.5, 60.0, 49.5, 70.0], np.float32)
    points, labels = draw_points(mask, 0, 50, np.random.default_rng(0), box)
    assert (labels == 0).all()
    assert (points.min(axis=0) >= [34, 55]).all()
    assert (points.max(axis=0) <= [55, 76]).all()


def test_the_same_seed_draws_the_same_prompts():
    mask = np.zeros((30, 40), bool)
    mask[5:20, 8:33] = True
    draws = [(jittered_box(mask, r), *draw_points(mask, 2, 2, r)) for r in map(np.random.default_rng, (3, 3, 4))]
    assert all(np.array_equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not np.array_equal(draws[0][0], draws[2][0])


@given(masks())
def test_a_filled_box_has_that_box(mask):
    box = mask_box(mask)
    assert mask_box(fill_box(np.array(box), mask.shape)) == box
    assert not (mask & ~fill_box(np.array(box), mask.shape)).any()


@given(masks())
def test_the_ellipse_lies_in_its_box(mask):
    box = np.array(mask_box(mask))
    ellipse = fill_ellipse(box, mask.shape)
    assert not (ellipse & ~fill_box(box, mask.shape)).any()
    assert np.array_equal(ellipse, fill_ellipse(box[[1, 0, 3, 2]], mask.shape[::-1]).T)


def test_boxes_and_ellipses_hold_the_voxels_whose_centre_is_in_them():
    assert np.argwhere(fill_box(np.array([0.4, 1.6, 1.6, 3.5]), (3, 5))).tolist() == [[0, 2], [1, 2]]
    ellipse = fill_ellipse(np.array([10, 20, 90, 140]), (100, 160))
    assert ellipse.sum() == pytest.approx(np.pi * 40 * 60, rel=0.01)
    assert mask_box(ellipse) == (10, 20, 90, 140)


def test_intersection_over_union():
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a, a) == 1
    assert iou(a, ~a) == 0
    assert iou(a & ~a, a & ~a) == 1
