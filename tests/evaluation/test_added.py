"""One sequence more: the pairs are nested, a case counts where it has both, and the largest loss is found."""

import numpy as np
import pandas as pd
import pytest

from smml.errors import InputError
from smml.evaluation import Scores, added_sequences, format_added, largest_loss
from smml.modalities import SUBSETS, subset_name


def scores(dice, cases=("a", "b", "c"), subsets=SUBSETS) -> Scores:
    """Scores whose Dice is ``dice(case, subset, region)``; NaN leaves the row out."""
    rows = [
        {"case": case, "subset": subset_name(subset), "region": region, "dice": value, "hd95": 1.0}
        for case in cases
        for subset in subsets
        for region in ("WT", "TC", "ET")
        if np.isfinite(value := dice(case, subset, region))
    ]
    return Scores(pd.DataFrame(rows))


def test_all_28_pairs_of_nested_subsets_are_there_and_each_adds_one_sequence():
    table = added_sequences(scores(lambda case, subset, region: 0.1 * len(subset)))
    assert len(table) == 28
    assert table.index.is_unique
    assert (table["cases"] == 3).all()
    assert np.allclose(table[["WT", "TC", "ET"]], 0.1)
    for subset, added in table.index:
        assert added not in subset.split("+")


def test_the_largest_loss_names_pair_region_and_cases():
    def dice(case, subset, region):
        hurts = region == "TC" and {"flair", "t1ce"} == set(subset)
        return 0.5 + 0.1 * len(subset) - (0.4 if hurts else 0) - (0.03 if case == "b" and hurts else 0)

    loss = largest_loss(added_sequences(scores(dice)))
    assert (loss.region, loss.cases) == ("TC", 3)
    assert {loss.subset, loss.added} == {"FLAIR", "T1ce"}
    assert loss.change == pytest.approx(0.1 - 0.4 - 0.01)
    said = f"adding {loss.added} to {loss.subset} changes Dice TC by -31.0 points (mean of 3 cases, standard "
    said += "error 1.0; the least of 84 such means)"
    assert str(loss) == said


def test_a_case_counts_only_where_it_has_both_subsets():
    """Case b lacks T2: what it scores without T2 must not stand beside what others score with it."""

    def dice(case, subset, region):
        if case == "b":
            return np.nan if "t2" in subset else 0.0
        return 0.6 if "t2" in subset else 0.7

    table = added_sequences(scores(dice, cases=("a", "b")))
    assert table.loc[("FLAIR", "T2"), "cases"] == 1
    assert table.loc[("FLAIR", "T2"), "WT"] == pytest.approx(-0.1)
    assert table.loc[("FLAIR", "T1ce"), "cases"] == 2


def test_a_network_that_never_loses_has_a_largest_loss_of_a_gain():
    assert largest_loss(added_sequences(scores(lambda c, subset, r: len(subset) / 5))).change == pytest.approx(0.2)


def test_subsets_without_a_pair_give_an_empty_table_and_no_largest_loss():
    table = added_sequences(scores(lambda c, s, r: 0.5, subsets=[("flair",), ("t1ce",)]))
    assert table.empty
    with pytest.raises(InputError, match="none is added; score more subsets"):
        largest_loss(table)


def test_of_two_outputs_the_refined_one_is_taken_unless_the_student_is_asked_for():
    student, refined = (scores(lambda c, s, r, gain=gain: gain * len(s)).frame for gain in (0.1, 0.2))
    both = Scores(pd.concat([student.assign(output="student"), refined.assign(output="refined")]))
    assert np.allclose(added_sequences(both)["WT"], 0.2)
    assert np.allclose(added_sequences(both, output="student")["WT"], 0.1)


def test_the_table_begins_with_what_loses_most():
    table = added_sequences(scores(lambda c, s, r: 0.5 - (0.2 if set(s) == {"t1", "t2"} and r == "ET" else 0)))
    first, second = format_added(table).splitlines()[2:4]
    assert first.endswith("| +0.0 | +0.0 | -20.0 |")
    assert second.endswith("| +0.0 | +0.0 | -20.0 |")
    assert {first.split("|")[1].strip(), first.split("|")[2].strip()} == {"T1", "T2"}
