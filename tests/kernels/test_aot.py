"""Every kernel compiles for sm_80 and sm_90 through its real launcher, and none spills: no GPU is needed for that."""

import ast
import json
from pathlib import Path

import pytest
from triton_checks import needs_triton

from smml_kernels import aot

pytestmark = needs_triton
CAPABILITIES = (80, 90)


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
    spilling = [row for row in rows if row.stack > 0]
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
