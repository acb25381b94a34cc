"""Measure the viewer in a browser, from the click to the changed pixels; writes build/viewer/measured.json.

    python scripts/measure_viewer.py [--small WINDOW]

One simulated case of 96 x 96 x 96 voxels of 2 mm, headless Chromium, two threads; the shipped weights "tiny" (which
resample the case to 3 mm) or, with --small, the preset "small" with random weights on the case's own grid. On a busy
machine the numbers grow with its load, so the load is written beside them.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "viewer"))

import notebook_page  # noqa: E402

TARGET = ROOT / "build" / "viewer"
EDGE = 96

NOTEBOOK = f"""
import os, resource, dataclasses, tempfile, torch
import numpy as np
from smml.data import read_case, simulate_cohort
from smml.inference import Predictor
from smml.models import SMML
from smml.viewer import ModalityViewer
torch.set_num_threads(2)
with tempfile.TemporaryDirectory() as folder:
    case = read_case(simulate_cohort(folder, 1, spacing=2.0, seed=3, workers=1, progress=False)[0])
def cube(volume):
    room = [max(0, {EDGE} - n) for n in volume.shape]
    padded = np.pad(volume, [(r // 2, r - r // 2) for r in room])
    middle = tuple(slice((n - {EDGE}) // 2, (n - {EDGE}) // 2 + {EDGE}) for n in padded.shape)
    return np.ascontiguousarray(padded[middle])
volumes = {{name: cube(volume) for name, volume in case.volumes.items()}}
case = dataclasses.replace(case, volumes=volumes, label=cube(case.label))
viewer = ModalityViewer(case, PREDICTOR)
print("pid", os.getpid(), case.shape)
viewer
""".strip()

# Clicks, then waits until the first canvas has changed and stayed so; gives milliseconds from the click on.
UNTIL_CHANGED = """
async ([selector, number, kind, canvas]) => {
  const before = window.smml.changed[canvas];
  const target = document.querySelectorAll(selector)[number];
  const began = performance.now();
  if (kind === 'wheel') target.dispatchEvent(new WheelEvent('wheel', { deltaY: -1, bubbles: true, cancelable: true }));
  else target.click();
  while (window.smml.changed[canvas] <= before) {
    if (performance.now() - began > 120000) return null;
    await new Promise(requestAnimationFrame);
  }
  return window.smml.changed[canvas] - began;
}
"""
CHECK = ".widget-checkbox input"


def memory_mb(pid: int) -> dict[str, int]:
    """Resident memory of a process and its peak, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) * 1024 // 10**6
        for line in lines
        if line.startswith(("VmRSS", "VmHWM"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=0, metavar="WINDOW", help='preset "small" with this window')
    window = parser.parse_args().small
    predictor = f'Predictor(SMML("small"), None, window={window})' if window else 'Predictor.from_checkpoint("tiny")'
    notebook = NOTEBOOK.replace("PREDICTOR", predictor)
    target = TARGET / (f"measured-small-{window}.json" if window else "measured.json")
    TARGET.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, notebook_page.open_notebook(Path(folder), [notebook]) as page:
        page.wait_for_function("document.querySelectorAll('canvas.smml-plane[data-frames]').length === 3")
        page.get_by_text("● segmented from FLAIR + T1ce + T1 + T2").wait_for(timeout=300_000)
        pid = int(re.search(r"pid (\d+)", page.locator(".jp-OutputArea").first.inner_text()).group(1))
        page.wait_for_timeout(3000)
        page.evaluate(notebook_page.WATCH)

        def clicks(selector: str, number: int, kind: str = "click", canvas: int = 0) -> float:
            return page.evaluate(UNTIL_CHANGED, [selector, number, kind, canvas])

        began, found = time.time(), {"predictor": predictor}
        found["load average at start"] = os.getloadavg()[0]
        # The caption in the picture names the subset, so a new result always changes pixels. Wait for the scores
        # between, which are computed behind it.
        new = []
        for number in (0, 1, 2):
            new.append(clicks(CHECK, number))
            # Noise, which is what random weights say, takes longer to score.
            page.wait_for_timeout(8000 if window else 2500)
        found["new subset, ms"] = new
        page.screenshot(path=TARGET / "measured.png")
        found["seen subset, ms"] = [clicks(CHECK, 2) for _ in range(20) if not page.wait_for_timeout(300)]
        found["slice step, ms"] = [
            clicks("canvas.smml-plane", 0, "wheel") for _ in range(20) if not page.wait_for_timeout(150)
        ]
        page.evaluate("Object.assign(window.smml, { blank: 0, looked: 0 })")
        for _ in range(50):
            page.locator(CHECK).nth(2).evaluate("box => box.click()")
            page.wait_for_timeout(60)
        page.wait_for_timeout(1000)
        seen = page.evaluate("window.smml")
        found["50 toggles"] = {"frames looked at": seen["looked"], "blank": seen["blank"]}
        found["memory of the kernel, MB"] = memory_mb(pid)
        found["load average at end"] = os.getloadavg()[0]
        found["seconds"] = time.time() - began
    for name in [name for name in found if name.endswith(", ms")]:
        values = sorted(found[name])
        found[f"{name}: median, max"] = [round(statistics.median(values)), round(values[-1])]
    target.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps({name: value for name, value in found.items() if not name.endswith(", ms")}, indent=1))


if __name__ == "__main__":
    main()
