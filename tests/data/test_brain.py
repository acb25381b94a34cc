"""What the brain is: the same voxels whatever stands for nothing in a file, and a few odd voxels change little."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.data.brain import find_brain, tissue_range
from smml.data.case import Case
from smml.data.preprocessing import PREPROCESSINGS, prepare
from smml.figures import intensity_window
from smml.figures.slices import axial_picture
from smml.sam import intensity_window as sam_window
from smml.sam.slices import to_grey
from smml.viewer.display import Display

SHAPE = (44, 52, 40)


def head(shape=SHAPE, seed: int = 0, at=0.5, size=0.4) -> np.ndarray:
    """A brain with texture, intensities 50 to 900, in a background of 0."""
    random = np.random.default_rng(seed)
    grid = (np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) + 0.5) / shape
    inside = np.linalg.norm(grid - at, axis=-1) < size
    tissue = 400 + 250 * np.sin(9 * grid[..., 0]) * np.cos(7 * grid[..., 1]) + 30 * random.standard_normal(shape)
    return np.where(inside, tissue.clip(50, 900), 0).astype(np.float32)


def as_case(volume: np.ndarray, edge: float = 2.0) -> Case:
    return Case("case", {"flair": volume}, None, np.diag([edge, edge, edge, 1.0]), "brats2021")


def noisy(volume: np.ndarray, deviation: float = 1e-3, seed: int = 1) -> np.ndarray:
    """Noise in the background."""
    noise = np.random.default_rng(seed).normal(0, deviation, volume.shape)
    return np.where(volume == 0, noise, volume).astype(np.float32)


def framed(volume: np.ndarray) -> np.ndarray:
    """Noise near the head, exact zeros further out, as after a rotation."""
    noise = noisy(volume)
    frame = np.pad(noise[6:-6, 6:-6, 4:-4], ((6, 6), (6, 6), (4, 4)))
    return np.where(volume != 0, volume, frame)


def magnitude(volume: np.ndarray) -> np.ndarray:
    return np.abs(noisy(volume, 2.0)).astype(np.float32)


def whole_noise(volume: np.ndarray) -> np.ndarray:
    """Noise of a magnitude image that was rounded to whole numbers."""
    return np.where(volume == 0, magnitude(volume).round(), volume)


STANDING_FOR_NOTHING = {
    "zeros": lambda v: v,
    "noise of 0.001": noisy,
    "noise of a magnitude image": magnitude,
    "whole numbers": whole_noise,
    "noise and zeros": framed,
    "a slope that moves 0": lambda v: v + np.float32(0.01),
    "mean taken off": lambda v: (v - np.float32(400)) / np.float32(250),
    "mean taken off, and noise": lambda v: (noisy(v) - np.float32(400)) / np.float32(250),
    "negative": lambda v: v - np.float32(1024),
}


@pytest.mark.parametrize("name", STANDING_FOR_NOTHING)
def test_the_brain_is_the_same_whatever_stands_for_nothing(name):
    volume = head()
    found = find_brain(STANDING_FOR_NOTHING[name](volume))
    assert np.array_equal(found.mask, volume != 0)


@pytest.mark.parametrize("name", STANDING_FOR_NOTHING)
@pytest.mark.parametrize("version", PREPROCESSINGS)
@pytest.mark.parametrize("spacing", [None, (3.0, 3.0, 3.0), (1.6, 1.6, 1.6)])
def test_the_network_s_input_is_the_same_whatever_stands_for_nothing(name, version, spacing):
    volume = head()
    clean, other = (
        prepare(as_case(one), spacing, preprocessing=version) for one in (volume, STANDING_FOR_NOTHING[name](volume))
    )
    assert torch.equal(other.brain, clean.brain)
    torch.testing.assert_close(other.image, clean.image, atol=2e-3, rtol=0)


@pytest.mark.parametrize("value", [1e6, 1e30, -1e6])
@pytest.mark.parametrize("version", PREPROCESSINGS)
@pytest.mark.parametrize("spacing", [None, (3.0, 3.0, 3.0), (1.6, 1.6, 1.6)])
def test_one_extreme_voxel_changes_its_neighbourhood_alone(value, version, spacing):
    volume = head()
    clean = prepare(as_case(volume), spacing, preprocessing=version)
    volume[20, 30, 20] = value
    other = prepare(as_case(volume), spacing, preprocessing=version)
    assert torch.equal(other.brain, clean.brain)
    difference = (other.image - clean.image).abs()
    # Without the cut it is everywhere 1 and more.
    assert float(difference.median()) < 0.01
    assert int((difference > 0.05).sum()) <= 8 * (1 if spacing != (1.6, 1.6, 1.6) else 2)
    assert float(other.image.abs().max()) < 6


def test_one_value_as_background_is_told_to_the_bit_and_negative_tissue_stays():
    volume = head()
    volume[volume > 600] *= -1
    assert np.array_equal(find_brain(volume).mask, volume != 0)
    volume = head().astype(np.int16)
    assert np.array_equal(find_brain(volume).mask, volume != 0)


def test_dark_tissue_inside_the_brain_is_brain():
    """CSF on FLAIR is as dark as the air."""
    volume = noisy(head())
    volume[20:24, 25:29, 18:22] = np.random.default_rng(0).normal(0, 1e-3, (4, 4, 4))
    assert np.array_equal(find_brain(volume).mask, head() != 0)


def test_a_cut_field_of_view_and_a_block_of_tissue_are_brain_up_to_their_border():
    volume = noisy(head(size=0.45))[:30, 14:]
    assert np.array_equal(find_brain(volume).mask, (head(size=0.45) != 0)[:30, 14:])
    block = head(size=2.0)
    assert find_brain(block).mask.all()


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    value=st.sampled_from([0.0, 0.01, -3.0, 1e30]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_small_or_constant_image_has_an_answer(shape, value, seed):
    random = np.random.default_rng(seed)
    volume = np.where(random.random(shape) < random.random(), random.normal(size=shape), value).astype(np.float32)
    brain = find_brain(volume)
    assert brain.mask.shape == shape
    assert brain.mask.dtype == bool
    for version in PREPROCESSINGS:
        assert bool(prepare(as_case(volume), (1.5, 2.0, 3.0), preprocessing=version).image.isfinite().all())


def test_the_range_of_tissue_holds_all_of_a_brain_and_no_extreme():
    values = head()[head() != 0]
    low, high = tissue_range(values)
    assert low <= values.min()
    assert high >= values.max()
    odd = np.concatenate([values, np.full(5, 1e30, np.float32), np.full(5, -1e30, np.float32)])
    assert tissue_range(odd) == pytest.approx((low, high), rel=0.02, abs=30)


# ---------------------------------------------------------------- told


@pytest.mark.parametrize("version", PREPROCESSINGS)
def test_a_head_with_its_skull_is_warned_of_in_one_sentence_and_a_brain_is_not(version):
    large = as_case(np.abs(head(size=0.49) + 100), edge=4.0)  # no background at all, 5900 ml
    with pytest.warns(UserWarning, match="case case: flair, t1 does not look skull-stripped") as said:
        prepare(replace(large, volumes={**large.volumes, "t1": large.volumes["flair"]}), preprocessing=version)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(as_case(head(), edge=3.0), preprocessing=version)


# ---------------------------------------------------------------- everything asks


@pytest.mark.parametrize("name", STANDING_FOR_NOTHING)
def test_pictures_of_sam_viewer_and_figures_are_the_same_whatever_stands_for_nothing(name):
    clean, other = head(), STANDING_FOR_NOTHING[name](head())
    assert Display.of(as_case(other)).box == Display.of(as_case(clean)).box
    assert np.abs(axial_picture(other, 20).astype(int) - axial_picture(clean, 20)).max() <= 1
    low, high = intensity_window(other)
    assert low < high
    grey, wanted = (to_grey(torch.from_numpy(one), sam_window(torch.from_numpy(one))) for one in (other, clean))
    torch.testing.assert_close(grey, wanted, atol=0.1, rtol=0)


def test_the_background_of_a_picture_is_black_where_tissue_is_darker_than_it():
    """Scores of the brain round a 0 that was moved: the air would be as grey as average tissue."""
    volume = head()
    scores = np.where(volume != 0, (volume - 400) / 250, 0.01).astype(np.float32)
    picture = axial_picture(scores, 20)[::-1, ::-1].transpose(1, 0, 2)
    assert not picture[volume[:, :, 20] == 0].any()
    assert not to_grey(torch.from_numpy(scores))[torch.from_numpy(volume == 0)].any()
