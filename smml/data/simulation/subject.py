"""One simulated subject from one pair of numbers: the cohort's seed and the subject's index."""

from dataclasses import dataclass

import numpy as np
import torch

from smml.data.simulation.anatomy import draw_warp, sample_anatomy
from smml.data.simulation.fields import Grid, sample, uniform
from smml.data.simulation.signal import render
from smml.data.simulation.tumour import GROWTH_SPACING, Tumour, compartments, draw_kind, grow, mass_effect


@dataclass(frozen=True, eq=False)
class Subject:
    """A simulated subject.

    Attributes:
        volumes: by modality, float32 [X, Y, Z] of whole numbers, 0 outside the brain.
        labels: uint8 [X, Y, Z], the five classes of BraTS 2015 in memory (0 none, 1 NCR, 2 ED, 3 NET, 4 ET).
        affine: float64 [4, 4], voxel to mm, RAS+.
        kind: "ring", "solid", "low-grade" or "healthy".
    """

    volumes: dict[str, np.ndarray]
    labels: np.ndarray
    affine: np.ndarray
    kind: str


def simulate_subject(seed: int, index: int, *, spacing: float = 3.0, device: str = "cpu") -> Subject:
    """Simulate subject ``index`` of the cohort ``seed``.

    The subject does not depend on how many others there are. On the CPU the result is the same to the bit each time;
    another ``spacing`` gives the same anatomy and tumour with other voxels, under other noise, bias field and texture.

    Args:
        seed: the cohort's seed, 0 or more.
        index: the subject's number in the cohort, 0 or more.
        spacing: voxel edge in mm.
        device: torch device that computes; random numbers always come from the CPU.
    """
    threads = torch.get_num_threads()
    # The order of summation, and with it the last bit, may depend on the number of threads.
    torch.set_num_threads(1)
    try:
        return _simulate(_random(seed, index), spacing, torch.device(device))
    finally:
        torch.set_num_threads(threads)


def subject_kind(seed: int, index: int) -> str:
    """What :func:`simulate_subject` would make of these numbers: "ring", "solid", "low-grade" or "healthy".

    Args:
        seed: the cohort's seed, 0 or more.
        index: the subject's number in the cohort, 0 or more.
    """
    return draw_kind(_random(seed, index))


def _random(seed: int, index: int) -> torch.Generator:
    """The subject's own random numbers; the first of them decides its kind."""
    state = np.random.SeedSequence([seed, index]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def _simulate(random: torch.Generator, spacing: float, device: torch.device) -> Subject:
    grid, growth_grid = Grid(spacing, device), Grid(GROWTH_SPACING, device)
    kind = draw_kind(random)
    warp = draw_warp(random)
    points = warp(grid)
    tumour = None
    if kind == "healthy":
        anatomy = sample_anatomy(points, spacing)
        labels = torch.zeros(grid.shape, dtype=torch.uint8)
    else:
        coarse = grow(sample_anatomy(warp(growth_grid), GROWTH_SPACING), kind, random)
        push = mass_effect(coarse, growth_grid, grid, strength=uniform(random, 1.0, 6.0))
        # Tissue now at x was at x - push(x) before the tumour grew.
        density = sample(coarse[None], growth_grid.origin, GROWTH_SPACING, grid.coordinates())[0]
        anatomy = sample_anatomy(points - push, spacing)
        labels = compartments(density, anatomy, kind, grid, random)
        tumour = Tumour(labels=labels, density=density)
    images = render(anatomy, tumour, grid, random)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = grid.origin
    return Subject(
        volumes={name: image.cpu().numpy() for name, image in images.items()},
        labels=labels.cpu().numpy(),
        affine=affine,
        kind=kind,
    )
