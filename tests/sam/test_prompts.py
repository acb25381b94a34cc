"""Prompts from a coarse prediction: round every component, inside what they should be inside of, always the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from smml.errors import InputError
from smml.sam.prompts import PromptRules, coarse_prompts

EIGHT = np.ones((3, 3))


def one(mask, **rules):
    """Prompts of one slice [H, W]."""
    return coarse_prompts(mask[None], PromptRules(**rules))


def disc(shape, centre, radius):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


@st.composite
def volumes(draw):
    """Smooth random probabilities [S, H, W] with components of all sizes."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 24), st.integers(1, 24)))
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, (0, draw(st.floats(0, 3)), draw(st.floats(0, 3))))
    scaled = smooth / max(float(np.abs(smooth).max()), 1e-9)
    return np.clip(0.5 + scaled * draw(st.floats(-1, 1)), 0, 1).astype(np.float32)


@settings(max_examples=150)
@given(
    volumes(),
    st.integers(1, 12),
    st.floats(0, 3),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)
def test_prompts_of_any_volume(volume, area, margin, most, positives, negatives, as_mask):
    volume = volume > 0.5 if as_mask else volume
    rules = PromptRules(0.5, area, margin, most, positives, negatives)
    prompts = coarse_prompts(volume, rules)
    inside = volume if as_mask else volume > 0.5
    height, width = volume.shape[1:]
    assert prompts.points.shape == (len(prompts), positives + negatives, 2)
    row = 0
    for index, layer in enumerate(inside):
        pieces, _ = ndimage.label(layer, structure=EIGHT)
        sizes = np.bincount(pieces.ravel())[1:]
        large = [n + 1 for n in np.argsort(-sizes, kind="stable") if sizes[n] >= area][:most]
        for n in large:
            piece = pieces == n
            assert int(prompts.slices[row]) == index
            top, left, bottom, right = prompts.boxes[row].tolist()
            where = np.argwhere(piece)
            first, last = where.min(axis=0), where.max(axis=0) + 1
            # The box is the component and its margin, cut at the border.
            assert top == pytest.approx(max(0, first[0] - margin), abs=1e-5)
            assert left == pytest.approx(max(0, first[1] - margin), abs=1e-5)
            assert bottom == pytest.approx(min(height, last[0] + margin), abs=1e-5)
            assert right == pytest.approx(min(width, last[1] + margin), abs=1e-5)
            points, labels = prompts.points[row].long().numpy(), prompts.point_labels[row].tolist()
            assert set(labels[:positives]) <= {1, -1}
            assert set(labels[positives:]) <= {0, -1}
            assert positives == 0 or labels[0] == 1
            for (i, j), label in zip(points, labels, strict=True):
                assert 0 <= i < height
                assert 0 <= j < width
                if label == 1:
                    assert piece[i, j]
                elif label == 0:
                    assert not ndimage.binary_dilation(piece, EIGHT)[i, j]
                    assert not layer[i, j]
                else:
                    assert (i, j) == (0, 0)
            row += 1
    assert row == len(prompts)


@settings(max_examples=30)
@given(volumes())
def test_the_same_prediction_gives_the_same_prompts(volume):
    first, second = coarse_prompts(volume), coarse_prompts(torch.from_numpy(volume.copy()).requires_grad_())
    for name in ("slices", "boxes", "points", "point_labels"):
        assert torch.equal(getattr(first, name), getattr(second, name))


@settings(max_examples=30)
@given(arrays(bool, (2, 15, 11)))
def test_prompts_move_with_the_prediction(mask):
    rules = PromptRules(minimum_area=3, margin=1.5, positives=0, negatives=0, components=50)
    inner = np.zeros((2, 25, 21), bool)
    inner[:, 5:20, 5:16] = mask
    moved = np.roll(inner, (2, -3), axis=(1, 2))
    shift = torch.tensor([2.0, -3, 2, -3])
    assert torch.allclose(coarse_prompts(inner, rules).boxes + shift, coarse_prompts(moved, rules).boxes)


def test_a_disc_is_prompted_at_its_centre():
    prompts = one(disc((40, 30), (20, 12), 5))
    assert prompts.boxes.tolist() == [[14, 6, 27, 19]]
    assert prompts.points[0, 0].tolist() == [20, 12]
    assert prompts.point_labels.tolist() == [[1, 0]]


def test_a_point_lies_in_a_ring_and_not_in_its_hole():
    ring = disc((40, 40), (20, 20), 12) & ~disc((40, 40), (20, 20), 7)
    prompts = one(ring, negatives=3)
    i, j = prompts.points[0, 0].long().tolist()
    assert ring[i, j]
    assert prompts.point_labels[0].tolist() == [1, 0, 0, 0]


def test_points_outside_are_where_the_background_is_most_certain():
    probability = np.full((30, 30), 0.3, np.float32)
    probability[10:20, 10:20] = 0.9
    probability[8, 22] = 0.01
    prompts = one(probability)
    assert prompts.points[0, 1].tolist() == [8, 22]


def test_two_lesions_in_a_slice_have_a_prompt_each_and_specks_none():
    mask = disc((60, 60), (15, 15), 8) | disc((60, 60), (45, 45), 5)
    mask[30, 5:10] = True
    prompts = one(mask)
    assert prompts.boxes.tolist() == [[6, 6, 25, 25], [39, 39, 52, 52]]
    assert len(one(mask, components=1)) == 1
    assert len(one(mask, minimum_area=5)) == 3


def test_slices_are_not_connected_with_each_other():
    volume = np.zeros((3, 20, 20), bool)
    volume[0, 2:8, 2:8] = volume[1, 7:15, 7:15] = True
    assert coarse_prompts(volume).slices.tolist() == [0, 1]


def test_a_slice_that_is_all_tumour_has_no_outside():
    prompts = one(np.ones((12, 9), bool))
    assert prompts.boxes.tolist() == [[0, 0, 12, 9]]
    assert prompts.point_labels.tolist() == [[1, -1]]


def test_nothing_predicted_gives_no_prompts():
    prompts = coarse_prompts(torch.zeros(4, 8, 8))
    assert len(prompts) == 0
    assert prompts.boxes.shape == (0, 4)
    assert prompts.points.shape == (0, 2, 2)
    assert prompts.point_labels.shape == (0, 2)


@pytest.mark.parametrize(
    "rules",
    [{"threshold": 0}, {"threshold": 1}, {"margin": -1}, {"minimum_area": 0}, {"components": 0}, {"positives": 1.5}],
)
def test_unusable_rules_name_the_argument(rules):
    with pytest.raises(InputError, match=next(iter(rules))):
        PromptRules(**rules)


def test_unusable_predictions_are_refused():
    with pytest.raises(InputError, match=r"\[S, H, W\]"):
        coarse_prompts(torch.zeros(8, 8))
    with pytest.raises(InputError, match="NaN"):
        coarse_prompts(torch.full((1, 8, 8), torch.nan))
