"""What the whole suite shares: few threads, no deadlines on a busy machine, and small simulated cohorts."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Before anything imports Triton: without a GPU its kernels are interpreted. "auto" still runs PyTorch on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from smml.data.simulation.cohort import simulate_cohort

# Two cores is what the project promises to run on; more threads than that only slow each other down. `make test` runs
# two processes of pytest on them.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

settings.register_profile("smml", deadline=None)
settings.load_profile("smml")


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory) -> Path:
    """Three labelled cases at 6 mm (28 x 34 x 30 voxels), four classes. Read it, never write into it."""
    root = tmp_path_factory.mktemp("cohorts") / "small"
    simulate_cohort(root, 3, spacing=6, seed=20, workers=1, progress=False)
    return root


@pytest.fixture(scope="session")
def small_cohort_2015(tmp_path_factory) -> Path:
    """One labelled case at 6 mm in the layout of BraTS 2015: .mha files and five classes. Read it only."""
    root = tmp_path_factory.mktemp("cohorts") / "small-2015"
    simulate_cohort(root, 1, spacing=6, seed=20, layout="brats2015", workers=1, progress=False)
    return root


def pytest_terminal_summary(terminalreporter) -> None:
    """Say how long each part of the suite took, slowest first: budgets are kept by looking at this."""
    parts: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                path = Path(report.nodeid.split("::")[0])
                part = path.parts[1] if path.parts[0] == "tests" and len(path.parts) > 2 else path.parts[0]
                part = "tests/*.py" if part == "tests" else part
                parts[part] = parts.get(part, 0.0) + report.duration
    terminalreporter.section("time by part")
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:7.1f} s  {part}")
    terminalreporter.write_line(f"{sum(parts.values()):7.1f} s  all")
