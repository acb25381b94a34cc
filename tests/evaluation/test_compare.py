"""Results side by side: the same cases and subsets, honest intervals, published figures only where they belong."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.errors import InputError
from smml.evaluation import bootstrap_mean, compare, format_comparison, published, read_scores

REGIONS = ("WT", "TC", "ET")


def made_scores(cases=("a", "b", "c"), subsets=("FLAIR", "T1ce+T2"), shift=0.0, seed=0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    rows = [
        {"case": case, "subset": subset, "region": region, "dice": 0.5 + 0.3 * random.random() + shift, "hd95": 4.0}
        for case, subset, region in itertools.product(cases, subsets, REGIONS)
    ]
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- intervals


def test_the_interval_is_that_of_the_normal_theory_for_many_values():
    values = np.random.default_rng(0).standard_normal(400) + 2
    interval = bootstrap_mean(values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


def test_seeds_that_disagree_widen_the_interval():
    """Three seeds over the same cases: their scatter counts, however many cases there are."""
    cases = 0.01 * np.random.default_rng(0).standard_normal(200)
    agree = bootstrap_mean(np.stack([cases, cases, cases]), resamples=2000)
    disagree = bootstrap_mean(np.stack([cases - 0.2, cases, cases + 0.2]), resamples=2000)
    assert disagree.high - disagree.low > 5 * (agree.high - agree.low)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(0, 5))
def test_an_interval_holds_its_mean_and_depends_on_the_seed_alone(values, seed):
    interval = bootstrap_mean(np.array(values), resamples=200, seed=seed)
    assert min(values) - 1e-12 <= interval.low <= interval.high <= max(values) + 1e-12
    assert interval == bootstrap_mean(np.array(values), resamples=200, seed=seed)


@pytest.mark.parametrize("values", [[], [0.1, np.nan], [[0.1, np.inf]]])
def test_values_that_are_missing_are_refused(values):
    with pytest.raises(InputError, match="finite"):
        bootstrap_mean(np.array(values))


# ---------------------------------------------------------------- side by side


def test_means_and_changes_by_hand():
    table = compare({"base": made_scores(), "better": made_scores(shift=0.1)})
    base = made_scores()
    for region in REGIONS:
        mean = base.loc[base["region"] == region, "dice"].mean()
        assert table.loc["base", f"Dice {region}"] == pytest.approx(mean)
        change = table.loc["better", f"Dice {region} change"]
        assert change.mean == pytest.approx(0.1)
        assert (change.low, change.high) == (pytest.approx(0.1), pytest.approx(0.1))  # paired: no scatter is left
        assert table.loc["base", f"Dice {region} change"] is None
    assert "3 cases and 2 subsets" in table.attrs["protocol"]


def test_only_what_all_results_have_is_compared():
    wide = made_scores(cases=("a", "b", "c", "d"), subsets=("FLAIR", "T1ce+T2", "T1"))
    narrow = made_scores(cases=("b", "c", "e"))
    table = compare({"wide": wide, "narrow": narrow}, resamples=10)
    chosen = wide[wide["case"].isin(["b", "c"]) & wide["subset"].isin(["FLAIR", "T1ce+T2"])]
    assert table.loc["wide", "Dice WT"] == pytest.approx(chosen.loc[chosen["region"] == "WT", "dice"].mean())


def test_nothing_in_common_and_gaps_are_refused():
    with pytest.raises(InputError, match="share no case"):
        compare({"one": made_scores(), "two": made_scores(cases=("x",))})
    with pytest.raises(InputError, match="share no subset"):
        compare({"one": made_scores(), "two": made_scores(subsets=("T1",))})
    gap = made_scores()
    gap = gap[~((gap["case"] == "b") & (gap["region"] == "ET") & (gap["subset"] == "FLAIR"))]
    with pytest.raises(InputError, match="two: has no score of b, FLAIR, ET"):
        compare({"one": made_scores(), "two": gap})


def test_the_table_on_screen():
    text = format_comparison(
        compare({"base": made_scores(), "better": made_scores(shift=0.1)}), {"Other": (80, 70, 60)}
    )
    lines = text.splitlines()
    assert lines[2].startswith("| base | ")
    assert "(+10.0; +10.0 to +10.0)" in lines[3]
    assert lines[4] == "| Other (published) | 80.0 | 70.0 | 60.0 | – | – | – |"


# ---------------------------------------------------------------- files


def test_a_table_of_another_tool_is_read(tmp_path):
    path = tmp_path / "nnunet.csv"
    path.write_text("case,subset,region,dice\na,t2+FLAIR,WT,0.5\na,all,ET,1\n", encoding="utf-8")
    scores = read_scores(path)
    assert list(scores) == [""]
    assert scores[""]["subset"].tolist() == ["FLAIR+T2", "FLAIR+T1ce+T1+T2"]
    assert scores[""]["hd95"].isna().all()


def test_student_and_refined_of_one_file_are_two_results(tmp_path):
    both = pd.concat([made_scores().assign(output="student"), made_scores(shift=0.05).assign(output="refined")])
    both.to_csv(tmp_path / "scores.csv", index=False)
    scores = read_scores(tmp_path)
    assert sorted(scores) == ["refined", "student"]
    change = compare({"student": scores["student"], "refined": scores["refined"]}).loc["refined", "Dice WT change"]
    assert change.mean == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,subset,region\na,flair,WT\n", "lacks the columns dice"),
        ("case,subset,region,dice\n", "holds no rows"),
        ("case,subset,region,dice\na,pet,WT,0.5\n", "row 2: unknown modality 'pet'"),
        ("case,subset,region,dice\na,flair,NCR,0.5\n", "unknown region 'NCR'"),
        ("case,subset,region,dice\na,flair,WT,0.5\nb,flair,WT,91.2\n", "row 3: Dice must lie in"),
        ("case,subset,region,dice\na,flair,WT,\n", "row 2: Dice must lie in"),
        ("case,subset,region,dice\na,flair+t2,WT,0.5\na,t2+flair,WT,0.6\n", "stands there twice"),
    ],
)
def test_a_file_that_is_not_a_result_is_refused_with_the_place(tmp_path, text, said):
    path = tmp_path / "odd.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said) as error:
        read_scores(path)
    assert str(path) in str(error.value)
    with pytest.raises(InputError, match="no such result"):
        read_scores(tmp_path / "nothing.csv")


# ---------------------------------------------------------------- published figures


def test_published_figures_stand_beside_the_same_protocol_only():
    cases = [f"BraTS20_Training_{number:03d}" for number in range(100)]
    assert published("brats2020", cases)["mmFormer"] == (87.08, 78.69, 64.08)
    with pytest.raises(InputError, match="BraTS2021_00001 is not of BraTS 2020"):
        published("brats2020", ["BraTS2021_00001", *cases[1:]])
    with pytest.raises(InputError, match="means over 100 cases, these results over 99"):
        published("brats2020", cases[1:])
    with pytest.raises(InputError, match="there are brats2020, brats2018, brats2015"):
        published("brats2023", cases)
    assert all("SMML" not in means for means in published("brats2020", cases))
