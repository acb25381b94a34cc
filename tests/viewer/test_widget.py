"""The front without a browser: setting a control's value is what a reader's click comes to."""

import base64
import dataclasses
import gc
import io
import re
import threading
import tracemalloc
import weakref
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest
from PIL import Image
from viewer_phantom import FakePredictor, phantom

from smml.errors import InputError
from smml.modalities import MODALITIES, SUBSETS
from smml.viewer import ModalityViewer
from smml.viewer.display import ANATOMICAL_PLANES, Display
from smml.viewer.plane import PlaneImage
from smml.viewer.render import encode_png
from smml.viewer.worker import Event

SHORT = 10.0


@pytest.fixture
def show():
    """Make viewers that are closed with the test."""
    made = []

    def make(case=None, predictor=None, *, wait=True, **options):
        viewer = ModalityViewer(case or phantom("LPS"), predictor, size=160, **options)
        made.append(viewer)
        assert not wait or viewer.wait(SHORT)
        return viewer

    yield make
    for viewer in made:
        viewer.close()


def pixels(viewer, plane="axial") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(viewer.controls.planes[plane].png))).astype(int)


def counted(viewer) -> dict[str, list]:
    """Frames that reach each plane from here on."""
    frames = {plane: [] for plane in ANATOMICAL_PLANES}
    for plane, canvas in viewer.controls.planes.items():
        canvas.observe(lambda change, plane=plane: frames[plane].append(change["new"]), "png")
    return frames


def test_every_slider_has_a_name_for_each_of_its_handles(show):
    controls = show(None, FakePredictor()).controls
    named = {name: words for canvas in controls.planes.values() for name, words in canvas.handles.items()}
    handles = {
        widget: 1 for widget in controls.descendants() if isinstance(widget, widgets.FloatSlider | widgets.IntSlider)
    }
    handles |= {widget: 2 for widget in controls.descendants() if isinstance(widget, widgets.FloatRangeSlider)}
    assert len(handles) == 5
    for slider, number in handles.items():
        (words,) = [named[name] for name in slider._dom_classes if name in named]
        assert len(words) == number
    assert len({word for words in named.values() for word in words}) == sum(handles.values()), "no name twice"


def test_unchecking_a_modality_segments_without_it(show):
    predictor = FakePredictor()
    viewer = show(None, predictor)
    assert viewer.result.subset == MODALITIES
    viewer.controls.given["t1ce"].value = False
    assert viewer.wait(SHORT)
    assert viewer.state.given == viewer.result.subset == ("flair", "t1", "t2")
    assert "FLAIR + T1 + T2" in viewer.controls.status.value
    assert viewer.controls.planes["axial"].png
    assert len(predictor.encodings) == 1


def test_what_the_model_is_given_is_apart_from_what_is_shown(show):
    predictor = FakePredictor()
    viewer = show(None, predictor, subset="t2")
    before = pixels(viewer)
    viewer.controls.shown.value = "t1ce"
    assert viewer.state.given == ("t2",)
    assert predictor.calls == [("t2",)]
    assert viewer.controls.given["t1ce"].value is False
    viewer.controls.overlay.value = "none"
    assert (pixels(viewer) != before).any()


def test_the_empty_set_is_refused_in_words_and_the_check_stays(show):
    viewer = show(None, FakePredictor(), subset="flair")
    viewer.controls.given["flair"].value = False
    assert viewer.controls.given["flair"].value is True
    assert viewer.state.given == ("flair",)
    assert "FLAIR is the only modality left" in viewer.controls.status.value


def test_a_modality_that_the_case_lacks_is_greyed_and_presets_with_it(show):
    viewer = show(phantom(modalities=("flair", "t2")), FakePredictor())
    assert [viewer.controls.given[name].disabled for name in MODALITIES] == [False, True, True, False]
    assert viewer.controls.named_subsets["T1 pair"].disabled
    viewer.controls.named_subsets["FLAIR only"].click()
    assert viewer.wait(SHORT)
    viewer.controls.named_subsets["all"].click()
    assert viewer.wait(SHORT)
    assert viewer.result.subset == ("flair", "t2")
    viewer.handle("axial", {"kind": "key", "key": "2"})
    assert viewer.state.given == ("flair", "t2"), "nor by its key"
    with pytest.raises(InputError, match="only FLAIR, T2 was read"):
        ModalityViewer(phantom(modalities=("flair", "t2")), FakePredictor(), subset="t1ce")


def test_toggling_quickly_ends_on_the_last_choice_and_the_picture_says_so(show):
    predictor = FakePredictor(held=True)
    viewer = ModalityViewer(phantom(), predictor, size=160)
    shown = []
    viewer.controls.status.observe(lambda change: shown.append(change["new"]), "value")
    for name in ("t1", "t2", "t1", "flair", "t2", "t1", "flair", "t1ce"):
        viewer.controls.given[name].value = not viewer.controls.given[name].value
    assert viewer.state.given == ("flair", "t2")
    assert viewer.result is None
    predictor.gate.set()
    assert viewer.wait(SHORT)
    assert viewer.result.subset == ("flair", "t2")
    done = [text for text in shown if "segmented from" in text]
    assert done
    assert all("FLAIR + T2<" in text for text in done), "no earlier result was ever announced"
    viewer.close()


def test_a_late_result_never_lands_on_a_newer_choice(show):
    """Even where the worker has already decided to announce it, which no wish of a reader can bring about for sure."""
    viewer = show(None, FakePredictor())
    old = dataclasses.replace(viewer.result, subset=("t1",))
    viewer._hear(Event("done", ("t1",), result=old))
    assert viewer.result.subset == MODALITIES


def test_one_frame_per_plane_and_change_and_never_a_blank_one(show):
    viewer = show(None, FakePredictor())
    for subset in SUBSETS:
        viewer.show(given=subset)
        assert viewer.wait(SHORT)
    frames = counted(viewer)
    for number in range(50):
        viewer.show(given=SUBSETS[number % 2 + 3])
    assert viewer.wait(SHORT)
    for plane, seen in frames.items():
        assert 49 <= len(seen) <= 50, f"{plane}: a seen subset is one frame, not a blank and a frame"
        assert all(np.asarray(Image.open(io.BytesIO(frame))).mean() > 5 for frame in seen)


def test_click_wheel_and_keys_move_all_three_planes(show):
    viewer = show(None, FakePredictor())
    frames = counted(viewer)
    viewer.handle("axial", {"kind": "point", "x": 0.25, "y": 0.75})
    x, y, z = viewer.state.position
    first, end = Display.of(viewer.case).box[0]
    assert x == end - 1 - (end - first) // 4, "a quarter from the left is far to the patient's right"
    assert viewer.controls.slices["sagittal"].value == x
    assert viewer.controls.slices["coronal"].value == y
    assert all(len(seen) == 1 for seen in frames.values())
    viewer.handle("axial", {"kind": "wheel", "steps": 2})
    viewer.handle("axial", {"kind": "key", "key": "PageDown", "fast": False})
    viewer.handle("coronal", {"kind": "key", "key": "ArrowUp", "fast": True})
    assert viewer.state.position == (x, y, z + 6)
    assert viewer.controls.slices["axial"].value == z + 6
    viewer.controls.slices["axial"].value = z
    assert viewer.state.position == (x, y, z)
    viewer.handle("sagittal", {"kind": "key", "key": "Home"})
    assert viewer.case.label[Display.of(viewer.case).file_voxel(viewer.state.position)] > 0


def test_what_no_plane_can_report_changes_nothing(show):
    viewer = show(None, FakePredictor())
    before = viewer.state
    for event in ({}, {"kind": "pinch"}, {"kind": "point", "x": 0.5}, {"kind": "key"}, {"kind": "key", "key": "F5"}):
        viewer.handle("axial", event)
    assert viewer.state == before
    with pytest.raises(InputError, match="plane must be one of axial, coronal, sagittal, found 'oblique'"):
        viewer.handle("oblique", {"kind": "wheel", "steps": 1})
    viewer.close()
    viewer.handle("axial", {"kind": "wheel", "steps": 1})
    assert viewer.state == before


def test_a_wheel_that_turns_while_a_result_is_drawn_is_not_taken_for_an_echo(show):
    predictor = FakePredictor(held=True)
    viewer = ModalityViewer(phantom(), predictor, size=160)
    x, y, z = viewer.state.position
    turned = threading.Thread(target=viewer.handle, args=("axial", {"kind": "wheel", "steps": 1}))

    def turn(_):
        # On the worker's thread, which sets the controls just now.
        turned.start()
        turned.join(0.5)

    viewer.controls.source.observe(turn, "options")
    predictor.gate.set()
    assert viewer.wait(SHORT)
    turned.join(SHORT)
    assert viewer.state.position == (x, y, z + 1)
    viewer.close()


def test_keys_reach_everything_that_the_mouse_does(show):
    viewer = show(None, FakePredictor())

    def press(key):
        viewer.handle("axial", {"kind": "key", "key": key})
        return viewer.state

    assert press("1").given == ("t1ce", "t1", "t2")
    assert viewer.controls.given["flair"].value is False
    assert press("b").shown == "t1ce"
    assert press("t").overlay == "truth"
    assert press(" ").overlay == "none"
    assert press(" ").overlay == "truth"
    assert press("o").outline is True
    assert press("O").outline is False, "Caps Lock changes no meaning"
    assert press("o").outline is True
    assert press("c").crosshair is False
    assert press("]").opacity == pytest.approx(0.55)
    assert viewer.controls.overlay.value == "truth"
    before = viewer.state
    assert press("Q") == before


def test_window_and_level_by_slider_drag_and_auto(show):
    viewer = show(None, FakePredictor())
    auto = viewer.state.window()
    viewer.controls.window.value = (100.0, 300.0)
    assert viewer.state.window() == (100.0, 300.0)
    viewer.handle("axial", {"kind": "drag", "x": 0.1, "y": 0.0})
    low, high = viewer.state.window()
    assert high - low > 200
    assert (low + high) / 2 == pytest.approx(200)
    viewer.controls.shown.value = "t2"
    assert viewer.state.window() != (low, high), "each sequence has a window of its own"
    viewer.controls.shown.value = "flair"
    assert viewer.state.window() == pytest.approx((low, high))
    viewer.controls.auto.click()
    assert viewer.state.window() == auto
    viewer.show(windows={**viewer.state.windows, "flair": (500.0, 500.0)})
    assert np.isfinite(pixels(viewer)).all()


def test_read_out_names_voxel_millimetres_intensity_and_labels(show):
    case = phantom("LPS")
    viewer = show(case, FakePredictor())
    viewer.show(position=(21, 24, 18))
    voxel = Display.of(case).file_voxel((21, 24, 18))
    text = viewer.controls.readout.value
    assert f"voxel {voxel[0]}, {voxel[1]}, {voxel[2]}" in text
    assert "R 12.0" in text
    assert "A 12.0" in text
    assert "S 15.0 mm" in text
    assert f"T1ce {case.volumes['t1ce'][voxel]:.4g}" in text
    assert text.count("ET") == 2, "truth and prediction"


def test_a_prediction_has_the_classes_of_the_case_that_it_was_made_from(show):
    """Value 3 is ET in most data sets and NET in BraTS 2015."""
    viewer = show(dataclasses.replace(phantom("LPS"), layout="brats2015"), FakePredictor())
    viewer.show(position=(21, 24, 18))
    assert viewer.controls.readout.value.count("</span> NET") == 2, "truth and prediction"
    assert [trace.name for trace in viewer.mesh().data] == ["brain", "WT", "TC"], "there is no ET"
    viewer.show(overlay="prediction", regions=("ET",))
    painted = pixels(viewer)
    viewer.show(regions=())
    assert np.array_equal(pixels(viewer), painted), "nor is any painted"


def test_overlays_regions_and_sources_change_the_picture_and_the_legend(show):
    viewer = show(None, FakePredictor())
    seen = {}
    for overlay in ("prediction", "truth", "difference", "uncertainty", "none"):
        viewer.controls.overlay.value = overlay
        seen[overlay] = pixels(viewer).tobytes()
    assert len(set(seen.values())) >= 4
    viewer.controls.overlay.value = "truth"
    full = pixels(viewer)
    for region in ("TC", "ET"):
        viewer.controls.regions[region].value = False
    assert "whole tumour" in viewer.controls.legend.value
    assert "enhancing" not in viewer.controls.legend.value
    assert (pixels(viewer) != full).any()
    viewer.controls.overlay.value = "prediction"
    assert viewer.controls.source.options == ("mean", "branch 1", "branch 2")
    mean = pixels(viewer)
    viewer.controls.source.value = "branch 2"
    assert viewer.wait(SHORT)
    assert (pixels(viewer) != mean).any()
    assert (viewer.result.subset, "branch 2") in viewer.scores
    assert "branch 2" in viewer.controls.scores.value


def test_cancelling_goes_back_to_what_is_on_screen(show):
    predictor = FakePredictor()
    viewer = show(None, predictor)
    predictor.gate.clear()
    viewer.controls.given["t2"].value = False
    assert viewer.controls.cancel.layout.visibility == "visible"
    viewer.controls.cancel.click()
    assert viewer.wait(SHORT)
    assert viewer.state.given == viewer.result.subset == MODALITIES
    assert viewer.controls.given["t2"].value is True
    assert viewer.controls.cancel.layout.visibility == "hidden"
    predictor.gate.set()
    viewer.controls.given["t2"].value = False
    assert viewer.wait(SHORT)
    assert viewer.result.subset == ("flair", "t1ce", "t1")


def test_a_failure_is_said_and_the_viewer_goes_on(show):
    predictor = FakePredictor()
    viewer = show(None, predictor)
    predictor.fails = RuntimeError("<out of memory>")
    viewer.controls.given["t2"].value = False
    assert viewer.wait(SHORT)
    assert "RuntimeError: &lt;out of memory&gt;" in viewer.controls.status.value
    assert viewer.state.given == viewer.result.subset == MODALITIES, "checks and picture agree"
    viewer.controls.slices["axial"].value += 1
    predictor.fails = None
    for name in ("t1", "t2"):
        viewer.controls.given[name].value = False
    assert viewer.wait(SHORT)
    assert viewer.result.subset == ("flair", "t1ce")


@pytest.mark.parametrize("ends", ["fails", "is cancelled"])
def test_a_first_segmentation_that_brings_nothing_can_be_asked_for_again(show, ends):
    """A case of one sequence has no other check to change."""
    predictor = FakePredictor(held=True)
    viewer = show(phantom("RAS", modalities=("flair",)), predictor, wait=False)
    assert predictor.begun.wait(SHORT)
    if ends == "fails":
        predictor.fails = RuntimeError("out of memory")
        predictor.gate.set()
    else:
        viewer.controls.cancel.click()
    assert viewer.wait(SHORT)
    assert "press a subset to try again" in viewer.controls.status.value
    predictor.fails = None
    predictor.gate.set()
    viewer.controls.named_subsets["all"].click()
    assert viewer.wait(SHORT)
    assert viewer.result.subset == ("flair",)
    begun = len(predictor.calls)
    viewer.controls.named_subsets["all"].click()
    viewer.show(given="flair")
    assert viewer.wait(SHORT)
    assert len(predictor.calls) == begun, "what is on screen is not made again"


def test_the_scores_of_what_is_shown_come_whatever_the_cache_let_go_or_was_cancelled(show):
    predictor = FakePredictor()
    viewer = show(None, predictor, cache_bytes=0)
    viewer.compute_rest()
    assert viewer.wait(SHORT)
    viewer.show(source="branch 1")
    assert viewer.wait(SHORT)
    assert (MODALITIES, "branch 1") in viewer.scores
    predictor.gate.clear()
    viewer.controls.given["t2"].value = False
    viewer.show(source="branch 2")
    viewer.controls.cancel.click()
    assert viewer.wait(SHORT)
    assert (MODALITIES, "branch 2") in viewer.scores
    predictor.gate.set()


def test_the_bars_fill_as_subsets_are_computed_and_the_rest_on_wish(show):
    viewer = show(None, FakePredictor())
    assert viewer.controls.chart.value.count("Dice WT") == 2, "its own bar, in the title and in the spoken text"
    viewer.controls.rest.click()
    assert viewer.wait(SHORT)
    assert viewer.controls.chart.value.count("Dice WT") == 2 * len(SUBSETS)
    assert viewer.controls.rest.disabled
    assert viewer.result.subset == MODALITIES, "the picture stayed"


def test_two_viewers_do_not_disturb_each_other(show):
    case = phantom()
    one, other = show(case, FakePredictor()), show(case, FakePredictor())
    frames = counted(other)
    state = other.state
    one.controls.given["t1"].value = False
    one.handle("axial", {"kind": "wheel", "steps": 3})
    assert one.wait(SHORT)
    assert other.state == state
    assert not any(frames.values())
    one.close()
    other.controls.given["t2"].value = False
    assert other.wait(SHORT)
    assert other.result.subset == ("flair", "t1ce", "t1")


def test_closing_frees_case_predictor_and_viewer():
    from ipywidgets.widgets.widget import _instances

    before = set(_instances)
    case, predictor = phantom(), FakePredictor()
    viewer = ModalityViewer(case, predictor, size=160)
    assert viewer.wait(SHORT)
    viewer.controls.mesh.click()
    kept = [weakref.ref(thing) for thing in (case, predictor, viewer, viewer.result)]
    viewer.close()
    viewer.close()
    del case, predictor, viewer
    gc.collect()
    assert [thing() for thing in kept] == [None] * 4
    assert set(_instances) == before, "no widget is left behind"


@pytest.mark.parametrize(
    ("case", "predictor"),
    [(phantom(), None), (phantom(label=False), None), (phantom(modalities=("t1",)), FakePredictor())],
    ids=["no predictor", "bare", "one sequence"],
)
@pytest.mark.parametrize("interactive", [True, False])
def test_closing_leaves_no_widget_whatever_was_left_out(case, predictor, interactive):
    from ipywidgets.widgets.widget import _instances

    before = set(_instances)
    ModalityViewer(case, predictor, size=160, interactive=interactive).close()
    assert set(_instances) == before


def workers() -> int:
    return sum(thread.name == "smml-viewer" for thread in threading.enumerate())


def test_of_viewers_made_in_a_row_under_one_name_the_last_alone_is_alive():
    from ipywidgets.widgets.widget import _instances

    case, predictor, made, widgets, before = phantom(), FakePredictor(), [], [], set(_instances)
    for _ in range(4):
        viewer = ModalityViewer(case, predictor, size=160)
        assert viewer.wait(SHORT)
        made.append(weakref.ref(viewer))
        gc.collect()
        widgets.append(len(_instances))
    assert [thing() is not None for thing in made] == [False] * 3 + [True]
    assert workers() == 1
    assert widgets == [widgets[0]] * 4
    viewer.controls.given["t1"].value = False
    assert viewer.wait(SHORT)
    assert viewer.result.subset == ("flair", "t1ce", "t2"), "and it still answers"
    del viewer
    gc.collect()
    assert made[-1]() is None
    assert workers() == 0
    assert set(_instances) == before


@pytest.fixture
def cell(monkeypatch):
    """``cell(name, run)``: from here on that run of a notebook's cell makes the viewers."""

    class Shell:
        def get_parent(self):
            return self.request

    shell = Shell()
    monkeypatch.setattr("smml.viewer.widget.get_ipython", lambda: shell)

    def begin(name, run, code="viewer"):
        metadata = {} if name is None else {"cellId": name}
        shell.request = {"metadata": metadata, "content": {"code": code}, "header": {"msg_id": run}}

    return begin


@pytest.mark.parametrize("name", ["a", None], ids=["a front that names its cells", "one that does not"])
def test_running_a_cell_again_closes_what_it_showed_and_no_other(cell, name):
    """The notebook's ``Out`` keeps what a cell showed, run after run."""
    out = []

    def show(case=None):
        viewer = ModalityViewer(case or phantom(), FakePredictor(), size=160)
        viewer._repr_mimebundle_()
        out.append(viewer)

    cell("other", "1", code="other")
    show()
    for run in "2345":
        cell(name, run)
        show()
        show()
    assert [viewer._closed for viewer in out] == [False] + [True] * 6 + [False] * 2
    assert workers() == 3
    for viewer in out:
        viewer.close()


def test_a_viewer_on_screen_stays_without_a_name(cell):
    cell("a", "1")
    shown, placed, kept = ModalityViewer(phantom(), size=160), ModalityViewer(phantom(), size=160), []
    shown._repr_mimebundle_()
    root = placed.widget
    kept = [weakref.ref(shown), weakref.ref(placed)]
    del shown, placed
    gc.collect()
    assert all(thing() is not None for thing in kept)
    assert root.children
    for thing in kept:
        thing().close()
    gc.collect()
    assert [thing() for thing in kept] == [None, None]


def test_closing_one_of_two_viewers_frees_what_is_its_own_and_leaves_the_other(show):
    case, predictor = phantom(), FakePredictor()
    one, other = ModalityViewer(case, predictor, size=160), show(case, predictor)
    kept = [weakref.ref(one), predictor.encodings[0]]
    for subset in SUBSETS[:4]:
        one.show(given=subset)
        assert one.wait(SHORT)
        kept.append(weakref.ref(one.result))
    assert all(thing() is not None for thing in kept)
    one.close()
    del one
    gc.collect()
    assert [thing() for thing in kept] == [None] * 6
    assert sum(thread.name == "smml-viewer" for thread in threading.enumerate()) == 1, "the worker of the other"
    other.controls.given["t1"].value = False
    assert other.wait(SHORT)
    assert other.result.subset == ("flair", "t1ce", "t2")


def test_opening_and_closing_again_and_again_does_not_add_up():
    def round_trip():
        viewer = ModalityViewer(phantom(), FakePredictor(), size=160)
        assert viewer.wait(SHORT)
        viewer.close()

    round_trip()
    gc.collect()
    tracemalloc.start()
    try:
        round_trip()
        gc.collect()
        first = tracemalloc.get_traced_memory()[0]
        for _ in range(2):
            round_trip()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - first
    finally:
        tracemalloc.stop()
    # Twice as much if nothing but the volumes stayed.
    assert grown < sum(volume.nbytes for volume in phantom().volumes.values())


def test_without_a_predictor_or_a_truth_only_what_there_is_is_offered(show):
    bare = show(phantom(label=False))
    assert bare.controls.overlay.options == ("none",)
    truth = show(phantom())
    assert truth.controls.overlay.options == ("truth", "none")
    assert truth.picture().ndim == 3
    unlabelled = show(phantom(label=False), FakePredictor())
    assert unlabelled.controls.overlay.options == ("prediction", "uncertainty", "contribution", "none")
    assert "no truth" in unlabelled.controls.scores.value
    with pytest.raises(InputError, match="no truth"):
        bare.mesh()


def test_without_anywidget_plain_images_take_the_frames(show):
    viewer = show(None, FakePredictor(), interactive=False)
    canvas = viewer.controls.planes["axial"]
    assert isinstance(canvas, PlaneImage)
    before = canvas.value
    viewer.controls.slices["axial"].value += 1
    assert canvas.value != before
    assert bytes(canvas.value).startswith(b"\x89PNG")


def test_a_snapshot_is_written_or_given_to_the_browser(show, tmp_path, monkeypatch):
    viewer = show(None, FakePredictor(), subset="flair+t2")
    sent = []
    monkeypatch.setattr(viewer.controls.planes["axial"], "send", lambda content, buffers: sent.append(content))
    viewer.controls.snapshot.click()
    assert sent == [{"kind": "download", "name": "phantom_FLAIR+T2_prediction.png"}]
    viewer.picture(tmp_path / "view.png")
    assert Image.open(tmp_path / "view.png").size[0] >= 560
    with pytest.raises(InputError, match="png"):
        viewer.picture(tmp_path / "view.jpg")
    monkeypatch.chdir(tmp_path)
    plain = show(None, FakePredictor(), interactive=False)
    plain.controls.snapshot.click()
    assert list(tmp_path.glob("phantom_FLAIR+T1ce*.png"))
    assert viewer._repr_mimebundle_()["image/png"].startswith(b"\x89PNG"), "for readers without a kernel"


@pytest.fixture
def shown(monkeypatch) -> list[dict]:
    """What cells put out, in order; what is updated takes the place of what it was."""
    bundles = []

    def display(bundle, raw, display_id=False):
        bundles.append(bundle)
        place = len(bundles) - 1
        handle = SimpleNamespace(update=lambda bundle, raw: bundles.__setitem__(place, bundle))
        return handle if display_id else None

    monkeypatch.setattr("smml.viewer.widget.display", display)
    return bundles


def test_what_is_saved_has_a_picture_beside_the_widget_which_the_canvases_hide(show, shown):
    """JupyterLab without the kernel says "model not found", and shows nothing else of that output."""
    widget = "application/vnd.jupyter.widget-view+json"
    viewer = show(None, FakePredictor())
    viewer._ipython_display_()
    still, live = shown
    assert widget not in still
    assert "image/png" not in live, "once is enough"
    name, png = re.fullmatch(
        r'<div class="([\w-]+)"><img alt="[^"]+" src="data:image/png;base64,([^"]+)"></div>', still["text/html"]
    ).groups()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).shape, viewer.picture().shape)
    assert live[widget]["model_id"] == viewer.controls.root.model_id
    assert [canvas.still for canvas in viewer.controls.planes.values()] == [name, "", ""]
    assert "display: none" in viewer.controls.planes["axial"]._esm
    shown.clear()
    show(None, FakePredictor(), interactive=False)._ipython_display_()
    assert len(shown) == 1, "a plain image cannot hide it"


def test_what_is_saved_has_the_segmentation_that_came_after_it_was_shown(show, shown):
    """The last line of a cell shows a viewer before its worker has segmented anything."""
    predictor = FakePredictor(held=True)
    viewer = show(None, predictor, wait=False)
    viewer._ipython_display_()
    before = shown[0]
    predictor.gate.set()
    assert viewer.wait(SHORT)
    png = base64.b64encode(encode_png(viewer.picture(), small=True)).decode()
    assert png not in before["text/html"]
    assert png in shown[0]["text/html"]
    viewer.show(overlay="truth")
    viewer.controls.given["t2"].value = False
    assert viewer.wait(SHORT)
    assert png in shown[0]["text/html"], "once, not with every view"
    assert len(shown) == 2


def test_a_size_out_of_range_is_refused():
    with pytest.raises(InputError, match="size"):
        ModalityViewer(phantom(), size=10)
