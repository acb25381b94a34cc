"""What ``make run`` leaves: pages whose links lead somewhere, and what is said of a notebook's memory."""

import os
import subprocess
import sys

import nbformat
import pytest
import run_notebooks
from course_pages import ROOT

PAGES = ROOT / "build" / "notebooks"


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("../docs/METHOD.md", "../../docs/METHOD.md"),
        ("../docs/READING_RESULTS.md#windows", "../../docs/READING_RESULTS.md#windows"),
        ("solutions/00_tour.py", "../../notebooks/solutions/00_tour.py"),
        ("01_data.ipynb", "01_data.html"),
        ("#Key-points", "#Key-points"),
        ("https://arxiv.org/abs/2507.07592", "https://arxiv.org/abs/2507.07592"),
        ("not/there.md", "not/there.md"),
    ],
)
def test_a_link_of_a_page_in_build_leads_to_the_file_that_the_notebook_meant(written, there):
    assert run_notebooks.with_links(f'<a href="{written}">x</a>') == f'<a href="{there}">x</a>'


def test_what_a_link_is_turned_into_exists():
    page = run_notebooks.with_links('<a href="../docs/METHOD.md">x</a>')
    assert os.path.exists(os.path.normpath(PAGES / page.split('"')[1]))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process has held")
def test_the_most_memory_that_a_process_has_held_is_in_gib():
    assert 0.01 < run_notebooks.peak_memory(os.getpid()) < 1000


def test_a_process_that_is_gone_has_no_memory():
    assert run_notebooks.peak_memory(2**30) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a status of a process that has ended")
def test_a_process_that_has_ended_and_was_not_waited_for_has_no_memory():
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert run_notebooks.peak_memory(process.pid) is None
    process.wait()


def test_a_page_sets_its_equations_without_a_network_and_shows_no_trace_of_a_widget(tmp_path):
    bar = {run_notebooks.WIDGET: {"model_id": "1"}, "text/plain": "simulating cases:   0%|"}
    viewer = {run_notebooks.WIDGET: {"model_id": "2"}, "text/plain": "ModalityViewer of a case"}
    still = {"text/html": '<div class="smml-still-3"><img src="data:image/png;base64,aGVhZA=="></div>'}
    outputs = [nbformat.v4.new_output("display_data", data=data) for data in (bar, still, viewer)]
    cells = [
        nbformat.v4.new_markdown_cell("Einstein: $E = mc^2$."),
        nbformat.v4.new_code_cell("viewer", outputs=outputs),
    ]
    run_notebooks.write_page(nbformat.v4.new_notebook(cells=cells), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "cdnjs.cloudflare.com/ajax/libs/mathjax" not in page
    assert "window.MathJax" in page
    assert f'src="{run_notebooks.MATHJAX}"' in page
    assert (tmp_path / run_notebooks.MATHJAX).stat().st_size > 1_000_000
    assert "simulating cases" not in page
    assert page.count("aGVhZA==") == 1
    assert "ModalityViewer" not in page
    assert cells[1].outputs == outputs  # the notebook itself keeps them, for a front with a kernel
