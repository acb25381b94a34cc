"""Dice, HD95, NSD and boundary recall against MONAI and cases computed by hand, empty regions included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.spatial.distance import cdist

from smml.evaluation import metrics
from smml.evaluation.evaluate import relabel_small_et
from smml.evaluation.metrics import (
    CHALLENGE_PENALTY,
    SurfaceScores,
    boundary_recall,
    dice,
    hd95,
    nsd,
    surface_scores,
)


def box(shape, *ranges):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def test_dice_of_two_shifted_boxes_by_hand():
    a = box((10, 10, 10), (2, 6), (2, 6), (2, 6))
    b = box((10, 10, 10), (3, 7), (2, 6), (2, 6))
    assert dice(a, b) == pytest.approx(2 * 48 / 128)


def test_dice_counts_both_empty_as_one_and_a_false_alarm_as_zero():
    empty, speck = np.zeros((4, 4, 4), bool), box((4, 4, 4), (1, 2), (1, 2), (1, 2))
    assert dice(empty, empty) == 1
    assert dice(speck, empty) == 0
    assert dice(empty, speck) == 0


@settings(max_examples=40, deadline=None)
@given(arrays(bool, (3, 4, 5)), arrays(bool, (3, 4, 5)))
def test_dice_equals_the_published_formula(a, b):
    published = (2 * (a & b).sum() + 1e-8) / (a.sum() + b.sum() + 1e-8)
    assert dice(a, b) == pytest.approx(published, abs=1e-6)


def surface(mask):
    """Voxels of a mask with a 6-neighbour outside; outside the array counts as outside."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)
    return np.argwhere(padded & ~inner) - 1


def hd95_by_hand(a, b, spacing):
    pa, pb = surface(a) * np.asarray(spacing), surface(b) * np.asarray(spacing)
    distances = cdist(pa, pb)
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


def test_hd95_of_two_bars_is_the_shift_in_mm():
    a = box((20, 6, 6), (2, 14), (2, 4), (2, 4))
    b = box((20, 6, 6), (5, 17), (2, 4), (2, 4))
    assert hd95(a, b, (2.0, 1.0, 1.0)) == pytest.approx(hd95_by_hand(a, b, (2.0, 1.0, 1.0)))
    assert hd95(a, b, (2.0, 1.0, 1.0)) == pytest.approx(6.0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.5, 0.7)])
def test_hd95_agrees_with_all_pairs_of_surface_voxels(spacing):
    random = np.random.default_rng(0)
    for _ in range(10):
        a, b = np.zeros((2, 14, 13, 12), bool)
        for mask in (a, b):
            x, y, z = random.integers(2, 6, 3)
            mask[x : x + 5, y : y + 4, z : z + 5] = random.random((5, 4, 5)) < 0.9
        assert hd95(a, b, spacing) == pytest.approx(hd95_by_hand(a, b, spacing), rel=1e-5)


def test_hd95_of_regions_that_touch_the_border_of_the_volume():
    a, b = box((8, 8, 8), (0, 4), (0, 8), (0, 8)), box((8, 8, 8), (0, 5), (0, 8), (0, 8))
    assert hd95(a, b, (1.0, 1.0, 1.0)) == pytest.approx(hd95_by_hand(a, b, (1, 1, 1)))


def test_hd95_of_empty_regions_follows_the_convention():
    empty, speck = np.zeros((4, 4, 4), bool), box((4, 4, 4), (1, 2), (1, 2), (1, 2))
    spacing = (1.0, 1.0, 1.0)
    assert hd95(empty, empty, spacing) == 0
    assert math.isnan(hd95(speck, empty, spacing))
    assert math.isnan(hd95(empty, speck, spacing))
    assert hd95(empty, speck, spacing, one_empty=CHALLENGE_PENALTY) == 373.13


def monai_pair(a, b):
    return torch.from_numpy(np.stack([a, b]))[:, None, None].float()


SPACINGS = st.sampled_from([(1.0, 1.0, 1.0), (3.0, 1.5, 0.7), (0.9375, 0.9375, 6.0)])


@st.composite
def pairs_of_masks(draw):
    """Two masks that are not empty: at random, of one voxel, or boxes, which often touch the border."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))

    def mask():
        kind = draw(st.sampled_from(["random", "voxel", "box"]))
        if kind == "random":
            found = draw(arrays(bool, shape))
        else:
            found = np.zeros(shape, bool)
            low = [draw(st.integers(0, size - 1)) for size in shape]
            high = [
                start + 1 if kind == "voxel" else draw(st.integers(start + 1, size))
                for start, size in zip(low, shape, strict=True)
            ]
            found[tuple(map(slice, low, high))] = True
        assume(found.any())
        return found

    return mask(), mask()


@settings(max_examples=40, deadline=None)
@given(pairs_of_masks(), SPACINGS, st.sampled_from([0.0, 0.7, 1.0, 2.5]))
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
def test_hd95_and_nsd_are_those_of_monai_to_the_bit(masks, spacing, tolerance):
    both = monai_pair(*masks)
    theirs = compute_hausdorff_distance(both[0], both[1], percentile=95, spacing=list(spacing))
    assert hd95(*masks, spacing) == float(theirs)
    share = compute_surface_dice(both[0], both[1], [tolerance], include_background=True, spacing=list(spacing))
    assert np.float32(nsd(*masks, spacing, tolerance=tolerance)) == share.numpy()[0, 0]
    assert surface_scores(*masks, spacing, tolerance=tolerance) == SurfaceScores(
        hd95(*masks, spacing), nsd(*masks, spacing, tolerance=tolerance)
    )


def test_nsd_of_two_bars_by_hand():
    """Ends lie 3 voxels of 2 mm apart; the sides agree where both bars are."""
    a = box((20, 6, 6), (2, 14), (2, 4), (2, 4))
    b = box((20, 6, 6), (5, 17), (2, 4), (2, 4))
    assert nsd(a, b, (2.0, 1.0, 1.0)) == 9 / 12  # every voxel of so thin a bar is surface; 9 of 12 layers are common
    assert nsd(a, b, (2.0, 1.0, 1.0), tolerance=2.0) == 10 / 12
    assert nsd(a, b, (2.0, 1.0, 1.0), tolerance=6.0) == 1


def test_nsd_counts_both_empty_as_one_and_one_empty_as_zero():
    empty, speck = np.zeros((4, 4, 4), bool), box((4, 4, 4), (1, 2), (1, 2), (1, 2))
    assert nsd(empty, empty, (1.0, 1.0, 1.0)) == 1
    assert nsd(speck, empty, (1.0, 1.0, 1.0)) == 0
    assert nsd(empty, speck, (1.0, 1.0, 1.0)) == 0


def test_distances_are_found_once_for_both_scores(monkeypatch):
    calls = []
    found = metrics.get_edge_surface_distance
    monkeypatch.setattr(metrics, "get_edge_surface_distance", lambda *a, **k: calls.append(1) or found(*a, **k))
    a = box((8, 8, 8), (1, 5), (1, 5), (1, 5))
    surface_scores(a, np.roll(a, 1, 0), (1.0, 1.0, 1.0))
    assert len(calls) == 1


def test_the_challenge_penalty_is_the_diagonal_of_a_brats_volume():
    assert pytest.approx(math.hypot(240, 240, 155), abs=0.01) == CHALLENGE_PENALTY


def test_boundary_recall_by_hand():
    truth = box((20, 8, 8), (2, 12), (2, 6), (2, 6))
    assert boundary_recall(truth, truth) == 1
    assert boundary_recall(np.zeros_like(truth), truth) == 0
    assert math.isnan(boundary_recall(truth, np.zeros_like(truth)))
    shifted = box((20, 8, 8), (5, 15), (2, 6), (2, 6))  # by 3 voxels: only the ends are further than 2 away
    surface_voxels = [tuple(v) for v in surface(truth)]
    other = surface(shifted)
    near = [min(math.dist(v, o) for o in other) <= 2 for v in surface_voxels]
    assert boundary_recall(shifted, truth) == pytest.approx(np.mean(near))
    assert 0 < np.mean(near) < 1


def test_a_small_et_becomes_ncr_and_a_large_one_stays():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[:7, :7, :10] = 3  # 490 voxels
    post = relabel_small_et(labels, 1.0, et=3)
    assert (post == 3).sum() == 0
    assert (post == 1).sum() == 490
    assert np.array_equal(relabel_small_et(labels, 1.03, et=3), labels), "505 mm3"
