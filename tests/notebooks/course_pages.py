"""The notebooks as data for the tests: cells of the percent scripts, their exercises and solutions."""

import re
from dataclasses import dataclass
from pathlib import Path

import jupytext

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))

_NUMBER = re.compile(r"# Exercise (\d+\.\d+)\s*$")


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook.

    Attributes:
        number: "notebook.exercise".
        script: the notebook's percent script.
        stub: code cell to be completed.
        check: the code cell after it, "" if there is none.
        solution: the code cell of the same number among the solutions, None if there is none.
    """

    number: str
    script: Path
    stub: str
    check: str
    solution: str | None


def cells(script: Path, kind: str) -> list[str]:
    """Sources of the "code" or "markdown" cells of a percent script."""
    return [cell.source for cell in jupytext.read(script).cells if cell.cell_type == kind]


def solution_file(script: Path) -> Path:
    """Where the solutions of a notebook stand."""
    return script.parent / "solutions" / script.name


def numbered(code: list[str]) -> dict[str, int]:
    """Place of each cell whose first line is ``# Exercise n.m``, by number."""
    found = {}
    for place, source in enumerate(code):
        match = _NUMBER.match(source.partition("\n")[0])
        if match:
            assert match[1] not in found, f"exercise {match[1]} is there twice"
            found[match[1]] = place
    return found


def exercises(script: Path) -> list[Exercise]:
    """The exercises of a notebook, in its order."""
    code, file = cells(script, "code"), solution_file(script)
    answers = cells(file, "code") if file.is_file() else []
    solved = {number: answers[place] for number, place in numbered(answers).items()}
    return [
        Exercise(number, script, code[place], (*code, "")[place + 1], solved.get(number))
        for number, place in numbered(code).items()
    ]
