"""One simulated subject, from its head over its lesion to its images.

All of it follows from one pair of numbers, the cohort's seed and the subject's index; a look changes the images alone.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from smml.data.simulation.draws import Draws
from smml.data.simulation.fields import Grid
from smml.data.simulation.head import draw_shape, look_at
from smml.data.simulation.imaging import Look, find_look, image
from smml.data.simulation.lattice import Window, resample, whole
from smml.data.simulation.lesion import GROWTH_SPACING, compartments, draw_kind, grow, mass_effect
from smml.data.simulation.structures import fill

# Room round the brain for what stripping leaves, mm.
_MARGIN = 6.0
# Not the brain, though stripping may leave them.
_AROUND = {"outside", "dura", "sinus"}


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


def simulate_subject(
    seed: int, index: int, *, spacing: float = 3.0, device: str = "cpu", look: str = "typical"
) -> Subject:
    """Simulate subject ``index`` of the cohort ``seed``.

    The subject does not depend on how many others there are. On the CPU the result is the same to the bit each time;
    another ``spacing`` gives the same anatomy and tumour with other voxels, under other noise. Another look shows the
    same subject with the same labels.

    Args:
        seed: the cohort's seed, 0 or more.
        index: the subject's number in the cohort, 0 or more.
        spacing: voxel edge in mm.
        device: torch device that computes; random numbers always come from the CPU.
        look: "typical" (protocols as they are) or "varied" (far beyond them, for training).

    Raises:
        InputError: an unknown look.
    """
    style, kind = find_look(look), subject_kind(seed, index)
    grid = Grid(spacing, torch.device(device))
    with _one_thread():
        images, labels, *_ = _simulate(seed, index, grid, style, kind)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = grid.origin
    return Subject(
        volumes={name: volume.cpu().numpy() for name, volume in images.items()},
        labels=labels.cpu().numpy(),
        affine=affine,
        kind=kind,
    )


def simulate_anatomy(
    seed: int, index: int, *, spacing: float = 3.0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The head of subject ``index`` in the look "typical", without any tumour, and the tissues in it.

    Args:
        seed: the cohort's seed, 0 or more.
        index: the subject's number in the cohort, 0 or more.
        spacing: voxel edge in mm.

    Returns:
        Images by modality as in :attr:`Subject.volumes`, and fractions of "white" and "grey" matter (deep nuclei among
        it), "csf" and "brain" in a voxel, 0 where the images are; float32 [X, Y, Z] in [0, 1].
    """
    grid = Grid(spacing, torch.device("cpu"))
    with _one_thread():
        images, _, parts, window = _simulate(seed, index, grid, find_look("typical"), "healthy")
        tissues = {"white": parts["white"], "grey": parts["grey"] + parts["deep"], "csf": parts["csf"]}
        tissues["brain"] = sum((part for name, part in parts.items() if name not in _AROUND), torch.zeros(()))
        # Zeros are at the same places in all sequences.
        seen = next(iter(images.values())) > 0
        tissues = {name: _on(grid, window, part.clamp(0, 1)) * seen for name, part in tissues.items()}
    return {name: part.numpy() for name, part in images.items()}, {name: part.numpy() for name, part in tissues.items()}


def subject_kind(seed: int, index: int) -> str:
    """What :func:`simulate_subject` makes of these numbers: "ring", "solid", "low-grade" or "healthy".

    Args:
        seed: the cohort's seed, 0 or more.
        index: the subject's number in the cohort, 0 or more.
    """
    return draw_kind(Draws(seed, index, "kind"))


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


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The order of summation, and with it the last bit, may depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
