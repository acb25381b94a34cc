"""``make run``: every notebook from top to bottom, then a summary of what came out.

    python scripts/run_notebooks.py          # all
    python scripts/run_notebooks.py 04 07    # these, without the summary; what others left in build stays

Executed notebooks go to build/notebooks, as .ipynb and as .html pages whose figures and equations need neither a kernel
nor a network. Links of a page lead to the repository's own files.
"""

import argparse
import copy
import importlib.metadata
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

# Silences jupyter_core's notice about its new folders, here and in the notebooks' kernels.
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")

import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build"
CELL_TIMEOUT = 300
WIDGET = "application/vnd.jupyter.widget-view+json"
# What nbconvert writes asks for MathJax 2 on the web; beside the pages lies version 3, with its glyphs inside.
MATHJAX = "tex-svg.js"
ON_THE_WEB = re.compile(r"<!-- Load mathjax -->.*<!-- End of mathjax configuration -->", re.DOTALL)
EQUATIONS = (
    '<script>window.MathJax = {tex: {inlineMath: [["$", "$"]], processEscapes: true}};</script>\n'
    f'<script src="{MATHJAX}" async></script>'
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of notebooks' names, such as 07; default: all")
    names = parser.parse_args().names
    notebooks = sorted(NOTEBOOKS.glob("*.ipynb"))
    for name in names:
        if not any(path.stem.startswith(name) for path in notebooks):
            parser.error(f"no notebook begins with {name!r}; there are {', '.join(path.stem for path in notebooks)}")
    if names:
        notebooks = [path for path in notebooks if path.stem.startswith(tuple(names))]
    else:
        # Yesterday's results must not pass for today's; the cohort is a function of its seed and may stay.
        for old in [BUILD / "notebooks", BUILD / "evaluation", *BUILD.glob("run-*-steps")]:
            shutil.rmtree(old, ignore_errors=True)
    (BUILD / "notebooks").mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    for number, path in enumerate(notebooks, start=1):
        if not execute(path, f"[{number}/{len(notebooks)}]"):
            return 1
    if not names:
        print(summary(time.perf_counter() - started))
    return 0


def execute(path: Path, place: str) -> bool:
    """Run one notebook and save it; says which cell failed and why, if one did."""
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    done, memory = 0, None

    def measure(**_):
        nonlocal memory
        memory = peak_memory(client.km.provisioner.pid) or memory

    def report(cell, cell_index, **_):
        nonlocal done
        if cell.cell_type == "code":
            done += 1
            progress(f"{place} {path.stem}: cell {done} of {cells}")

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        store_widget_state=False,
        on_cell_start=report,
        on_cell_executed=measure,
        # The kernel listens on this machine alone; its warning about that would stand before every notebook.
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    began = time.perf_counter()
    failure = None
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError) as error:
        failure = error
    seconds = time.perf_counter() - began
    target = BUILD / "notebooks" / path.name
    nbformat.write(notebook, target)
    write_page(notebook, target.with_suffix(".html"))
    progress(f"{place} {path.stem}: {seconds:.0f} s" + ("" if memory is None else f", {memory:.1f} GiB"), last=True)
    if failure is not None:
        sys.stderr.write(f"smml: {path.name}, code cell {done} failed; see {target}\n{failure}\n")
    return failure is None


def write_page(notebook: NotebookNode, path: Path) -> None:
    """Write an executed notebook as a page, and MathJax beside it, so that both can be read without a network."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = list(without_widgets(cell.outputs))
    page, _ = HTMLExporter().from_notebook_node(notebook)
    page = ON_THE_WEB.sub(lambda _: EQUATIONS, page)
    if not (path.parent / MATHJAX).exists():
        copy_mathjax(path.parent)
    path.write_text(with_links(page), encoding="utf-8")


def without_widgets(outputs: Iterable[NotebookNode]) -> Iterator[NotebookNode]:
    """The outputs that a page without a kernel can show.

    A widget becomes the picture in its own output, or nothing: of a progress bar there is none, and the viewer's
    stands before it in an output of its own.
    """
    for output in outputs:
        data = output.get("data", {})
        if WIDGET not in data:
            yield output
        elif "image/png" in data:
            yield NotebookNode({**output, "data": NotebookNode({"image/png": data["image/png"]})})


def copy_mathjax(folder: Path) -> None:
    """Put MathJax, one file, into a folder; it comes with the package that ``make site`` needs."""
    package = importlib.metadata.distribution("sphinx-mathjax-offline")
    shutil.copy(package.locate_file(f"sphinx-mathjax-offline/static/mathjax/{MATHJAX}"), folder)


def peak_memory(process: int) -> float | None:
    """The most memory that a process has held, in GiB; None where the system does not say (it is Linux that does)."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return None if found is None else int(found[1]) / 2**20


def with_links(page: str) -> str:
    """A page of build/notebooks whose links, written for the folder notebooks, lead to the same files from there."""

    def relink(match: re.Match) -> str:
        path, _, anchor = match[1].partition("#")
        to = os.path.normpath(NOTEBOOKS / path)
        if not path or not os.path.exists(to):
            return match[0]
        if os.path.dirname(to) == str(NOTEBOOKS) and to.endswith(".ipynb"):
            to = str(BUILD / "notebooks" / Path(to).with_suffix(".html").name)  # they stand beside this page
        link = os.path.relpath(to, BUILD / "notebooks")
        return f'href="{link}#{anchor}"' if anchor else f'href="{link}"'

    return re.sub(r'href="(?![a-z]+:|#|/)([^"]+)"', relink, page)


def progress(text: str, last: bool = False) -> None:
    """One line that is rewritten on a terminal, and one line a notebook in a log file."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="\n" if last else "", flush=True)
    elif last or "cell 1 of" in text:
        print(text, flush=True)


def summary(seconds: float) -> str:
    """Cohort, losses, the table over the 15 subsets, and where everything is."""
    lines = ["", "=" * 78, f"Done in {seconds / 60:.1f} minutes. All data are simulated.", ""]
    for kind in ("training", "held-out"):
        folder = BUILD / "cohort" / kind
        lines.append(
            f"cohort    {sum(path.is_dir() for path in folder.glob('*'))} {kind} cases in {folder.relative_to(ROOT)}"
        )
    for log in sorted(BUILD.glob("run-*-steps/log.csv")):
        losses = pd.read_csv(log)["total"]
        tenth = max(1, len(losses) // 10)
        first, last = losses.head(tenth).mean(), losses.tail(tenth).mean()
        lines.append(f"training  {len(losses)} steps, total loss {first:.2f} -> {last:.2f} ({log.relative_to(ROOT)})")
    table = BUILD / "evaluation" / "table.md"
    lines += ["", table.read_text(encoding="utf-8"), f"pages     {(BUILD / 'notebooks').relative_to(ROOT)}/*.html"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
