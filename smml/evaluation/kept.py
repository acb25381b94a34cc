"""The rows of finished cases on disk while an evaluation goes on, so that nothing that was scored is lost.

    FOLDER/evaluation.json   whose scores they are: the model, the options and the cases
    FOLDER/scores.csv        a row per case, subset, output and region (:mod:`smml.evaluation.scores`)

The rows of a case are appended as soon as it is done. Whatever ends the evaluation leaves whole cases and at most the
first rows of one more, which are cut off and scored again when it goes on.
"""

import contextlib
import csv
import io
import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from smml.errors import InputError
from smml.files import write_text
from smml.runs import check_same, read_facts

IDENTITY = "evaluation.json"
ROWS = "scores.csv"
COLUMNS = (
    "case",
    "subset",
    "modalities",
    "output",
    "region",
    "dice",
    "hd95",
    "nsd",
    "dice_post",
    "truth_ml",
    "predicted_ml",
)
# Behind them where lesions are scored too (:class:`smml.evaluation.lesions.LesionScores`).
LESION_COLUMNS = (
    "lesion_rules",
    "lesions",
    "lesions_found",
    "false_lesions",
    "lesion_dice",
    "lesion_hd95",
    "lesion_nsd",
)
_KEY = ("case", "subset", "output", "region")
_WORDS = frozenset((*_KEY, "lesion_rules"))
_COUNTS = frozenset(("modalities", "lesions", "lesions_found", "false_lesions"))


class KeptRows:
    """The rows of an evaluation's finished cases, in memory and on disk.

    Args:
        folder: of both files, made if needed.
        identity: what the scores depend on, as plain values; an evaluation goes on where it is the same.
        expected: of each case, in their order, what its rows are called: (case, subset, output, region).
        lesions: whether the rows have the columns of lesions too.
        writes: whether this process is the one that writes.

    Attributes:
        rows: of all finished cases, by column, with the six digits of the file; so those of an evaluation that was
            interrupted are those of one that was not.
        done: how many cases are finished.

    Raises:
        InputError: the folder holds the scores of another evaluation, or edited ones.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        identity: dict,
        expected: Sequence[Sequence[tuple[str, ...]]],
        *,
        lesions: bool = False,
        writes: bool = True,
    ) -> None:
        self._path, self._known = Path(folder) / ROWS, Path(folder) / IDENTITY
        self._identity, self._expected, self._writes = identity, expected, writes
        self._columns = COLUMNS + (LESION_COLUMNS if lesions else ())
        self.rows: list[dict] = []
        self.done = self._size = 0
        self._pending = ""
        content = self._path.read_bytes() if self._path.is_file() else b""
        # Of an evaluation that came to nothing there is nothing to lose, whosoever it was.
        heads = (COLUMNS, COLUMNS + LESION_COLUMNS)
        if not any(_line(columns).encode().startswith(content) for columns in heads):
            if not self._known.exists():
                raise InputError(
                    f"{self._path}: holds scores, and no {IDENTITY} beside it says of what; choose another output, or "
                    "move it away"
                )
            check_same(self._known, identity, "the scores of another evaluation")
            self._take(content)

    def begin(self) -> None:
        """Make both files ready for the rows of the next case.

        Raises:
            InputError: they cannot be written.
        """
        if not self._writes:
            return
        if not self.done:
            write_text(self._known, json.dumps(self._identity, indent=1) + "\n")
            self._size, self._pending = 0, _line(self._columns)
        try:
            self._write()
        except OSError as error:
            raise InputError(
                f"{self._path}: cannot be written ({error.strerror}); free some space or choose another output"
            ) from error

    def add(self, rows: Sequence[dict]) -> None:
        """Keep the rows of the next case.

        Where the disk does not take them they wait in memory for the case after it, with a warning: whoever frees some
        space meanwhile loses nothing.
        """
        text = "".join(_line([_shown(row[column]) for column in self._columns]) for row in rows)
        self.rows += self._parsed(text)
        self.done += 1
        if not self._writes:
            return
        waited, self._pending = bool(self._pending), self._pending + text
        try:
            self._write()
        except OSError as error:
            if not waited:
                warnings.warn(
                    f"{self._path}: cannot be written ({error.strerror}): the scores from here on are in memory alone, "
                    "and writing is tried again after each case; free some space",
                    stacklevel=2,
                )

    def _write(self) -> None:
        """Append what waits, behind the last row that is known to be whole."""
        try:
            with open(self._path, "r+b" if self._path.exists() else "wb") as stream:
                stream.truncate(self._size)
                stream.seek(self._size)
                stream.write(self._pending.encode())
                stream.flush()
        except OSError:
            # A full disk takes a part of what it is given.
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._size)
            raise
        self._size += len(self._pending.encode())
        self._pending = ""

    def _take(self, content: bytes) -> None:
        """Take the whole cases of the file."""
        # Without what follows the last line break: half of a row.
        text = content[: content.rfind(b"\n") + 1].decode("utf-8", "replace")
        # Not splitlines, which also breaks at characters that a name may hold.
        lines = [f"{line}\n" for line in text.split("\n")[:-1]]
        self._check(1, lines[:1] == [_line(self._columns)])
        self._size, first = len(lines[0].encode()), 1
        for names in self._expected:
            block = lines[first : first + len(names)]
            for number, (line, name) in enumerate(zip(block, names, strict=False), start=first + 1):
                self._check(number, tuple(self._cells(line).get(column) for column in _KEY) == name)
            if len(block) < len(names):
                return
            try:
                self.rows += self._parsed("".join(block))
            except ValueError:
                self._check(first + 1, False)
            self.done += 1
            self._size += sum(len(line.encode()) for line in block)
            first += len(names)
        self._check(first + 1, first == len(lines))

    def _check(self, number: int, right: bool) -> None:
        if not right:
            raise InputError(
                f"{self._path}: line {number} is not what this evaluation wrote there, so it cannot go on behind it; "
                "choose another output, or move the file away"
            )

    def _cells(self, line: str) -> dict[str, str]:
        return dict(zip(self._columns, next(csv.reader([line]), []), strict=False))

    def _parsed(self, text: str) -> list[dict]:
        """Rows of the file by column; ValueError where a number is none."""
        return [
            {
                name: cell if name in _WORDS else int(cell) if name in _COUNTS else float(cell or "nan")
                for name, cell in self._cells(line).items()
            }
            for line in text.split("\n")[:-1]
        ]


# What a volume depends on besides the weights; rounding does not count, nor does what changes no label.
_FITTED_WITH = ("sam", "spacing", "window", "overlap", "preprocessing", "decision")


def check_made_by(folder: str | os.PathLike, facts: dict) -> None:
    """Make sure that scores in a folder are of a predictor as it predicts by itself.

    Args:
        folder: of ``smml evaluate``.
        facts: of ``Predictor.facts``.

    Raises:
        InputError: they are of other weights, windows or rule for labels, or do not say of which.
    """
    known = Path(folder) / IDENTITY
    if not known.is_file():
        raise InputError(
            f"{folder}: expected the folder of smml evaluate, found no {IDENTITY} in it, which says whose scores they "
            "are; name the folder that it wrote"
        )
    found = read_facts(known)
    if found.get("model") != facts["model"]:
        raise InputError(
            f"{folder}: holds the scores of other weights than the checkpoint's; evaluate this checkpoint, or name the "
            "one that they are of"
        )
    for name in _FITTED_WITH:
        if name == "sam" and found.get(name) is None:
            continue  # scored without its refinement: then they are of the students, and the intervals too
        if found.get(name) != facts[name]:
            raise InputError(
                f"{folder}: holds scores with {name} {found.get(name)!r:.40}, and the checkpoint predicts with "
                f"{facts[name]!r:.40}; what is fitted to them would not hold: evaluate it without options that change "
                "that"
            )


def _shown(value: object) -> object:
    """A value as the file has it: six digits, and nothing for a number that does not exist."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
