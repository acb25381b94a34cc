"""The project's goals against measured rows: met, not met, or not measured.

A ratio is taken between two times of the same kind: graph against graph where both were captured, else eager launch
against eager launch. A distance from a floor uses the graph's time where there is one, which holds no launch gaps.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from smml_kernels.benchmarks.contestants import EAGER, OURS, PUBLIC
from smml_kernels.benchmarks.runner import Row, best_time

MET, NOT_MET, NOT_MEASURED = "met", "not met", "not measured"

# Errors of the result's own rounding, which no formulation can avoid: two units in the last place of float32.
ROUNDING = 2.4e-7


@dataclass(frozen=True)
class Target:
    """One goal and what became of it.

    Attributes:
        goal: in words, with its threshold.
        status: ``MET``, ``NOT_MET`` or ``NOT_MEASURED``.
        found: the number, or why there is none.
    """

    goal: str
    status: str
    found: str

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def targets(rows: list[Row], device: str) -> list[Target]:
    """The goals for "cpu" or "cuda", judged by the rows of one run."""
    return _cpu(rows) if device == "cpu" else _cuda(rows)


def _cpu(rows: list[Row]) -> list[Target]:
    four, one = (_find(rows, OURS, "masked_fusion", presence=p) for p in ("4 of 4", "1 of 4"))
    found = [
        _at_least("relation_loss (8192, 128): 50 x N x N float32", 50, *_pair(rows, PUBLIC, shape=[8192, 128])),
        _at_least("masked_fusion: one of four 2 x faster than all four", 2, four, one),
        _linear_memory(rows),
    ]
    return [*found, *_errors(rows)]


def _cuda(rows: list[Row]) -> list[Target]:
    big: dict[str, Any] = {"shape": [32768, 128], "dtype": "float32"}
    full: dict[str, Any] = {"shape": [1, 8, 128, 128, 128], "dtype": "float32"}
    every, mean = full | {"presence": "4 of 4"}, full | {"presence": "mean of 15 subsets"}
    huge = _find(rows, OURS, "relation_loss", shape=[262144, 128], dtype="float32")
    return [
        _at_least("relation_loss (32768, 128): 60 x N x N float32", 60, *_pair(rows, PUBLIC, **big)),
        _near_floor("relation_loss (32768, 128)", 4, _find(rows, OURS, "relation_loss", **big)),
        _judge("relation_loss (262144, 128) runs", huge, lambda row: (True, _milliseconds(row))),
        _at_least("masked_fusion, all present: 5 x public", 5, *_pair(rows, PUBLIC, "masked_fusion", **every)),
        _near_floor("masked_fusion, all present", 1.6, _find(rows, OURS, "masked_fusion", **every)),
        _at_least("masked_fusion, mean presence: 8 x public", 8, *_pair(rows, PUBLIC, "masked_fusion", **mean)),
        _at_least("exchange_loss: 5 x tidy eager", 5, *_pair(rows, EAGER, "exchange_loss", dtype="float32")),
        _at_least("dice_ce_loss: 15 x public", 15, *_pair(rows, PUBLIC, "dice_ce_loss", dtype="float32")),
        _at_least("dice_ce_loss: 6 x tidy eager", 6, *_pair(rows, EAGER, "dice_ce_loss", dtype="float32")),
        *(_share(name, 0.7, _find(rows, OURS, name, dtype="float32")) for name in ("exchange_loss", "dice_ce_loss")),
        _memory("relation_loss", _find(rows, OURS, "relation_loss", **big)),
        _memory("masked_fusion", _find(rows, OURS, "masked_fusion", **every)),
        *(_memory(name, _find(rows, OURS, name, dtype="float32")) for name in ("exchange_loss", "dice_ce_loss")),
        *_errors(rows),
    ]


def _find(rows: list[Row], contestant: str, operation: str, **wanted) -> Row | None:
    """The first row of a contestant with these values."""
    wanted |= {"contestant": contestant, "operation": operation}
    for row in rows:
        if all(row[key] == value for key, value in wanted.items()):
            return row
    return None


def _pair(rows: list[Row], slower: str, operation: str = "relation_loss", **wanted) -> tuple[Row | None, Row | None]:
    """(a baseline's row, ours) of one case."""
    return _find(rows, slower, operation, **wanted), _find(rows, OURS, operation, **wanted)


def ratio(slow: Row | None, fast: Row | None, phase: str = "both") -> tuple[float, str] | None:
    """How many times faster ``fast`` is, and by which kind of time; None where one was not timed."""
    for kind in ("graph", "eager"):
        if slow and fast and all(row.get(kind) and phase in row[kind] for row in (slow, fast)):
            return slow[kind][phase]["p50"] / fast[kind][phase]["p50"], kind
    return None


def _judge(goal: str, row: Row | None, judge: Callable[[Row], tuple[bool, str]]) -> Target:
    """``judge`` of a timed row -> (met, words); a row that failed or was refused misses its goal."""
    if row is None or row["status"] == "skipped":
        return Target(goal, NOT_MEASURED, row["reason"] if row else "not part of this run")
    if row["status"] != "ok":
        # An implementation that is not there yet was not measured; one that is wrong, or breaks, has failed.
        status = NOT_MEASURED if "NotImplementedError" in row["reason"] else NOT_MET
        return Target(goal, status, row["reason"])
    met, words = judge(row)
    return Target(goal, MET if met else NOT_MET, words)


def _at_least(goal: str, factor: float, slow: Row | None, fast: Row | None) -> Target:
    found, kind = ratio(slow, fast) or (0.0, "")

    def judge(_: Row) -> tuple[bool, str]:
        return found >= factor, f"{found:.1f} x ({'graph' if kind == 'graph' else 'eager launch'})"

    if fast is not None and fast["status"] == "ok" and not kind:
        return Target(goal, NOT_MEASURED, (slow or {}).get("reason") or "the baseline is not part of this run")
    return _judge(goal, fast, judge)


def _near_floor(name: str, factor: float, row: Row | None) -> Target:
    goal = f"{name}: within {factor:g} x its floor"

    def judge(row: Row) -> tuple[bool, str]:
        found = best_time(row) / row["floor_seconds"]["both"]
        return found <= factor, f"{found:.2f} x the floor by {row['bound_by']}"

    if row is not None and row["status"] == "ok" and not row["floor_seconds"]["both"]:
        return Target(goal, NOT_MEASURED, "the matrix rate was not measured")
    return _judge(goal, row, judge)


def _share(name: str, share: float, row: Row | None) -> Target:
    def judge(row: Row) -> tuple[bool, str]:
        return row["share_of_ceiling"] >= share, f"{100 * row['share_of_ceiling']:.0f} %"

    return _judge(f"{name}: {100 * share:.0f} % of the measured copy bandwidth", row, judge)


def _memory(name: str, row: Row | None) -> Target:
    goal = f"{name}: peak memory beyond outputs and gradients below half its inputs"

    def judge(row: Row) -> tuple[bool, str]:
        words = f"{row['peak_bytes'] / 1e6:.1f} MB beside {row['input_bytes'] / 1e6:.1f} MB of inputs"
        return row["peak_bytes"] < row["input_bytes"] / 2, words

    return _judge(goal, row, judge)


def _linear_memory(rows: list[Row]) -> Target:
    """Four times the tokens must not take much more than four times the memory (N x N: sixteen times)."""
    goal = "relation_loss: memory grows linearly with N (at most 4.5 x from N = 4096 to 16384)"
    small, large = (_find(rows, OURS, "relation_loss", shape=[n, 128]) for n in (4096, 16384))
    if small is None or small["status"] != "ok" or not small["peak_bytes"]:
        return Target(goal, NOT_MEASURED, "not part of this run")

    def judge(row: Row) -> tuple[bool, str]:
        growth = row["peak_bytes"] / small["peak_bytes"]
        return growth <= 4.5, f"{growth:.2f} x ({small['peak_bytes'] / 1e6:.0f} -> {row['peak_bytes'] / 1e6:.0f} MB)"

    return _judge(goal, large, judge)


def _errors(rows: list[Row]) -> list[Target]:
    """Ours at most twice as far from float64 as tidy eager in the same dtype, case by case; one line a dtype."""
    found = []
    for dtype in ("float32", "bfloat16", "float16"):
        goal = f"errors at most twice tidy eager's in {dtype}"
        worst, count, broken = None, 0, None
        for row in rows:
            if row["contestant"] != OURS or row["dtype"] != dtype:
                continue
            eager = next((r for r in rows if r["case"] == row["case"] and r["contestant"] == EAGER), None)
            if row["status"] == "refused":
                broken = row
            if not (eager and eager["errors"] and row["errors"]):
                continue
            count += 1
            for part in ("result", "gradient"):
                allowed = 2 * eager["errors"][part] + ROUNDING
                excess = row["errors"][part] / allowed
                if worst is None or excess > worst[0]:
                    worst = (excess, row, part, row["errors"][part], eager["errors"][part])
        if broken is not None:
            found.append(Target(goal, NOT_MET, f"{broken['case']}: {broken['reason']}"))
        elif worst is None:
            found.append(Target(goal, NOT_MEASURED, "no such case in this run"))
        else:
            excess, row, part, ours, theirs = worst
            words = f"{count} cases; nearest to the limit {row['case']}, {part}: {ours:.1e}, tidy eager {theirs:.1e}"
            found.append(Target(goal, MET if excess <= 1 else NOT_MET, words))
    return found


def _milliseconds(row: Row) -> str:
    seconds = best_time(row)
    assert seconds is not None  # only rows that were timed are judged
    return f"{1e3 * seconds:.3g} ms"
