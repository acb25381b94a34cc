"""The contribution map and the intervals of volumes: what is painted, said and computed, and when."""

import math
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from viewer_phantom import FakePredictor, phantom

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.inference import contributions
from smml.modalities import MODALITIES, SUBSETS
from smml.models.intervals import VolumeIntervals
from smml.viewer import ModalityViewer, viewer_picture
from smml.viewer.display import Display
from smml.viewer.panel import contribution_sums
from smml.viewer.render import CONTRIBUTION_COLOURS, layers_of, render_tissue
from smml.viewer.worker import Result, Worker

SHORT = 10.0
INTERVALS = VolumeIntervals(
    100, "student", {subset: dict.fromkeys(REGIONS, ((0.5, 1.0), (1.0, 2.0))) for subset in SUBSETS}
)


class TellingPredictor(FakePredictor):
    """Calls ET where T1ce is given, and takes FLAIR for a sign that the rest of the core is none."""

    @staticmethod
    def says(case, subset):
        labels = case.label.copy()
        if "t1ce" not in subset:
            labels[labels == 3] = 2
        if "flair" in subset:
            labels[labels == 1] = 2
        return labels

    def segment(self, encoding, subset, **options):
        found = super().segment(encoding, subset, **options)
        one_hot = np.stack([found.labels == value for value in range(4)]).astype(np.float32)
        return type(found)(**{**vars(found), "probabilities": one_hot})


@pytest.fixture
def show():
    made = []

    def make(predictor, case=None):
        viewer = ModalityViewer(case or phantom("LPS"), predictor, size=160)
        made.append(viewer)
        assert viewer.wait(SHORT)
        return viewer

    yield make
    for viewer in made:
        viewer.close()


def tissue(viewer, **changes):
    """The axial plane at one pixel a voxel, uint8, and the volumes on the display grid."""
    display = Display.of(viewer.case)
    state = viewer.state.changed(opacity=1.0, **changes)
    layers = layers_of(viewer.case, display, state, viewer.result, viewer._contribution())
    return render_tissue(state, display, layers, "axial", display.plane_shape("axial")), display


def test_what_speaks_for_a_region_is_blue_what_speaks_against_it_orange_and_the_rest_untouched(show):
    viewer = show(TellingPredictor())
    colours = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in CONTRIBUTION_COLOURS]

    def painted(colour):
        picture, display = tissue(viewer)
        return (picture == colour).all(axis=-1), display

    viewer.show(overlay="contribution", contributor="t1ce", compared="ET")
    assert viewer.wait(SHORT)
    blue, display = painted(colours[-1])
    label = display.cut(display.turned(viewer.case.label), "axial", viewer.state.position[2])
    assert np.array_equal(blue, label == 3)
    assert not painted(colours[0])[0].any()
    viewer.show(contributor="flair", compared="TC")
    assert np.array_equal(painted(colours[0])[0], label == 1)
    bare, _ = tissue(viewer, overlay="none")
    far = label == 0
    # No sequence at all counts as the prevalence, so a little is taken away everywhere.
    assert np.abs(tissue(viewer)[0].astype(int) - bare)[far].max() < 60
    viewer.show(contributor="t2", compared="TC")
    assert not painted(colours[0])[0].any()
    assert not painted(colours[-1])[0].any()


def test_contributions_are_computed_once_when_first_shown_and_never_by_passing_over_them(show):
    predictor = TellingPredictor()
    viewer = show(predictor)
    for _ in range(6):
        viewer.handle("axial", {"kind": "key", "key": "t"})
        assert viewer.state.overlay != "contribution"
    assert viewer.wait(SHORT)
    assert len(predictor.calls) == 1
    assert viewer.contributions is None
    assert viewer.controls.contributor.disabled
    viewer.controls.overlay.value = "contribution"
    assert viewer.wait(SHORT)
    assert len(predictor.calls) == 1 + len(SUBSETS)
    viewer.controls.contributor.value = "t2"
    viewer.controls.compared.value = "ET"
    viewer.controls.given["t1"].value = False
    viewer.controls.overlay.value = "truth"
    viewer.controls.overlay.value = "contribution"
    assert viewer.wait(SHORT)
    assert len(predictor.calls) == 1 + len(SUBSETS) + 1
    assert len(predictor.encodings) == 1


def test_the_page_has_the_sums_in_ml_the_value_at_the_crosshair_and_plain_words(show):
    case, predictor = phantom("LPS"), TellingPredictor()
    viewer = show(predictor, case)
    assert viewer.controls.contributions.value == ""
    predictor.gate.clear()
    viewer.show(overlay="contribution", contributor="t1ce", compared="ET", position=(21, 24, 18))
    assert "Not computed yet" in viewer.controls.contributions.value
    predictor.gate.set()
    assert viewer.wait(SHORT)
    found = contributions(predictor, predictor.encode(case))
    page = viewer.controls.contributions.value
    for name in ("flair", "t1ce"):
        for region in REGIONS:
            assert f">{found.ml[name][region]:+.1f}<" in page
    assert f">{found.expected_ml['WT']:.1f}<" in page
    assert page.count("font-weight:bold") == 1
    assert "not whether it moved it to the truth" in page
    assert "T1ce makes ET here" in viewer.controls.legend.value
    assert "more likely, by 0.5 or more" in viewer.controls.legend.value
    at = found.map("t1ce", "ET")[Display.of(case).file_voxel((21, 24, 18))]
    assert f"T1ce to the probability of ET {at:+.2f}" in viewer.controls.readout.value
    viewer.show(overlay="prediction")
    assert viewer.controls.contributions.value == ""


def test_the_rows_of_the_sums_add_up():
    case, predictor = phantom(), TellingPredictor()
    rows = contribution_sums(contributions(predictor, predictor.encode(case)))
    assert list(rows) == ["before any sequence", "FLAIR", "T1ce", "T1", "T2", "expected volume"]
    for region in REGIONS:
        *parts, total = (float(row[region]) for row in rows.values())
        assert sum(parts) == pytest.approx(total, abs=0.3), "rounded"


@pytest.fixture
def start():
    made = []

    def make(predictor):
        worker = Worker(phantom(), predictor, lambda event: heard.append((event.kind, event.subset)))
        made.append(worker)
        return worker, heard

    heard = []
    yield make
    for worker in made:
        worker.close()


def test_a_wish_comes_before_contributions_which_are_taken_up_again(start):
    predictor = TellingPredictor(held=True)
    worker, heard = start(predictor)
    worker.request_contributions()
    assert predictor.begun.wait(SHORT)
    worker.request(("t2",))
    until = time.monotonic() + SHORT
    while not predictor.given_up and time.monotonic() < until:
        time.sleep(0.001)
    predictor.gate.set()
    assert worker.wait(SHORT)
    assert [kind for kind, _ in heard if kind in ("done", "contributed")] == ["done", "contributed"]
    assert len(predictor.calls) == 1 + 1 + len(SUBSETS)


def test_contributions_that_became_complete_although_a_wish_came_are_not_computed_again(start):
    class Deaf(TellingPredictor):
        """Does not look at ``cancelled``, like a model with a single window."""

        def segment(self, encoding, subset, **options):
            return super().segment(encoding, subset, **{**options, "cancelled": lambda: False})

    predictor = Deaf(held=True)
    worker, heard = start(predictor)
    worker.request_contributions()
    assert predictor.begun.wait(SHORT)
    worker.request(("t2",))
    predictor.gate.set()
    assert worker.wait(SHORT)
    assert [kind for kind, _ in heard if kind in ("done", "contributed")] == ["contributed", "done"]
    assert len(predictor.calls) == len(SUBSETS) + 1


def test_cancelled_contributions_stay_away_until_they_are_asked_for_again(show):
    predictor = TellingPredictor()
    viewer = show(predictor)
    predictor.gate.clear()
    predictor.begun.clear()
    viewer.show(overlay="contribution")
    assert predictor.begun.wait(SHORT)
    assert "what each of FLAIR, T1ce, T1, T2 contributed" in viewer.controls.status.value
    viewer.controls.cancel.click()
    assert viewer.wait(SHORT)
    predictor.gate.set()
    assert viewer.contributions is None
    viewer.show(overlay="truth")
    viewer.show(overlay="contribution")
    assert viewer.wait(SHORT)
    assert viewer.contributions is not None


def test_what_is_saved_holds_a_picture_and_words_and_no_volume(show):
    viewer = show(TellingPredictor())
    plain = viewer._repr_mimebundle_()["image/png"]
    viewer.show(overlay="contribution", contributor="t1ce", compared="ET")
    assert viewer.wait(SHORT)
    assert len(viewer._repr_mimebundle_()["image/png"]) < 1.5 * len(plain)
    assert len(viewer.controls.contributions.value) < 6000


def test_a_volume_stands_with_its_interval_where_the_model_has_one(show):
    predictor = TellingPredictor()
    viewer = show(predictor)
    assert "interval" not in viewer.controls.scores.value
    predictor.intervals = INTERVALS
    for case in (phantom("LPS"), phantom("LPS", label=False)):
        viewer = show(FakePredictor() if case.label is None else predictor, case)
        if case.label is None:
            viewer._worker._predictor.intervals = INTERVALS
            viewer.show(given="t2")
            assert viewer.wait(SHORT)
        page = viewer.controls.scores.value
        for region in REGIONS:
            volume = viewer.result.volumes["mean"][region]
            assert volume.low <= volume.ml <= volume.high
            assert f">{volume.ml:.1f}<" in page
            assert f">{volume.low:.1f} to {volume.high:.1f}<" in page
        assert "90 % of cases like the 100 that they were fitted on" in page
        assert "promise nothing of patients" in page
        viewer.controls.source.value = "branch 1"
        assert viewer.wait(SHORT)
        assert "interval" not in viewer.controls.scores.value, "they are of the mean alone"


def test_intervals_of_the_students_stand_beside_their_mean_where_there_is_refinement():
    case, predictor = phantom("LPS"), TellingPredictor()
    found = predictor.segment(predictor.encode(case), MODALITIES)
    result = Result.of(replace(found, student=replace(found, intervals=INTERVALS)))
    assert result.fitted_on == 100
    for source, has in {"refined": False, "mean": True, "branch 1": False, "branch 2": False}.items():
        assert all(math.isnan(volume.low) != has for volume in result.volumes[source].values()), source


def test_a_static_picture_shows_contributions_that_are_handed_over():
    case, predictor = phantom("LPS"), TellingPredictor()
    encoding = predictor.encode(case)
    result = predictor.segment(encoding, MODALITIES, progress=lambda *_: None)
    found = contributions(predictor, encoding)
    options = {"overlay": "contribution", "contributions": found}
    one, other = (viewer_picture(case, result, contributor=name, region="ET", **options) for name in ("t1ce", "t2"))
    assert one.shape == other.shape
    assert (one != other).any()
    blue = (one.astype(int)[..., 2] - one[..., 0]) > 100
    assert blue.any()
    with pytest.raises(InputError, match=re.escape("smml.inference.contributions(predictor, encoding)")):
        viewer_picture(case, result, overlay="contribution")
    with pytest.raises(InputError, match="no contribution of 'pet'"):
        viewer_picture(case, result, contributor="pet", **options)
    with pytest.raises(InputError, match="region must be one of WT, TC, ET, found 'ED'"):
        viewer_picture(case, result, region="ED", **options)
