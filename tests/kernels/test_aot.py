"""Every kernel compiles for sm_80 and sm_90 through its real launcher, none spills, and none takes more than it may.

No GPU is needed for that. What relation_loss does in float64 is compiled for sm_86 too, which has less shared memory.
"""

import ast
import json
from pathlib import Path

import pytest
from triton_checks import needs_triton

from smml_kernels import aot

pytestmark = needs_triton
CAPABILITIES = (80, 90)
# Thread instructions a byte of the main loops, for sm_90: what they are and a little more. A kernel that moves little
# for each instruction waits for them, not for memory.
BUDGETS = {
    ("dice_ce float32 K=4 logits", "_sums_kernel"): 6.6,
    ("dice_ce float32 K=4 logits", "_gradient_kernel"): 2.1,
    ("dice_ce bfloat16 K=4 logits", "_sums_kernel"): 12.0,
    ("exchange float32 K=4 lower_ce", "_sums_kernel"): 6.8,
    ("exchange float32 K=4 lower_ce", "_gradient_kernel"): 3.0,
    ("exchange bfloat16 K=4 lower_ce", "_sums_kernel"): 12.6,
    ("masked_fusion float32 C=8", "_products_kernel"): 3.8,
    ("masked_fusion bfloat16 C=8", "_products_kernel"): 8.2,
}
# Bytes of the widest load of the kernels that read maps: of float32, of bfloat16.
WIDEST = {"_sums_kernel": (16, 16), "_moments_kernel": (16, 16), "_products_kernel": (8, 4)}


@pytest.fixture(scope="module")
def rows(compiling) -> list[aot.Resources]:
    """What the compiler made of the cases."""
    import triton

    if compiling is None:
        pytest.skip(
            f"the compiler's private hooks are known for Triton {aot.TRITON_VERSIONS}, not {triton.__version__}"
        )
    status, output, errors = compiling.result()
    assert status == 0, errors[-3000:]
    return [aot.Resources(**row) for row in json.loads(output)]


def test_no_kernel_spills(rows):
    import triton

    # The ptxas of Triton 3.6 may keep some of a thread's registers on the stack to fit one program more.
    allowed = 16 if triton.__version__.startswith("3.6.") else 0
    spilling = [row for row in rows if row.stack > allowed]
    assert not spilling, "\n" + aot.table(spilling)


def test_every_kernel_is_compiled_for_every_gpu(rows):
    written = set()
    for path in Path(aot.__file__).parent.rglob("*.py"):
        functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        in_triton = [node for node in functions if "triton.jit" in "".join(map(ast.unparse, node.decorator_list))]
        written |= {node.name for node in in_triton if node.name.endswith("_kernel")}
    assert len(written) >= 6
    for capability in CAPABILITIES:
        compiled = {row.kernel for row in rows if row.capability == capability}
        assert compiled == written


def test_registers_leave_room_for_more_than_one_program(rows):
    """A kernel that takes the whole register file for one program cannot hide the time that memory takes.

    The products of relation_loss wait for the tensor cores instead: for them two programs would be too many.
    """
    for row in rows:
        programs = 1 if row.case.startswith("relation") else 2
        assert row.registers * row.warps * 32 * programs <= 65536, row


def test_instructions_a_byte_stay_in_their_budgets(rows):
    found = {(r.case, r.kernel): r.instructions / r.bytes for r in rows if r.capability == 90 and r.bytes}
    over = {key: (found[key], most) for key, most in BUDGETS.items() if not found[key] <= most}
    assert not over


def test_loads_of_maps_are_wide(rows):
    """A thread that loads 16 bytes at once needs a quarter of the instructions of one that loads 4."""
    for row in rows:
        operation, dtype, *_ = row.case.split()
        if row.kernel in WIDEST and row.capability == 90 and operation != "relation" and dtype != "float64":
            least = WIDEST[row.kernel][dtype == "bfloat16"]
            assert row.load >= least, row


def test_products_run_on_tensor_cores(rows):
    """Which instruction depends on Triton's version: 3.9 makes DMMA.8x8x4 of float64 products, 3.6 DMMA.16x8x16."""
    products = ("_moments_kernel", "_quadratic_kernel", "_gradient_kernel")
    of_sm_90 = [r for r in rows if r.capability == 90 and r.case.startswith("relation") and "linear" in r.case]
    found = [row for row in of_sm_90 if row.kernel in products]
    assert found
    for row in found:
        assert ("HGMMA" if "tf32" in row.case else "DMMA") in row.tensor, row


def test_every_kernel_fits_into_the_shared_memory_of_its_gpu(rows):
    assert {row.capability for row in rows} == set(aot.QUICK_CAPABILITIES)
    for row in rows:
        assert row.shared <= row.shared_limit, row
        assert row.programs >= 1, row


def test_the_table_has_a_line_for_each_kernel(rows):
    lines = aot.table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_a_process_that_interprets_cannot_compile():
    from smml_kernels.common import launch

    if not launch.INTERPRETED:
        pytest.skip("this process compiles")
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        aot.resources(90, {})
