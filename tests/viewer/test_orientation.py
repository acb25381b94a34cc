"""What is right stays right: letters, pixels and positions for every way a file can store a patient."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from viewer_phantom import SHAPE, SIDES, phantom

from smml.viewer.display import ANATOMICAL_PLANES, NORMAL, Display
from smml.viewer.render import Layers, plane_sizes, render_plane, render_tissue
from smml.viewer.state import first_state

STORED = {
    "LPS": phantom("LPS"),
    "RAS": phantom("RAS"),
    "PIR": phantom("PIR"),
    "oblique": phantom("LPS", oblique=17),
}
# The letters at the left, right, top and bottom of each plane in the radiological convention.
WANTED = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


def parts(case):
    display = Display.of(case)
    state = first_state(case, display, case.modalities, "mean")
    middle = tuple(n // 2 for n in SHAPE)
    state = state.changed(position=middle, overlay="none", windows=dict.fromkeys(case.volumes, (0.0, 700.0)))
    image, brain = (display.turned(one) for one in (case.volumes["flair"], case.brains["flair"].mask))
    layers = Layers(image, brain, display.turned(case.label), None, None, *[case.scheme] * 2)
    return display, state.changed(shown="flair"), layers


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("plane", ANATOMICAL_PLANES)
def test_letters_and_pixels_agree_with_the_patient(stored, plane):
    display, state, layers = parts(STORED[stored])
    letters = display.sides(plane)
    assert "".join(letters[side] for side in ("left", "right", "top", "bottom")) == WANTED[plane]
    height, width = plane_sizes(display, 200)[plane]
    picture = render_tissue(state, display, layers, plane, (height, width))
    # The block of each side lies a seventh of the way in from where its letter is.
    rows, columns = np.array([0.5, 0.5, 0.16, 0.84]) * height, np.array([0.16, 0.84, 0.5, 0.5]) * width
    for letter, row, column in zip(WANTED[plane], rows.astype(int), columns.astype(int), strict=True):
        grey = int(picture[row, column, 0])
        assert grey == pytest.approx(255 * SIDES[letter] / 700, abs=4), f"{letter} is not where its letter is"


@pytest.mark.parametrize("stored", STORED)
def test_a_point_of_the_picture_is_the_voxel_of_the_file(stored):
    case = STORED[stored]
    display, state, layers = parts(case)
    # A voxel of the enhancing part, right, front and top of the middle.
    position = (21, 24, 18)
    state = state.changed(position=position, overlay="truth", opacity=1.0)
    voxel = display.file_voxel(position)
    assert case.label[voxel] == 3
    assert display.shown_voxel(voxel) == position
    np.testing.assert_allclose(display.millimetres(position), nib.affines.apply_affine(case.affine, voxel), atol=1e-9)
    for plane in ANATOMICAL_PLANES:
        across, down = display.share(plane, position)
        assert display.point(plane, state.position, across, down) == position
        height, width = plane_sizes(display, 200)[plane]
        picture = render_tissue(state, display, layers, plane, (height, width))
        assert tuple(picture[int(down * height), int(across * width)]) == (0xD5, 0x5E, 0x00), "ET's own colour"
    if stored != "oblique":
        assert display.millimetres(position)[0] > 0
        assert display.tilt < 0.1
    else:
        assert 5 < display.tilt < 20


def test_planes_share_one_scale_in_millimetres():
    display, _, _ = parts(STORED["LPS"])
    sizes = plane_sizes(display, 300)
    assert max(max(size) for size in sizes.values()) == 300
    assert sizes["axial"][1] == sizes["coronal"][1], "left to right"
    assert sizes["axial"][0] == sizes["sagittal"][1], "back to front"
    extent = [n * edge for n, edge in zip(SHAPE, display.spacing, strict=True)]
    assert sizes["coronal"][0] / sizes["coronal"][1] == pytest.approx(extent[2] / extent[0], rel=0.02)


def test_only_the_brain_and_a_margin_are_drawn():
    case = phantom()
    for name in case.volumes:
        case.volumes[name] = np.pad(case.volumes[name], 20)
    display = Display.of(case, margin=4.0)
    # The body begins 2 voxels inside the phantom; 4 mm are 2 voxels, or 2 of 3 mm.
    assert display.box == ((20, 50), (20, 56), (20, 46))
    assert display.point("axial", (30, 30, 30), 0.0, 0.0) == (49, 55, 30)
    assert display.point("axial", (30, 30, 30), 1.0, 5.0) == (20, 20, 30)
    assert display.clipped((0, 99, 30.4)) == (20, 55, 30)


def test_the_crosshair_leaves_its_middle_free_and_letters_are_drawn():
    display, state, layers = parts(STORED["LPS"])
    shape = plane_sizes(display, 240)["axial"]
    bare = render_tissue(state, display, layers, "axial", shape).astype(int)
    drawn = render_plane(state, display, layers, "axial", shape).astype(int)
    changed = (bare != drawn).any(axis=-1)
    across, down = display.share("axial", state.position)
    row, column = int(down * shape[0]), int(across * shape[1])
    assert not changed[row - 5 : row + 6, column - 5 : column + 6].any(), "what one looks at is not covered"
    assert changed[:, column].sum() > 0.6 * shape[0]
    assert changed[row].sum() > 0.6 * shape[1]
    without = render_plane(state.changed(crosshair=False), display, layers, "axial", shape).astype(int)
    left = without[shape[0] // 2 - 8 : shape[0] // 2 + 8, :20]
    assert (left > 250).all(axis=-1).any(), "a white letter at the left edge"


def test_wheel_and_arrows_move_where_they_point():
    display, state, _ = parts(STORED["RAS"])
    for plane in ANATOMICAL_PLANES:
        before = np.array(display.share(plane, state.position))
        right = np.array(display.share(plane, state.moved(display, plane, across=1).position))
        down = np.array(display.share(plane, state.moved(display, plane, down=1).position))
        assert (right - before)[0] > 0
        assert (right - before)[1] == 0
        assert (down - before)[1] > 0
        assert (down - before)[0] == 0
        axis = NORMAL[plane]
        assert state.moved(display, plane, slices=2).position[axis] == state.position[axis] + 2
        assert state.moved(display, plane, slices=999).position[axis] == display.box[axis][1] - 1


def test_home_is_the_tumour_and_not_the_cavity_that_a_surgeon_left():
    case = phantom("LPS")
    label = np.zeros(case.shape, np.uint8)
    label[3:13, 3:13, 3:13] = 4
    label[20:23, 20:23, 20:23] = 3
    treated = dataclasses.replace(case, label=label, layout="brats2024")
    display = Display.of(treated)
    assert treated.scheme.classes[label[display.file_voxel(display.home)]] == "ET"
