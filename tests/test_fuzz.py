"""Property tests draw the same examples in every run of the suite; under `make fuzz` others, which can be repeated."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
import random
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings, strategies as st

HERE = Path(__file__).parent

if (HERE / "names_a_number").exists():
    import local_module  # its constant must not become an example

@settings(max_examples=20)
@given(st.integers(), st.floats())
def test_own_number(number, value):
    with (HERE / "own").open("a") as stream:
        print(number, value, file=stream)

@given(st.text())
def test_usual_number(text):
    with (HERE / "usual").open("a") as stream:
        print(repr(text), file=stream)

def test_without_a_seed():
    (HERE / "plain").write_text(f"{random.random()} {np.random.rand()} {torch.rand(1).item()}")
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Made-up tests under the suite's own conftest.py."""
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_made_up.py").write_text(TESTS)
    (tmp_path / "local_module.py").write_text("".join(f"N{i} = {i * 7919 + 123456789}\n" for i in range(50)))
    return tmp_path


def drawn(folder: Path, *options: str) -> dict[str, str]:
    """What the made-up tests drew, by the name of the file that they wrote it to."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    files = [folder / name for name in ("own", "usual", "plain") if (folder / name).exists()]
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    for file in files:
        file.unlink()
    return texts


def test_the_suite_draws_the_same_examples_and_random_numbers_every_time(folder):
    first = drawn(folder)
    assert (len(first["own"].splitlines()), len(first["usual"].splitlines())) == (20, 100)
    (folder / "names_a_number").touch()
    assert drawn(folder, "--hypothesis-seed=3") == first


def fuzz(*arguments) -> tuple[int, str]:
    command = [sys.executable, ROOT / "scripts" / "fuzz.py", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stderr == ""
    return result.returncode, result.stdout


def test_fuzzing_tries_five_times_as_much_by_its_seed_alone(folder):
    status, text = fuzz(folder, "--rounds", 1, "--seed", 5)
    assert status == 0
    assert "seed 5: passed, 2 tests, 600 examples" in text
    assert "seeds 5 to 5: 2 tests, 600 examples, nothing found" in text
    first = (folder / "own").read_text()
    (folder / "own").unlink()
    (folder / "names_a_number").touch()
    assert drawn(folder, "--hypothesis-profile=fuzz", "--hypothesis-seed=5", "-k", "own")["own"] == first


def test_a_failure_ends_the_fuzzing_with_a_command_that_repeats_it(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text("from hypothesis import settings\nsettings.register_profile('fuzz')\n")
    (tmp_path / "test_made_up.py").write_text(
        "from hypothesis import given, strategies as st\n\n"
        "@given(st.integers())\ndef test_small(number):\n    assert number < 1000\n"
    )
    status, text = fuzz(tmp_path)
    assert status == 1
    assert "number=1000" in text
    (command,) = re.findall(r"^  python -m (pytest .*test_small)$", text, re.MULTILINE)
    again = subprocess.run([sys.executable, "-m", *shlex.split(command)], cwd=ROOT, capture_output=True, text=True)
    assert "number=1000" in again.stdout
    assert "1 failed" in again.stdout
