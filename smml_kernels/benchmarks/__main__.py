"""python -m smml_kernels.benchmarks: measure, print, and write the results."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# The profiler that counts the CPU's memory announces every start on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from smml_kernels.benchmarks import machine, report
from smml_kernels.benchmarks.cases import OPERATIONS, Case, cpu_cases, cuda_cases
from smml_kernels.benchmarks.contestants import OURS, compiled, contestants
from smml_kernels.benchmarks.runner import Options, Row, measure
from smml_kernels.benchmarks.targets import targets

RESULTS = Path(__file__).resolve().parent / "results"
# Every formulation that runs at once first, in every case of every operation; then those that torch.compile makes,
# each of which takes as long as all of the others.
TURNS = ("eager", "compiled")
# Seconds for which a process may go on with its last case when its share of the budget is spent.
_GRACE = 40
# With less than that left of the budget a process of the turn is not worth starting; the grace is there for all.
_LEAST = {"eager": 10 - _GRACE, "compiled": 15}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code: 1 where nothing could be timed, 2 for wrong arguments."""
    asked = _parser().parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    try:
        device = machine.find_device(asked.device)
    except ValueError as error:
        print(f"smml_kernels.benchmarks: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(asked.seed)
    began = time.monotonic()
    if asked.rows_only:
        _measure_here(asked, device, json.loads(asked.ceilings), began, (asked.turn,), asked.rows_only)
        return 0

    command = shlex.join(["python", "-m", "smml_kernels.benchmarks", *words])
    run: report.Run = {"provenance": machine.provenance(device, command, asked.seed), "notes": []}
    run["notes"] += machine.disturbance(run["provenance"]["hardware"])
    print(f"Measuring the ceilings of {run['provenance']['hardware']['device']} ...", flush=True)
    run["ceilings"] = machine.ceilings(device, asked.quick)

    def write(rows: list[Row], pictures: bool) -> list[Path]:
        run["rows"] = rows
        run["targets"] = [target.to_dict() for target in targets(rows, device.type)]
        run["seconds"] = round(time.monotonic() - began, 1)
        return report.write(run, asked.output, machine.slug(device), pictures=pictures)

    if device.type == "cuda":
        rows = []
        for rows in _measure_apart(asked, run["ceilings"], began, run["notes"]):
            write(rows, pictures=False)  # whatever may become of the operations that follow
    else:
        rows = _measure_here(asked, device, run["ceilings"], began, TURNS)
    files = write(rows, pictures=True)
    print("\n" + report.markdown(run))
    print(f"{run['seconds']:.0f} s; written:", *files, sep="\n  ")
    return 0 if any(row["status"] == "ok" for row in run["rows"]) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m smml_kernels.benchmarks", description="Measure smml_kernels.")
    parser.add_argument("--quick", action="store_true", help="fewer or smaller cases, fewer repeats")
    parser.add_argument("--ops", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"folder (default: {RESULTS})")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile too (default: large cases on CUDA)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=0.0, help="seconds after which no case is started; 0: none")
    # For the process of one operation.
    parser.add_argument("--rows-only", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", help=argparse.SUPPRESS)
    parser.add_argument("--turn", choices=TURNS, help=argparse.SUPPRESS)
    return parser


def _cases(asked: argparse.Namespace, device: torch.device, turn: str) -> list[Case]:
    """The cases of a turn, of the operations asked for."""
    chosen = (cuda_cases if device.type == "cuda" else cpu_cases)(asked.quick)
    chosen = [case for case in chosen if case.operation in asked.ops]
    if turn == "compiled" and asked.compile is None:
        return [case for case in chosen if case.compiled and device.type == "cuda"]
    return chosen if turn == "eager" or asked.compile else []


def _measure_here(
    asked: argparse.Namespace,
    device: torch.device,
    ceilings: dict[str, float],
    began: float,
    turns: Sequence[str],
    file: Path | None = None,
) -> list[Row]:
    """The rows of all cases asked for, in this process; after each case also appended to ``file``."""
    options = Options(
        seed=asked.seed,
        budget=0.1 if asked.quick else 0.5 if device.type == "cuda" else 1.0,
        deadline=began + asked.budget if asked.budget > 0 else float("inf"),
    )
    rows = []
    for turn in turns:
        for case in _cases(asked, device, turn):
            print(f"{time.monotonic() - began:5.0f} s  {case.name}, {turn}", flush=True)
            field = contestants(case, device) if turn == "eager" else [compiled(case)]
            found = measure(case, device, ceilings, options, field)
            rows += found
            if file is not None:
                with file.open("a") as stream:
                    stream.write(json.dumps(found) + "\n")
    return in_order(rows)


def _measure_apart(
    asked: argparse.Namespace, ceilings: dict[str, float], began: float, notes: list[str]
) -> Iterator[list[Row]]:
    """The same with processes for each operation: a kernel that breaks the CUDA context breaks only its own.

    Yields the rows so far whenever a process has ended.
    """
    rows: list[Row] = []
    device = torch.device("cuda", 0)
    end = began + asked.budget if asked.budget > 0 else float("inf")
    processes = [
        (turn, operation)
        for turn in TURNS
        for operation in asked.ops
        if any(case.operation == operation for case in _cases(asked, device, turn))
    ]
    with tempfile.TemporaryDirectory() as folder:
        for place, (turn, operation) in enumerate(processes):
            left = end - time.monotonic()
            if left < _LEAST[turn]:
                notes.append(f"{operation}, {turn}: not started, as the time budget is spent.")
                continue
            # What is left is shared evenly among the processes of this turn that are to come.
            share = max(5.0, left / sum(later == turn for later, _ in processes[place:]))
            file = Path(folder) / f"{operation}-{turn}.jsonl"
            command = [sys.executable, "-m", "smml_kernels.benchmarks", "--device", "cuda", "--ops", operation]
            command += ["--turn", turn, "--seed", str(asked.seed), "--ceilings", json.dumps(ceilings)]
            command += ["--rows-only", str(file)]
            command += ["--quick"] if asked.quick else []
            if asked.compile is not None:
                command.append("--compile" if asked.compile else "--no-compile")
            limit = None
            if asked.budget > 0:
                command += ["--budget", str(share)]
                limit = min(share, left) + _GRACE
            print(f"{operation}, {turn}:", flush=True)
            try:
                code = subprocess.run(command, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                code = None
            found = [row for line in _lines(file) for row in json.loads(line)]
            if code != 0:
                done = {row["case"] for row in found}
                cases = (case for case in _cases(asked, device, turn) if case.operation == operation)
                missing = next((case.name for case in cases if case.name not in done), "its end")
                what = "was stopped for taking too long" if code is None else f"ended with exit code {code}"
                notes.append(f"{operation}, {turn}: its process {what} at {missing}; that and what follows is missing.")
            rows = in_order([*rows, *found])
            yield rows


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def in_order(rows: list[Row]) -> list[Row]:
    """Rows of one case side by side, in the order in which cases came, ours last."""
    place = {name: at for at, name in enumerate(dict.fromkeys(row["case"] for row in rows))}
    return sorted(rows, key=lambda row: (place[row["case"]], row["contestant"] == OURS))


if __name__ == "__main__":
    sys.exit(main())
