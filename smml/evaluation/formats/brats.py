"""The challenge's scores, as ``brats-parse-metrics seg`` of brats-evaluation 0.0.10 writes them.

A row for each ``subject_id``, the name of its file of labels, and after them rows called mean, std and median. For each
region, in lower case: ``global_dsc_wt`` from 0 to 1, ``global_hd95_wt`` in mm, both blank where both are empty, and
373 where nothing overlaps or the prediction's file is missing; ``all_instance_tp_wt`` and ``all_instance_fn_wt``, the
lesions of the truth that are found and missed. Which sequences the network was given is not in the file.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.cells import check_columns, check_named, check_once, dice_numbers, numbers, read_cells
from smml.evaluation.formats.cases import case_of
from smml.evaluation.scores import Scores

NAME = "brats-evaluation"
HEADS = "subject_id,global_dsc_wt,global_hd95_wt, ... of wt, tc and et"
_SUMMARIES = ("mean", "std", "median")


def knows(heads: list[str]) -> bool:
    """Whether a CSV file with these columns is brats-evaluation's."""
    return "subject_id" in heads and any(head.startswith("global_dsc_") for head in heads)


def read(path: Path, subset: str) -> Scores:
    """Read such a file.

    Args:
        path: the CSV file.
        subset: what the network was given ("FLAIR+T2"), as :func:`smml.modalities.subset_name` spells it.

    Returns:
        ``case``, ``subset``, ``region``, ``dice``, ``hd95`` (mm) and, where the file counts lesions, ``present``.

    Raises:
        InputError: a cell that is not as above; file, row and value are named.
    """
    table = read_cells(path)
    wanted = [f"global_{score}_{region.lower()}" for region in REGIONS for score in ("dsc", "hd95")]
    check_columns(path, table, ["subject_id", *wanted], HEADS)
    check_named(path, table["subject_id"])
    table = table[~table["subject_id"].str.strip().str.lower().isin(_SUMMARIES)]
    if table.empty:
        raise InputError(f"{path}: holds no case but {', '.join(_SUMMARIES)}; expected {HEADS}, a row for each case")
    shared = pd.DataFrame({"case": [case_of(name) for name in table["subject_id"]], "subset": subset}, table.index)
    check_once(path, shared, ["case"])
    parts = [shared.assign(region=region, **_region(path, table, region.lower())) for region in REGIONS]
    frame = pd.concat(parts, ignore_index=True)
    return Scores(
        frame,
        f"brats-evaluation's global scores, given {subset}; both empty, which it leaves blank, counts 1; HD95 of 373 "
        "where nothing overlaps",
    )


def _region(path: Path, table: pd.DataFrame, region: str) -> dict[str, pd.Series]:
    dice = dice_numbers(path, table[f"global_dsc_{region}"], blank=True)
    distance = numbers(path, table[f"global_hd95_{region}"], "a distance in mm")
    wrong = np.flatnonzero(dice.isna() != distance.isna())
    if wrong.size:
        raise InputError(
            f"{path}: row {table.index[wrong[0]] + 2}: one of global_dsc_{region} and global_hd95_{region} is blank; "
            "expected both, where both regions are empty, or none"
        )
    both_empty = dice.isna()
    columns = {"dice": dice.fillna(1.0), "hd95": distance.fillna(0.0)}
    lesions = [f"all_instance_{kind}_{region}" for kind in ("tp", "fp", "fn")]
    if all(name in table for name in lesions):
        found, wrong_ones, missed = (numbers(path, table[name], "a number of lesions") for name in lesions)
        # A case whose prediction is missing has no counts at all, only zeros; its truth is not told.
        told = both_empty | (found + wrong_ones + missed > 0)
        columns["present"] = (~both_empty & (found + missed > 0)).astype(float).where(told)
    return columns
