"""What the launchers allocate at the sizes that the goals speak of: counted with kernels that do nothing."""

import importlib

import pytest
import torch
from triton_checks import COMPILED, needs_triton

import smml_kernels
from smml_kernels.benchmarks.cases import Inputs
from smml_kernels.benchmarks.memory import peak_extra_bytes

pytestmark = [
    needs_triton,
    pytest.mark.skipif(
        COMPILED, reason="the kernels are replaced on the CPU; on a GPU the benchmarks measure the peak"
    ),
]
LAUNCHERS = ("dice_ce.op", "exchange.op", "fusion.op", "fusion.backward", "relation.linear", "relation.rows")
GRID = (1, 4, 128, 128, 128)


class _Silent:
    """In the place of a kernel: it is launched and does nothing."""

    def __getitem__(self, grid):
        return lambda *args, **options: None


@pytest.fixture
def silent(monkeypatch):
    replaced = 0
    for name in LAUNCHERS:
        module = importlib.import_module(f"smml_kernels.{name}")
        for kernel in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, kernel, _Silent())
            replaced += 1
    assert replaced >= 10


def empty(*shape, dtype=torch.float32):
    """Memory that nothing touches: it takes none."""
    return torch.empty(shape, dtype=dtype).requires_grad_()


def one(loss):
    return (loss,)


CASES = {
    "relation_loss (32768, 128)": lambda: (
        lambda i: one(smml_kernels.relation_loss(*i.leaves, implementation="triton")),
        Inputs((empty(32768, 128), empty(32768, 128)), (), (torch.ones(()),)),
    ),
    "masked_fusion": lambda: (
        lambda i: one(smml_kernels.masked_fusion(i.leaves[:4], *i.constants, *i.leaves[4:], implementation="triton")),
        Inputs(
            (*(empty(1, 8, *GRID[2:]) for _ in range(4)), empty(8, 32), empty(8)),
            (torch.ones(1, 4, dtype=torch.bool),),
            (torch.empty(1, 8, *GRID[2:]),),
        ),
    ),
    "exchange_loss": lambda: (
        lambda i: smml_kernels.exchange_loss(*i.leaves, *i.constants, implementation="triton"),
        Inputs(
            (empty(*GRID), empty(*GRID)),
            (torch.empty(1, *GRID[2:], dtype=torch.uint8),),
            (torch.ones(()), torch.ones(())),
        ),
    ),
    "dice_ce_loss": lambda: (
        lambda i: one(smml_kernels.dice_ce_loss(*i.leaves, *i.constants, implementation="triton")),
        Inputs((empty(*GRID),), (torch.empty(1, *GRID[2:], dtype=torch.uint8),), (torch.ones(()),)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_beside_inputs_outputs_and_gradients_less_than_half_of_the_inputs_is_needed(silent, name):
    forward, inputs = CASES[name]()
    found = peak_extra_bytes(forward, inputs, torch.device("cpu"))
    assert found < inputs.bytes() / 2, f"{found / 1e6:.1f} MB beside {inputs.bytes() / 1e6:.1f} MB of inputs"
