"""Work in several processes: usable from any script, and honest about failures."""

import ast
import math
import operator
import subprocess
import sys
from pathlib import Path

import pytest

from smml.workers import in_processes


def test_every_job_is_done_once():
    assert sorted(in_processes(math.sqrt, [(number * number,) for number in range(5)], 2)) == [0, 1, 2, 3, 4]


def test_a_script_needs_no_main_guard(tmp_path):
    """Processes that ran the script again would start processes of their own, and fail."""
    script = tmp_path / "script.py"
    script.write_text(
        "import math\nfrom smml.workers import in_processes\nprint(sum(in_processes(math.sqrt, [(4,), (9,)], 2)))\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr) == ("5.0\n", "")


SCRIPTS = sorted((Path(__file__).parent.parent / "scripts").glob("*.py"))
PARALLEL = [path for path in SCRIPTS if "in_processes(" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", PARALLEL, ids=lambda path: path.stem)
def test_no_script_sends_a_cached_function_of_its_own_to_another_process(path):
    """It cannot be found there, and the first job fails."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert functions
    cached = {node.name for node in functions if any("cache" in ast.unparse(each) for each in node.decorator_list)}
    assert not cached


def test_what_a_job_raises_arrives():
    with pytest.raises(ZeroDivisionError):
        list(in_processes(operator.truediv, [(1, 1), (1, 0)], 2))
