"""docs/EQUATIONS.md: the code, the notebooks and the tests that it names are there, and no loss is left out."""

import ast
import re
from functools import cache
from pathlib import Path

import jupytext
import pytest

import smml.losses
import smml_kernels

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "EQUATIONS.md").read_text(encoding="utf-8")
# `name` in [file](../file), and [`name`](../file)
LINK = re.compile(r"`([\w.]+)`(?: in \[[^\]]+)?\]\(\.\./([^)]+)\)")


def entries() -> dict[str, dict[str, str]]:
    """By title: the text behind "Code", "Derived in" and "Tested by"."""
    found = {}
    for part in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        items = re.findall(r"^- (Code|Derived in|Tested by): (.+(?:\n  .+)*)", text, flags=re.MULTILINE)
        found[title] = dict(items)
        assert "$$" in text, f"{title} has no equation"
    return found


ENTRIES = entries()


@cache
def defined(path: str) -> set[str]:
    """Functions and classes of a file, methods as ``Class.method``."""
    names = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@cache
def asserting_cells(number: int) -> list[str]:
    """The code cells of a notebook that assert something."""
    scripts = sorted((ROOT / "notebooks").glob(f"{number:02d}_*.py"))
    assert len(scripts) == 1, f"notebook {number} is not there"
    cells = [cell.source for cell in jupytext.read(scripts[0]).cells if cell.cell_type == "code"]
    return [cell for cell in cells if re.search(r"^\s*assert\b", cell, re.MULTILINE)]


@pytest.mark.parametrize("title", ENTRIES)
def test_the_code_and_the_tests_that_an_equation_names_are_there(title):
    entry = ENTRIES[title]
    assert set(entry) == {"Code", "Derived in", "Tested by"}
    for item in ("Code", "Tested by"):
        links = LINK.findall(entry[item])
        assert links, f"{title}: no link behind {item}"
        for name, path in links:
            assert name in defined(path), f"{title}: {path} does not define {name}"
    assert all(name.startswith("test_") for name, _ in LINK.findall(entry["Tested by"]))


@pytest.mark.parametrize("title", ENTRIES)
def test_a_notebook_that_derives_an_equation_asserts_it_against_the_code(title):
    names = [name.rpartition(".")[2] for name, _ in LINK.findall(ENTRIES[title]["Code"])]
    numbers = [int(number) for number in re.findall(r"notebook (\d+)", ENTRIES[title]["Derived in"])]
    assert numbers or ENTRIES[title]["Derived in"] == "no notebook"
    for number in numbers:
        cells = asserting_cells(number)
        assert any(re.search(rf"\b{name}\b", cell) for name in names for cell in cells), (
            f"{title}: no cell of notebook {number} that asserts something calls {' or '.join(names)}"
        )


def test_every_loss_of_the_interface_has_an_equation():
    code = {name for entry in ENTRIES.values() for name, _ in LINK.findall(entry["Code"])}
    losses = {name for name in smml.losses.__all__ if name[0].islower()}
    # Without the report, and the types and tuples of the words that a call can be given.
    operations = {name for name in smml_kernels.__all__ if name.islower()} - {"report"}
    assert losses | operations <= code
