"""What the notebooks share: where results go, how large a run is, the embedded cohort, a toy, checking exercises."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from smml.data import CaseFiles, simulate_cohort
from smml.losses import pixel_consistency
from smml_kernels import Gate
from smml_kernels.exchange.reference import divergence, gated_mean

# SMML_FAST=1 runs the notebooks on fewer cases and steps; the tests do.
FAST = os.environ.get("SMML_FAST", "") not in ("", "0")

TRAINING_SEED, HELD_OUT_SEED = 0, 1000

# What the last check of each exercise found: None if it was solved, else why not.
outcomes: dict[str, str | None] = {}


def size(full: int, fast: int) -> int:
    """``full``, or ``fast`` where SMML_FAST is set."""
    return fast if FAST else full


def build_folder() -> Path:
    """Where results go: $SMML_BUILD, else ``build`` beside the ``notebooks`` folder, else ``build`` here."""
    if "SMML_BUILD" in os.environ:
        return Path(os.environ["SMML_BUILD"])
    here = Path.cwd()
    return (here.parent if here.name == "notebooks" else here) / "build"


def results_folder() -> Path:
    """The committed measurements: ``results`` of the repository that the notebooks lie in."""
    here = Path.cwd()
    return (here.parent if here.name == "notebooks" else here) / "results"


def training_cohort(cases: int) -> list[CaseFiles]:
    """The first ``cases`` simulated subjects that the notebooks train on, 3 mm; simulated on first use."""
    return simulate_cohort(build_folder() / "cohort" / "training", cases, spacing=3.0, seed=TRAINING_SEED)


def held_out_cohort(cases: int) -> list[CaseFiles]:
    """The first ``cases`` simulated subjects that no training sees, 3 mm; simulated on first use.

    Their ids begin at 100, so that none is the id of a subject to train on.
    """
    folder = build_folder() / "cohort" / "held-out"
    return simulate_cohort(folder, cases, spacing=3.0, seed=HELD_OUT_SEED, first_id=100)


# From log-probabilities [K, V] of both branches and the truth [V]: g of 1 -> 2 and of 2 -> 1, [V] each.
GateFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def train_two_readers(gate: Gate | GateFunction | None, steps: int = 50) -> float:
    """A toy of mutual learning: how much tumour the better of two readers calls, over how much there is.

    Each reader judges 4000 voxels, one in eight of them tumour, by one number a voxel that is 3 (reader 1) or 1 (reader
    2) higher in tumour, and noise of 1 otherwise. It has two parameters, what a logit is per unit and without any; both
    learn from the cross-entropy with the truth, and from each other by L_pc.

    Args:
        gate: who teaches where: a name of :func:`smml.losses.pixel_consistency`, or a function; None exchanges nothing.
        steps: of Adam.
    """
    random = torch.Generator().manual_seed(0)
    y = (torch.rand(4000, generator=random) < 1 / 8).long()
    seen = torch.randn(2, 4000, generator=random) + torch.tensor([[3.0], [1.0]]) * y
    parameters = torch.zeros(2, 2, 1, requires_grad=True)
    optimiser = torch.optim.Adam([parameters], lr=0.2)
    for _ in range(steps):
        tumour = parameters[0] * seen + parameters[1]
        log_p = torch.stack([torch.zeros_like(tumour), tumour], dim=1).log_softmax(dim=1)  # [2 readers, K, V]
        supervised = -log_p[:, y, torch.arange(len(y))].mean(dim=1).sum()
        optimiser.zero_grad()
        (supervised + _taught(gate, log_p, y)).backward()
        optimiser.step()
    called = parameters[0, 0] * seen[0] + parameters[1, 0] > 0
    return float(called.sum() / y.sum())


def _taught(gate: Gate | GateFunction | None, log_p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """L_{1->2} + L_{2->1} of log-probabilities [2, K, V]."""
    if gate is None:
        return log_p.new_zeros(())
    if isinstance(gate, str):
        one, two = (each[None, ..., None, None] for each in log_p)
        to_2, to_1 = pixel_consistency(one, two, y[None, :, None, None], gate=gate)
        return to_2 + to_1
    fixed1, fixed2 = log_p.detach().split(1)  # [1, K, V], as the learners below
    gate12, gate21 = gate(fixed1[0], fixed2[0], y)
    return gated_mean(gate12, divergence(fixed1, log_p[1:])) + gated_mean(gate21, divergence(fixed2, log_p[:1]))


@contextmanager
def check(exercise: str) -> Iterator[None]:
    """Say whether an exercise is solved; whatever goes wrong inside is a hint, never a traceback.

    ::

        with course.check("5.1"):
            assert my_dice(a, b) == dice(a, b), "compare with dice on the same masks"

    An untouched notebook therefore runs from top to bottom. The outcome is also kept in ``course.outcomes``.

    Args:
        exercise: its number, "notebook.exercise".
    """
    try:
        yield
    # The body is a reader's: a stub that returns `...` can bring up any error further down.
    except Exception as error:
        outcomes[exercise] = _hint(error)
        print(f"Exercise {exercise}: not solved yet ({outcomes[exercise]})")
    else:
        outcomes[exercise] = None
        print(f"Exercise {exercise}: solved")


def _hint(error: Exception) -> str:
    """What a failed check tells the reader, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, NotImplementedError) or "ellipsis" in text.lower():
        return "the function is still to be written"
    if isinstance(error, AssertionError):
        return text or "an assertion of the check does not hold"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
