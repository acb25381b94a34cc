"""``viewer.show``: what is not among a control's choices is refused in words, and what is on screen stays as it was."""

import pytest
from viewer_phantom import FakePredictor, phantom

from smml.errors import InputError
from smml.modalities import MODALITIES
from smml.viewer import ModalityViewer

SHORT = 10.0


@pytest.fixture(scope="module")
def opened():
    """A viewer for calls that change nothing in the end."""
    viewer = ModalityViewer(phantom("LPS"), FakePredictor(), size=160)
    assert viewer.wait(SHORT)
    yield viewer
    viewer.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"overlay": "x-ray"},
            "overlay must be one of prediction, truth, difference, uncertainty, contribution, none, found 'x-ray'",
        ),
        ({"shown": "pet"}, "shown must be one of flair, t1ce, t1, t2, found 'pet'"),
        ({"compared": ["WT"]}, "compared must be one of WT, TC, ET"),
        ({"contributor": "pet"}, "contributor must be one of flair, t1ce, t1, t2, found 'pet'"),
        ({"depth": 3}, "fields are given"),
        ({"given": ()}, "empty"),
        ({"source": "bogus"}, "source must be one of mean, branch 1, branch 2, found 'bogus'"),
        ({"source": "refined"}, "source must be one of mean, branch 1, branch 2, found 'refined'"),
        ({"regions": ("WT", "XX")}, "regions must be some of WT, TC, ET"),
        ({"regions": "WT"}, "regions must be some of WT, TC, ET"),
        ({"regions": 3}, "regions must be some of WT, TC, ET"),
        ({"opacity": 7.0}, "opacity must be a number from 0 .* to 1, found 7.0"),
        ({"opacity": float("nan")}, "opacity must be a number"),
        ({"opacity": "half"}, "opacity must be a number"),
        ({"outline": "yes"}, "outline must be True or False"),
        ({"crosshair": None}, "crosshair must be True or False"),
        ({"position": (1, 2)}, "position must be three numbers"),
        ({"position": (1, 2, float("inf"))}, "position must be three numbers"),
        ({"position": "mid"}, "position must be three numbers"),
        ({"hidden": "x-ray"}, "hidden must be None or one of prediction, truth"),
        ({"windows": {}}, "windows must give .* for each of flair, t1ce, t1, t2"),
        ({"windows": {"flair": (0, 1)}}, "windows must give"),
        ({"windows": None}, "windows must give"),
        ({"windows": dict.fromkeys(MODALITIES, (0, "white"))}, "windows: that of flair must be two numbers"),
        ({"windows": dict.fromkeys(MODALITIES, (9, 1))}, "windows: that of flair must be two numbers"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name_and_nothing_changes(opened, fields, message):
    before, frame = opened.state, bytes(opened.controls.planes["axial"].png)
    with pytest.raises(InputError, match=message):
        opened.show(**({"crosshair": not before.crosshair} | fields))
    assert opened.state == before
    assert bytes(opened.controls.planes["axial"].png) == frame
    opened.show(opacity=0.5, regions=["ET", "WT"])
    assert (opened.state.opacity, opened.state.regions) == (0.5, ("WT", "ET"))
    opened.show(opacity=before.opacity, regions=before.regions)
    assert opened.state == before


def test_a_prediction_that_is_not_there_yet_cannot_be_chosen():
    predictor = FakePredictor(held=True)
    viewer = ModalityViewer(phantom(), predictor, size=160)
    with pytest.raises(InputError, match=r"source must be one of mean, found 'branch 1'.*call wait\(\) first"):
        viewer.show(source="branch 1")
    predictor.gate.set()
    assert viewer.wait(SHORT)
    viewer.show(source="branch 1")
    assert viewer.controls.source.value == "branch 1"
    viewer.close()
