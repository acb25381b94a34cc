"""One optimiser step: micro-batches forward and backward, gradients of all ranks, clipping, update."""

import itertools
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from smml.errors import TrainingDiverged
from smml.models.blocks import Encoder
from smml.models.decoder import Decoder
from smml.models.smml import SMML, SMMLOutput
from smml.models.student import StudentOutput
from smml.models.transformer import IntraModalTransformer
from smml.ranks import Ranks
from smml.training.branches import BRANCHES, forward_and_backward, side_by_side
from smml.training.config import TrainingConfig, learning_rate
from smml.training.objective import TERMS, Objective, objective


def take_step(
    model: SMML,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[dict[str, torch.Tensor]],
    config: TrainingConfig,
    step: int,
    ranks: Ranks,
) -> dict[str, float]:
    """One optimiser step on this rank's share of a batch.

    Args:
        model: in training mode.
        optimiser: of its parameters.
        batches: this rank's share of each of the ``config.accumulate`` micro-batches, as the loader stacks them:
            ``image`` float [B, M, X, Y, Z], ``label`` uint8 [B, X, Y, Z], ``masks`` bool [B, 2, M], ``available`` bool
            [B, M], and with refinement ``priors`` float [B, 2, M, R, X, Y, Z].
        config: weights, schedule, precision.
        step: 0, 1, ...
        ranks: the processes that take the step together.

    Returns:
        The log's row: the same on every rank, but for ``seconds``.

    Raises:
        TrainingDiverged: the loss or the gradient is not finite any more.
    """
    began = time.perf_counter()
    rate = learning_rate(config, step)
    for group in optimiser.param_groups:
        group["lr"] = rate
    if ranks.count > 1:
        # One process goes on drawing dropout masks from where it stands. Several draw what follows from step and rank:
        # different masks on each, and nothing that a checkpoint would have to keep for every one of them.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, step, ranks.rank]).generate_state(1)[0]))
    optimiser.zero_grad(set_to_none=True)
    parts = []
    for batch, samples in zip(batches, micro_batches(range(config.batch_size), config.accumulate), strict=True):
        part = len(samples) / config.batch_size
        loss = _forward_and_backward(model, batch, config, step, ranks, part)
        parts.append((part, loss.total.detach(), loss.terms))
    ranks.add_gradients(model.parameters())
    norm = _clip_gradients(model, config.gradient_clip)
    total = sum(part * float(value) for part, value, _ in parts)
    if not torch.isfinite(norm) or total != total:
        raise TrainingDiverged(
            f"training diverged at step {step} (loss {total:g}, gradient norm {float(norm):g}): "
            "lower the learning rate; the last checkpoint is intact"
        )
    optimiser.step()
    terms = {name: sum(part * float(values[name]) for part, _, values in parts) for name in TERMS}
    seconds = time.perf_counter() - began
    return {
        "step": step, "total": total, **terms, "learning_rate": rate, "gradient_norm": float(norm), "seconds": seconds
    }  # fmt: skip


def _clip_gradients(model: SMML, limit: float) -> torch.Tensor:
    """Clip the gradient of each network by its own norm; returns the norm of all of them before that.

    By its own: a branch must not move less because the other stumbled. Two students between which no loss runs then
    train exactly as either would alone, which the ablation rests on (:mod:`smml.study`).
    """
    limit = limit if limit > 0 else float("inf")
    networks = [*model.branches, *(model.refinements or ())]
    norms = [torch.nn.utils.clip_grad_norm_(network.parameters(), limit) for network in networks]
    # A network that has no gradient yet, as a refinement before its start, gives a zero on the CPU.
    return torch.stack([norm.to(norms[0].device) for norm in norms]).square().sum().sqrt()


def micro_batches(samples: range, count: int) -> list[range]:
    """A step's samples in ``count`` parts of neighbours whose sizes differ by one at most, larger ones first."""
    size, left = divmod(len(samples), count)
    edges = [part * size + min(part, left) for part in range(count + 1)]
    return [samples[start:end] for start, end in itertools.pairwise(edges)]


def accelerate(model: SMML, config: TrainingConfig) -> None:
    """Switch on, in place, what trades time for memory or time for preparation (``recompute``, ``compile``).

    Names and values of the weights stay as they are. What is compiled are the encoders, the transformers within the
    modalities and the decoders, which are most of a step; what chooses between modalities stays plain Python.
    """
    for module in model.modules():
        if isinstance(module, Encoder | Decoder):
            module.recompute = config.recompute
        if config.compile and isinstance(module, Encoder | Decoder | IntraModalTransformer):
            module.compile()


def _forward_and_backward(
    model: SMML, batch: dict[str, torch.Tensor], config: TrainingConfig, step: int, ranks: Ranks, factor: float
) -> Objective:
    """The objective of one micro-batch, over all ranks; its gradient times ``factor`` is added to the parameters'."""
    batch = {name: tensor.to(ranks.device, non_blocking=True) for name, tensor in batch.items()}
    # The loader stacks samples first: [B, 2, M] -> [2, B, M].
    masks = batch["masks"].transpose(0, 1)
    priors = batch["priors"].transpose(0, 1) if "priors" in batch else None

    def branch(number: int) -> tuple[StudentOutput, torch.Tensor | None]:
        # bfloat16 has float32's range, so no gradient needs scaling. The losses are outside: they compute in float32.
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            prior = None if priors is None else priors[number]
            return model.branch(number, batch["image"], masks[number], batch["available"], prior)

    def judge(output: SMMLOutput) -> Objective:
        loss = objective(output, batch["label"], config, step, ranks.group)
        # Without accumulation not even a factor of 1: the numbers stay those of one plain backward pass, to the bit.
        (loss.total if factor == 1 else factor * loss.total).backward()
        return loss

    if side_by_side(model, config, ranks.device):
        return forward_and_backward(branch, judge)
    return judge(SMMLOutput.of(map(branch, BRANCHES)))


def shares(config: TrainingConfig, ranks: Ranks, first_step: int, end: int) -> Sequence[range]:
    """This rank's samples of every micro-batch from ``first_step`` up to ``end``; step s has s * B to (s + 1) * B.

    Raises:
        InputError: a micro-batch has fewer samples than there are ranks.
    """
    return [
        ranks.share(part)
        for step in range(first_step, end)
        for part in micro_batches(range(step * config.batch_size, (step + 1) * config.batch_size), config.accumulate)
    ]
