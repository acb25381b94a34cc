"""Answers as a derivative of BIDS: names, side files and values of one meaning."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_cohort import OPTIONS, Thresholds

from smml.cohort import predict_cohort
from smml.cohort.bids import VALUES_OF, subject_of
from smml.cohort.visits import CHANGES
from smml.data import LAYOUTS, CaseFiles, find_cases, read_case, write_case
from smml.data.layouts import ImageSource

# What BIDS allows of the entities that are used here, in its order.
NAME = re.compile(
    r"sub-(?P<sub>[0-9a-zA-Z]+)(_ses-(?P<ses>[0-9a-zA-Z]+))?_space-orig_seg-tumour_(dseg|probseg)\.(nii\.gz|json)"
)


@pytest.fixture(scope="module")
def derivative(small_cohort, tmp_path_factory) -> Path:
    """Two data sets' cases in one derivative; read it only."""
    data, out = tmp_path_factory.mktemp("bids") / "data", tmp_path_factory.mktemp("bids") / "out"
    for number, layout in enumerate(("simulated", "brats2023", "msd")):
        case = read_case(find_cases(small_cohort)[number], label=False)
        write_case(dataclasses.replace(case, id=f"{number:05d}", layout=layout), data)
    rows = predict_cohort(Thresholds(), data, out, output_layout="bids", probabilities=out, **OPTIONS)
    assert [row.reason for row in rows] == ["", "", ""]
    return out


def test_every_image_has_a_name_of_bids_and_its_side_file(derivative):
    images = sorted(path for path in derivative.rglob("*.nii.gz"))
    assert len(images) == 6
    for path in images:
        match = NAME.fullmatch(path.name)
        assert match, path
        folders = [f"sub-{match['sub']}", *([f"ses-{match['ses']}"] if match["ses"] else []), "anat"]
        assert path.relative_to(derivative).parts[:-1] == tuple(folders)
        facts = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert facts["SpatialReference"] == "orig", "required with a space that is no template's"
        assert ("LabelMap" in facts) == ("probseg" in path.name)
        assert "FLAIR+T1ce+T1+T2" in facts["Description"]
    assert (derivative / "sub-BraTSGLI00001/ses-000/anat").is_dir()


def test_one_set_of_values_is_the_order_of_the_probabilities_whatever_the_data_set(derivative):
    with open(derivative / "dseg.tsv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [row["index"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["abbreviation"] for row in rows] == ["BG", "NCR/NET", "ED", "ET"]
    assert [row["mapping"] for row in rows] == ["0", "7", "7", "7"]
    for path in derivative.rglob("*_dseg.nii.gz"):
        shares = nib.load(path.with_name(path.name.replace("dseg", "probseg")))
        labels = np.asarray(nib.load(path).dataobj)
        assert np.array_equal(np.asarray(shares.dataobj).argmax(-1), labels)
        assert np.unique(labels).tolist() == [0, 1, 2, 3]
        assert bytes(shares.header["descrip"]).startswith(b"volumes: 0 background, 1 NCR/NET, 2 ED, 3 ET\0")


def test_the_description_says_what_made_it_and_what_is_not_bids_is_passed_by(derivative):
    facts = json.loads((derivative / "dataset_description.json").read_text())
    assert facts["DatasetType"] == "derivative"
    assert [(made["Name"], bool(made["Version"])) for made in facts["GeneratedBy"]] == [("smml", True)]
    ignored = {name.rstrip("/") for name in (derivative / ".bidsignore").read_text().split()}
    known = {"dataset_description.json", "dseg.tsv", ".bidsignore"}
    others = {path.name for path in derivative.iterdir() if not path.name.startswith("sub-")} - known
    assert others <= ignored
    # Of visits, and of sequences that were registered, which are not here.
    assert ignored - others == {CHANGES, "*.tfm"}


@pytest.mark.parametrize(
    ("layout", "case", "found"),
    [
        ("simulated", "Simulated_00003", ("Simulated00003", "")),
        ("brats2023", "BraTS-GLI-00005-100", ("BraTSGLI00005", "100")),
        ("brats2018", "Brats18_2013_2_1", ("Brats1820132", "1")),
        ("brats2021", "sub-01_ses-pre", ("01", "pre")),
        ("brats2021", "sub-01", ("01", "")),
        ("brats2021", "jane doe", ("janedoe", "")),
        ("nnunet(NCR=1,ED=2,ET=3)", "BraTS-GLI-00005-100", ("BraTSGLI00005", "100")),
        ("nnunet(NCR=1,ED=2,ET=3)", "case_7", ("case7", "")),
    ],
)
def test_a_case_becomes_a_subject_and_a_visit_a_session(layout, case, found):
    assert subject_of(CaseFiles(case, layout, {"t1": ImageSource(Path("a.nii"))})) == found


def test_the_layouts_that_are_written_have_the_positions_of_the_classes_for_values():
    for count, layout in VALUES_OF.items():
        assert LAYOUTS[layout].scheme.on_disk == tuple(range(count))
