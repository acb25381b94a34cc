"""Kernels are tested with memory that is NaN until it is written, and compiled while the other tests run."""

import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from smml_kernels import aot


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of what was compiled come last: compiling takes minutes, which pass meanwhile."""
    items.sort(key=lambda item: item.path.name == "test_aot.py" if item.path.parent.name == "kernels" else False)


class _Compiling:
    """Compiles in a process of its own, which does not interpret; of several processes of pytest one starts it."""

    def __init__(self, folder: Path) -> None:
        self._output, self._errors, self._status = (folder / f"aot-{name}" for name in ("output", "errors", "status"))
        self._process = self._waiting = None
        try:
            (folder / "aot-started").touch(exist_ok=False)
        except FileExistsError:
            return
        command = [sys.executable, "-m", "smml_kernels.aot", "--quick", "--json"]
        environment = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
        with self._output.open("w") as output, self._errors.open("w") as errors:
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
        self._waiting = threading.Thread(target=self._wait, daemon=True)
        self._waiting.start()

    def _wait(self) -> None:
        partial = self._status.with_suffix(".partial")
        partial.write_text(str(self._process.wait()))
        partial.replace(self._status)  # at once: others look for it

    def result(self) -> tuple[int, str, str]:
        """Exit status, output and errors, when it has finished."""
        end = time.monotonic() + 900
        while not self._status.exists():
            assert time.monotonic() < end, "the process of pytest that started the compiler is gone"
            time.sleep(0.1)
        return int(self._status.read_text()), self._output.read_text(), self._errors.read_text()

    def close(self, *, shared: bool) -> None:
        """Stop it, or where other processes of pytest may look for the result let it end."""
        if self._process is None:
            return
        if not shared:
            self._process.kill()
        self._waiting.join()


@pytest.fixture(scope="session", autouse=True)
def compiling(request, tmp_path_factory):
    """Starts with the first test of a kernel, if tests of what is compiled will follow; None without the compiler."""
    wanted = any(item.path.name == "test_aot.py" for item in request.session.items)
    if not wanted or importlib.util.find_spec("triton") is None:
        yield None
        return
    import triton

    if not triton.__version__.startswith(aot.TRITON_VERSIONS):
        yield None
        return
    shared = "PYTEST_XDIST_WORKER" in os.environ
    folder = tmp_path_factory.getbasetemp()
    compiling = _Compiling(folder.parent if shared else folder)
    yield compiling
    compiling.close(shared=shared)


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch):
    """cuDNN rounds the factors of float32 convolutions to TensorFloat-32 unless told not to: eager's error would grow.

    "At most twice eager's error" would then allow a kernel too much.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


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
