"""Both branches of a step at the same time, on a CPU with two cores or more.

Before the objective the two students have nothing in common. A thread for each, with half of the cores, keeps the cores
busier than all of them on one layer after the other: many layers are too small to be worth dividing, and while Python
picks the next one, the other branch computes.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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
    judge: Callable[[SMMLOutput], Objective],
) -> Objective:
    """One forward and one backward pass through both branches, each in a thread of its own.

    Args:
        branch: from 0 or 1 to that branch's output, and to its refined logits if there are any.
        judge: from both to their objective, whose backward pass it has run.

    Returns:
        The objective; the gradients have been added to the parameters.
    """
    pool = _pool(max(1, torch.get_num_threads() // len(BRANCHES)))
    made = list(pool.map(branch, BRANCHES))
    ends = [_Ends() for _ in made]
    loss = judge(SMMLOutput.of(end.cut_all(*both) for end, both in zip(ends, made, strict=True)))
    list(pool.map(_Ends.backward, ends))
    return loss


class _Ends:
    """Where a branch's graph is cut from the objective's: outputs, and leaves with the same numbers in their place."""

    def __init__(self) -> None:
        self.wholes: list[torch.Tensor] = []
        self.parts: list[torch.Tensor] = []

    def cut_all(self, output: StudentOutput, refined: torch.Tensor | None) -> tuple[StudentOutput, torch.Tensor | None]:
        """A branch's output with leaves for its tensors."""
        cut = replace(
            output,
            logits=self._cut(output.logits),
            separate=tuple(None if head is None else self._cut(head) for head in output.separate),
            deep=tuple(map(self._cut, output.deep)),
            bottleneck=self._cut(output.bottleneck),
        )
        return cut, None if refined is None else self._cut(refined)

    def backward(self) -> None:
        """The branch's own backward pass, from the gradients that the objective left in the leaves."""
        pairs = zip(self.wholes, self.parts, strict=True)
        reached = [(whole, part.grad) for whole, part in pairs if part.grad is not None]
        torch.autograd.backward([whole for whole, _ in reached], [gradient for _, gradient in reached])

    def _cut(self, output: torch.Tensor) -> torch.Tensor:
        # Of a student that is not trained nobody asks for gradients.
        leaf = output.detach().requires_grad_(output.requires_grad)
        self.wholes.append(output)
        self.parts.append(leaf)
        return leaf


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Two threads that compute with so many cores each; PyTorch keeps that number for every thread apart."""
    return ThreadPoolExecutor(
        len(BRANCHES), "smml-branch", initializer=functools.partial(torch.set_num_threads, threads)
    )
