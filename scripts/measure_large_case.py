"""Measure the viewer on a case of 240 x 240 x 155 voxels, without a browser; writes build/viewer/large.json.

    python scripts/measure_large_case.py

A case simulated at 3 mm is resampled to 1 mm, opened, scrolled, segmented with the shipped weights "tiny" (which
resample it to 3 mm), and scrolled while that runs. Then a network of the same size segments it at its own 1 mm, which
takes long: how soon progress shows and how soon a cancelled run has ended. Memory is that of this process.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import zoom

from smml.data import find_case, read_case, simulate_cohort
from smml.inference import Predictor
from smml.models import SMML
from smml.viewer import ModalityViewer

TARGET = Path(__file__).resolve().parent.parent / "build" / "viewer"
SHAPE = (240, 240, 155)


def write_large_case(folder: Path) -> None:
    """A simulated case on a grid of BraTS's size, as files."""
    case = read_case(simulate_cohort(folder / "coarse", 1, spacing=3.0, seed=3, workers=1, progress=False)[0])

    def fine(volume: np.ndarray, order: int) -> np.ndarray:
        volume = zoom(volume, 3, order=order)
        low = [max(0, (n - wanted) // 2) for n, wanted in zip(volume.shape, SHAPE, strict=True)]
        volume = volume[tuple(slice(a, a + n) for a, n in zip(low, SHAPE, strict=True))]
        room = [wanted - n for n, wanted in zip(volume.shape, SHAPE, strict=True)]
        return np.pad(volume, [(n // 2, n - n // 2) for n in room])

    affine = case.affine @ np.diag([1 / 3, 1 / 3, 1 / 3, 1.0])
    target = folder / case.id
    target.mkdir()
    files = {name: fine(volume, order=1) for name, volume in case.volumes.items()}
    # In files of this layout the enhancing tumour is 4.
    files["seg"] = fine(np.where(case.label == 3, 4, case.label), order=0)
    for name, volume in files.items():
        nib.save(nib.Nifti1Image(volume.astype(np.int16), affine), target / f"{case.id}_{name}.nii.gz")


def memory_mb() -> dict[str, int]:
    """Resident memory and its peak so far, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    names = {"VmRSS": "now", "VmHWM": "peak"}
    return {names[line.split(":")[0]]: int(line.split()[1]) * 1024 // 10**6 for line in lines if line[:5] in names}


def scroll(viewer: ModalityViewer, steps: int = 20) -> list[int]:
    """Median and longest time of a slice step, in ms, kernel side: three planes drawn and encoded."""
    taken = []
    for step in range(steps):
        began = time.perf_counter()
        viewer._on_plane("axial", {"kind": "wheel", "steps": 1 if step % 2 else -2})
        taken.append(1000 * (time.perf_counter() - began))
    return [round(statistics.median(taken)), round(max(taken))]


def wait_for(condition, seconds: float = 120.0) -> float:
    """Seconds until ``condition()`` holds."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > seconds:
            raise SystemExit(f"nothing happened within {seconds} s")
        time.sleep(0.02)
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(2)
    found = {"load average at start": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        # By another process, so that the simulator's memory is not counted.
        writer = multiprocessing.get_context("spawn").Process(target=write_large_case, args=(Path(folder),))
        writer.start()
        writer.join()
        case = read_case(find_case(next(Path(folder).glob("BraTS*"))))
    found["memory with the case, MB"] = memory_mb()

    began = time.perf_counter()
    viewer = ModalityViewer(case, Predictor.from_checkpoint("tiny"))
    found["seconds to open"] = round(time.perf_counter() - began, 2)
    found["slice step while it segments, ms: median, max"] = scroll(viewer)
    if not viewer.wait(600):
        raise SystemExit("no segmentation within 600 s")
    found["seconds to the first segmentation and its scores"] = round(time.perf_counter() - began, 1)
    found["slice step, ms: median, max"] = scroll(viewer)
    found["memory after the first segmentation, MB"] = memory_mb()
    for name in ("t1", "t2"):
        viewer.controls.given[name].value = False
        viewer.wait(600)
    found["memory after three subsets, MB"] = memory_mb()
    viewer.close()

    viewer = ModalityViewer(case, Predictor(SMML("tiny"), None, window=48))
    found["1 mm: seconds to the first progress"] = round(wait_for(lambda: viewer.controls.progress.value > 0), 1)
    found["1 mm: slice step while it segments, ms: median, max"] = scroll(viewer)
    viewer.controls.cancel.click()
    found["1 mm: seconds from Cancel to a free worker"] = round(wait_for(lambda: viewer.wait(0)), 1)
    alive = any(thread.name == "smml-viewer" for thread in threading.enumerate())
    if "cancelled" not in viewer.controls.status.value or not alive:
        raise SystemExit("the run was not cancelled, or the worker died of it")
    found["memory at the end, MB"] = memory_mb()
    viewer.close()
    found["load average at end"] = os.getloadavg()[0]
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / "large.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
