"""``make site``: the executed notebooks and the pages around them as a site that opens from disk, with no network.

Sphinx and MyST-NB do the work. What is done here: notebooks that ``make run`` has not executed, or that have changed
since, are executed; pages and whatever they link to are gathered in build/site-pages; figures are told to share one
local plotly.min.js; and the pages of the programming interface are written down for autodoc. A warning of Sphinx is an
error. The site comes out as build/site/index.html.
"""

import importlib
import inspect
import os
import re
import runpy
import shutil
import sys
from collections.abc import Container, Iterable
from datetime import datetime
from pathlib import Path

import jupytext
import nbformat
import plotly.io
from nbformat import NotebookNode
from plotly.offline import get_plotlyjs
from run_notebooks import BUILD, NOTEBOOKS, ROOT, copy_mathjax, execute, without_widgets
from sphinx.cmd.build import main as sphinx_build

# Whatever these do not reach through links is not part of the site.
PAGES = (
    "docs/METHOD.md", "docs/EQUATIONS.md", "docs/READING_RESULTS.md", "docs/GLOSSARY.md", "docs/CONVENTIONS.md",
    "docs/EMULATOR.md",
)  # fmt: skip
ABOUT = ("CONTRIBUTING.md", "docs/QUESTIONS.md", "CHANGELOG.md")
PACKAGES = runpy.run_path(str(ROOT / "docs" / "interface.py"))["PACKAGES"]
PICTURES = {".png", ".gif", ".jpg", ".svg"}
PLOTLY = "application/vnd.plotly.v1+json"
FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")


def main() -> int:
    executed = [BUILD / "notebooks" / path.name for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    missing = [path for path in executed if not is_current(path)]
    for number, path in enumerate(missing, start=1):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not execute(NOTEBOOKS / path.name, f"[{number}/{len(missing)}]"):
            return 1
    code = build(executed, BUILD / "site-pages", BUILD / "site")
    if code == 0:
        print(f"site      {(BUILD / 'site' / 'index.html').relative_to(ROOT)}")
    return code


def is_current(executed: Path) -> bool:
    """Whether an executed notebook is there, has the cells of the committed one, and ran to its end."""
    if not executed.exists():
        return False
    books = [nbformat.read(path, as_version=4) for path in (NOTEBOOKS / executed.name, executed)]
    cells = [[(cell.cell_type, cell.source) for cell in book.cells] for book in books]
    code = [cell for cell in books[1].cells if cell.cell_type == "code"]
    # A cell that ran out of time leaves no error behind, but the kernel never answered it.
    answered = all("shell.execute_reply" in cell.metadata.get("execution", {}) for cell in code)
    failed = any(output.output_type == "error" for cell in code for output in cell.outputs)
    return cells[0] == cells[1] and answered and not failed


def build(executed: list[Path], pages: Path, site: Path) -> int:
    """Gather the pages of a site about these executed notebooks, and build it; Sphinx's exit status.

    Args:
        executed: notebooks with their outputs; each stands for the one of its name in the folder ``notebooks``.
        pages: folder for what Sphinx reads; emptied first.
        site: folder for what comes out; emptied first.
    """
    doctrees = pages.with_name(pages.name + "-doctrees")
    for folder in (pages, site, doctrees):
        shutil.rmtree(folder, ignore_errors=True)
    static = pages / "_static"
    static.mkdir(parents=True)
    (static / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    copy_mathjax(static)
    shutil.copy(ROOT / "docs" / "site" / "site.css", static)
    shutil.copy(ROOT / "docs" / "site" / "conf.py", pages)

    notebooks = {f"notebooks/{path.name}": nbformat.read(path, as_version=4) for path in executed}
    write_index(notebooks, pages)
    write_interface(pages)
    gather(notebooks, pages)
    return sphinx_build(["-q", "-W", "--keep-going", "-b", "html", "-d", str(doctrees), str(pages), str(site)])


def gather(notebooks: dict[str, NotebookNode], pages: Path) -> None:
    """Copy every page into ``pages``, at its place in the repository, with all that it links to."""
    places = [place for place in (*PAGES, *ABOUT) if (ROOT / place).exists()]
    queue = ["docs/site/index.md", *notebooks, *places]
    done = set(queue)
    while queue:
        place = queue.pop()
        is_page = place.endswith((".ipynb", ".md"))
        linked = copy_page(place, notebooks, pages) if is_page else copy_file(place, pages)
        queue += linked - done
        done |= linked


def copy_page(place: str, notebooks: dict[str, NotebookNode], pages: Path) -> set[str]:
    """Write one page for Sphinx; gives the places in the repository that it links to."""
    target = pages / place
    if place == "docs/site/index.md":
        target, text = pages / "index.md", (pages / "index.md").read_text(encoding="utf-8")
        text, linked = with_links(text, place, "index.md", notebooks)
    elif place.endswith(".md"):
        text = (ROOT / place).read_text(encoding="utf-8")
        if place in PAGES:
            text = with_notebooks(text, place, notebooks)
        text, linked = with_links(text, place, place, notebooks)
        if place not in (*PAGES, *ABOUT):
            text = f"---\norphan: true\n---\n{text}"
    else:
        # Those of the course come executed; another that a page links to, such as a solution, as it is written.
        script = (ROOT / place).with_suffix(".py")
        book = notebooks[place] if place in notebooks else jupytext.read(script)
        linked = set()
        for cell in book.cells:
            if cell.cell_type == "markdown":
                cell.source, found = with_links(cell.source, place, place, notebooks)
                linked |= found
        show_outputs(book, depth=place.count("/"))
        book.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}  # for the colours of code
        if place not in notebooks:
            book.metadata["orphan"] = True
        text = nbformat.writes(book)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return linked


def copy_file(place: str, pages: Path) -> set[str]:
    """A picture as it is; any other file as a page that shows it."""
    target = pages / place
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix in PICTURES:
        shutil.copy(ROOT / place, target)
        return set()
    language = {".py": "python", ".json": "json", ".toml": "toml", ".yml": "yaml"}.get(target.suffix, "text")
    shutil.copy(ROOT / place, target)
    page = f"---\norphan: true\n---\n# `{place}`\n\n```{{literalinclude}} {target.name}\n:language: {language}\n```\n"
    target.with_name(target.name + ".md").write_text(page, encoding="utf-8")
    return set()


def with_links(text: str, source: str, place: str, known: Container[str] = ()) -> tuple[str, set[str]]:
    """The text of page ``source`` with links as they must be at ``place`` of the site, and the places they lead to.

    Raises:
        FileNotFoundError: a link leads to a file that is neither in the repository nor ``known``.
    """
    linked = set()

    def relink(match: re.Match) -> str:
        picture, words, link = match.groups()
        if re.match(r"[a-z]+:|#", link):
            return match.group()
        if link.startswith("api/"):  # written by write_interface
            return match.group()
        path, _, anchor = link.partition("#")
        to = os.path.normpath(os.path.join(os.path.dirname(source), path))
        if to not in known and not (ROOT / to).exists():
            raise FileNotFoundError(f"{source} links to {link}, which is not there")
        if (ROOT / to).is_dir():
            return words
        if to.startswith("notebooks/") and to.endswith(".py"):
            to = to.removesuffix(".py") + ".ipynb"
        linked.add(to)
        page = to.endswith((".md", ".ipynb"))
        shown = to if page or Path(to).suffix in PICTURES else to + ".md"
        link = os.path.relpath(shown, os.path.dirname(place) or ".") + (f"#{anchor}" if anchor and page else "")
        return f"{picture}[{words}]({link})"

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(relink, part) for part in parts), linked


def with_notebooks(text: str, source: str, notebooks: Iterable[str]) -> str:
    """The text with "notebook 4" made a link, where there is such a notebook."""
    numbers = {int(Path(place).name.split("_")[0]): place for place in notebooks}

    def link(match: re.Match) -> str:
        place = numbers.get(int(match.group(1)))
        return f"[{match.group()}]({os.path.relpath(place, os.path.dirname(source))})" if place else match.group()

    return re.sub(r"(?<!\[)\bnotebook (\d+)\b", link, text)


def show_outputs(book: NotebookNode, depth: int) -> None:
    """Make the outputs of a notebook such as a page without a kernel and a network can show.

    A plotly figure becomes a division that the site's own plotly.min.js draws, loaded once a page.
    """
    script = f'<script src="{"../" * depth}_static/plotly.min.js"></script>\n'
    for number, cell in enumerate(book.cells):
        kept = []
        for output in without_widgets(cell.get("outputs", [])):
            data = output.get("data", {})
            if PLOTLY in data:
                data = {"text/html": script + figure_division(data[PLOTLY], f"figure-{number}-{len(kept)}")}
                script = ""
            elif "plotly.js" in data.get("text/html", "")[:5000] and len(data["text/html"]) > 1_000_000:
                data = {}  # plotly's own copy of its script
            if "data" not in output or data:
                kept.append({**output, "data": data} if data else output)
        if cell.cell_type == "code":
            cell.outputs = [nbformat.from_dict(output) for output in kept]


def figure_division(figure: dict, name: str) -> str:
    height = figure.get("layout", {}).get("height", 450)
    return plotly.io.to_html(
        figure,
        config={"displaylogo": False, "responsive": True},
        include_plotlyjs=False,
        full_html=False,
        default_height=height,
        validate=False,
        div_id=name,
    )


def write_index(notebooks: dict[str, NotebookNode], pages: Path) -> None:
    """The first page: the notebooks with the question of each and how long it ran, and the order of the menu."""
    rows = ["| | question | ran in |", "|---|---|---|"]
    for place, book in notebooks.items():
        first = book.cells[0].source
        title = first.splitlines()[0].lstrip("# ")
        question = re.search(r"\*\*Question\.\*\*\s+(.+?)(?:\n\n|\n#|\Z)", first, re.DOTALL)
        words = " ".join(question.group(1).split()) if question else ""
        rows.append(f"| [{title}](../../{place}) | {words} | {minutes(book)} |")
    total = sum(seconds(book) for book in notebooks.values())
    rows += ["", f"All of them ran in {total / 60:.1f} minutes on the machine that made these pages."]
    interface = ["- The programming interface:"]
    interface += [f"  - [`{package}`](api/{package}.md): {summary(package)}" for package in PACKAGES]
    menu = {
        "The course": [place.removesuffix(".ipynb") for place in notebooks],
        "Around it": [place.removesuffix(".md") for place in PAGES if (ROOT / place).exists()],
        "Programming interface": [f"api/{package}" for package in PACKAGES],
        "The project": [place.removesuffix(".md") for place in ABOUT if (ROOT / place).exists()],
    }
    trees = [
        "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""])
        for caption, entries in menu.items()
    ]
    text = (ROOT / "docs" / "site" / "index.md").read_text(encoding="utf-8")
    text = text.replace("<!-- notebooks -->", "\n".join(rows))
    text = text.replace("<!-- api -->", "\n".join(interface))
    (pages / "index.md").write_text("\n".join([text, *trees]), encoding="utf-8")


def write_interface(pages: Path) -> None:
    """One page a package, with a directive for each name in its ``__all__``: autodoc fills in the docstrings."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        lines = [f"# {package}", "", "```{eval-rst}", f".. automodule:: {package}", "   :no-members:", ""]
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value):
                lines += [f".. autoclass:: {package}.{name}", "   :members:", ""]
            elif inspect.isfunction(value):
                lines += [f".. autofunction:: {package}.{name}", ""]
            else:
                entries = value if isinstance(value, tuple | dict) else [value]
                words = ("+".join(entry) if isinstance(entry, tuple) else str(entry) for entry in entries)
                lines += [f".. py:data:: {name}", "", "   " + ", ".join(f"``{word}``" for word in words), ""]
        page = pages / "api" / f"{package}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text("\n".join([*lines, "```", ""]), encoding="utf-8")


def summary(package: str) -> str:
    """The first line of a package's docstring."""
    return importlib.import_module(package).__doc__.splitlines()[0]


def seconds(book: NotebookNode) -> float:
    """From the start of the first cell of an executed notebook to the end of the last."""
    times = [cell.metadata.get("execution", {}) for cell in book.cells]
    stamps = [datetime.fromisoformat(stamp) for time in times for stamp in time.values()]
    return (max(stamps) - min(stamps)).total_seconds() if stamps else 0.0


def minutes(book: NotebookNode) -> str:
    whole = round(seconds(book))
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


if __name__ == "__main__":
    sys.exit(main())
