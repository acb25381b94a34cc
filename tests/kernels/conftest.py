"""Kernels are tested with memory that is NaN until it is written, and compiled while the other tests run."""

import importlib.util
import os
import subprocess
import sys
import threading

import pytest
import torch

from smml_kernels import aot


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of what was compiled come last: compiling takes minutes, which pass meanwhile."""
    items.sort(key=lambda item: item.path.name == "test_aot.py" if item.path.parent.name == "kernels" else False)


class _Compiling:
    """Compiles in a process of its own, which does not interpret."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "smml_kernels.aot", "--quick", "--json"]
        environment = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # Read at once: a pipe that nobody reads is soon full, and its writer stops.
        self._result = ("", "")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self._result = self.process.communicate()

    def result(self) -> tuple[int, str, str]:
        """Exit status, output and errors, when it has finished."""
        self._reader.join()
        return self.process.returncode, *self._result


@pytest.fixture(scope="session", autouse=True)
def compiling(request):
    """Starts with the first test of a kernel, if tests of what is compiled will follow; None without the compiler."""
    wanted = any(item.path.name == "test_aot.py" for item in request.session.items)
    if not wanted or importlib.util.find_spec("triton") is None:
        yield None
        return
    import triton

    if not triton.__version__.startswith(aot.TRITON_VERSIONS):
        yield None
        return
    compiling = _Compiling()
    yield compiling
    compiling.process.kill()


@pytest.fixture
def poisoned_memory():
    """``torch.empty`` and its relatives return NaN (integers: the largest)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled
