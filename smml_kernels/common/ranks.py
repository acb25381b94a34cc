"""Sums over the ranks of a process group that autograd can differentiate.

Let T = sum over ranks of t_r, where rank r has t_r. Every rank wants the derivative of one number, the loss L of the
whole batch, by its own t_r. As dT/dt_r = 1 it is dL/dT, the same for all ranks. What a rank finds in its backward pass,
though, depends on what it did with T, so there are two functions with one result and two derivatives:

``sum_over_ranks``
    Every rank goes on to compute the same L from T and from nothing else that differs between ranks: Dice from its
    global sums, or L = sum of the ranks' parts itself. Each rank then finds all of dL/dT, and the gradient passes
    through unchanged. Adding it up would make it too large by the number of ranks.
``sum_moments_over_ranks``
    Every rank goes on to compute its own part L_r from T and its own data, and L is the sum of the parts: moments of
    the batch that each rank applies to its own tokens. A rank finds only dL_r/dT, and the gradient is the sum of these
    over ranks. It is an all-reduce in the backward pass, so every rank must differentiate if any does.

Both leave a rank with d(global loss)/d(its own data) as it stands. DistributedDataParallel takes the mean over ranks
of parameter gradients, where the sum is the gradient of the global loss: multiply the loss by the number of ranks.
"""

import torch
import torch.distributed as dist


def sum_over_ranks(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The sum over ranks of what all of them turn into the same number; its gradient passes through unchanged.

    Args:
        tensor: this rank's summand, of one shape and dtype on all ranks.
        group: whose ranks to add up; None returns the tensor itself.
    """
    return tensor if group is None else _Sum.apply(tensor, group, False)


def sum_moments_over_ranks(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The sum over ranks of what each of them turns into its own part of a sum; its gradient is added up too.

    Args:
        tensor: this rank's summand, of one shape and dtype on all ranks.
        group: whose ranks to add up; None returns the tensor itself.
    """
    return tensor if group is None else _Sum.apply(tensor, group, True)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, group: dist.ProcessGroup, sum_gradient: bool) -> torch.Tensor:
        ctx.group, ctx.sum_gradient = group, sum_gradient
        return _all_reduce(tensor, group)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return (_Sum.apply(gradient, ctx.group, True) if ctx.sum_gradient else gradient), None, None


def _all_reduce(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum, in new memory."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total
