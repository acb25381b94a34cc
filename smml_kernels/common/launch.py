"""What every launcher needs: where kernels can run, on which device, and what autograd may not ask for."""

import contextlib

import torch
import torch.distributed as dist
import triton.language as tl
from triton import knobs

# Decided when Triton is imported: a process interprets all of its kernels or compiles all of them.
INTERPRETED: bool = bool(knobs.runtime.interpret)

# Options of every launch. Triton is about to change its default for fused multiply-adds: they are wanted here.
OPTIONS = {"enable_fp_fusion": True}


def can_run_on(device: torch.device) -> bool:
    """Whether a kernel launched on tensors of this device would run: compiled on CUDA, interpreted on the CPU."""
    return device.type == ("cpu" if INTERPRETED else "cuda")


def device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes the tensor's GPU current while a kernel is launched: Triton launches on the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def accumulator(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype that a kernel adds up in: float64 where any tensor is, float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def forbid_double_backward(backward_op: torch.library.CustomOpDef, operation: str) -> None:
    """Give the op that computes a gradient a derivative of its own: a clear error.

    Without it, differentiating twice would stop with a message about a missing formula that names no way out.
    """

    def refuse(ctx, *gradients):
        raise RuntimeError(
            f"{operation} by Triton can be differentiated once: for second derivatives pass implementation='torch'"
        )

    backward_op.register_autograd(refuse)


def group_name(group: "dist.ProcessGroup | None") -> str:
    """A process group as the string that an op can take; empty for none.

    Raises:
        TypeError: ``group`` is neither None nor a process group.
    """
    if group is None:
        return ""
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be None or a torch.distributed.ProcessGroup, found {type(group).__name__}")
    return group.group_name


def all_reduce(tensor: torch.Tensor, name: str) -> None:
    """Sum a tensor in place over the ranks of the group of that name."""
    dist.all_reduce(tensor, group=dist.distributed_c10d._resolve_process_group(name))


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """The Triton name of an accumulator's dtype."""
    return {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]


def require(tensor: torch.Tensor, operation: str) -> None:
    """Raise ``RuntimeError`` where a kernel could not run on the tensor's device."""
    if not can_run_on(tensor.device):
        raise RuntimeError(
            f"{operation}: Triton kernels cannot run on a {tensor.device.type} tensor in this process; pass "
            "implementation='torch', or set TRITON_INTERPRET=1 before Python starts to interpret them on the CPU"
        )
