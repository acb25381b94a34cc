"""Scores and how they were counted; as a file, a row for each case, subset and region:

    case,subset,region,dice[,hd95][,output][,present]
    BraTS20_Training_001,flair+t2,WT,0.91,4.2

``subset`` names modalities in any order and case, joined by "+"; ``region`` is WT, TC or ET; ``dice`` lies in [0, 1];
``hd95`` is in mm and may be empty; ``output`` tells "student" from "refined" where a file holds both, and rows in which
it is blank are one output; ``present``, true or false, says whether the case has the region. A case may lack subsets,
as one without T2 does. ``smml evaluate`` writes such a file, on wish with lesions too, and another tool's table in this
form is read alike.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.cells import (
    check_columns,
    check_named,
    check_once,
    dice_numbers,
    numbers,
    read_cells,
    subset_cells,
    truths,
)
from smml.files import write_text

_COLUMNS = ("case", "subset", "region", "dice")
# Columns that may be there, and may be empty: what their numbers are.
_NUMBERS = {
    "hd95": "a distance in mm",
    "nsd": "a share in [0, 1]",
    "modalities": "a number of modalities",
    "dice_post": "a Dice in [0, 1]",
    "truth_ml": "a volume in ml",
    "predicted_ml": "a volume in ml",
    "lesions": "a number of lesions",
    "lesions_found": "a number of lesions",
    "false_lesions": "a number of lesions",
    "lesion_dice": "a Dice in [0, 1]",
    "lesion_hd95": "a distance in mm",
    "lesion_nsd": "a share in [0, 1]",
}
# Where nothing matches, the rules of 2026 make it infinite.
_INFINITE = frozenset(("lesion_hd95",))


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
        table = read_cells(path)
        check_columns(path, table, list(_COLUMNS), f"{','.join(_COLUMNS)}[,hd95][,output], a row per case and region")
        check_named(path, table["case"])
        table["subset"] = subset_cells(path, table["subset"])
        odd = sorted(set(table["region"]) - set(REGIONS))
        if odd:
            raise InputError(f"{path}: unknown region {odd[0]!r}; expected {', '.join(REGIONS)}")
        table["dice"] = dice_numbers(path, table["dice"])
        for column, meaning in _NUMBERS.items():
            if column in table:
                table[column] = numbers(path, table[column], meaning, infinite=column in _INFINITE)
        if "present" in table:
            table["present"] = truths(path, table["present"])
        table["hd95"] = table.get("hd95", np.nan)
        if "output" in table:
            table["output"] = table["output"].str.strip()
        check_once(path, table, [column for column in ("output", "case", "subset", "region") if column in table])
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
