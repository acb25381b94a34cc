"""Times of forward, backward and both: many repeats, quantiles, nothing cold and nothing cached.

On CUDA two ways, the same for every formulation. *Eager launch*: Python launches kernel after kernel and events mark
the stream, so that where launching is slower than computing the gaps count. *Graph*: the kernels of one round are
captured once and replayed without Python, so that what remains is the GPU's own time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from smml_kernels.benchmarks.cases import Inputs
from smml_kernels.benchmarks.contestants import gradients

Forward = Callable[[Inputs], tuple[torch.Tensor, ...]]

# Above this, launch gaps are nothing beside the kernels, and a captured graph would hold memory for nothing.
GRAPH_LIMIT_SECONDS = 0.02
_MOST_CALLS = 2000


@dataclass(frozen=True)
class Quantiles:
    """Of the repeats, in seconds a call; a sample is the mean over one round of all sets of inputs."""

    p20: float
    p50: float
    p80: float
    samples: int

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class NotCaptured(Exception):
    """A formulation that cannot become a CUDA graph, and why."""


def quantiles(samples: Sequence[float]) -> Quantiles:
    """p20, p50 and p80 of at least one sample, by linear interpolation."""
    points = torch.quantile(
        torch.tensor(samples, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    p20, p50, p80 = points.tolist()
    return Quantiles(p20, p50, p80, len(samples))


def eager(forward: Forward, sets: Sequence[Inputs], device: torch.device, budget: float) -> dict[str, Quantiles]:
    """Times of {"forward", "backward", "both"} when Python launches.

    Each call runs forward and then backward, with marks in between: a backward always follows its own forward, and no
    graph is kept for a second one.

    Args:
        forward: outputs of a set of inputs.
        sets: of inputs, used in turn.
        device: where they lie.
        budget: seconds to spend, warm-up aside; at least 3 rounds are timed.
    """
    clock = _cuda_round if device.type == "cuda" else _cpu_round
    for _ in range(2 if device.type == "cuda" else 1):
        began = time.perf_counter()
        clock(forward, sets, 1)
        spent = time.perf_counter() - began  # of the last: the first compiles
    rounds = int(min(max(budget / max(spent, 1e-6), 3), 200, max(_MOST_CALLS / len(sets), 3)))
    samples = clock(forward, sets, rounds)
    return {phase: quantiles([sample[i] for sample in samples]) for i, phase in enumerate(("forward", "backward"))} | {
        "both": quantiles([sum(sample) for sample in samples])
    }


def _cpu_round(forward: Forward, sets: Sequence[Inputs], rounds: int) -> list[tuple[float, float]]:
    """(forward, backward) seconds a call, for each round."""
    found = []
    for _ in range(rounds):
        ahead = back = 0.0
        for inputs in sets:
            began = time.perf_counter()
            outputs = forward(inputs)
            half = time.perf_counter()
            gradients(outputs, inputs)
            back += time.perf_counter() - half
            ahead += half - began
        found.append((ahead / len(sets), back / len(sets)))
    return found


def _cuda_round(forward: Forward, sets: Sequence[Inputs], rounds: int) -> list[tuple[float, float]]:
    marks = []
    # No wait inside the loop: in a training step, too, the queue is full when these kernels are launched.
    for _ in range(rounds):
        for inputs in sets:
            begin, half, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
            begin.record()
            outputs = forward(inputs)
            half.record()
            gradients(outputs, inputs)
            end.record()
            marks.append((begin, half, end))
    torch.cuda.synchronize()
    calls = [(a.elapsed_time(b) / 1e3, b.elapsed_time(c) / 1e3) for a, b, c in marks]
    n = len(sets)
    return [tuple(sum(part) / n for part in zip(*calls[i : i + n], strict=True)) for i in range(0, len(calls), n)]


def graph(forward: Forward, sets: Sequence[Inputs], budget: float) -> dict[str, Quantiles]:
    """Times of {"forward", "both"} when a captured CUDA graph is replayed.

    Args:
        forward: outputs of a set of inputs on the current CUDA device.
        sets: of inputs; one replay runs them all.
        budget: seconds to spend on each of the two.

    Raises:
        NotCaptured: it makes the host wait, or CUDA refuses.
    """

    def both(inputs: Inputs) -> None:
        gradients(forward(inputs), inputs)

    return {phase: _replays(run, sets, budget) for phase, run in (("forward", forward), ("both", both))}


def _replays(run: Callable[[Inputs], object], sets: Sequence[Inputs], budget: float) -> Quantiles:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for inputs in sets:
                run(inputs)
        _refuse_waits(run, sets[0])
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(captured, stream=stream):
            for inputs in sets:
                run(inputs)
        captured.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise NotCaptured(f"CUDA refused the capture: {_first_line(error)}") from error
    began = time.perf_counter()
    captured.replay()
    torch.cuda.synchronize()
    rounds = int(min(max(budget / max(time.perf_counter() - began, 1e-6), 5), 500))
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for begin, end in marks:
        begin.record()
        captured.replay()
        end.record()
    torch.cuda.synchronize()
    return quantiles([begin.elapsed_time(end) / 1e3 / len(sets) for begin, end in marks])


def _refuse_waits(run: Callable[[Inputs], object], inputs: Inputs) -> None:
    """Raise ``NotCaptured`` if a call makes the host wait: found out here, as a failed capture leaves debris."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(inputs)
    except RuntimeError as error:
        raise NotCaptured(f"it makes the host wait: {_first_line(error)}") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
