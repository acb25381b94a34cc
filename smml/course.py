"""What the notebooks share: where results go, how large a run is, the embedded cohort, and checking exercises."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smml.data import CaseFiles, simulate_cohort

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
    """The first ``cases`` simulated subjects that no training sees, 3 mm; simulated on first use."""
    return simulate_cohort(build_folder() / "cohort" / "held-out", cases, spacing=3.0, seed=HELD_OUT_SEED)


@contextmanager
def check(exercise: str) -> Iterator[None]:
    """Say whether an exercise is solved; whatever goes wrong inside is a hint, never a traceback.

    ::

        with course.check("8.1"):
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
