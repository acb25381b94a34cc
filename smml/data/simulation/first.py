"""The first edition of the simulator, whole: what the shipped weights were trained on."""

import numpy as np
import torch

from smml.data.simulation.anatomy import draw_warp, sample_anatomy
from smml.data.simulation.fields import Grid, sample, uniform
from smml.data.simulation.signal import render
from smml.data.simulation.tumour import GROWTH_SPACING, Tumour, compartments, draw_kind, grow, mass_effect


def simulate(seed: int, index: int, grid: Grid) -> tuple[dict[str, torch.Tensor], torch.Tensor, str]:
    """Images by modality and labels, [X, Y, Z] on ``grid``, and the subject's kind."""
    random = _random(seed, index)
    growth_grid = Grid(GROWTH_SPACING, grid.device)
    kind = draw_kind(random)
    warp = draw_warp(random)
    points = warp(grid)
    tumour = None
    if kind == "healthy":
        anatomy = sample_anatomy(points, grid.spacing)
        labels = torch.zeros(grid.shape, dtype=torch.uint8)
    else:
        coarse = grow(sample_anatomy(warp(growth_grid), GROWTH_SPACING), kind, random)
        push = mass_effect(coarse, growth_grid, grid, strength=uniform(random, 1.0, 6.0))
        # Tissue now at x was at x - push(x) before the tumour grew.
        density = sample(coarse[None], growth_grid.origin, GROWTH_SPACING, grid.coordinates())[0]
        anatomy = sample_anatomy(points - push, grid.spacing)
        labels = compartments(density, anatomy, kind, grid, random)
        tumour = Tumour(labels=labels, density=density)
    return render(anatomy, tumour, grid, random), labels, kind


def kind_of(seed: int, index: int) -> str:
    """What :func:`simulate` would make of these numbers."""
    return draw_kind(_random(seed, index))


def _random(seed: int, index: int) -> torch.Generator:
    """The subject's own random numbers; the first of them decides its kind."""
    state = np.random.SeedSequence([seed, index]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
