"""Results side by side: the same cases and subsets, honest intervals, published figures only where they belong."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.errors import InputError
from smml.evaluation import Scores, bootstrap_mean, compare, format_comparison, published, summary_table
from smml.evaluation.bootstrap import bootstrap_mean_over_subsets
from smml.modalities import SUBSETS, subset_name

REGIONS = ("WT", "TC", "ET")


def made_scores(cases=("a", "b", "c"), subsets=("FLAIR", "T1ce+T2"), shift=0.0, seed=0) -> Scores:
    random = np.random.default_rng(seed)
    rows = [
        {"case": case, "subset": subset, "region": region, "dice": 0.5 + 0.3 * random.random() + shift, "hd95": 4.0}
        for case, subset, region in itertools.product(cases, subsets, REGIONS)
    ]
    return Scores(pd.DataFrame(rows))


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
    base = made_scores().frame
    for region in REGIONS:
        mean = base.loc[base["region"] == region, "dice"].mean()
        assert table.frame.loc["base", f"Dice {region}"] == pytest.approx(mean)
        columns = [f"Dice {region} {part}" for part in ("change", "low", "high")]
        # Paired: no scatter is left.
        assert table.frame.loc["better", columns].tolist() == [pytest.approx(0.1)] * 3
        assert table.frame.loc["base", columns].isna().all()
    assert "3 cases and 2 subsets" in table.protocol
    assert set(table.frame.dtypes) == {np.dtype(float)}, "numbers alone: no objects inside cells"


def test_only_what_all_results_have_is_compared():
    wide = made_scores(cases=("a", "b", "c", "d"), subsets=("FLAIR", "T1ce+T2", "T1"))
    narrow = made_scores(cases=("b", "c", "e"))
    table = compare({"wide": wide, "narrow": narrow}, resamples=10)
    rows = wide.frame
    chosen = rows[rows["case"].isin(["b", "c"]) & rows["subset"].isin(["FLAIR", "T1ce+T2"])]
    assert table.frame.loc["wide", "Dice WT"] == pytest.approx(chosen.loc[chosen["region"] == "WT", "dice"].mean())


def test_nothing_in_common_and_gaps_are_refused():
    with pytest.raises(InputError, match="share no case"):
        compare({"one": made_scores(), "two": made_scores(cases=("x",))})
    with pytest.raises(InputError, match="share no subset"):
        compare({"one": made_scores(), "two": made_scores(subsets=("T1",))})
    rows = made_scores().frame
    gap = Scores(rows[~((rows["case"] == "b") & (rows["region"] == "ET") & (rows["subset"] == "FLAIR"))])
    with pytest.raises(InputError, match="two: has no score of b, FLAIR, ET"):
        compare({"one": made_scores(), "two": gap})
    pair = without(made_scores(), ("b", "FLAIR"))
    for results in ({"one": made_scores(), "two": pair}, {"two": pair, "one": made_scores()}):
        with pytest.raises(InputError, match=r"two: has no score of b, FLAIR, which one has; score it too, or remove"):
            compare(results)


def without(scores: Scores, *pairs: tuple[str, str]) -> Scores:
    rows = scores.frame
    return Scores(rows[[pair not in pairs for pair in zip(rows["case"], rows["subset"], strict=True)]])


def test_cases_that_lack_sequences_are_compared_on_what_they_have():
    """Means are those of `smml evaluate`: over the cases that have a subset, then over subsets."""
    gaps = [("a", "T1ce+T2"), ("a", "T1"), ("b", "T1ce+T2")]
    subsets = ("FLAIR", "T1", "T1ce+T2")
    base = without(made_scores(subsets=subsets), *gaps)
    better = Scores(without(made_scores(subsets=subsets, shift=0.1), *gaps).frame.sample(frac=1, random_state=0))
    table = compare({"base": base, "better": better}, resamples=200)
    for region in REGIONS:
        mean = summary_table(base).loc["mean", f"Dice {region}"]
        assert table.frame.loc["base", f"Dice {region}"] == pytest.approx(mean)
        columns = [f"Dice {region} {part}" for part in ("change", "low", "high")]
        assert table.frame.loc["better", columns].tolist() == [pytest.approx(0.1)] * 3
    assert "3 cases and 3 subsets" in table.protocol
    assert "3 of 9 pairs of case and subset left out" in format_comparison(table)
    assert sorted(table.pairs) == sorted(set(zip(base.frame["case"], base.frame["subset"], strict=True)))


def test_the_interval_over_subsets_is_that_of_the_cases_means_where_nothing_is_missing():
    values = np.random.default_rng(0).standard_normal((30, 4))
    whole, plain = bootstrap_mean_over_subsets(values), bootstrap_mean(values.mean(1))
    assert whole.mean == pytest.approx(plain.mean)
    assert (whole.low, whole.high) == (pytest.approx(plain.low, abs=0.02), pytest.approx(plain.high, abs=0.02))
    values[:20, 0] = np.nan
    assert bootstrap_mean_over_subsets(values).mean == pytest.approx(np.nanmean(values, 0).mean())
    for odd in (np.full((2, 2), np.nan), np.array([[1.0, np.nan]]), np.array([[1.0, np.inf]]), np.ones(3)):
        with pytest.raises(InputError, match="finite or missing"):
            bootstrap_mean_over_subsets(odd)


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
    scores = Scores.read(path)
    assert list(scores.outputs()) == [""]
    assert scores.frame["subset"].tolist() == ["FLAIR+T2", "FLAIR+T1ce+T1+T2"]
    assert scores.frame["hd95"].isna().all()
    assert scores.protocol == "not stated"


def test_student_and_refined_of_one_file_are_two_results(tmp_path):
    parts = {"student": made_scores().frame, "refined": made_scores(shift=0.05).frame}
    both = Scores(pd.concat([part.assign(output=output) for output, part in parts.items()]))
    both.write(tmp_path / "scores.csv")
    outputs = Scores.read(tmp_path).outputs()
    assert sorted(outputs) == ["refined", "student"]
    change = compare({"student": outputs["student"], "refined": outputs["refined"]}).frame.loc["refined"]
    assert change["Dice WT change"] == pytest.approx(0.05)


@pytest.mark.parametrize("output", ["", " ", None])
def test_rows_with_a_blank_output_are_one_result(tmp_path, output):
    rows = made_scores().frame
    rows.assign(output=output).to_csv(tmp_path / "blank.csv", index=False)
    scores = Scores.read(tmp_path / "blank.csv")
    assert list(scores.outputs()) == [""]
    assert len(scores.outputs()[""].frame) == len(rows)
    both = pd.concat([rows.assign(output=output), rows.assign(output="student")])
    both.to_csv(tmp_path / "both.csv", index=False)
    outputs = Scores.read(tmp_path / "both.csv").outputs()
    assert {name: len(part.frame) for name, part in outputs.items()} == {"": 18, "student": 18}


def test_what_pandas_would_take_for_missing_is_read_as_it_stands(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text("case,subset,region,dice,hd95\nNA,t1,WT,0.5,nan\n007,t1,WT,1,n/a\nb,t1,WT,1,4.5\nc,t1,WT,1\n")
    scores = Scores.read(path).frame
    assert scores["case"].tolist() == ["NA", "007", "b", "c"]
    assert scores["hd95"].isna().tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,subset,region\na,flair,WT\n", "lacks the columns dice"),
        ("case,subset,region,dice\n", "holds no rows"),
        ("case,subset,region,dice\na,pet,WT,0.5\n", "row 2: unknown modality 'pet'"),
        ("case,subset,region,dice\na,flair,NCR,0.5\n", "unknown region 'NCR'"),
        ("case,subset,region,dice\na,flair,WT,0.5\nb,flair,WT,91.2\n", "row 3: Dice must lie in"),
        ("case,subset,region,dice\na,flair,WT,\n", "row 2: Dice must lie in"),
        ("case,subset,region,dice\na,flair,WT,0.5\n,flair,TC,0.5\n", "row 3: names no case"),
        ("case,subset,region,dice\na,,WT,0.5\n", "row 2: .*empty"),
        ("case,subset,region,dice\na,flair,,0.5\n", "unknown region ''"),
        ("case,subset,region,dice,hd95\na,flair,WT,0.5,\na,flair,TC,0.5,4 mm\n", "row 3: hd95 must .* found '4 mm'"),
        ("case,subset,region,dice,hd95\na,flair,WT,0.5,inf\n", "row 2: hd95 must be a distance in mm, found 'inf'"),
        ("case,subset,region,dice,hd95\na,flair,WT,0.5,-1\n", "row 2: hd95 must"),
        ("case,subset,region,dice,truth_ml\na,flair,WT,0.5,4 ml\n", "row 2: truth_ml must be a volume .* '4 ml'"),
        ("case,subset,region,dice\na,flair+t2,WT,0.5\na,t2+flair,WT,0.6\n", "stands there twice"),
    ],
)
def test_a_file_that_is_not_a_result_is_refused_with_the_place(tmp_path, text, said):
    path = tmp_path / "odd.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said) as error:
        Scores.read(path)
    assert str(path) in str(error.value)
    with pytest.raises(InputError, match="no such result"):
        Scores.read(tmp_path / "nothing.csv")


# ---------------------------------------------------------------- published figures


def pairs_of(cases) -> list[tuple[str, str]]:
    return list(itertools.product(cases, map(subset_name, SUBSETS)))


def test_published_figures_stand_beside_the_same_protocol_only():
    cases = [f"BraTS20_Training_{number:03d}" for number in range(100)]
    assert published("brats2020", pairs_of(cases))["mmFormer"] == (87.08, 78.69, 64.08)
    with pytest.raises(InputError, match="BraTS2021_00001 is not of BraTS 2020"):
        published("brats2020", pairs_of(["BraTS2021_00001", *cases[1:]]))
    with pytest.raises(InputError, match="means over 100 cases, these results over 99"):
        published("brats2020", pairs_of(cases[1:]))
    with pytest.raises(InputError, match="there are brats2020, brats2018, brats2015"):
        published("brats2023", pairs_of(cases))
    assert all("SMML" not in means for means in published("brats2020", pairs_of(cases)))


@pytest.mark.parametrize("left_out", [slice(0, 1), slice(1420, 1421), slice(0, 1500, 15)])
def test_published_figures_stand_beside_means_over_all_subsets_only(left_out):
    """One pair of the first or a late case, or one subset of all cases."""
    pairs = pairs_of([f"BraTS20_Training_{number:03d}" for number in range(100)])
    del pairs[left_out]
    with pytest.raises(InputError, match="means over all 15 subsets of sequences, these results have only 14 of case"):
        published("brats2020", pairs)


def test_published_figures_of_2015_know_the_names_that_find_cases_gives():
    cases = [f"HGG_brats_2013_pat{number:04d}_1" for number in range(10)]
    cases += [f"LGG_brats_tcia_pat{number}_0001" for number in range(10)]
    assert "RFNet" in published("brats2015", pairs_of(cases))
    assert "RFNet" in published("brats2015", pairs_of([case[4:] for case in cases]))
    with pytest.raises(InputError, match="HGG_brats_2015_pat00002_1 is not of BraTS 2015"):
        published("brats2015", pairs_of(["HGG_brats_2015_pat00002_1", *cases[1:]]))
