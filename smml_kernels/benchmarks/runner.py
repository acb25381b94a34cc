"""One case from check to row: every formulation is first shown to be right, then timed."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from smml_kernels.benchmarks import check, memory, timing
from smml_kernels.benchmarks.cases import Case, Inputs, make_inputs, sets_beyond
from smml_kernels.benchmarks.contestants import Contestant, call, contestants
from smml_kernels.benchmarks.floors import PHASES
from smml_kernels.benchmarks.machine import cache_bytes

Row = dict[str, Any]

# Checks use other numbers than times.
_CHECK_SEED = 10_000


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        seed: of the inputs.
        budget: seconds of timing for each formulation of a case, warm-up aside.
        deadline: time.monotonic() after which nothing new is started.
    """

    seed: int = 0
    budget: float = 1.0
    deadline: float = float("inf")


def measure(
    case: Case,
    device: torch.device,
    ceilings: dict[str, float],
    options: Options,
    field: list[Contestant] | None = None,
) -> list[Row]:
    """A row for every formulation of a case; none of them can stop the others.

    Args:
        case: what to measure.
        device: where.
        ceilings: of :func:`~smml_kernels.benchmarks.machine.ceilings`, for the floors.
        options: how.
        field: who takes part; None: the usual contestants.
    """
    field = contestants(case, device) if field is None else field
    rows = [_row(case, contestant, ceilings) for contestant in field]
    with _matmul_precision(case.precision):
        exact = make_inputs(case, device, options.seed + _CHECK_SEED)
        for row, contestant in zip(rows, field, strict=True):
            _attempt(row, options, partial(_check, row, case, contestant, exact))
        del exact
        sets = make_inputs(case, device, options.seed, sets_beyond(cache_bytes(device), case))
        for row, contestant in zip(rows, field, strict=True):
            if row["status"] == "right":
                _attempt(row, options, partial(_time, row, case, contestant, sets, device, options))
        if device.type == "cuda":
            for row, contestant in zip(rows, field, strict=True):
                if row["status"] == "ok":
                    _graph(row, case, contestant, sets, options)
    for row in rows:
        _shares(row)
    return rows


def _row(case: Case, contestant: Contestant, ceilings: dict[str, float]) -> Row:
    floor = case.floor()
    rate = ceilings.get(case.matrix_rate) if case.matrix_rate else None
    return {
        "operation": case.operation,
        "case": case.name,
        "shape": list(case.shape),
        "size": case.size,
        "dtype": case.dtype_name,
        "presence": case.presence,
        "form": case.form,
        "contestant": contestant.name,
        "runs": contestant.runs,
        "status": "new",
        "reason": "",
        "errors": None,
        "tolerance": check.TOLERANCES[case.dtype_name],
        "eager": None,
        "graph": None,
        "graph_reason": "",
        "peak_bytes": None,
        "input_bytes": None,
        "floor_bytes": {phase: floor.bytes(phase) for phase in PHASES},
        "floor_flops": {phase: floor.flops(phase) for phase in PHASES},
        "bound_by": _bound(case, ceilings),
        "floor_seconds": {phase: floor.seconds(phase, ceilings["copy_bytes_per_s"], rate) for phase in PHASES},
        "share_of_ceiling": None,
    }


def _bound(case: Case, ceilings: dict[str, float]) -> str:
    """Which measured ceiling sets the floor of forward and backward."""
    rate = ceilings.get(case.matrix_rate) if case.matrix_rate else None
    if rate is None:
        return "copy bandwidth"
    floor = case.floor()
    by_bytes = floor.bytes("both") / ceilings["copy_bytes_per_s"] > floor.flops("both") / rate
    return "copy bandwidth" if by_bytes else f"{case.matrix_rate} matrix rate"


def _attempt(row: Row, options: Options, step: Callable[[], None]) -> None:
    """Run a step of a row; what it raises becomes the row's reason."""
    if time.monotonic() > options.deadline:
        row["status"], row["reason"] = "skipped", "skipped: the time budget is spent"
        return
    try:
        step()
    except Exception as error:  # whatever a formulation does, the others are still measured
        text = (str(error).splitlines() or [""])[0][:160]
        row["status"], row["reason"] = "failed", f"does not run: {type(error).__name__}: {text}"
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check(row: Row, case: Case, contestant: Contestant, sets: list[Inputs]) -> None:
    result = gradient = 0.0
    for inputs in sets:  # one after the other: float64 copies of all sets would not fit
        found = check.accuracy(case, contestant, [inputs], check.truth(case, [inputs]))
        result, gradient = max(result, found.result), max(gradient, found.gradient)
    worst = check.Accuracy(result, gradient, row["tolerance"])
    row["errors"] = {"result": result, "gradient": gradient}
    row["status"], row["reason"] = ("right", "") if worst.passed else ("refused", worst.why)


def _time(
    row: Row, case: Case, contestant: Contestant, sets: list[Inputs], device: torch.device, options: Options
) -> None:
    prepared = [contestant.prepare(inputs) for inputs in sets]
    forward = _forward(case, contestant)
    times = timing.eager(forward, prepared, device, options.budget)
    row["eager"] = {phase: times[phase].to_dict() for phase in PHASES}
    row["input_bytes"] = prepared[0].bytes()
    row["peak_bytes"] = memory.peak_extra_bytes(forward, prepared[0], device)
    row["status"] = "ok"


def _graph(row: Row, case: Case, contestant: Contestant, sets: list[Inputs], options: Options) -> None:
    if row["eager"]["both"]["p50"] > timing.GRAPH_LIMIT_SECONDS:
        row["graph_reason"] = f"slower than {1e3 * timing.GRAPH_LIMIT_SECONDS:.0f} ms: launch gaps do not matter"
        return
    if time.monotonic() > options.deadline:
        row["graph_reason"] = "the time budget is spent"
        return
    prepared = [contestant.prepare(inputs) for inputs in sets]
    try:
        times = timing.graph(_forward(case, contestant), prepared, options.budget / 2)
        row["graph"] = {phase: found.to_dict() for phase, found in times.items()}
    except timing.NotCaptured as error:
        row["graph_reason"] = str(error)
    except RuntimeError as error:
        row["graph_reason"] = f"not captured: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def _forward(case: Case, contestant: Contestant) -> timing.Forward:
    return lambda inputs: call(case, contestant, inputs)


def best_time(row: Row, phase: str = "both") -> float | None:
    """Median seconds: the graph's where there is one, which holds no launch gaps, else the eager one; None: no time."""
    for kind in ("graph", "eager"):
        if row.get(kind) and phase in row[kind]:
            return row[kind][phase]["p50"]
    return None


def _shares(row: Row) -> None:
    """Floor over time, forward and backward: the share of the measured ceiling that the formulation reaches."""
    seconds, floor = best_time(row), row["floor_seconds"]["both"]
    row["share_of_ceiling"] = floor / seconds if seconds and floor else None


@contextlib.contextmanager
def _matmul_precision(word: str) -> Iterator[None]:
    """torch.set_float32_matmul_precision inside, what it was outside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(word)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
