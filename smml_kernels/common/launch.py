"""What every launcher needs: where kernels can run, and on which device."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import triton.language as tl
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# Decided when Triton is imported: a process interprets all of its kernels or compiles all of them.
INTERPRETED: bool = bool(knobs.runtime.interpret)

# Options of every launch. Triton is about to change its default for fused multiply-adds: they are wanted here.
OPTIONS = {"enable_fp_fusion": True}


# As Triton has it. Where something else stands in its place (the emulator, aot), every launch goes there.
_TRITON_RUNS = JITFunction.run
# By kernel and arguments the launches that were made.
_LAUNCHES: dict[tuple, "_Launch"] = {}
_MOST_LAUNCHES = 4096


class _Launch(NamedTuple):
    """A launch that was made, and what its key tells by id: it stays alive, so that no other thing gets that id."""

    again: Callable[..., None]
    trailing: tuple
    kernel: Any
    constants: dict[str, Any]


def run(kernel: Any, grid: tuple[int, ...], constants: dict[str, Any], *arguments: Any) -> None:
    """``kernel[grid](*arguments, **constants)``; a launch like a former one costs the host less.

    At each launch Triton looks for what it has compiled for such arguments: of this dtype, with pointers and integers
    that are multiples of 16 or not, for this device. Here arguments that are the same in all of that, and the same
    numbers, lead to it at once. Hooks of profilers still hear of each launch; what ``triton.knobs`` say about compiling
    counts at the first one.

    Args:
        kernel: made by ``triton.jit``.
        grid: numbers of programs, one to three.
        constants: the parameters behind ``arguments``, and options of the launch. It must not change, and a later
            launch is like this one if it has the very same dict.
        arguments: in order; tensors, numbers, None, and tuples of tensors.
    """
    if type(kernel) is not JITFunction or JITFunction.run is not _TRITON_RUNS:
        kernel[grid](*arguments, **constants)
        return
    key: list = [id(kernel), id(constants), grid, driver.active.get_current_device()]
    for argument in arguments:
        for one in argument if type(argument) is tuple else (argument,):
            # 1, 1.0 and True are equal, but not to a compiler.
            key += (one.dtype, one.data_ptr() % 16 == 0) if isinstance(one, torch.Tensor) else (type(one), one)
    before = tuple(key)
    found = _LAUNCHES.get(before)
    if found is not None:
        found.again(*arguments, *found.trailing)
        return
    compiled = kernel[grid](*arguments, **constants)
    if compiled is None:  # a hook of Triton's took it over
        return
    if len(_LAUNCHES) >= _MOST_LAUNCHES:
        _LAUNCHES.clear()
    trailing = tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
    _LAUNCHES[before] = _Launch(compiled[(*grid, 1, 1)[:3]], trailing, kernel, constants)


def can_run_on(device: torch.device) -> bool:
    """Whether a kernel launched on tensors of this device would run: compiled on CUDA, interpreted on the CPU."""
    return device.type == ("cpu" if INTERPRETED else "cuda")


def device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes the tensor's GPU current while a kernel is launched: Triton launches on the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def accumulator(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype that a kernel adds up in: float64 where any tensor is, float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


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
