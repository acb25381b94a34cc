"""Overlap and false alarms apart: what a mean Dice, in which one false voxel costs a whole case, does not tell.

In the literature's mean a region that is not there counts 1 where nothing is called and 0 where anything is. Three
numbers say what it mixes: the Dice where the region is there, how often and how much is called where it is not, and how
often a region that is there is missed.

Whether a region is there says the column ``truth_ml``, or ``present`` (true or false), which files of other tools give
without a volume. Each function takes scores of one output (:meth:`Scores.output`) and counts by subset and region, in
table order; ``by=("region",)`` counts all subsets together.
"""

from collections.abc import Sequence

import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.scores import Scores
from smml.modalities import SUBSETS, subset_name

BY = ("subset", "region")
_ORDER = {"subset": [subset_name(subset) for subset in SUBSETS], "region": list(REGIONS)}


def tells_presence(scores: Scores) -> bool:
    """Whether the scores say of every row if its region is there.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
    """
    return any(column in scores.frame and scores.frame[column].notna().all() for column in ("truth_ml", "present"))


def present(scores: Scores) -> pd.Series:
    """Whether the region of each row is there: bool [rows], by the truth alone.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.

    Raises:
        InputError: they do not say so of every row.
    """
    frame = scores.frame
    if not tells_presence(scores):
        raise InputError(
            "the scores do not say where a region is there; expected the column truth_ml, the region's volume in ml, "
            "in every row"
        )
    if "truth_ml" in frame and frame["truth_ml"].notna().all():
        return frame["truth_ml"] > 0
    return frame["present"].astype(float) > 0


def present_dice(scores: Scores, *, by: Sequence[str] = BY) -> pd.DataFrame:
    """Mean Dice over the cases that have the region.

    Args:
        scores: of one output, with ``truth_ml`` or ``present``.
        by: columns to count by.

    Returns:
        A row for each group that the scores hold: ``present``, how many rows have the region, and ``dice``, their mean
        (0 to 1), NaN where none has.

    Raises:
        InputError: the scores do not say where a region is there.
    """
    there = present(scores)
    frame = scores.frame.assign(_there=there, _dice=scores.frame["dice"].where(there))
    groups = _groups(frame, by)
    return pd.DataFrame({"present": groups["_there"].sum().astype(int), "dice": groups["_dice"].mean()})


def false_alarms(scores: Scores, *, by: Sequence[str] = BY) -> pd.DataFrame:
    """How often a region is called where there is none, and how much of it.

    Args:
        scores: of one output, with ``truth_ml`` or ``present``; for volumes with ``predicted_ml``.
        by: columns to count by.

    Returns:
        A row for each group: ``absent``, how many rows have no such region; ``called``, in how many of them at least a
        voxel is called; ``share`` of the two (0 to 1), NaN where every row has the region; ``median_ml``, the median
        volume of these false alarms in ml, NaN where there is none or no volumes are known.

    Raises:
        InputError: the scores do not say where a region is there.
    """
    absent = ~present(scores)
    # Where nothing is there, Dice is 1 if nothing is called and 0 otherwise.
    called = absent & (scores.frame["dice"] < 0.5)
    volume = scores.frame["predicted_ml"] if "predicted_ml" in scores.frame else pd.Series(float("nan"), called.index)
    groups = _groups(scores.frame.assign(_absent=absent, _called=called, _volume=volume.where(called)), by)
    table = pd.DataFrame({"absent": groups["_absent"].sum().astype(int), "called": groups["_called"].sum().astype(int)})
    table["share"] = table["called"] / table["absent"].where(table["absent"] > 0)
    table["median_ml"] = groups["_volume"].median()
    return table


def misses(scores: Scores, *, by: Sequence[str] = BY) -> pd.DataFrame:
    """How often a region that is there is missed: no voxel of it is found, whether or not anything else is called.

    Args:
        scores: of one output, with ``truth_ml`` or ``present``.
        by: columns to count by.

    Returns:
        A row for each group: ``present``, how many rows have the region; ``missed``, in how many of them Dice is 0;
        ``share`` of the two (0 to 1), NaN where no row has the region.

    Raises:
        InputError: the scores do not say where a region is there.
    """
    there = present(scores)
    groups = _groups(scores.frame.assign(_there=there, _missed=there & (scores.frame["dice"] == 0)), by)
    table = pd.DataFrame({"present": groups["_there"].sum().astype(int), "missed": groups["_missed"].sum().astype(int)})
    table["share"] = table["missed"] / table["present"].where(table["present"] > 0)
    return table


def _groups(frame: pd.DataFrame, by: Sequence[str]):
    """Rows by the columns ``by``, subsets and regions in table order, only groups that are there."""
    ordered = {column: pd.Categorical(frame[column], _ORDER[column]) for column in by if column in _ORDER}
    return frame.assign(**ordered).groupby(list(by), observed=True, sort=True)
