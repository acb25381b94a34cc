"""Finding the cases of a data set by the names of their files (releases.py; docs/CONVENTIONS.md, "Files").

A case is recognised by names alone, so listing a thousand cases takes a moment and a damaged file is reported by
whoever reads it. Opened are only two files that stand for one image, to see whether they hold the same; labels of a
release whose names an earlier one shares with other meanings, until one tells which it is; and nnU-Net's dataset.json.
"""

import os
import re
import struct
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from smml.data.free_names import ENDINGS, FreeName, read_free_name
from smml.data.labels import LabelScheme
from smml.data.nifti import open_nifti
from smml.data.nnunet import dataset_beside
from smml.data.releases import LAYOUTS, Layout, layout_named, patient_of
from smml.errors import InputError
from smml.modalities import MODALITIES

IMAGE_SUFFIXES: tuple[str, ...] = (".nii.gz", ".nii", ".mha")

# A browser's mark of a second download, before the suffix or inside it: "t1 (1).nii.gz", "t1.nii (1).gz".
_DOWNLOADED_AGAIN = re.compile(r"(?P<stem>.+?)(?: ?\(\d+\))?(?P<nii>\.nii) ?\(\d+\)(?P<gz>\.gz)", re.IGNORECASE)
_MARK = re.compile(r" ?\(\d+\)$")

# A 2015 sequence: its folder and the file inside share one name, in which the image number differs per sequence.
_SEQUENCE = re.compile(r"VSD\.Brain(?:_\dmore)?\.XX\.(?:O|XX)\.(?P<token>MR_Flair|MR_T1c|MR_T1|MR_T2|OT)\.\d+", re.I)

# A file that follows no data set's names is read and written with this one's label values.
FREE_NAMES = "brats2021"


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
        return patient_of(self.id, self.layout)

    def decode(self, stored: np.ndarray, scale: tuple[float, float] | None = None) -> np.ndarray:
        """The label's values on disk -> memory values; see :meth:`smml.data.labels.LabelScheme.decode`.

        Args:
            stored: as read from ``label``, [X, Y, Z].
            scale: slope and intercept of its header.

        Raises:
            InputError: as there; where another release of such names has these values, it is named.
        """
        try:
            return self.scheme.decode(stored, os.fspath(self.label or self.id), scale)
        except InputError as error:
            values = set(np.unique(np.rint(stored)).tolist())
            alike = _of_this_name(self.id, self.layout)
            other = [each.name for each in alike if values <= set(each.scheme.on_disk or ())]
            if not other:
                raise
            raise InputError(
                f"{error}; or these cases are of {' or '.join(other)}, whose files are named alike: then say so with "
                f"--layout {other[0]}"
            ) from error


@dataclass(frozen=True)
class _Part:
    """What one file's name says: the case that it belongs to, and as what: "label", a modality, "4d" or "automatic"."""

    layout: str
    folder: Path
    case: str
    role: str
    path: Path


def split_suffix(path: str | os.PathLike) -> tuple[str, str]:
    """File name without its image suffix, and the suffix in lower case ("" if it is not one of ``IMAGE_SUFFIXES``)."""
    name = Path(path).name
    if again := _DOWNLOADED_AGAIN.fullmatch(name):
        return f"{again['stem']} (1)", f"{again['nii']}{again['gz']}".lower()
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], suffix
    return name, ""


def find_cases(
    root: str | os.PathLike, layout: str | None = None, *, mixed: bool = False, labels: bool = True
) -> list[CaseFiles]:
    """List the cases below a folder, sorted by id; the layout is told from the names.

    The folder may be the whole data set, a part of it (``HGG``, ``imagesTr``) or a single case. A case that lacks
    sequences or its label is listed with what it has; hidden files, such as macOS's ``._`` copies, are left out. In
    2015 the id starts with the grade (``HGG_brats_2013_pat0001_1``), because the grades share patient names.

    An image in the folder of a case whose name says nothing is left out with a warning.

    Args:
        root: the folder.
        layout: read the names as this one's; needed where releases with other label values share names, and nothing in
            the labels tells them apart.
        mixed: also take cases of several layouts, for work that looks at each by itself.
        labels: False where nobody reads the labels, so that it does not matter what their values mean.

    Raises:
        InputError: the folder is missing, holds no case, mixes layouts unless it may, holds two cases of one id, or two
            files of other content for one image; a folder in it cannot be listed; or ``layout`` is unknown, has other
            names, or is missing where it is needed.
    """
    root = Path(root)
    cases = _collect(root, layout, label=labels, mixed=mixed)
    if not cases:
        found = [str(path.relative_to(root)) for path in _walk(root)]
        listing = f"{len(found)} files such as {', '.join(found[:3])}" if found else "no files"
        raise InputError(f"{root}: no cases here; expected {_expectation(layout)}, found {listing}; check the path")
    return cases


def find_case(
    paths: str | os.PathLike | Iterable[str | os.PathLike], layout: str | None = None, *, label: bool = True
) -> CaseFiles:
    """The files of one case.

    Args:
        paths: a folder that holds exactly one case; or files whose names tell the modality in the way of any layout
            (``*_flair.nii.gz``, ``*-t2f.nii.gz``, ``flair.nii.gz``) or of BIDS (``*_ce-gadolinium_T1w.nii.gz`` is a
            T1ce), or that are assigned (``"flair=scan.nii.gz"``, also ``"label=..."``); or a 4D file of MSD. Files that
            follow no data set's names count as "brats2021". An image in the folder that is not used is named in a
            warning.
        layout: as for :func:`find_cases`.
        label: whether the segmentation is to be read; if not, nobody asks what its values mean.

    Raises:
        InputError: a file is missing, its modality unclear or given twice, or there is not exactly one case; or as for
            :func:`find_cases`.
    """
    items = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not items:
        raise InputError("no file was given: name one case folder or at least one image file")
    if len(items) > 1 or not Path(items[0]).is_dir():
        case = _case_of_files(items, layout)
        if label and layout is None:
            _check_release([case])
        return case
    folder = Path(items[0])
    cases = _collect(folder, layout, label=label)
    if not cases:
        images = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and split_suffix(path)[1]]
        free = [path for path in images if _free_name(path)]
        if not free or layout is not None:
            return find_cases(folder, layout)[0]
        case = _case_of_files(free)
        _warn_of_unused([path for path in images if path not in free])
        return case
    if len(cases) > 1:
        raise InputError(
            f"{folder}: expected one case, found {len(cases)} ({', '.join(case.id for case in cases[:3])}, ...); "
            "name the folder of one of them"
        )
    return cases[0]


def _expectation(layout: str | None = None) -> str:
    if layout is not None:
        return f"{layout} ({layout_named(layout).summary})"
    return "one of " + "; ".join(f"{each.name} ({each.summary})" for each in LAYOUTS.values())


_NO_SEQUENCE = (
    "the name does not tell the sequence; if it is one, rename it, or name the case's files one by one, as flair=FILE, "
    "t1ce=FILE, t1=FILE or t2=FILE"
)


def _warn_of_unused(images: Sequence[Path], why: str = _NO_SEQUENCE) -> None:
    """Name images that nobody reads; why, and what to do."""
    if images:
        more = f" and {len(images) - 3} more" if len(images) > 3 else ""
        warnings.warn(f"{', '.join(map(str, images[:3]))}{more}: not used, because {why}", stacklevel=4)


def _of_this_name(case: str, layout: str) -> list[Layout]:
    """Other layouts whose files may be called so too."""
    if not layout_named(layout).by_names:
        return []
    return [
        each for each in LAYOUTS.values() if each.name not in (layout, "brats2015") and each.names(case, each.named)
    ]


def _check_release(cases: list[CaseFiles]) -> None:
    """Refuse cases of which nothing tells the release, where another of these names gives label values other meanings.

    Names tell no year there. A label that holds the value which only one release has does; one such is enough, as a
    folder is of one release.
    """
    for style in [layout_named(name) for name in dict.fromkeys(case.layout for case in cases)]:
        if style.sign is None:
            continue
        mine = [case for case in cases if case.layout == style.name and case.label is not None]
        known = 0
        for case in mine:
            values = _values(cast(Path, case.label))
            if style.sign in values:
                known = 0
                break
            known += bool(values - {0})
        if known:
            others = _of_this_name(mine[0].id, style.name)
            both = " and ".join(f"{each.name} ({_meaning(each)})" for each in (style, *others))
            raise InputError(
                f"{mine[0].label}: cases of {both} are named alike, and none of the {known} labels here holds "
                f"a {style.sign}, by which {style.name} would be known; say which it is with --layout {others[0].name} "
                f"or --layout {style.name}"
            )


def warn_of_release(cases: Sequence[CaseFiles]) -> None:
    """Say in whose label values answers will be written, where names do not tell of which release cases are.

    Args:
        cases: whose layout was told from names alone; their labels are not looked at.
    """
    for style in [layout_named(name) for name in dict.fromkeys(case.layout for case in cases)]:
        if style.sign is None:
            continue
        first = next(case.id for case in cases if case.layout == style.name)
        others = _of_this_name(first, style.name)
        both = " and ".join(f"{each.name} ({_meaning(each)})" for each in (style, *others))
        warnings.warn(
            f"{first}: cases of {both} are named alike; labels are written in the values of {style.name}: say --layout "
            f"{others[0].name} if these are of that, or --layout {style.name}",
            stacklevel=2,
        )


def _meaning(layout: Layout) -> str:
    """Label values of a layout in words, such as "1 ET, 2 NCR/NET"."""
    values = zip(layout.scheme.on_disk or (), layout.scheme.classes, strict=True)
    return ", ".join(f"{value} {name}" for value, name in sorted(values)[1:])


def _values(label: Path) -> set[float]:
    """Values in a label; none if it cannot be read, which whoever reads it will say."""
    try:
        return set(np.unique(np.asanyarray(open_nifti(label).dataobj)).tolist())
    # What a damaged file provokes is not enumerable.
    except Exception:
        return set()


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


def _recognise(path: Path, layout: str | None = None) -> _Part | None:
    """The part of a case that a file's name stands for, or None if it follows no layout, or not the one named."""
    stem, suffix = _unmarked(path)
    if suffix == ".mha" and layout in (None, "brats2015"):
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
    styles = list(LAYOUTS.values()) if layout is None else [layout_named(layout)]
    for style in styles:
        if style.name == "brats2015" or not style.by_names:
            continue
        match = (style.file_pattern if layout is None else style.named_pattern).fullmatch(stem)
        if match:
            role = "4d" if style.channels else _role(style, match["token"])
            return _Part(style.name, path.parent, match["case"], role, path)
    numbered = re.fullmatch(r"(?P<case>.+)_(?P<channel>\d{4})", stem)
    if numbered and not all(style.by_names for style in styles) and (dataset := dataset_beside(path)):
        sequence = dataset.channels.get(numbered["channel"])
        return _Part(dataset.layout, path.parent, numbered["case"], sequence, path) if sequence else None
    # One label of the 2020 release kept a foreign name (BraTS20_Training_355/W39_1998.09.19_Segm.nii).
    case = _folder_name(path)
    in_2020 = layout in (None, "brats2020") and re.fullmatch(LAYOUTS["brats2020"].case_pattern, case)
    if in_2020 and stem.lower().endswith("_segm"):
        return _Part("brats2020", path.parent, case, "label", path)
    return None


def _unmarked(path: Path) -> tuple[str, str]:
    """As :func:`split_suffix`, without a browser's mark."""
    stem, suffix = split_suffix(path)
    return _MARK.sub("", stem), suffix


def _role(layout: Layout, token: str) -> str:
    if layout.automatic and token.lower() == layout.automatic.lower():
        return "automatic"
    return next(role for role, spelling in layout.tokens.items() if spelling.lower() == token.lower())


def _collect(root: Path, layout: str | None = None, *, label: bool = True, mixed: bool = False) -> list[CaseFiles]:
    """Cases below ``root``, sorted by id, an empty list if there are none; raises as :func:`find_cases`."""
    groups: dict[tuple[str, Path, str], dict[str, Path]] = defaultdict(dict)
    unknown: list[Path] = []
    if layout is not None:
        layout_named(layout)
    for path in _walk(root):
        part = _recognise(path, layout)
        if part is None and layout is not None and (other := _recognise(path)):
            raise InputError(f"{path}: expected names of {_expectation(layout)}, found those of {other.layout}")
        if part is None and split_suffix(path)[1]:
            unknown.append(path)
        # A 4D image, its label and predictions elsewhere share one file name: the folder tells them apart.
        if part is None or (part.role == "4d" and _folder_name(path) not in ("imagesTr", "imagesTs")):
            continue
        # With both .nii and .nii.gz on disk, the first of the sorted names is taken: it needs no decompression.
        taken = groups[part.layout, part.folder, part.case].setdefault(part.role, path)
        if taken != path and _content(taken) != _content(path):
            raise InputError(_two_files(path, taken, part.case, "image" if part.role == "4d" else part.role))
    cases: dict[tuple[str, str], tuple[CaseFiles, Path]] = {}
    automatic: list[Path] = []
    for (name, folder, case), roles in groups.items():
        files = _case_files(case, name, roles)
        if not files.images:
            continue
        if (name, case) in cases:
            raise InputError(
                f"{root}: expected each case once, found {case} in {cases[name, case][1]} and in {folder}; "
                "name a folder that holds only one of them"
            )
        cases[name, case] = files, folder
        if "automatic" in roles and files.label is None:
            automatic.append(roles["automatic"])
    layouts = sorted({name for name, _ in cases})
    if len(layouts) > 1 and not mixed:
        examples = [next(case for layout, case in cases if layout == name) for name in layouts]
        raise InputError(
            f"{root}: expected cases of one layout ({_expectation()}), found a mix of {' and '.join(layouts)} "
            f"({', '.join(examples)}); name a folder that holds only one of them"
        )
    places = {folder for _, folder in cases.values()}
    _warn_of_unused([path for path in unknown if path.parent in places])
    # Elsewhere answers and masks may lie, which are nobody's images; what is called like a sequence is a patient's.
    elsewhere = [path for path in unknown if cases and path.parent not in places]
    strangers = [path for path in elsewhere if (free := _free_name(path)) and free.role in MODALITIES]
    folders = len({path.parent for path in strangers})
    where = "the folder that they lie in" if folders == 1 else f"the {folders} folders that they lie in"
    _warn_of_unused(
        strangers,
        f"the names follow no data set and no case was found in {where}; rename them, or name such a case by itself",
    )
    if automatic:
        warnings.warn(
            f"{automatic[0]}: not taken for the truth, because a program made it and nobody looked; {len(automatic)} "
            f"of {len(cases)} cases have no other segmentation and count as unlabelled",
            stacklevel=3,
        )
    found = [cases[key][0] for key in sorted(cases, key=lambda key: key[::-1])]
    if label and layout is None:
        _check_release(found)
    return found


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
    """Put the parts of a case in order; a 4D file becomes four sources.

    Where labels have a folder of their own, that of the case is looked up there.
    """
    label = roles.get("label")
    if "4d" in roles:
        channels = layout_named(layout).channels
        assert channels is not None  # only such a layout's names stand for a 4D file
        images = {name: ImageSource(roles["4d"], channels.index(name)) for name in MODALITIES}
    else:
        images = {name: ImageSource(roles[name]) for name in MODALITIES if name in roles}
    if images and not label and _keeps_labels_beside(layout):
        first = next(iter(images.values())).path
        found = [path for path in _labels_beside(first, case) if path.exists()]
        if len({_content(path) for path in found}) > 1:
            raise InputError(_two_files(found[1], found[0], case, "label"))
        label = next(iter(found), None)
    return CaseFiles(case, layout, images, label)


def _keeps_labels_beside(layout: str) -> bool:
    """Whether labels lie in a folder of their own, beside that of the images."""
    style = layout_named(layout)
    return style.channels is not None or not style.by_names


def _labels_beside(image: Path, case: str) -> list[Path]:
    """Where the label of an image may lie: imagesTr has its labels in labelsTr."""
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
        "label", a modality, "4d", or "automatic" for a segmentation that nobody looked at.
    """
    place = Path(os.path.realpath(path))
    sources = list(files.images.values())
    if _keeps_labels_beside(files.layout) and any(
        place == Path(os.path.realpath(label)) for source in sources for label in _labels_beside(source.path, files.id)
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
    stem, suffix = _unmarked(path)
    return read_free_name(stem) if suffix else None


def _case_of_files(items: Sequence[str | os.PathLike], layout: str | None = None) -> CaseFiles:
    """One case from single files and ``role=file`` assignments."""
    roles: dict[str, Path] = {}
    layouts, ids, names = set(), {}, []
    for item in items:
        explicit, path = _assignment(item)
        if not path.is_file():
            found = "a folder among several paths" if path.is_dir() else "nothing there"
            raise InputError(f"{path}: expected an image file, found {found}; name one case folder, or files only")
        part, free = _recognise(path, layout) or _recognise(path), _free_name(path)
        if part and part.role == "automatic":  # who names it means it
            part = replace(part, role="label")
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
            names.append(part.case)
        elif free and not explicit:
            if free.layout:
                layouts.add(free.layout)
            names.append(free.case or _folder_name(path))
        # Who writes what a file is says that it belongs here, whatever it is called.
        if (part or free) and not explicit:
            ids[names[-1]] = path
    if len(ids) > 1 or len(layouts) > 1:
        raise InputError(
            f"{', '.join(map(str, ids.values()))}: expected the files of one case, found the names of "
            f"{' and '.join(ids)}; if they belong together, write flair=FILE, t1ce=FILE, t1=FILE, t2=FILE"
        )
    found = layouts.pop() if layouts else FREE_NAMES
    # Which of nnU-Net's a case is, its dataset.json says.
    if layout not in (None, found, found.partition("(")[0]):
        raise InputError(
            f"{roles[next(iter(roles))]}: expected names of {_expectation(layout)}, found those of "
            f"{found if names else 'no data set'}"
        )
    case = next(iter(ids), None) or next(iter(names), None) or _folder_name(next(iter(roles.values()))) or "case"
    if "4d" in roles and set(roles) - {"4d", "label"}:
        raise InputError(f"{roles['4d']}: holds all four modalities already; give it alone or with label=FILE")
    files = _case_files(case, found, roles)
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
