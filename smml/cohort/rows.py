"""The table of a cohort while it grows, so that whatever ends the work leaves whole rows.

    FOLDER/cohort.json   with what the answers were made: the model and the options
    FOLDER/cases.csv     a row for each case, sorted by id

The table is written anew, at once, behind each case: it is small beside what a case costs. The row comes after the
files of its case, so that a case with a row is complete.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from smml.data.labels import REGIONS, Region
from smml.errors import InputError
from smml.files import write_text
from smml.inference import Segmentation
from smml.modalities import Subset, parse_subset, subset_name
from smml.models.intervals import LEVELS, Volume
from smml.runs import check_same

IDENTITY = "cohort.json"
ROWS = "cases.csv"


def _ends(region: Region, level: float) -> tuple[str, str]:
    """Heads of both ends of an interval."""
    return f"{region} from {100 * level:g} %", f"{region} to {100 * level:g} %"


# What is measured of each segmentation, in ml: heads in the table. Ends of the intervals stay empty where the model has
# none; those at 95 % are for the change between two visits.
MEASURED: tuple[str, ...] = tuple(
    head for region in REGIONS for head in (f"{region} ml", *(end for level in LEVELS for end in _ends(region, level)))
)
COLUMNS = ("case", "layout", "sequences", *MEASURED, "seconds", "warnings", "output", "reason", "digest")
_BETWEEN = " | "


@dataclass(frozen=True)
class CohortRow:
    """What became of one case.

    Attributes:
        case: its id.
        layout: its layout, a key in ``LAYOUTS``.
        sequences: that it was segmented from; empty where it was not.
        measured: by head of the table: volumes of WT, TC and ET (``WT ml``), and the ends of their intervals where the
            model has some (``WT from 90 %``), all in ml.
        seconds: that reading, segmenting and writing took; NaN where it was not segmented.
        warnings: what the package warned of.
        output: path of its labels from the folder of the table; "" where it was not segmented.
        reason: one sentence why it was not segmented; "" where it was.
        digest: of the images, which tells cases of one name apart.
    """

    case: str
    layout: str
    sequences: Subset = ()
    measured: dict[str, float] | None = None
    seconds: float = math.nan
    warnings: tuple[str, ...] = ()
    output: str = ""
    reason: str = ""
    digest: str = ""

    def cells(self) -> list[str]:
        """The row of the file."""
        measured = self.measured or {}
        return [
            self.case,
            self.layout,
            subset_name(self.sequences) if self.sequences else "",
            *(_number(measured.get(head, math.nan), 3) for head in MEASURED),
            _number(self.seconds, 1),
            _BETWEEN.join(self.warnings),
            self.output,
            self.reason,
            self.digest,
        ]

    @classmethod
    def of_cells(cls, cells: dict[str, str]) -> "CohortRow":
        """The inverse of :meth:`cells`.

        Args:
            cells: by column.

        Raises:
            ValueError: a cell is none of ours.
        """
        return cls(
            cells["case"],
            cells["layout"],
            parse_subset(cells["sequences"]) if cells["sequences"] else (),
            {head: float(cells[head]) for head in MEASURED if cells[head]},
            float(cells["seconds"] or "nan"),
            tuple(cells["warnings"].split(_BETWEEN)) if cells["warnings"] else (),
            cells["output"],
            cells["reason"],
            cells["digest"],
        )


def measure(segmentation: Segmentation) -> dict[str, float]:
    """What the table says of a segmentation, by its heads: volumes and ends of their intervals in ml."""
    found = {}
    for region in REGIONS:
        volumes = [segmentation.volume(region, level=level) for level in LEVELS]
        found[f"{region} ml"] = volumes[0].ml
        for volume in volumes:
            ends = zip(_ends(region, volume.level), (volume.low, volume.high), strict=True)
            found |= {head: ml for head, ml in ends if not math.isnan(ml)}
    return found


def volume_of(row: CohortRow, region: Region, level: float = LEVELS[0]) -> Volume | None:
    """The volume of a region in a row, with its interval; None where the row has none.

    Args:
        row: of a case.
        region: "WT", "TC" or "ET".
        level: one of ``LEVELS``.
    """
    measured = row.measured or {}
    if f"{region} ml" not in measured:
        return None
    low, high = (measured.get(head, math.nan) for head in _ends(region, level))
    return Volume(measured[f"{region} ml"], low, high, level)


class CohortTable:
    """The rows of a cohort, in memory and on disk.

    Args:
        folder: of both files.
        identity: what the answers depend on besides their case, as plain values; the work goes on where it is the same.
        answers: files that are about to be written: none may be there where nothing says what made it.

    Attributes:
        rows: by case.

    Raises:
        InputError: the folder holds the answers of something else, or a table that is not ours.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict, answers: Iterable[Path] = ()) -> None:
        self._path, self._known, self._identity = Path(folder) / ROWS, Path(folder) / IDENTITY, identity
        self.rows: dict[str, CohortRow] = {}
        if self._known.exists():
            check_same(self._known, identity, "the answers of another prediction")
            self.rows = self._read() if self._path.exists() else {}
        elif there := next((path for path in (self._path, *answers) if path.exists()), None):
            raise InputError(
                f"{there}: is there already, and no {IDENTITY} in {Path(folder)} says what made it; choose another "
                "output, or move it away"
            )

    def begin(self) -> None:
        """Say what the answers will be made with."""
        write_text(self._known, json.dumps(self._identity, indent=1) + "\n")

    def add(self, row: CohortRow) -> None:
        """Keep the row of a case, in the place of what was said of it before."""
        self.rows[row.case] = row
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(self.rows[case].cells() for case in sorted(self.rows))
        write_text(self._path, text.getvalue())

    def _read(self) -> dict[str, CohortRow]:
        try:
            with open(self._path, newline="", encoding="utf-8") as stream:
                lines = csv.DictReader(stream, strict=True)
                if tuple(lines.fieldnames or ()) != COLUMNS:
                    raise ValueError("other columns")
                rows = list(lines)
            if any(None in cells or None in cells.values() for cells in rows):
                raise ValueError("a row of another length")
            return {cells["case"]: CohortRow.of_cells(cells) for cells in rows}
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(
                f"{self._path}: is not what this command wrote there ({error}), so it cannot go on with it; choose "
                "another output, or move it away"
            ) from error


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
