"""One simulated subject from one pair of numbers, the cohort's seed and the subject's index, in one of three looks."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from smml.data.simulation import first, second
from smml.data.simulation.fields import Grid
from smml.data.simulation.imaging import LOOKS as _SECOND
from smml.errors import InputError


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


@dataclass(frozen=True)
class Edition:
    """How one look is made.

    Attributes:
        version: changes whenever the same seed gives other bytes.
        simulate: from seed, index and grid to images, labels and kind.
        kind_of: from seed and index to the kind alone.
    """

    version: int
    simulate: Callable[[int, int, Grid], tuple[dict[str, torch.Tensor], torch.Tensor, str]]
    kind_of: Callable[[int, int], str]


# "first" is what the shipped weights know; "typical" shows protocols as they are; "varied" is for training.
LOOKS = {"first": Edition(1, first.simulate, first.kind_of)} | {
    name: Edition(look.version, partial(second.simulate, look=look), second.kind_of) for name, look in _SECOND.items()
}


def simulate_subject(
    seed: int, index: int, *, spacing: float = 3.0, device: str = "cpu", look: str = "first"
) -> Subject:
    """Simulate subject ``index`` of the cohort ``seed``.

    The subject does not depend on how many others there are. On the CPU the result is the same to the bit each time;
    another ``spacing`` gives the same anatomy and tumour with other voxels, under other noise (and with "first" other
    bias field and texture). "typical" and "varied" are the same subject with the same labels.

    Args:
        seed: the cohort's seed, 0 or more.
        index: the subject's number in the cohort, 0 or more.
        spacing: voxel edge in mm.
        device: torch device that computes; random numbers always come from the CPU.
        look: a key of ``LOOKS``.

    Raises:
        InputError: an unknown look.
    """
    edition = find_look(look)
    grid = Grid(spacing, torch.device(device))
    with _one_thread():
        images, labels, kind = edition.simulate(seed, index, grid)
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
        Images by modality as in :attr:`Subject.volumes`, and fractions of "white" and "grey" matter, "csf" and "brain"
        in a voxel, 0 where the images are; float32 [X, Y, Z] in [0, 1].
    """
    with _one_thread():
        images, tissues = second.simulate_anatomy(seed, index, Grid(spacing, torch.device("cpu")), _SECOND["typical"])
    return {name: part.numpy() for name, part in images.items()}, {name: part.numpy() for name, part in tissues.items()}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The order of summation, and with it the last bit, may depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def subject_kind(seed: int, index: int, *, look: str = "first") -> str:
    """What :func:`simulate_subject` would make of these numbers: "ring", "solid", "low-grade" or "healthy".

    Args:
        seed: the cohort's seed, 0 or more.
        index: the subject's number in the cohort, 0 or more.
        look: a key of ``LOOKS``.
    """
    return find_look(look).kind_of(seed, index)


def find_look(name: str) -> Edition:
    """The edition of that name.

    Raises:
        InputError: there is none.
    """
    if name not in LOOKS:
        raise InputError(f"unknown look {name!r}: choose from {', '.join(LOOKS)}")
    return LOOKS[name]
