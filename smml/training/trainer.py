"""The training loop: one forward of both students, one backward, one optimiser step, over one process or many."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from tqdm.auto import tqdm

from smml.data.checking import check_cases, warn_of_not_learnt
from smml.data.dataset import CohortDataset
from smml.data.layouts import CaseFiles, find_cases
from smml.data.preprocessing import plan_geometry
from smml.data.reading import read_case
from smml.devices import fastest_precision
from smml.errors import InputError, LostProcess
from smml.files import write_text
from smml.locks import claimed
from smml.models.checkpoint import Checkpoint, save_checkpoint
from smml.models.smml import SMML
from smml.ranks import Ranks, start_ranks
from smml.runs import CONFIG, LOG, Board, TrainingLog, provenance, read_facts
from smml.sam.load import load_sam
from smml.sam.prior import SAMPrior
from smml.tensors import weights_fingerprint
from smml.training.config import TrainingConfig, TrainingPrecision
from smml.training.ema import AverageWeights
from smml.training.loading import load_batches
from smml.training.objective import TERMS
from smml.training.priors import PriorFolder, make_priors
from smml.training.state import (
    CHECKPOINT,
    PLACES,
    load_starting_weights,
    preset_to_train,
    random_states,
    restore_random,
    resume_point,
    run_identity,
)
from smml.training.step import accelerate, shares, take_step
from smml.training.validation import VALIDATION_COLUMNS, BestScore, split_cases, validate

PRIORS = "priors"
BEST = "best.pt"
VALIDATION_LOG = "validation.csv"
COLUMNS = ("step", "total", *TERMS, "learning_rate", "gradient_norm", "prior_seconds", "seconds")


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        checkpoint: path of the last checkpoint, in the run's folder.
        steps: optimiser steps done, those before a resume included.
        best: score and step of the best validation; None without validation.
        stopped_early: whether ``patience`` ended the training before its last step.
    """

    checkpoint: Path
    steps: int
    best: BestScore | None
    stopped_early: bool


def train(
    cases: str | os.PathLike | Sequence[CaseFiles],
    output: str | os.PathLike,
    config: TrainingConfig | None = None,
    *,
    weights: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> TrainingResult:
    """Train the two students together.

    The run's folder gets ``config.json`` (options, versions, commit, hardware), ``log.csv`` (a row a step) and
    ``checkpoint.pt`` (written atomically every ``checkpoint_every`` steps and at the end), with refinement also
    ``priors/``, with validation ``validation.csv`` and ``best.pt`` (:mod:`smml.training.validation` has the rule). A
    run that was killed and resumed ends with the same weights to the bit as one that was not, on a CPU with the same
    number of threads.

    Under ``torchrun`` the processes train as one (:mod:`smml.ranks`): they share out the samples of each step and
    take the step that one process would take with all of them. Rank 0 writes the folder, which all of them must see. A
    run can be resumed by another number of processes; to the bit it is the same only with the same number.

    Args:
        cases: a folder of labelled cases, or cases from ``find_cases``.
        output: the run's folder.
        config: see :class:`TrainingConfig`.
        weights: start from the weights of this checkpoint (see ``find_checkpoint``), of the configuration's preset,
            instead of random ones; the optimiser starts anew.
        resume: continue a run of the same configuration from its last checkpoint, or start it if there is none.
        progress: show a progress bar with the loss.
        on_step: called after each step with the row of the log, in every process.

    Returns:
        Where the last checkpoint is, and how the training ended.

    Raises:
        InputError: unusable cases, a folder that holds a run already or that another process trains into, or a run of
            another configuration.
        TrainingDiverged: the loss or a gradient is not finite any more; the last checkpoint is whole.
        LostProcess: under torchrun, when another process of the run has ended; the last checkpoint is whole.
    """
    config, output = config or TrainingConfig(), Path(output)
    try:
        with start_ranks(config.device) as ranks:
            # Looked for by each process, which may not see the folder; the others then learn that it is gone.
            files = find_cases(cases) if isinstance(cases, str | os.PathLike) else list(cases)
            with _alone_in(output, ranks):
                run = _Run(files, output, config, ranks, weights, resume, progress and ranks.first)
                run.go(on_step)
                return run.result()
    except LostProcess as error:
        raise LostProcess(
            f"{error}; what was saved in {output} is whole: start the same command with --resume to go on from there"
        ) from error


@contextlib.contextmanager
def _alone_in(output: Path, ranks: Ranks) -> Iterator[None]:
    """Let rank 0 hold the run's folder; every rank is refused if another run does."""
    with contextlib.ExitStack() as held:
        refused = None
        if ranks.first:
            try:
                held.enter_context(claimed(output))
            except InputError as error:
                refused = str(error)
        refused = ranks.gather(refused)[0]
        if refused:
            raise InputError(refused)
        yield


class _Run:
    """A training run as one process sees it: what it was given, and what changes from step to step."""

    def __init__(
        self,
        cases: Sequence[CaseFiles],
        output: Path,
        config: TrainingConfig,
        ranks: Ranks,
        weights: str | os.PathLike | None,
        resume: bool,
        progress: bool,
    ) -> None:
        files, self.held_out = split_cases(cases, config)
        self.files, self.output, self.config, self.ranks, self.progress = files, output, config, ranks, progress
        self.identity = run_identity(files, self.held_out, weights)
        self.sam = load_sam(config.refinement, device=ranks.device) if config.refinement else None
        # A name does not say which weights: those that ship change with the version, and a file can be replaced.
        self.identity["sam"] = None if self.sam is None else weights_fingerprint(self.sam)
        if config.refinement_only and weights is None:
            raise InputError(
                "refinement_only leaves the students as they are, so somebody must have trained them: name their "
                "weights (weights, --weights)"
            )
        start = resume_point(output, config.to_dict() | self.identity, resume)
        if config.precision == "auto":
            known = fastest_precision(ranks.device) if start is None else start.config.get("precision", "float32")
            self.config = config = replace(config, precision=cast(TrainingPrecision, known))
        if config.preset == "auto":
            self.config = config = replace(config, preset=preset_to_train(start, weights))
        self.spacing = (config.spacing,) * 3 if config.spacing else _spacing_of(files)
        self.dataset = CohortDataset(
            files,
            patch=config.patch,
            spacing=self.spacing,
            samples=config.steps * config.batch_size,
            seed=config.seed,
            augment=config.augment,
            tumour_share=config.tumour_share,
            preprocessing=config.preprocessing,
            appearance=config.appearance,
            cache_bytes=round(config.cache * 2**30),
            share=config.workers > 0,
        )
        shares(config, ranks, 0, 1)  # refuses a batch that is too small, before anything is written
        if ranks.first:
            warn_of_not_learnt([*files, *self.held_out])
        check_cases([*files, *self.held_out], ranks=ranks, progress=progress)
        torch.manual_seed(config.seed)
        self.model = SMML(
            config.preset,
            num_classes=self.dataset.num_classes,
            separate_heads=config.separate_heads,
            refine=bool(config.refinement),
        ).to(ranks.device)
        self.model.branches.requires_grad_(not config.refinement_only)
        self.optimiser = torch.optim.Adam(
            self.model.parameters(), config.learning_rate, weight_decay=config.weight_decay, amsgrad=True, fused=True
        )
        self.average = AverageWeights(self.model, config.ema) if config.ema else None
        self.best, self.step = BestScore(), 0
        if start is not None:
            self._restore(start)
        elif weights is not None:
            self._start_from(weights)
        accelerate(self.model, config)
        free: dict[str, object] = dict.fromkeys(PLACES | {"workers", "cache"})
        ranks.agree(config.to_dict() | self.identity | free | {"steps done": self.step})
        if ranks.first:
            facts = config.to_dict() | self.identity | {"spacing_mm": list(self.spacing)}
            made = self._made_by(provenance(ranks.device, ranks.count))
            write_text(output / CONFIG, json.dumps(facts | made, indent=2) + "\n")
        # Rank 0 alone writes; whoever has no log has no file either.
        self.log = self.scores = self.board = None
        if ranks.first:
            self.board = Board(output) if config.tensorboard else None
            self.log = TrainingLog(output / LOG, COLUMNS, resume_at=self.step)
            if self.held_out:
                self.scores = TrainingLog(output / VALIDATION_LOG, VALIDATION_COLUMNS, resume_at=self.step + 1)

    def _made_by(self, here: dict) -> dict:
        """With what the steps are made: those before an interruption with what they were, as the run's file says."""
        path = self.output / CONFIG
        if not self.step or not path.is_file():
            return here
        known = read_facts(path)
        earlier = {name: known[name] for name in here if name in known}
        parts = list(known.get("resumed", ()))
        if not earlier:
            return here
        last = {name: value for name, value in (parts[-1] if parts else earlier).items() if name != "step"}
        if last != here and self.step < self.config.steps:
            parts.append({"step": self.step} | here)
        return earlier | ({"resumed": parts} if parts else {})

    def go(self, on_step: Callable[[dict[str, float]], None] | None) -> None:
        """Take all steps that are left."""
        config = self.config
        try:
            self.model.train()
            with tqdm(
                initial=self.step, total=config.steps, desc=f"training in {config.precision}", disable=not self.progress
            ) as bar:
                for end in _phases(config, self.step):
                    if self._stops_early():
                        break
                    prior_seconds = self._enter_phase()
                    for batches in _batches(self.dataset, config, self.ranks, self.step, end):
                        row = take_step(self.model, self.optimiser, batches, config, self.step, self.ranks)
                        row |= {"prior_seconds": prior_seconds}
                        prior_seconds = 0.0
                        self.step += 1
                        if self.average is not None:
                            self.average.update(self.model, self.step)
                        if self.log is not None:
                            self.log.write(row)
                        if self.board is not None:
                            self.board.write(row, "training")
                        bar.update()
                        bar.set_postfix(total=f"{row['total']:.2f}", fuse=f"{row['fuse_1']:.2f}/{row['fuse_2']:.2f}")
                        if on_step is not None:
                            on_step(row)
                        if self.held_out and (self.step % config.validate_every == 0 or self.step == config.steps):
                            self._validate()
                        stops = self._stops_early()
                        if self.step % config.checkpoint_every == 0 or self.step == config.steps or stops:
                            self._save()
                        if stops:
                            break
        finally:
            for log in (self.log, self.scores, self.board):
                if log is not None:
                    log.close()

    def result(self) -> TrainingResult:
        """How the run ended, once it has."""
        best = self.best if self.held_out else None
        return TrainingResult(self.output / CHECKPOINT, self.step, best, self.step < self.config.steps)

    def _stops_early(self) -> bool:
        first = self.config.refinement_step
        if first is not None and self.step <= first:
            # What the refinement has not been trained in is not the model that was asked for.
            return False
        return bool(self.config.patience) and self.best.since >= self.config.patience

    def _validate(self) -> None:
        """Score the weights that predict, and keep them if they are the best so far."""
        with self.average.in_place_of(self.model) if self.average is not None else contextlib.nullcontext():
            row = validate(self.model, self.held_out, self.step, self.config, self.spacing, self.ranks)
            better = self.best.take(row["dice"], self.step)
            if self.scores is None:
                return
            self.scores.write(row)
            self.scores.sync()
            if self.board is not None:
                self.board.write(row, "validation")
            if better:
                save_checkpoint(self._checkpoint(None), self.output / BEST)

    def _enter_phase(self) -> float:
        """Get ready for the phase that begins or goes on at this step; returns the seconds that priors took."""
        first = self.config.refinement_step
        if first is None or self.step < first:
            return 0.0
        if self.step == first:
            if self.step > 0:
                # Whoever is interrupted while the priors are made begins here again, with these very students.
                self._save()
            self.best = BestScore()
        began = time.perf_counter()
        self.dataset.priors = self._priors(first)
        return time.perf_counter() - began

    def _priors(self, first: int) -> PriorFolder:
        """The priors of the run: made at the step ``first``, where the refinement begins, read at any later one."""
        config = self.config
        if self.step > first:
            return PriorFolder(self.output / PRIORS)
        assert self.sam is not None  # it was loaded, as there is a refinement
        return make_priors(
            self.model,
            self.files,
            SAMPrior(self.sam),
            self.output / PRIORS,
            spacing=self.spacing,
            patch=config.patch,
            pairs=config.prior_masks,
            seed=config.seed,
            preprocessing=config.preprocessing,
            ranks=self.ranks,
            progress=self.progress,
        )

    def _start_from(self, weights: str | os.PathLike) -> None:
        """Begin with the weights of another run."""
        load_starting_weights(self.model, weights, self.config, self.dataset.num_classes)
        if self.average is not None:
            self.average.load(self.model.state_dict())

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Go on from where the run's own checkpoint was written: the inverse of :meth:`_save`."""
        state = checkpoint.training
        assert state is not None  # resume_point refuses such a checkpoint
        try:
            self.model.load_state_dict(checkpoint.weights)
            self.optimiser.load_state_dict(state["optimiser"])
            restore_random(state["random"], self.ranks.device)
            if self.average is not None:
                self.average.load(checkpoint.ema)  # type: ignore[arg-type]  # None is the TypeError below
            if self.held_out:
                self.best = BestScore(**state["best"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.output / CHECKPOINT}: what it says of the training is incomplete ({error!r}), so it cannot be "
                "resumed; train into a new folder, from its weights (--weights)"
            ) from error
        self.step = checkpoint.step

    def _save(self) -> None:
        """Write the checkpoint of this step, and see to it that the log is on disk before it."""
        self.ranks.check_replicas(self.model.parameters())
        if self.log is None:
            return
        self.log.sync()
        state = {"optimiser": self.optimiser.state_dict(), "random": random_states(self.ranks.device)}
        if self.held_out:
            state["best"] = vars(self.best).copy()
        average = None if self.average is None else self.average.weights
        save_checkpoint(self._checkpoint(state, average), self.output / CHECKPOINT)

    def _checkpoint(self, training: dict | None, average: dict[str, torch.Tensor] | None = None) -> Checkpoint:
        """The model as it is now."""
        return Checkpoint(
            self.model.config,
            self.model.state_dict(),
            self.spacing,
            self.config.patch,
            self.step,
            self.config.to_dict() | self.identity,
            training,
            refinement=_lasting(self.config.refinement),
            ema=average,
            preprocessing=self.config.preprocessing,
        )


def _lasting(sam: str) -> str:
    """A SAM's name as it is, its file by a path that holds in any working directory."""
    return str(Path(sam).resolve()) if Path(sam).is_file() else sam


def _phases(config: TrainingConfig, step: int) -> list[int]:
    """Where the phases of training that are still to come end: without refinement, with it."""
    ends = [config.steps] if config.refinement_step is None else [config.refinement_step, config.steps]
    return [end for end in ends if end > step]


def _batches(
    dataset: CohortDataset, config: TrainingConfig, ranks: Ranks, first_step: int, end: int
) -> Iterator[tuple[dict[str, torch.Tensor], ...]]:
    """This rank's share of the micro-batches of each step from ``first_step`` up to ``end``."""
    loaded = load_batches(
        dataset,
        shares(config, ranks, first_step, end),
        workers=config.workers,
        pin_memory=ranks.device.type == "cuda",
    )
    return zip(*[loaded] * config.accumulate, strict=True)


def _spacing_of(files: Sequence[CaseFiles]) -> tuple[float, float, float]:
    if not files:
        raise InputError("no cases to train on: simulate some or name a folder that holds them")
    return plan_geometry(read_case(files[0], files[0].modalities[:1], label=False)).spacing
