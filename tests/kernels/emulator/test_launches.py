"""The real launchers in the emulator: a share of the kernels' own tests, as ``make test-ptx`` runs all of them."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_checks import needs_triton

from smml_kernels import aot
from smml_kernels.emulator.launches import _arguments, _leaves, install
from smml_kernels.emulator.memory import Allocation
from smml_kernels.emulator.ptx import Kernel

ROOT = Path(__file__).resolve().parents[3]
PLUGIN = "smml_kernels.emulator.plugin"
# Of each operation the least that launches its kernels: compiling them is most of the time.
SHARE = (
    "test_dice_ce.py::test_a_volume_of_many_tiles_and_programs",
    "test_dice_ce.py::test_another_least_class_weight_compiles_nothing",
    "test_exchange.py::test_programs_that_walk_over_several_tiles",
    "test_fusion.py::test_output_and_gradients_over_odd_sizes[2-3-2-space0-2]",
    "test_relation.py::test_value_and_gradients_over_odd_sizes[33-5-True-linear]",
    "test_relation.py::test_value_and_gradients_over_odd_sizes[33-5-True-direct]",
)


@needs_triton
def test_a_share_of_the_kernels_tests_passes_as_ptx():
    """In a process of its own: this one interprets."""
    import triton

    if not triton.__version__.startswith(aot.TRITON_VERSIONS):
        pytest.skip(f"Triton's hooks are known for {aot.TRITON_VERSIONS}, not {triton.__version__}")
    words = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-p", PLUGIN]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    found = subprocess.run(
        [*words, *(f"tests/kernels/{name}" for name in SHARE)],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-3000:]
    launched = re.findall(r"^ *\d+ launches of (\w+)\.\S+\._\w+_kernel$", found.stdout, re.MULTILINE)
    assert set(launched) == {"dice_ce", "exchange", "fusion", "relation"}, found.stdout[-3000:]


def kernel(*sizes: int) -> Kernel:
    """One whose parameters have so many bytes each, behind one another."""
    found = Kernel("small", 90)
    for number, size in enumerate(sizes):
        found.parameters[f"parameter{number}"] = found.parameter_bytes, size
        found.parameter_bytes += size
    return found


def test_arguments_become_bytes_and_tensors_the_memory_that_may_be_touched():
    storage = torch.arange(10.0)
    view = storage[4:8]
    signature = {"x": "*fp32", "K": "constexpr", "n": "i32", "scale": "fp32", "maps": ("*fp32", "constexpr", "i64")}
    bound = {"x": view, "K": 4, "n": -7, "scale": 0.5, "maps": (storage, None, 2**40)}
    # Triton appends two scratch buffers, which stay null.
    space, allocations = _arguments(kernel(8, 4, 4, 8, 8, 8, 8), signature, bound)
    assert struct.unpack("<QifQqQQ", space) == (view.data_ptr(), -7, 0.5, storage.data_ptr(), 2**40, 0, 0)
    whole = storage.data_ptr(), 40
    assert allocations == [Allocation("x", *whole), Allocation("maps", *whole)]


def test_what_is_compiled_in_is_not_passed():
    assert list(_leaves("constexpr", 3)) == []
    assert list(_leaves(("i32", ("constexpr", "fp32")), (1, (None, 2.5)))) == [1, 2.5]


@needs_triton
def test_a_process_that_interprets_cannot_emulate(tmp_path):
    from smml_kernels.common import launch

    if not launch.INTERPRETED:
        pytest.skip("this process compiles")
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        install(tmp_path)
