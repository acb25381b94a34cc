"""What a run starts from: its own last checkpoint, the weights of another run, or nothing."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from smml.data.layouts import CaseFiles
from smml.errors import InputError
from smml.models.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from smml.models.presets import PRESETS, preset_name
from smml.models.smml import SMML
from smml.runs import file_digest, files_digest
from smml.training.config import TrainingConfig

CHECKPOINT = "checkpoint.pt"
# Where a run computes and how often it saves do not change what is computed.
FREE_OPTIONS = frozenset({"cache", "checkpoint_every", "workers", "device", "tensorboard"})
# What lies somewhere: it may have moved. Its content counts, which the run's identity has under other names.
PLACES = frozenset({"validation", "refinement", "weights"})
# What a run works on, beside its options.
IDENTITY = frozenset(
    {"cases", "cases_content", "validation_cases", "validation_content", "weights", "weights_content", "sam"}
)
_SAID = {
    "cases_content": "content of the cases",
    "validation_cases": "cases to validate on",
    "validation_content": "content of the cases to validate on",
    "weights_content": "content of the weights to start from",
}


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
    # default version of the preprocessing grows with the package, and a run never had an undecided precision or size.
    older = {"preprocessing": checkpoint.preprocessing, "precision": "float32", "preset": "tiny"}
    stored = TrainingConfig().to_dict() | older | checkpoint.config
    free = FREE_OPTIONS | {name for name in ("precision", "preset") if wanted[name] == "auto"}
    # A checkpoint that is older than the digests can be compared by the places alone, and by the ids of its cases.
    if "cases_content" in stored:
        free |= PLACES
    else:
        free |= IDENTITY - {"cases", "weights", "sam"}
    different = sorted(key for key in wanted.keys() - free if stored.get(key) != wanted[key])
    if different:
        raise InputError(
            f"{existing}: was trained with "
            + ", ".join(f"{_SAID.get(key, key)}={stored.get(key)!r} instead of {wanted[key]!r}" for key in different)
            + "; resume with the same options or choose another folder"
        )
    if checkpoint.training is None:
        raise InputError(
            f"{existing}: holds weights but no optimiser, so it cannot be resumed; train into a new folder"
        )
    return checkpoint


def preset_to_train(start: Checkpoint | None, weights: str | os.PathLike | None) -> str:
    """The preset that "auto" stands for: that of the run which goes on, else that of the weights, else "tiny".

    Args:
        start: of :func:`resume_point`.
        weights: what a fresh run starts from.

    Raises:
        InputError: no such checkpoint, or its sizes are no preset's.
    """
    if start is not None:
        return start.config.get("preset", "tiny")
    if weights is None:
        return "tiny"
    found = preset_name(load_checkpoint(weights).student)
    if found is None:
        raise InputError(
            f"{weights}: its students have sizes of their own, which are no preset's ({', '.join(PRESETS)}); start "
            "from other weights"
        )
    return found


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


def random_states(device: torch.device) -> dict:
    """States of the generators that dropout draws on; samples need none, they follow from seed and index.

    Args:
        device: where this process computes. Other devices have no say.
    """
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random(states: dict, device: torch.device) -> None:
    """Inverse of :func:`random_states`, on any device: what it has no state of goes on from the run's seed."""
    torch.set_rng_state(states["cpu"])
    # Files of earlier versions hold a state for each GPU of the machine that they were written on.
    if device.type == "cuda" and states.get("cuda"):
        number = min(device.index or 0, len(states["cuda"]) - 1)
        torch.cuda.set_rng_state(states["cuda"][number], device)


def run_identity(
    files: Sequence[CaseFiles], held_out: Sequence[CaseFiles] = (), weights: str | os.PathLike | None = None
) -> dict[str, str | None]:
    """What a run works on, by content, so that it goes on after a move and not on something else.

    Args:
        files: the cases to train on.
        held_out: those to validate on.
        weights: the checkpoint that it starts from.

    Returns:
        All of ``IDENTITY`` but "sam": the ids of the cases, and digests of the files (:func:`smml.runs.file_digest`).

    Raises:
        InputError: a file cannot be read.
    """
    return {
        "cases": _ids(files),
        "cases_content": _content_of(files),
        "validation_cases": _ids(held_out),
        "validation_content": _content_of(held_out),
        "weights": None if weights is None else str(weights),
        "weights_content": None if weights is None else file_digest(find_checkpoint(weights)),
    }


def _content_of(files: Sequence[CaseFiles]) -> str:
    labels = {case.label for case in files}
    return files_digest((path for case in files for path in case.paths), whole=labels)


def _ids(files: Sequence[CaseFiles]) -> str:
    digest = hashlib.sha256("\n".join(case.id for case in files).encode()).hexdigest()
    return f"{len(files)} cases, ids {digest[:12]}"
