"""What the tests of all kernels share: where kernels run, and when a result is good enough.

On a machine with CUDA the kernels run compiled; anywhere else Triton interprets them on the CPU (``tests/conftest.py``
switches that on before Triton is imported), or they are compiled and run in the emulator, whose plug-in of pytest
switches the interpreter off (``make test-ptx``). The tests are the same.
"""

import importlib.util
import os

import pytest
import torch
from hypothesis import strategies as st

HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Compiled kernels multiply by tensor cores, on a GPU and in the emulator; interpreted ones by numpy.
COMPILED = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "0"
# Inductor's code for a CPU is compiled by a C++ compiler, half a minute a test, and says nothing about our ops.
COMPILER = "inductor" if torch.cuda.is_available() else "aot_eager"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Least class weights as float32 holds them: a smaller one is 0 there, and in float64 it divides what has underflowed.
WEIGHTS = st.floats(0, 1, width=32, allow_subnormal=False)

# Of torch.library.opcheck, what another layout of the inputs can change: the strides that are promised to a compiler.
OF_STRIDES = ("test_schema", "test_faketensor")

when_compiled = pytest.mark.skipif(not COMPILED, reason="nothing is compiled where Triton interprets")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed (it exists for Linux on x86-64)")


def compilations(kernel) -> int:
    """How many forms of a kernel this process has compiled."""
    return sum(len(cache[0]) for cache in kernel.device_caches.values())


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers on the device of the tests, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def labels(*shape: int, classes: int = 4, seed: int = 0, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Labels 0 .. classes - 1."""
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """|found - exact| / |exact|, in float64; NaN or a wrong shape never passes for small."""
    assert found.shape == exact.shape, f"shape {tuple(found.shape)} instead of {tuple(exact.shape)}"
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    size = exact.norm().item()
    distance = (found - exact).norm().item()
    return distance / size if size > 0 else distance


# What rounding may cost where eager PyTorch happens to be exact: a few units in the last place.
ATOL = {torch.float32: 5e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float64: 1e-14}


def assert_as_good_as_eager(
    found: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype | None = None, atol: float = 0.0
) -> None:
    """The error against float64 is at most twice that of eager PyTorch in the same dtype, plus the last digits.

    Args:
        found: what the kernel gave.
        eager: what PyTorch gave in the same dtype.
        exact: what PyTorch gave in float64 on the same inputs.
        dtype: whose last digits are allowed on top; by default that of ``found``.
        atol: allowed on top instead of the last digits, relative to the norm of ``exact``.
    """
    assert found.dtype == eager.dtype, f"{found.dtype} instead of {eager.dtype}"
    allowed = 2 * error(eager, exact) + (atol or ATOL[dtype or found.dtype])
    assert error(found, exact) <= allowed, f"error {error(found, exact):.2e}, allowed {allowed:.2e}"
