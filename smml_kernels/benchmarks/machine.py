"""What a number is worth nothing without: the machine's measured ceilings, versions, hardware, commit and date."""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def find_device(asked: str | None) -> torch.device:
    """The device to measure: as asked, else the GPU if there is one.

    Raises:
        ValueError: another word, or CUDA on a machine without.
    """
    word = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if word not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {word!r}: choose cpu or cuda")
    if word == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no CUDA device that PyTorch can use: choose --device cpu")
    return torch.device(word, 0) if word == "cuda" else torch.device("cpu")


def cache_bytes(device: torch.device) -> int:
    """The GPU's L2; 0 on a CPU, whose benchmarks are sized above its caches or say nothing about bandwidth."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def ceilings(device: torch.device, quick: bool = False) -> dict[str, float]:
    """What this machine reaches now: no case can do better.

    Returns:
        "copy_bytes_per_s", bytes read plus written of a large device-to-device copy, and the rates of a large square
        matrix product in operations a second: "float64", "float32", and on CUDA "tf32". Best of several, random data.
    """
    cuda = device.type == "cuda"
    numbers = 2**28 if cuda else 2**22 if quick else 2**26
    source = torch.rand(numbers, device=device)
    sink = torch.empty_like(source)
    found = {"copy_bytes_per_s": 2 * source.nbytes / _best(partial(sink.copy_, source), device)}
    del source, sink
    edge = 8192 if cuda else 512 if quick else 2048
    rates = {"float64": (torch.float64, "highest"), "float32": (torch.float32, "highest")}
    if cuda:
        rates["tf32"] = (torch.float32, "high")
    before = torch.get_float32_matmul_precision()
    try:
        for name, (dtype, precision) in rates.items():
            torch.set_float32_matmul_precision(precision)
            a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
            out = torch.empty_like(a)
            found[name] = 2 * edge**3 / _best(partial(torch.mm, a, b, out=out), device)
            del a, b, out
    finally:
        torch.set_float32_matmul_precision(before)
    if cuda:
        torch.cuda.empty_cache()
    return found


def _best(run: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """The shortest of several times, in seconds, after two that do not count."""
    seconds = []
    for _ in range(repeats + 2):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    return min(seconds[2:])


def provenance(device: torch.device, command: str, seed: int) -> dict[str, Any]:
    """Where numbers come from: {"command", "seed", "date", "commit", "versions", "hardware"}."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "numpy", "plotly"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return {
        "command": command,
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions,
        "hardware": hardware(device),
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """Device name and what its speed depends on."""
    found: dict[str, Any] = {
        "device": "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        # The widest vectors that PyTorch uses here; products in float32 gain more from wide ones than those in float64.
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            # PyTorch's defaults, under which every formulation runs.
            "convolutions_in_tf32": torch.backends.cudnn.allow_tf32,
        }
    return found


def disturbance(found: dict[str, Any]) -> list[str]:
    """A sentence for the notes if others kept the CPU busy when the run began; ``found`` is of :func:`hardware`."""
    if found["load_before"] < 0.3:
        return []
    return [f"The machine was busy (load average {found['load_before']:.1f} before the run): CPU times are unreliable."]


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the source tree, with "+changes" where tracked files differ; "unknown" outside a git checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SMML_COMMIT", "unknown")


def slug(device: torch.device) -> str:
    """A file name for the hardware: "cpu", "nvidia-h200"."""
    if device.type == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
