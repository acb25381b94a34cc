"""Changes between visits: whose they are, in which order, and with which intervals."""

import csv
import math

import pytest

from smml.cohort.page import write_page
from smml.cohort.rows import CohortRow
from smml.cohort.visits import find_changes, write_changes


def row(case, et=1.0, low=None, high=None, reason=""):
    measured = {"WT ml": 10.0, "TC ml": 5.0, "ET ml": et}
    if low is not None:
        measured |= {"ET from 90 %": et, "ET to 90 %": et, "ET from 95 %": low, "ET to 95 %": high}
    return CohortRow(case, "brats2024", ("flair",), None if reason else measured, reason=reason)


def found(*rows):
    return {(each.before, each.after): each.volume for each in find_changes({row.case: row for row in rows})
            if each.region == "ET"}  # fmt: skip


@pytest.mark.parametrize(
    ("visits", "other"),
    [
        (["BraTS-GLI-00005-101", "BraTS-GLI-00005-102", "BraTS-GLI-00005-110"], "BraTS-GLI-00006-103"),
        (["TCGA-02-0006_1996.08.23", "TCGA-02-0006_1996.12.01", "TCGA-02-0006_1997.01.05"], "TCGA-02-0007_1996.09.01"),
        (["sub-07_ses-2", "sub-07_ses-9", "sub-07_ses-10"], "sub-08_ses-3"),
    ],
)
def test_visits_of_one_patient_follow_each_other_in_time(visits, other):
    volumes = dict(zip(visits, (1.0, 4.0, 3.0), strict=True))
    rows = [row(case, volumes[case]) for case in (visits[2], visits[0], visits[1])]
    changes = found(*rows, row(other, 50.0), row("Simulated_00001"), row("Simulated_00002"))
    assert {pair: volume.ml for pair, volume in changes.items()} == {
        (visits[0], visits[1]): 3.0,
        (visits[1], visits[2]): -1.0,
    }


def test_a_change_has_the_interval_of_both_volumes_at_95_per_cent():
    first, second = row("sub-1_ses-1", 2.0, 1.0, 4.0), row("sub-1_ses-2", 9.0, 7.0, 12.0)
    change = found(first, second)["sub-1_ses-1", "sub-1_ses-2"]
    assert (change.ml, change.low, change.high, change.level) == (7.0, 3.0, 11.0, 0.9)
    assert math.isnan(found(first, row("sub-1_ses-2", 9.0))["sub-1_ses-1", "sub-1_ses-2"].low)


def test_a_visit_that_could_not_be_segmented_is_passed_over():
    rows = [row("sub-1_ses-1", 1.0), row("sub-1_ses-2", reason="damaged"), row("sub-1_ses-3", 5.0)]
    assert list(found(*rows)) == [("sub-1_ses-1", "sub-1_ses-3")]


def test_changes_are_a_file_and_a_part_of_the_page(tmp_path):
    rows = {each.case: each for each in (row("sub-1_ses-1", 2.0, 1.0, 4.0), row("sub-1_ses-2", 9.0, 7.0, 12.0))}
    changes = find_changes(rows)
    write_changes(tmp_path, changes)
    with open(tmp_path / "changes.csv", newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["region"] for line in lines] == ["WT", "TC", "ET"]
    assert [lines[2][head] for head in ("before", "change ml", "from ml", "to ml", "level")] == [
        "sub-1_ses-1", "7.000", "3.000", "11.000", "0.9",
    ]  # fmt: skip
    assert lines[0]["from ml"] == ""
    page = write_page(tmp_path, rows, "two visits", changes).read_text(encoding="utf-8")
    assert "Between visits" in page
    assert "Between visits" not in write_page(tmp_path, rows, "two visits").read_text(encoding="utf-8")
    write_changes(tmp_path, [])
    assert not (tmp_path / "changes.csv").exists()
