"""Both branches of a step at the same time, on a CPU with two cores or more.

Before the objective the two students have nothing in common. A thread for each, with half of the cores, keeps the cores
busier than all of them on one layer after the other: many layers are too small to be worth dividing, and while Python
picks the next one, the other branch computes.
"""

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import torch

from smml.models import SMML, SMMLOutput, StudentOutput
from smml.training.config import TrainingConfig
from smml.training.objective import Objective

BRANCHES = (0, 1)


def side_by_side(model: SMML, config: TrainingConfig, device: torch.device) -> bool:
    """Whether a step runs its branches in two threads.

    Not where PyTorch compiles, and not with dropout, whose masks come from one generator: which branch draws first
    would be left to chance.
    """
    return device.type == "cpu" and torch.get_num_threads() > 1 and not config.compile and not model.config.dropout


def forward_and_backward(
    branch: Callable[[int], tuple[StudentOutput, torch.Tensor | None]],
    objective: Callable[[SMMLOutput], Objective],
    factor: float,
) -> Objective:
    """One forward and one backward pass through both branches, each in a thread of its own.

    Args:
        branch: from 0 or 1 to that branch's output, and to its refined logits if there are any.
        objective: of both.
        factor: of the loss, before its gradient is taken.

    Returns:
        The objective; the gradients have been added to the parameters.
    """
    pool = _pool(max(1, torch.get_num_threads() // len(BRANCHES)))
    made = list(pool.map(branch, BRANCHES))
    cut, wholes, parts = [], [], []
    for output, refined in made:
        ends = _Ends()
        cut.append(
            (
                replace(
                    output,
                    logits=ends.cut(output.logits),
                    separate=tuple(None if head is None else ends.cut(head) for head in output.separate),
                    deep=tuple(ends.cut(head) for head in output.deep),
                    bottleneck=ends.cut(output.bottleneck),
                ),
                None if refined is None else ends.cut(refined),
            )
        )
        wholes.append(ends.wholes)
        parts.append(ends.parts)
    first, second = cut
    pair = None if first[1] is None else (first[1], cast(torch.Tensor, second[1]))
    loss = objective(SMMLOutput((first[0], second[0]), pair))
    (loss.total if factor == 1 else factor * loss.total).backward()
    list(pool.map(_backward, wholes, parts))
    return loss


class _Ends:
    """Where a branch's graph is cut from the objective's: outputs, and leaves with the same numbers in their place."""

    def __init__(self) -> None:
        self.wholes: list[torch.Tensor] = []
        self.parts: list[torch.Tensor] = []

    def cut(self, output: torch.Tensor) -> torch.Tensor:
        leaf = output.detach().requires_grad_()
        self.wholes.append(output)
        self.parts.append(leaf)
        return leaf


def _backward(outputs: Iterable[torch.Tensor], leaves: Iterable[torch.Tensor]) -> None:
    """The branch's own backward pass, from the gradients that the objective left in the leaves."""
    reached = [(output, leaf.grad) for output, leaf in zip(outputs, leaves, strict=True) if leaf.grad is not None]
    torch.autograd.backward([output for output, _ in reached], [gradient for _, gradient in reached])


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Two threads that compute with so many cores each; PyTorch keeps that number for every thread apart."""
    return ThreadPoolExecutor(
        len(BRANCHES), "smml-branch", initializer=functools.partial(torch.set_num_threads, threads)
    )
