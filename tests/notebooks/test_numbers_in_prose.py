"""No number of a notebook's prose is there because somebody once saw it: a cell beside it or a named source has it."""

import pytest
from course_pages import FOLDER, SCRIPTS
from numbers_in_prose import numbers_of, places_of_numbers, printed_strings, read_sources, wrong_with

ENTRIES = read_sources()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_number_in_prose_comes_from_a_cell_beside_it_or_a_source(script):
    from_nowhere = [
        f"{number.text} in '… {number.words} …'"
        for number in numbers_of(script)
        if not number.comes_from_a_cell_beside() and not any(map(number.is_explained_by, ENTRIES))
    ]
    assert not from_nowhere, "let the cell print it, or name its source in notebooks/sources.toml"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['notebook'][:2]} {entry['number']}")
def test_a_source_gives_the_number_that_it_is_named_for(entry):
    assert set(entry) - {"notebook", "number", "words"} in ({"file", "says"}, {"value"}, {"sum"}, {"citation"})
    assert wrong_with(entry) is None


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['notebook'][:2]} {entry['number']}")
def test_no_source_is_left_of_a_number_that_is_gone(entry):
    scripts = SCRIPTS if entry["notebook"] == "*" else [FOLDER / f"{entry['notebook']}.py"]
    numbers = [number for script in scripts for number in numbers_of(script)]
    assert any(number.is_explained_by(entry) for number in numbers)


def test_names_shapes_and_references_are_no_numbers_and_results_are():
    text = (
        "## 3 things\nNotebooks 3, 4 and 6 (exercise 5.3) show T1ce and HD95 of BraTS 2020, $x_2 = 4$, `f(7)`, patches "
        "of case 00701, of 32³ or 4 × 4, [8. A title](08_x.ipynb), branch 2 from 0 to 1: **12.5 %** of "
        "1,234 voxels, 1 mm and 0.83."
    )
    assert [match[0] for match in places_of_numbers(text)] == ["12.5", "1,234", "1", "0.83"]


def test_words_that_a_cell_prints_are_prose_and_formats_are_not():
    source = "print(f'{x:.2f} of 80 %', y)\nfigure(title='95 % of it')\nMarkdown(f'{a:+.1f} in {b}')\nf('7 of 9')"
    found = [match[0] for text in printed_strings(source) for match in places_of_numbers(text)]
    assert sorted(found) == ["80", "95"]
