"""``dataset.json`` of nnU-Net's raw folder: which channel is which sequence, and what the labels' values mean.

Both are told by names alone (https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md, read in November
2026): channels in ``channel_names`` ("modality" in version 1), classes or regions in ``labels``. Conversions of one
data set order both in several ways, so a number by itself says nothing.
"""

import functools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from smml.data.free_names import ENDINGS
from smml.data.labels import BRATS_2023, LabelScheme, with_cavity, with_cyst
from smml.errors import InputError
from smml.files import write_text
from smml.modalities import subset_name

DATASET = "dataset.json"
NAME = "nnunet"

# What is written; the same channels are read in whatever order.
CHANNELS = {"flair": "0000", "t1ce": "0001", "t1": "0002", "t2": "0003"}
_CHANNEL_NAMES = {str(int(digits)): subset_name([name]) for name, digits in CHANNELS.items()}

# Names in use, without what is neither letter nor digit, and without "tumour", "tumor" and "core" behind the word.
_CLASSES = {
    **dict.fromkeys(("background", "bg"), "background"),
    **dict.fromkeys(("ncr", "net", "ncrnet", "netc", "nc", "necrosis", "necrotic"), "NCR"),
    **dict.fromkeys(("nonenhancing", "necroticnonenhancing", "necroticandnonenhancing"), "NCR"),
    **dict.fromkeys(("ed", "edema", "oedema", "snfh", "peritumoraledema", "peritumouraloedema"), "ED"),
    **dict.fromkeys(("et", "enhancing", "gdenhancing"), "ET"),
    **dict.fromkeys(("rc", "resectioncavity", "cavity"), "RC"),
    **dict.fromkeys(("cc", "cyst", "cysticcomponent"), "CC"),
}
_REGIONS = {
    **dict.fromkeys(("wt", "wholetumor", "wholetumour"), "WT"),
    **dict.fromkeys(("tc", "tumorcore", "tumourcore"), "TC"),
}
_VARIANT = re.compile(r"nnunet\(NCR=(\d+),ED=(\d+),ET=(\d+)(?:,(RC|CC)=(\d+))?\)")


@dataclass(frozen=True)
class Dataset:
    """What a ``dataset.json`` says.

    Attributes:
        channels: modality by the four digits of a file name; only those that are one of the four sequences.
        layout: name of the layout with these label values.
    """

    channels: dict[str, str]
    layout: str


def dataset_beside(image: Path) -> Dataset | None:
    """The data set of an image in ``imagesTr`` or ``imagesTs``; None if it lies in no such folder.

    Args:
        image: its path.

    Raises:
        InputError: the file is damaged, or its labels do not tell the classes.
    """
    folder = Path(os.path.abspath(image)).parent
    path = folder.parent / DATASET
    if not folder.name.startswith("images"):
        return None
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return None
    return _read(path, changed)


@functools.lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> Dataset:
    """The file as it was at that time."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = content.get("channel_names") or content["modality"]
        channels = {f"{int(number):04d}": ENDINGS.get(str(name).strip().lower()) for number, name in names.items()}
        labels = dict(content["labels"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: expected nnU-Net's JSON with channel_names and labels, found something else ({error!r}); repair "
            "it or move it away"
        ) from error
    known = {digits: role for digits, role in channels.items() if role and role != "label"}
    if len(set(known.values())) < len(known):
        raise InputError(f"{path}: names two channels alike ({names}); give each sequence once")
    return Dataset(known, _layout_of(path, labels))


def _layout_of(path: Path, labels: dict) -> str:
    """Name of the layout with the label values that the names of classes or regions tell."""
    try:
        found = _values_by_role(labels)
    except (TypeError, ValueError):  # a value is no number
        found = {}
    if {"WT", "TC", "ET"} <= found.keys():
        found["NCR"] = found["TC"] - found["ET"]
        found["ED"] = found["WT"] - found["TC"]
    values = {role: next(iter(one)) for role, one in found.items() if len(one) == 1 and role not in ("WT", "TC")}
    further = [f"{role}={values[role]}" for role in ("RC", "CC") if role in values]
    sound = {"NCR", "ED", "ET"} <= values.keys() and len(further) < 2 and values.get("background", 0) == 0
    sound = sound and min(values.values()) >= 0
    if not sound or len(set(values.values()) | {0}) < len(values.keys() | {"background"}):
        raise InputError(
            f"{path}: expected labels that tell NCR/NET, ED and ET (and perhaps RC or CC) by name, or the regions "
            f"whole tumor, tumor core and enhancing tumor of these, found {labels}; name them so, with background 0"
        )
    if not further and (values["NCR"], values["ED"], values["ET"]) == (1, 2, 3):
        return NAME
    return f"{NAME}({','.join([f'{role}={values[role]}' for role in ('NCR', 'ED', 'ET')] + further)})"


def _values_by_role(labels: dict) -> dict[str, set[int]]:
    """The values of each class and region; none where a name is unknown, or two are of one."""
    if all(str(key).isdigit() for key in labels):  # version 1 has them the other way
        labels = {name: value for value, name in labels.items()}
    found: dict[str, set[int]] = {}
    for name, value in labels.items():
        plain = re.sub(r"[^a-z0-9]", "", str(name).lower())
        role = _REGIONS.get(plain) or _CLASSES.get(plain) or _CLASSES.get(re.sub("(tumou?r)?(core)?$", "", plain))
        if role is None or role in found:
            return {}
        found[role] = {int(each) for each in value} if isinstance(value, list) else {int(value)}
    return found


def scheme_named(name: str) -> LabelScheme | None:
    """Label values by a layout's name, such as "nnunet(NCR=2,ED=1,ET=3,RC=4)"; None if it is no such name.

    Args:
        name: of the layout.
    """
    if name == NAME:
        return BRATS_2023
    match = _VARIANT.fullmatch(name)
    if match is None:
        return None
    ncr, ed, et = (int(value) for value in match.groups()[:3])
    if match[4]:
        return (with_cavity if match[4] == "RC" else with_cyst)((0, ncr, ed, et, int(match[5])))
    return LabelScheme(BRATS_2023.classes, (0, ncr, ed, et), BRATS_2023.regions)


def write_dataset(root: Path, layout: str) -> None:
    """Write ``dataset.json``, or count anew the labelled cases in the one that is there.

    Args:
        root: the folder of ``imagesTr`` and ``labelsTr``.
        layout: that the cases were written in.

    Raises:
        InputError: one that is there says something else about channels or labels.
    """
    path = root / DATASET
    content: dict = {"channel_names": _CHANNEL_NAMES, "labels": _labels_of(layout), "file_ending": ".nii.gz"}
    if path.exists():
        there = dataset_beside(root / "imagesTr" / "any")
        if there is None or (there.channels, there.layout) != ({d: m for m, d in CHANNELS.items()}, layout):
            raise InputError(
                f"{path}: says something else about channels or labels than what is written ({content}); choose "
                "another folder"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    labels = root / "labelsTr"
    content["numTraining"] = sum(not file.name.startswith(".") for file in labels.iterdir()) if labels.is_dir() else 0
    write_text(path, json.dumps(content, indent=2) + "\n")


def _labels_of(layout: str) -> dict[str, int]:
    scheme = scheme_named(layout)
    assert scheme is not None  # the layout is nnU-Net's
    assert scheme.on_disk is not None
    return dict(zip(scheme.classes, scheme.on_disk, strict=True))
