"""The table over the 15 subsets, on screen, as Markdown and as CSV."""

import math
import os
import tempfile
from pathlib import Path

import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.added import added_sequences, format_added, largest_loss
from smml.evaluation.kept import IDENTITY, ROWS
from smml.evaluation.overlap import false_alarms, misses, present, present_dice, tells_presence
from smml.evaluation.scores import Scores
from smml.files import write_text
from smml.modalities import DISPLAY_NAMES, MODALITIES, SUBSETS, subset_name

MEAN = "mean"
# Columns that hold shares, by how their names begin.
_SHARES = ("Dice", "NSD", "missed", "false alarms")
LITERATURE = "The literature's mean, in which a region that is not there counts 1, and 0 if any of it is called"
APART = (
    "What that mean mixes: overlap over the cases that have the region, the share of them in which it is missed, the "
    "share of the others in which it is called, and the median of what is called there, in ml"
)
REPORT_FILES = (ROWS, "table.md")


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
        means, distances = by_region[column].mean(), by_region["hd95"].mean()
        rows[subset] = {
            **{f"Dice {region}": means[region] for region in REGIONS},
            **{f"HD95 {region}": distances[region] for region in REGIONS},
            "HD95 left out": int(chosen["hd95"].isna().sum()),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    last = table.mean()
    last["HD95 left out"] = table["HD95 left out"].sum()
    table.loc[MEAN] = last
    table["HD95 left out"] = table["HD95 left out"].astype(int)
    table.index.name = "subset"
    return table


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
    parts: dict[str, pd.Series] = {}
    for name, column in columns.items():
        by_region = column.unstack("region").reindex(columns=list(REGIONS))
        parts |= {f"{name} {region}": by_region[region] for region in REGIONS}
    table = pd.DataFrame(parts)
    table.index = table.index.astype(str)
    table.loc[MEAN] = table.mean()
    table.index.name = "subset"
    return table


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


def format_table(table: pd.DataFrame) -> str:
    """A Markdown table in the field's style: a dot for each modality given, shares in per cent, HD95 in mm.

    Args:
        table: of :func:`summary_table` or :func:`overlap_table`.
    """
    lines = [
        "| " + " | ".join([*(DISPLAY_NAMES[m] for m in MODALITIES), *table.columns]) + " |",
        "|" + ":-:|" * len(MODALITIES) + "-:|" * len(table.columns),
    ]
    for name, row in table.iterrows():
        if name == MEAN:
            given = ["**mean**", *[""] * (len(MODALITIES) - 1)]
        else:
            given = ["●" if DISPLAY_NAMES[m] in name.split("+") else "○" for m in MODALITIES]
        values = []
        for column, value in row.items():
            if column == "HD95 left out":
                values.append(f"{int(value)}")
            elif isinstance(value, float) and math.isnan(value):
                values.append("–")
            else:
                values.append(f"{100 * value:.1f}" if column.startswith(_SHARES) else f"{value:.1f}")
        lines.append("| " + " | ".join([*given, *values]) + " |")
    return "\n".join(lines)


def check_report(folder: str | os.PathLike) -> None:
    """Make sure that an evaluation and its report can be written; nothing is left behind, not even the folder.

    Args:
        folder: as for :func:`write_report`.

    Raises:
        InputError: the folder cannot be made or written to, or one of the files to write is a folder.
    """
    folder = Path(folder)
    # What is to be made later lies in the nearest folder that is there already; a broken link counts as there.
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        taken = next((folder / name for name in (*REPORT_FILES, IDENTITY) if (folder / name).is_dir()), None)
    except OSError as error:
        raise InputError(
            f"{folder}: scores cannot be written there ({place}: {error.strerror}); expected a folder, or a place "
            "where one can be made; choose another output"
        ) from error
    if taken:
        raise InputError(f"{taken}: expected a file to write or replace, found a folder; choose another output")


def write_report(scores: Scores, folder: str | os.PathLike, title: str) -> tuple[Path, Path]:
    """Write ``scores.csv`` (a row per case, subset and region) and ``table.md``; returns their paths.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
        folder: made if needed.
        title: heading of the Markdown file: model and data set.
    """
    csv, markdown = (Path(folder) / name for name in REPORT_FILES)
    scores.write(csv)
    plain, post = summary_table(scores), summary_table(scores, post_processed=True)
    both, added, apart = refinement_table(scores), added_sequences(scores), overlap_table(scores)
    text = [
        f"# {title}",
        "",
        f"Protocol: {scores.protocol}. Dice in per cent.",
        "",
        f"{LITERATURE}:",
        "",
        format_table(plain),
        "",
        f"With ET below 500 mm³ relabelled NCR, mean Dice ET {100 * post.loc[MEAN, 'Dice ET']:.1f}, "
        f"TC {100 * post.loc[MEAN, 'Dice TC']:.1f}, WT {100 * post.loc[MEAN, 'Dice WT']:.1f}.",
        "",
    ]
    if apart is not None:
        text += ["## Overlap, misses and false alarms", "", f"{APART}:", "", format_table(apart), ""]
    if both is not None:
        text[4:4] = ["## Refined, the final output", ""]
        text += ["## Student and refined, side by side", "", format_table(both), ""]
    if len(added):
        text += ["## One sequence more", "", f"The largest loss: {largest_loss(added)}.", "", format_added(added), ""]
    write_text(markdown, "\n".join(text))
    return csv, markdown
