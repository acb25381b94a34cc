"""The types that the code states hold together, as far as mypy, which is not told to be strict, can see."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def mypy(*arguments) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    return result.returncode, result.stdout + result.stderr


def test_mypy_finds_nothing():
    status, text = mypy()
    assert status == 0, text


def test_mypy_finds_a_wrong_call_of_the_interface(tmp_path):
    """So that finding nothing means something: the functions have types, and the checker sees them."""
    script = tmp_path / "wrong.py"
    script.write_text("from smml.data import find_cases\n\nfind_cases(3)\n", encoding="utf-8")
    status, text = mypy(script)
    assert status == 1
    assert 'wrong.py:3: error: Argument 1 to "find_cases"' in text


def test_only_files_in_tritons_language_are_left_out():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    (left_out,) = (entry["module"] for entry in settings["overrides"] if entry.get("ignore_errors"))
    triton = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in settings["packages"]
        for path in (ROOT / package).rglob("*.py")
        if "import triton" in path.read_text(encoding="utf-8")
    }
    assert set(left_out) <= triton
