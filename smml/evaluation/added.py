"""What a further sequence changes: each subset beside the same subset with one sequence more.

More information should never cost. Where a network loses Dice when a sequence is added, it trusts that sequence more
than it deserves. The largest of these losses is the least of many means, so chance has a part in it: its standard error
and the number of means stand beside it.
"""

import math
from dataclasses import dataclass

import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.bootstrap import standard_error
from smml.evaluation.scores import Scores
from smml.evaluation.sheets import Kind, Sheet, number, signed
from smml.modalities import DISPLAY_NAMES, MODALITIES, SUBSETS, subset_name


@dataclass(frozen=True)
class Loss:
    """The pair of nested subsets and the region that lose most.

    Attributes:
        subset: name of the smaller subset, such as "FLAIR".
        added: name of the sequence that is added, such as "T1ce".
        region: WT, TC or ET.
        change: mean change of Dice, -1 to 1; at least 0 if no pair loses.
        cases: number of cases that it is a mean over.
        error: standard error of the change over cases, 0 to 1; NaN of one case.
        means: of how many means (pairs and regions) it is the least.
    """

    subset: str
    added: str
    region: str
    change: float
    cases: int
    error: float = math.nan
    means: int = 1

    def __str__(self) -> str:
        what = f"adding {self.added} to {self.subset} changes Dice {self.region} by {100 * self.change:+.1f} points"
        error = "" if math.isnan(self.error) else f", standard error {100 * self.error:.1f}"
        least = f"; the least of {self.means} such means" if self.means > 1 else ""
        return f"{what} (mean of {self.cases} case{'s' if self.cases > 1 else ''}{error}{least})"


def added_sequences(scores: Scores, *, output: str | None = None) -> pd.DataFrame:
    """The mean change of Dice by one sequence more, over the cases that have been scored on both subsets.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
        output: "student" or "refined"; by default the refined one where there is one.

    Returns:
        One row for each pair that the scores hold, 28 if they hold all subsets: index "subset" and "added", columns
        "cases", and "WT", "TC", "ET", the change of Dice (-1 to 1), and "WT error" and so on, the standard error of
        that over the cases. Empty if no two subsets differ by one sequence.

    Raises:
        InputError: the scores lack that output.
    """
    frame = scores.output(output).frame
    dice = frame.pivot_table(index="case", columns=["subset", "region"], values="dice")
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for subset in SUBSETS:
        for modality in MODALITIES:
            if modality in subset:
                continue
            less, more = subset_name(subset), subset_name({*subset, modality})
            if less not in dice or more not in dice:
                continue
            change = (dice[more] - dice[less]).dropna(how="all")
            if len(change):
                means, errors = change.mean().reindex(REGIONS), standard_error(change).reindex(REGIONS)
                row = {"cases": len(change)} | {str(region): means[region] for region in REGIONS}
                rows[less, DISPLAY_NAMES[modality]] = row | {f"{region} error": errors[region] for region in REGIONS}
    columns = ["cases", *REGIONS, *(f"{region} error" for region in REGIONS)]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    table.index = pd.MultiIndex.from_tuples(list(rows), names=["subset", "added"])
    return table


def largest_loss(table: pd.DataFrame) -> Loss:
    """Where one sequence more costs most: over all pairs and regions, the least mean change.

    Args:
        table: of :func:`added_sequences`.

    Raises:
        InputError: the table is empty.
    """
    changes = table[list(REGIONS)].stack().dropna()
    if changes.empty:
        raise InputError("no two subsets of these scores differ by one sequence, so none is added; score more subsets")
    subset, added, region = changes.idxmin()
    row = table.loc[(subset, added)]
    return Loss(
        subset, added, region, float(changes.min()), int(row["cases"]), float(row[f"{region} error"]), len(changes)
    )


def added_sheet(table: pd.DataFrame) -> Sheet:
    """The pairs for people, those that lose most first; changes in points of Dice.

    Args:
        table: of :func:`added_sequences`.
    """
    columns: list[tuple[str, Kind]] = [("subset", "word"), ("added", "word"), ("cases", "number")]
    columns += [(f"Dice {region}, points", "number") for region in REGIONS]
    ordered = table.loc[table[list(REGIONS)].min(axis=1).sort_values(kind="stable").index]
    rows = [
        (subset, added, f"{row['cases']:.0f}", *(signed(100 * row[region]) for region in REGIONS))
        for (subset, added), row in ordered.iterrows()
    ]
    return Sheet(tuple(columns), tuple(rows))


def format_added(table: pd.DataFrame) -> str:
    """A Markdown table of the pairs, those that lose most first; changes in points of Dice.

    Args:
        table: of :func:`added_sequences`.
    """
    return added_sheet(table).markdown()


def losses_sheet(losses: dict[str, Loss], who: str) -> Sheet:
    """The largest losses by the name of what was scored, for people.

    Args:
        losses: of :func:`largest_loss`, by name.
        who: head of the names.
    """
    columns: list[tuple[str, Kind]] = [(head, "word") for head in (who, "subset", "added", "region")]
    columns += [("change of Dice, points", "number"), ("standard error", "number"), ("cases", "number")]
    columns += [("least of", "number")]
    rows = [
        (
            *(name, loss.subset, loss.added, loss.region, signed(100 * loss.change)),
            *(number(100 * loss.error), str(loss.cases), str(loss.means)),
        )
        for name, loss in losses.items()
    ]
    return Sheet(tuple(columns), tuple(rows))
