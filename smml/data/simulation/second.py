"""The second edition of the simulator: one subject, from its head over its lesion to its images."""

import torch

from smml.data.simulation.draws import Draws
from smml.data.simulation.fields import Grid
from smml.data.simulation.head import draw_shape, look_at
from smml.data.simulation.imaging import Look, image
from smml.data.simulation.lattice import Window, resample, whole
from smml.data.simulation.lesion import GROWTH_SPACING, compartments, draw_kind, grow, mass_effect
from smml.data.simulation.structures import fill

# Room round the brain for what stripping leaves, mm.
_MARGIN = 6.0
# Not the brain, though stripping may leave them.
_AROUND = {"outside", "dura", "sinus"}


def simulate(seed: int, index: int, grid: Grid, look: Look) -> tuple[dict[str, torch.Tensor], torch.Tensor, str]:
    """Images by modality and labels, [X, Y, Z] on ``grid``, and the subject's kind.

    Only the images depend on the look.
    """
    kind = kind_of(seed, index)
    images, labels, *_ = _simulate(seed, index, grid, look, kind)
    return images, labels, kind


def simulate_anatomy(
    seed: int, index: int, grid: Grid, look: Look
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The subject's head without any tumour: images by modality, and what is in them.

    Returns:
        Images, and fractions "white", "grey" (deep nuclei among it), "csf" and "brain" in [0, 1] of what the images
        show: 0 where they are 0. All float32 [X, Y, Z] on ``grid``.
    """
    images, _, parts, window = _simulate(seed, index, grid, look, "healthy")
    tissues = {"white": parts["white"], "grey": parts["grey"] + parts["deep"], "csf": parts["csf"]}
    tissues["brain"] = sum((part for name, part in parts.items() if name not in _AROUND), torch.zeros(()))
    # Zeros are at the same places in all sequences.
    seen = next(iter(images.values())) > 0
    return images, {name: _on(grid, window, part.clamp(0, 1)) * seen for name, part in tissues.items()}


def _simulate(
    seed: int, index: int, grid: Grid, look: Look, kind: str
) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor], Window]:
    """Images, labels, fractions by tissue on a window, and that window, of the subject as if it were of that kind."""
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
    images = image(parts, head, lesion, window, look, seed, index)
    return {name: _on(grid, window, part) for name, part in images.items()}, labels, parts, window


def _on(grid: Grid, window: Window, part: torch.Tensor) -> torch.Tensor:
    """What lies on a window, on the whole grid; 0 elsewhere."""
    result = torch.zeros(grid.shape, device=grid.device)
    result[window.slices] = part
    return result


def kind_of(seed: int, index: int) -> str:
    """What :func:`simulate` would make of these numbers."""
    return draw_kind(Draws(seed, index, "kind"))
