"""Legend, colours, static picture and mesh."""

import itertools
import math

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from viewer_phantom import FakePredictor, phantom

from smml.data.labels import BRATS_2023, REGIONS
from smml.data.layouts import LAYOUTS
from smml.errors import InputError
from smml.figures import intensity_window
from smml.figures.theme import REGION_COLOURS, rgb
from smml.modalities import MODALITIES, SUBSETS
from smml.viewer import mesh_figure, viewer_picture
from smml.viewer.display import Display
from smml.viewer.mesh import surface
from smml.viewer.panel import chart_svg, class_html, legend_entries, readout_html, scores_html, spoken
from smml.viewer.render import (
    CONTRIBUTION_COLOURS,
    DIFFERENCE_COLOURS,
    Layers,
    contribution_ramp,
    encode_png,
    render_tissue,
    uncertainty_ramp,
)
from smml.viewer.state import first_state
from smml.viewer.worker import RegionScore, RegionScores

# Viénot, Brettel and Mollon 1999: what is left of linear RGB to readers without one kind of cone.
BLIND = {
    "protan": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deutan": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
}


def lab(colour, kind=None) -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB colour 0 to 255, as seen by a reader of that kind."""
    linear = np.asarray(colour, float) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    if kind:
        linear = np.clip(BLIND[kind] @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ linear / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", [None, "protan", "deutan"])
@pytest.mark.parametrize(
    "colours",
    [REGION_COLOURS, DIFFERENCE_COLOURS, dict(enumerate(CONTRIBUTION_COLOURS))],
    ids=["regions", "difference", "contribution"],
)
def test_colours_stay_apart_for_colour_blind_readers(colours, kind):
    for (one, a), (other, b) in itertools.combinations(colours.items(), 2):
        distance = np.linalg.norm(lab(rgb(a), kind) - lab(rgb(b), kind))
        assert distance > 20, f"{one} and {other} look alike to {kind or 'everyone'}: {distance:.0f}"


def test_uncertainty_grows_lighter_all_the_way():
    lightness = [lab(colour)[0] for colour in uncertainty_ramp()]
    assert np.diff(lightness).min() > -1e-9
    assert lightness[-1] - lightness[0] > 70


def test_contributions_of_opposite_sign_differ_in_hue_and_grow_stronger_outwards():
    grey = lab(rgb(CONTRIBUTION_COLOURS[2]))
    distances = [np.linalg.norm(lab(colour) - grey) for colour in contribution_ramp()]
    assert np.diff(distances[:128]).max() < 0.5
    assert np.diff(distances[128:]).min() > -0.5
    orange, blue = (lab(contribution_ramp()[end])[2] for end in (0, -1))
    assert orange > 30
    assert blue < -30, "b* tells blue from orange to every reader but the tritan"


def layered(**changes):
    case = phantom("LPS")
    display = Display.of(case)
    state = first_state(case, display, case.modalities, "mean").changed(opacity=1.0, position=(21, 24, 18))
    truth = display.turned(case.label)
    prediction = np.roll(truth, 3, axis=0)
    image, brain = (display.turned(one) for one in (case.volumes["flair"], case.brains["flair"].mask))
    layers = Layers(image, brain, truth, prediction, prediction / 3.0, case.scheme, case.scheme)
    return render_tissue(state.changed(**changes), display, layers, "axial", display.plane_shape("axial")), display


def painted(picture, colour) -> np.ndarray:
    return (picture == rgb(colour)).all(axis=-1)


def test_difference_counts_what_is_in_both_and_in_one():
    """At one pixel a voxel: 3 of 8 columns are false on either side."""
    picture, _ = layered(overlay="difference", compared="WT")
    rows, columns = 10, 8
    assert painted(picture, DIFFERENCE_COLOURS["in both"]).sum() == rows * (columns - 3)
    wrong = painted(picture, DIFFERENCE_COLOURS["prediction only"])
    missed = painted(picture, DIFFERENCE_COLOURS["truth only"])
    assert 0 < wrong.sum() < rows * 3, "hatched"
    assert 0 < missed.sum() < rows * 3
    assert wrong.nonzero()[1].max() < missed.nonzero()[1].min(), "the prediction lies to the patient's right"


def test_regions_are_nested_and_each_can_be_taken_away():
    full, _ = layered(overlay="truth")
    counts = {region: int(painted(full, colour).sum()) for region, colour in REGION_COLOURS.items()}
    assert counts == {"WT": 80 - 20, "TC": 20 - 6, "ET": 6}
    core, _ = layered(overlay="truth", regions=("TC",))
    assert int(painted(core, REGION_COLOURS["TC"]).sum()) == 20, "TC alone contains ET"
    assert not painted(core, REGION_COLOURS["WT"]).any()
    nothing, _ = layered(overlay="truth", regions=())
    bare, _ = layered(overlay="none")
    assert np.array_equal(nothing, bare)


def test_outline_paints_edges_and_opacity_blends():
    outline, _ = layered(overlay="truth", outline=True, regions=("WT",))
    edge = painted(outline, REGION_COLOURS["WT"])
    assert edge.sum() == 80 - 6 * 4, "two pixels wide"
    half, _ = layered(overlay="truth", regions=("WT",), opacity=0.5)
    bare, _ = layered(overlay="none")
    full, _ = layered(overlay="truth", regions=("WT",))
    inside = painted(full, REGION_COLOURS["WT"])
    wanted = (bare[inside].astype(float) + full[inside]) / 2
    np.testing.assert_allclose(half[inside], wanted, atol=1)
    assert np.array_equal(half[~inside], bare[~inside])


def test_background_stays_black_and_a_frame_is_a_png():
    picture, _ = layered(overlay="none", windows={"flair": (-500.0, 700.0)})
    assert (picture[0] == 0).all()
    assert encode_png(picture).startswith(b"\x89PNG")


def test_intensity_window_ignores_background_and_odd_voxels():
    volume = np.zeros((40, 40, 40), np.float32)
    volume[10:30, 10:30, 10:30] = np.linspace(100, 200, 8000).reshape(20, 20, 20)
    volume[15, 15, 15] = 1e6
    low, high = intensity_window(volume)
    assert 100 < low < 105
    assert 195 < high < 200
    assert intensity_window(np.zeros((3, 3, 3))) == (0.0, 1.0)
    low, high = intensity_window(np.full((3, 3, 3), 7.0))
    assert low < high


def test_the_legend_says_what_is_painted():
    case = phantom()
    state = first_state(case, Display.of(case), case.modalities, "mean")
    assert [colour for colour, _ in legend_entries(state)] == list(REGION_COLOURS.values())
    assert "oedema" in legend_entries(state)[0][1]
    assert "whole" in legend_entries(state.changed(regions=("WT",)))[0][1]
    assert len(legend_entries(state.changed(overlay="difference"))) == 3
    assert len(legend_entries(state.changed(overlay="difference", outline=True))) == 2
    assert legend_entries(state.changed(overlay="none")) == []


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_the_read_out_gives_a_class_the_colour_in_which_the_planes_paint_it(layout):
    """What is nested shows the innermost region; a colour that is nowhere in the picture explains nothing."""
    scheme = LAYOUTS[layout].scheme
    labels = np.arange(scheme.num_classes, dtype=np.uint8).reshape(1, 1, -1)
    painted = np.full(labels.size, "", dtype=object)
    for region in REGIONS:
        painted[scheme.region(labels, region).ravel()] = REGION_COLOURS[region]
    for value, colour in enumerate(painted):
        words = class_html(scheme, value)
        assert words.endswith(scheme.classes[value])
        assert (f"color:{colour};" in words) if colour else ("color" not in words)


def test_what_lies_under_the_crosshair_is_written_and_spoken():
    case = phantom("LPS")
    display = Display.of(case)
    state = first_state(case, display, case.modalities, "mean")
    name = case.scheme.classes[int(case.label[display.file_voxel(state.position)])]
    assert name == "ET"
    assert f"</span> {name}" in readout_html(case, display, state, None)
    said = spoken(case, display, state, "axial")
    assert f"slice {state.position[2]} of" in said
    assert "truth ET" in said
    assert "R on the left, A at the top" in said
    assert "truth" not in spoken(phantom("LPS", label=False), display, state, "axial")


def there(dice: float) -> RegionScore:
    """Of a region that the truth holds."""
    return RegionScore(dice, 1.0, True, 8.0)


def test_where_the_truth_lacks_a_region_words_and_a_mark_stand_in_place_of_a_dice():
    missed = RegionScore(0.0, math.nan, True, 0.0)
    right, wrong = RegionScore(1.0, 0.0, False, 0.0), RegionScore(0.0, math.nan, False, 3.14)
    assert [score.words for score in (there(0.0), missed, right, wrong)] == [
        "", "missed", "not there, none called", "not there, 3.1 ml called"
    ]  # fmt: skip
    scores: RegionScores = {"WT": missed, "TC": right, "ET": wrong}
    page = scores_html(scores, ("flair",), "mean", truth=True)
    assert all(score.words in page for score in scores.values())
    assert "1.000" not in page
    svg = chart_svg({("flair",): scores}, ("flair",), MODALITIES)
    assert svg.count(">!<") == svg.count("font-weight='bold'") == 1
    assert f"font-weight='bold' fill='{REGION_COLOURS['ET']}'" in svg
    assert "FLAIR: Dice WT missed, TC not there, none called, ET not there, 3.1 ml called" in svg


def test_the_chart_marks_the_present_subset_and_strikes_out_what_the_case_lacks():
    scores = {("flair",): {"WT": there(0.5), "TC": there(1.0), "ET": there(0.0)}}
    svg = chart_svg(scores, ("flair",), MODALITIES)
    assert svg.count("stroke='#0072B2'") == 1
    assert "FLAIR: Dice WT 0.50, TC 1.00, ET 0.00" in svg
    assert "×" not in svg
    poorer = chart_svg(scores, ("flair",), ("flair", "t2"))
    assert poorer.count(">×<") == len(SUBSETS) - 3


def test_the_static_picture_shows_truth_or_prediction_and_says_what_was_given():
    case = phantom("LPS")
    plain = viewer_picture(case, overlay="none")
    truth = viewer_picture(case)
    assert plain.dtype == np.uint8
    assert (truth != plain[: truth.shape[0]]).any()
    predictor = FakePredictor()
    encoding = predictor.encode(case)
    result = predictor.segment(encoding, ("flair",), cancelled=lambda: False, progress=lambda *_: None)
    both = viewer_picture(case, result, overlay="difference", position=(3, 4, 5), shown="t2")
    assert both.shape[0] > plain.shape[0], "scores are written below"
    for options, message in (
        ({"overlay": "pet"}, "overlay"),
        ({"shown": "pet"}, "shown"),
        ({"position": (99, 0, 0)}, "position"),
    ):
        with pytest.raises(InputError, match=message):
            viewer_picture(case, **options)


def test_the_static_picture_never_shows_what_is_not_there():
    """An unpainted brain under "truth" reads as a truth without a tumour."""
    bare = phantom("LPS", label=False)
    np.testing.assert_array_equal(viewer_picture(bare), viewer_picture(bare, overlay="none"))
    predictor = FakePredictor()
    result = predictor.segment(predictor.encode(bare), ("flair",), cancelled=lambda: False)
    for overlay in ("truth", "difference"):
        with pytest.raises(InputError, match="needs a truth, but case phantom has none"):
            viewer_picture(bare, result, overlay=overlay)
    for overlay in ("prediction", "difference", "uncertainty"):
        with pytest.raises(InputError, match="needs a segmentation"):
            viewer_picture(phantom("LPS"), overlay=overlay)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_sphere_has_the_volume_of_a_sphere_and_faces_outwards(mirrored):
    place = np.stack(np.meshgrid(*[np.arange(-14.0, 15)] * 3, indexing="ij"))
    field = 10.3 - np.linalg.norm(place, axis=0)
    affine = np.diag([-2.0 if mirrored else 2.0, 1.0, 1.5, 1.0])
    affine[:3, 3] = (40.0, 0.0, -7.0)
    vertices, faces = surface(field, 0.0, affine)
    corners = vertices[faces]
    volume = np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume == pytest.approx(4 / 3 * np.pi * 10.3**3 * 3, rel=0.03)
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all(), "closed"
    middle = (vertices.min(0) + vertices.max(0)) / 2
    np.testing.assert_allclose(middle, affine[:3, :3] @ [14, 14, 14] + affine[:3, 3], atol=0.2)


def test_a_region_that_touches_the_border_is_closed_and_nothing_gives_nothing():
    vertices, faces = surface(np.ones((4, 5, 6)), 0.5, np.eye(4))
    assert len(faces) > 0
    assert vertices.min() >= -0.6
    assert len(surface(np.zeros((4, 5, 6)), 0.5, np.eye(4))[1]) == 0


@pytest.mark.parametrize("axes", ["RAS", "LPS"])
def test_the_mesh_lies_where_the_tumour_is_in_the_patient(axes):
    case = phantom(axes)
    figure = mesh_figure(case)
    assert [trace.name for trace in figure.data] == ["brain", "WT", "TC", "ET"]
    tumour = np.stack([figure.data[1].x, figure.data[1].y, figure.data[1].z]).mean(axis=1)
    middle = ndimage.center_of_mass(case.label > 0)
    np.testing.assert_allclose(tumour, (case.affine @ [*middle, 1])[:3], atol=1.0)
    with pytest.raises(InputError, match="shape"):
        mesh_figure(case, np.zeros((2, 2, 2), np.uint8), BRATS_2023)


def test_the_mesh_has_every_lesion_however_small_it_is_beside_another():
    case = phantom("RAS")
    labels = np.zeros(case.shape, np.uint8)
    labels[16:24, 20:28, 12:20] = 3
    specks = [(6, 8, 8), (6, 24, 8)]
    labels[6:8, 8:10, 8:10] = labels[6, 24, 8] = 3
    trace = mesh_figure(case, labels, BRATS_2023, brain=False).data[-1]
    corners = np.stack([trace.x, trace.y, trace.z], -1)
    for speck in specks:
        distance = np.linalg.norm(corners - nib.affines.apply_affine(case.affine, speck), axis=1).min()
        assert distance < 3, f"no surface near {speck}: {distance:.1f} mm"
