"""Every question of docs/QUESTIONS.md is answered under the heading that the page names."""

import re

import jupytext
import pytest
from course_pages import ROOT, SCRIPTS

TEXT = (ROOT / "docs" / "QUESTIONS.md").read_text(encoding="utf-8")
TABLE = TEXT.partition("<!-- questions -->")[2].partition("<!-- end of questions -->")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.strip().splitlines()[2:]]


def section(number: int, heading: str) -> str | None:
    """All cells of a notebook from a heading to the next, in one line; None if it has no such heading."""
    text = ""
    for cell in jupytext.read(SCRIPTS[number]).cells:
        text += f"{cell.source}\n\n" if cell.cell_type == "markdown" else re.sub(r"(?m)^#", " ", cell.source) + "\n\n"
    lines = text.splitlines()
    titles = [re.sub(r"^#+ (?:\d\. )?", "", line) if re.match(r"#+ ", line) else None for line in lines]
    if heading not in titles:
        return None
    start = titles.index(heading)
    end = next((i for i, title in enumerate(titles) if i > start and title is not None), len(lines))
    return " ".join(" ".join(lines[start + 1 : end]).split())


def test_the_questions_are_numbered_without_a_gap():
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, len(ROWS) + 1)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"question {row[0]}")
def test_the_heading_that_answers_a_question_is_there_with_the_words_of_the_answer(row):
    _, _, number, heading, words = row
    found = section(int(number), heading)
    assert found is not None, f"notebook {number} has no heading {heading!r}"
    assert [word for word in words.split("; ") if word.lower() not in found.lower()] == []


def test_a_heading_that_is_gone_is_found():
    assert section(3, "A heading that nobody wrote") is None
