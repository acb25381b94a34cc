"""What the README and the notebooks point at exists: files, commands, options, make targets, Python names."""

import importlib
import importlib.util
import itertools
import re
import shlex
from pathlib import Path

import pytest
import typer
from course_pages import FOLDER, ROOT, SCRIPTS, cells, solution_file

from smml.cli import app

# Folders that examples name and no clone holds, with the reason.
NOT_IN_A_CLONE = {
    "build/": "made by make run",
    "data/": "the reader's own cases, or made by smml simulate",
    "runs/": "made by smml train",
    "evaluation/": "made by smml evaluate",
}

COMMANDS = typer.main.get_command(app).commands
TEXTS = {ROOT / "README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
for _script in SCRIPTS:
    TEXTS[_script] = "\n\n".join(cells(_script, "markdown"))
    if solution_file(_script).is_file():
        TEXTS[solution_file(_script)] = "\n\n".join(cells(solution_file(_script), "markdown"))

on_every_page = pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))

_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"[\w./-]*\w\.(?:py|md|ipynb|json|csv|toml|yml|txt|js|css|png|gif|safetensors)")


def inline_code(page: Path) -> list[str]:
    """What stands between backticks, a line break counting as a space."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", _FENCE.sub("", TEXTS[page]))]


def command_lines(page: Path) -> list[list[str]]:
    """The words of every command line: between backticks, or a line of a fenced block (joined where it ends in \\)."""
    lines = inline_code(page)
    for block in _FENCE.findall(TEXTS[page]):
        lines += block.replace("\\\n", " ").splitlines()
    split = []
    for line in lines:
        try:
            split.append(shlex.split(line, comments=True))
        # Python and drawings are no command lines, and need not be words of a shell.
        except ValueError:
            continue
    return [words for words in split if words]


def options_of(command: str) -> set[str]:
    """The spellings of a command's options, those of a configuration's fields among them."""
    context = COMMANDS[command].make_context(command, [], resilient_parsing=True)
    options = COMMANDS[command].get_params(context)
    return {spelling for option in options for spelling in (*option.opts, *option.secondary_opts)} | {"--help"}


@on_every_page
def test_relative_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXTS[page])
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", TEXTS[page], re.MULTILINE)
    }
    files = [target.partition("#")[0] for target in targets if not target.startswith("#")]
    dead = [target for target in files if not (page.parent / target).exists()]
    dead += [target for target in targets if target.startswith("#") and target[1:] not in anchors]
    assert not dead


@on_every_page
def test_files_in_backticks_are_there(page):
    named = [code for code in inline_code(page) if _FILE.fullmatch(code)]
    checked = [name for name in named if ("/" in name or name.endswith((".py", ".md")))]
    checked = [name for name in checked if not name.startswith(tuple(NOT_IN_A_CLONE))]
    dead = [name for name in checked if not (ROOT / name).exists() and not (page.parent / name).exists()]
    # A bare name, such as predictor.py after its folder was named, may lie anywhere in the repository.
    bare = [name for name in dead if "/" not in name and any(ROOT.glob(f"*/**/{name}"))]
    assert not set(dead) - set(bare)


@on_every_page
def test_commands_and_their_options_exist(page):
    wrong = []
    for words in command_lines(page):
        place = next((i for i, word in enumerate(words) if word == "smml" and (i == 0 or words[i - 1] == "-m")), None)
        if place is None or place + 1 == len(words) or words[place + 1].startswith("-"):
            continue
        command, rest = words[place + 1], words[place + 2 :]
        if command not in COMMANDS:
            wrong.append(f"smml {command}")
            continue
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        wrong += [f"smml {command} {option}" for option in sorted(given - options_of(command))]
    assert not wrong


@on_every_page
def test_options_by_themselves_belong_to_some_command(page):
    known = set().union(*(options_of(command) for command in COMMANDS))
    named = {word.partition("=")[0] for code in inline_code(page) if code.startswith("--") for word in code.split()}
    assert not {word for word in named if word.startswith("--")} - known


@on_every_page
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = {words[1] for words in command_lines(page) if words[0] == "make" and len(words) > 1}
    assert not {name for name in named if "=" not in name} - targets


@on_every_page
def test_modules_that_are_run_exist(page):
    named = {words[words.index("-m") + 1] for words in command_lines(page) if words[0] == "python" and "-m" in words}
    assert not [name for name in named if importlib.util.find_spec(name) is None]


@on_every_page
def test_python_names_in_backticks_exist(page):
    dead = []
    for code in inline_code(page):
        match = re.match(r"(smml(?:_kernels)?)((?:\.\w+)+)(?![\w/.-])", code)
        if match is None or match[0].endswith(".py"):
            continue
        found, path = importlib.import_module(match[1]), match[1]
        for name in match[2].split(".")[1:]:
            path = f"{path}.{name}"
            if not hasattr(found, name) and importlib.util.find_spec(path) is None:
                dead.append(match[0])
                break
            found = getattr(found, name) if hasattr(found, name) else importlib.import_module(path)
    assert not dead


def test_every_notebook_leads_to_the_one_with_the_next_number():
    for script, following in itertools.pairwise(SCRIPTS):
        last = TEXTS[script].rpartition("## Read next")[2]
        assert f"]({following.stem}.ipynb)" in last, f"{script.name} does not lead to {following.stem}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_needs_none_that_comes_later(script):
    first = " ".join(cells(script, "markdown")[0].split())
    numbers = re.findall(r"\b[Ff]rom \[notebook \d\]\((\d\d)_\w+\.ipynb\)", first)
    assert "it needs" in first or "It needs nothing" in first
    assert [number for number in numbers if number >= script.stem[:2]] == []


@pytest.mark.parametrize("index", [ROOT / "README.md", FOLDER / "00_tour.py"], ids=lambda path: path.stem)
def test_readme_and_tour_list_every_notebook(index):
    folder = "notebooks/" if index.parent == ROOT else ""
    missing = [s.stem for s in SCRIPTS if s != index and f"]({folder}{s.stem}.ipynb)" not in TEXTS[index]]
    assert not missing
