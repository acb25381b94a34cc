"""Overlap and false alarms apart: each counted by hand on scores that mix them."""

import numpy as np
import pandas as pd
import pytest

from smml.errors import InputError
from smml.evaluation import Scores, format_table, overlap_table
from smml.evaluation.overlap import false_alarms, misses, present, present_dice, tells_presence

# Case, subset, region, Dice, true and predicted ml.
ROWS = [
    ("a", "T1", "WT", 0.8, 30.0, 29.0),
    ("b", "T1", "WT", 0.6, 10.0, 12.0),
    ("c", "T1", "WT", 0.0, 5.0, 0.0),
    ("a", "T1", "ET", 0.0, 0.0, 0.4),
    ("b", "T1", "ET", 0.0, 0.0, 1.4),
    ("c", "T1", "ET", 1.0, 0.0, 0.0),
    ("a", "T2", "ET", 0.0, 0.0, 6.0),
    ("b", "T2", "ET", 1.0, 0.0, 0.0),
    # Something is called, but none of what is there.
    ("c", "T2", "ET", 0.0, 2.0, 3.0),
    ("d", "T2", "ET", 0.5, 2.0, 3.0),
]


def made(rows=ROWS) -> Scores:
    return Scores(pd.DataFrame(rows, columns=["case", "subset", "region", "dice", "truth_ml", "predicted_ml"]))


def test_dice_is_averaged_over_the_cases_that_have_the_region():
    table = present_dice(made())
    assert table.index.tolist() == [("T2", "ET"), ("T1", "WT"), ("T1", "ET")], "subsets and regions in table order"
    assert table.loc[("T1", "WT")].tolist() == [3, pytest.approx(1.4 / 3)]
    assert table.loc[("T2", "ET")].tolist() == [2, pytest.approx(0.25)]
    assert table.loc[("T1", "ET"), "present"] == 0
    assert np.isnan(table.loc[("T1", "ET"), "dice"]), "where no case has the region there is no such mean"


def test_false_alarms_are_counted_over_the_cases_without_the_region_with_their_median_volume():
    table = false_alarms(made())
    assert table.loc[("T1", "ET")].tolist() == [3, 2, pytest.approx(2 / 3), pytest.approx(0.9)]
    assert table.loc[("T2", "ET")].tolist() == [2, 1, 0.5, 6.0], "what is called beside a region is no false alarm"
    assert table.loc[("T1", "WT"), ["absent", "called"]].tolist() == [0, 0]
    assert table.loc[("T1", "WT"), ["share", "median_ml"]].isna().all()
    together = false_alarms(made(), by=("region",))
    assert together.loc["ET"].tolist() == [5, 3, pytest.approx(0.6), pytest.approx(1.4)]


def test_a_region_is_missed_if_no_voxel_of_it_is_found():
    table = misses(made())
    assert table.loc[("T1", "WT")].tolist() == [3, 1, pytest.approx(1 / 3)]
    assert table.loc[("T2", "ET")].tolist() == [2, 1, 0.5], "what is called elsewhere finds nothing"
    assert table.loc[("T1", "ET"), ["present", "missed"]].tolist() == [0, 0], "an empty region cannot be missed"
    assert np.isnan(table.loc[("T1", "ET"), "share"])


def test_presence_without_volumes_counts_alike_and_volumes_stay_unknown():
    full = made()
    frame = full.frame.assign(present=full.frame["truth_ml"] > 0).drop(columns=["truth_ml", "predicted_ml"])
    bare = Scores(frame)
    pd.testing.assert_frame_equal(present_dice(bare), present_dice(full))
    pd.testing.assert_frame_equal(misses(bare), misses(full))
    counts = ["absent", "called", "share"]
    pd.testing.assert_frame_equal(false_alarms(bare)[counts], false_alarms(full)[counts])
    assert false_alarms(bare)["median_ml"].isna().all()


@pytest.mark.parametrize("count", [present, present_dice, false_alarms, misses])
@pytest.mark.parametrize("truth", [None, np.nan])
def test_where_presence_cannot_be_told_nothing_is_counted(count, truth):
    frame = made().frame
    if truth is None:
        frame = frame.drop(columns="truth_ml")
    else:
        frame.loc[3, "truth_ml"] = truth
    assert not tells_presence(Scores(frame))
    with pytest.raises(InputError, match="do not say where a region is there; expected the column truth_ml"):
        count(Scores(frame))


def test_the_table_has_overlap_misses_and_false_alarms_of_each_region_and_their_mean_over_subsets():
    table = overlap_table(made())
    assert list(table.index) == ["T2", "T1", "mean"]
    assert table.loc["T1", "Dice WT"] == pytest.approx(1.4 / 3)
    assert table.loc["T1", ["missed WT", "false alarms ET", "false ml ET"]].tolist() == pytest.approx(
        [1 / 3, 2 / 3, 0.9]
    )
    # T1 has no case with ET, so the mean over subsets is that of T2 alone.
    assert table.loc["mean", "Dice ET"] == pytest.approx(0.25)
    assert table.loc["mean", "false alarms ET"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert "| 46.7 |" in format_table(table)


def test_the_tables_nsd_is_over_the_cases_that_have_the_region():
    scores = made()
    table = overlap_table(Scores(scores.frame.assign(nsd=[0.9, 0.5, 0.1, 0.0, 0.0, 1.0, 0.0, 1.0, 0.2, 0.4])))
    assert table.loc["T1", "NSD WT"] == pytest.approx(0.5)
    assert table.loc["T2", "NSD ET"] == pytest.approx(0.3)
    assert "NSD WT" not in overlap_table(scores)


def test_scores_that_do_not_say_what_is_there_have_no_such_table():
    assert overlap_table(Scores(made().frame.drop(columns="truth_ml"))) is None


@pytest.mark.parametrize("spelling", [("True", "False"), ("true", "false"), ("1", "0"), ("1.0", "0.0")])
def test_presence_is_read_from_a_file_as_it_was_written(tmp_path, spelling):
    """A text "False" must not count as there."""
    scores = made()
    there = scores.frame["truth_ml"] > 0
    words = np.where(there, *spelling)
    plain = scores.frame.drop(columns=["truth_ml", "predicted_ml"]).assign(present=words)
    plain.to_csv(tmp_path / "scores.csv", index=False)
    read = Scores.read(tmp_path / "scores.csv")
    assert present(read).tolist() == there.tolist()
    pd.testing.assert_frame_equal(present_dice(read), present_dice(scores))
    pd.testing.assert_series_equal(false_alarms(read)["share"], false_alarms(scores)["share"])
    plain.assign(present=["perhaps", *words[1:]]).to_csv(tmp_path / "odd.csv", index=False)
    with pytest.raises(InputError, match="row 2: present must be true or false, found 'perhaps'"):
        Scores.read(tmp_path / "odd.csv")
