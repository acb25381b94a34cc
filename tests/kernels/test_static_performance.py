"""The model of a kernel's time, and the page that is made with it. Compiling is left to test_aot.py."""

import re
from pathlib import Path

import pytest
import torch
from triton_checks import needs_triton

from smml_kernels import aot, static_performance
from smml_kernels.static_performance import MACHINES, Launch, Prediction

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "results" / "kernels" / "resources.md").read_text(encoding="utf-8")
ROW = aot.Resources("case", "_kernel", 90, 4, 62, 64, 0, 8, 16, 4, "DMMA.8x8x4", 411, 68)


def test_a_launch_takes_the_longer_of_memory_and_instructions():
    machine = MACHINES[90]
    second = int(machine.bandwidth)
    assert Launch("k", second, None).seconds(machine) == pytest.approx(1)
    assert Launch("k", second, machine.issue / 2).seconds(machine) == pytest.approx(1)
    assert Launch("k", second, 3 * machine.issue).seconds(machine) == pytest.approx(3)


def test_tensors_are_found_in_tuples_of_arguments():
    a, b = torch.zeros(2), torch.zeros(3)
    assert [len(t) for t in static_performance._tensors((a, 3, (b, None), "x"))] == [2, 3]


def test_every_case_has_a_floor_and_launches_are_sized_as_in_training():
    found = static_performance.cases()
    assert {name.partition(" ")[0] for name in found} == {
        "dice_ce_loss", "exchange_loss", "masked_fusion", "relation_loss"
    }  # fmt: skip
    for _, floor in found.values():
        assert floor.seconds("both", MACHINES[90].bandwidth, MACHINES[90].matrix) > 5e-6


@needs_triton
def test_the_page_has_a_line_for_each_launch_and_each_kernel():
    launches = (Launch("dice_ce.op._sums_kernel", 35_700_000, 2.15e8), Launch("dice_ce.op._finish_kernel", 0, None))
    page = static_performance.page([Prediction("dice", 90, launches, 3e-5, 2e-5)], [ROW], quick=True)
    assert "| dice | 90 | 2 | 35.7 | 30 | 20 | 67 % |" in page
    assert "| dice | 90 | `dice_ce.op._sums_kernel` | 35.7 | 215 | 10.7 |" in page
    assert "| case | `_kernel` | 90 | 4 | 62 | 64 | 0 | 8 | 16 | 4 | DMMA.8x8x4 | 411 | 68 | 6.04 |" in page


def test_the_committed_page_is_of_the_kernels_and_cases_of_today():
    for name in static_performance.cases():
        for capability in MACHINES:
            assert f"| {name} | {capability} |" in PAGE
    assert aot.table([]).splitlines()[0] in PAGE
    stacks = re.findall(r"^\| .* \| `_\w+_kernel` \| \d+ \| \d+ \| \d+ \| \d+ \| (\d+) \|", PAGE, re.MULTILINE)
    assert len(stacks) > 50
    assert set(stacks) == {"0"}
