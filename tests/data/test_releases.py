"""What a release means by its names and values: every layout and back, and none read as another in silence."""

import dataclasses
import json
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.data import LAYOUTS, Case, CohortDataset, find_case, find_cases, read_case, write_case
from smml.data.checking import check_cases, find_problems, warn_of_not_learnt, what_is_not_learnt
from smml.data.labels import REGIONS, scheme_for_classes
from smml.data.layouts import CaseFiles, warn_of_release
from smml.data.nnunet import dataset_beside
from smml.data.releases import layout_named, patient_of
from smml.errors import InputError
from smml.info import check_cohort
from smml.modalities import MODALITIES

SHAPE = (4, 3, 5)

# Of each release by its own documents (smml/data/releases.py): values on disk of WT, TC, ET and of what is in none.
REGIONS_ON_DISK = {
    "brats2015": ({1, 2, 3, 4}, {1, 3, 4}, {4}, set()),
    **dict.fromkeys(
        ("brats2018", "brats2019", "brats2020", "brats2021", "fets2022", "tcga", "simulated"),
        ({1, 2, 4}, {1, 4}, {4}, set()),
    ),
    **dict.fromkeys(
        ("brats2023", "brats-men", "brats-ssa", "brats-ped-2023", "nnunet"), ({1, 2, 3}, {1, 3}, {3}, set())
    ),
    **dict.fromkeys(("brats2024", "brats-met"), ({1, 2, 3}, {1, 3}, {3}, {4})),
    "brats-ped": ({1, 2, 3, 4}, {1, 2, 3}, {1}, set()),
    "msd": ({1, 2, 3}, {2, 3}, {3}, set()),
}


def of(layout: str, case_id: str = "00002", values: list[int] | None = None) -> Case:
    """A case with every class in its label, or with these values on disk alone."""
    random = np.random.default_rng(0)
    style = layout_named(layout)
    label = (np.arange(np.prod(SHAPE)) % style.scheme.num_classes).astype(np.uint8).reshape(SHAPE)
    if values is not None:
        label = style.scheme.decode(random.permutation(np.resize(values, np.prod(SHAPE))).reshape(SHAPE), "test")
    volumes = {name: random.integers(1, 999, SHAPE).astype(np.float32) for name in MODALITIES}
    return Case(case_id, volumes, label, np.diag([-1.0, -1, 1, 1]), layout)


def stored(files: CaseFiles) -> np.ndarray:
    return np.asarray(nib.load(files.label).dataobj)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_regions_are_made_of_the_values_that_the_release_says(layout):
    scheme = LAYOUTS[layout].scheme
    on_disk = np.array(sorted(scheme.on_disk))
    labels = scheme.decode(on_disk, "test")
    *regions, none = REGIONS_ON_DISK[layout]
    for name, values in zip(REGIONS, regions, strict=True):
        assert set(on_disk[scheme.region(labels, name)].tolist()) == values
    outside = ~scheme.region(labels, "WT") & (on_disk > 0)
    assert set(on_disk[outside].tolist()) == none


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_network_learns_of_a_release_keeps_the_regions(layout):
    """The cavity is background then and the cyst a part of the core: scores of WT, TC and ET do not notice."""
    scheme = LAYOUTS[layout].scheme
    labels = np.arange(scheme.num_classes, dtype=np.uint8)
    learnt = scheme.learnt(labels)
    model = scheme_for_classes(len(scheme.learnt_classes))
    assert learnt.max() < model.num_classes
    for region in REGIONS:
        assert np.array_equal(model.region(learnt, region), scheme.region(labels, region))


@settings(max_examples=25, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    number=st.integers(0, 9999),
    have=st.sets(st.sampled_from(MODALITIES), min_size=1),
    labelled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_layout_and_back(tmp_path_factory, layout, number, have, labelled, seed):
    """Written, found by its names alone, read: the same case, from the folder and from its single files."""
    root = tmp_path_factory.mktemp("any")
    case = of(layout, f"{number:05d}")
    label = np.random.default_rng(seed).integers(0, LAYOUTS[layout].scheme.num_classes, SHAPE).astype(np.uint8)
    volumes = case.volumes if layout == "msd" else {name: case.volumes[name] for name in MODALITIES if name in have}
    case = dataclasses.replace(case, volumes=volumes, label=label if labelled else None)
    written = write_case(case, root)
    # Without a label nothing tells the two of PED apart, and nothing needs to.
    names_tell = layout != "brats-ped-2023"
    (found,) = find_cases(root, None if names_tell else layout)
    assert found == written
    assert found.layout == layout
    images = list(dict.fromkeys(source.path for source in found.images.values()))
    assert find_case(images, None if names_tell else layout).images == found.images
    again = read_case(found)
    for name in volumes:
        np.testing.assert_array_equal(again.volumes[name], volumes[name])
    if labelled:
        np.testing.assert_array_equal(again.label, label)
    else:
        assert again.label is None
    assert write_case(dataclasses.replace(again, sources={}), root / "again").id == found.id


# ---------------------------------------------------------------- releases of the same names


def test_time_points_tell_2024_from_2023(tmp_path):
    for layout in ("brats2023", "brats2024"):
        write_case(of(layout), tmp_path / layout)
        (case,) = find_cases(tmp_path / layout)
        assert (case.layout, case.patient) == (layout, "brats-gli-00002")
    with pytest.raises(InputError, match="mix of brats2023 and brats2024"):
        find_cases(tmp_path)


def test_a_cavity_under_a_name_of_2023_is_refused_and_the_remedy_works(tmp_path):
    case = write_case(of("brats2024", "BraTS-GLI-00002-000"), tmp_path)
    (found,) = find_cases(tmp_path)
    assert found.layout == "brats2023"
    message = r"label value 4 is not one of 0, 1, 2, 3 .* of brats2024, whose files .* --layout brats2024$"
    for use in (read_case, lambda files: check_cases([files], progress=False)):
        with pytest.raises(InputError, match=message):
            use(found)
    (found,) = find_cases(tmp_path, "brats2024")
    assert found.label == case.label
    assert find_problems([found], progress=False) == {}
    assert (read_case(found).label == 4).any()


def test_children_of_2024_are_known_by_a_value_of_their_own(tmp_path):
    write_case(of("brats-ped", "00001", [0, 1, 2]), tmp_path)
    write_case(of("brats-ped", "00002", [0, 1, 2, 4]), tmp_path)
    one, two = find_cases(tmp_path)
    assert one.layout == two.layout == "brats-ped"
    labels = read_case(one).label
    assert one.scheme.classes == ("background", "NCR/NET", "ED", "ET", "CC")
    np.testing.assert_array_equal(labels, np.array([0, 3, 1])[stored(one)])


@pytest.mark.parametrize("as_2023", [True, False])
def test_children_of_whom_nothing_tells_the_year_are_refused_until_someone_says(tmp_path, as_2023):
    layout = "brats-ped-2023" if as_2023 else "brats-ped"
    files = write_case(of(layout, "00001", [0, 1, 2, 3]), tmp_path)
    message = (
        r"brats-ped \(1 ET, 2 NCR/NET, 3 CC, 4 ED\) and brats-ped-2023 \(1 NCR/NET, 2 ED, 3 ET\) are named alike, and "
        r"none of the 1 labels here holds a 4, .* --layout brats-ped-2023 or --layout brats-ped$"
    )
    named = [*(source.path for source in files.images.values()), files.label]
    for use in (find_cases, find_case, read_case, lambda _: read_case(named)):
        with pytest.raises(InputError, match=message):
            use(tmp_path)
    values = np.array([0, 1, 2, 3] if as_2023 else [0, 3, 1, 4])
    np.testing.assert_array_equal(read_case(find_cases(tmp_path, layout)[0]).label, values[stored(files)])
    # Whoever does not read labels need not know.
    assert read_case(tmp_path, label=False).modalities == MODALITIES


def test_a_named_layout_takes_no_file_of_another_and_leaves_none_out(tmp_path):
    write_case(of("brats2021"), tmp_path)
    with pytest.raises(InputError, match=r"expected names of brats2024 \(BraTS-GLI.*found those of brats2021"):
        find_cases(tmp_path, "brats2024")
    with pytest.raises(InputError, match=r"expected names of brats2024 .* found those of brats2021"):
        find_case([tmp_path / "BraTS2021_00002/BraTS2021_00002_t1.nii.gz"], "brats2024")
    with pytest.raises(InputError, match="unknown layout 'brats2022'"):
        find_cases(tmp_path, "brats2022")


# ---------------------------------------------------------------- what is not learnt is said


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("brats2021", []),
        ("brats2015", []),
        (
            "brats2024",
            [
                "brats2024: the resection cavity (RC, 4 on disk) counts as background and is not predicted: networks "
                "here know NCR/NET, ED, ET"
            ],
        ),
        (
            "brats-ped",
            [
                "brats-ped: the cystic component (CC, 3 on disk) counts as NCR/NET and is not told apart: networks "
                "here know NCR/NET, ED, ET"
            ],
        ),
    ],
)
def test_a_release_that_tells_more_than_a_network_learns_says_so(tmp_path, layout, said):
    cases = [write_case(of(layout, number), tmp_path) for number in ("00001", "00002")]
    assert what_is_not_learnt(cases) == said
    cohort, problems = check_cohort(tmp_path)
    assert cohort.splitlines()[1:] == said
    assert problems == {}


def test_it_is_shown_once_whoever_asks():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn_of_not_learnt([of("brats2024")])
            warn_of_not_learnt([of("brats2024", "00003"), of("brats2021")])
    assert len(caught) == 1


@pytest.mark.parametrize(("layout", "learnt"), [("brats2024", 0), ("brats-ped", 1)])
def test_training_sees_the_four_classes(tmp_path, layout, learnt):
    dataset = CohortDataset([write_case(of(layout), tmp_path)], patch=32, augment=False)
    assert dataset.num_classes == 4
    prepared, _ = dataset._prepared(0)
    label = of(layout).label
    assert prepared.label.max() == 3
    assert int((prepared.label == learnt).sum()) == int(np.isin(label, [learnt, 4]).sum())


def test_five_classes_of_2015_and_four_are_not_trained_together_and_both_are_named(tmp_path):
    cases = [write_case(of(layout), tmp_path / layout) for layout in ("brats2015", "brats2024")]
    message = r"brats2015 \(NCR, ED, NET, ET\) and brats2024 \(NCR/NET, ED, ET\); train on one kind"
    with pytest.raises(InputError, match=message):
        CohortDataset(cases, patch=32)


# ---------------------------------------------------------------- TCGA


def test_a_segmentation_that_nobody_looked_at_is_no_truth(tmp_path):
    case = write_case(of("tcga"), tmp_path)
    automatic = case.label.with_name(case.label.name.replace("_ManuallyCorrected", ""))
    automatic.write_bytes(case.label.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_cases(tmp_path) == [case]
    case.label.unlink()
    with pytest.warns(UserWarning, match=r"_GlistrBoost\.nii\.gz: not taken for the truth.*1 of 1 cases"):
        assert find_cases(tmp_path)[0].label is None
    named = find_case([case.images["t1"].path, automatic])
    assert named.label == automatic, "who names it means it"


# ---------------------------------------------------------------- nnU-Net's raw folder


def nnunet(root: Path, channels: dict, labels: dict) -> None:
    root.mkdir(parents=True, exist_ok=True)
    text = {"channel_names": channels, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(text), encoding="utf-8")


FOUR = {"0": "T1n", "1": "T1c", "2": "T2w", "3": "T2f"}


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 3}, (0, 1, 2, 3)),
        ({"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}, (0, 2, 1, 3)),
        ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}, (0, 1, 2, 3, 4)),
        ({"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}, (0, 2, 1, 3)),
        ({"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": 3}, (0, 1, 2, 3)),
        ({"background": 0, "ET": 1, "NET": 2, "CC": 3, "ED": 4}, (0, 2, 4, 1, 3)),
    ],
)
def test_nnunets_channels_and_labels_are_read_by_name_alone(tmp_path, labels, values):
    nnunet(tmp_path, FOUR, labels)
    case, random = of("brats2021"), np.random.default_rng(0)
    (tmp_path / "imagesTr").mkdir()
    for number, role in enumerate(("t1", "t1ce", "t2", "flair")):
        nib.save(nib.Nifti1Image(case.volumes[role], np.eye(4)), tmp_path / f"imagesTr/x_{number:04d}.nii.gz")
    (tmp_path / "labelsTr").mkdir()
    memory = random.integers(0, len(values), SHAPE).astype(np.uint8)
    nib.save(nib.Nifti1Image(np.array(values, np.uint8)[memory], np.eye(4)), tmp_path / "labelsTr/x.nii.gz")
    read = read_case(find_cases(tmp_path)[0])
    np.testing.assert_array_equal(read.label, memory)
    for role in MODALITIES:
        np.testing.assert_array_equal(read.volumes[role], case.volumes[role])
    assert read.scheme.on_disk == values
    assert layout_named(read.layout).scheme == read.scheme
    # And what is predicted for it has the same values.
    np.testing.assert_array_equal(read.scheme.encode(read.label), np.array(values)[memory])


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "lesion": 1},
        {"background": 0, "WT": [1, 2, 3, 4], "TC": [1, 2, 3], "ET": [1]},
        {"background": 0, "NCR": 1, "NET": 2, "ED": 3, "ET": 4},
        {"background": 0, "NCR": 1, "ED": 1, "ET": 2},
        {"background": 1, "NCR": 0, "ED": 2, "ET": 3},
        {"background": 0, "NCR": "one", "ED": 2, "ET": 3},
        {"background": 0, "NCR": None, "ED": 2, "ET": 3},
        {"background": 0, "NCR": -1, "ED": 2, "ET": 3},
        {"0": "background", "1": ["NCR"], "2": "ED", "3": "ET"},
    ],
)
def test_nnunets_labels_that_tell_no_classes_are_refused(tmp_path, labels):
    nnunet(tmp_path, FOUR, labels)
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr/x_0000.nii.gz").touch()
    with pytest.raises(InputError, match=r"dataset\.json: expected labels that tell NCR/NET, ED and ET"):
        find_cases(tmp_path)


def test_a_channel_that_is_none_of_the_sequences_is_named_and_no_other_taken_for_it(tmp_path):
    nnunet(tmp_path, {"0": "CT", "1": "T2"}, {"background": 0, "NCR": 1, "ED": 2, "ET": 3})
    (tmp_path / "imagesTs").mkdir()
    for number in (0, 1):
        (tmp_path / f"imagesTs/x_{number:04d}.nii.gz").touch()
    with pytest.warns(UserWarning, match=r"x_0000\.nii\.gz: not used"):
        (case,) = find_cases(tmp_path)
    assert {role: source.path.name for role, source in case.images.items()} == {"t2": "x_0001.nii.gz"}


def test_what_is_written_is_what_nnunet_asks_for(tmp_path):
    for number in ("00001", "00002"):
        write_case(of("nnunet", number), tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    assert content["numTraining"] == 2
    assert content["labels"] == {"background": 0, "NCR/NET": 1, "ED": 2, "ET": 3}
    assert content["file_ending"] == ".nii.gz"
    assert sorted(path.name for path in (tmp_path / "imagesTr").iterdir())[:4] == [
        f"case_00001_000{channel}.nii.gz" for channel in range(4)
    ]
    assert dataset_beside(tmp_path / "imagesTr/any").layout == "nnunet"
    nnunet(tmp_path / "other", FOUR, content["labels"])
    with pytest.raises(InputError, match="says something else about channels or labels"):
        write_case(of("nnunet"), tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["dataset.json"]


def test_visits_of_a_patient_are_known_under_nnunets_names_too():
    visits = [CaseFiles(f"BraTS-GLI-00005-10{visit}", "nnunet", {}) for visit in range(2)]
    assert {case.patient for case in visits} == {"brats-gli-00005"}


def test_every_case_of_msd_is_a_patient_of_its_own_under_nnunets_names_too():
    cases = [CaseFiles(f"BRATS_00{number}", "nnunet", {}) for number in (1, 2)]
    assert [case.patient for case in cases] == ["brats_001", "brats_002"]


def test_nnunets_folder_may_be_named_whatever_its_values(tmp_path):
    nnunet(tmp_path, FOUR, {"background": 0, "ED": 1, "NCR": 2, "ET": 3})
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr/x_0000.nii.gz").touch()
    (case,) = find_cases(tmp_path, "nnunet")
    assert case.layout == "nnunet(NCR=2,ED=1,ET=3)"
    assert find_case([tmp_path / "imagesTr/x_0000.nii.gz"], "nnunet") == case
    with pytest.raises(InputError, match="found those of nnunet"):
        find_case([tmp_path / "imagesTr/x_0000.nii.gz"], "brats2021")


def test_no_other_layout_is_named_for_nnunets_folder_whose_files_it_could_not_find():
    files = CaseFiles("BraTS2021_00002", "nnunet", {})
    with pytest.raises(InputError, match="label value 4 is not one of 0, 1, 2, 3") as caught:
        files.decode(np.array([0, 1, 4]))
    assert "--layout" not in str(caught.value)


# ---------------------------------------------------------------- free names


SPELLINGS = {
    "t1ce": ("jane_T1_post", "T1_Gd", "T1CE_brain", "jane_T1_post_contrast", "jane-T1w-ce", "t1ce (1)", "t1_gd_bet"),
    "t1": ("t1_bet", "jane_T1_pre", "T1_no_gd", "jane_T1_reg", "T1 (2)", "jane_T1_n4_brain"),
    "flair": ("FLAIR_reg", "T2_FLAIR", "jane_t2w-flair", "XX_FLAIR (1)", "flair_skull_stripped"),
    "t2": ("T2", "jane_T2_bet", "t2w_mni"),
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in SPELLINGS.items() for name in names])
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_sequence_is_found_under_many_a_spelling(tmp_path, role, name, suffix):
    (tmp_path / f"{name}{suffix}").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_case(tmp_path).modalities == (role,)


def test_the_parts_of_one_patient_belong_together_however_they_are_spelt(tmp_path):
    names = {"flair": "jane_T2_FLAIR", "t1ce": "jane_T1_post", "t1": "jane_t1_bet", "t2": "jane_T2 (1)"}
    for name in names.values():
        (tmp_path / f"{name}.nii.gz").touch()
    case = find_case(tmp_path)
    assert {role: source.path.name for role, source in case.images.items()} == {
        role: f"{name}.nii.gz" for role, name in names.items()
    }
    assert case.id == "jane"


@pytest.mark.parametrize("name", ["BraTS2021_00002_t1 (1).nii.gz", "BraTS2021_00002_t1.nii (1).gz"])
def test_a_second_download_of_a_data_set_s_file_is_that_file(tmp_path, name):
    case = write_case(of("brats2021"), tmp_path)
    case.images["t1"].path.rename(case.images["t1"].path.with_name(name))
    again = read_case(find_cases(tmp_path)[0])
    assert again.modalities == MODALITIES
    np.testing.assert_array_equal(again.volumes["t1"], of("brats2021").volumes["t1"])


@pytest.mark.parametrize("name", ["jane_T1_FLAIR", "FLAIR_to_T1", "seg_T1", "jane_T1_mask", "jane_pd", "T1ce_pre"])
def test_a_file_whose_name_says_nothing_sure_is_named_and_never_skipped_in_silence(tmp_path, name):
    (tmp_path / "jane_T2.nii.gz").touch()
    (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.warns(UserWarning, match=re.escape(f"{tmp_path / name}.nii.gz: not used")) as caught:
        assert find_case(tmp_path).modalities == ("t2",)
    assert len(caught) == 1


def test_an_image_beside_those_of_a_data_set_s_case_is_named_too(tmp_path):
    case = write_case(of("brats2021"), tmp_path)
    (case.label.parent / "jane_T1_post.nii.gz").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/answer.nii.gz").touch()
    with pytest.warns(UserWarning, match=r"jane_T1_post\.nii\.gz: not used") as caught:
        assert find_cases(tmp_path) == [case]
    assert len(caught) == 1


def test_in_whose_values_an_answer_is_written_is_said_where_names_do_not_tell_it():
    files = [
        CaseFiles(f"BraTS-{kind}-00002-000", layout, {})
        for kind, layout in (("PED", "brats-ped"), ("GLI", "brats2023"))
    ]
    with pytest.warns(
        UserWarning, match=r"values of brats-ped: say --layout brats-ped-2023 .* --layout brats-ped$"
    ) as caught:
        warn_of_release(files)
    assert len(caught) == 1, "the others' names tell it"


def test_a_label_that_was_divided_is_refused_and_not_taken_for_healthy(tmp_path):
    scheme = LAYOUTS["brats2018"].scheme
    label = np.array([[[0, 1, 2, 4]]])
    with pytest.raises(InputError, match=r"none above 0\.0157, where they would all count as background"):
        scheme.decode(label / 255, "x.nii")
    with pytest.raises(InputError, match="set scl_slope to 1"):
        scheme.decode(label / 255, "x.nii", (1 / 255, 0.0))
    assert not scheme.decode(np.full((1, 1, 4), 3e-5), "x.nii").any(), "rounding, in a healthy subject"
    assert scheme.decode(label + 0.008, "x.nii").tolist() == [[[0, 1, 2, 3]]]


@pytest.mark.parametrize(
    ("case", "other", "layout"),
    [
        ("BraTS-GLI-00007-100", "BraTS-GLI-00007-101", "brats2024"),
        ("BraTS-GLI-00007-100", "brats-gli-00007-101", "nnunet(NCR=1,ED=2,ET=3)"),
        ("sub-07_ses-1", "sub-07_ses-2", "nnunet(NCR=1,ED=2,ET=3)"),
        ("sub-07_ses-pre", "sub-07_ses-post", "brats2021"),
        ("TCGA-02-0006_1996.08.23", "TCGA-02-0006_1996.09.01", None),
    ],
)
def test_visits_are_of_one_patient_whatever_names_they_have(case, other, layout):
    """Who holds patients out must not hold out a visit of one who is trained on."""
    assert patient_of(case, layout) == patient_of(other, layout) != case
    assert patient_of("Simulated_00003") != patient_of("Simulated_00004")
    assert patient_of("sub-07") != patient_of("sub-08")
