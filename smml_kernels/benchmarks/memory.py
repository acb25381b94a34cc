"""The largest memory of a forward and backward beyond inputs, outputs and gradients: what a formulation stores."""

from collections.abc import Sequence
from typing import Any

import torch

from smml_kernels.benchmarks.cases import Inputs
from smml_kernels.benchmarks.contestants import gradients
from smml_kernels.benchmarks.timing import Forward


def peak_extra_bytes(forward: Forward, inputs: Inputs, device: torch.device) -> int:
    """Peak of the allocator during one forward and backward, less the outputs and gradients it leaves; at least 0.

    On the CPU the allocator is watched through PyTorch's profiler, which sees what its own allocator hands out (not the
    buffers that a library such as oneDNN allocates itself). Where the peak comes before all gradients exist, their
    bytes are subtracted all the same: the number then is an underestimate by at most the missing gradients.

    Args:
        forward: outputs of a set of inputs.
        inputs: which exist before and after.
        device: where they lie.
    """
    if device.type == "cuda":
        forward_and_back(forward, inputs)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = forward_and_back(forward, inputs)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            kept = forward_and_back(forward, inputs)
        peak = _highest(_allocations(profile))
    return max(0, peak - sum(t.untyped_storage().nbytes() for t in _own_storages(kept)))


def forward_and_back(forward: Forward, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Outputs (detached) and gradients of one call."""
    outputs = forward(inputs)
    found = gradients(outputs, inputs)
    return (*(o.detach() for o in outputs), *found)


def _allocations(profile: torch.autograd.profiler.profile) -> list[int]:
    """Bytes allocated (positive) and freed (negative), in order of time."""
    # PyTorch's stubs know neither that a profile which has ended holds results nor all that an event says.
    results: Any = profile.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def _highest(steps: Sequence[int]) -> int:
    """The largest partial sum, 0 at least."""
    level = top = 0
    for step in steps:
        level += step
        top = max(top, level)
    return top


def _own_storages(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """One tensor for each storage."""
    return list({t.untyped_storage().data_ptr(): t for t in tensors}.values())
