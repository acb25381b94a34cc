"""The report of an evaluation: hand-made scores give hand-made tables, which hold the numbers of the file."""

import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from smml.errors import InputError
from smml.evaluation import (
    Scores,
    by_number_of_sequences,
    case_table,
    compare,
    comparison_page,
    format_comparison,
    lesion_table,
    write_report,
)
from smml.evaluation.kept import COLUMNS, LESION_COLUMNS
from smml.evaluation.report import on_screen, sections
from smml.evaluation.sheets import Sheet

REGIONS = ("WT", "TC", "ET")
SUBSETS = ("T1", "FLAIR", "FLAIR+T1", "FLAIR+T1+T2")
ODD = "a <b>& | case"


class Page(HTMLParser):
    """The tables of a page as rows of text, what its bars stand for, and all tags and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.bars: list[tuple[str, list[str]]] = []
        self.tags: list[str] = []
        self.words = ""
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._inside = True
            style = dict(attributes).get("style")
            if style:
                self.bars.append((style, self.tables[-1][-1]))
        elif tag != "span":
            self._inside = False

    def handle_endtag(self, tag):
        self._inside = self._inside and tag == "span"

    def handle_data(self, data):
        self.words += data
        if self._inside:
            self.tables[-1][-1][-1] += data.rstrip("\n")


def made(nsd: bool = True) -> Scores:
    """Two cases; ET is not there in the second, where it is called from T1 alone."""
    rows = []
    for (place, case), subset, (order, region) in itertools.product(enumerate((ODD, "b")), SUBSETS, enumerate(REGIONS)):
        absent = case == "b" and region == "ET"
        called = absent and subset == "T1"
        dice = float(not called) if absent else 0.1 + 0.2 * len(subset.split("+")) + 0.05 * place - 0.02 * order
        rows.append(
            {"case": case, "subset": subset, "modalities": len(subset.split("+")), "output": "student"}
            | {"region": region, "dice": dice, "hd95": np.nan if called else 1.5 + place, "nsd": dice / 2}
            | {"dice_post": dice, "truth_ml": 0.0 if absent else 9.0, "predicted_ml": 1.0 if called else 8.0}
        )
    frame = pd.DataFrame(rows)
    return Scores(frame if nsd else frame.drop(columns="nsd"), "2 made cases")


def with_lesions(rules: str = "2023", **columns) -> Scores:
    """Case a has three lesions of which two are found and a false one, b one that is found; of each region."""
    frame = made().frame
    first = frame["case"] == ODD
    numbers = {
        "lesion_rules": rules,
        "lesions": np.where(first, 3, 1),
        "lesions_found": np.where(first, 2, 1),
        "false_lesions": np.where(first, 1, 0),
        "lesion_dice": np.where(first, 0.4, 0.8),
        "lesion_hd95": np.where(first, 100.0, 2.0),
        "lesion_nsd": np.where(first, 0.2, 0.6),
    }
    return Scores(frame.assign(**(numbers | columns)))


# ---------------------------------------------------------------- by number of sequences


def test_dice_by_number_of_sequences_is_over_the_cases_that_have_the_region():
    table = by_number_of_sequences(made())
    assert table.index.tolist() == [1, 2, 3]
    assert table["subsets"].tolist() == [2, 1, 1]
    # WT: 0.3 and 0.35 from either of the single sequences. ET: of the first case alone.
    assert table.loc[1, "Dice WT"] == pytest.approx(0.325)
    assert table.loc[1, "Dice ET"] == pytest.approx(0.26)
    assert table.loc[3, "Dice TC"] == pytest.approx(0.7 + 0.025 - 0.02)
    assert table[["values WT", "values ET"]].values.tolist() == [[4, 2], [2, 1], [2, 1]]


def test_a_subset_counts_as_much_as_another_of_its_size_however_many_cases_have_it():
    frame = made().frame
    one = Scores(frame[(frame["subset"] != "T1") | (frame["case"] == "b")])
    table = by_number_of_sequences(one)
    assert table.loc[1, "Dice WT"] == pytest.approx((0.35 + (0.3 + 0.35) / 2) / 2)
    assert table.loc[1, "values WT"] == 3


def test_scores_that_do_not_say_what_is_there_have_no_table_by_number():
    assert by_number_of_sequences(Scores(made().frame.drop(columns="truth_ml"))) is None


def test_a_comparison_has_the_same_table_and_the_dearest_sequence_of_each_result():
    worse = made().frame
    worse.loc[(worse["subset"] == "FLAIR+T1") & (worse["region"] == "TC"), "dice"] = 0.0
    table = compare({"good": made(), "worse": Scores(worse)}, resamples=10)
    pd.testing.assert_frame_equal(table.by_number["good"], by_number_of_sequences(made()))
    loss = table.losses["worse"]
    assert (loss.subset, loss.added, loss.region, loss.cases) == ("T1", "FLAIR", "TC", 2)
    assert loss.change == pytest.approx(-(0.28 + 0.33) / 2)
    text = format_comparison(table)
    assert "| good | 1 | 2 | 32.5 | 4 | 30.5 | 4 | 26.0 | 2 |" in text
    assert "| worse | T1 | FLAIR | TC | -30.5 | 2.5 | 2 |" in text
    untold = {name: Scores(made().frame.drop(columns=["truth_ml"])) for name in ("good", "worse")}
    assert compare(untold, resamples=10).by_number == {}


# ---------------------------------------------------------------- lesion by lesion


def test_the_lesion_table_counts_lesions_and_averages_cases():
    table = lesion_table(with_lesions())
    assert table.index.tolist() == [*SUBSETS, "mean"]
    for subset in table.index:
        assert table.loc[subset, "missed WT"] == pytest.approx(1 / 4), "lesions of all cases together"
        assert table.loc[subset, ["Dice ET", "HD95 TC", "NSD WT", "false lesions ET"]].tolist() == pytest.approx(
            [0.6, 51.0, 0.4, 0.5]
        )
    words = next(each.words for each in sections(with_lesions()) if each.title == "Lesion by lesion")
    assert words.startswith("By the rules of 2023, in which a missed lesion")
    assert "true lesions that count: WT 4, TC 4, ET 4" in words


def test_an_infinite_distance_is_left_out_of_the_mean_and_counted(tmp_path):
    """By the rules of 2026 nothing that matches is infinitely far; it is read back from the file as it was."""
    scores = with_lesions("2026", lesion_hd95=[np.inf if case == ODD else 2.0 for case in made().frame["case"]])
    scores.write(tmp_path / "scores.csv")
    for each in (scores, Scores.read(tmp_path)):
        table = lesion_table(each)
        assert table.loc["mean", "HD95 WT"] == 2.0
        assert table["HD95 left out"].tolist() == [3, 3, 3, 3, 12]
        assert "By the rules of 2026" in on_screen(each)


def test_lesions_by_the_rules_of_two_years_are_not_averaged():
    mixed = with_lesions(lesion_rules=["2023", "2026"] * 12)
    with pytest.raises(InputError, match="'2023' and '2026', which cannot be averaged; score all cases by those of"):
        lesion_table(mixed)


def test_scores_without_lesions_have_no_such_table_and_no_word_of_it():
    assert lesion_table(made()) is None
    assert "esion" not in on_screen(made())


# ---------------------------------------------------------------- the page


def test_the_page_holds_the_numbers_of_the_scores_file(tmp_path):
    csv, _, html = write_report(with_lesions(), tmp_path, "made")
    rows, tables = pd.read_csv(csv), Page(html.read_text(encoding="utf-8")).tables
    titles = [section.title for section in sections(with_lesions())]
    assert titles[1:] == ["Overlap, misses and false alarms", "Lesion by lesion", "By number of sequences",
                          "One sequence more"]  # fmt: skip
    assert len(tables) == len(titles) + 1
    means, apart, lesions, numbers, added, cases = tables
    there, one = rows[rows["truth_ml"] > 0], (rows["subset"] == "FLAIR") & (rows["region"] == "ET")

    def cell(table, row, head):
        return float(table[row][table[0].index(head)])

    # FLAIR is the second of the subsets in the field's order.
    assert means[2][:4] == ["●", "○", "○", "○"]
    assert cell(means, 2, "Dice ET, %") == pytest.approx(100 * rows.loc[one, "dice"].mean(), abs=0.05)
    assert cell(means, 2, "HD95 ET, mm") == pytest.approx(rows.loc[one, "hd95"].mean(), abs=0.05)
    assert cell(apart, 2, "Dice ET, %") == pytest.approx(100 * there.loc[one, "dice"].mean(), abs=0.05)
    assert cell(apart, 1, "false alarms ET, %") == 100
    assert cell(apart, 1, "false ET, ml") == 1.0
    assert cell(lesions, 2, "Dice ET, %") == pytest.approx(100 * rows.loc[one, "lesion_dice"].mean(), abs=0.05)
    single = there[(there["modalities"] == 1) & (there["region"] == "WT")]
    assert cell(numbers, 1, "Dice WT, %") == pytest.approx(100 * single["dice"].mean(), abs=0.05)
    assert cell(numbers, 1, "values WT") == len(single)
    assert [row[:2] for row in added[1:]].count(["FLAIR+T1", "T2"]) == 1
    case = rows[(rows["case"] == "b") & (rows["region"] == "WT")]
    assert next(row for row in cases if row[0] == "b")[2] == f"{100 * case['dice'].mean():.1f}"


def test_a_cell_holds_one_number_whose_unit_is_in_the_head(tmp_path):
    _, markdown, html = write_report(with_lesions(), tmp_path, "made")
    text = markdown.read_text(encoding="utf-8") + "\n" + format_comparison(compare({"one": made(), "two": made()}))
    tables = [
        [line[2:-2].split(" | ") for line in part.splitlines() if line.startswith("| ")]
        for part in re.findall(r"(?:^\|.*(?:\n|$))+", text, re.MULTILINE)
    ]
    assert len(tables) == 10
    for table in tables + Page(html.read_text(encoding="utf-8")).tables:
        heads, *rows = table
        for row in rows:
            assert len(row) == len(heads)
            for head, value in zip(heads, row, strict=True):
                if head in ("result", "region", "subset", "added", "case", "FLAIR", "T1ce", "T1", "T2"):
                    assert not re.search(r"\d\.\d", value), value
                else:
                    assert re.fullmatch(r"[+-]?\d+(\.\d+)?|–", value), (head, value)


def test_bars_are_as_long_as_the_number_in_front_of_them(tmp_path):
    page = Page(write_report(made(), tmp_path, "made")[2].read_text(encoding="utf-8"))
    shares = [float(re.fullmatch(r"--share:([\d.]+)", style)[1]) for style, _ in page.bars]
    assert len(shares) > 50
    assert all(0 <= share <= 100 for share in shares)
    for (_, row), share in zip(page.bars, shares, strict=True):
        assert f"{share:.1f}" in row


def test_names_cannot_be_markup(tmp_path):
    text = write_report(made(), tmp_path, f"model <i> on {ODD}")[2].read_text(encoding="utf-8")
    text += comparison_page(compare({ODD: made(), "<i>": made()}, resamples=10))
    page = Page(text)
    assert not {"b", "i"} & set(page.tags)
    assert "&<" not in text
    assert any(row[0] == ODD for table in page.tables for row in table)
    assert f"model <i> on {ODD}" in page.words
    line = Sheet((("result", "word"), ("Dice", "number")), ((ODD, "1.0"),)).markdown().splitlines()[-1]
    assert line == "| a <b>& \\| case | 1.0 |", "nor another column of a Markdown table"


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path):
    text = write_report(made(), tmp_path, "made")[2].read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<img|src=|href=|url\(|@import|https?:|\bon\w+=", text)
    assert "prefers-color-scheme: dark" in text


def test_the_page_of_a_comparison_has_the_cells_of_its_markdown():
    table = compare({"one": made(), "two": made(nsd=False)}, resamples=10)
    markdown = [line[2:-2].split(" | ") for line in format_comparison(table).splitlines() if line.startswith("| ")]
    assert [row for sheet in Page(comparison_page(table)).tables for row in sheet] == markdown


def test_cases_stand_in_the_order_of_their_mean():
    frame = made().frame
    frame.loc[frame["case"] == "b", "dice"] /= 4
    table = case_table(Scores(frame))
    assert table.index.tolist() == ["b", ODD]
    assert table["subsets"].tolist() == [4, 4]
    assert table.loc[ODD, "Dice WT"] == pytest.approx((0.3 + 0.3 + 0.5 + 0.7) / 4)


def test_the_columns_of_lesions_stand_behind_the_others():
    assert list(with_lesions().frame.columns) == [*COLUMNS, *LESION_COLUMNS]


def test_the_tables_can_be_made_again_from_the_file_of_scores(tmp_path):
    """The file rounds to six digits: 0.8644999999 is printed as 86.4, its 0.8645 in the file as 86.5."""
    frame = made().frame
    frame.loc[frame.index[0] :, "dice"] = 0.8645 - 1e-9
    first = write_report(Scores(frame, "made"), tmp_path / "first", "made")
    again = write_report(Scores.read(first[0], "made"), tmp_path / "again", "made")
    assert [path.read_text(encoding="utf-8") for path in first] == [path.read_text(encoding="utf-8") for path in again]
