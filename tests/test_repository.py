"""What the repository promises about itself: style, one list of requirements, notebooks in step with their scripts."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
import setup_environment
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def all_requirements() -> dict[str, Requirement]:
    """Everything that `pip install -e .[dev]` asks for, by normalised name."""
    optional = project()["optional-dependencies"]
    texts = [
        *project()["dependencies"],
        *(text for extra, texts in optional.items() if extra != "dev" for text in texts),
    ]
    return {requirement.name.lower(): requirement for requirement in map(Requirement, texts)}


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_finds_nothing(command):
    result = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_conda_users_get_the_same_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    listed = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert listed[:2] == ["-c constraints.txt", "-e ."]
    conda = {r.name.lower(): str(r) for r in map(Requirement, listed[2:])}
    assert conda == {name: str(requirement) for name, requirement in all_requirements().items()}
    python = next(e for e in environment["dependencies"] if str(e).startswith("python"))
    assert python == f"python{project()['requires-python']}"


def test_the_pinned_versions_lie_within_the_supported_ranges():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    for name, requirement in all_requirements().items():
        assert name in pins, f"{name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is outside {requirement.specifier}"


def test_the_pinned_versions_do_not_slow_every_process_that_imports_monai():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.startswith("rfc3987-syntax==")], "see the head of constraints.txt"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_in_step_with_their_scripts_and_carry_no_output(path):
    notebook = nbformat.read(path, as_version=4)
    script = jupytext.read(path.with_suffix(".py"))
    cells = [[(cell.cell_type, cell.source) for cell in book.cells] for book in (notebook, script)]
    assert cells[0] == cells[1], f"run: jupytext --to ipynb notebooks/{path.stem}.py"
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert path.stat().st_size < 100_000
    assert max(cell.source.count("\n") + 1 for cell in notebook.cells if cell.cell_type == "code") <= 25


def test_imports_stay_light():
    """A budget of modules, not of seconds: what takes long to import is imported where it is used."""
    heavy = "('monai', 'nilearn', 'pandas', 'smml', 'torch._dynamo')"
    code = f"import sys, smml_kernels; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    code = (
        "import sys, smml.data, smml.models, smml.losses; print([m for m in ('nilearn', 'plotly') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_readme_opens_with_the_commands_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+) +#", readme, re.MULTILINE)
    assert commands[:2] == ["run", "test"]
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (ROOT / target).exists(), f"README links to {target}, which is not there"


def test_the_set_up_explains_what_is_missing(capsys):
    setup_environment.check_python((3, 11))
    setup_environment.check_disk(50e9)
    with pytest.raises(SystemExit):
        setup_environment.check_python((3, 9, 2))
    assert "Python 3.11 or newer is needed" in capsys.readouterr().err
    setup_environment.check_lowest((3, 11, 7))
    with pytest.raises(SystemExit):
        setup_environment.check_lowest((3, 12, 1))
    assert "are those for Python 3.11" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        setup_environment.check_disk(1e9)
    assert "1.0 GB of free disk" in capsys.readouterr().err
