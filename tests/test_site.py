"""`make site`: made-up notebooks and the repository's own pages, read from disk in a browser without a network."""

import base64
import importlib
import io
import re
import shutil
from pathlib import Path

import build_site
import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from plotly.offline import get_plotlyjs

# Of Sphinx's next version, about code that is not ours.
pytestmark = pytest.mark.filterwarnings("ignore::sphinx.deprecation.RemovedInSphinx11Warning")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"]
PNG, WIDGET = "image/png", "application/vnd.jupyter.widget-view+json"
SIZES = {"picture": (64, 48), "widget": (80, 40)}  # width, height; tells the two pictures apart


def png(size: tuple[int, int]) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), 128, np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def figure_output() -> dict:
    """What plotly's renderer "plotly_mimetype+notebook" leaves in a notebook."""
    figure = go.Figure(go.Bar(x=["WT", "TC", "ET"], y=[3, 2, 1]), layout={"title": {"text": "three bars"}})
    return new_output(
        "display_data",
        {
            "application/vnd.plotly.v1+json": figure.to_plotly_json(),
            "text/html": figure.to_html(include_plotlyjs=False),
        },
    )


def executed_notebooks(folder: Path) -> list[Path]:
    stamps = {"iopub.execute_input": "2026-01-01T00:00:00Z", "shell.execute_reply": "2026-01-01T00:01:05Z"}
    bundle = {WIDGET: {"model_id": "1", "version_major": 2, "version_minor": 0}, "text/plain": "ModalityViewer of X"}
    plotly_script = new_output("display_data", {"text/html": f"<script>/* plotly.js */{get_plotlyjs()}</script>"})
    first = new_notebook(
        cells=[
            new_markdown_cell(
                "# 1. Made up\n\n**Question.** Does it show?\n\nInside a line $a^2$, and\n$$s = \\sum_i x_i$$"
            ),
            new_code_cell("figure", outputs=[plotly_script, figure_output()], metadata={"execution": stamps}),
            new_code_cell("again", outputs=[figure_output()]),
            new_markdown_cell("Read [the equations](../docs/EQUATIONS.md#notation) and [2](02_also_made_up.ipynb)."),
        ]
    )
    second = new_notebook(
        cells=[
            new_markdown_cell("# 2. Also made up\n\n[The code](../smml/losses/pixel.py)"),
            new_code_cell("picture", outputs=[new_output("display_data", {PNG: png(SIZES["picture"])})]),
            new_code_cell("viewer", outputs=[new_output("display_data", {**bundle, PNG: png(SIZES["widget"])})]),
            new_code_cell("progress", outputs=[new_output("display_data", {**bundle, "text/plain": "0%| | 0/7"})]),
        ]
    )
    paths = [folder / "01_made_up.ipynb", folder / "02_also_made_up.ipynb"]
    for book, path in zip((first, second), paths, strict=True):
        nbformat.write(book, path)
    return paths


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site with two made-up notebooks in the place of the real ones; a warning of Sphinx fails its build."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "executed").mkdir()
    assert build_site.build(executed_notebooks(folder / "executed"), folder / "pages", folder / "site") == 0
    return folder / "site"


def test_a_notebook_that_is_missing_changed_or_failed_is_executed_anew(tmp_path, monkeypatch):
    committed, done = tmp_path / "committed" / "01_made_up.ipynb", tmp_path / "01_made_up.ipynb"
    committed.parent.mkdir()
    monkeypatch.setattr(build_site, "NOTEBOOKS", committed.parent)
    book = new_notebook(cells=[new_code_cell("print(1)")])
    nbformat.write(book, committed)
    assert not build_site.is_current(done)
    book.cells[0].outputs = [new_output("stream", text="1")]
    nbformat.write(book, done)
    assert not build_site.is_current(done), "the kernel never answered: the cell ran out of time"
    book.cells[0].metadata["execution"] = {"shell.execute_reply": "2026-01-01T00:01:05Z"}
    nbformat.write(book, done)
    assert build_site.is_current(done)
    book.cells[0].outputs = [new_output("error", ename="KeyError", evalue="x")]
    nbformat.write(book, done)
    assert not build_site.is_current(done)
    book.cells[0] = new_code_cell("print(2)")
    nbformat.write(book, done)
    assert not build_site.is_current(done)


def test_the_index_has_each_notebook_with_its_question_and_its_time(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    assert "Does it show?" in index
    assert "1 min 05 s" in index
    assert 'href="notebooks/02_also_made_up.html"' in index


def test_plotly_is_in_the_site_once_and_no_page_has_a_copy(site):
    assert len(list(site.rglob("plotly*.js"))) == 1
    page = (site / "notebooks" / "01_made_up.html").read_text(encoding="utf-8")
    assert len(page) < 200_000
    assert page.count("plotly.min.js") == 1
    assert page.count('class="plotly-graph-div"') == 2


def test_no_page_names_a_script_a_style_or_a_font_on_another_machine(site):
    remote = re.compile(
        r"""(?:src|@import)\s*=?\s*["']?(?:https?:)?//|<link[^>]+href="(?:https?:)?//|url\(["']?(?:https?:)?//"""
    )
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = remote.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(site)}: {found.group()}"


def test_every_link_between_pages_leads_somewhere(site):
    for path in site.rglob("*.html"):
        for link in re.findall(r'<a [^>]*href="([^"#?]+)[^"]*"', path.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", link):
                assert (path.parent / link).exists(), f"{path.relative_to(site)} links to {link}"


def test_a_link_to_a_file_of_code_leads_to_a_page_that_shows_it(site):
    assert "pixel_consistency" in (site / "smml" / "losses" / "pixel.py.html").read_text(encoding="utf-8")


def test_the_interface_has_every_public_name(site):
    for package in build_site.PACKAGES:
        page = (site / "api" / f"{package}.html").read_text(encoding="utf-8")
        missing = [name for name in importlib.import_module(package).__all__ if f'id="{package}.{name}"' not in page]
        assert missing == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH; on Debian: apt-get install chromium")
def test_read_from_disk_without_a_network_figures_pictures_equations_and_search_are_there(site):
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright

    requests, complaints = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)

        page.goto((site / "notebooks" / "01_made_up.html").as_uri())
        page.wait_for_function("document.querySelectorAll('.plotly-graph-div .bars path').length === 6")
        assert page.locator(".plotly-graph-div .gtitle").first.text_content() == "three bars"
        page.wait_for_function("document.querySelectorAll('mjx-container svg').length === 2")
        assert page.locator("mjx-container[display=true]").count() == 1
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0

        page.goto((site / "notebooks" / "02_also_made_up.html").as_uri())
        page.wait_for_function("[...document.images].every(image => image.complete)")
        sizes = page.evaluate("[...document.querySelectorAll('.cell img')].map(i => [i.naturalWidth, i.naturalHeight])")
        assert sizes == [list(SIZES["picture"]), list(SIZES["widget"])]
        assert "0%|" not in page.locator("article").inner_text()

        page.goto((site / "search.html").as_uri() + "?q=pixel_consistency")
        page.locator("#search-results li a", has_text="pixel_consistency").first.wait_for()
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert complaints == []
