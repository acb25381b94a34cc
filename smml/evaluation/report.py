"""The report of an evaluation: its tables on screen, as Markdown and as a page, and the folder that takes them."""

import os
from pathlib import Path

from smml.data.labels import REGIONS
from smml.evaluation.added import added_sequences, added_sheet, largest_loss
from smml.evaluation.by_number import NUMBER_WORDS, by_number_of_sequences, number_sheet
from smml.evaluation.kept import IDENTITY, ROWS
from smml.evaluation.lesions import RULE_WORDS
from smml.evaluation.page import page
from smml.evaluation.scores import Scores
from smml.evaluation.sheets import Section
from smml.evaluation.tables import (
    MEAN,
    case_sheet,
    case_table,
    lesion_rules,
    lesion_table,
    overlap_table,
    refinement_table,
    subset_sheet,
    summary_table,
)
from smml.files import check_target, write_text

LITERATURE = "The literature's mean, in which a region that is not there counts 1, and 0 if any of it is called"
APART = (
    "What that mean mixes: overlap over the cases that have the region, the share of them in which it is missed, the "
    "share of the others in which it is called, and the median of what is called there, in ml"
)
_CASES = "The literature's Dice of each case, averaged over the subsets that it was scored on, the lowest mean first"
REPORT_FILES = (ROWS, "table.md", "table.html")


def sections(scores: Scores) -> list[Section]:
    """The tables of a report, in their order.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
    """
    both, apart, lesions = refinement_table(scores), overlap_table(scores), lesion_table(scores)
    numbers, added = by_number_of_sequences(scores), added_sequences(scores)
    title = "Refined, the final output" if both is not None else ""
    found = [Section(title, subset_sheet(summary_table(scores)), LITERATURE, _post_processed(scores))]
    if apart is not None:
        found.append(Section("Overlap, misses and false alarms", subset_sheet(apart), APART))
    if both is not None:
        found.append(Section("Student and refined, side by side", subset_sheet(both)))
    if lesions is not None:
        found.append(Section("Lesion by lesion", subset_sheet(lesions), _of_lesions(scores)))
    if numbers is not None:
        found.append(Section("By number of sequences", number_sheet({"": numbers}), NUMBER_WORDS))
    if len(added):
        words = f"The largest loss: {largest_loss(added)}"
        found.append(Section("One sequence more", added_sheet(added), words, long=True))
    return found


def on_screen(scores: Scores) -> str:
    """The report as a terminal shows it: without the long tables, of which only the words are there.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
    """
    parts = []
    for section in sections(scores):
        words = section.words or section.title
        parts.append(words if section.long else f"{words}\n{section.sheet.markdown()}")
    return "\n\n".join(parts)


def check_report(folder: str | os.PathLike) -> None:
    """Make sure that an evaluation and its report can be written; nothing is left behind, not even the folder.

    Args:
        folder: as for :func:`write_report`.

    Raises:
        InputError: the folder cannot be made or written to, or one of the files to write is a folder.
    """
    for name in (*REPORT_FILES, IDENTITY):
        check_target(Path(folder) / name)


def write_report(scores: Scores, folder: str | os.PathLike, title: str) -> tuple[Path, Path, Path]:
    """Write ``scores.csv`` (a row per case, subset and region), ``table.md`` and ``table.html``; returns their paths.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, or read from a file.
        folder: made if needed.
        title: heading of both tables: model and data set.

    Raises:
        InputError: they cannot be written there, or the scores lack columns.
    """
    csv, markdown, html = (Path(folder) / name for name in REPORT_FILES)
    scores.write(csv)
    # The file rounds: tables made of what was in memory could not be made again from it.
    scores = Scores.read(csv, scores.protocol)
    found, protocol = sections(scores), f"Protocol: {scores.protocol}. Dice in per cent."
    text = [f"# {title}", "", protocol, ""]
    for section in found:
        text += [f"## {section.title}", ""] if section.title else []
        text += [f"{section.words}:", ""] if section.words else []
        text += [section.sheet.markdown(), ""]
        text += [section.after, ""] if section.after else []
    write_text(markdown, "\n".join(text))
    cases = Section("Case by case", case_sheet(case_table(scores)), _CASES)
    write_text(html, page(title, [protocol], found, [cases]))
    return csv, markdown, html


def _post_processed(scores: Scores) -> str:
    post = summary_table(scores, post_processed=True)
    wt, tc, et = (100 * post.loc[MEAN, f"Dice {region}"] for region in REGIONS)
    return f"With ET below 500 mm³ relabelled NCR, mean Dice ET {et:.1f}, TC {tc:.1f}, WT {wt:.1f}."


def _of_lesions(scores: Scores) -> str:
    """By which rules, what they come to, and how many lesions there are."""
    rules, frame = lesion_rules(scores), scores.output().frame
    # What is true does not depend on the subset.
    counts = frame.groupby(["region", "case"])["lesions"].first().groupby("region").sum()
    each = ", ".join(f"{region} {counts.get(region, 0):.0f}" for region in REGIONS)
    words = RULE_WORDS.get(rules, "")
    return (
        f"By the rules of {rules}{f', in which {words}' if words else ''}; the share of true lesions that is missed, "
        f"and how many false ones a case has (true lesions that count: {each})"
    )
