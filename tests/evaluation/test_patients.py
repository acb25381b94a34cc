"""The table of looks at patients (``scripts/measure_patients.py``): groups, means, false ET, and rows that stay."""

import pandas as pd
import pytest
from test_committed_tables import script

from smml.data import REGIONS

patients = script("measure_patients")

VOLUMES = ("truth_ml", "predicted_ml")
MADE = {"date": "2000-01-01", "commit": "abcdefg", "weights": "w", "preprocessing": 3}


def scored(*rows: tuple[str, str, float, float, float]) -> pd.DataFrame:
    """Scores from rows of case, subset, Dice of every region, and the true and called volume of ET."""
    frame = []
    for case, subset, dice, truth, called in rows:
        for region in REGIONS:
            volumes = {"truth_ml": truth, "predicted_ml": called} if region == "ET" else dict.fromkeys(VOLUMES, 9.0)
            frame.append({"case": case, "subset": subset, "region": region, "dice": dice, **volumes})
    return pd.DataFrame(frame)


# Case a enhances, b and c do not; only a has T1ce.
SCORES = scored(
    ("a", "FLAIR", 0.5, 4, 2), ("b", "FLAIR", 0.7, 0, 1.5), ("c", "FLAIR", 0.6, 0, 2.5), ("a", "T1ce", 0.9, 4, 4)
)


def row(table: pd.DataFrame, group: str, subset: str) -> pd.Series:
    (found,) = (each for _, each in table[(table["group"] == group) & (table["subset"] == subset)].iterrows())
    return found


def test_those_that_enhance_are_told_from_the_truth_of_et_and_averaged_apart():
    table = patients.by_group(SCORES)
    everyone, enhancing = row(table, "all", "FLAIR"), row(table, "enhancing", "FLAIR")
    assert (everyone["cases"], enhancing["cases"]) == (3, 1)
    assert everyone["WT"] == pytest.approx(0.6)
    assert enhancing["WT"] == pytest.approx(0.5)


def test_false_et_is_the_most_that_is_called_where_there_is_none():
    table = patients.by_group(SCORES)
    assert row(table, "all", "FLAIR")["false_ET_ml"] == 2.5
    assert pd.isna(row(table, "enhancing", "FLAIR")["false_ET_ml"])
    assert pd.isna(row(table, "all", "T1ce")["false_ET_ml"])


def test_a_subset_that_no_case_has_gets_no_row():
    assert set(patients.by_group(SCORES)["subset"]) == {"FLAIR", "T1ce"}


def test_a_look_is_added_below_those_before_it(tmp_path):
    looks = tmp_path / "looks.csv"
    table = patients.by_group(SCORES).assign(**MADE)
    patients.add_rows(looks, table)
    first = looks.read_bytes()
    patients.add_rows(looks, table.assign(weights="v"))
    assert looks.read_bytes().startswith(first)
    read = pd.read_csv(looks)
    assert list(read.columns) == patients.COLUMNS
    assert list(read["weights"]) == ["w"] * len(table) + ["v"] * len(table)
