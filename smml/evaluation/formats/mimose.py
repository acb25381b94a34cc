"""MiMoSe's scores of each subject, as ``mimose test`` writes them beside its report (``*_per_subject.csv``).

From its source (github.com/AImageLab-zip/IM-Fuse, ``src/mimose/testing/pipeline.py``): a row for each ``subject`` and
subset, ``modalities`` joined by "_" in the names of BraTS 2023 (``t1c_t2f``), and for each region ``WT_dice`` ... from
0 to 1 and ``WT_hd95`` ... in voxels, which are 1 mm in BraTS. 1e-8 is added to both sums of a Dice, so that both empty
is 1 and no overlap a hair above 0. An HD95 where one region is empty is the diagonal of a volume: of 182 x 218 x 182
voxels (337.3) or, in its first version, of the cropped one. ``ETpp_...`` (ET after post-processing) and single labels
are not read.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.cells import check_columns, check_named, check_once, dice_numbers, numbers, read_cells
from smml.evaluation.formats.cases import case_of
from smml.evaluation.scores import Scores
from smml.modalities import subset_name

NAME = "MiMoSe"
HEADS = "subject,modalities,WT_dice,TC_dice,ET_dice[,WT_hd95,TC_hd95,ET_hd95]"
_MODALITIES = {"t1c": "t1ce", "t1n": "t1", "t2f": "flair", "t2w": "t2"}
# Below the Dice of one voxel in common between regions that fill any image.
_NO_OVERLAP = 1e-7


def knows(heads: list[str]) -> bool:
    """Whether a CSV file with these columns is MiMoSe's."""
    return {"subject", "modalities"} <= set(heads) and any(head.endswith("_dice") for head in heads)


def read(path: Path) -> Scores:
    """Read such a file.

    Args:
        path: the CSV file.

    Returns:
        ``case``, ``subset``, ``region``, ``dice`` and ``hd95`` (mm; NaN where the file has no such column).

    Raises:
        InputError: a cell that is not as above; file, row and value are named.
    """
    table = read_cells(path)
    check_columns(path, table, ["subject", "modalities", *(f"{region}_dice" for region in REGIONS)], HEADS)
    check_named(path, table["subject"])
    shared = pd.DataFrame(
        {"case": [case_of(name) for name in table["subject"]], "subset": _subsets(path, table["modalities"])}
    )
    check_once(path, shared, ["case", "subset"])
    parts = []
    for region in REGIONS:
        dice = dice_numbers(path, table[f"{region}_dice"])
        column = f"{region}_hd95"
        distance = numbers(path, table[column], "a distance in mm") if column in table else np.nan
        parts.append(shared.assign(region=region, dice=dice.where(dice > _NO_OVERLAP, 0.0), hd95=distance))
    return Scores(
        pd.concat(parts, ignore_index=True),
        "MiMoSe's scores of each subject: Dice with both empty 1, a false alarm 0; HD95 in voxels, taken for 1 mm, one "
        "empty the diagonal of a volume",
    )


def _subsets(path: Path, column: pd.Series) -> list[str]:
    read = []
    for row, text in enumerate(column, start=2):
        names = [name.strip().lower() for name in text.split("_")]
        unknown = next((name for name in names if name not in _MODALITIES), None)
        if unknown is not None:
            raise InputError(
                f"{path}: row {row}: unknown modality {unknown!r} in {text!r}; expected {', '.join(_MODALITIES)} "
                "joined by '_', as MiMoSe writes them"
            )
        read.append(subset_name(_MODALITIES[name] for name in names))
    return read
