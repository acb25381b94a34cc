"""An arm that only calls less is told from one that finds more."""

import measure_operating_point
import numpy as np
import pandas as pd
import pytest
from measure_operating_point import ALARMS, DICE, FACTORS

from smml.data import REGIONS


def rows_of(arm: str, readiness: float, gain: float = 0.0) -> pd.DataFrame:
    """A curve that falls with the factor's logarithm: an arm that calls less by a factor lies on the same one."""
    rows = []
    for factor in FACTORS:
        call_less = np.log2(factor * readiness)
        dice = 0.5 - 0.02 * call_less + gain
        rows += [(arm, 0, factor, region, dice, dice, 0.6 - 0.05 * call_less, 1.0) for region in REGIONS]
    return pd.DataFrame(rows, columns=["arm", "seed", "factor", "region", "dice", DICE, ALARMS, "volume"])


@pytest.mark.parametrize("gain", [0.0, 0.03])
def test_with_as_many_false_alarms_two_arms_differ_by_what_one_finds_more(gain):
    rows = pd.concat([rows_of("pair", 1.0), rows_of("both-even", 6.0, gain)])
    for region in measure_operating_point.matched(rows, "pair", "both-even").values():
        assert region["factor"] == pytest.approx(6.0)
        assert region["both-even"] - region["pair"] == pytest.approx(100 * gain, abs=1e-9)


def test_a_curve_is_not_drawn_out_beyond_its_ends():
    rows = pd.concat([rows_of("pair", 1.0), rows_of("both-even", 1000.0)])
    found = measure_operating_point.matched(rows, "pair", "both-even")["WT"]
    assert np.isnan([found["factor"], found["pair"]]).all()


def test_false_alarms_count_where_the_region_is_not_and_overlap_where_it_is():
    columns = ["arm", "seed", "factor", "region", "dice", "truth_ml", "predicted_ml"]
    scores = pd.DataFrame(
        [("pair", 0, 1.0, "WT", 0.6, 10.0, 15.0), ("pair", 0, 1.0, "WT", 0.0, 0.0, 2.0),
         ("pair", 0, 1.0, "WT", 1.0, 0.0, 0.0)],
        columns=columns,
    )  # fmt: skip
    (row,) = measure_operating_point.summarise(scores).to_dict("records")
    assert (row[DICE], row[ALARMS], row["volume"]) == (0.6, 0.5, 1.5)
    assert row["dice"] == pytest.approx(1.6 / 3)
