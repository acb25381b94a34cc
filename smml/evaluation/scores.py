"""Scores and how they were counted; as a file, a row for each case, subset and region:

    case,subset,region,dice[,hd95][,output]
    BraTS20_Training_001,flair+t2,WT,0.91,4.2

``subset`` names modalities in any order and case, joined by "+"; ``region`` is WT, TC or ET; ``dice`` lies in [0, 1];
``hd95`` is in mm and may be empty; ``output`` tells "student" from "refined" where a file holds both, and rows in which
it is blank are one output. A case may lack subsets, as one without T2 does. ``smml evaluate`` writes such a file, and
another tool's table in this form is read alike.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.files import write_text
from smml.modalities import parse_subset, subset_name

_COLUMNS = ("case", "subset", "region", "dice")
# Columns that may be there, and may be empty: what their numbers are.
_NUMBERS = {
    "hd95": "a distance in mm",
    "modalities": "a number of modalities",
    "dice_post": "a Dice in [0, 1]",
    "truth_ml": "a volume in ml",
    "predicted_ml": "a volume in ml",
}


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of cases from subsets of their modalities.

    Attributes:
        frame: a row per case, subset, output and region, with the columns of :func:`smml.evaluation.evaluate`; of
            another tool's file ``case``, ``subset`` ("T1ce+T2"), ``region``, ``dice`` (0 to 1) and ``hd95`` (mm, NaN
            where there is none), and ``output`` where it says.
        protocol: how the numbers came about, to stand beside every table.
    """

    frame: pd.DataFrame
    protocol: str = "not stated"

    @classmethod
    def read(cls, path: str | os.PathLike, protocol: str = "not stated") -> "Scores":
        """Read a file in the form of this module.

        Args:
            path: a CSV file; a folder stands for the ``scores.csv`` in it.
            protocol: how its numbers came about, which the file does not say.

        Raises:
            InputError: no such file, or rows that are not as above; file, row and value are named.
        """
        path = Path(path)
        path = path / "scores.csv" if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"{path}: no such result; give a CSV file or the folder of `smml evaluate --output`")
        try:
            # As text: what pandas takes for missing ("NA", a blank) may be a name, or must be told with its row.
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
            raise InputError(f"{path}: not a CSV file ({error})") from error
        missing = [column for column in _COLUMNS if column not in table]
        if missing or table.empty:
            what = f"lacks the columns {', '.join(missing)}" if missing else "holds no rows"
            raise InputError(
                f"{path}: {what}; expected {','.join(_COLUMNS)}[,hd95][,output], a row per case and region"
            )
        # A row that ends early lacks its last cells, which is as if they were blank.
        table = table.fillna("")
        blank = np.flatnonzero(table["case"].str.strip() == "")
        if blank.size:
            raise InputError(
                f"{path}: row {blank[0] + 2}: names no case; expected its identifier; fill in the column case"
            )
        table["subset"] = [_subset(path, row, text) for row, text in enumerate(table["subset"], start=2)]
        odd = sorted(set(table["region"]) - set(REGIONS))
        if odd:
            raise InputError(f"{path}: unknown region {odd[0]!r}; expected {', '.join(REGIONS)}")
        dice = pd.to_numeric(table["dice"], errors="coerce")
        wrong = np.flatnonzero(~((dice >= 0) & (dice <= 1 + 1e-6)))
        if wrong.size:
            value = table["dice"].iloc[wrong[0]]
            raise InputError(f"{path}: row {wrong[0] + 2}: Dice must lie in [0, 1], found {value!r}; per cent / 100")
        table["dice"] = dice
        for column, meaning in _NUMBERS.items():
            if column in table:
                table[column] = _numbers(path, table[column], meaning)
        table["hd95"] = table.get("hd95", np.nan)
        if "output" in table:
            table["output"] = table["output"].str.strip()
        keys = [column for column in ("output", "case", "subset", "region") if column in table]
        twice = table[table.duplicated(keys)]
        if len(twice):
            raise InputError(f"{path}: {', '.join(map(str, twice[keys].iloc[0]))} stands there twice; one row each")
        return cls(table, protocol)

    def write(self, path: str | os.PathLike) -> None:
        """Write the rows as CSV, six digits of each number; the same scores are the same bytes.

        Args:
            path: a CSV file; its folder is made if needed.

        Raises:
            InputError: it cannot be written there.
        """
        write_text(path, self.frame.to_csv(index=False, float_format="%.6g"))

    def outputs(self) -> dict[str, "Scores"]:
        """The scores of each output by its name: "student", "refined"; "" where it has none."""
        if "output" not in self.frame:
            return {"": self}
        return {str(name): Scores(part, self.protocol) for name, part in self.frame.groupby("output")}

    def output(self, name: str | None = None) -> "Scores":
        """The scores of one output.

        Args:
            name: "student" or "refined"; by default the refined one where there is one. A file that tells no outputs
                apart is the one that is asked for.

        Raises:
            InputError: they hold no such output.
        """
        outputs = self.outputs()
        wanted = "" if list(outputs) == [""] else name or ("refined" if "refined" in outputs else "student")
        if wanted not in outputs:
            raise InputError(f"the scores hold no output {wanted!r}; evaluate a model that was trained with refinement")
        return outputs[wanted]


def _numbers(path: Path, column: pd.Series, meaning: str) -> pd.Series:
    """A column as numbers from 0, NaN where the file says that there is none."""
    values = pd.to_numeric(column, errors="coerce")
    absent = column.str.strip().str.lower().isin(["", "nan", "na", "n/a", "none"])
    wrong = np.flatnonzero(~(absent | ((values >= 0) & np.isfinite(values))))
    if wrong.size:
        raise InputError(
            f"{path}: row {wrong[0] + 2}: {column.name} must be {meaning}, found {column.iloc[wrong[0]]!r}; leave the "
            "cell empty where there is none"
        )
    return values


def _subset(path: Path, row: int, text: str) -> str:
    try:
        return subset_name(parse_subset(str(text).lower()))
    except InputError as error:
        raise InputError(f"{path}: row {row}: {error}") from error
