"""Overlap by the number of sequences that are given: what a patient with one, two, three or all four can expect."""

import pandas as pd

from smml.data.labels import REGIONS
from smml.evaluation.overlap import present_dice, tells_presence
from smml.evaluation.scores import Scores
from smml.evaluation.sheets import Kind, Sheet, number

NUMBER_WORDS = (
    "The Dice over the cases that have the region, averaged over the subsets of as many sequences, and over how many "
    "values, which are pairs of case and subset"
)


def by_number_of_sequences(scores: Scores, *, output: str | None = None) -> pd.DataFrame | None:
    """Mean Dice by the number of sequences given, over the cases that have the region.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
        output: "student" or "refined"; by default the refined one where there is one.

    Returns:
        A row for each number of sequences that the scores hold: index "sequences" (1 to 4), "subsets", how many of that
        size there are; and for each region "Dice WT" (0 to 1), the mean over these subsets of the mean over the cases
        that have the region, NaN where none has, and "values WT", of how many pairs of case and subset. None where the
        scores do not say which regions are there.

    Raises:
        InputError: the scores lack that output.
    """
    own = scores.output(output)
    if not tells_presence(own):
        return None
    dice = present_dice(own).reset_index()
    dice["sequences"] = [len(name.split("+")) for name in dice["subset"]]
    table = dice.groupby("sequences")["subset"].nunique().to_frame("subsets")
    for region in REGIONS:
        groups = dice[dice["region"] == region].groupby("sequences")
        table[f"Dice {region}"] = groups["dice"].mean()
        table[f"values {region}"] = groups["present"].sum().reindex(table.index, fill_value=0)
    return table


def number_sheet(tables: dict[str, pd.DataFrame], who: str = "") -> Sheet:
    """Tables of :func:`by_number_of_sequences` by name, as one for people.

    Args:
        tables: by the name of what was scored.
        who: head of the names; "" leaves them out.
    """
    columns: list[tuple[str, Kind]] = [(who, "word")] if who else []
    columns += [("sequences", "number"), ("subsets", "number")]
    for region in REGIONS:
        columns += [(f"Dice {region}, %", "share"), (f"values {region}", "number")]
    rows = []
    for name, table in tables.items():
        for sequences, row in table.iterrows():
            cells = [name] if who else []
            cells += [str(sequences), f"{row['subsets']:.0f}"]
            for region in REGIONS:
                cells += [number(100 * row[f"Dice {region}"]), f"{row[f'values {region}']:.0f}"]
            rows.append(tuple(cells))
    return Sheet(tuple(columns), tuple(rows))
