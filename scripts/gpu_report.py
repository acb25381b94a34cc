"""``make gpu-report``: everything that only a GPU can tell, in at most nine minutes, without a package registry.

    python scripts/gpu_report.py [--output FOLDER]

The kernels' tests compiled, and beside them what the compiler made of each kernel; then, with the GPU to themselves,
the benchmarks, and whole training steps with and without the kernels. Each step has its own time and is run whatever
became of the others. What a step printed is kept in a file as it comes, and the report is written again after every
step: whenever it is stopped, what is known so far is there. Of a step that takes too long the report says what had
failed and what was running.

It runs from the source tree with the Python that starts it. The exit code is 1 if a step failed.
"""

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "smml_kernels" / "benchmarks" / "results"
# Seconds of each step. On a cold cache of compiled kernels the tests take four minutes of one core, in eight processes;
# the compiler runs beside them. Together with starting Python and with stopping what hangs: less than nine minutes.
LIMITS = {"tests": 150, "compiler": 150, "benchmarks": 225, "training": 25}
# Seconds for a step that is interrupted to say where it was, before it is killed. Tests in several processes need more:
# pytest waits 10 s for a process that missed the interrupt, and only then sums up.
GRACE = {"tests": 12, "compiler": 6, "benchmarks": 6, "training": 6}
# What the benchmarks need of their limit beyond the time in which they may start something.
_AFTER_BUDGET = 50
PRESETS = ("tiny", "small")
IMPLEMENTATIONS = ("torch", "triton")
_TRAINING_STEPS, _WARM_UP = 8, 3
# The steps that run now.
_PROCESSES: list[subprocess.Popen] = []
# What smml imports to read, score and show cases. A training step on random volumes calls none of it.
_NOT_NEEDED_TO_TRAIN = ("nibabel", "monai", "nilearn", "pandas", "plotly", "scipy", "SimpleITK", "tqdm")


@dataclass(frozen=True)
class Step:
    """A command with a limit.

    Attributes:
        name: in words.
        command: with its arguments.
        limit: a key of ``LIMITS``.
        file: where its output goes, inside the folder of results.
        environment: variables to set.
    """

    name: str
    command: Sequence[str]
    limit: str
    file: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        name: of the step.
        status: "passed", "failed" or "skipped" (something that the step needs is not installed).
        seconds: it took.
        words: why, or where to look.
        output: what it printed.
        failed: names of tests that failed.
        running: what was running when it was stopped.
    """

    name: str
    status: str
    seconds: float
    words: str
    output: str
    failed: tuple[str, ...] = ()
    running: tuple[str, ...] = ()


@dataclass
class Report:
    """The report as far as it is known, written anew with every step.

    Attributes:
        file: Markdown.
        made: provenance, of :func:`smml_kernels.benchmarks.machine.provenance`.
        outcomes: of the steps that have ended.
    """

    file: Path
    made: dict
    outcomes: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Take a step in and write the report."""
        self.outcomes.append(outcome)
        self.file.write_text(summary(self.outcomes, self.made))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"folder of the results (default: {RESULTS})")
    parser.add_argument("--training-step", choices=PRESETS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    obstacle = why_not_here()
    if obstacle:
        print(f"gpu-report: {obstacle}", file=sys.stderr)
        return 1
    if asked.training_step:
        print(json.dumps(training_step(asked.training_step)))
        return 0

    import torch

    sys.path.insert(0, str(ROOT))
    from smml_kernels.benchmarks import machine

    device = torch.device("cuda", 0)
    stem, output = machine.slug(device), asked.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    report = Report(output / f"{stem}-report.md", machine.provenance(device, "make gpu-report", 0))
    # Who stops this ends its steps, too: each has a session of its own, which hears no Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stage in stages(output, stem, torch.cuda.get_device_capability(device)):
        with ThreadPoolExecutor(len(stage)) as pool:
            steps = [pool.submit(run, step, output) for step in stage]
            try:
                for ended in as_completed(steps):
                    report.add(ended.result())
            except KeyboardInterrupt:
                reported = {outcome.name for outcome in report.outcomes}
                for process in list(_PROCESSES):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                for outcome in (step.result() for step in steps):
                    if outcome.name not in reported:
                        report.add(replace(outcome, words=f"stopped together with this script; {outcome.words}"))
                print(f"\ngpu-report: stopped; what is known so far is in {report.file}", file=sys.stderr)
                return 1
    print("\n" + report.file.read_text())
    return 1 if any(outcome.status == "failed" for outcome in report.outcomes) else 0


def stages(output: Path, stem: str, capability: tuple[int, int]) -> list[list[Step]]:
    """The steps, in stages that come one after the other; the steps of a stage run at once.

    Args:
        output: folder of the results.
        stem: of the results' names.
        capability: of the GPU, (9, 0).
    """
    python, number = sys.executable, str(10 * capability[0] + capability[1])
    tests = [python, "-m", "pytest", "tests/kernels", *_pytest_words()]
    compiler = [python, "-m", "smml_kernels.aot", "--quick", "--capability", number]
    compiler += ["--output", str(output / f"{stem}-kernels.md")]
    benchmarks = [python, "-m", "smml_kernels.benchmarks", "--device", "cuda", "--output", str(output)]
    benchmarks += ["--budget", str(LIMITS["benchmarks"] - _AFTER_BUDGET)]
    training = [
        Step(
            f"training step, {preset}, {word}", [python, __file__, "--training-step", preset], "training",
            f"{stem}-training-{preset}-{word}.log", {"SMML_KERNELS": word},
        )
        for preset in PRESETS
        for word in IMPLEMENTATIONS
    ]  # fmt: skip
    return [
        [
            Step("kernel tests, compiled", tests, "tests", f"{stem}-tests.log"),
            Step("what the compiler made of the kernels", compiler, "compiler", f"{stem}-compiler.log"),
        ],
        [Step("benchmarks", benchmarks, "benchmarks", f"{stem}-benchmarks.log")],
        *([step] for step in training),
    ]


def why_not_here() -> str:
    """One sentence on why nothing can be measured on this machine; empty if it can."""
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed for {sys.executable}: name another Python with `make PYTHON=... gpu-report`"
    import torch

    if not torch.cuda.is_available():
        return "this machine has no CUDA device that PyTorch can use; `make test` runs the kernels in an interpreter"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set, so that nothing would be compiled: unset it"
    return ""


def hear_interrupts() -> None:
    """In a new process: what a shell starts in its background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(step: Step, folder: Path) -> Outcome:
    """Run a step from the source tree, no longer than its limit; what it prints goes to its file in ``folder``."""
    limit = LIMITS[step.limit]
    print(f"== {step.name} (at most {limit} s)", flush=True)
    began = time.perf_counter()
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **step.environment}
    file, running = folder / step.file, None
    with file.open("wb") as stream:
        # A session of its own, so that a step that takes too long is stopped together with what it has started.
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=variables, start_new_session=True, stdout=stream, stderr=subprocess.STDOUT,
            preexec_fn=hear_interrupts,
        )  # fmt: skip
        _PROCESSES.append(process)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            running = _running(file.read_text(errors="replace"))
            _stop(process, GRACE[step.limit])
        finally:
            _PROCESSES.remove(process)
    seconds = time.perf_counter() - began
    output = file.read_text(errors="replace")
    last = (output.strip().splitlines() or [""])[-1][:200]
    status, words = "passed", ""
    if running is not None:
        status, words = "failed", f"stopped after {limit} s"
    elif process.returncode and re.search(r"ModuleNotFoundError|No module named", last):
        status, words = "skipped", last
    elif process.returncode < 0:
        status, words = "failed", f"killed by {signal.Signals(-process.returncode).name}: {last}"
    elif process.returncode:
        status, words = "failed", f"exit code {process.returncode}: {last}"
    print(f"== {step.name}: {status} in {seconds:.0f} s, {file} {words}", flush=True)
    return Outcome(step.name, status, seconds, words, output, of_tests(output)[0], running or ())


def _running(output: str) -> tuple[str, ...]:
    """What a step was doing: tests without an end, or else the last line that it printed."""
    return of_tests(output)[1] or tuple(output.strip().splitlines()[-1:]) or ("nothing was printed",)


def _stop(process: subprocess.Popen, grace: float) -> None:
    """Interrupt a step, as Ctrl-C does, so that pytest sums up and Python says where it was; then kill what is left."""
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    # Also what it has started and left behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def of_tests(output: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """From what ``pytest -v`` printed, of one process or of several: tests that failed, and those without an end."""
    started, ended, failed = {}, set(), {}
    for line in output.splitlines():
        # Several processes: a line when a test starts, another when it ends. One: the second half is added.
        if match := re.match(r"\[gw\d+\] \[ *\d+%\] ([A-Z]+) (\S+::.*?)\s*$", line):
            word, name = match.groups()
        elif match := re.match(r"(\S+\.py::.*?)(?: ([A-Z]+)(?: \(.*\))? +\[ *\d+%\])?\s*$", line):
            name, word = match.groups()
        else:
            continue
        started[name] = None
        if word:
            ended.add(name)
        if word in ("FAILED", "ERROR"):
            failed[name] = None
    return tuple(failed), tuple(name for name in started if name not in ended)


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules in the place of packages that are not installed; every name in them is a mock."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._missing = [name for name in packages if importlib.util.find_spec(name) is None]

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """A module to be made here, if its package is one of those missing."""
        if name.partition(".")[0] not in self._missing:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module, which makes its names when they are asked for."""
        module = ModuleType(spec.name)
        module.__getattr__ = self._mock
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""

    @staticmethod
    def _mock(name: str) -> MagicMock:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


def training_step(preset: str, device: str = "cuda", patch: int = 96) -> dict[str, float | str | int]:
    """Time forward, loss, backward and optimiser step of SMML on random volumes, in float32.

    Kernels are chosen by the environment variable SMML_KERNELS.

    Returns:
        {"preset", "patch", "kernels", "median_ms", "fastest_ms", "peak_mb"}.
    """
    import torch

    sys.path.insert(0, str(ROOT))
    sys.meta_path.append(StandIns(_NOT_NEEDED_TO_TRAIN))
    from smml.models import SMML
    from smml.training.config import TrainingConfig
    from smml.training.objective import objective

    torch.manual_seed(0)
    # The last step: every term of the loss has reached its weight.
    config = TrainingConfig(preset=preset, patch=patch, batch_size=1, device=device)
    model = SMML(preset).to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), config.learning_rate, amsgrad=True)
    image = torch.randn(1, 4, patch, patch, patch, device=device)
    label = torch.randint(4, (1, patch, patch, patch), device=device, dtype=torch.uint8)
    masks = torch.tensor([[[True, False, True, False]], [[False, True, True, True]]], device=device)
    available = torch.ones(1, 4, dtype=torch.bool, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(_WARM_UP + _TRAINING_STEPS):
        wait()
        began = time.perf_counter()
        loss = objective(model(image, masks, available), label, config, config.steps - 1)
        optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        optimiser.step()
        wait()
        times.append(1e3 * (time.perf_counter() - began))
    return {
        "preset": preset,
        "patch": patch,
        "kernels": os.environ.get("SMML_KERNELS", "auto"),
        "median_ms": statistics.median(times[_WARM_UP:]),
        "fastest_ms": min(times[_WARM_UP:]),
        "peak_mb": torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0.0,
    }


def summary(outcomes: Sequence[Outcome], made: dict) -> str:
    """The report as Markdown: what ran and what became of it, and the training steps."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines = [
        f"# GPU report: {made['hardware']['device']}",
        "",
        f"`{made['command']}`, {made['date']}, commit {made['commit']}. {platform.platform()}; {versions}.",
        "",
        "| step | | seconds | |",
        "|---|---|---|---|",
        *(f"| {o.name} | {o.status} | {o.seconds:.0f} | {o.words.replace('|', '/')} |" for o in outcomes),
    ]
    for outcome in outcomes:
        for words, names in (("failed", outcome.failed), ("was running when it was stopped", outcome.running)):
            if names:
                lines += ["", f"{outcome.name}, {words}:", "", *(f"- `{name}`" for name in names)]
    found = [training_result(outcome) for outcome in outcomes]
    rows = [row for row in found if row]
    if rows:
        lines += [
            "",
            f"Whole training steps (forward, loss, backward, Adam; float32, one patch, {_TRAINING_STEPS} steps):",
            "",
            "| preset | patch | kernels | median, ms | fastest, ms | peak memory, MB |",
            "|---|---|---|---|---|---|",
            *(
                f"| {row['preset']} | {row['patch']} | {row['kernels']} | {row['median_ms']:.1f} "
                f"| {row['fastest_ms']:.1f} | {row['peak_mb']:.0f} |"
                for row in rows
            ),
        ]
    return "\n".join(lines) + "\n"


def training_result(outcome: Outcome) -> dict | None:
    """What a training step printed in its last line; None for other steps, and for one that did not get there."""
    if outcome.status != "passed" or not outcome.name.startswith("training step"):
        return None
    return json.loads(outcome.output.strip().splitlines()[-1])


def _pytest_words(found: Callable[[str], object] = importlib.util.find_spec) -> list[str]:
    """How the tests are run: a line for each test, several at once, and without what the machine lacks.

    Left out are what is compiled for other GPUs (the next step does it for this one), the emulator, and the tests of
    this script.
    """
    words = ["-v", "--tb=short", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]
    words += [f"--ignore=tests/kernels/{name}" for name in ("test_aot.py", "emulator", "test_gpu_report.py")]
    if found("xdist"):
        words += ["-n", str(min(8, os.cpu_count() or 1))]
    if not (found("nibabel") and found("nilearn")):
        # Without the packages of smml the kernels' tests leave the whole suite's conftest aside. That lifts
        # hypothesis's deadline, too; its profile "ci" does as much.
        words += ["--confcutdir=tests/kernels", "--hypothesis-profile=ci"]
    return words


if __name__ == "__main__":
    sys.exit(main())
