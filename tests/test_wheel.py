"""The package as others install it: a wheel, used outside this tree, which must not be importable there."""

import json
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import smml
from smml.data import find_cases

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("smml", "smml_kernels")
SHIPPED = {".py", ".safetensors", ".css", ".js", ".typed"}


def pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools builds where the sources are, and would take along what an earlier build left."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory):
    """Run Python in an empty folder with the installed wheel and the dependencies: no site, so no editable install."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel)
    folders = [str(target), str(distribution("torch").locate_file(""))]

    def run(code: str, *arguments) -> str:
        code = f"import sys\nsys.path += {folders}\n{code}"
        command = [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("empty"))
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run.target = target
    return run


def test_the_wheel_holds_every_module_weights_scripts_and_styles_and_little_else(wheel):
    assert wheel.name.startswith(f"smml-{smml.__version__}-py3-none-any")
    assert wheel.stat().st_size < 25e6
    tree = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in SHIPPED and "__pycache__" not in path.parts
    }
    assert {"smml/py.typed", "smml_kernels/py.typed", "smml/weights/tiny.safetensors"} <= tree
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name for name in names if Path(name).suffix in SHIPPED} == tree
    assert {Path(name).suffix for name in names} <= SHIPPED | {".md"}


def test_the_command_of_the_installed_wheel_segments_a_case_outside_the_tree(outside, small_cohort, tmp_path):
    case = find_cases(small_cohort)[0]
    output = tmp_path / "seg.nii.gz"
    command = ["predict", "--case", case.label.parent, "--modalities", "flair,t2"]
    code = (
        "import json, smml, smml_kernels\n"
        "from smml.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(json.dumps([smml.__file__, smml_kernels.__file__]))"
    )
    text = outside(code, *command, "--checkpoint", "tiny", "--output", output)
    files = json.loads(text.splitlines()[-1])
    assert [Path(file).parent.parent for file in files] == [outside.target, outside.target]
    found, truth = (np.asarray(nib.load(path).dataobj) > 0 for path in (output, case.label))
    assert found.shape == truth.shape
    assert (found & truth).any()


def test_the_installed_wheel_has_the_command_and_knows_its_version(outside):
    code = (
        "from importlib.metadata import distribution\n"
        "wheel = distribution('smml')\n"
        "print(wheel.version, *[f'{e.group}: {e.name} = {e.value}' for e in wheel.entry_points])"
    )
    assert outside(code).strip() == f"{smml.__version__} console_scripts: smml = smml.cli:main"
