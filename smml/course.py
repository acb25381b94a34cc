"""What the notebooks share: where results go, how large a run is, and the embedded cohort."""

import os
from pathlib import Path

from smml.data import CaseFiles, simulate_cohort

# SMML_FAST=1 runs the notebooks on fewer cases and steps; the tests do.
FAST = os.environ.get("SMML_FAST", "") not in ("", "0")

TRAINING_SEED, HELD_OUT_SEED = 0, 1000


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
