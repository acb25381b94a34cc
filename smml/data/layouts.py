"""How the data sets of the field name their files, and finding cases among them (docs/CONVENTIONS.md, "Files").

A case is recognised by names alone, so listing a thousand cases takes a moment and a damaged file is reported by
whoever reads it. Only where two files stand for one image are they opened, to see whether they hold the same.
"""

import functools
import os
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smml.data.free_names import ENDINGS, FreeName, read_free_name
from smml.data.labels import BRATS_2015, BRATS_2018, BRATS_2023, MSD, LabelScheme
from smml.errors import InputError
from smml.modalities import MODALITIES

IMAGE_SUFFIXES: tuple[str, ...] = (".nii.gz", ".nii", ".mha")


@dataclass(frozen=True)
class Layout:
    """One data set's way of naming files.

    Attributes:
        name: key in ``LAYOUTS``.
        scheme: label values on disk and in memory.
        summary: the pattern as a person would write it.
        tokens: how each modality, and "label", is spelt in a file name.
        case_name: format of a case's name, from ``id`` (text) or ``number`` (int).
        case_pattern: what a case's name looks like.
        file: format of a file's path below the root, from ``case``, ``token`` and, in 2015, ``grade`` and ``number``.
        label_file: the same for the label where it differs.
        channels: modalities along the last axis where one 4D file holds them all.
        patient: what a case's id looks like, with the patient's name as its group, where a patient can have several
            cases (visits); None where each case is a patient of its own.
    """

    name: str
    scheme: LabelScheme
    summary: str
    tokens: dict[str, str]
    case_name: str
    case_pattern: str
    file: str
    label_file: str | None = None
    channels: tuple[str, ...] | None = None
    patient: str | None = None

    @functools.cached_property
    def file_pattern(self) -> re.Pattern:
        """Matches a file name without its suffix; groups ``case`` and, unless 4D, ``token``."""
        tokens = "|".join(sorted(map(re.escape, self.tokens.values()), key=len, reverse=True))
        separator = "-" if self.name == "brats2023" else "_"
        ending = "" if self.channels else f"{separator}(?P<token>{tokens})"
        return re.compile(f"(?P<case>{self.case_pattern}){ending}", re.IGNORECASE)


_TOKENS = {"flair": "flair", "t1ce": "t1ce", "t1": "t1", "t2": "t2", "label": "seg"}
_SEQUENCE_2015 = "{grade}/{case}/VSD.Brain.XX.O.{token}.{number}/VSD.Brain.XX.O.{token}.{number}.mha"

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "brats2015",
            BRATS_2015,
            "{HGG,LGG}/<patient>/VSD.Brain*.XX.O.{MR_Flair,MR_T1,MR_T1c,MR_T2,OT}.<n>/*.mha",
            {"flair": "MR_Flair", "t1ce": "MR_T1c", "t1": "MR_T1", "t2": "MR_T2", "label": "OT"},
            "brats_2015_pat{id}_1",
            r"brats_\w+",
            _SEQUENCE_2015,
            _SEQUENCE_2015.replace("VSD.Brain.", "VSD.Brain_3more."),
            patient=r"(\w+?)(?:_\d+)?",
        ),
        Layout(
            "brats2018",
            BRATS_2018,
            "{HGG,LGG}/Brats18_*/Brats18_*_{flair,t1,t1ce,t2,seg}.nii[.gz]",
            _TOKENS,
            "Brats18_{id}_1",
            # 2017 and 2019 are named alike and labelled alike.
            r"Brats1[789]_\w+",
            "HGG/{case}/{case}_{token}.nii.gz",
            # The releases of three years share patients.
            patient=r"Brats1\d_(\w+?)(?:_\d+)?",
        ),
        Layout(
            "brats2020",
            BRATS_2018,
            "BraTS20_Training_*/BraTS20_Training_*_{flair,t1,t1ce,t2,seg}.nii[.gz]",
            _TOKENS,
            "BraTS20_Training_{number:03d}",
            r"BraTS20_(?:Training|Validation|Testing)_\d+",
            "{case}/{case}_{token}.nii.gz",
        ),
        Layout(
            "brats2021",
            BRATS_2018,
            "BraTS2021_*/BraTS2021_*_{flair,t1,t1ce,t2,seg}.nii[.gz]",
            _TOKENS,
            "BraTS2021_{number:05d}",
            r"BraTS2021_\d+",
            "{case}/{case}_{token}.nii.gz",
        ),
        Layout(
            "brats2023",
            BRATS_2023,
            "BraTS-GLI-*/BraTS-GLI-*-{t1n,t1c,t2w,t2f,seg}.nii[.gz]",
            {"flair": "t2f", "t1ce": "t1c", "t1": "t1n", "t2": "t2w", "label": "seg"},
            "BraTS-GLI-{number:05d}-000",
            r"BraTS-GLI-\d+-\d+",
            "{case}/{case}-{token}.nii.gz",
            patient=r"(BraTS-GLI-\d+)-\d+",
        ),
        Layout(
            "msd",
            MSD,
            "{imagesTr,imagesTs,labelsTr}/BRATS_*.nii[.gz] with 4D images",
            {},
            "BRATS_{number:03d}",
            r"BRATS_\d+",
            "imagesTr/{case}.nii.gz",
            "labelsTr/{case}.nii.gz",
            ("flair", "t1", "t1ce", "t2"),
        ),
        # Names that no data set has: what is simulated can be told from a patient by its id.
        Layout(
            "simulated",
            BRATS_2018,
            "Simulated_*/Simulated_*_{flair,t1,t1ce,t2,seg}.nii[.gz]",
            _TOKENS,
            "Simulated_{number:05d}",
            r"Simulated_\d+",
            "{case}/{case}_{token}.nii.gz",
        ),
    )
}

# A 2015 sequence: its folder and the file inside share one name, in which the image number differs per sequence.
_SEQUENCE = re.compile(r"VSD\.Brain(?:_\dmore)?\.XX\.(?:O|XX)\.(?P<token>MR_Flair|MR_T1c|MR_T1|MR_T2|OT)\.\d+", re.I)


# A file that follows no data set's names is read and written with this one's label values.
FREE_NAMES = "brats2021"


def layout_named(name: str) -> Layout:
    """The layout of that name.

    Args:
        name: key in ``LAYOUTS``.

    Raises:
        InputError: unknown; the valid ones are listed.
    """
    if name not in LAYOUTS:
        raise InputError(f"unknown layout {name!r}: choose from {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


@dataclass(frozen=True)
class ImageSource:
    """Where one modality is: a file and, in a 4D file, the position along its last axis."""

    path: Path
    channel: int | None = None


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case, not opened yet.

    Attributes:
        id: unique among the cases of a root.
        layout: key in ``LAYOUTS``.
        images: by modality, in the order of ``MODALITIES``; only those on disk.
        label: the segmentation, or None if there is none.
    """

    id: str
    layout: str
    images: dict[str, ImageSource]
    label: Path | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities on disk, in the project's order."""
        return tuple(self.images)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file once, the images before the label."""
        images = dict.fromkeys(source.path for source in self.images.values())
        return (*images, *([self.label] if self.label else []))

    @property
    def scheme(self) -> LabelScheme:
        """Label values of the layout."""
        return layout_named(self.layout).scheme

    @property
    def patient(self) -> str:
        """The patient's name, which the cases of one patient share, in small letters."""
        pattern = layout_named(self.layout).patient
        match = re.fullmatch(pattern, self.id, re.IGNORECASE) if pattern else None
        return (match[1] if match else self.id).casefold()


@dataclass(frozen=True)
class _Part:
    """What one file's name says: the case that it belongs to and its role there ("label", a modality, or "4d")."""

    layout: str
    folder: Path
    case: str
    role: str
    path: Path


def split_suffix(path: str | os.PathLike) -> tuple[str, str]:
    """File name without its image suffix, and the suffix in lower case ("" if it is not one of ``IMAGE_SUFFIXES``)."""
    name = Path(path).name
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], suffix
    return name, ""


def find_cases(root: str | os.PathLike, *, mixed: bool = False) -> list[CaseFiles]:
    """List the cases below a folder, sorted by id; the layout is told from the names.

    The folder may be the whole data set, a part of it (``HGG``, ``imagesTr``) or a single case. A case that lacks
    sequences or its label is listed with what it has; hidden files, such as macOS's ``._`` copies, are left out. In
    2015 the id starts with the grade (``HGG_brats_2013_pat0001_1``), because the grades share patient names.

    Args:
        root: the folder.
        mixed: also take cases of several layouts, for work that looks at each by itself.

    Raises:
        InputError: the folder is missing, holds no case, mixes layouts unless it may, holds two cases of one id, or two
            files of other content for one image; or a folder in it cannot be listed.
    """
    root = Path(root)
    cases = _collect(root, mixed)
    if not cases:
        found = [str(path.relative_to(root)) for path in _walk(root)]
        listing = f"{len(found)} files such as {', '.join(found[:3])}" if found else "no files"
        raise InputError(f"{root}: no cases here; expected {_expectation()}, found {listing}; check the path")
    return cases


def find_case(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> CaseFiles:
    """The files of one case.

    Args:
        paths: a folder that holds exactly one case; or files whose names tell the modality in the way of any layout
            (``*_flair.nii.gz``, ``*-t2f.nii.gz``, ``flair.nii.gz``) or of BIDS (``*_ce-gadolinium_T1w.nii.gz`` is a
            T1ce), or that are assigned (``"flair=scan.nii.gz"``, also ``"label=..."``); or a 4D file of MSD. Files that
            follow no data set's names count as "brats2021".

    Raises:
        InputError: a file is missing, its modality unclear or given twice, or there is not exactly one case.
    """
    items = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not items:
        raise InputError("no file was given: name one case folder or at least one image file")
    if len(items) > 1 or not Path(items[0]).is_dir():
        return _case_of_files(items)
    folder = Path(items[0])
    cases = _collect(folder)
    if not cases:
        free = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and _free_name(path)]
        return _case_of_files(free) if free else find_cases(folder)[0]
    if len(cases) > 1:
        raise InputError(
            f"{folder}: expected one case, found {len(cases)} ({', '.join(case.id for case in cases[:3])}, ...); "
            "name the folder of one of them"
        )
    return cases[0]


def _expectation() -> str:
    return "one of " + "; ".join(f"{layout.name} ({layout.summary})" for layout in LAYOUTS.values())


def _walk(root: Path) -> Iterator[Path]:
    """Visible files below ``root`` in a fixed order, each folder once even where links form a loop."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename}: cannot be listed ({error.strerror}); expected a folder of cases; check the path and "
            "its permissions"
        ) from error

    seen = set()
    # Below the root too: the cases of a folder that is silently left out would be missed by nobody.
    for name, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        folder = Path(name)
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        yield from (folder / entry for entry in sorted(files) if not entry.startswith("."))
        # A folder named like an image is listed too: reading it will say what is wrong, skipping it would hide it.
        images = [entry for entry in folders if split_suffix(entry)[1]]
        folders[:] = [entry for entry in folders if entry not in images]
        yield from (folder / entry for entry in images)


def _recognise(path: Path) -> _Part | None:
    """The part of a case that a file's name stands for, or None if it follows no layout."""
    stem, suffix = split_suffix(path)
    if suffix == ".mha":
        inside = _SEQUENCE.fullmatch(path.parent.name)
        match = _SEQUENCE.fullmatch(stem) or inside
        if not match:
            return None
        folder = path.parent.parent if inside else path.parent
        patient = Path(os.path.abspath(folder))
        grade = patient.parent.name.upper()
        case = f"{grade}_{patient.name}" if grade in ("HGG", "LGG") else patient.name
        return _Part("brats2015", folder, case, _role(LAYOUTS["brats2015"], match["token"]), path)
    if not suffix:
        return None
    for layout in LAYOUTS.values():
        if layout.name == "brats2015":
            continue
        match = layout.file_pattern.fullmatch(stem)
        if match:
            role = "4d" if layout.channels else _role(layout, match["token"])
            return _Part(layout.name, path.parent, match["case"], role, path)
    # One label of the 2020 release kept a foreign name (BraTS20_Training_355/W39_1998.09.19_Segm.nii).
    case = _folder_name(path)
    if stem.lower().endswith("_segm") and re.fullmatch(LAYOUTS["brats2020"].case_pattern, case):
        return _Part("brats2020", path.parent, case, "label", path)
    return None


def _role(layout: Layout, token: str) -> str:
    return next(role for role, spelling in layout.tokens.items() if spelling.lower() == token.lower())


def _collect(root: Path, mixed: bool = False) -> list[CaseFiles]:
    """Cases below ``root``, sorted by id, an empty list if there are none; raises as :func:`find_cases`."""
    groups: dict[tuple[str, Path, str], dict[str, Path]] = defaultdict(dict)
    for path in _walk(root):
        part = _recognise(path)
        # A 4D image, its label and predictions elsewhere share one file name: the folder tells them apart.
        if part is None or (part.role == "4d" and _folder_name(path) not in ("imagesTr", "imagesTs")):
            continue
        # With both .nii and .nii.gz on disk, the first of the sorted names is taken: it needs no decompression.
        taken = groups[part.layout, part.folder, part.case].setdefault(part.role, path)
        if taken != path and _content(taken) != _content(path):
            raise InputError(_two_files(path, taken, part.case, "image" if part.role == "4d" else part.role))
    cases: dict[tuple[str, str], tuple[CaseFiles, Path]] = {}
    for (layout, folder, case), roles in groups.items():
        files = _case_files(case, layout, roles)
        if not files.images:
            continue
        if (layout, case) in cases:
            raise InputError(
                f"{root}: expected each case once, found {case} in {cases[layout, case][1]} and in {folder}; "
                "name a folder that holds only one of them"
            )
        cases[layout, case] = files, folder
    layouts = sorted({layout for layout, _ in cases})
    if len(layouts) > 1 and not mixed:
        examples = [next(case for layout, case in cases if layout == name) for name in layouts]
        raise InputError(
            f"{root}: expected cases of one layout ({_expectation()}), found a mix of {' and '.join(layouts)} "
            f"({', '.join(examples)}); name a folder that holds only one of them"
        )
    return [cases[key][0] for key in sorted(cases, key=lambda key: key[::-1])]


def _content(path: Path) -> tuple[int, int] | None:
    """Checksum and length of what a file holds once unpacked, as gzip writes them at its end; None if unreadable."""
    try:
        with open(path, "rb") as file:
            if file.read(2) == b"\x1f\x8b":
                file.seek(-8, os.SEEK_END)
                checksum, length = struct.unpack("<II", file.read(8))
                return checksum, length
            file.seek(0)
            checksum = length = 0
            while block := file.read(2**20):
                checksum, length = zlib.crc32(block, checksum), length + len(block)
            return checksum, length % 2**32
    except OSError:
        return None


def _folder_name(path: Path) -> str:
    """Name of the folder that a file lies in, also for a relative path."""
    return Path(os.path.abspath(path)).parent.name


def _case_files(case: str, layout: str, roles: dict[str, Path]) -> CaseFiles:
    """Put the parts of a case in order; a 4D file becomes four sources, and its label is looked up beside it."""
    label = roles.get("label")
    if "4d" in roles:
        channels = LAYOUTS[layout].channels
        assert channels is not None  # only such a layout's names stand for a 4D file
        images = {name: ImageSource(roles["4d"], channels.index(name)) for name in MODALITIES}
        found = [] if label else [path for path in _labels_beside(roles["4d"], case) if path.exists()]
        if len({_content(path) for path in found}) > 1:
            raise InputError(_two_files(found[1], found[0], case, "label"))
        label = label or next(iter(found), None)
    else:
        images = {name: ImageSource(roles[name]) for name in MODALITIES if name in roles}
    return CaseFiles(case, layout, images, label)


def _labels_beside(image: Path, case: str) -> list[Path]:
    """Where the label of a 4D image may lie: imagesTr has its labels in labelsTr."""
    beside = _folder_name(image).replace("images", "labels")
    if not beside.startswith("labels"):
        return []
    return [Path(os.path.normpath(image.parent / ".." / beside / f"{case}{suffix}")) for suffix in (".nii", ".nii.gz")]


def _two_files(path: Path, taken: Path, case: str, role: str) -> str:
    return (
        f"{path}: {role} of {case} was found as {taken} already, with other content; expected one of them: move the "
        "other away"
    )


def role_of_output(path: Path, files: CaseFiles, folder: Path | None) -> str:
    """What a file of this name would be taken for the next time that a case is looked for; "" if for nothing.

    Args:
        path: to be written.
        files: the case.
        folder: that the case was looked for in, or None if its files were named one by one.

    Returns:
        "label", a modality, or "4d".
    """
    place = Path(os.path.realpath(path))
    sources = list(files.images.values())
    if any(
        place == Path(os.path.realpath(label))
        for source in sources
        if source.channel is not None
        for label in _labels_beside(source.path, files.id)
    ):
        return "label"
    if folder is None or Path(os.path.realpath(folder)) not in place.parents:
        return ""
    if part := _recognise(place):
        return part.role if part.role != "4d" or _folder_name(place) in ("imagesTr", "imagesTs") else ""
    # Free names count only in the folder itself, and only where no name follows a data set.
    if place.parent != Path(os.path.realpath(folder)) or any(_recognise(source.path) for source in sources):
        return ""
    free = _free_name(place)
    return free.role if free else ""


def _free_name(path: Path) -> FreeName | None:
    stem, suffix = split_suffix(path)
    return read_free_name(stem) if suffix else None


def _case_of_files(items: Sequence[str | os.PathLike]) -> CaseFiles:
    """One case from single files and ``role=file`` assignments."""
    roles: dict[str, Path] = {}
    layouts, ids = set(), {}
    for item in items:
        explicit, path = _assignment(item)
        if not path.is_file():
            found = "a folder among several paths" if path.is_dir() else "nothing there"
            raise InputError(f"{path}: expected an image file, found {found}; name one case folder, or files only")
        part, free = _recognise(path), _free_name(path)
        if part and part.role == "4d" and _folder_name(path).startswith("labels"):
            part = _Part(part.layout, part.folder, part.case, "label", path)
        role = explicit or (part.role if part else free and free.role)
        if not role:
            raise InputError(
                f"{path}: its name does not tell the modality; expected an ending such as _flair.nii.gz, "
                f"_t1ce.nii.gz, -t2f.nii.gz or .mha, or BRATS_*.nii.gz; write flair={path} (or t1ce=, t1=, t2=, label=)"
            )
        if role in roles:
            raise InputError(
                f"{path}: {role} was given already as {roles[role]}; give each modality once, and where a name is "
                "misread, write flair=FILE, t1ce=FILE, t1=FILE or t2=FILE"
            )
        roles[role] = path
        if part:
            layouts.add(part.layout)
            ids[part.case] = path
        elif free and not explicit:
            if free.layout:
                layouts.add(free.layout)
            ids[free.case or _folder_name(path)] = path
    if len(ids) > 1 or len(layouts) > 1:
        raise InputError(
            f"{', '.join(map(str, ids.values()))}: expected the files of one case, found the names of "
            f"{' and '.join(ids)}; if they belong together, write flair=FILE, t1ce=FILE, t1=FILE, t2=FILE"
        )
    layout = layouts.pop() if layouts else FREE_NAMES
    case = next(iter(ids), None) or _folder_name(next(iter(roles.values()))) or "case"
    if "4d" in roles and set(roles) - {"4d", "label"}:
        raise InputError(f"{roles['4d']}: holds all four modalities already; give it alone or with label=FILE")
    files = _case_files(case, layout, roles)
    if not files.images:
        raise InputError(f"{files.label}: is a label, and no image was given; add at least one image file")
    return files


def _assignment(item: str | os.PathLike) -> tuple[str | None, Path]:
    """Split ``"flair=scan.nii.gz"`` into its role and file; a plain path has no role."""
    name, separator, rest = os.fspath(item).partition("=")
    if not separator or Path(item).exists():
        return None, Path(item)
    role = ENDINGS.get(name.strip().lower())
    if role is None:
        raise InputError(
            f"{item}: {name!r} is not a modality; write flair=FILE, t1ce=FILE, t1=FILE, t2=FILE or label=FILE"
        )
    return role, Path(rest)
