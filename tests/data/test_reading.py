"""Reading a case: its geometry, only what is asked, and every bad file told in one sentence."""

import dataclasses
import errno
import gzip
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smml.data.case import Case
from smml.data.labels import BRATS_2015, BRATS_2018, BRATS_2023, MSD
from smml.data.layouts import CaseFiles, ImageSource, find_case, find_cases
from smml.data.nifti import open_nifti
from smml.data.reading import read_case, read_image
from smml.data.writing import write_segmentation
from smml.errors import InputError
from smml.modalities import MODALITIES

SHAPE = (6, 5, 4)
AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1, 0, 100], [0, 0, 1.5, -70], [0, 0, 0, 1]])


def volume(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1000, shape).astype(np.int16)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def save_mha(path: Path, array: np.ndarray, compressed: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array.T.copy()), str(path), useCompression=compressed)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole case of 2021, labelled 0, 1, 2 and 4."""
    folder = tmp_path / "BraTS2021_00002"
    for seed, token in enumerate(("flair", "t1ce", "t1", "t2")):
        save(folder / f"BraTS2021_00002_{token}.nii.gz", volume(seed))
    save(folder / "BraTS2021_00002_seg.nii.gz", np.array([0, 1, 2, 4], np.uint8)[volume(9) % 4])
    return folder


def member(folder: Path, token: str) -> Path:
    return folder / f"{folder.name}_{token}.nii.gz"


def refused(case, message: str, **arguments) -> None:
    """Reading ends in an InputError of one sentence that matches ``message`` (a pattern)."""
    with pytest.raises(InputError, match=message) as caught:
        read_case(case, **arguments)
    assert "\n" not in str(caught.value)


def test_a_case_carries_volumes_label_and_geometry(folder):
    case = read_case(folder)
    assert (case.id, case.layout, case.scheme) == ("BraTS2021_00002", "brats2021", BRATS_2018)
    assert case.modalities == tuple(case.volumes) == MODALITIES
    for seed, name in enumerate(MODALITIES):
        assert case.volumes[name].dtype == np.float32
        np.testing.assert_array_equal(case.volumes[name], volume(seed))
    assert case.label.dtype == np.uint8
    np.testing.assert_array_equal(case.label, volume(9) % 4)
    assert (case.shape, case.spacing, case.orientation) == (SHAPE, (1.0, 1.0, 1.5), ("L", "P", "S"))
    assert case.affine.dtype == np.float64
    np.testing.assert_array_equal(case.affine, AFFINE)
    assert case.sources == {name: member(folder, name) for name in MODALITIES} | {"label": member(folder, "seg")}


def test_only_the_asked_modalities_are_opened(folder):
    files = find_case(folder)
    member(folder, "t1").write_bytes(b"corrupt")
    member(folder, "t1ce").unlink()
    member(folder, "seg").write_bytes(b"corrupt")
    case = read_case(files, "T2 + flair", label=False)
    assert (case.modalities, case.label) == (("flair", "t2"), None)
    assert set(case.sources) == {"flair", "t2"}
    refused(files, r"_t1\.nii\.gz: expected a complete", modalities=["t1"])
    refused(files, r"_t1ce\.nii\.gz: cannot be opened \(No such file", modalities=["t1ce"])
    refused(files, r"_seg\.nii\.gz: expected a complete", modalities=["t2"])


def test_a_missing_label_is_no_error(folder):
    member(folder, "seg").unlink()
    assert read_case(folder).label is None


def test_an_absent_modality_is_named_with_what_there_is(folder):
    member(folder, "t1ce").unlink()
    message = "case BraTS2021_00002: T1ce was asked for, but the case has only FLAIR, T1, T2 on disk"
    refused(folder, re.escape(message), modalities="t1ce+t2")
    assert read_case(folder).modalities == ("flair", "t1", "t2")


def test_files_and_assignments_are_read_like_a_folder(folder):
    case = read_case([member(folder, "t2"), f"flair={member(folder, 'flair')}"])
    assert (case.id, case.modalities, case.label) == ("BraTS2021_00002", ("flair", "t2"), None)


def test_msd_channels_are_mapped_by_name(tmp_path):
    stack = np.stack([volume(seed) for seed in range(4)], axis=-1)
    save(tmp_path / "imagesTr/BRATS_001.nii.gz", stack)
    save(tmp_path / "labelsTr/BRATS_001.nii.gz", (volume(9) % 4).astype(np.uint8))
    case = read_case(tmp_path)
    for name, channel in (("flair", 0), ("t1", 1), ("t1ce", 2), ("t2", 3)):
        np.testing.assert_array_equal(case.volumes[name], stack[..., channel])
    assert case.scheme == MSD
    np.testing.assert_array_equal(case.label, np.array([0, 2, 1, 3])[volume(9) % 4])


def test_msd_reads_the_asked_channel_alone(tmp_path):
    stack = np.stack([volume(seed) for seed in range(4)], axis=-1).astype(np.float32)
    stack[..., 1:] = np.nan
    path = save(tmp_path / "BRATS_001.nii", stack)
    np.testing.assert_array_equal(read_case(path, "flair").volumes["flair"], stack[..., 0])
    refused(path, "NaN or infinity in 120 of 120 voxels", modalities="t2")


@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 3)])
def test_msd_refuses_other_than_four_channels(tmp_path, shape):
    path = save(tmp_path / "BRATS_001.nii.gz", volume(shape=shape))
    refused(path, "expected (an image of 4 dimensions|4 channels)")


def test_mha_geometry_is_turned_from_lps_to_ras(tmp_path):
    path = tmp_path / "flair.mha"
    image = sitk.GetImageFromArray(volume().T.copy())
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))
    case = read_case(path)
    np.testing.assert_array_equal(case.volumes["flair"], volume())
    expected = [[0, -2, 0, -10], [-1, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(case.affine, expected, atol=1e-12)
    assert (case.spacing, case.orientation) == ((1.0, 2.0, 3.0), ("P", "L", "S"))


def test_2015_keeps_its_five_classes(tmp_path):
    for token, number in (("MR_T2", 1), ("OT", 2)):
        name = f"VSD.Brain.XX.O.{token}.{number}"
        save_mha(tmp_path / "HGG/p" / name / f"{name}.mha", volume() % 5 if token == "OT" else volume())
    (files,) = find_cases(tmp_path)
    case = read_case(files)
    assert (case.id, case.scheme) == ("HGG_p", BRATS_2015)
    np.testing.assert_array_equal(case.label, volume() % 5)


def test_2023_label_3_is_enhancing(tmp_path):
    save(tmp_path / "x-t2f.nii.gz", volume())
    save(tmp_path / "x-seg.nii.gz", (volume() % 4).astype(np.uint8))
    case = read_case(tmp_path)
    assert case.scheme == BRATS_2023
    np.testing.assert_array_equal(case.label, volume() % 4)


def test_mha_without_simpleitk_tells_what_to_install(tmp_path, monkeypatch):
    path = save_mha(tmp_path / "flair.mha", volume())
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    refused(path, re.escape('pip install "smml[mha]"'))


def test_intensity_scale_of_the_header_is_applied(tmp_path):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32) + np.linspace(0, 1, 4, dtype=np.float32), AFFINE)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "flair.nii.gz")
    values = read_case(tmp_path).volumes["flair"]
    np.testing.assert_allclose(values[0, 0], np.linspace(0, 1, 4), atol=1e-4)


def test_nifti_2_and_trailing_axes_of_length_one_are_read(tmp_path):
    nib.save(nib.Nifti2Image(volume()[..., None, None], AFFINE), tmp_path / "flair.nii.gz")
    save(tmp_path / "t1.nii", volume()[..., None])
    assert read_case(tmp_path).shape == SHAPE


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4, 2), (1,)])
def test_images_that_are_not_3d_are_refused(tmp_path, shape):
    save(tmp_path / "flair.nii.gz", volume(shape=shape))
    refused(tmp_path, "flair.nii.gz: expected an image of 3 dimensions, found shape")


def test_mha_that_is_not_3d_or_has_several_values_is_refused(tmp_path):
    refused(save_mha(tmp_path / "flair.mha", volume(shape=(6, 5))), "expected an image of 3 dimensions")
    colours = sitk.GetImageFromArray(volume(shape=(4, 5, 6, 3)), isVector=True)
    sitk.WriteImage(colours, str(tmp_path / "flair.mha"))
    refused(tmp_path / "flair.mha", "expected one value per voxel, found 3")


def test_complex_images_are_refused(tmp_path):
    save(tmp_path / "flair.nii.gz", volume().astype(np.complex64))
    refused(tmp_path, "expected one real number per voxel, found complex64")


def test_a_matrix_that_cannot_be_inverted_is_refused(tmp_path):
    image = nib.Nifti1Image(volume(), AFFINE)
    image.header["srow_x"] = image.header["srow_y"]
    image.to_filename(tmp_path / "flair.nii")
    path = tmp_path / "flair.nii"
    content = bytearray(path.read_bytes())
    content[280:296] = content[296:312]
    path.write_bytes(content)
    refused(path, "expected an invertible voxel-to-mm matrix")


@pytest.mark.parametrize("token", ["t2", "seg"])
def test_files_of_different_shapes_are_refused(folder, token):
    save(member(folder, token), np.ones((6, 5, 3), np.uint8))
    refused(folder, rf"_{token}\.nii\.gz: expected the shape \(6, 5, 4\) of .*_flair.*, found \(6, 5, 3\)")


@pytest.mark.parametrize("token", ["t2", "seg"])
def test_files_of_different_places_are_refused_beyond_a_tenth_of_a_voxel(folder, token):
    moved = AFFINE.copy()
    moved[1, 3] += 0.099
    save(member(folder, token), np.ones(SHAPE, np.uint8), moved)
    read_case(folder)
    moved[1, 3] += 0.002
    save(member(folder, token), np.ones(SHAPE, np.uint8), moved)
    refused(folder, rf"_{token}\.nii\.gz: expected the same place as .*_flair.*up to 0\.101\d* mm away.*than 0\.1 mm")


def test_large_voxels_do_not_widen_the_tolerance_beyond_a_fifth_of_a_mm(folder):
    coarse = np.diag([8.0, 8, 8, 1])
    for path in folder.iterdir():
        save(path, np.ones(SHAPE, np.uint8), coarse)
    save(member(folder, "t2"), np.ones(SHAPE, np.uint8), coarse + np.diag([0.19], 3))
    read_case(folder)
    save(member(folder, "t2"), np.ones(SHAPE, np.uint8), coarse + np.diag([0.21], 3))
    refused(folder, r"up to 0\.21 mm away")


@pytest.mark.parametrize("degrees", [0.1, 0.2, 0.35])
def test_sform_and_qform_of_one_slightly_tilted_grid_are_one_place(tmp_path, degrees):
    """Single precision of the quaternion moves the far corner of a head by hundredths of a mm."""
    shape, angle = (240, 240, 155), np.radians(degrees)
    tilt = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3] = np.column_stack([tilt @ np.diag([-1.0, -1, 1]), [120, 120, -77]])
    paths = [tmp_path / f"{name}.nii" for name in ("flair", "t1", "seg")]
    for path, codes in zip(paths, ((1, 0), (0, 1), (0, 1)), strict=True):
        image = nib.Nifti1Image(np.broadcast_to(np.uint8(1), shape), None)
        image.set_qform(affine, code=codes[1])
        image.set_sform(affine, code=codes[0])
        nib.save(image, path)
    far = np.array([*shape, 1])
    assert np.linalg.norm((nib.load(paths[0]).affine - nib.load(paths[1]).affine) @ far) > 1e-3
    assert read_case(tmp_path).modalities == ("flair", "t1")


def save_turned(path: Path, turn: list[float], kind: type[nib.Nifti1Image] = nib.Nifti1Image) -> np.ndarray:
    """An image whose quaternion, as it is stored, is longer than 1, and the affine that was meant."""
    assert np.linalg.norm(turn) > 1
    unit = np.array(turn) / np.linalg.norm(turn)
    affine = np.eye(4)
    affine[:3, :3] = 2 * np.outer(unit, unit) - np.eye(3)
    image = kind(np.ones(SHAPE, np.uint8), None)
    for name, value in zip(("quatern_b", "quatern_c", "quatern_d"), turn, strict=True):
        image.header[name] = value
    image.header["qform_code"], image.header["pixdim"][0] = 1, 1
    nib.save(image, path)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(path)
    return affine


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_quaternion_whose_rounding_left_it_too_long_is_read_as_the_reference_library_does(tmp_path, kind):
    paths = [tmp_path / f"{name}.nii.gz" for name in ("flair", "seg")]
    for path in paths:
        affine = save_turned(path, [0.26733, 0.53466, 0.80167], kind)
    case = read_case(tmp_path)
    for found in (case.affine, open_nifti(paths[1]).affine):
        np.testing.assert_allclose(found, affine, atol=1e-6)
    if kind is nib.Nifti1Image:  # ITK does not read the other
        direction = np.reshape(sitk.ReadImage(str(paths[0])).GetDirection(), (3, 3))
        np.testing.assert_allclose(np.diag([-1, -1, 1]) @ direction, affine[:3, :3], atol=1e-5)
    write_segmentation(case.label, tmp_path / "out.nii.gz", case.affine, case.layout, header=case.header)
    np.testing.assert_allclose(read_image(tmp_path / "out.nii.gz")[1], affine, atol=1e-6)


def test_a_quaternion_that_no_rounding_explains_is_refused(tmp_path):
    save_turned(tmp_path / "flair.nii.gz", [0.27, 0.54, 0.81])
    refused(tmp_path, r"flair\.nii\.gz.*w2 should be positive")


def save_in(unit: str, path: Path, array: np.ndarray, per_mm: float) -> Path:
    """The same place as ``save``, with a header in another unit."""
    image = nib.Nifti1Image(array, np.diag([per_mm, per_mm, per_mm, 1]) @ AFFINE)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, path)
    assert nib.load(path).header.get_xyzt_units() == (unit, "sec")
    return path


@pytest.mark.parametrize(("unit", "per_mm"), [("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0), ("mm", 1.0)])
def test_units_of_the_header_are_brought_to_mm(folder, unit, per_mm):
    """Units may even differ between the files of a case: they lie at one place all the same."""
    save_in(unit, member(folder, "flair"), volume(), per_mm)
    case = read_case(folder)
    np.testing.assert_allclose(case.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(case.spacing, (1, 1, 1.5), rtol=1e-6)
    save_in(unit, member(folder, "seg"), np.ones(SHAPE, np.uint8), per_mm)
    assert read_case(folder, "t2").label.all()


def test_a_unit_that_the_format_does_not_define_counts_as_mm(folder):
    path = member(folder, "flair")
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[123] = 7  # xyzt_units
    path.write_bytes(gzip.compress(bytes(content)))
    assert read_case(folder).spacing == (1.0, 1.0, 1.5)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
@pytest.mark.parametrize("edge", [0.04, 51.0])
def test_voxels_of_an_impossible_size_are_refused(tmp_path, suffix, edge):
    path = tmp_path / f"flair{suffix}"
    for length, fits in ((edge, False), (0.05 if edge < 1 else 50.0, True)):
        if suffix == ".mha":
            image = sitk.GetImageFromArray(volume().T.copy())
            image.SetSpacing((1, length, 1))
            sitk.WriteImage(image, str(path))
        else:
            save(path, volume(), np.diag([1, length, 1, 1]))
        if fits:
            assert read_case(path).spacing[1] == pytest.approx(length)
        else:
            refused(path, rf"flair{suffix}: expected voxel edges of 0\.05 to 50 mm, found 1 x {edge:g} x 1 mm; repair")


def test_a_header_that_says_metres_and_means_mm_is_refused(folder):
    save_in("meter", member(folder, "t1"), volume(), 1.0)
    refused(folder, r"_t1\.nii\.gz: expected voxel edges .* found 1000 x 1000 x 1500 mm; .* unit")


def test_a_turned_file_is_refused_though_its_origin_agrees(folder):
    turned = AFFINE.copy()
    turned[0, 1] = 4e-2
    save(member(folder, "t2"), volume(), turned)
    refused(folder, r"up to 0\.16 mm away")


def test_label_values_of_another_layout_are_refused(folder):
    save(member(folder, "seg"), (volume() % 4).astype(np.uint8))
    refused(folder, r"_seg\.nii\.gz: label value 3 is not one of 0, 1, 2, 4")
    save(member(folder, "seg"), (volume() % 3 - 1).astype(np.int16))
    refused(folder, r"label value -1 is not one of")


@pytest.mark.parametrize("odd", [0.5, np.nan])
def test_label_values_that_are_not_whole_are_refused(folder, odd):
    label = np.ones(SHAPE, np.float32)
    label[0, 0, :2] = odd
    save(member(folder, "seg"), label)
    refused(folder, r"_seg\.nii\.gz: expected whole label values, found 2 of 120 voxels that are not")


@pytest.mark.parametrize("stored", ["float", "slope"])
def test_labels_stored_inexactly_count_as_the_nearest_whole_value(folder, stored):
    labels = np.array([0, 1, 2, 4], np.uint8)[volume(9) % 4]
    if stored == "float":
        image = nib.Nifti1Image((labels * np.float32(1.0000001) + np.float32(0.019)).astype(np.float32), AFFINE)
    else:
        # 4 is stored as 255 with a slope that single precision rounds, as tools write that fill the whole integer.
        image = nib.Nifti1Image(np.rint(labels * 63.75).astype(np.uint8), AFFINE)
        image.header.set_slope_inter(4 / 255, 0.001)
    nib.save(image, member(folder, "seg"))
    np.testing.assert_array_equal(read_case(folder).label, volume(9) % 4)


@pytest.mark.parametrize(("slope", "what"), [(0.5, "expected whole label values"), (3.0, "label value 3, 6, 12 is")])
def test_labels_that_a_scale_of_the_header_spoils_are_refused_with_the_scale(folder, slope, what):
    image = nib.Nifti1Image(np.array([0, 1, 2, 4], np.uint8)[volume(9) % 4], AFFINE)
    image.header.set_slope_inter(slope, 0)
    nib.save(image, member(folder, "seg"))
    refused(folder, rf"_seg.*{what}.*multiplies what is stored by {slope:g} and adds 0: .* set scl_slope to 1")


@pytest.mark.parametrize("odd", [1.03, -0.03])
def test_label_values_further_from_whole_than_rounding_are_refused(folder, odd):
    save(member(folder, "seg"), np.full(SHAPE, odd, np.float32))
    refused(folder, "expected whole label values, found 120 of 120 .* resampled with nearest neighbour")


def test_whole_labels_stored_as_floats_and_empty_labels_are_fine(folder):
    save(member(folder, "seg"), np.full(SHAPE, 4, np.float64))
    assert (read_case(folder).label == 3).all()
    save(member(folder, "seg"), np.zeros(SHAPE, np.uint8))
    assert not read_case(folder).label.any()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted(folder, odd):
    values = volume().astype(np.float32)
    values[1, 2, :3] = odd
    save(member(folder, "t1"), values)
    refused(folder, r"_t1\.nii\.gz: expected finite intensities, found NaN or infinity in 3 of 120 voxels")


def test_a_volume_of_zeros_is_refused(folder):
    save(member(folder, "t1ce"), np.zeros(SHAPE, np.int16))
    refused(folder, r"_t1ce\.nii\.gz: expected an image, found only zeros; .* leave T1ce out")


def test_a_folder_named_like_an_image_is_refused(folder):
    member(folder, "t1").unlink()
    member(folder, "t1").mkdir()
    refused(folder, r"_t1\.nii\.gz: expected an image file, found a folder")


def damaged(content: bytes) -> dict[str, bytes]:
    """The ways in which copying and renaming spoil a file; the last byte matters to a checksum alone."""
    flipped = bytearray(content)
    flipped[-len(content) // 4] ^= 0xFF
    return {
        "empty": b"",
        "text": b"modality,file\nflair,missing\n" * 40,
        "zeros": bytes(2000),
        "one byte": content[:1],
        "cut in the header": content[:200],
        "cut in the middle": content[: len(content) // 2],
        "cut near the end": content[:-20],
        "cut by a byte": content[:-1],
        "a byte changed": bytes(flipped),
    }


# An uncompressed image has no checksum: a changed byte is another image.
DAMAGES = [
    (suffix, damage)
    for suffix in (".nii", ".nii.gz", ".mha", "raw.mha")
    for damage in damaged(bytes(4))
    if not (damage == "a byte changed" and suffix in (".nii", "raw.mha"))
]


@pytest.mark.parametrize(("suffix", "damage"), DAMAGES)
def test_damaged_files_are_refused_in_one_sentence_and_silently(tmp_path, capfd, suffix, damage):
    path = tmp_path / f"flair{suffix.removeprefix('raw')}"
    if path.suffix == ".mha":
        save_mha(path, volume(), compressed=suffix == ".mha")
    else:
        save(path, volume())
    path.write_bytes(damaged(path.read_bytes())[damage])
    refused(path, re.escape(f"{path}: expected a complete {path.name[5:]} image, found {path.stat().st_size} bytes"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("std::bad_alloc")], ids=repr
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha"])
def test_too_little_memory_is_no_damage(tmp_path, monkeypatch, suffix, error):
    def fails(*_):
        raise error

    path = tmp_path / f"flair{suffix}"
    save_mha(path, volume()) if suffix == ".mha" else save(path, volume())
    monkeypatch.setattr(sitk, "GetArrayFromImage", fails)
    monkeypatch.setattr(nib.Nifti1Image, "from_stream", fails)
    refused(path, rf"flair{suffix}: too little memory; close other programs, read fewer sequences")
    with pytest.raises(InputError, match="too little memory"):
        read_image(path)


def test_a_header_alone_is_refused(tmp_path):
    content = save(tmp_path / "t1.nii", volume()).read_bytes()
    (tmp_path / "flair.nii").write_bytes(content[:352])
    refused(tmp_path / "flair.nii", r"the image ends after 352 of 592 bytes")
    (tmp_path / "flair.nii.gz").write_bytes(gzip.compress(content[:352]))
    refused(tmp_path / "flair.nii.gz", r"the image ends after 352 of 592 bytes")
    content = save_mha(tmp_path / "t1.mha", volume()).read_bytes()
    (tmp_path / "flair.mha").write_bytes(content[: content.index(b"LOCAL\n") + 6])
    refused(tmp_path / "flair.mha", "expected a complete .mha image")


@pytest.mark.parametrize(("written", "named"), [("t1.nii", "flair.nii.gz"), ("t1.nii.gz", "flair.nii")])
def test_nifti_is_read_whether_it_is_packed_as_its_name_says_or_not(tmp_path, written, named):
    shutil.copy(save(tmp_path / "x" / written, volume()), tmp_path / named)
    np.testing.assert_array_equal(read_case(tmp_path / named).volumes["flair"], volume())


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a file ending in \.nii\.gz, \.nii, \.mha"):
        read_image(save(tmp_path / "t1.nii", volume()).rename(tmp_path / "t1.img"))


def test_an_mha_that_refers_to_another_file_is_refused(tmp_path):
    path = save_mha(tmp_path / "flair.mha", volume())
    path.write_bytes(path.read_bytes().replace(b"LOCAL", b"other.raw"))
    refused(path, r"found a reference to other\.raw")


@pytest.fixture(scope="module")
def specimens(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("specimens")
    return {
        ".nii": save(folder / "a.nii", volume()).read_bytes(),
        ".nii.gz": save(folder / "a.nii.gz", volume()).read_bytes(),
        ".mha": save_mha(folder / "a.mha", volume()).read_bytes(),
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([".nii", ".nii.gz", ".mha"]), cut=st.booleans())
def test_no_damage_whatever_ends_in_another_exception(tmp_path, specimens, data, suffix, cut):
    content = bytearray(specimens[suffix])
    position = data.draw(st.integers(0, len(content) - 1))
    if cut:
        content = content[:position]
    else:
        # Headers are where nonsense is dangerous: dimensions, types, offsets.
        content[position % 400] = data.draw(st.integers(0, 255))
    path = tmp_path / f"flair{suffix}"
    path.write_bytes(content)
    files = CaseFiles("x", "brats2021", {"flair": ImageSource(path)})
    message = None
    try:
        read_case(files)
    except InputError as error:
        message = str(error)
    if cut:
        assert message is not None
    if message is not None:
        assert str(path) in message
        assert "\n" not in message


def test_spacing_and_orientation_follow_from_the_affine():
    """Kept as fields of their own, they would stay behind when a case is made with another affine."""
    case = Case("a", {"t1": volume()}, None, np.diag([-2.0, 3.0, 1.5, 1.0]), "brats2021")
    assert (case.spacing, case.orientation) == ((2.0, 3.0, 1.5), ("L", "A", "S"))
    turned = dataclasses.replace(case, affine=np.array([[0, 0, 2.0, 0], [-1.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 0, 1]]))
    assert (turned.spacing, turned.orientation) == ((1.0, 4.0, 2.0), ("P", "S", "R"))
