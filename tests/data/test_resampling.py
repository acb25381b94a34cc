"""Resampling of the brain alone: against sums in float64, and with a background that must not matter."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.data.resampling import resize, resize_masked, resize_weights, smooth_field, transform_masked

SIZES = st.integers(1, 13)


@given(old=SIZES, new=SIZES)
@settings(max_examples=80, deadline=None)
def test_rows_of_weights_sum_to_one_and_are_mirrored(old, new):
    weights = resize_weights(old, new).double()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(new, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.flip(0, 1), weights, atol=1e-6, rtol=0)
    assert float(weights.min()) >= 0
    # Every old voxel is seen: nothing is skipped.
    assert bool((weights.sum(dim=0) > 0).all())


@pytest.mark.parametrize("new", [8, 11, 16, 23])
def test_finer_voxels_are_interpolated_linearly(new):
    volume = torch.rand(8, 8, 8)
    wanted = F.interpolate(volume[None, None], size=(new, 8, 8), mode="trilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(resize(volume, (new, 8, 8)), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_coarser_voxels_are_the_means_of_what_they_cover(factor):
    volume = torch.rand(12, 12, 24)
    wanted = F.avg_pool3d(volume[None, None].double(), factor)[0, 0]
    torch.testing.assert_close(resize(volume, wanted.shape).double(), wanted, atol=1e-6, rtol=0)


def test_an_oblique_grid_takes_the_masks_voxels_alone_and_skips_nothing():
    volume, whole = 100 + torch.rand(12, 12, 24), torch.ones(12, 12, 24, dtype=torch.bool)
    # The same grid, its axes turned and mirrored.
    turn = np.array([[0, -1, 0, 11], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(transform_masked(volume, whole, turn, (12, 12, 24))[0], volume.flip(0).transpose(0, 1))
    # Larger voxels are means of what they cover, beyond the old grid is nothing.
    coarse = np.array([[3, 0, 0, 1], [0, 2, 0, 0.5], [0, 0, 4, 1.5 - 4], [0, 0, 0, 1]])
    result, mask = transform_masked(volume, whole, coarse, (4, 6, 7))
    torch.testing.assert_close(result[..., 1:], F.avg_pool3d(volume[None, None], (3, 2, 4))[0, 0])
    assert bool(mask[..., 1:].all())
    assert not result[..., 0].any()
    assert not mask[..., 0].any()
    # What lies outside the mask is never read.
    half = whole.clone()
    half[6:] = False
    worse = torch.where(half, volume, torch.nan)
    result, mask = transform_masked(worse, half, np.diag([0.4, 1, 1, 1]), (30, 12, 24))
    assert bool(result.isfinite().all())
    assert float(result[mask].min()) >= 99.99
    assert bool((mask[:14].all()) & ~mask[15:].any())


def reference(volume: np.ndarray, mask: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Each new voxel by itself: the weighted mean of the mask's voxels, in float64."""
    axes = [resize_weights(old, new).double().numpy() for old, new in zip(volume.shape, shape, strict=True)]
    result, share = np.zeros(shape), np.zeros(shape)
    for place in np.ndindex(*shape):
        weights = np.einsum("a,b,c->abc", *(axis[p] for axis, p in zip(axes, place, strict=True)))
        share[place] = weights[mask].sum()
        if share[place] >= 0.5:
            result[place] = (weights[mask] * volume[mask].astype(np.float64)).sum() / share[place]
    return result, share


@given(old=st.tuples(*[st.integers(1, 7)] * 3), new=st.tuples(*[st.integers(1, 7)] * 3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_masked_resampling_is_the_weighted_mean_over_the_mask(old, new, seed):
    random = np.random.default_rng(seed)
    volume = (100 + random.random(old)).astype(np.float32)
    mask = random.random(old) < 0.7
    result, found = resize_masked(torch.from_numpy(volume), torch.from_numpy(mask), new)
    wanted, share = reference(volume, mask, new)
    clear = np.abs(share - 0.5) > 1e-5
    assert np.array_equal(found.numpy()[clear], (share >= 0.5)[clear])
    np.testing.assert_allclose(result.numpy()[clear], wanted[clear], rtol=1e-5)


@pytest.mark.parametrize("new", [(5, 5, 5), (9, 10, 11), (17, 20, 14)])
def test_the_edge_of_an_even_brain_is_as_bright_as_its_middle_and_the_background_is_not_read(new):
    mask = torch.zeros(10, 10, 10, dtype=torch.bool)
    mask[2:9, 1:7, 3:] = True
    volume = torch.where(mask, 700.0, torch.nan)
    result, found = resize_masked(volume, mask, new)
    torch.testing.assert_close(result[found], torch.full((int(found.sum()),), 700.0))
    assert not bool(result[~found].any())


def test_a_smooth_field_is_the_gaussian_mean_over_the_mask():
    random = np.random.default_rng(0)
    shape, width, spacing = (20, 22, 18), 12.0, (5.0, 5.0, 5.0)
    mask = np.zeros(shape, bool)
    mask[4:16, 3:18, 4:14] = True
    volume = (300 + 100 * random.random(shape)).astype(np.float32)
    field = smooth_field(torch.from_numpy(volume), torch.from_numpy(mask), spacing, width).numpy()
    places = np.argwhere(mask)
    for place in places[:: len(places) // 20]:
        squared = ((places - place) ** 2).sum(axis=1) * 25.0
        weights = np.exp(-squared / (2 * width**2))
        wanted = (weights * volume[mask]).sum() / weights.sum()
        assert field[tuple(place)] == pytest.approx(wanted, rel=0.01)
