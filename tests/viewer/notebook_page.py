"""A JupyterLab with a notebook in a headless Chromium, for the browser test and for measuring."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
# Otherwise a popup about news covers the page.
_SETTINGS = {
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
    }
}


def why_not() -> str | None:
    """Why no browser can be driven here; None if one can."""
    if CHROMIUM is None:
        return "no chromium on PATH; on Debian: apt-get install chromium"
    for module in ("playwright", "jupyterlab", "anywidget"):
        try:
            __import__(module)
        except ImportError:
            return f"{module} is not installed; pip install -e '.[dev]'"
    return None


@contextlib.contextmanager
def jupyter_lab(folder: Path) -> Iterator[str]:
    """Run JupyterLab on a folder; gives its address. Ends the server and its kernels."""
    settings = folder / ".settings"
    for name, value in _SETTINGS.items():
        path = settings / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTER_RUNTIME_DIR": str(folder / ".runtime"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    with open(folder / "server.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            address = f"http://127.0.0.1:{port}"
            _await_server(server, address, folder)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _await_server(server: subprocess.Popen, address: str, folder: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError("JupyterLab ended:\n" + (folder / "server.log").read_text(encoding="utf-8")[-2000:])
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api", timeout=2):
            return
        time.sleep(0.2)
    raise RuntimeError("JupyterLab did not answer within 2 minutes")


@contextlib.contextmanager
def open_notebook(folder: Path, cells: list[str], *, width: int = 1280, height: int = 1100) -> Iterator:
    """Write a notebook, open it in JupyterLab and run all its cells; gives playwright's page."""
    from playwright.sync_api import sync_playwright

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "viewer.ipynb")
    with jupyter_lab(folder) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(120_000)
        page.goto(f"{address}/lab/tree/viewer.ipynb?reset")
        # A run asked for before the kernel is idle is silently lost.
        page.wait_for_selector("text=| Idle")
        page.click(".jp-NotebookPanel .jp-Cell")
        page.keyboard.press("Control+b")  # the file browser's place is better used for the planes
        for _ in range(10):
            page.click("text=Run >> nth=0")
            page.click("text=Run All Cells >> nth=0")
            with contextlib.suppress(Exception):
                page.wait_for_function(
                    "!/\\[ \\]/.test(document.querySelector('.jp-InputPrompt').textContent)", timeout=5000
                )
                break
        yield page
        browser.close()


# Numbers every frame that a canvas shows, and keeps a record of blank ones and of when its pixels changed.
WATCH = """
() => {
  const canvases = [...document.querySelectorAll('canvas.smml-plane')];
  window.smml = { blank: 0, looked: 0, changed: canvases.map(() => 0), sums: canvases.map(() => 0) };
  function look() {
    canvases.forEach((canvas, number) => {
      const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      let sum = 0;
      for (let i = 0; i < data.length; i += 4 * 7) sum = (sum * 31 + data[i] + 3 * data[i + 1] + 7 * data[i + 2]) | 0;
      let light = 0;
      for (let i = 0; i < data.length; i += 4 * 97) light += data[i];
      if (!light || !canvas.isConnected || !canvas.clientWidth) window.smml.blank += 1;
      if (sum !== window.smml.sums[number]) {
        window.smml.sums[number] = sum;
        window.smml.changed[number] = performance.now();
      }
    });
    window.smml.looked += 1;
    requestAnimationFrame(look);
  }
  look();
}
"""
