"""Sequences on different grids: brought to one of them by their headers or by registration, checked, and told."""

import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from smml.data import Case, CaseFiles, align_case, aligning, find_case, find_cases, prepare, read_case, simulate_cohort
from smml.errors import InputError, MissingPackage

IDENTITY = np.eye(4)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Case:
    """One simulated case at 4 mm, with its label. Read it only."""
    root = tmp_path_factory.mktemp("cohorts") / "four"
    simulate_cohort(root, 1, spacing=4, seed=27, workers=1, progress=False)
    return read_case(find_cases(root)[0])


def movement(shift: float, degrees: float, about: np.ndarray, seed: int = 0) -> np.ndarray:
    """A rigid movement in mm [4, 4] about a point, its directions drawn."""
    axis, way = (vector / np.linalg.norm(vector) for vector in np.random.default_rng(seed).normal(size=(2, 3)))
    result = np.eye(4)
    result[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    result[:3, 3] = about + shift * way - result[:3, :3] @ about
    return result


def places(case: Case, name: str) -> np.ndarray:
    """Brain's voxels in mm, [N, 4]."""
    indices = np.argwhere(case.volumes[name] != 0)
    return np.c_[indices, np.ones(len(indices))] @ case.affine.T


def elsewhere(case: Case, name: str, moved: np.ndarray, spacing=(3.5, 4.5, 5.0)) -> tuple[np.ndarray, np.ndarray]:
    """A sequence on an oblique grid of other voxels, its head moved: voxels and affine, made apart from the package."""
    middle = (moved @ places(case, name).mean(axis=0))[:3]
    shape = np.ceil(220 / np.array(spacing)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (12, -7, 15), degrees=True).as_matrix() * spacing
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    indices = np.c_[np.indices(shape).reshape(3, -1).T, np.ones(np.prod(shape))]
    at = (indices @ (np.linalg.inv(case.affine) @ np.linalg.inv(moved) @ affine).T)[:, :3].T
    volume = case.volumes[name]
    tissue, share = (
        ndimage.map_coordinates(part, at, order=1, mode="grid-constant")
        for part in (volume, (volume != 0).astype(np.float32))
    )
    return np.where(share >= 0.5, tissue / share.clip(0.5), 0).reshape(shape).astype(np.float32), affine


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def two(folder: Path, case: Case, name: str, array: np.ndarray, affine: np.ndarray, label: bool = False) -> CaseFiles:
    """T1ce as it is and another sequence, on disk."""
    save(folder / "Simulated_00000_t1ce.nii", case.volumes["t1ce"], case.affine)
    save(folder / f"Simulated_00000_{name}.nii", array, affine)
    if label:
        save(folder / "Simulated_00000_seg.nii", case.scheme.encode(case.label), case.affine)
    return find_case(folder)


def error_mm(case: Case, name: str, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distance between what two movements make of each voxel of the brain."""
    return np.linalg.norm((places(case, name) @ (found - truth).T)[:, :3], axis=1)


@pytest.mark.parametrize("name", ["flair", "t2"])
def test_a_moved_sequence_on_an_oblique_grid_comes_back_within_a_mm(simulated, tmp_path, name):
    truth = movement(5, 8, places(simulated, name).mean(axis=0)[:3])
    files = two(tmp_path, simulated, name, *elsewhere(simulated, name, truth), label=True)
    case = align_case(files, "t1ce", register=True)
    found = case.alignments[name]
    assert error_mm(simulated, name, found.movement, truth).max() < 1
    assert found.overlap[1] > 0.95 > found.overlap[0]
    assert found.information[1] > 1.5 * found.information[0]
    assert found.turned_degrees == pytest.approx(8, abs=0.5)
    assert re.match(
        r"\w+ to T1ce: registered; moved by \d\.\d mm in the mean and turned by [78]\.\d degrees", str(found)
    )
    # On the grid of the other, where its label lies.
    np.testing.assert_array_equal(case.affine, simulated.affine)
    np.testing.assert_array_equal(case.volumes["t1ce"], simulated.volumes["t1ce"])
    np.testing.assert_array_equal(case.label, simulated.label)
    inside = ndimage.binary_erosion(simulated.volumes[name] != 0, iterations=2)
    assert np.corrcoef(case.volumes[name][inside], simulated.volumes[name][inside])[0, 1] > 0.75


def test_the_same_files_give_the_same_bytes_and_the_transform_is_what_itk_reads(simulated, tmp_path):
    truth = movement(5, 8, places(simulated, "t2").mean(axis=0)[:3], seed=1)
    files = two(tmp_path, simulated, "t2", *elsewhere(simulated, "t2", truth))
    first, second = (align_case(files, "t1ce", register=True) for _ in range(2))
    np.testing.assert_array_equal(first.volumes["t2"], second.volumes["t2"])
    (path,) = first.save_transforms(tmp_path / "answer.nii.gz")
    text = path.read_bytes()
    assert (path.name, second.save_transforms(tmp_path / "answer.nii.gz")[0].read_bytes()) == (
        "answer_t2_to_t1ce.tfm",
        text,
    )
    # ITK resamples by it what this package did: a point of T1ce's grid -> where it lies in T2's file.
    transform, found = sitk.ReadTransform(str(path)), first.alignments["t2"].movement
    for point in ([0.0, 0.0, 0.0], [30.0, -20.0, 10.0]):
        x, y, z = transform.TransformPoint([-point[0], -point[1], point[2]])
        np.testing.assert_allclose([-x, -y, z], (found @ [*point, 1])[:3], atol=1e-9)


def test_what_lies_right_stays_as_it_is_though_registered(simulated, tmp_path):
    files = two(tmp_path, simulated, "flair", simulated.volumes["flair"], simulated.affine)
    case = align_case(files, "t1ce", register=True)
    np.testing.assert_array_equal(case.volumes["flair"], simulated.volumes["flair"])
    np.testing.assert_array_equal(case.alignments["flair"].movement, IDENTITY)
    assert "left where its header puts it" in str(case.alignments["flair"])


@pytest.fixture
def no_registration(monkeypatch):
    """Registration fails the test, and SimpleITK is not there."""
    monkeypatch.setattr(aligning, "find_movement", lambda *_: pytest.fail("registered"))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)


def test_headers_are_believed_unless_registration_is_asked_for(simulated, tmp_path, no_registration):
    files = two(tmp_path, simulated, "t2", *elsewhere(simulated, "t2", IDENTITY), label=True)
    case = align_case(files, "t1ce")
    assert (case.modalities, case.shape, set(case.sources)) == (
        ("t1ce", "t2"),
        simulated.shape,
        {"t1ce", "t2", "label"},
    )
    np.testing.assert_array_equal(case.label, simulated.label)
    assert str(case.alignments["t2"]).startswith(
        "T2 to T1ce: resampled where its header puts it; the brains overlap by "
    )
    assert case.save_transforms(tmp_path / "answer.nii.gz") == []
    back, truth = case.volumes["t2"], simulated.volumes["t2"]
    # Interpolated twice, and never with the background: the edge keeps the intensities of tissue.
    both = (back != 0) & (truth != 0)
    assert (back != 0).sum() == pytest.approx((truth != 0).sum(), rel=0.03)
    edge = both & ~ndimage.binary_erosion(truth != 0, iterations=1)
    assert back[edge].mean() == pytest.approx(truth[edge].mean(), rel=0.05)
    # Outside, exactly nothing.
    assert not back[~ndimage.binary_dilation(truth != 0, iterations=2)].any()


def test_the_others_of_the_grid_are_neither_moved_nor_interpolated(simulated, tmp_path, no_registration):
    files = two(tmp_path, simulated, "t2", *elsewhere(simulated, "t2", IDENTITY))
    save(tmp_path / "Simulated_00000_t1.nii", simulated.volumes["t1"], simulated.affine)
    case = align_case(tmp_path, "t1ce")
    assert set(case.alignments) == {"t2"}
    np.testing.assert_array_equal(case.volumes["t1"], simulated.volumes["t1"])
    # The grid may be that of a sequence that is not used.
    alone = align_case(tmp_path, "T1ce", "t2")
    assert (alone.modalities, set(alone.sources), alone.shape) == (("t2",), {"t2"}, simulated.shape)
    np.testing.assert_array_equal(alone.volumes["t2"], case.volumes["t2"])
    assert alone.header.get_data_shape() == simulated.shape
    # And the other way round: everything on the grid of T2, without a label there.
    assert align_case(files, "t2", label=False).shape == elsewhere(simulated, "t2", IDENTITY)[0].shape


def test_a_background_of_another_value_stays_that_value(simulated, tmp_path, no_registration):
    array, affine = elsewhere(simulated, "t2", IDENTITY)
    case = align_case(two(tmp_path, simulated, "t2", array - np.float32(50), affine), "t1ce")
    plain = align_case(two(tmp_path, simulated, "t2", array, affine), "t1ce")
    np.testing.assert_array_equal(case.volumes["t2"] == -50, plain.volumes["t2"] == 0)
    np.testing.assert_allclose(case.volumes["t2"] + 50, plain.volumes["t2"], atol=0.1)


def test_the_refusal_of_several_grids_names_the_option(simulated, tmp_path):
    files = two(tmp_path, simulated, "t2", *elsewhere(simulated, "t2", IDENTITY))
    with pytest.raises(InputError, match=r"smml predict --align SEQUENCE .* align_case"):
        read_case(files)


def refused(message: str, *arguments, **options) -> None:
    """Aligning ends in one sentence that matches the pattern."""
    with pytest.raises(InputError, match=message) as caught:
        align_case(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_without_overlap_the_sentence_says_what_to_do(simulated, tmp_path, no_registration):
    array, affine = elsewhere(simulated, "t2", movement(400, 0, np.zeros(3)))
    refused(
        "T2 to T1ce: nothing of its brain lies where .*--register",
        two(tmp_path, simulated, "t2", array, affine),
        "t1ce",
    )


def test_brains_that_hardly_meet_are_warned_of(simulated, tmp_path, no_registration):
    files = two(tmp_path, simulated, "t2", *elsewhere(simulated, "t2", movement(40, 0, np.zeros(3))))
    with pytest.warns(UserWarning, match=r"T2 to T1ce: the brains overlap by only \d\d%.*--register"):
        align_case(files, "t1ce")


def test_a_sequence_whose_place_was_lost_is_found_again_and_the_distance_warned_of(simulated, tmp_path):
    truth = movement(400, 6, places(simulated, "t2").mean(axis=0)[:3])
    files = two(tmp_path, simulated, "t2", *elsewhere(simulated, "t2", truth))
    with pytest.warns(UserWarning, match=r"registration moved it by 400 mm and \d degrees, further than a patient"):
        case = align_case(files, "t1ce", register=True)
    assert error_mm(simulated, "t2", case.alignments["t2"].movement, truth).max() < 1


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (movement(60, 0, np.zeros(3)), "registration failed, the brains overlap by only"),
        (
            InputError("registration found no way (all samples map outside)"),
            "T2 to T1ce: registration found no way .* one head",
        ),
    ],
    ids=["apart", "no way"],
)
def test_a_registration_that_fails_is_one_sentence(simulated, tmp_path, monkeypatch, found, message):
    def fails(*_):
        if isinstance(found, InputError):
            raise found
        return found

    better = iter([0.1, 0.2])
    monkeypatch.setattr(aligning, "find_movement", fails)
    monkeypatch.setattr(aligning, "mutual_information", lambda *_: next(better))
    files = two(tmp_path, simulated, "t2", *elsewhere(simulated, "t2", IDENTITY))
    refused(message, files, "t1ce", register=True)


@pytest.mark.parametrize(
    ("shift", "degrees", "information"), [(5, 8, None), (0.7, 0, (0.1, 0.2))], ids=["worse", "small"]
)
def test_a_movement_that_makes_it_worse_or_is_below_the_error_is_not_made(
    simulated, tmp_path, monkeypatch, shift, degrees, information
):
    monkeypatch.setattr(aligning, "find_movement", lambda *_: movement(shift, degrees, np.zeros(3)))
    files = two(tmp_path, simulated, "t2", *elsewhere(simulated, "t2", IDENTITY))
    plain = align_case(files, "t1ce")
    if information:
        rising = iter(information)
        monkeypatch.setattr(aligning, "mutual_information", lambda *_: next(rising))
    case = align_case(files, "t1ce", register=True)
    np.testing.assert_array_equal(case.volumes["t2"], plain.volumes["t2"])
    assert "left where its header puts it" in str(case.alignments["t2"])


def test_registration_without_simpleitk_tells_what_to_install_before_it_reads(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(
        MissingPackage,
        match=re.escape('registration needs SimpleITK, which is not installed; run pip install "smml[register]"'),
    ):
        align_case(tmp_path / "nowhere", "t1ce", register=True)


def test_itk_that_finds_no_way_is_one_sentence(simulated):
    from smml.data.registration import register, working_tissue

    tissue = working_tissue(simulated.volumes["t1"], simulated.brains["t1"], simulated.affine, 8.0)
    with pytest.raises(InputError, match=r"^registration found no way \(.+\)$") as caught:
        register(tissue, tissue, np.array([900.0, 0, 0]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("flair", "case Simulated_00000: FLAIR was asked for, but the case has only T1ce, T2 on disk"),
        ("t1ce,t2", "expected one sequence to align to, found T1ce, T2"),
        ("pet", "flair, t1ce, t1, t2"),
    ],
)
def test_a_grid_that_cannot_be_taken_is_refused(simulated, tmp_path, to, message):
    refused(message, two(tmp_path, simulated, "t2", simulated.volumes["t2"], simulated.affine), to)


def test_a_label_on_another_grid_than_the_one_named_is_refused(simulated, tmp_path):
    files = two(tmp_path, simulated, "t2", *elsewhere(simulated, "t2", IDENTITY), label=True)
    refused(r"seg\.nii: expected the shape", files, "t2")


def test_an_image_without_a_brain_is_one_sentence(simulated, tmp_path):
    empty = np.full((5, 5, 5), 7, np.float32)
    refused(
        "T2 cannot be aligned: found no brain in it", two(tmp_path, simulated, "t2", empty, simulated.affine), "t1ce"
    )


def test_a_head_with_its_skull_is_told_on_the_other_grid_too(simulated, tmp_path, no_registration):
    array, affine = elsewhere(simulated, "t2", IDENTITY)
    head = np.where(array == 0, array.max(), array)
    head[:3] = 0
    case = align_case(two(tmp_path, simulated, "t2", head, affine), "t1ce")
    with pytest.warns(UserWarning, match=r"case Simulated_00000: t2 does not look skull-stripped .* strip the skull"):
        prepare(case)
