"""Writing in every layout: what was given is read back, the same input gives the same bytes, files are whole."""

import dataclasses
import errno
import os
import re
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.data import Case, writing
from smml.data.layouts import LAYOUTS, find_case, find_cases, layout_named
from smml.data.reading import read_case, read_image
from smml.data.writing import describe_classes, write_case, write_probabilities, write_segmentation
from smml.errors import InputError
from smml.modalities import MODALITIES

SHAPE = (5, 4, 3)
OBLIQUE = np.array([[0.9, -0.3, 0.1, -80.25], [0.2, 1.1, -0.2, 33.5], [-0.1, 0.3, 2.0, 7.125], [0, 0, 0, 1]])
AFFINES = {
    "RAS": np.diag([1.0, 1.0, 1.0, 1.0]),
    "LPS": np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]),
    "permuted": np.array([[0, 0, 2.0, -3], [-1.5, 0, 0, 4], [0, 1, 0, 5], [0, 0, 0, 1]]),
    "oblique": OBLIQUE,
}
CASE_NAMES = {
    "brats2015": "HGG/brats_2015_pat00002_1",
    "brats2018": "HGG/Brats18_00002_1",
    "brats2019": "HGG/BraTS19_00002_1",
    "brats2020": "BraTS20_Training_002",
    "brats2021": "BraTS2021_00002",
    "fets2022": "FeTS2022_00002",
    "brats2024": "BraTS-GLI-00002-100",
    "brats2023": "BraTS-GLI-00002-000",
    "brats-met": "BraTS-MET-00002-000",
    "brats-men": "BraTS-MEN-00002-000",
    "brats-ssa": "BraTS-SSA-00002-000",
    "brats-ped": "BraTS-PED-00002-000",
    "brats-ped-2023": "BraTS-PED-00002-000",
    "tcga": "TCGA-00-0002",
    "nnunet": "imagesTr",
    "msd": "imagesTr",
    "simulated": "Simulated_00002",
}


def make(layout: str = "brats2021", seed: int = 0, shape: tuple[int, int, int] = SHAPE):
    random = np.random.default_rng(seed)
    volumes = {name: random.integers(1, 3000, shape).astype(np.float32) for name in MODALITIES}
    return volumes, random.integers(0, LAYOUTS[layout].scheme.num_classes, shape).astype(np.uint8)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_keeps_voxels_labels_and_place(tmp_path, layout, affine):
    volumes, label = make(layout)
    written = write_case(Case("00002", volumes, label, affine, layout), tmp_path)
    assert find_cases(tmp_path, layout) == [written]
    assert (tmp_path / CASE_NAMES[layout]).is_dir()
    case = read_case(written)
    for name in MODALITIES:
        np.testing.assert_array_equal(case.volumes[name], volumes[name])
    np.testing.assert_array_equal(case.label, label)
    np.testing.assert_allclose(case.affine, affine, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "values"),
    [
        ("brats2015", [0, 1, 2, 3, 4]),
        ("brats2018", [0, 1, 2, 4]),
        ("brats2020", [0, 1, 2, 4]),
        ("brats2021", [0, 1, 2, 4]),
        ("fets2022", [0, 1, 2, 4]),
        ("tcga", [0, 1, 2, 4]),
        ("brats2023", [0, 1, 2, 3]),
        ("brats2024", [0, 1, 2, 3, 4]),
        ("brats-ped", [0, 2, 4, 1, 3]),
        ("nnunet", [0, 1, 2, 3]),
        ("msd", [0, 2, 1, 3]),
        ("simulated", [0, 1, 2, 4]),
    ],
)
def test_labels_on_disk_have_the_values_of_the_data_set(tmp_path, layout, values):
    volumes, label = make(layout)
    case = write_case(Case("1", volumes, label, np.eye(4), layout), tmp_path)
    stored, _ = read_image(case.label)
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, np.array(values)[label])


@settings(max_examples=15, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    flip=st.sampled_from([1, -1]),
    seed=st.integers(0, 99),
)
def test_round_trip_of_any_geometry(tmp_path_factory, layout, shape, angles, spacing, origin, flip, seed):
    affine = np.eye(4)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        others = [other for other in range(3) if other != axis]
        turn[np.ix_(others, others)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affine[:3, :3] = affine[:3, :3] @ turn
    affine[:3, :3] *= np.array(spacing) * [flip, 1, 1]
    affine[:3, 3] = origin
    volumes, label = make(layout, seed, shape)
    case = read_case(write_case(Case(str(seed), volumes, label, affine, layout), tmp_path_factory.mktemp("any")))
    np.testing.assert_array_equal(case.volumes["t1ce"], volumes["t1ce"])
    np.testing.assert_array_equal(case.label, label)
    np.testing.assert_allclose(case.affine, affine, atol=1e-4)
    np.testing.assert_allclose(case.spacing, spacing, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_input_gives_same_bytes(tmp_path, layout):
    volumes, label = make(layout)
    write_case(Case("00002", volumes, label, OBLIQUE, layout), tmp_path / "a")
    # A gzip header with a time or a temporary name would differ.
    earlier = time.time() - 5000
    for path in (tmp_path / "a").rglob("*.*"):
        os.utime(path, (earlier, earlier))
    if layout == "brats2021":
        time.sleep(1.1)
    write_case(Case("00002", volumes, label, OBLIQUE, layout), tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_files_of_2015_have_distinct_image_numbers(tmp_path):
    volumes, label = make("brats2015")
    for case_id in ("00002", "00003"):
        write_case(Case(case_id, volumes, label, np.eye(4), "brats2015"), tmp_path)
    numbers = [re.search(r"\.(\d+)\.mha", name)[1] for name in files(tmp_path)]
    assert len(numbers) == len(set(numbers)) == 10
    labels = {name.split("/")[2].rsplit(".", 1)[0] for name in files(tmp_path) if ".OT." in name}
    assert labels == {"VSD.Brain_3more.XX.O.OT"}


@pytest.mark.parametrize(
    ("layout", "name"), [("brats2015", "LGG_brats_2013_pat0001_1"), ("brats2020", "BraTS20_Training_355")]
)
def test_a_full_name_is_kept(tmp_path, layout, name):
    volumes, label = make(layout)
    assert write_case(Case(name, volumes, label, np.eye(4), layout), tmp_path).id == name
    assert find_cases(tmp_path)[0].id == name


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "msd"])
def test_a_subset_without_label_is_written_and_read(tmp_path, layout):
    volumes, _ = make()
    two = {"t2": volumes["t2"], "flair": volumes["flair"]}
    written = write_case(Case("00002", two, None, np.eye(4), layout), tmp_path)
    assert (written.modalities, written.label) == (("flair", "t2"), None)
    assert find_cases(tmp_path, layout) == [written]
    assert read_case(written).label is None


def test_images_are_int16_where_that_loses_nothing(tmp_path):
    volumes, _ = make()
    volumes["t1"] = volumes["t1"] + np.float32(0.5)
    volumes["t2"] = np.full(SHAPE, 40000.0)
    case = write_case(Case("1", volumes, None, np.eye(4), "brats2021"), tmp_path)
    kinds = {name: nib.load(source.path).get_data_dtype() for name, source in case.images.items()}
    assert kinds == {"flair": np.int16, "t1ce": np.int16, "t1": np.float32, "t2": np.float32}
    for name in MODALITIES:
        np.testing.assert_array_equal(read_case(case).volumes[name], volumes[name])


def test_nifti_carries_both_transforms_and_millimetres(tmp_path):
    write_segmentation(np.zeros(SHAPE, np.uint8), tmp_path / "seg.nii.gz", AFFINES["permuted"], "brats2021")
    header = nib.load(tmp_path / "seg.nii.gz").header
    for matrix, code in (header.get_qform(coded=True), header.get_sform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(matrix, AFFINES["permuted"], atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm"


def save_coded(path: Path, sform: int, qform: int, unit: str = "mm") -> Path:
    """An image with those transform codes, whose sform and qform lie 5 mm apart where both are set."""
    array = make()[0]["t1"]
    image = nib.Nifti1Image(array, None)
    image.header["pixdim"][:4] = 1, 1.5, 1, 2
    image.set_sform(AFFINES["permuted"] if sform else None, code=sform)
    moved = AFFINES["permuted"] + np.array([[0, 0, 0, 5.0]] * 3 + [[0] * 4]) * bool(sform)
    image.set_qform(moved if qform else None, code=qform)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def itk_place(path: Path) -> np.ndarray:
    """Origin, direction and spacing of the first three axes, as ITK reads them."""
    image = sitk.ReadImage(str(path))
    axes = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (axes, axes))[:3, :3]
    return np.concatenate([image.GetOrigin()[:3], direction.ravel(), image.GetSpacing()[:3]])


@pytest.mark.parametrize("codes", [(0, 0), (4, 0), (0, 2), (2, 2), (1, 1), (2, 4)])
def test_what_is_written_keeps_the_codes_and_both_transforms_of_the_input(tmp_path, codes):
    """Readers choose between the transforms each in its own way; SimpleITK is one that chooses unlike nibabel."""
    source = save_coded(tmp_path / "t1.nii.gz", *codes)
    case = read_case(source)
    kept = {"header": case.header}
    for name in ("out.nii.gz", "out.nii", "out.mha"):
        write_segmentation(np.zeros(SHAPE, np.uint8), tmp_path / name, case.affine, case.layout, **kept)
    write_probabilities(np.zeros((4, *SHAPE)), tmp_path / "p.nii.gz", case.affine, **kept)
    written = write_case(dataclasses.replace(case, id="1"), tmp_path / "case").images["t1"].path
    given = nib.load(source).header
    for path in (tmp_path / "out.nii.gz", tmp_path / "out.nii", tmp_path / "p.nii.gz", written):
        header = nib.load(path).header
        assert (int(header["sform_code"]), int(header["qform_code"])) == codes
        np.testing.assert_array_equal(header.get_sform(), given.get_sform())
        np.testing.assert_array_equal(header.get_qform(), given.get_qform())
        np.testing.assert_array_equal(nib.load(path).affine, nib.load(source).affine)
        np.testing.assert_array_equal(itk_place(path), itk_place(source))
    np.testing.assert_allclose(itk_place(tmp_path / "out.mha"), itk_place(source), atol=1e-5)


def test_transforms_in_another_unit_are_kept_in_mm(tmp_path):
    image = nib.Nifti1Image(make()[0]["t1"], np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINES["permuted"])
    image.set_qform(image.affine, code=2)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "t1.nii.gz")
    case = read_case(tmp_path / "t1.nii.gz")
    write_segmentation(np.zeros(SHAPE, np.uint8), tmp_path / "out.nii", case.affine, case.layout, header=case.header)
    header = nib.load(tmp_path / "out.nii").header
    assert header.get_xyzt_units()[0] == "mm"
    for matrix, code in (header.get_qform(coded=True), header.get_sform(coded=True)):
        assert code == 2
        np.testing.assert_allclose(matrix, AFFINES["permuted"], atol=1e-4)


def test_a_header_of_another_place_or_shape_than_the_affine_counts_for_nothing(tmp_path):
    case = read_case(save_coded(tmp_path / "t1.nii.gz", 4, 0))
    for affine, shape in ((OBLIQUE, SHAPE), (case.affine, (2, 2, 2))):
        labels, path = np.zeros(shape, np.uint8), tmp_path / "out.nii"
        write_segmentation(labels, path, affine, case.layout, header=case.header)
        assert int(nib.load(path).header["sform_code"]) == 1
        np.testing.assert_allclose(nib.load(path).affine, affine, atol=1e-5)


@pytest.mark.parametrize(("unit", "per_mm"), [("meter", 1e-3), ("micron", 1e3)])
def test_outputs_of_a_case_in_another_unit_are_in_mm_at_the_same_place(tmp_path, unit, per_mm):
    """SimpleITK, which the viewers of the field read with, is the judge of where an image lies."""
    image = nib.Nifti1Image(make()[0]["t1"], np.diag([per_mm, per_mm, per_mm, 1]) @ AFFINES["permuted"])
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "t1.nii.gz")
    case = read_case(tmp_path / "t1.nii.gz")
    write_segmentation(np.zeros(SHAPE, np.uint8), tmp_path / "out.nii.gz", case.affine, case.layout)
    write_segmentation(np.zeros(SHAPE, np.uint8), tmp_path / "out.mha", case.affine, case.layout)
    write_probabilities(np.zeros((4, *SHAPE)), tmp_path / "p.nii.gz", case.affine)
    for name in ("out.nii.gz", "p.nii.gz"):
        written = nib.load(tmp_path / name)
        assert written.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(written.affine, AFFINES["permuted"], atol=1e-5)
    given = sitk.ReadImage(str(tmp_path / "t1.nii.gz"))
    for name in ("out.nii.gz", "out.mha"):
        written = sitk.ReadImage(str(tmp_path / name))
        for index in ((0, 0, 0), tuple(length - 1 for length in SHAPE)):
            np.testing.assert_allclose(
                written.TransformIndexToPhysicalPoint(index), given.TransformIndexToPhysicalPoint(index), atol=1e-4
            )


@pytest.mark.parametrize(
    ("case_id", "volumes", "layout", "message"),
    [
        ("1", {"t1": np.ones(SHAPE)}, "msd", "keeps all of flair, t1, t1ce, t2 in one file, found only t1"),
        ("1", {"t1": np.ones(SHAPE)}, "brats1999", "unknown layout 'brats1999': choose from brats2015"),
        ("1", {"pet": np.ones(SHAPE)}, "brats2021", "unknown modality 'pet'"),
        ("1", {}, "brats2021", "is empty"),
        ("1", {"t1": np.ones(SHAPE), "t2": np.ones((5, 4, 2))}, "brats2021", "expected 3D arrays of one shape"),
        ("1", {"t1": np.ones((5, 4))}, "brats2021", "expected 3D arrays of one shape"),
        ("../x", {"t1": np.ones(SHAPE)}, "brats2018", "case id '../x': expected a number such as '00002'"),
        ("abc", {"t1": np.ones(SHAPE)}, "brats2020", "or a name like 'BraTS20_Training_002'"),
    ],
)
def test_a_case_that_the_layout_cannot_hold_is_refused_before_anything_is_written(
    tmp_path, case_id, volumes, layout, message
):
    with pytest.raises(InputError, match=re.escape(message)):
        write_case(Case(case_id, volumes, None, np.eye(4), layout), tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("label", [np.full(SHAPE, 4, np.uint8), np.full(SHAPE, -1), np.ones(SHAPE, np.float32)])
def test_labels_outside_the_scheme_are_refused_before_anything_is_written(tmp_path, label):
    with pytest.raises(InputError, match="expected integer labels from 0 to 3"):
        write_case(Case("1", make()[0], label, np.eye(4), "brats2021"), tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_segmentation_keeps_grid_and_disk_values_in_each_format(tmp_path, suffix, layout):
    scheme = LAYOUTS[layout].scheme
    labels = np.random.default_rng(0).integers(0, scheme.num_classes, SHAPE).astype(np.uint8)
    write_segmentation(labels, tmp_path / f"out/seg{suffix}", OBLIQUE, layout)
    stored, affine = read_image(tmp_path / f"out/seg{suffix}")
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, np.array(scheme.on_disk)[labels])
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)


def test_a_segmentation_is_written_in_no_layout_that_is_not_named(tmp_path):
    """A default, or a guess from the number of classes, would put ET = 4 into BraTS 2023 without a word."""
    labels = np.ones(SHAPE, np.uint8)
    with pytest.raises(TypeError, match="layout"):
        write_segmentation(labels, tmp_path / "seg.nii", np.eye(4))
    with pytest.raises(InputError, match="unknown layout 'brats1999': choose from brats2015"):
        write_segmentation(labels, tmp_path / "seg.nii", np.eye(4), "brats1999")
    assert files(tmp_path) == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_for_a_case_has_the_values_of_that_case_files(tmp_path, layout):
    volumes, label = make(layout)
    case = read_case(write_case(Case("1", volumes, label, OBLIQUE, layout), tmp_path))
    write_segmentation(case.label, tmp_path / "copy.nii.gz", case.affine, case.layout)
    np.testing.assert_array_equal(read_image(tmp_path / "copy.nii.gz")[0], read_image(case.sources["label"])[0])


def test_a_case_under_free_names_has_a_layout_that_can_be_written(tmp_path):
    nib.save(nib.Nifti1Image(make()[0]["t1"], np.eye(4)), tmp_path / "jane_t1.nii.gz")
    case = read_case(tmp_path / "jane_t1.nii.gz")
    assert layout_named(case.layout).scheme is case.scheme
    write_segmentation(np.full(SHAPE, 3), tmp_path / "seg.nii.gz", case.affine, case.layout)
    assert np.unique(read_image(tmp_path / "seg.nii.gz")[0]).tolist() == [4]


def test_probabilities_are_written_class_last(tmp_path):
    probabilities = np.random.default_rng(0).random((4, *SHAPE)).astype(np.float32)
    write_probabilities(probabilities, tmp_path / "p.nii.gz", OBLIQUE)
    image = nib.load(tmp_path / "p.nii.gz")
    assert (image.shape, image.get_data_dtype()) == ((*SHAPE, 4), np.float32)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.moveaxis(probabilities, 0, -1))
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)


def test_outputs_of_another_format_or_shape_are_refused(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    with pytest.raises(InputError, match=r"seg\.png: expected a name ending in \.nii\.gz, \.nii or \.mha"):
        write_segmentation(labels, tmp_path / "seg.png", np.eye(4), "brats2021")
    with pytest.raises(InputError, match="a segmentation has 3 dimensions"):
        write_segmentation(labels[0], tmp_path / "seg.nii", np.eye(4), "brats2021")
    with pytest.raises(InputError, match=r"written as \[K, X, Y, Z\] to a \.nii or \.nii\.gz file"):
        write_probabilities(np.zeros((4, *SHAPE)), tmp_path / "p.mha", np.eye(4))
    with pytest.raises(InputError, match="expected an invertible 4 x 4 matrix"):
        write_segmentation(labels, tmp_path / "seg.nii", np.diag([1, 1, 0, 1]), "brats2021")
    assert files(tmp_path) == {}


def fill_disk_after_some_bytes(monkeypatch) -> None:
    """Writers of either format put down a few bytes and then find the disk full."""

    def nifti(image, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def mha(image, path, **options):
        Path(path).write_bytes(b"half")
        raise RuntimeError("ITK ERROR: File cannot be written\nReason: No space left on device")

    monkeypatch.setattr(writing.nib, "save", nifti)
    monkeypatch.setattr(sitk, "WriteImage", mha)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"seg{suffix}"
    write_segmentation(np.ones(SHAPE, np.uint8), path, np.eye(4), "brats2021")
    before = files(tmp_path)
    fill_disk_after_some_bytes(monkeypatch)
    message = re.escape(f"{path}: writing failed (No space left on device)")
    with pytest.raises(InputError, match=message):
        write_segmentation(np.zeros(SHAPE, np.uint8), path, np.eye(4), "brats2021")
    assert files(tmp_path) == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_leaves_an_old_case_as_it_was(tmp_path, monkeypatch, layout):
    volumes, label = make(layout)
    case = write_case(Case("1", volumes, label, np.eye(4), layout), tmp_path)
    before = files(tmp_path)
    fill_disk_after_some_bytes(monkeypatch)
    with pytest.raises(InputError, match="No space left on device"):
        write_case(Case("1", make(layout, seed=1)[0], label, np.eye(4), layout), tmp_path)
    assert files(tmp_path) == before
    # Two releases of PED name their files alike.
    assert find_case([source.path for source in case.images.values()][:1], layout).layout == layout


@pytest.mark.parametrize("name", ["seg.MHA", "seg.NII", "seg.Nii.gz", "seg.NII.GZ", "seg.nii (1).gz"])
def test_a_name_in_capitals_or_with_a_browsers_mark_is_written_whole(tmp_path, name):
    """nibabel and ITK choose the format by the name of the hidden file, and know small letters alone."""
    _, label = make()
    (tmp_path / name).write_bytes(b"an answer that was there before")
    write_segmentation(label, tmp_path / name, AFFINES["LPS"], "brats2021")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    values, affine = read_image(tmp_path / name)
    np.testing.assert_array_equal(LAYOUTS["brats2021"].scheme.decode(values, name), label)
    np.testing.assert_allclose(affine, AFFINES["LPS"], atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_probabilities_are_named_class_by_class_and_no_more(layout):
    scheme = LAYOUTS[layout].scheme
    said = describe_classes(scheme).removeprefix("volumes: ").split(", ")
    assert [each.split(" ", 1)[1] for each in said] == list(scheme.learnt_classes)
