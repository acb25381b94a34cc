"""``make gpu-report``: everything that only a GPU can tell, in at most nine minutes, without a package registry.

    python scripts/gpu_report.py [--output FOLDER]

Four steps, each within its own time, each run whatever became of the others: the kernels' tests compiled, what the
compiler made of each kernel, the benchmarks, and whole training steps with and without the kernels. It runs from the
source tree with the Python that starts it. The exit code is 1 if a step failed.
"""

import argparse
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "smml_kernels" / "benchmarks" / "results"
# Seconds of each step; together with starting Python less than nine minutes.
LIMITS = {"tests": 170, "compiler": 45, "benchmarks": 230, "training": 18}
PRESETS = ("tiny", "small")
IMPLEMENTATIONS = ("torch", "triton")
_TRAINING_STEPS = 8


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        name: of the step.
        status: "passed", "failed" or "skipped" (something that the step needs is not installed).
        seconds: it took.
        words: why, or where to look.
        output: what it printed.
    """

    name: str
    status: str
    seconds: float
    words: str
    output: str


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
    python = sys.executable
    outcomes = [
        run("kernel tests, compiled", [python, "-m", "pytest", "tests/kernels", "-q", *_pytest_words()], "tests"),
        compiled_kernels(python, torch.cuda.get_device_capability(device), output / f"{stem}-kernels.md"),
        run("benchmarks", _benchmark_command(python, output), "benchmarks"),
    ]
    steps, found = training_steps(python)
    text = summary(outcomes + steps, found, machine.provenance(device, "make gpu-report", 0))
    (output / f"{stem}-report.md").write_text(text)
    print("\n" + text)
    return 1 if any(outcome.status == "failed" for outcome in outcomes + steps) else 0


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


def run(name: str, command: Sequence[str], limit: str, show: bool = True, **environment: str) -> Outcome:
    """Run a command from the source tree and wait for it, no longer than its limit.

    Args:
        name: of the step.
        command: with its arguments.
        limit: a key of ``LIMITS``.
        show: print its output as it comes.
        environment: variables to set.
    """
    print(f"== {name} (at most {LIMITS[limit]} s)", flush=True)
    began = time.perf_counter()
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment}
    # A session of its own, so that a step that takes too long is stopped together with what it has started.
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, text=True, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    stopped = False
    try:
        output, _ = process.communicate(timeout=LIMITS[limit])
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        stopped = True
    seconds = time.perf_counter() - began
    if show or process.returncode:
        print(output, flush=True)
    last = (output.strip().splitlines() or [""])[-1][:200]
    if stopped:
        return Outcome(name, "failed", seconds, f"stopped after {LIMITS[limit]} s", output)
    if process.returncode and "ModuleNotFoundError" in last:
        return Outcome(name, "skipped", seconds, last, output)
    if process.returncode:
        return Outcome(name, "failed", seconds, f"exit code {process.returncode}: {last}", output)
    return Outcome(name, "passed", seconds, "", output)


def compiled_kernels(python: str, capability: tuple[int, int], file: Path) -> Outcome:
    """Registers, shared memory and spills of every kernel for this GPU, as a table in ``file``."""
    number = str(10 * capability[0] + capability[1])
    outcome = run(
        "what the compiler made of the kernels", [python, "-m", "smml_kernels.aot", "--capability", number], "compiler"
    )
    if outcome.status == "passed":
        file.write_text(f"# Kernels compiled for sm_{number}\n\n{outcome.output}")
    return outcome


def training_steps(python: str) -> tuple[list[Outcome], dict[tuple[str, str], dict]]:
    """Median times of whole training steps, each in a process of its own, by (preset, implementation)."""
    outcomes, found = [], {}
    for preset in PRESETS:
        for word in IMPLEMENTATIONS:
            name = f"training step, {preset}, {word}"
            command = [python, __file__, "--training-step", preset]
            outcome = run(name, command, "training", show=False, SMML_KERNELS=word)
            outcomes.append(outcome)
            if outcome.status == "passed":
                found[preset, word] = json.loads(outcome.output.strip().splitlines()[-1])
    return outcomes, found


def training_step(preset: str) -> dict[str, float | str | int]:
    """Time forward, loss, backward and optimiser step of SMML on random volumes, in float32, on the GPU.

    Kernels are chosen by the environment variable SMML_KERNELS.

    Returns:
        {"preset", "patch", "median_ms", "fastest_ms", "peak_mb"}.
    """
    import torch

    sys.path.insert(0, str(ROOT))
    from smml.models import SMML
    from smml.training.config import TrainingConfig
    from smml.training.objective import objective

    torch.manual_seed(0)
    patch = 96
    # The last step: every term of the loss has reached its weight.
    config = TrainingConfig(preset=preset, patch=patch, batch_size=1, device="cuda")
    model = SMML(preset).cuda().train()
    optimiser = torch.optim.Adam(model.parameters(), config.learning_rate, amsgrad=True)
    image = torch.randn(1, 4, patch, patch, patch, device="cuda")
    label = torch.randint(4, (1, patch, patch, patch), device="cuda", dtype=torch.uint8)
    masks = torch.tensor([[[True, False, True, False]], [[False, True, True, True]]], device="cuda")
    available = torch.ones(1, 4, dtype=torch.bool, device="cuda")
    times = []
    for _ in range(3 + _TRAINING_STEPS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        loss = objective(model(image, masks, available), label, masks, available, config, config.steps - 1)
        optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        optimiser.step()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    return {
        "preset": preset,
        "patch": patch,
        "median_ms": statistics.median(times[3:]),
        "fastest_ms": min(times[3:]),
        "peak_mb": torch.cuda.max_memory_allocated() / 1e6,
    }


def summary(outcomes: list[Outcome], found: dict[tuple[str, str], dict], made: dict) -> str:
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
    if found:
        lines += [
            "",
            f"Whole training steps (forward, loss, backward, Adam; float32, one patch, {_TRAINING_STEPS} steps):",
            "",
            "| preset | patch | kernels | median, ms | fastest, ms | peak memory, MB |",
            "|---|---|---|---|---|---|",
            *(
                f"| {preset} | {row['patch']} | {word} | {row['median_ms']:.1f} | {row['fastest_ms']:.1f} "
                f"| {row['peak_mb']:.0f} |"
                for (preset, word), row in found.items()
            ),
        ]
    return "\n".join(lines) + "\n"


def _benchmark_command(python: str, output: Path) -> list[str]:
    # Less than the step's own limit: what is left writes the report.
    budget = str(LIMITS["benchmarks"] - 50)
    command = [python, "-m", "smml_kernels.benchmarks", "--device", "cuda"]
    return [*command, "--budget", budget, "--output", str(output)]


def _pytest_words(found: Callable[[str], object] = importlib.util.find_spec) -> list[str]:
    """Without the packages of smml (no registry, say) the kernels' tests leave the whole suite's conftest aside."""
    if found("nibabel") and found("nilearn"):
        return []
    # That conftest lifts hypothesis's deadline, too; its profile "ci" does as much.
    return ["--confcutdir=tests/kernels", "--hypothesis-profile=ci"]


if __name__ == "__main__":
    sys.exit(main())
