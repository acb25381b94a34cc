"""python -m smml_kernels.benchmarks: measure, print, and write the results."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The profiler that counts the CPU's memory announces every start on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from smml_kernels.benchmarks import machine, report
from smml_kernels.benchmarks.cases import OPERATIONS, cpu_cases, cuda_cases
from smml_kernels.benchmarks.runner import Options, Row, measure
from smml_kernels.benchmarks.targets import targets

RESULTS = Path(__file__).resolve().parent / "results"


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
        _measure_here(asked, device, json.loads(asked.ceilings), began, asked.rows_only)
        return 0

    command = shlex.join(["python", "-m", "smml_kernels.benchmarks", *words])
    run: report.Run = {"provenance": machine.provenance(device, command, asked.seed), "notes": []}
    run["notes"] += machine.disturbance(run["provenance"]["hardware"])
    print(f"Measuring the ceilings of {run['provenance']['hardware']['device']} ...", flush=True)
    run["ceilings"] = machine.ceilings(device, asked.quick)
    if device.type == "cuda":
        run["rows"] = _measure_apart(asked, run["ceilings"], began, run["notes"])
    else:
        run["rows"] = _measure_here(asked, device, run["ceilings"], began)
    run["targets"] = [target.to_dict() for target in targets(run["rows"], device.type)]
    run["seconds"] = round(time.monotonic() - began, 1)
    files = report.write(run, asked.output, machine.slug(device))
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
    return parser


def _measure_here(
    asked: argparse.Namespace,
    device: torch.device,
    ceilings: dict[str, float],
    began: float,
    file: Path | None = None,
) -> list[Row]:
    """The rows of all cases asked for, in this process; after each case also appended to ``file``."""
    options = Options(
        seed=asked.seed,
        budget=0.1 if asked.quick else 0.5 if device.type == "cuda" else 1.0,
        compiled=asked.compile,
        deadline=began + asked.budget if asked.budget > 0 else float("inf"),
    )
    make = cuda_cases if device.type == "cuda" else cpu_cases
    chosen = [case for case in make(asked.quick) if case.operation in asked.ops]
    rows = []
    for case in chosen:
        print(f"{time.monotonic() - began:5.0f} s  {case.name}", flush=True)
        found = measure(case, device, ceilings, options)
        rows += found
        if file is not None:
            with file.open("a") as stream:
                stream.write(json.dumps(found) + "\n")
    return rows


def _measure_apart(asked: argparse.Namespace, ceilings: dict[str, float], began: float, notes: list[str]) -> list[Row]:
    """The same with a process for each operation: a kernel that breaks the CUDA context breaks only its own."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for place, operation in enumerate(asked.ops):
            file = Path(folder) / f"{operation}.jsonl"
            command = [sys.executable, "-m", "smml_kernels.benchmarks", "--device", "cuda", "--ops", operation]
            command += ["--seed", str(asked.seed), "--ceilings", json.dumps(ceilings), "--rows-only", str(file)]
            command += ["--quick"] if asked.quick else []
            if asked.compile is not None:
                command.append("--compile" if asked.compile else "--no-compile")
            limit = None
            if asked.budget > 0:
                # What is left is shared evenly among the operations to come.
                share = max(5.0, (asked.budget - (time.monotonic() - began)) / (len(asked.ops) - place))
                command += ["--budget", str(share)]
                limit = share + 60
            print(f"{operation}:", flush=True)
            try:
                code = subprocess.run(command, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                code = None
            if code != 0:
                what = "was stopped for taking too long" if code is None else f"ended with exit code {code}"
                notes.append(f"{operation}: its process {what}; cases after that are missing.")
            if file.exists():
                rows += [row for line in file.read_text().splitlines() for row in json.loads(line)]
    return rows


if __name__ == "__main__":
    sys.exit(main())
