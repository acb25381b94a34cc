"""The training loop: one forward of both students, one backward, one optimiser step."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from smml.data.case import read_case
from smml.data.dataset import CohortDataset
from smml.data.layouts import CaseFiles, find_cases
from smml.data.preprocessing import plan_geometry
from smml.devices import find_device
from smml.errors import InputError
from smml.files import write_text
from smml.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from smml.models.smml import SMML
from smml.sam.load import load_sam
from smml.sam.prior import SAMPrior
from smml.training.config import TrainingConfig, learning_rate
from smml.training.log import TrainingLog
from smml.training.objective import TERMS, objective
from smml.training.priors import PriorFolder, make_priors

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
PRIORS = "priors"
COLUMNS = ("step", "total", *TERMS, "learning_rate", "gradient_norm", "prior_seconds", "seconds")


def train(
    cases: str | os.PathLike | Sequence[CaseFiles],
    output: str | os.PathLike,
    config: TrainingConfig | None = None,
    *,
    weights: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> Path:
    """Train the two students together.

    The run's folder gets ``config.json``, ``log.csv`` (a row a step) and ``checkpoint.pt`` (written atomically every
    ``checkpoint_every`` steps and at the end), with refinement also ``priors/``. A run that was killed and resumed ends
    with the same weights to the bit as one that was not, on a CPU with the same number of threads.

    Args:
        cases: a folder of labelled cases, or cases from ``find_cases``.
        output: the run's folder.
        config: see :class:`TrainingConfig`.
        weights: start from the weights of this checkpoint (see ``find_checkpoint``) of the same preset instead of
            random ones; the optimiser starts anew.
        resume: continue a run of the same configuration from its last checkpoint, or start it if there is none.
        progress: show a progress bar with the loss.
        on_step: called after each step with the row of the log.

    Returns:
        The path of the last checkpoint.

    Raises:
        InputError: unusable cases, a folder that holds a run already, or a run of another configuration.
    """
    config = config or TrainingConfig()
    output = Path(output)
    files = find_cases(cases) if isinstance(cases, str | os.PathLike) else list(cases)
    identity = {"cases": _identity(files), "weights": None if weights is None else str(weights)}
    start = _resume_point(output, config.to_dict() | identity, resume)
    spacing = (config.spacing,) * 3 if config.spacing else _spacing_of(files)
    dataset = CohortDataset(
        files,
        patch=config.patch,
        spacing=spacing,
        samples=config.steps * config.batch_size,
        seed=config.seed,
        augment=config.augment,
        tumour_share=config.tumour_share,
    )
    sam = load_sam(config.refinement, device=config.device) if config.refinement else None
    device = find_device(config.device)
    torch.manual_seed(config.seed)
    model = SMML(
        config.preset,
        num_classes=dataset.num_classes,
        separate_heads=config.separate_heads,
        refine=bool(config.refinement),
    ).to(device)
    optimiser = torch.optim.Adam(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, amsgrad=True
    )
    step = 0
    if start is None and weights is not None:
        _load_starting_weights(model, weights, config, dataset.num_classes)
    if start is not None:
        step = _restore(start, model, optimiser)
    write_text(
        output / "config.json", json.dumps(config.to_dict() | identity | {"spacing_mm": list(spacing)}, indent=2) + "\n"
    )

    def save(steps_done: int) -> None:
        state = {"optimiser": optimiser.state_dict(), "random": _random_states()}
        save_checkpoint(
            output / CHECKPOINT,
            Checkpoint(
                model.config,
                model.state_dict(),
                spacing,
                config.patch,
                steps_done,
                config.to_dict() | identity,
                state,
                refinement=config.refinement,
            ),
        )

    def priors() -> PriorFolder:
        """The priors of the run: made at the step where the refinement begins, read at any later one."""
        if step > config.refinement_step:
            return PriorFolder(output / PRIORS)
        return make_priors(
            model,
            files,
            SAMPrior(sam),
            output / PRIORS,
            spacing=spacing,
            patch=config.patch,
            pairs=config.prior_masks,
            seed=config.seed,
            device=config.device,
            progress=progress,
        )

    log = TrainingLog(output / LOG, COLUMNS, resume_at=step)
    try:
        model.train()
        with tqdm(initial=step, total=config.steps, desc="training", disable=not progress) as bar:
            for end in _phases(config, step):
                if step == config.refinement_step and step > 0:
                    # Whoever is interrupted while the priors are made begins here again, with these very students.
                    log.sync()
                    save(step)
                prior_seconds = 0.0
                if config.refinement_step is not None and step >= config.refinement_step:
                    began = time.perf_counter()
                    dataset.priors = priors()
                    prior_seconds = time.perf_counter() - began
                for batch in _batches(dataset, config, step, end):
                    row = _step(model, optimiser, batch, config, step) | {"prior_seconds": prior_seconds}
                    prior_seconds = 0.0
                    step += 1
                    log.write(row)
                    bar.update()
                    bar.set_postfix(total=f"{row['total']:.2f}", fuse=f"{row['fuse_1']:.2f}/{row['fuse_2']:.2f}")
                    if on_step is not None:
                        on_step(row)
                    if step % config.checkpoint_every == 0 or step == config.steps:
                        log.sync()
                        save(step)
    finally:
        log.close()
    return output / CHECKPOINT


def _step(
    model: SMML, optimiser: torch.optim.Optimizer, batch: dict[str, torch.Tensor], config: TrainingConfig, step: int
) -> dict[str, float]:
    """One optimiser step; returns the log's row."""
    began = time.perf_counter()
    rate = learning_rate(config, step)
    for group in optimiser.param_groups:
        group["lr"] = rate
    device = next(model.parameters()).device
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    # The loader stacks samples first: [B, 2, M] -> [2, B, M].
    masks, available = batch["masks"].transpose(0, 1), batch["available"]
    priors = batch["priors"].transpose(0, 1) if "priors" in batch else None
    output = model(batch["image"], masks, available, priors)
    loss = objective(output, batch["label"], masks, available, config, step)
    optimiser.zero_grad(set_to_none=True)
    loss.total.backward()
    limit = config.gradient_clip if config.gradient_clip > 0 else float("inf")
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    total = float(loss.total.detach())
    if not torch.isfinite(norm) or total != total:
        raise InputError(
            f"training diverged at step {step} (loss {total:g}, gradient norm {float(norm):g}): "
            "lower the learning rate; the last checkpoint is intact"
        )
    optimiser.step()
    values = {name: float(value) for name, value in loss.terms.items()}
    seconds = time.perf_counter() - began
    return {
        "step": step, "total": total, **values, "learning_rate": rate, "gradient_norm": float(norm), "seconds": seconds
    }  # fmt: skip


def _phases(config: TrainingConfig, step: int) -> list[int]:
    """Where the phases of training that are still to come end: without refinement, with it."""
    ends = [config.steps] if config.refinement_step is None else [config.refinement_step, config.steps]
    return [end for end in ends if end > step]


def _batches(dataset: CohortDataset, config: TrainingConfig, first_step: int, end: int) -> DataLoader:
    """Batches from ``first_step`` up to ``end``; sample i belongs to step i // batch_size."""
    order = range(first_step * config.batch_size, end * config.batch_size)
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=order,
        num_workers=config.workers,
        pin_memory=config.device.startswith("cuda"),
        # A generator of its own: by default each new loader draws a seed from the global one, and a resumed run, which
        # makes one loader more, would then see other dropout masks.
        generator=torch.Generator(),
    )


def _resume_point(output: Path, wanted: dict, resume: bool) -> Checkpoint | None:
    """The checkpoint to continue from, or None for a fresh start."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, expected a folder for the run; choose another name")
    existing = output / CHECKPOINT
    if not existing.exists():
        return None
    if not resume:
        raise InputError(f"{output}: holds a training run already; continue it with --resume or choose another folder")
    checkpoint = load_checkpoint(existing)
    # Where it runs and how often it saves do not change what is computed.
    free = {"checkpoint_every", "workers", "device"}
    stored = checkpoint.config
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


def _load_starting_weights(model: SMML, weights: str | os.PathLike, config: TrainingConfig, num_classes: int) -> None:
    """Weights of another run; refinement networks that it lacks stay as they are."""
    checkpoint = load_checkpoint(weights, preset=config.preset)
    if checkpoint.student.num_classes != num_classes:
        raise InputError(
            f"{weights}: its model has {checkpoint.student.num_classes} classes, the data have {num_classes}; "
            "start from random weights"
        )
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("refinements.")}
    students = {name: tensor for name, tensor in checkpoint.weights.items() if not name.startswith("refinements.")}
    refinements = {name: tensor for name, tensor in checkpoint.weights.items() if name in own}
    model.load_state_dict({**own, **students, **refinements})


def _restore(checkpoint: Checkpoint, model: SMML, optimiser: torch.optim.Optimizer) -> int:
    model.load_state_dict(checkpoint.weights)
    optimiser.load_state_dict(checkpoint.training["optimiser"])
    random = checkpoint.training["random"]
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available() and random.get("cuda"):
        torch.cuda.set_rng_state_all(random["cuda"])
    return checkpoint.step


def _random_states() -> dict:
    """States of the generators that dropout draws on; samples need none, they follow from seed and index."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _identity(files: Sequence[CaseFiles]) -> str:
    """Which cases these are, so that a run is not resumed on others: their number and a digest of their ids."""
    digest = hashlib.sha256("\n".join(case.id for case in files).encode()).hexdigest()
    return f"{len(files)} cases, ids {digest[:12]}"


def _spacing_of(files: Sequence[CaseFiles]) -> tuple[float, float, float]:
    if not files:
        raise InputError("no cases to train on: simulate some or name a folder that holds them")
    return plan_geometry(read_case(files[0], files[0].modalities[:1], label=False)).spacing
