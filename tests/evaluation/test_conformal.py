"""Intervals of volumes: the right rank, the promised coverage, 0 ml, and the change between two visits."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation import Scores, conformal_quantile, fit_intervals, format_intervals, measure_intervals
from smml.inference import Segmentation, Volume, VolumeIntervals, volume_change
from smml.modalities import MODALITIES, subset_name
from smml.models.intervals import POWER

# Of each size one: what is fitted to one subset has nothing to do with another.
SOME = (("t2",), ("flair", "t2"), ("flair", "t1", "t2"), MODALITIES)


def drawn(cases, seed, *, subsets=SOME, shift=0.0, scale=1.0, output=None) -> Scores:
    """Scores of a model whose errors are normal between powers of volumes; a third of the cases has no tumour."""
    random = np.random.default_rng(seed)
    names = [f"{seed}-{case}" for case in range(cases)]
    parts = []
    for subset, region in itertools.product(subsets, REGIONS):
        truth = np.where(np.arange(cases) % 3 == 0, 0.0, random.lognormal(3, 1, cases))
        error = scale * random.standard_normal(cases) / len(subset) + shift
        volumes = {"truth_ml": truth, "predicted_ml": np.maximum(0, truth**POWER - error) ** (1 / POWER)}
        parts.append(pd.DataFrame({"case": names, "subset": subset_name(subset), "region": region} | volumes))
    frame = pd.concat(parts, ignore_index=True)
    return Scores(frame if output is None else frame.assign(output=output))


@pytest.mark.parametrize(
    ("n", "share", "rank"), [(9, 0.9, 9), (10, 0.9, 10), (19, 0.9, 18), (39, 0.975, 39), (99, 0.95, 95), (1, 0.5, 1)]
)
def test_the_quantile_is_the_error_of_the_rank_that_counts_the_new_case_too(n, share, rank):
    errors = np.random.default_rng(0).permutation(np.arange(1, n + 1))
    assert conformal_quantile(errors, share) == rank


@pytest.mark.parametrize(("n", "share"), [(8, 0.9), (38, 0.975), (0, 0.5)])
def test_of_too_few_errors_the_quantile_is_infinite(n, share):
    assert conformal_quantile(np.zeros(n), share) == math.inf


def test_a_new_error_stays_below_the_quantile_as_often_as_promised_and_hardly_more():
    random = np.random.default_rng(0)
    trials = random.standard_cauchy((2000, 20))
    share = np.mean([new <= conformal_quantile(known, 0.8) for *known, new in trials])
    assert 0.8 - 0.03 < share < 0.8 + 1 / 20 + 0.03


@pytest.mark.parametrize("shift", [0.0, 1.5], ids=["no bias", "too little of everything"])
def test_intervals_hold_the_promised_share_of_true_volumes_of_other_cases(shift):
    measured = measure_intervals(drawn(600, 2, shift=shift), fit_intervals(drawn(600, 1, shift=shift)))
    shares = measured.groupby(["modalities", "region"])["covered"].mean()
    assert len(shares) == 12
    assert shares.min() > 0.85, "the standard deviation of such a share is 0.017"
    assert shares.mean() > 0.89
    assert (measured["low"] <= measured["predicted_ml"] + 1e-9).all()
    assert (measured["predicted_ml"] <= measured["high"] + 1e-9).all()
    found = measured[measured["predicted_ml"] > 1]  # of 0 ml one side is cut off
    if not shift:
        assert found["covered"].mean() < 0.94
    lengths = (found["high"] - found["low"]).groupby(found["modalities"]).median()
    assert lengths.is_monotonic_decreasing, "four sequences err least"
    share = 100 * measured.loc[(measured["modalities"] == 4) & (measured["region"] == "WT"), "covered"].mean()
    assert f"| 4 | {share:.1f} | " in format_intervals(measured)


def test_a_subset_of_which_there_are_too_few_cases_has_no_interval_and_all_sequences_must_have_one():
    whole, part = drawn(45, 1, subsets=[MODALITIES]), drawn(20, 2, subsets=[("t2",)])
    intervals = fit_intervals(Scores(pd.concat([whole.frame, part.frame])))
    assert set(intervals.reach) == {MODALITIES}
    assert intervals.cases == 65
    assert str(intervals.volume(("t2",), "ET", 3.0)) == "3.0 ml"
    assert len(measure_intervals(part, intervals)) == 0
    with pytest.raises(InputError, match="at 95 % need cases of at least 39 patients with all sequences, found 38"):
        fit_intervals(drawn(38, 1))
    reach = fit_intervals(drawn(39, 1)).reach[MODALITIES]
    assert all(math.isfinite(end) for pairs in reach.values() for end in pairs[1])


def test_of_several_visits_of_a_patient_one_counts():
    """Forty cases of ten patients are ten, of which no interval can be made."""
    frame = drawn(40, 3).frame
    number = frame["case"].str.split("-").str[1].astype(int)
    visits = frame.assign(case=[f"BraTS-GLI-{n // 4:05d}-{100 + n % 4}" for n in number])
    with pytest.raises(InputError, match="at least 39 patients with all sequences, found 10"):
        fit_intervals(Scores(visits))
    first = frame.assign(case=[f"BraTS-GLI-{n:05d}-100" for n in number])
    more = pd.concat([first, first.assign(case=first["case"].str.replace("-100", "-101"), predicted_ml=0.0)])
    assert fit_intervals(Scores(more)) == fit_intervals(Scores(first))


def test_a_region_that_nobody_scored_is_named():
    frame = drawn(40, 3).frame
    with pytest.raises(InputError, match="found none of TC; score these too"):
        fit_intervals(Scores(frame[frame["region"] != "TC"]))


def test_where_nothing_is_found_the_interval_begins_at_nothing():
    volume = fit_intervals(drawn(100, 1)).volume(MODALITIES, "ET", 0.0)
    assert volume.low == 0.0 < volume.high
    sure = fit_intervals(drawn(100, 1, scale=0.0)).volume(MODALITIES, "ET", 1 / 3)
    assert (sure.low, sure.high) == pytest.approx((1 / 3, 1 / 3))
    nothing = VolumeIntervals(50, "student", {MODALITIES: dict.fromkeys(REGIONS, ((0.0, 0.0),) * 2)})
    for ml in (0.0, 0.1, 0.3, 0.7, 34.2):
        assert nothing.volume(MODALITIES, "ET", ml) == Volume(ml, ml, ml), "to the bit"


def test_a_model_that_always_finds_too_little_has_intervals_that_begin_at_what_it_finds():
    frame = drawn(200, 1, shift=5.0).frame
    intervals = fit_intervals(Scores(frame[frame["predicted_ml"] > 0]))
    assert {pair[0] for regions in intervals.reach.values() for pairs in regions.values() for pair in pairs} == {0.0}
    volume = intervals.volume(MODALITIES, "WT", 30.0)
    assert volume.low == 30.0 < volume.high


def test_the_wider_level_reaches_further_and_others_are_refused():
    intervals = fit_intervals(drawn(100, 1))
    narrow, wide = (intervals.volume(MODALITIES, "WT", 30.0, level) for level in (0.9, 0.95))
    assert wide.low < narrow.low < 30 < narrow.high < wide.high
    assert str(narrow) == f"30.0 ml (90 %: {narrow.low:.1f} to {narrow.high:.1f})"
    with pytest.raises(InputError, match=r"hold 0.9 or 0.95 of the cases, found 0.5"):
        intervals.volume(MODALITIES, "WT", 30.0, 0.5)


def test_the_refined_output_counts_and_intervals_of_another_are_refused():
    student, refined = drawn(50, 1, scale=9.0, output="student"), drawn(50, 1, output="refined")
    both = Scores(pd.concat([student.frame, refined.frame]))
    intervals = fit_intervals(both)
    assert intervals == dataclasses.replace(fit_intervals(refined), output="refined")
    with pytest.raises(InputError, match="are of the output 'refined', and the scores of 'student'"):
        measure_intervals(student, intervals)
    with pytest.raises(InputError, match="hold no volumes"):
        fit_intervals(Scores(student.frame.drop(columns="truth_ml")))


def test_they_are_the_same_from_a_file():
    intervals = fit_intervals(drawn(60, 1))
    assert VolumeIntervals.from_dict(intervals.to_dict()) == intervals
    assert VolumeIntervals.from_dict(None) is None


def segmentation(voxels, subset=MODALITIES, intervals=None):
    labels = np.zeros((10, 10, 10), np.uint8)
    labels.reshape(-1)[:voxels] = 3
    return Segmentation(
        labels, np.empty(0), np.diag([-10.0, 10.0, 10.0, 1.0]), subset, "brats2023", intervals=intervals
    )


def test_a_segmentation_gives_its_volumes_with_their_intervals():
    intervals = fit_intervals(drawn(60, 1))
    found = segmentation(12, intervals=intervals)
    wanted = intervals.volume(MODALITIES, "ET", 12.0, 0.95)
    assert dataclasses.astuple(found.volume("ET", level=0.95)) == pytest.approx(dataclasses.astuple(wanted))
    assert str(segmentation(12).volume("WT")) == "12.0 ml"
    assert math.isnan(segmentation(12, ("t1",), intervals).volume("WT").low)


def test_a_change_lies_between_its_extremes_and_holds_with_what_both_leave():
    before, after = Volume(20.0, 15.0, 30.0, 0.95), Volume(28.0, 22.0, 31.0, 0.95)
    assert volume_change(before, after) == Volume(8.0, -8.0, 16.0, 0.9)
    assert str(volume_change(before, after)) == "8.0 ml (90 %: -8.0 to 16.0)"
    assert math.isnan(volume_change(before, Volume(28.0, level=0.95)).high)


@pytest.mark.parametrize("dependence", [-1.0, 0.0, 1.0])
def test_a_change_holds_as_promised_however_the_errors_of_both_visits_depend_on_each_other(dependence):
    random = np.random.default_rng(0)
    one = random.standard_normal(20_000)
    two = dependence * one if dependence else random.standard_normal(20_000)
    reach = 1.96  # 95 % of a normal error
    before, after = Volume(50.0, 50 - reach, 50 + reach, 0.95), Volume(60.0, 60 - reach, 60 + reach, 0.95)
    change = volume_change(before, after)
    true = (60 + two) - (50 + one)
    assert np.mean((change.low <= true) & (true <= change.high)) >= 0.9
