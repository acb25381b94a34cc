"""What `import smml` offers: every name from the package it belongs to, and nothing before it is asked for."""

import importlib
import subprocess
import sys

import pytest

import smml

HOMES = {
    "ModalityViewer": "viewer",
    "Predictor": "inference",
    "align_case": "data",
    "evaluate": "evaluation",
    "find_cases": "data",
    "read_case": "data",
    "simulate_cohort": "data",
    "train": "training",
}


def run(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


@pytest.mark.parametrize("name", HOMES)
def test_a_name_of_the_package_is_the_object_of_its_own_package(name):
    home = importlib.import_module(f"smml.{HOMES[name]}")
    assert getattr(smml, name) is getattr(home, name)
    assert name in home.__all__


def test_the_names_are_listed_before_they_are_used():
    assert sorted(smml.__all__) == sorted(HOMES)
    assert set(HOMES) | {"__version__"} <= set(run("import smml; print(*dir(smml))").split())


def test_importing_the_package_imports_next_to_nothing():
    """A budget of modules, not of seconds: torch alone takes seconds."""
    code = "import sys; before = set(sys.modules); import smml; print(*sorted(set(sys.modules) - before))"
    modules = run(code).split()
    assert not {"torch", "monai", "nilearn", "numpy", "pandas"} & set(modules)
    assert len(modules) < 20, modules


def test_a_predictor_is_imported_by_its_first_name_without_the_viewer_and_training():
    code = "import sys; from smml import Predictor; print(*[m for m in sys.modules if m.startswith('smml.')])"
    assert not {"smml.viewer", "smml.training", "smml.evaluation"} & set(run(code).split())


def test_cases_are_read_without_the_transforms_that_only_training_needs():
    code = "import sys, smml.data; print('monai' in sys.modules); from smml.data import CohortDataset as c; print(c)"
    assert run(code).split("\n") == ["False", "<class 'smml.data.dataset.CohortDataset'>"]


def test_a_name_that_is_not_there_is_told_as_python_tells_it():
    assert not hasattr(smml, "predictor")
    with pytest.raises(ImportError, match=r"cannot import name 'predictor' from 'smml\.data'"):
        from smml.data import predictor  # noqa: F401
