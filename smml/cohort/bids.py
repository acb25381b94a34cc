"""Answers as a derivative of BIDS 1.10 (https://bids-specification.readthedocs.io, "Imaging data types").

    dataset_description.json, dseg.tsv       once: what made them, and what the values mean, for all images below
    sub-X[/ses-Y]/anat/sub-X[_ses-Y]_space-orig_seg-tumour_dseg.nii.gz, .json
    sub-X[/ses-Y]/anat/sub-X[_ses-Y]_space-orig_seg-tumour_probseg.nii.gz, .json    on wish

All images have one set of values, whichever data sets the cases are of: the position of the class among the volumes of
the probabilities.
"""

import json
import re
from pathlib import Path

import smml
from smml.data.labels import LabelScheme
from smml.data.layouts import CaseFiles
from smml.data.releases import match_visit
from smml.figures.theme import CLASS_COLOURS
from smml.files import write_text
from smml.modalities import Subset, subset_name

VERSION = "1.10.0"
# Layouts whose values on disk are the positions of the classes, by number of classes.
VALUES_OF = {4: "brats2023", 5: "brats2015"}

# What the classes are called in full; others stand for themselves.
_NAMES = {
    "background": "Background",
    "NCR/NET": "Necrotic or non-enhancing tumour core",
    "NCR": "Necrotic tumour core",
    "NET": "Non-enhancing tumour core",
    "ED": "Peritumoural oedema",
    "ET": "Enhancing tumour",
}
# Of the labels that BIDS has for everyone: background, and lesion.
_BACKGROUND, _LESION = 0, 7
# What lies at the root and is not BIDS's.
_OWN = ("cases.csv", "cases.html", "changes.csv", "cohort.json", "slices/", "*.tfm")


def subject_of(files: CaseFiles) -> tuple[str, str]:
    """The labels of subject and session, letters and digits alone; the session is "" where the name tells none.

    Args:
        files: a case; visits are told as everywhere (:func:`smml.data.releases.match_visit`).
    """
    if named := re.match(r"sub-([a-z0-9]+)(?:_ses-([a-z0-9]+))?", files.id, re.IGNORECASE):
        return named[1], named[2] or ""
    found = match_visit(files.id, files.layout)
    end = found.end(1) if found else len(files.id)
    return _plain(files.id[:end]), _plain(files.id[end:])


def dseg_path(root: Path, files: CaseFiles) -> Path:
    """Where the labels of a case lie."""
    return _path(root, files, "dseg")


def probseg_path(root: Path, files: CaseFiles) -> Path:
    """Where the probabilities of a case lie."""
    return _path(root, files, "probseg")


def write_dataset(root: Path, scheme: LabelScheme) -> None:
    """Write what stands once: the description of the data set, the meaning of the values, what a validator passes by.

    Args:
        root: of the data set.
        scheme: the model's classes.
    """
    description = {
        "Name": "Brain tumour segmentations",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "smml", "Version": smml.__version__}],
    }
    rows = ["index\tname\tabbreviation\tcolor\tmapping"]
    for index, name in enumerate(scheme.classes):
        short = name if index else "BG"
        colour, of_all = CLASS_COLOURS.get(name, "n/a"), _LESION if index else _BACKGROUND
        rows.append(f"{index}\t{_NAMES.get(name, name)}\t{short}\t{colour}\t{of_all}")
    for name, text in (
        ("dataset_description.json", json.dumps(description, indent=2)),
        ("dseg.tsv", "\n".join(rows)),
        (".bidsignore", "\n".join(_OWN)),
    ):
        write_text(root / name, f"{text}\n")


def write_sidecar(image: Path, sequences: Subset, scheme: LabelScheme) -> None:
    """Write the JSON file beside an image.

    Args:
        image: of :func:`dseg_path` or :func:`probseg_path`.
        sequences: that it was made from.
        scheme: the model's classes.
    """
    facts = {
        "Description": f"Brain tumour, segmented from {subset_name(sequences)}",
        "SpatialReference": "orig",
        "Manual": False,
    }
    if image.name.endswith("_probseg.nii.gz"):
        facts["LabelMap"] = ["BG", *scheme.classes[1:]]
    write_text(image.with_name(image.name.removesuffix(".nii.gz") + ".json"), json.dumps(facts, indent=2) + "\n")


def _path(root: Path, files: CaseFiles, suffix: str) -> Path:
    subject, session = subject_of(files)
    folders = [f"sub-{subject}", *([f"ses-{session}"] if session else [])]
    return root.joinpath(*folders, "anat", f"{'_'.join(folders)}_space-orig_seg-tumour_{suffix}.nii.gz")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", name)
