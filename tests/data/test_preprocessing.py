"""Preparing a case and the way back: each modality from itself alone, nothing moved, nothing lost."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from smml.data.case import Case
from smml.data.preprocessing import PREPROCESSINGS, find_preprocessing, normalise, plan_geometry, prepare
from smml.errors import InputError
from smml.modalities import MODALITIES

SHAPE = (7, 9, 6)
# All 48 ways in which the axes of a file can point.
ORIENTATIONS = [
    "".join(codes) for axes in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*axes)
]
OBLIQUE = np.array([[0.9, -0.3, 0.1, -80.25], [0.2, 1.1, -0.2, 33.5], [-0.1, 0.3, 2.0, 7.125], [0, 0, 0, 1]])


def make_case(shape=SHAPE, affine=None, seed: int = 0, names=MODALITIES) -> Case:
    random = np.random.default_rng(seed)
    brain = random.random(shape) < 0.8
    volumes = {
        name: (random.integers(1, 500, shape) * (brain if name != "t1" else random.random(shape) < 0.7)).astype(
            np.float32
        )
        for name in MODALITIES
    }
    label = random.integers(0, 4, shape).astype(np.uint8)
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    return with_arrays({name: volumes[name] for name in names}, label, affine)


def with_arrays(volumes: dict[str, np.ndarray], label: np.ndarray | None, affine: np.ndarray) -> Case:
    return Case("case", volumes, label, affine, "brats2021")


def turned(case: Case, codes: str) -> Case:
    """The same patient, stored with the axes pointing another way."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(case.affine), nib.orientations.axcodes2ornt(tuple(codes)))
    affine = case.affine @ nib.orientations.inv_ornt_aff(turn, case.shape)
    volumes = {name: nib.apply_orientation(volume, turn) for name, volume in case.volumes.items()}
    label = None if case.label is None else nib.apply_orientation(case.label, turn)
    return with_arrays(volumes, label, affine)


def one_hot(label: torch.Tensor, classes: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(label.long(), classes).movedim(-1, 0).float()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_is_undone_exactly(codes):
    case = turned(make_case(), codes)
    assert case.orientation == tuple(codes)
    prepared = prepare(case)
    assert prepared.label.shape == prepared.image.shape[1:] == SHAPE
    back = prepared.geometry.inverse(one_hot(prepared.label))
    assert back.dtype == torch.float32
    np.testing.assert_array_equal(back.argmax(dim=0).numpy(), case.label)
    np.testing.assert_array_equal(back.numpy(), one_hot(torch.from_numpy(case.label.copy())).numpy())


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5)], ids=["own spacing", "resampled"])
@pytest.mark.parametrize("version", PREPROCESSINGS)
def test_a_case_in_another_orientation_gives_the_same_tensors_to_the_bit(codes, spacing, version):
    reference, other = (
        prepare(case, spacing, preprocessing=version) for case in (make_case(), turned(make_case(), codes))
    )
    assert torch.equal(other.image, reference.image)
    assert torch.equal(other.label, reference.label)
    assert other.geometry.shape == reference.geometry.shape


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR"])
def test_oblique_images_are_turned_to_the_nearest_axes_and_back(codes):
    case = turned(make_case(affine=OBLIQUE), codes)
    prepared = prepare(case)
    back = prepared.geometry.inverse(one_hot(prepared.label))
    np.testing.assert_array_equal(back.argmax(dim=0).numpy(), case.label)
    assert torch.equal(prepared.image, prepare(make_case(affine=OBLIQUE)).image)


@given(
    codes=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    edges=st.tuples(*[st.floats(0.5, 5)] * 3),
)
@settings(max_examples=50)
def test_any_shape_and_spacing_comes_back_to_its_own_grid(codes, shape, edges):
    case = turned(make_case(shape, np.diag([*edges, 1.0])), codes)
    for spacing in (None, (1.0, 2.0, 1.5)):
        prepared = prepare(case, spacing)
        back = prepared.geometry.inverse(one_hot(prepared.label))
        assert tuple(back.shape) == (4, *case.shape)
        torch.testing.assert_close(back.sum(dim=0), torch.ones(case.shape))


def test_spacing_and_shape_are_in_the_order_of_the_prepared_axes():
    case = turned(make_case((10, 20, 30), np.diag([1.0, 2.0, 3.0, 1.0])), "SRA")
    assert case.spacing == (3.0, 1.0, 2.0)
    geometry = plan_geometry(case)
    assert geometry.native_shape == (30, 10, 20)
    assert geometry.shape == geometry.canonical_shape == (10, 20, 30)
    assert geometry.spacing == (1.0, 2.0, 3.0)
    finer = plan_geometry(case, (1.0, 1.0, 1.0))
    assert finer.shape == (10, 40, 90)
    assert finer.spacing == pytest.approx((1, 1, 1))


def test_the_field_of_view_is_kept_when_voxels_do_not_divide_it():
    geometry = plan_geometry(make_case((11, 13, 7), np.eye(4)), (3.0, 3.0, 3.0))
    assert geometry.shape == (4, 4, 2)
    assert [n * s for n, s in zip(geometry.shape, geometry.spacing, strict=True)] == pytest.approx([11, 13, 7])


def test_a_spacing_that_differs_by_rounding_only_is_not_resampled():
    case = make_case(affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    assert torch.equal(prepare(case, (1.004, 0.996, 2.0)).image, prepare(case).image)


def balls(shape: tuple[int, int, int]) -> np.ndarray:
    """Three balls of different labels, off the centre in every direction."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    label = np.zeros(shape, np.uint8)
    for value, centre, radius in (
        (2, (0.35, 0.6, 0.45), 0.26),
        (1, (0.3, 0.62, 0.4), 0.15),
        (3, (0.7, 0.3, 0.7), 0.17),
    ):
        distance = np.linalg.norm((grid - np.array(centre) * shape) / min(shape), axis=-1)
        label[distance < radius] = value
    return label


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "IRP"])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.7, 1.3, 2.0)])
def test_labels_survive_resampling_and_the_way_back(codes, spacing):
    label = balls((36, 40, 32))
    case = turned(with_arrays({"t1": 1.0 + label.astype(np.float32)}, label, np.eye(4)), codes)
    prepared = prepare(case, spacing)
    assert set(prepared.label.unique().tolist()) == {0, 1, 2, 3}  # nearest neighbour invents no value
    back = prepared.geometry.inverse(one_hot(prepared.label)).argmax(dim=0).numpy()
    assert back.shape == case.label.shape
    assert dice(back > 0, case.label > 0) > 0.9
    for value in (1, 2, 3):
        assert dice(back == value, case.label == value) > 0.85


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0), (3.0, 3.0, 3.0)])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR"])
def test_a_marked_block_stays_where_it_is_in_the_body(codes, spacing):
    """Found again by its position in mm, in image and label alike."""
    volume = np.zeros((24, 30, 18), np.float32)
    volume[6:9, 18:24, 3:6] = 100
    # What one value shares would be taken for the background.
    tissue = np.random.default_rng(0).uniform(20, 30, volume.shape).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-11, 5, 40)
    case = turned(with_arrays({"flair": tissue + volume}, (volume > 0).astype(np.uint8), affine), codes)
    prepared = prepare(case, spacing)
    corner = affine[:3, 3] - 1.0  # the outer corner of the first voxel, which resampling keeps
    expected = affine[:3, 3] + 2 * np.array([7, 20.5, 4])
    for found in (prepared.image[0] > prepared.image[0].max() / 2, prepared.label > 0):
        index = found.nonzero().double().mean(dim=0).numpy()
        place = corner + (index + 0.5) * prepared.geometry.spacing
        np.testing.assert_allclose(place, expected, atol=0.51)


@pytest.mark.parametrize("version", PREPROCESSINGS)
def test_a_normalised_brain_has_mean_0_and_deviation_1_and_the_background_stays_0(version):
    case = make_case()
    prepared = prepare(case, preprocessing=version)
    assert prepared.image.dtype == torch.float32
    for m, name in enumerate(MODALITIES):
        brain = torch.from_numpy(case.volumes[name] != 0)
        values = prepared.image[m][brain].double()
        assert abs(float(values.mean())) < 1e-6
        assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-6)
        assert not bool(prepared.image[m][~brain].any())


@pytest.mark.parametrize("value", [0.0, 7.0, 1e-3, 3e4])
def test_a_constant_volume_becomes_zero_rather_than_nan(value):
    volume = torch.full((3, 4, 5), value)
    volume[0] = 0
    assert not bool(normalise(volume, volume != 0).any())


@given(
    volume=arrays(np.float32, (3, 4, 2), elements=st.floats(0, 1000, width=32)),
    gain=st.sampled_from([0.01, 3.0, 500.0]),
)
def test_normalising_is_finite_and_blind_to_the_scanner_s_gain(volume, gain):
    volume = torch.from_numpy(np.rint(volume))
    result = normalise(volume, volume != 0)
    assert bool(result.isfinite().all())
    torch.testing.assert_close(normalise(gain * volume, volume != 0), result, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("spacing", [None, (1.3, 1.3, 1.3)], ids=["own spacing", "resampled"])
@pytest.mark.parametrize("changed", MODALITIES)
@pytest.mark.parametrize("version", PREPROCESSINGS)
def test_changing_one_volume_changes_no_bit_of_the_others(changed, spacing, version):
    """Neither a cropping box nor a brain mask is shared."""
    case = make_case()
    before = prepare(case, spacing, preprocessing=version)
    random = np.random.default_rng(1)
    volume = (random.random(SHAPE) < 0.3) * random.integers(1, 9000, SHAPE)
    other = with_arrays(case.volumes | {changed: volume.astype(np.float32)}, case.label, case.affine)
    after = prepare(other, spacing, preprocessing=version)
    same = [torch.equal(a, b) for a, b in zip(before.image, after.image, strict=True)]
    assert same == [name != changed for name in MODALITIES]
    assert torch.equal(before.label, after.label)


@pytest.mark.parametrize("names", [("t2",), ("flair", "t1"), ("t1ce", "t1", "t2")])
def test_a_case_that_lacks_sequences_has_zeros_there_and_says_so(names):
    complete, partial = prepare(make_case()), prepare(make_case(names=names))
    for m, name in enumerate(MODALITIES):
        assert bool(partial.available[m]) == (name in names)
        expected = complete.image[m] if name in names else torch.zeros(SHAPE)
        assert torch.equal(partial.image[m], expected)


def test_a_case_without_a_label_is_prepared_without_one():
    case = make_case()
    assert prepare(with_arrays(case.volumes, None, case.affine)).label is None


@pytest.mark.parametrize("codes", ["RAS", "LPS"])
def test_a_prepared_case_shares_no_memory_with_the_case(codes):
    case = turned(make_case(), codes)
    before = {name: volume.copy() for name, volume in case.volumes.items()}
    prepared = prepare(case)
    prepared.image.fill_(3)
    prepared.label.fill_(3)
    for name, volume in case.volumes.items():
        np.testing.assert_array_equal(volume, before[name])
    assert set(np.unique(case.label)) == {0, 1, 2, 3}


# ---------------------------------------------------------------- versions


def ellipsoid(edge: float, value=lambda place: 500.0 + 0 * place[..., 0]) -> Case:
    """A brain of 120 x 140 x 110 mm in 132 x 156 x 120 mm; intensities by the place in mm from its middle."""
    shape = tuple(round(extent / edge) for extent in (132, 156, 120))
    place = np.stack(np.meshgrid(*((np.arange(n) + 0.5 - n / 2) * edge for n in shape), indexing="ij"), -1)
    inside = np.linalg.norm(place / (60, 70, 55), axis=-1) < 1
    volume = np.where(inside, value(place), 0).astype(np.float32)
    return with_arrays({"t2": volume}, None, np.diag([edge, edge, edge, 1.0]))


def stripes(place: np.ndarray) -> np.ndarray:
    return 500 + 200 * np.sin(place[..., 0] / 9) * np.cos(place[..., 2] / 11)


@pytest.mark.parametrize("version", PREPROCESSINGS)
@pytest.mark.parametrize("edge", [1.0, 1.5, 3.0])
def test_the_edge_of_the_brain_is_as_inside_it_whatever_the_file_s_resolution(version, edge):
    """Interpolating with the background makes the edge of a brain without folds up to three deviations darker."""
    fine = prepare(ellipsoid(edge, stripes), (2.0, 2.0, 2.0), preprocessing=version)
    native = prepare(ellipsoid(2.0, stripes), (2.0, 2.0, 2.0), preprocessing=version)
    both = fine.brain[3] & native.brain[3]
    assert float((fine.brain[3] ^ native.brain[3]).float().sum() / native.brain[3].sum()) < 0.03
    difference = (fine.image[3] - native.image[3])[both].abs()
    assert float(difference.quantile(0.99)) < 0.15


def test_version_3_takes_out_the_coil_and_keeps_contrast():
    """Half as bright again on one side as on the other; tissue in stripes of 57 mm."""

    def coil(place: np.ndarray) -> np.ndarray:
        return stripes(place) * (1 + 0.2 * place[..., 1] / 70)

    clean = ellipsoid(2.0, stripes)
    errors = []
    for version in (2, 3):
        even, tilted = (prepare(case, preprocessing=version).image[3] for case in (clean, ellipsoid(2.0, coil)))
        errors.append(float((even - tilted)[even != 0].std()))
    assert errors[1] < errors[0] / 3
    image, truth = (prepare(clean, preprocessing=version).image[3] for version in (3, 2))
    brain = truth != 0
    assert float(torch.corrcoef(torch.stack([image[brain], truth[brain]]))[0, 1]) > 0.95


@pytest.mark.parametrize("version", [0, 1, 99, True, "2"])
def test_a_version_that_does_not_exist_is_refused_with_those_that_do(version):
    with pytest.raises(InputError, match="preprocessing must be one of the versions 2, 3, found"):
        find_preprocessing(version)
