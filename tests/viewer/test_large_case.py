"""A case of full size opens and scrolls, and a long segmentation tells how far it is and can be given up."""

import numpy as np
import pytest
import torch

from smml.data import Case
from smml.inference import Predictor
from smml.models import SMML
from smml.viewer import ModalityViewer
from smml.viewer.display import ANATOMICAL_PLANES

FULL = (240, 240, 155)


def made_case(shape, modalities=("flair", "t2")) -> Case:
    """An ellipsoid of noise with a lesion off its middle."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij", sparse=True)
    inside = sum(axis**2 for axis in grid) < 0.8
    random = np.random.default_rng(0)
    volumes = {name: random.random(shape, np.float32) * 100 * inside + 50 * inside for name in modalities}
    label = (sum((axis - 0.2) ** 2 for axis in grid) < 0.05).astype(np.uint8) * 2
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Case("large", volumes, label, affine, "brats2021")


def test_a_case_of_full_size_opens_and_every_slice_can_be_reached():
    viewer = ModalityViewer(made_case(FULL), size=200)
    assert viewer.state.overlay == "truth"
    for plane, last in zip(ANATOMICAL_PLANES, reversed(FULL), strict=True):
        slider = viewer.controls.slices[plane]
        assert slider.max - slider.min > 0.85 * last, "the ellipsoid reaches that far"
        before = bytes(viewer.controls.planes[plane].png)
        for index in (slider.min, slider.max):
            slider.value = index
            assert bytes(viewer.controls.planes[plane].png) != before
    viewer.close()


@pytest.fixture
def slow_viewer():
    """A case of several batches of windows before a real network."""
    torch.manual_seed(0)
    viewer = ModalityViewer(
        made_case((64, 64, 64)), Predictor(SMML("tiny"), None, window=32, overlap=0.0), subset="t2", size=120
    )
    yield viewer
    viewer.close()


def test_progress_rises_and_cancelling_leaves_a_viewer_that_goes_on(slow_viewer, monkeypatch):
    monkeypatch.setattr("smml.viewer.worker._PROGRESS_EVERY", 0.0)
    viewer = slow_viewer
    assert viewer.wait(120)
    first = viewer.result
    shares = []

    def watch(change):
        shares.append(change["new"])
        if change["new"] and viewer.result is first and len(cancelled) == 0:
            cancelled.append(change["new"])
            viewer.controls.cancel.click()

    cancelled = []
    viewer.controls.progress.observe(watch, "value")
    viewer.controls.given["flair"].value = True
    assert viewer.wait(120)
    assert 0 < cancelled[0] < 1, "after the first batch of windows, before the last"
    assert "cancelled" in viewer.controls.status.value
    viewer.controls.slices["axial"].value += 1
    assert viewer.wait(120)
    assert viewer.result is first, "what was given up did not come after all"
    assert viewer.state.given == ("t2",)
    assert viewer.controls.progress.layout.visibility == "hidden"

    shares.clear()
    viewer.controls.given["flair"].value = True
    assert viewer.wait(120)
    assert viewer.result.subset == ("flair", "t2")
    rising = [share for share in shares if share]
    assert rising == sorted(rising)
    assert len(rising) >= 2
