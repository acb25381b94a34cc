"""The second edition of the simulator: one subject, from its head over its lesion to its images."""

import torch

from smml.data.simulation.draws import Draws
from smml.data.simulation.fields import Grid
from smml.data.simulation.head import draw_shape, look_at
from smml.data.simulation.imaging import Look, image
from smml.data.simulation.lattice import resample, whole
from smml.data.simulation.lesion import GROWTH_SPACING, compartments, draw_kind, grow, mass_effect
from smml.data.simulation.structures import fill

# Room round the brain for what stripping leaves, mm.
_MARGIN = 6.0


def simulate(seed: int, index: int, grid: Grid, look: Look) -> tuple[dict[str, torch.Tensor], torch.Tensor, str]:
    """Images by modality and labels, [X, Y, Z] on ``grid``, and the subject's kind.

    Only the images depend on the look.
    """
    kind = kind_of(seed, index)
    coarse = whole(Grid(GROWTH_SPACING, grid.device))
    shape = draw_shape(Draws(seed, index, "shape"), coarse)
    growth = push = lesion = None
    draws = Draws(seed, index, "growth")
    variant = int(draws.between(0, 8))
    before = look_at(shape, coarse)
    if kind != "healthy":
        growth = grow(before, kind, coarse, draws)
        push = mass_effect(growth, coarse, draws.between(0.5, 9.0))
    full = whole(grid)
    window = full.around(resample(before.brain[None], coarse, full)[0] > 0, _MARGIN)
    head = look_at(shape, window, push, variant)
    labels = torch.zeros(grid.shape, dtype=torch.uint8, device=grid.device)
    if growth is not None:
        lesion = compartments(growth, head, kind, window, coarse, Draws(seed, index, "compartments"))
        labels[lesion.window.slices] = lesion.labels
    parts = fill(head, lesion, window, shape.age, Draws(seed, index, "head"))
    images = {}
    for name, part in image(parts, head, lesion, window, look, seed, index).items():
        images[name] = torch.zeros(grid.shape, device=grid.device)
        images[name][window.slices] = part
    return images, labels, kind


def kind_of(seed: int, index: int) -> str:
    """What :func:`simulate` would make of these numbers."""
    return draw_kind(Draws(seed, index, "kind"))
