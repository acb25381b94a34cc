"""What a run writes besides its weights: facts of what made it, and a log. For training, train-sam and the scripts."""

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import subprocess
from collections.abc import Collection, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch

import smml
from smml.errors import InputError, MissingPackage
from smml.files import sync, write_text

CONFIG = "config.json"
LOG = "log.csv"

# Bytes of a block, and how many of them a file's digest looks at.
_BLOCK, _BLOCKS = 4096, 16


def made_with(*packages: str) -> dict:
    """With what code something is made, as plain values for a JSON file.

    Args:
        packages: installed packages whose versions matter too.

    Returns:
        ``versions`` of smml, torch, Python and the packages, by name, and ``commit`` (:func:`commit`).
    """
    versions = {"smml": smml.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    return {"versions": versions | {name: version(name) for name in packages}, "commit": commit()}


def made_line(report: dict) -> str:
    """The sentence at the end of a page that says how it was made.

    Args:
        report: the page's JSON, with ``command``, ``hardware`` and what :func:`made_with` gives.
    """
    return (
        f"Made by `{report['command']}` at commit {report['commit'][:10]}, torch {report['versions']['torch']}, "
        f"{report['hardware']}."
    )


def provenance(device: torch.device, processes: int = 1) -> dict:
    """With what code and where a run is made, as plain values for its ``config.json``.

    Args:
        device: where this process computes.
        processes: how many compute as one.

    Returns:
        ``versions``, ``commit``, ``processes`` and ``hardware``.
    """
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return made_with() | {"processes": processes, "hardware": f"{device.type}, {hardware}"}


def read_facts(known: Path) -> dict:
    """What the JSON file of a folder says of what it holds.

    Args:
        known: the file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        found = json.loads(known.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{known}: cannot be read ({error}); choose another output") from error
    return found


def check_same(known: Path, facts: dict, what: str) -> None:
    """Refuse to go on in a folder that holds something else.

    Args:
        known: the folder's JSON file with the facts of what it holds.
        facts: those of what is to be done now, as plain values.
        what: the folder holds, such as "the scores of another evaluation".

    Raises:
        InputError: a fact differs, each is named; or the file cannot be read.
    """
    found = read_facts(known)
    # As the file would give it back.
    wanted = json.loads(json.dumps(facts))
    # A fact that one of them does not name is the same as None.
    pairs = {name: (found.get(name), wanted.get(name)) for name in (*wanted, *found)}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if different:
        plain = (str, int, float, type(None))
        said = (
            f"{name} {before!r:.60}, here {now!r:.60}" if isinstance(before, plain) and isinstance(now, plain) else name
            for name, (before, now) in different.items()
        )
        raise InputError(
            f"{known.parent}: holds {what} (other {'; '.join(said)}); choose another output, or go on with the command "
            "that made it"
        )


def commit() -> str:
    """The commit of the repository that the package is run from; empty where it is none, or git is missing."""
    package = Path(smml.__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "HEAD"],
            cwd=package,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    top, head = answer.stdout.splitlines()
    # An installed package may lie inside some other repository, whose commit says nothing about it.
    return head if Path(top).resolve() == package.parent else ""


def file_digest(path: Path, *, whole: bool = False) -> str:
    """A digest of a file's length and of blocks from its first byte to its last, evenly spread.

    That tells files apart at once, however large. A compressed image ends in a checksum of the whole; in another a
    change between the blocks is not seen.

    Args:
        path: of the file.
        whole: look at all of it, unless it is compressed.

    Raises:
        InputError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            stream.seek(0)
            if whole and stream.read(2) != b"\x1f\x8b":
                stream.seek(0)
                digest.update(hashlib.file_digest(stream, "sha256").digest())
                return digest.hexdigest()[:12]
            for number in range(_BLOCKS):
                stream.seek(number * max(0, size - _BLOCK) // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return digest.hexdigest()[:12]


def files_digest(paths: Iterable[Path], *, whole: Collection[Path | None] = ()) -> str:
    """One digest of several files, in their order; see :func:`file_digest`.

    Args:
        paths: of the files.
        whole: those of them that are looked at from end to end, as labels are: who corrects one changes little of it.
    """
    digests = (file_digest(path, whole=path in whole) for path in paths)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


class TrainingLog:
    """A CSV log: a row at a time, whole rows only, in step with the checkpoint after a resume.

    Args:
        path: the file.
        columns: names of the columns; the first is the step.
        resume_at: keep the rows of earlier steps (below this one) and drop the rest, which a killed run wrote after
            its last checkpoint and which the resumed run writes again.

    Raises:
        InputError: by every method, if the disk is full or the file cannot be written.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], resume_at: int = 0) -> None:
        self.path, self.columns = path, columns
        kept: list[list[str]] = []
        if resume_at and path.exists():
            with open(path, newline="", encoding="utf-8") as stream:
                rows = list(csv.reader(stream))[1:]
            kept = [row for row in rows if len(row) == len(columns) and int(row[0]) < resume_at]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *kept])
        write_text(path, text.getvalue())
        self._stream = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._size = path.stat().st_size  # bytes of whole rows

    def write(self, row: dict[str, float | int]) -> None:
        """Append one row, by column name."""
        values = [row[name] for name in self.columns]
        text = [str(value) if isinstance(value, int) else f"{value:.6g}" for value in values]
        with self._told():
            self._stream.write(",".join(text) + "\n")
            self._stream.flush()
            self._size = os.fstat(self._stream.fileno()).st_size

    def sync(self) -> None:
        """Make sure that what was written survives a power cut."""
        with self._told():
            sync(self._stream.fileno())

    def close(self) -> None:
        with self._told():
            try:
                # What could not be written before is tried once more.
                self._stream.close()
            except OSError:
                # A full disk takes a part of a row.
                with contextlib.suppress(OSError):
                    os.truncate(self.path, self._size)
                raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the disk as one sentence."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path}: writing failed ({error.strerror}); free some space, and go on with --resume: what was "
                "saved before is whole"
            ) from error


class Board:
    """The same rows for TensorBoard, in the folder ``tensorboard`` of the run.

    Raises:
        MissingPackage: the package ``tensorboard`` is not installed.
    """

    def __init__(self, output: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackage(
                f"tensorboard: the package is not installed ({error})",
                extra="tensorboard",
                otherwise="leave the option out: log.csv has the same numbers",
            ) from error
        self._writer = SummaryWriter(output / "tensorboard")

    def write(self, row: dict[str, float | int], group: str) -> None:
        """Add every number of a row as "group/column" at the row's step."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"{group}/{name}", value, row["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
