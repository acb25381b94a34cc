"""The shipped tiny SAM: a box round a bright sphere gives back the sphere, whatever the shape of the slices."""

import pytest
import torch

from smml.sam import Prompts, SquareFit, answer, encode, intensity_window, load_sam
from smml.tensors import weights_fingerprint

# Slices taller than wide, wider than tall, and square; the sphere is never in the middle.
CASES = [
    ((14, 76, 56), (7, 24, 36), 10),
    ((14, 56, 76), (6, 36, 24), 10),
    ((14, 64, 64), (7, 40, 22), 8),
    ((20, 155, 120), (10, 50, 80), 16),
    ((20, 120, 155), (10, 80, 50), 16),
    ((14, 90, 40), (7, 66, 16), 9),
]


@pytest.fixture(scope="module")
def sam():
    return load_sam("tiny")


def bright_sphere(shape, centre, radius):
    """A dark, noisy volume [S, H, W] and the sphere in it."""
    axes = torch.meshgrid(*(torch.arange(length) - c for length, c in zip(shape, centre, strict=True)), indexing="ij")
    sphere = sum(axis.square() for axis in axes) <= radius**2
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return 100 + 400 * sphere + 20 * noise, sphere


def test_the_fingerprint_of_the_shipped_weights_is_what_it_was(sam):
    """Cached embeddings and refinements that were trained with these weights know them by it."""
    assert weights_fingerprint(sam) == "e4464f0ba38aba86e73712478b8ed1d2339d402e"


@pytest.mark.parametrize(("shape", "centre", "radius"), CASES, ids=str)
def test_a_box_round_a_bright_sphere_gives_back_the_sphere(sam, shape, centre, radius):
    volume, sphere = bright_sphere(shape, centre, radius)
    # Of the slices through the sphere those that show half of its area or more; a cap is a handful of voxels.
    slices = [s for s in range(shape[0]) if abs(s - centre[0]) < 0.7 * radius]
    boxes = []
    for s in slices:
        rows, columns = sphere[s].any(dim=1).nonzero()[:, 0], sphere[s].any(dim=0).nonzero()[:, 0]
        boxes.append([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    embeddings = encode(sam, volume[slices], window=intensity_window(volume))
    prompts, fit = Prompts(torch.tensor(boxes).float()), SquareFit.of(sam, shape[1:])
    masks = answer(sam, embeddings, prompts, fit, multimask=False)[0][:, 0] > 0
    truth = sphere[slices]
    ious = (masks & truth).sum(dim=(1, 2)) / (masks | truth).sum(dim=(1, 2))
    assert float(ious.min()) > 0.9, ious
