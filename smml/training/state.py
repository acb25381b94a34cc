"""What a run starts from: its own last checkpoint, the weights of another run, or nothing."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from smml.data.layouts import CaseFiles
from smml.errors import InputError
from smml.models.checkpoint import Checkpoint, load_checkpoint
from smml.models.smml import SMML
from smml.training.config import TrainingConfig

CHECKPOINT = "checkpoint.pt"
# Where a run computes and how often it saves do not change what is computed.
FREE_OPTIONS = frozenset({"cache", "checkpoint_every", "workers", "device", "tensorboard"})


def resume_point(output: Path, wanted: dict, resume: bool) -> Checkpoint | None:
    """The checkpoint to continue from, or None for a fresh start.

    Args:
        output: the run's folder.
        wanted: options and identity of the run that is about to go on.
        resume: whether a run that is there may be continued.

    Raises:
        InputError: there is a run already and it is not to be resumed, or it is another run, or it is damaged.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, expected a folder for the run; choose another name")
    existing = output / CHECKPOINT
    if not existing.exists():
        return None
    if not resume:
        raise InputError(f"{output}: holds a training run already; continue it with --resume or choose another folder")
    checkpoint = load_checkpoint(existing)
    # An option that the file does not name is younger than it and had no say: that is what its default means. The
    # default version of the preprocessing grows with the package, and a run never had an undecided precision.
    older = {"preprocessing": checkpoint.preprocessing, "precision": "float32"}
    stored = TrainingConfig().to_dict() | older | checkpoint.config
    free = FREE_OPTIONS | ({"precision"} if wanted["precision"] == "auto" else set())
    different = sorted(key for key in wanted.keys() - free if stored.get(key) != wanted[key])
    if different:
        raise InputError(
            f"{existing}: was trained with "
            + ", ".join(f"{key}={stored.get(key)!r} instead of {wanted[key]!r}" for key in different)
            + "; resume with the same options or choose another folder"
        )
    if checkpoint.training is None:
        raise InputError(
            f"{existing}: holds weights but no optimiser, so it cannot be resumed; train into a new folder"
        )
    return checkpoint


def load_starting_weights(model: SMML, weights: str | os.PathLike, config: TrainingConfig, num_classes: int) -> None:
    """Weights of another run, averaged ones if it has them; refinement networks that it lacks stay as they are.

    Raises:
        InputError: no such checkpoint, another preset, or another number of classes.
    """
    checkpoint = load_checkpoint(weights, preset=config.preset)
    if checkpoint.student.num_classes != num_classes:
        raise InputError(
            f"{weights}: its model has {checkpoint.student.num_classes} classes, the data have {num_classes}; "
            "start from random weights"
        )
    source = checkpoint.ema or checkpoint.weights
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("refinements.")}
    students = {name: tensor for name, tensor in source.items() if not name.startswith("refinements.")}
    refinements = {name: tensor for name, tensor in source.items() if name in own}
    model.load_state_dict({**own, **students, **refinements})


def random_states() -> dict:
    """States of the generators that dropout draws on; samples need none, they follow from seed and index."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random(states: dict) -> None:
    """Inverse of :func:`random_states`."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and states.get("cuda"):
        torch.cuda.set_rng_state_all(states["cuda"])


def run_identity(files: Sequence[CaseFiles]) -> str:
    """Which cases these are, so that a run is not resumed on others: their number and a digest of their ids."""
    digest = hashlib.sha256("\n".join(case.id for case in files).encode()).hexdigest()
    return f"{len(files)} cases, ids {digest[:12]}"
