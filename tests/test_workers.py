"""Work in several processes: usable from any script, and honest about failures."""

import math
import operator
import subprocess
import sys

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


def test_what_a_job_raises_arrives():
    with pytest.raises(ZeroDivisionError):
        list(in_processes(operator.truediv, [(1, 1), (1, 0)], 2))
