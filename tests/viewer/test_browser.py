"""The viewer in JupyterLab in a real browser: what is clicked ends as the right pixels on the canvas.

The same case and weights are shown by a viewer in this process, without a browser; its frames are what the canvas must
hold. Screenshots are kept in build/viewer.
"""

import io
import time

import notebook_page
import numpy as np
import pytest
from PIL import Image

from smml.data import find_cases, read_case
from smml.inference import Predictor
from smml.viewer import ModalityViewer
from smml.viewer.display import ANATOMICAL_PLANES

pytestmark = pytest.mark.skipif(notebook_page.why_not() is not None, reason=str(notebook_page.why_not()))

NOTEBOOK = """
import torch
from smml.data import find_cases, read_case
from smml.inference import Predictor
from smml.viewer import ModalityViewer
torch.set_num_threads(2)
case = read_case(find_cases({root!r})[0])
predictor = Predictor.from_checkpoint("tiny")
predictor.spacing = None
viewer = ModalityViewer(case, predictor, size=240)
viewer
""".strip()
SECOND = "other = ModalityViewer(case, predictor, size=120)\nother"
SCREENSHOTS = notebook_page.ROOT / "build" / "viewer"


def canvas_pixels(page, number: int) -> np.ndarray:
    """What canvas ``number`` of the page shows, int [height, width, 3]."""
    script = """number => {
        const canvas = document.querySelectorAll('canvas.smml-plane')[number];
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return [data.height, data.width, Array.from(data.data)];
    }"""
    height, width, values = page.evaluate(script, number)
    return np.asarray(values, int).reshape(height, width, 4)[..., :3]


def wanted(viewer, plane: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(viewer.controls.planes[plane].png))).astype(int)


def assert_shows(page, viewer, what: str, seconds: float = 30.0) -> None:
    """All three canvases of the first viewer come to hold the frames of ``viewer``."""
    until = time.monotonic() + seconds
    for number, plane in enumerate(ANATOMICAL_PLANES):
        while True:
            seen, frame = canvas_pixels(page, number), wanted(viewer, plane)
            # A voxel on the edge between two classes may fall either way in another process.
            alike = seen.shape == frame.shape and (np.abs(seen - frame).max(axis=-1) > 8).mean() < 0.002
            if alike:
                break
            if time.monotonic() > until:
                page.screenshot(path=SCREENSHOTS / "failed.png")
                pytest.fail(f"{what}: the {plane} canvas does not show the frame that it should")
            time.sleep(0.1)


def test_toggling_and_moving_put_the_right_pixels_on_screen(small_cohort, tmp_path):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    case = read_case(find_cases(small_cohort)[0])
    predictor = Predictor.from_checkpoint("tiny")
    # On the case's own coarse grid: worse, and many times faster, which is all that pixels need.
    predictor.spacing = None
    twin = ModalityViewer(case, predictor, size=240)
    assert twin.wait(120)
    cells = [NOTEBOOK.format(root=str(small_cohort)), SECOND]
    with notebook_page.open_notebook(tmp_path, cells) as page:
        page.wait_for_function("document.querySelectorAll('canvas.smml-plane[data-frames]').length === 6")
        outputs = page.locator(".jp-OutputArea-output:has(canvas.smml-plane)")
        first, second = outputs.nth(0), outputs.nth(1)
        for output in (first, second):
            output.get_by_text("● segmented from FLAIR + T1ce + T1 + T2").wait_for()
        assert_shows(page, twin, "all modalities")
        page.screenshot(path=SCREENSHOTS / "all.png")
        page.evaluate(notebook_page.WATCH)
        untouched = [canvas_pixels(page, number) for number in (3, 4, 5)]

        for name in (*(f"{plane} slice" for plane in ANATOMICAL_PLANES), "opacity", "black", "white"):
            for output in (first, second):
                assert output.get_by_role("slider", name=name, exact=True).count() == 1, name

        # What the model is given.
        first.get_by_label("T1ce", exact=True).uncheck()
        first.get_by_text("● segmented from FLAIR + T1 + T2").wait_for()
        before = wanted(twin, "axial")
        twin.show(given=("flair", "t1", "t2"))
        assert twin.wait(60)
        assert (wanted(twin, "axial") != before).any(), "the subset must matter, or this test shows nothing"
        assert_shows(page, twin, "without T1ce")
        page.screenshot(path=SCREENSHOTS / "without-t1ce.png")

        # Wheel, click and keys, on the axial plane.
        axial = page.locator("canvas.smml-plane").nth(0)
        axial.scroll_into_view_if_needed()
        box = axial.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.wheel(0, -100)
        twin.handle("axial", {"kind": "wheel", "steps": 1})
        assert_shows(page, twin, "wheel")
        page.keyboard.down("Shift")
        page.mouse.wheel(0, 100)
        page.keyboard.up("Shift")
        twin.handle("axial", {"kind": "wheel", "steps": -5})
        assert_shows(page, twin, "wheel with Shift")
        point = (0.31, 0.62)
        page.mouse.click(box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"])
        twin.handle("axial", {"kind": "point", "x": point[0], "y": point[1]})
        assert_shows(page, twin, "click")
        for key in ("PageDown", "ArrowRight", "o", "t", "t"):
            page.keyboard.press(key)
            twin.handle("axial", {"kind": "key", "key": key})
        page.keyboard.press("Shift+Period")
        twin.handle("axial", {"kind": "key", "key": ".", "fast": True})
        assert_shows(page, twin, "keys")
        heard = page.locator(".smml-heard").nth(0)
        assert f"slice {twin.state.position[2]} of" in heard.inner_text()
        assert "predicted" in heard.inner_text()
        assert twin.state.overlay == "difference"
        page.screenshot(path=SCREENSHOTS / "difference.png")
        assert page.locator(".jp-Cell").count() == 2, "JupyterLab did not take the keys for its own"

        # What a sequence contributed, after a while.
        first.get_by_role("button", name="contribution").click()
        twin.show(overlay="contribution", compared="ET", contributor="t1ce")
        first.locator("select[title='region']").select_option("ET")
        first.locator("select[title='sequence']").select_option("T1ce")
        first.get_by_text("expected volume").wait_for()
        assert twin.wait(120)
        first.get_by_text("● segmented from FLAIR + T1 + T2").wait_for()
        assert twin.contributions is not None
        assert_shows(page, twin, "contribution")
        first.get_by_text("T1ce makes ET here").scroll_into_view_if_needed()
        page.screenshot(path=SCREENSHOTS / "contribution.png")
        first.get_by_role("button", name="difference").click()
        twin.show(overlay="difference")
        assert_shows(page, twin, "difference again")

        # Seen subsets, fast: never blank, ends on the last one.
        box_t1ce = first.get_by_label("T1ce", exact=True)
        for _ in range(50):
            box_t1ce.click()
        first.get_by_text("● segmented from FLAIR + T1 + T2").wait_for()
        assert_shows(page, twin, "50 toggles")
        seen = page.evaluate("window.smml")
        assert seen["looked"] > 50
        assert seen["blank"] == 0
        for number, pixels in zip((3, 4, 5), untouched, strict=True):
            assert np.array_equal(canvas_pixels(page, number), pixels), "the other viewer was disturbed"

        with page.expect_download() as download:
            first.get_by_role("button", name="snapshot").click()
        download.value.save_as(SCREENSHOTS / "snapshot.png")
        assert download.value.suggested_filename.endswith("_FLAIR+T1+T2_difference.png")
        assert Image.open(SCREENSHOTS / "snapshot.png").size[0] >= 560
    twin.close()
