"""The numbers that stand in a notebook's prose, and where each may come from.

What is a number in prose, in one place:

- Read are the markdown cells, and the words that a code cell prints (strings in ``print``, ``Markdown`` and titles).
- Only digits are read. Counts in words ("four sequences") are part of a sentence's grammar and are left to its reader.
- LEFT_OUT lists what has digits and is no number: code, mathematics, links, headings, names, shapes, years, numbers of
  notebooks, exercises and branches.
- 0 and 1 are left out unless a unit follows: they are ends of scales, values of masks and of definitions.

A number comes from a code cell beside it (the one before or the one after its text; for printed words, from the same
cell), where it must be a literal, or from an entry of notebooks/sources.toml. What a cell computes is printed by that
cell through an f-string, and so is never typed.
"""

import ast
import functools
import importlib
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jupytext
from course_pages import FOLDER, ROOT

# Why each is no number of the prose; applied in this order.
LEFT_OUT = {
    "code": r"`[^`]*`",  # between fences too
    "mathematics": r"\$\$.*?\$\$|\$[^$]*\$",
    "headings": r"(?m)^#+ [^\n]*$",
    "titles of notebooks": r"\[\d\. [^\]]*(?=\])",
    "links": r"\]\([^)]*\)|https?:\S+|arXiv:\S+",
    "numbers of notebooks and exercises": (
        r"\b(?:[Nn]otebooks?|[Ee]xercises?)\s+\d(?:\.\d)?(?:(?:,? then |, |,?\s+and\s+)\d(?:\.\d)?)*"
    ),
    "numbers of branches and tokens": r"\b(?:[Bb]ranch|token)\s+\d\b|\b\d\s*(?:→|->|teaches)\s*\d?|L\([^)]*\)|^\d: ",
    "file names": r"\b[\w/-]+/\d\d_\w+\.(?:py|ipynb)",
    "ids of cases": r"\b0\d{4}\b",
    "years": r"\b(?:19|20)\d\d\b",
    "names": r"[^\W\d]\w*[-–]?\d[\w-]*|\d-D\b",
    "shapes": r"\d+(?:\s*[×x]\s*\d+)+|\d+³",
}  # fmt: skip

_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")
_UNIT = re.compile(r"\s*(?:%|GB|GiB|MB|mm|ml|ms|s\b|points?|times|minutes?|hours?|cases|subjects)")


@dataclass(frozen=True)
class Number:
    """One number of the prose.

    Attributes:
        notebook: stem of the script.
        text: as it is written.
        start: its place in ``prose``.
        prose: the text that holds it.
        beside: the literals of the code cells beside it.
    """

    notebook: str
    text: str
    start: int
    prose: str
    beside: frozenset[float]

    @property
    def words(self) -> str:
        """The text round it, for a message."""
        return " ".join(self.prose[max(0, self.start - 60) : self.start + 40].split())

    def comes_from_a_cell_beside(self) -> bool:
        """Whether a literal beside it has its value, or that in its unit (%, points, TB, TFLOP)."""
        value = float(self.text.replace(",", ""))
        unit = re.match(r"\s*(%|th percentile|points?\b|TB\b|TFLOP\b)", self.prose[self.start + len(self.text) :])
        scale = 1.0 if unit is None else 1e12 if unit[1].startswith("T") else 1e-2
        return any(math.isclose(each, literal) for each in (value, scale * value) for literal in self.beside)

    def is_explained_by(self, entry: dict) -> bool:
        """Whether an entry of the sources has these words and this number in them."""
        pattern = r"\s+".join(map(re.escape, entry["words"].split()))
        spans = [match.span() for match in re.finditer(pattern, self.prose)]
        here = any(start <= self.start < end for start, end in spans)
        return here and entry["notebook"] in (self.notebook, "*") and entry["number"] == self.text


def places_of_numbers(text: str) -> Iterator[re.Match]:
    """Where a text has numbers, by the rules above."""
    for pattern in LEFT_OUT.values():
        text = re.sub(pattern, lambda match: " " * len(match[0]), text, flags=re.DOTALL)
    for match in _NUMBER.finditer(text):
        if match[0] not in ("0", "1") or _UNIT.match(text, match.end()):
            yield match


def printed_strings(source: str) -> Iterator[str]:
    """The fixed parts of the strings that a code cell shows: arguments of print and Markdown, and titles."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        shown = [keyword.value for keyword in node.keywords if keyword.arg in ("title", "unit")]
        if getattr(node.func, "id", "") in ("print", "Markdown"):
            shown += node.args
        for value in shown:
            formats = [each.format_spec for each in ast.walk(value) if isinstance(each, ast.FormattedValue)]
            inner = {id(part) for each in formats if each is not None for part in ast.walk(each)}
            for each in ast.walk(value):
                if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in inner:
                    yield each.value


def literals(source: str) -> set[float]:
    """The numbers that a code cell's statements hold."""
    values = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)}


@functools.cache
def numbers_of(script: Path) -> list[Number]:
    """The numbers of a notebook's prose."""
    cells = jupytext.read(script).cells
    code = [literals(cell.source) if cell.cell_type == "code" else None for cell in cells]
    found = []
    for place, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            before = next((each for each in reversed(code[:place]) if each is not None), set())
            after = next((each for each in code[place + 1 :] if each is not None), set())
            # The check of an exercise stands behind its stub, and holds the numbers of the task.
            is_task = cells[place + 1 :] and cells[place + 1].source.startswith("# Exercise")
            texts, beside = [cell.source], before | after | (code[place + 2] if is_task else set())
        elif "course.check(" in cell.source:
            continue  # its hints speak of the numbers that the check itself holds
        else:
            texts, beside = list(printed_strings(cell.source)), code[place]
        for text in texts:
            for match in places_of_numbers(text):
                found.append(Number(script.stem, match[0], match.start(), text, frozenset(beside)))
    return found


def read_sources(path: Path = FOLDER / "sources.toml") -> list[dict]:
    """The entries of notebooks/sources.toml, whose head says what they hold."""
    return tomllib.loads(path.read_text(encoding="utf-8"))["number"]


def wrong_with(entry: dict) -> str | None:
    """Why the source that an entry names does not give the number; None if it does."""
    number = float(entry["number"].replace(",", ""))
    if "file" in entry:
        text = " ".join((ROOT / entry["file"]).read_text(encoding="utf-8").split())
        if entry["says"] not in text:
            return f"{entry['file']} does not say {entry['says']!r}"
        said = re.findall(r"\d[\d,_]*(?:\.\d+)?", entry["says"])
        known = number in {float(each.replace(",", "").replace("_", "")) for each in said}
        return None if known else f"{entry['says']!r} does not hold {entry['number']}"
    if "value" in entry:
        module, _, name = entry["value"].partition(":")
        value = eval(name, dict(vars(importlib.import_module(module))))
        return None if math.isclose(value, number) else f"{entry['value']} is {value}"
    if "sum" in entry:
        value = eval(entry["sum"], {"__builtins__": {}})
        return None if math.isclose(value, number) else f"{entry['sum']} is {value}"
    return None if entry.get("citation", "").startswith("http") else "it names no file, value, sum or citation"
