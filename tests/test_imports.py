"""Imports point one way, in every form that Python has; the order is the one that CONTRIBUTING.md shows."""

import ast
import re
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("smml", "smml_kernels")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
BY_NAME = {"import_module", "__import__", "find_spec", "resolve_name", "run_module"}


@cache
def order() -> dict[str, dict[str, int]]:
    """By package: the rank of each of its folders and modules, and of its own name, as CONTRIBUTING.md lists them."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = guide.partition("<!-- order of imports -->")[2].partition("<!-- end -->")[0]
    chains = re.findall(r"^(\w+): ((?:.|\n  )+)", block, re.MULTILINE)
    return {
        package: {part: rank for rank, group in enumerate(chain.split("<-")) for part in re.findall(r"\w+", group)}
        for package, chain in chains
    }


def module_of(path: Path) -> str:
    """The dotted name of a file; a package has that of its folder."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    """The folder or module of a package that a dotted name belongs to; the package's own name for itself."""
    package, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    return part if part in order()[package] or part in parts(package) else package


@cache
def parts(package: str) -> set[str]:
    """Every folder and module of a package."""
    found = {path.relative_to(package).parts[0].removesuffix(".py") for path in FILES if path.parts[0] == package}
    return found - {"__init__"}


def imported(source: str, path: Path) -> list[tuple[str, bool, int]]:
    """Whatever a file imports of our packages: dotted name, whether importing the file imports it, and the line."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []

    def visit(node: ast.AST, eager: bool) -> None:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            names = [f"{origin}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            chain = ast.unparse(node)  # import smml; smml.training.train
            names = [chain] if re.fullmatch(r"(smml|smml_kernels)(\.\w+)+", chain) else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_NAME:
            first = node.args[0] if node.args else None
            known = isinstance(first, ast.Constant) and isinstance(first.value, str)
            names = [resolve_name(first.value, package)] if known else ["?"]
        found.extend((name, eager, node.lineno) for name in names if name == "?" or name.split(".")[0] in PACKAGES)
        late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    # Decorators and defaults run when the file is imported, a body when it is called.
                    visit(child, eager and not (late and name == "body"))

    visit(ast.parse(source), True)
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def faults(source: str, path: Path) -> list[str]:
    """What a file imports against the order, one sentence each."""
    own = module_of(path)
    package = path.parts[0]
    found = []
    for name, eager, line in imported(source, path):
        place = f"{path}:{line}"
        if own == "smml":
            # `from smml import Predictor` is for users; the package offers it without importing anything itself.
            found += [f"{place} imports {name} whenever smml is imported"] * eager
        elif name == "?":
            found.append(f"{place} imports something whose name cannot be read here")
        elif package == "smml_kernels" and name.split(".")[0] == "smml":
            found.append(f"{place} imports {name}, but smml_kernels stands alone")
        elif name.split(".")[0] == package:
            ranks, target = order()[package], part_of(name)
            if target == "smml":
                # Bare `import smml` is for its version and its folder; its other names lead anywhere.
                found += [f"{place} imports {name}: name the module"] * (not re.fullmatch(r"smml(\.__\w+__)?", name))
            elif target != part_of(own) and ranks[target] >= ranks[part_of(own)]:
                found.append(f"{place} imports {name}, which does not come before {part_of(own)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path):
    assert faults((ROOT / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_and_module_has_a_place_in_the_order(package):
    listed = set(order()[package]) - {package}
    assert parts(package) - listed == set(), "give it a place in the order of CONTRIBUTING.md"
    assert listed - parts(package) == set(), "gone, but still in the order of CONTRIBUTING.md"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("smml/data/x.py", "import smml.training"),
        ("smml/data/x.py", "import smml.training.trainer as t"),
        ("smml/data/x.py", "import os, smml.models.smml"),
        ("smml/data/x.py", "from smml import training"),
        ("smml/data/x.py", "from smml import modalities, training"),
        ("smml/data/x.py", "from smml.training import train"),
        ("smml/data/x.py", "from smml.training.trainer import train"),
        ("smml/data/x.py", "from smml import train"),
        ("smml/data/x.py", "from ..training import train"),
        ("smml/data/x.py", "from .. import training"),
        ("smml/data/__init__.py", "from ..training import train"),
        ("smml/data/simulation/x.py", "from ...training.trainer import train"),
        ("smml/data/x.py", "def f():\n    from smml.training import train"),
        ("smml/data/x.py", "class A:\n    def f(self):\n        if self:\n            import smml.training"),
        ("smml/data/x.py", "try:\n    import smml.training\nexcept ImportError:\n    pass"),
        ("smml/data/x.py", "if TYPE_CHECKING:\n    from smml.training import TrainingConfig"),
        ("smml/data/x.py", "import importlib\nimportlib.import_module('smml.training')"),
        ("smml/data/x.py", "importlib.import_module('..training', 'smml.data')"),
        ("smml/data/x.py", "__import__('smml.training')"),
        ("smml/data/x.py", "importlib.import_module(name)"),
        ("smml/data/x.py", "import smml\nsmml.training.train()"),
        ("smml/data/x.py", "import smml\nsmml.Predictor"),
        ("smml/models/x.py", "from smml.sam import load_sam"),
        ("smml/files.py", "from smml.data import find_cases"),
        ("smml/ranks.py", "import smml.runs"),
        ("smml/__init__.py", "from smml.data import find_cases"),
        ("smml/__init__.py", "from . import data"),
        ("smml/__init__.py", "try:\n    import smml.data\nexcept ImportError:\n    pass"),
        ("smml/__init__.py", "def f(x=__import__('smml.data')):\n    pass"),
        ("smml_kernels/x.py", "import smml"),
        ("smml_kernels/x.py", "from smml import errors"),
        ("smml_kernels/fusion/x.py", "def f():\n    from smml.errors import InputError"),
        ("smml_kernels/fusion/x.py", "from smml_kernels import reference"),
        ("smml_kernels/fusion/x.py", "import smml_kernels\nsmml_kernels.relation_loss(f, g)"),
        ("smml_kernels/fusion/x.py", "from smml_kernels import relation_loss"),
        ("smml_kernels/fusion/x.py", "from ..relation import rows"),
        ("smml_kernels/common/x.py", "from smml_kernels.dispatch import report"),
        ("smml_kernels/reference.py", "from smml_kernels.benchmarks import floors"),
    ],
)
def test_an_import_against_the_order_is_found_in_every_form(path, source):
    assert faults(source, Path(path)) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("smml/data/x.py", "import smml\nprint(smml.__version__)"),
        ("smml/data/x.py", "from smml import __version__, modalities"),
        ("smml/data/x.py", "from smml.data.simulation import cohort\nfrom . import labels\nimport smml_kernels.common"),
        ("smml/training/x.py", "from smml.data import find_cases\nfrom ..models import SMML"),
        ("smml/__init__.py", "def __getattr__(name):\n    return import_module(NAMES[name])"),
        ("smml/__init__.py", "if TYPE_CHECKING:\n    from smml.data import find_cases"),
        ("smml_kernels/__init__.py", "from smml_kernels.relation import op\nfrom smml_kernels import reference"),
        ("smml_kernels/aot.py", "import smml_kernels\nsmml_kernels.relation_loss(f, g)"),
        ("smml_kernels/fusion/x.py", "import torch, smml_like\nfrom smml_kernels.common import tiles"),
    ],
)
def test_an_import_along_the_order_is_no_fault(path, source):
    assert faults(source, Path(path)) == []
