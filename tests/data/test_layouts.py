"""Finding cases: names alone decide, whatever release, nesting or gap."""

import errno
import gzip
import json
import os
import re
from pathlib import Path

import pytest

from smml.data.free_names import read_free_name
from smml.data.layouts import LAYOUTS, CaseFiles, ImageSource, find_case, find_cases
from smml.data.writing import label_path
from smml.errors import InputError
from smml.modalities import MODALITIES

# What the dataset.json of these tests says; nothing of it is in the order of the package.
DATASET = {
    "channel_names": {"0": "T1n", "1": "T1c", "2": "T2w", "3": "T2f"},
    "labels": {"background": 0, "NCR": 1, "ED": 2, "ET": 3},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(DATASET) if path.name == "dataset.json" else "", encoding="utf-8")


def sequences(
    case: str, separator: str = "_", tokens=("flair", "t1", "t1ce", "t2", "seg"), suffix=".nii.gz"
) -> list[str]:
    return [f"{case}/{Path(case).name}{separator}{token}{suffix}" for token in tokens]


NAMES_2023 = ("t1n", "t1c", "t2w", "t2f", "seg")
PATIENT_2015 = [
    f"HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_{token}.{number}/VSD.Brain.XX.O.MR_{token}.{number}.mha"
    for token, number in (("Flair", 54512), ("T1", 54513), ("T1c", 54514), ("T2", 54515))
]
LABEL_2015 = "HGG/brats_2013_pat0001_1/VSD.Brain_3more.XX.O.OT.54517/VSD.Brain_3more.XX.O.OT.54517.mha"

RELEASES = {
    "brats2015": ([*PATIENT_2015, LABEL_2015], "HGG_brats_2013_pat0001_1"),
    "brats2018": (sequences("MICCAI_BraTS_2018/LGG/Brats18_TCIA09_141_1"), "Brats18_TCIA09_141_1"),
    "brats2020": (
        sequences("MICCAI_BraTS2020_TrainingData/BraTS20_Training_001", suffix=".nii"),
        "BraTS20_Training_001",
    ),
    "brats2021": (sequences("BraTS2021_00002"), "BraTS2021_00002"),
    "brats2019": (sequences("MICCAI_BraTS_2019/HGG/BraTS19_TCIA01_131_1", suffix=".nii"), "BraTS19_TCIA01_131_1"),
    "fets2022": (sequences("MICCAI_FeTS2022_TrainingData/FeTS2022_00000"), "FeTS2022_00000"),
    "brats2024": (sequences("training_data1_v2/BraTS-GLI-00005-100", "-", NAMES_2023), "BraTS-GLI-00005-100"),
    "brats2023": (sequences("BraTS-GLI-00000-000", "-", NAMES_2023), "BraTS-GLI-00000-000"),
    "brats-met": (sequences("BraTS-MET-00001-000", "-", NAMES_2023), "BraTS-MET-00001-000"),
    "brats-men": (sequences("BraTS-MEN-Train/BraTS-MEN-00004-000", "-", NAMES_2023), "BraTS-MEN-00004-000"),
    "brats-ssa": (sequences("95_Glioma/BraTS-SSA-00002-000", "-", NAMES_2023), "BraTS-SSA-00002-000"),
    "brats-ped": (sequences("BraTS-PEDs2024_Training/BraTS-PED-00001-000", "-", NAMES_2023), "BraTS-PED-00001-000"),
    "brats-ped-2023": (sequences("BraTS-PED-00002-000", "-", NAMES_2023), "BraTS-PED-00002-000"),
    "tcga": (
        [
            f"TCGA-02-0006/TCGA-02-0006_1996.08.23_{token}.nii.gz"
            for token in ("flair", "t1", "t1Gd", "t2", "GlistrBoost", "GlistrBoost_ManuallyCorrected")
        ],
        "TCGA-02-0006_1996.08.23",
    ),
    "nnunet": (
        [
            *(f"Dataset043_BraTS/imagesTr/case-7_000{number}.nii.gz" for number in range(4)),
            "Dataset043_BraTS/labelsTr/case-7.nii.gz",
            "Dataset043_BraTS/dataset.json",
        ],
        "case-7",
    ),
    "msd": (
        ["Task01_BrainTumour/imagesTr/BRATS_001.nii.gz", "Task01_BrainTumour/labelsTr/BRATS_001.nii.gz"],
        "BRATS_001",
    ),
    "simulated": (sequences("Simulated_00003"), "Simulated_00003"),
}


# Nothing but its user tells this one from the later release of the same names.
NAMED = {"brats-ped-2023"}


def layout_if_named(layout: str) -> str | None:
    return layout if layout in NAMED else None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_told_from_the_names_of_its_release(tmp_path, layout):
    names, case_id = RELEASES[layout]
    touch(tmp_path, *names)
    (case,) = find_cases(tmp_path, layout_if_named(layout))
    assert (case.id, case.layout, case.modalities) == (case_id, layout, MODALITIES)
    assert find_cases(tmp_path, layout) == [case], "named, the same"
    assert case.label is not None
    assert case.label.is_file()
    assert all(source.path.is_file() for source in case.images.values())


def test_each_modality_goes_to_its_own_file(tmp_path):
    names, case_id = RELEASES["brats2023"]
    touch(tmp_path, *names)
    endings = {name: source.path.name[len(case_id) :] for name, source in find_cases(tmp_path)[0].images.items()}
    assert endings == {"flair": "-t2f.nii.gz", "t1ce": "-t1c.nii.gz", "t1": "-t1n.nii.gz", "t2": "-t2w.nii.gz"}


def test_2015_sequences_differ_in_image_number_and_the_label_in_prefix(tmp_path):
    touch(tmp_path, *PATIENT_2015, LABEL_2015)
    case = find_cases(tmp_path)[0]
    assert {name: source.path.name for name, source in case.images.items()} == {
        "flair": "VSD.Brain.XX.O.MR_Flair.54512.mha",
        "t1ce": "VSD.Brain.XX.O.MR_T1c.54514.mha",
        "t1": "VSD.Brain.XX.O.MR_T1.54513.mha",
        "t2": "VSD.Brain.XX.O.MR_T2.54515.mha",
    }
    assert case.label.name == "VSD.Brain_3more.XX.O.OT.54517.mha"


def test_2015_label_without_3more_and_a_file_of_another_name_are_found(tmp_path):
    touch(tmp_path, "LGG/p/VSD.Brain.XX.O.OT.7/VSD.Brain.XX.O.OT.7.mha", "LGG/p/VSD.Brain.XX.O.MR_T2.8/image.mha")
    (case,) = find_cases(tmp_path)
    assert (case.id, case.modalities, case.label.name) == ("LGG_p", ("t2",), "VSD.Brain.XX.O.OT.7.mha")


def test_2015_grades_may_share_a_patient_name(tmp_path):
    touch(tmp_path, *PATIENT_2015, *(name.replace("HGG", "LGG") for name in PATIENT_2015))
    expected = ["HGG_brats_2013_pat0001_1", "LGG_brats_2013_pat0001_1"]
    assert [case.id for case in find_cases(tmp_path)] == expected
    assert [case.id for case in find_cases(tmp_path / "LGG")] == expected[1:]


def test_msd_maps_its_channels_by_name_and_lists_test_images_without_labels(tmp_path):
    touch(tmp_path, "imagesTr/BRATS_002.nii.gz", "labelsTr/BRATS_002.nii.gz", "imagesTs/BRATS_485.nii.gz")
    touch(tmp_path, "imagesTr/._BRATS_002.nii.gz", "._dataset.json", "predictions/BRATS_002.nii.gz")
    train, test = find_cases(tmp_path)
    assert {name: source.channel for name, source in train.images.items()} == {"flair": 0, "t1ce": 2, "t1": 1, "t2": 3}
    assert (train.id, train.label) == ("BRATS_002", tmp_path / "labelsTr/BRATS_002.nii.gz")
    assert (test.id, test.label) == ("BRATS_485", None)


def test_msd_images_folder_finds_the_labels_beside_it(tmp_path):
    touch(tmp_path, "imagesTr/BRATS_002.nii.gz", "labelsTr/BRATS_002.nii.gz")
    assert find_cases(tmp_path / "imagesTr")[0].label == tmp_path / "labelsTr/BRATS_002.nii.gz"


def test_cases_are_sorted_by_id_over_all_grades(tmp_path):
    for case in ("LGG/Brats18_2013_0_1", "HGG/Brats18_TCIA01_131_1", "HGG/Brats18_2013_10_1"):
        touch(tmp_path, *sequences(case))
    ids = ["Brats18_2013_0_1", "Brats18_2013_10_1", "Brats18_TCIA01_131_1"]
    assert [case.id for case in find_cases(tmp_path)] == ids
    assert [case.id for case in find_cases(tmp_path / "HGG")] == ids[1:]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_root_may_be_the_case_folder_itself(tmp_path, layout):
    names, case_id = RELEASES[layout]
    touch(tmp_path, *names)
    folder = (tmp_path / names[0]).parents[1 if layout == "brats2015" else 0]
    assert [case.id for case in find_cases(folder)] == [case_id]
    assert find_case(str(folder)) == find_cases(folder)[0]


def test_root_may_be_a_relative_path(tmp_path, monkeypatch):
    touch(tmp_path, *PATIENT_2015)
    monkeypatch.chdir(tmp_path / "HGG/brats_2013_pat0001_1")
    assert [case.id for case in find_cases(".")] == ["HGG_brats_2013_pat0001_1"]


def test_partial_cases_are_listed_with_what_they_have(tmp_path):
    touch(tmp_path, *sequences("BraTS2021_00003", tokens=("t2", "flair")), *sequences("BraTS2021_00002"))
    touch(tmp_path, "BraTS2021_00004/BraTS2021_00004_seg.nii.gz")
    whole, partial = find_cases(tmp_path)
    assert whole.modalities == MODALITIES
    assert (partial.modalities, partial.label) == (("flair", "t2"), None)


def test_the_foreign_label_name_of_the_2020_release_is_known(tmp_path):
    touch(tmp_path, *sequences("BraTS20_Training_355", tokens=("t1",)))
    touch(tmp_path, "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    assert find_cases(tmp_path)[0].label.name == "W39_1998.09.19_Segm.nii"


def test_uncompressed_wins_over_a_compressed_copy(tmp_path):
    touch(tmp_path, *sequences("BraTS2021_00002"), *sequences("BraTS2021_00002", suffix=".nii"))
    assert find_cases(tmp_path)[0].images["t1"].path.name == "BraTS2021_00002_t1.nii"


def test_copies_of_other_content_are_refused_as_nobody_knows_which_is_meant(tmp_path):
    plain, packed = (tmp_path / f"BraTS2021_00002/BraTS2021_00002_t1{suffix}" for suffix in (".nii", ".nii.gz"))
    touch(tmp_path, *sequences("BraTS2021_00002"))
    plain.write_bytes(bytes(3000))
    packed.write_bytes(gzip.compress(bytes(3000)))
    assert find_cases(tmp_path)[0].images["t1"].path == plain, "the same, unpacked"
    for content in (gzip.compress(b"x" * 3000), gzip.compress(bytes(2999)), b""):
        packed.write_bytes(content)
        with pytest.raises(InputError, match=r"_t1\.nii\.gz: t1 of BraTS2021_00002 was found as .*_t1\.nii already"):
            find_cases(tmp_path)


def test_two_labels_of_other_content_for_a_4d_image_are_refused(tmp_path):
    names, _ = RELEASES["msd"]
    touch(tmp_path, *names)
    (tmp_path / names[1]).with_suffix("").write_bytes(b"other")
    with pytest.raises(InputError, match=r"labelsTr/BRATS_001\.nii\.gz: label of BRATS_001 was found as .*001\.nii"):
        find_cases(tmp_path)


def test_a_sequence_of_2015_under_two_image_numbers_is_refused(tmp_path):
    touch(tmp_path, *PATIENT_2015)
    second = tmp_path / PATIENT_2015[1].replace("54513", "99999")
    second.parent.mkdir()
    second.write_bytes(b"other")
    with pytest.raises(InputError, match="t1 of HGG_brats_2013_pat0001_1 was found as"):
        find_cases(tmp_path)


def test_cases_are_found_however_deep_they_lie(tmp_path):
    deep = "/".join("abcdefghij")
    touch(tmp_path, *sequences("BraTS2021_00002"), *sequences(f"{deep}/BraTS2021_00003"))
    assert [case.id for case in find_cases(tmp_path)] == ["BraTS2021_00002", "BraTS2021_00003"]


def test_hidden_and_foreign_files_are_ignored(tmp_path):
    touch(tmp_path, *sequences("BraTS2021_00002"), "BraTS2021_00002/._BraTS2021_00002_t1.nii.gz")
    touch(tmp_path, "survival.csv", ".cache/BraTS2021_00009/BraTS2021_00009_t1.nii.gz")
    assert [case.id for case in find_cases(tmp_path)] == ["BraTS2021_00002"]


def test_links_to_cases_are_followed_and_loops_end(tmp_path):
    touch(tmp_path / "store", *sequences("BraTS2021_00002"))
    (tmp_path / "root").mkdir()
    (tmp_path / "root/BraTS2021_00002").symlink_to(tmp_path / "store/BraTS2021_00002")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root")
    assert [case.id for case in find_cases(tmp_path / "root")] == ["BraTS2021_00002"]


def test_missing_root_names_the_folder_in_one_short_sentence(tmp_path):
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/nowhere: cannot be listed (No such file")) as caught:
        find_cases(tmp_path / "nowhere")
    assert len(str(caught.value)) < 250, "the list of layouts would bury the one fact that matters"


def test_a_subfolder_that_cannot_be_listed_is_refused_like_the_root(tmp_path, monkeypatch):
    """Its cases would be missing from every score without a word."""
    touch(tmp_path, *sequences("HGG/Brats18_2013_10_1"), *sequences("LGG/Brats18_2013_0_1"))
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "LGG":  # a mode would not stop the user root
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/LGG: cannot be listed (Permission denied)")):
        find_cases(tmp_path)


def test_root_that_is_a_file_is_refused(tmp_path):
    touch(tmp_path, "scan.nii.gz")
    with pytest.raises(InputError, match=r"scan\.nii\.gz: cannot be listed \(Not a directory\)"):
        find_cases(tmp_path / "scan.nii.gz")


def test_empty_root_and_foreign_files_are_told_apart(tmp_path):
    with pytest.raises(InputError, match=r"no cases here; expected one of brats2015 .* found no files; check the path"):
        find_cases(tmp_path)
    touch(tmp_path, "notes/a.txt")
    with pytest.raises(InputError, match=r"found 1 files such as notes/a\.txt"):
        find_cases(tmp_path)


def test_mixed_layouts_are_refused_with_an_example_of_each(tmp_path):
    touch(tmp_path, *RELEASES["brats2021"][0], *RELEASES["brats2023"][0])
    with pytest.raises(InputError, match=r"mix of brats2021 and brats2023 \(BraTS2021_00002, BraTS-GLI-00000-000\)"):
        find_cases(tmp_path)


def test_layouts_may_be_mixed_where_each_case_is_looked_at_by_itself(tmp_path):
    touch(tmp_path, *RELEASES["simulated"][0], *RELEASES["brats2021"][0])
    found = find_cases(tmp_path, mixed=True)
    assert [(case.id, case.layout) for case in found] == [
        ("BraTS2021_00002", "brats2021"),
        ("Simulated_00003", "simulated"),
    ]


@pytest.mark.filterwarnings("ignore:.*not taken for the truth")  # TCGA has a label that a program made
@pytest.mark.parametrize("layout", RELEASES)
def test_a_label_is_written_where_it_is_looked_for(tmp_path, layout):
    touch(tmp_path, *RELEASES[layout][0])
    find_cases(tmp_path)[0].label.unlink()
    (files,) = find_cases(tmp_path)
    top = Path(RELEASES[layout][0][0]).parts[0]
    root = tmp_path if files.id.startswith(top) or top in ("HGG", "LGG") else tmp_path / top
    path = label_path(root, files)
    touch(tmp_path, str(path.relative_to(tmp_path)))
    assert find_cases(tmp_path)[0].label == path


@pytest.mark.parametrize("layout", ["brats2018", "brats2019"])
def test_a_label_lies_under_the_grade_that_its_case_lies_under(tmp_path, layout):
    names = [name.replace("HGG", "LGG") for name in RELEASES[layout][0]]
    touch(tmp_path, *names)
    (files,) = find_cases(tmp_path)
    assert label_path("out", files) == Path(f"out/LGG/{files.id}/{files.id}_seg.nii.gz")


def test_a_case_of_a_free_name_has_its_label_in_a_folder_of_that_name():
    files = CaseFiles("jane doe", "brats2021", {"t1": ImageSource(Path("a.nii"))})
    assert label_path("out", files) == Path("out/jane doe/jane doe_seg.nii.gz")


def test_one_id_in_two_folders_is_refused(tmp_path):
    touch(tmp_path / "train", *RELEASES["brats2021"][0])
    touch(tmp_path / "copy", *RELEASES["brats2021"][0])
    with pytest.raises(InputError, match=r"found BraTS2021_00002 in .*copy.* and in .*train"):
        find_cases(tmp_path)


def test_find_case_wants_exactly_one_case(tmp_path):
    touch(tmp_path, *sequences("BraTS2021_00002"), *sequences("BraTS2021_00003"))
    with pytest.raises(InputError, match=r"expected one case, found 2 \(BraTS2021_00002, BraTS2021_00003"):
        find_case(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no cases here"):
        find_case(tmp_path / "empty")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_find_case_takes_the_files_of_every_layout(tmp_path, layout):
    names, case_id = RELEASES[layout]
    touch(tmp_path, *names)
    images = {"msd": names[:1], "nnunet": names[:4]}.get(layout, names)
    # Of two segmentations, the one that a human looked at; named file by file, one is given.
    images = [name for name in images if not name.endswith("GlistrBoost.nii.gz")]
    case = find_case([tmp_path / name for name in images], layout_if_named(layout))
    assert (case.id, case.layout, case.modalities) == (case_id, layout, MODALITIES)
    assert case.label is not None


def test_find_case_takes_plain_names_in_any_order(tmp_path):
    touch(tmp_path, "jane/T2.nii.gz", "jane/flair.nii", "jane/T1w.nii.gz", "jane/seg.nii.gz", "jane/notes.txt")
    expected = CaseFiles(
        "jane",
        "brats2021",
        {
            "flair": ImageSource(tmp_path / "jane/flair.nii"),
            "t1": ImageSource(tmp_path / "jane/T1w.nii.gz"),
            "t2": ImageSource(tmp_path / "jane/T2.nii.gz"),
        },
        tmp_path / "jane/seg.nii.gz",
    )
    assert find_case(tmp_path / "jane") == expected
    names = ("seg.nii.gz", "T2.nii.gz", "T1w.nii.gz", "flair.nii")
    case = find_case([str(tmp_path / "jane" / name) for name in names])
    assert case == expected
    assert case.modalities == ("flair", "t1", "t2")


def test_free_names_with_the_endings_of_2023_count_as_2023(tmp_path):
    touch(tmp_path, "sub-7-t2f.nii.gz", "sub-7-t1c.nii.gz")
    case = find_case([tmp_path / "sub-7-t2f.nii.gz", tmp_path / "sub-7-t1c.nii.gz"])
    assert (case.id, case.layout, case.modalities) == ("sub-7", "brats2023", ("flair", "t1ce"))


def test_a_t1_with_contrast_agent_in_bids_is_t1ce_and_of_the_same_case(tmp_path):
    """Read as a plain T1 it would hide the enhancing tumour, and stand in the place of the T1 itself."""
    names = {
        "flair": "sub-01_ses-2_FLAIR.nii.gz",
        "t1ce": "sub-01_ses-2_ce-gadolinium_T1w.nii.gz",
        "t1": "sub-01_ses-2_acq-mprage_run-1_T1w.nii.gz",
        "t2": "sub-01_ses-2_T2w.nii.gz",
    }
    folder = tmp_path / "sub-01" / "ses-2" / "anat"
    touch(folder, *names.values())
    for case in (find_case(folder), find_case([folder / name for name in names.values()])):
        assert {role: source.path.name for role, source in case.images.items()} == names
        assert (case.id, case.layout) == ("sub-01_ses-2", "brats2021")
    touch(folder, "sub-02_T1w.nii.gz")
    with pytest.raises(InputError, match="names of sub-01_ses-2 and sub-02"):
        find_case([folder / names["flair"], folder / "sub-02_T1w.nii.gz"])


@pytest.mark.parametrize(
    ("name", "role", "case"),
    [
        ("sub-01_ce-gadolinium_T1w", "t1ce", "sub-01"),
        ("sub-01_ce-Dotarem_run-2_T1w", "t1ce", "sub-01"),
        ("sub-01_acq-T1Gd_T1w", "t1ce", "sub-01"),
        ("sub-01_acq-mprageGd_T1w", "t1ce", "sub-01"),
        ("sub-01_acq-postContrast_T1w", "t1ce", "sub-01"),
        ("sub-01_ce-none_T1w", "t1", "sub-01"),
        ("sub-01_acq-preGd_T1w", "t1", "sub-01"),
        ("sub-01_acq-space_T1w", "t1", "sub-01"),
        ("sub-01_ses-post_T1w", "t1", "sub-01_ses-post"),
        ("sub-gd_T1w", "t1", "sub-gd"),
        ("sub-01_ce-gadolinium_T2w", "t2", "sub-01"),
        ("sub-01_ce-gadolinium_FLAIR", "flair", "sub-01"),
        ("jane_gad_T1", "t1ce", "jane"),
        ("jane-gd-t1w", "t1ce", "jane"),
        ("jane_post_T1", "t1ce", "jane"),
        ("jane_post-contrast_T1", "t1ce", "jane"),
        ("jane post contrast T1", "t1ce", "jane"),
        ("contrast_T1", "t1ce", ""),
        ("jane_pre-contrast_T1", "t1", "jane_pre-contrast"),
        ("jane_no_gd_T1", "t1", "jane_no_gd"),
        ("jane_post-op_T1", "t1", "jane_post-op"),
        ("jane_post_op_post_gd_T1", "t1ce", "jane_post_op"),
        ("jane_post_T2", "t2", "jane"),
        ("jane_post-t1n", "t1", "jane"),
        ("budget_T1", "t1", "budget"),
        ("jane_t1ce", "t1ce", "jane"),
        ("T1w", "t1", ""),
    ],
)
def test_words_for_a_contrast_agent_before_a_t1_ending(name, role, case):
    found = read_free_name(name)
    assert (found.role, found.case) == (role, case)


def test_find_case_takes_assignments(tmp_path):
    touch(tmp_path, "p/scan 1.nii.gz", "p/a=b.nii", "p/mask.nii.gz")
    case = find_case(
        [f"flair={tmp_path}/p/scan 1.nii.gz", f"t2w={tmp_path}/p/a=b.nii", f"label={tmp_path}/p/mask.nii.gz"]
    )
    assert (case.id, case.layout, case.modalities) == ("p", "brats2021", ("flair", "t2"))
    assert (case.images["t2"].path.name, case.label.name) == ("a=b.nii", "mask.nii.gz")
    assert find_case(f"t1={tmp_path}/p/scan 1.nii.gz").modalities == ("t1",)


def test_assignment_wins_over_the_name_of_the_file(tmp_path):
    touch(tmp_path, "BraTS-GLI-00000-000-t2w.nii.gz")
    case = find_case([f"flair={tmp_path}/BraTS-GLI-00000-000-t2w.nii.gz"])
    assert (case.layout, case.modalities) == ("brats2023", ("flair",))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no file was given"),
        (["missing_t1.nii.gz"], "found nothing there"),
        (["scan.nii.gz"], "does not tell the modality"),
        (["t1.txt"], "does not tell the modality"),
        (["a_t1.nii.gz", "a_t1.nii"], "t1 was given already"),
        (["a_t1.nii.gz", "b_t2.nii.gz"], "names of a and b"),
        (["BraTS2021_00002_t1.nii.gz", "BraTS2021_00003_t2.nii.gz"], "names of BraTS2021_00002 and BraTS2021_00003"),
        (["a_t1.nii.gz", "folder"], "a folder among several paths"),
        (["a_seg.nii.gz"], "is a label, and no image was given"),
        (["labelsTr/BRATS_001.nii.gz"], "is a label, and no image was given"),
        (["BRATS_001.nii.gz", "BRATS_001/t1.nii.gz"], "holds all four modalities already"),
        (["pet=a_t1.nii.gz"], "'pet' is not a modality"),
    ],
)
def test_find_case_refuses_with_one_sentence(tmp_path, monkeypatch, names, message):
    existing = (
        "scan.nii.gz",
        "t1.txt",
        "a_t1.nii.gz",
        "a_t1.nii",
        "b_t2.nii.gz",
        "a_seg.nii.gz",
        "BRATS_001/t1.nii.gz",
    )
    touch(tmp_path, *existing, "labelsTr/BRATS_001.nii.gz", "BRATS_001.nii.gz", "folder/x")
    touch(tmp_path, "BraTS2021_00002_t1.nii.gz", "BraTS2021_00003_t2.nii.gz")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        find_case(names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "cases", "patient"),
    [
        ("brats2015", ["HGG_brats_tcia_pat105_0001", "HGG_brats_tcia_pat105_0088"], "hgg_brats_tcia_pat105"),
        ("brats2018", ["Brats18_TCIA02_135_1", "BraTS19_TCIA02_135_2"], "tcia02_135"),
        ("brats2023", ["BraTS-GLI-00001-000", "brats-gli-00001-001"], "brats-gli-00001"),
        ("brats2021", ["BraTS2021_00001"], "brats2021_00001"),
        ("msd", ["BRATS_001"], "brats_001"),
    ],
)
def test_visits_of_a_patient_share_the_patient_s_name(layout, cases, patient):
    assert {CaseFiles(case, layout, {}).patient for case in cases} == {patient}


@pytest.mark.parametrize(
    "images",
    ["imagesTr/0001_{:04d}.nii.gz", "HGG/BraTS18_2013_1_1/BraTS18_2013_1_1_{}.nii.gz", "0001/0001_{}.nii.gz"],
)
def test_an_answer_is_called_like_its_case_however_that_is_spelled(tmp_path, images):
    tokens = range(4) if "Tr/" in images else ("flair", "t1", "t1ce", "t2")
    touch(tmp_path, *(images.format(token) for token in tokens))
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET), encoding="utf-8")
    files = find_case(tmp_path / "0001") if images.startswith("0001") else find_cases(tmp_path)[0]
    wanted = {"i": "labelsTr/0001", "H": f"HGG/{files.id}/{files.id}_seg", "0": "0001/0001_seg"}[images[0]]
    assert label_path(Path(), files) == Path(f"{wanted}.nii.gz")


def test_a_patient_whose_names_follow_no_data_set_is_not_missed_in_silence(tmp_path):
    touch(tmp_path, *RELEASES["brats2021"][0], "jane/jane_flair.nii.gz", "jane/jane_t1.nii.gz", "masks/answer.nii.gz")
    touch(tmp_path, "Simulated_00007/Simulated_00007-flair.nii.gz")
    with pytest.warns(UserWarning, match=r"not used, because the names follow no data set") as caught:
        assert len(find_cases(tmp_path)) == 1
    (said,) = [str(each.message) for each in caught]
    assert all(name in said for name in ("jane_flair", "jane_t1", "Simulated_00007-flair", "2 folders"))
    assert "answer" not in said


def test_files_that_are_named_one_by_one_belong_together_whatever_they_are_called(tmp_path):
    touch(tmp_path, "Simulated_00000_flair.nii.gz", "Simulated_00001_t1.nii.gz")
    plain = [tmp_path / "Simulated_00000_flair.nii.gz", tmp_path / "Simulated_00001_t1.nii.gz"]
    with pytest.raises(InputError, match="if they belong together, write flair=FILE"):
        find_case(plain)
    files = find_case([f"{role}={path}" for role, path in zip(("flair", "t1"), plain, strict=True)])
    assert (files.id, files.modalities) == ("Simulated_00000", ("flair", "t1"))
