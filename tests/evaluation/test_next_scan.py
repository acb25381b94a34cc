"""Which scan next: a planted table is learnt with its error, and the sequence that it names compared with the best."""

import math

import numpy as np
import pandas as pd
import pytest

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation import Scores, fit_gains, format_gains, format_next_scan, measure_next_scan
from smml.inference import Gains, Predictor
from smml.modalities import MODALITIES, SUBSETS, subset_name
from smml.models import SMML

# What each sequence adds to the Dice of WT, TC and ET, whatever else is there.
WORTH = {"flair": (0.3, 0.1, 0.0), "t1ce": (0.1, 0.3, 0.5), "t1": (0.05, 0.0, 0.0), "t2": (0.2, 0.1, 0.0)}


def planted(cases=20, noise=0.0, seed=0, backward=()) -> Scores:
    """Scores whose Dice are sums of ``WORTH``; in the cases of ``backward`` FLAIR and T1ce change places."""
    random = np.random.default_rng(seed)
    swap = {"flair": "t1ce", "t1ce": "flair"}
    rows = []
    for case in range(cases):
        for subset in SUBSETS:
            names = [swap.get(name, name) for name in subset] if case in backward else subset
            for place, region in enumerate(REGIONS):
                dice = sum(WORTH[name][place] for name in names) + noise * random.standard_normal()
                rows.append({"case": f"{case}", "subset": subset_name(subset), "region": region, "dice": dice})
    return Scores(pd.DataFrame(rows))


def test_a_planted_worth_is_learnt_by_region_and_without_error():
    gains = fit_gains(planted())
    assert gains.cases == 20
    assert set(gains.by_subset) == set(SUBSETS[:-1])
    for subset in SUBSETS[:-1]:
        expected = gains.expected(subset)
        assert {gain.modality for gain in expected} == set(MODALITIES) - set(subset)
        for gain in expected:
            assert gain.dice == pytest.approx(np.mean(WORTH[gain.modality]))
            assert gain.error == pytest.approx(0, abs=1e-12)
            assert [gain.regions[region][0] for region in REGIONS] == pytest.approx(WORTH[gain.modality])
        assert [gain.dice for gain in expected] == sorted((gain.dice for gain in expected), reverse=True)
    assert gains.next_scan("t1").modality == "t1ce"
    assert gains.next_scan("T1, t1ce").modality == "flair"
    assert gains.next_scan("flair+t1ce+t2").modality == "t1"


def test_the_standard_error_is_that_of_the_differences_over_cases():
    gain = fit_gains(planted(400, noise=0.2)).expected("flair")[0]
    assert gain.regions["ET"][1] == pytest.approx(0.2 * math.sqrt(2 / 400), rel=0.1)
    assert gain.error == pytest.approx(0.2 * math.sqrt(2 / 3 / 400), rel=0.1)
    assert str(gain).startswith("T1ce, Dice +3")


def test_copies_of_a_patient_s_visit_make_no_gain_surer():
    once = planted(50, noise=0.2)
    names = once.frame["case"].astype(int).map("BraTS-GLI-{:05d}".format)
    four = pd.concat([once.frame.assign(case=names + f"-{visit}") for visit in (100, 101, 102, 103)])
    one, more = (fit_gains(scores).expected("flair")[0] for scores in (once, Scores(four)))
    assert more.dice == pytest.approx(one.dice)
    assert more.error == pytest.approx(one.error)


def test_a_region_that_nobody_scored_is_named():
    frame = planted().frame
    with pytest.raises(InputError, match="found none of WT, TC; score these too"):
        fit_gains(Scores(frame[frame["region"] == "ET"]))


def test_how_often_the_named_sequence_is_the_best_is_counted_beside_always_t1ce():
    gains = fit_gains(planted())
    measured = measure_next_scan(planted(10, backward=(0, 1, 2)), gains).set_index(["subset", "case"])
    assert len(measured) == 10 * 10, "four subsets of one sequence and six of two"
    assert measured.loc["T1", "right"].to_list() == [0.0] * 3 + [1.0] * 7
    assert measured.loc["T1", "best"].to_list() == ["flair"] * 3 + ["t1ce"] * 7
    assert measured.loc["T1", "always_t1ce"].equals(measured.loc["T1", "right"])
    assert measured.loc["T1ce", "always_t1ce"].isna().all()
    assert measured.loc["FLAIR+T1ce", "right"].all(), "T2 beats T1 in every case"
    assert measured.loc[("T1", "0"), "rise"] == pytest.approx(0.4 / 3)
    assert measured.loc[("T1", "0"), "rise_best"] == pytest.approx(0.9 / 3)
    text = format_next_scan(measured.reset_index())
    assert "| no T1ce | 60 | " in text
    assert "| T1ce | 40 | " in text


def test_what_is_as_good_as_the_best_is_right():
    gains = fit_gains(planted())
    healthy = planted(3)
    healthy.frame["dice"] = 1.0
    measured = measure_next_scan(healthy, gains)
    assert (measured["right"] == 1).all()
    assert (measured["rise_best"] == 0).all()


def test_cases_that_lack_a_sequence_teach_nothing_here():
    frame = planted(5).frame
    lacking = frame[(frame["case"] != "4") | ~frame["subset"].str.contains("T2")]
    assert fit_gains(Scores(lacking)).cases == 4
    with pytest.raises(InputError, match="expected at least 2 of them, found 1"):
        fit_gains(Scores(frame[(frame["case"] == "0") | ~frame["subset"].str.contains("T2")]))


def test_the_refined_output_counts():
    frame = planted(4).frame
    both = Scores(pd.concat([frame.assign(output="refined"), frame.assign(output="student", dice=0.5)]))
    assert fit_gains(both) == fit_gains(planted(4))


def test_a_predictor_names_the_next_scan_of_a_case_and_has_nothing_to_ask_for_with_all_four():
    gains = fit_gains(planted())
    predictor = Predictor(SMML("tiny"), None, gains=Gains.from_dict(gains.to_dict()))
    assert predictor.next_scan("flair+t2").modality == "t1ce"
    assert predictor.next_scan(("t1ce",)) == gains.next_scan("t1ce")
    with pytest.raises(InputError, match="there is no further sequence to ask for"):
        predictor.next_scan("all")
    with pytest.raises(InputError, match="no row for FLAIR"):
        Gains(3, {}).expected("flair")
    assert "| ○ | ○ | ● | ○ | T1ce | +30.0 | 0.0 |" in format_gains(gains)
