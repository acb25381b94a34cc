"""The tables over the 15 subsets, as numbers and as Markdown."""

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.overlap import false_alarms, misses, present, present_dice, tells_presence
from smml.evaluation.scores import Scores
from smml.evaluation.sheets import GIVEN, NOT_GIVEN, Kind, Sheet, number
from smml.modalities import DISPLAY_NAMES, MODALITIES, SUBSETS, subset_name

MEAN = "mean"
_LEFT_OUT = "HD95 left out"
# By how the names of columns begin: the unit that people see, and of which kind they are.
_UNITS: dict[str, tuple[str, Kind]] = {
    "Dice": ("%", "share"),
    "NSD": ("%", "share"),
    "missed": ("%", "harm"),
    "false alarms": ("%", "harm"),
    "false ml": ("ml", "number"),
    "false lesions": ("a case", "number"),
    _LEFT_OUT: ("", "number"),
    "HD95": ("mm", "number"),
}


def summary_table(scores: Scores, *, post_processed: bool = False, output: str | None = None) -> pd.DataFrame:
    """Mean scores per subset, in the order in which the field prints them, and their mean.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
        post_processed: use the Dice after relabelling a small ET.
        output: "student" or "refined"; by default the refined one where there is one.

    Returns:
        One row per subset, named like "T1ce+T2", then "mean", which averages the rows above it. Columns "Dice WT",
        "Dice TC", "Dice ET" (0 to 1), "HD95 WT", ... in mm, and "HD95 left out": how many cases and regions have no
        HD95, because exactly one of prediction and truth is empty.

    Raises:
        InputError: the scores lack columns or that output.
    """
    column = "dice_post" if post_processed else "dice"
    missing = {"case", "subset", "region", column, "hd95"} - set(scores.frame.columns)
    if missing:
        raise InputError(f"the scores lack the columns {', '.join(sorted(missing))}; expected those of `evaluate`")
    frame, rows = scores.output(output).frame, {}
    for subset in map(subset_name, SUBSETS):
        chosen = frame[frame["subset"] == subset]
        if chosen.empty:
            continue
        by_region = chosen.groupby("region")
        means, distances = (by_region[name].mean().reindex(REGIONS) for name in (column, "hd95"))
        rows[subset] = {
            **{f"Dice {region}": means[region] for region in REGIONS},
            **{f"HD95 {region}": distances[region] for region in REGIONS},
            _LEFT_OUT: int(chosen["hd95"].isna().sum()),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return _with_mean(table)


def overlap_table(scores: Scores, *, output: str | None = None) -> pd.DataFrame | None:
    """What the literature's mean mixes, apart: overlap where the region is there, misses and false alarms.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
        output: as for :func:`summary_table`.

    Returns:
        One row per subset, then "mean", which averages the rows above it; NaN where there is nothing to average. For
        each region "Dice WT" (0 to 1) and, where the scores have it, "NSD WT", over the cases that have the region;
        "missed WT", in which share of these no voxel of it was found; "false alarms WT", in which share of the cases
        without the region some of it was called; "false ml WT", the median volume of these false alarms in ml. None
        where the scores do not say which regions are there.

    Raises:
        InputError: the scores lack that output.
    """
    own = scores.output(output)
    if not tells_presence(own):
        return None
    dice, missed, false = present_dice(own), misses(own), false_alarms(own)
    columns = {"Dice": dice["dice"]}
    if "nsd" in own.frame:
        there = own.frame[present(own)]
        columns["NSD"] = there.groupby(["subset", "region"])["nsd"].mean().reindex(dice.index)
    columns |= {"missed": missed["share"], "false alarms": false["share"], "false ml": false["median_ml"]}
    return _with_mean(_side_by_side(columns))


def lesion_table(scores: Scores, *, output: str | None = None) -> pd.DataFrame | None:
    """Lesion-wise scores, by the rules of the year that the scores name in ``lesion_rules``.

    Args:
        scores: of :func:`smml.evaluation.evaluate` with ``lesion_wise``, or read from a file.
        output: as for :func:`summary_table`.

    Returns:
        One row per subset, then "mean", which averages the rows above it; NaN where there is nothing to average. For
        each region "Dice WT", "HD95 WT" (mm) and "NSD WT", means over cases of what the rules make of a case; "missed
        WT", which share of all true lesions that count was not found; "false lesions WT", how many a case has; and
        "HD95 left out", of how many cases and regions it is infinite. None where the scores hold no lesions.

    Raises:
        InputError: the scores lack that output, or hold lesions by the rules of several years.
    """
    frame = scores.output(output).frame
    if "lesion_rules" not in frame:
        return None
    lesion_rules(scores)
    infinite = np.isinf(frame["lesion_hd95"])
    order = [name for name in map(subset_name, SUBSETS) if name in set(frame["subset"])]
    groups = frame.assign(lesion_hd95=frame["lesion_hd95"].mask(infinite), infinite=infinite).groupby(
        ["subset", "region"]
    )
    columns = {
        "Dice": groups["lesion_dice"].mean(),
        "HD95": groups["lesion_hd95"].mean(),
        "NSD": groups["lesion_nsd"].mean(),
        "missed": 1 - groups["lesions_found"].sum() / groups["lesions"].sum().replace(0, np.nan),
        "false lesions": groups["false_lesions"].mean(),
    }
    table = _side_by_side(columns).reindex(order)
    table[_LEFT_OUT] = groups["infinite"].sum().groupby("subset").sum()
    return _with_mean(table)


def lesion_rules(scores: Scores) -> str:
    """The year by whose rules the lesions of these scores were scored; InputError where that is not one year."""
    years = sorted(set(scores.frame["lesion_rules"].astype(str)))
    if len(years) != 1:
        raise InputError(
            f"the scores hold lesions by the rules of {' and '.join(map(repr, years))}, which cannot be averaged; "
            "score all cases by those of one year"
        )
    return years[0]


def refinement_table(scores: Scores) -> pd.DataFrame | None:
    """Student and refined side by side: one row per subset, then "mean"; None where nothing was refined.

    Columns "Dice WT student", "Dice WT refined", "Dice TC student", ... (0 to 1).

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
    """
    if "refined" not in scores.outputs():
        return None
    tables = {output: summary_table(scores, output=output) for output in ("student", "refined")}
    columns = {
        f"Dice {region} {output}": table[f"Dice {region}"] for region in REGIONS for output, table in tables.items()
    }
    return pd.DataFrame(columns)


def case_table(scores: Scores, *, output: str | None = None) -> pd.DataFrame:
    """Each case by itself: its mean Dice over the subsets that it was scored on, the lowest first.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
        output: as for :func:`summary_table`.

    Returns:
        One row per case: "subsets", how many, and "Dice WT", "Dice TC", "Dice ET" (0 to 1, both empty 1), in the order
        of their mean.

    Raises:
        InputError: the scores lack that output.
    """
    frame = scores.output(output).frame
    dice = frame.pivot_table(index="case", columns="region", values="dice").reindex(columns=list(REGIONS))
    table = dice.add_prefix("Dice ").rename_axis(columns=None)
    table.insert(0, "subsets", frame.groupby("case")["subset"].nunique())
    return table.loc[dice.mean(axis=1).sort_values(kind="stable").index]


def subset_sheet(table: pd.DataFrame) -> Sheet:
    """A table over the subsets for people, in the field's style: a dot for each modality given, shares in per cent.

    Args:
        table: of :func:`summary_table`, :func:`overlap_table`, :func:`lesion_table` or :func:`refinement_table`.
    """
    columns: list[tuple[str, Kind]] = [(DISPLAY_NAMES[m], "mark") for m in MODALITIES]
    columns += [_head(column) for column in table.columns]
    rows = []
    for name, row in table.iterrows():
        if name == MEAN:
            given = [MEAN, *[""] * (len(MODALITIES) - 1)]
        else:
            given = [GIVEN if DISPLAY_NAMES[m] in str(name).split("+") else NOT_GIVEN for m in MODALITIES]
        rows.append((*given, *(_shown(column, value) for column, value in row.items())))
    return Sheet(tuple(columns), tuple(rows), closed=MEAN in table.index)


def case_sheet(table: pd.DataFrame) -> Sheet:
    """The cases for people.

    Args:
        table: of :func:`case_table`.
    """
    columns: list[tuple[str, Kind]] = [("case", "word"), ("subsets", "number")]
    columns += [_head(column) for column in table.columns[1:]]
    rows = [
        (str(case), f"{row.iloc[0]:.0f}", *(_shown(column, value) for column, value in row.iloc[1:].items()))
        for case, row in table.iterrows()
    ]
    return Sheet(tuple(columns), tuple(rows))


def format_table(table: pd.DataFrame) -> str:
    """A Markdown table in the field's style: a dot for each modality given, shares in per cent, HD95 in mm.

    Args:
        table: of :func:`summary_table`, :func:`overlap_table`, :func:`lesion_table` or :func:`refinement_table`.
    """
    return subset_sheet(table).markdown()


def _side_by_side(columns: dict[str, pd.Series]) -> pd.DataFrame:
    """Numbers by (subset, region) as a row for each subset and a column for each of them and region."""
    parts: dict[str, pd.Series] = {}
    for name, column in columns.items():
        by_region = column.unstack("region").reindex(columns=list(REGIONS))
        parts |= {f"{name} {region}": by_region[region] for region in REGIONS}
    table = pd.DataFrame(parts)
    table.index = table.index.astype(str)
    return table


def _with_mean(table: pd.DataFrame) -> pd.DataFrame:
    """With the mean of the rows as the last one; what is left out is added up."""
    last = table.mean()
    if _LEFT_OUT in table:
        last[_LEFT_OUT] = table[_LEFT_OUT].sum()
    table.loc[MEAN] = last
    if _LEFT_OUT in table:
        table[_LEFT_OUT] = table[_LEFT_OUT].astype(int)
    table.index.name = "subset"
    return table


def _head(column: str) -> tuple[str, Kind]:
    unit, kind = next((value for start, value in _UNITS.items() if column.startswith(start)), ("", "number"))
    shown = column.replace(" ml ", " ")
    return (f"{shown}, {unit}" if unit else shown), kind


def _shown(column: str, value: float) -> str:
    if column == _LEFT_OUT:
        return f"{int(value)}"
    return number(100 * value if _head(column)[1] in ("share", "harm") else value)
