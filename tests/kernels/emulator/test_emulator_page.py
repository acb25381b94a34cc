"""docs/EMULATOR.md: its race is run, and its table is the code's."""

import contextlib
import io
import re
from pathlib import Path

from smml_kernels.emulator import KINDS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "EMULATOR.md").read_text(encoding="utf-8")


def test_the_race_on_the_page_prints_what_the_page_says():
    code, output = (
        re.search(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1] for kind in ("python", "text")
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/EMULATOR.md", "exec"), {})
    assert printed.getvalue() == output


def test_the_table_of_faults_is_that_of_the_code():
    table = PAGE.partition("## What is looked for")[2].partition("\n\nA message")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.strip().splitlines()[2:]]
    assert rows == list(KINDS.items())
