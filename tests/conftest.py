"""What the whole suite shares: few threads, one answer whenever it is asked, and small simulated cohorts."""

import contextlib
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import is_hypothesis_test, settings
from hypothesis.internal.conjecture import providers

# Before anything imports Triton: without a GPU its kernels are interpreted. "auto" still runs PyTorch on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Two cores is what the project promises to run on; more threads than that only slow each other down. `make test` runs
# two processes of pytest on them.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

# "test" draws the same examples every time; "fuzz" (`make fuzz`) others for each --hypothesis-seed, and more of them.
# No deadlines: the machine may be busy.
settings.register_profile("test", deadline=None, derandomize=True, database=None)
settings.register_profile("fuzz", deadline=None, database=None, max_examples=500, print_blob=True)
settings.load_profile("test")

# Hypothesis mixes in numbers from whichever of our modules are imported by then: behind other tests, a test would draw
# other examples than alone. tests/test_fuzz.py sees if this no longer helps.
providers._get_local_constants = providers.Constants


def pytest_collection_modifyitems(items) -> None:
    """Under "fuzz", a test with a number of examples of its own draws more in the same proportion."""
    scale = settings.default.max_examples / 100  # Hypothesis' own default, by which such numbers are chosen
    for test in {item.obj for item in items if is_hypothesis_test(getattr(item, "obj", None))}:
        test = getattr(test, "__func__", test)
        own = test._hypothesis_internal_use_settings
        if own.max_examples != settings.default.max_examples:
            number = round(scale * own.max_examples)
            test._hypothesis_internal_use_settings = settings(own, max_examples=number)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory) -> Path:
    """Three labelled cases at 6 mm (28 x 34 x 30 voxels): a ring, a low-grade tumour, a ring. Never write into it."""
    from smml.data.simulation.cohort import simulate_cohort  # here, so that a test without a cohort starts at once

    root = tmp_path_factory.mktemp("cohorts") / "small"
    simulate_cohort(root, 3, spacing=6, seed=27, workers=1, progress=False)
    return root


@pytest.fixture(scope="session")
def small_cohort_2015(tmp_path_factory) -> Path:
    """One labelled case at 6 mm in the layout of BraTS 2015: .mha files and five classes. Read it only."""
    from smml.data.simulation.cohort import simulate_cohort

    root = tmp_path_factory.mktemp("cohorts") / "small-2015"
    simulate_cohort(root, 1, spacing=6, seed=27, layout="brats2015", workers=1, progress=False)
    return root


@pytest.fixture
def files_of_at_most():
    """While the context lasts no file grows beyond so many bytes: as on a full disk, the last write is cut short."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


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
