"""Results side by side: the same cases and subsets, honest intervals, published figures only where they belong."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.errors import InputError
from smml.evaluation import Scores, bootstrap_mean, compare, format_comparison, published, summary_table
from smml.evaluation.bootstrap import bootstrap_mean_over_subsets, bootstrap_stratified_mean
from smml.evaluation.published import PROTOCOLS, Figure
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


SHARES = {"ill": 0.3, "well": 0.7}


def test_a_mean_by_shares_does_not_depend_on_how_many_of_each_kind_are_in_the_sample():
    ill, well = np.array([[4.0, 6.0], [5.0, 9.0]]), np.array([[1.0], [3.0]])
    once = bootstrap_stratified_mean(np.hstack([ill, well]), ["ill", "ill", "well"], SHARES)
    assert once.mean == pytest.approx(0.3 * 6 + 0.7 * 2)
    more = bootstrap_stratified_mean(np.hstack([well, ill, well]), ["well", "ill", "ill", "well"], SHARES)
    assert more.mean == pytest.approx(once.mean)


def test_only_what_differs_within_a_kind_or_between_seeds_widens_a_mean_by_shares():
    kinds = ["ill"] * 3 + ["well"] * 7
    between = np.where(np.array(kinds) == "ill", 10.0, 0.0)
    alike = bootstrap_stratified_mean(between, kinds, SHARES, resamples=300)
    assert (alike.low, alike.high) == pytest.approx((3, 3))
    seeds = bootstrap_stratified_mean(np.stack([between - 1, between + 1]), kinds, SHARES, resamples=300)
    assert (seeds.low, seeds.high) == pytest.approx((2, 4))
    plain = bootstrap_mean(between, resamples=300)
    assert plain.high - plain.low > 4


def test_a_mean_by_shares_has_the_interval_of_the_normal_theory_for_many_values():
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(8, 2, 100), random.normal(0, 1, 300)])
    interval = bootstrap_stratified_mean(values, ["ill"] * 100 + ["well"] * 300, SHARES, resamples=4000)
    half = 1.96 * np.hypot(0.3 * values[:100].std() / 10, 0.7 * values[100:].std() / 300**0.5)
    assert (interval.low, interval.high) == pytest.approx((interval.mean - half, interval.mean + half), abs=0.01)


@pytest.mark.parametrize(
    ("kinds", "shares"),
    [
        (["ill"], SHARES),
        (["ill", "well", "well"], {"ill": 0.3, "well": 0.6}),
        (["ill", "ill", "ill"], SHARES),
        (["ill", "well", "new"], SHARES),
    ],
    ids=["a case without a kind", "shares that are not whole", "a kind without a case", "a kind without a share"],
)
def test_kinds_and_shares_that_do_not_go_together_are_refused(kinds, shares):
    with pytest.raises(InputError, match="each of the 3 cases needs a kind, and each kind a share"):
        bootstrap_stratified_mean(np.arange(3.0), kinds, shares)


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


def test_visits_of_one_patient_make_no_interval_shorter():
    """Four copies of each patient tell no more than one."""
    once = [f"BraTS-GLI-{number:05d}" for number in range(30)]
    random = np.random.default_rng(0)
    values = dict(zip(once, random.normal(0.6, 0.1, (30, 2)), strict=True))

    def result(visits, better):
        rows = [
            {"case": f"{name}-{100 + visit}", "subset": subset, "region": region, "dice": value[better], "hd95": 4.0}
            for name, value in values.items()
            for visit in range(visits)
            for subset, region in itertools.product(("FLAIR", "T1ce+T2"), REGIONS)
        ]
        return Scores(pd.DataFrame(rows))

    parts = [f"Dice WT {part}" for part in ("change", "low", "high")]
    one, four = (compare({"a": result(n, 0), "b": result(n, 1)}).frame.loc["b", parts] for n in (1, 4))
    np.testing.assert_allclose(four.to_numpy(float), one.to_numpy(float), atol=2e-3)
    assert one.iloc[2] - one.iloc[1] > 0.05
    assert "over 30 patients, each with all visits" in compare({"a": result(4, 0), "b": result(4, 1)}).protocol


def test_the_interval_over_patients_with_visits_holds_the_truth_as_often_as_promised():
    random, held = np.random.default_rng(1), 0
    groups = [str(patient) for patient in range(30) for _ in range(3)]
    for trial in range(120):
        values = np.repeat(random.normal(size=30), 3)[:, None] + 0.3 * random.normal(size=(90, 2))
        interval = bootstrap_mean_over_subsets(values, groups=groups, resamples=400, seed=trial)
        held += interval.low <= 0 <= interval.high
    assert 0.88 <= held / 120 <= 0.99, "without the groups it holds in three of four"


def test_the_table_on_screen():
    text = format_comparison(
        compare({"base": made_scores(), "better": made_scores(shift=0.1)}),
        {"Other": Figure((80, 70, 60), "a/b, README.md, 2025-01-31")},
    )
    lines = text.splitlines()
    assert lines[2].startswith("| base | ")
    assert "nan" not in text
    assert "| better | WT | +10.0 | +10.0 | +10.0 |" in lines
    assert lines[4] == "| Other (published: a/b, README.md, 2025-01-31) | 80.0 | 70.0 | 60.0 | – | – | – |"


# ---------------------------------------------------------------- distances that are missing


def with_hd95(distances: dict[str, float], region: str = "WT", missed: float = np.nan) -> Scores:
    """Scores with these HD95 by case, "miss" for a case of which nothing is found; ``missed`` is its HD95."""
    rows = [
        {
            "case": case,
            "subset": "FLAIR",
            "region": one,
            "dice": 0.0 if distance == "miss" and one == region else 0.8,
            "hd95": (missed if distance == "miss" else distance) if one == region else 2.0,
            "truth_ml": 9.0,
            "predicted_ml": 0.0 if distance == "miss" and one == region else 8.0,
        }
        for case, distance in distances.items()
        for one in REGIONS
    ]
    return Scores(pd.DataFrame(rows))


FINDS = {"a": 10.0, "b": 10.0, "c": 60.0, "d": 60.0}
MISSES = FINDS | {"c": "miss", "d": "miss"}


def test_whoever_misses_the_hard_lesions_gains_no_hd95_by_it():
    """Two results that differ only in misses: the one that finds more is nowhere worse, and the misses are told."""
    for order in (("finds", "misses"), ("misses", "finds")):
        both = {"finds": with_hd95(FINDS), "misses": with_hd95(MISSES)}
        table = compare({name: both[name] for name in order}, resamples=10)
        frame = table.frame
        assert frame["HD95 WT"].to_dict() == dict.fromkeys(order, 10.0)
        assert table.left_out == {"WT": 2, "TC": 0, "ET": 0}
        assert frame["no HD95 WT"].to_dict() == {"finds": 0, "misses": 2}
        assert frame.loc["finds", "Dice WT"] > frame.loc["misses", "Dice WT"]
        text = format_comparison(table)
        assert "left out of 4: WT 2, TC 0, ET 0" in text
        assert "| misses | WT | 80.0 |" not in text
        assert "| misses | WT | 40.0 | 4 | 2 | 50.0 | 0 | 0 | – | – | 2 |" in text
        assert "| finds | WT | 80.0 | 4 | 0 | 0.0 | 0 | 0 | – | – | 0 |" in text


def test_a_penalty_and_a_blank_are_the_same_miss():
    """A penalty must not make a mean of 192 mm beside one that leaves such cases out, nor the other way round."""
    results = {
        "blank": with_hd95(FINDS | {"a": "miss"}),
        "challenge": with_hd95(MISSES, missed=373.1287),
        "older": with_hd95(FINDS | {"d": "miss"}, missed=374.0),
    }
    table = compare(results, resamples=10)
    assert table.frame["HD95 WT"].to_dict() == dict.fromkeys(results, 10.0), "case b alone has one in all"
    assert table.left_out["WT"] == 3
    assert table.frame["no HD95 WT"].to_dict() == {"blank": 1, "challenge": 2, "older": 1}
    assert table.notes == (
        "an HD95 where one region is empty is taken as none in every result (blank leaves it out; challenge counts "
        "373.13 mm; older counts 374 mm)",
    )
    finds = compare({"finds": with_hd95(FINDS), "challenge": results["challenge"]}, resamples=10)
    assert finds.frame["HD95 WT"].tolist() == [10.0, 10.0], "also where the other result has no miss at all"
    assert "(challenge counts 373.13 mm)" in finds.notes[0]


def test_a_distance_that_was_measured_is_no_penalty():
    """Disjoint regions in one brain are Dice 0 and lie up to its length apart; far voxels beside an overlap count."""
    measured = with_hd95({"a": 10.0, "b": 150.0})
    measured.frame.loc[measured.frame["case"] == "b", "dice"] = 0.0
    outlier = with_hd95({"a": 10.0, "b": 240.0})
    blank = with_hd95({"a": 10.0, "b": 20.0})
    for odd, mean in ((measured, 80.0), (outlier, 125.0)):
        table = compare({"odd": odd, "blank": blank}, resamples=10)
        assert table.frame.loc["odd", "HD95 WT"] == mean
        assert table.notes == ()


def test_a_result_without_distances_leaves_those_of_the_others():
    bare = with_hd95(FINDS)
    bare.frame["hd95"] = np.nan
    table = compare({"ours": with_hd95(MISSES), "bare": bare}, resamples=10)
    assert table.frame.loc["ours", "HD95 WT"] == 10.0
    assert table.frame.loc["bare", ["HD95 WT", "no HD95 WT"]].isna().all()
    assert "| bare | WT | +40.0 | +0.0 | +80.0 |" in format_comparison(table)


def test_where_no_case_has_a_distance_in_all_results_there_is_no_mean():
    one = with_hd95({"a": 10.0, "b": "miss"}, region="ET")
    two = with_hd95({"a": "miss", "b": 10.0}, region="ET")
    table = compare({"one": one, "two": two}, resamples=10)
    assert table.frame["HD95 ET"].isna().all()
    assert table.left_out == {"WT": 0, "TC": 0, "ET": 2}


def test_hd95_is_a_mean_over_subsets_however_many_cases_are_left_in_each():
    rows = [
        {"case": case, "subset": subset, "region": region, "dice": 0.5, "hd95": {"T1": 30.0, "T2": 3.0}[subset]}
        for case, subset, region in itertools.product("abc", ("T1", "T2"), REGIONS)
    ]
    gaps = Scores(pd.DataFrame(rows))
    gaps.frame.loc[(gaps.frame["subset"] == "T1") & (gaps.frame["case"] != "a"), "hd95"] = np.nan
    table = compare({"whole": Scores(pd.DataFrame(rows)), "gaps": gaps}, resamples=10)
    assert table.frame["HD95 TC"].tolist() == [16.5, 16.5]


# ---------------------------------------------------------------- overlap and false alarms apart


def mixed(*, called: bool, volumes: bool = True) -> Scores:
    """ET is there in case a and not in b and c; ``called`` in b, where it is not."""
    rows = []
    for case, region in itertools.product("abc", REGIONS):
        absent = region == "ET" and case != "a"
        alarm = called and case == "b" and absent
        rows.append(
            {"case": case, "subset": "T1", "region": region, "dice": (0.0 if alarm else 1.0) if absent else 0.6}
            | {"hd95": np.nan if alarm else 0.0, "truth_ml": 0.0 if absent else 7.0, "predicted_ml": 1.25 * alarm}
        )
    frame = pd.DataFrame(rows)
    return Scores(frame if volumes else frame.drop(columns=["truth_ml", "predicted_ml"]))


def test_overlap_and_false_alarms_stand_apart():
    table = compare({"quiet": mixed(called=False), "loud": mixed(called=True)}, resamples=10)
    frame = table.frame
    assert frame["Dice ET"].tolist() == [pytest.approx(2.6 / 3), pytest.approx(1.6 / 3)]
    assert frame["present Dice ET"].tolist() == [pytest.approx(0.6)] * 2, "the same overlap, whoever cries wolf"
    assert frame["false alarms ET"].tolist() == [0, 1]
    assert frame["absent ET"].tolist() == [2, 2]
    text = format_comparison(table)
    assert "Dice is the literature's mean, in which both empty counts 1 and a false alarm 0" in text
    assert "| loud | ET | 60.0 | 1 | 0 | 0.0 | 2 | 1 | 50.0 | 1.25 | 1 |" in text
    assert "| quiet | ET | 60.0 | 1 | 0 | 0.0 | 2 | 0 | 0.0 | – | 0 |" in text
    assert "| loud | WT | 60.0 | 3 | 0 | 0.0 | 0 | 0 | – | – | 0 |" in text


def test_a_truth_that_one_result_knows_serves_all_of_these_cases():
    table = compare({"theirs": mixed(called=True, volumes=False), "ours": mixed(called=False)}, resamples=10)
    assert table.frame.loc["theirs", ["present Dice ET", "false alarms ET"]].tolist() == [pytest.approx(0.6), 1]
    assert np.isnan(table.frame.loc["theirs", "false alarm ml ET"])
    assert table.notes == ()


def test_where_no_file_knows_the_truth_it_is_said():
    table = compare({"theirs": mixed(called=True, volumes=False)}, resamples=10)
    assert table.frame["present Dice ET"].isna().all()
    assert "of theirs it cannot be told which regions are there: no file says so" in format_comparison(table)


def test_results_against_another_truth_are_told():
    """The same identifiers, other images: simulated cases called like a data set's, or revised labels."""
    other = mixed(called=False)
    other.frame.loc[(other.frame["case"] == "c") & (other.frame["region"] == "WT"), "truth_ml"] = 7.5
    other.frame.loc[(other.frame["case"] == "b") & (other.frame["region"] == "ET"), ["truth_ml", "dice"]] = 0.5, 0.4
    (note,) = compare({"ours": mixed(called=False), "other": other}, resamples=10).notes
    assert note == (
        "other and ours were not scored against the same truth: 2 regions of cases differ, such as b, ET: 0 ml in "
        "ours, 0.5 ml in other"
    )
    other = mixed(called=False)
    other.frame["truth_ml"] *= 1.005
    assert compare({"ours": mixed(called=False), "rounded": other}, resamples=10).notes == ()


def test_a_region_that_only_one_result_has_is_told_also_without_volumes():
    told = [mixed(called=False), mixed(called=False)]
    for scores in told:
        scores.frame["present"] = scores.frame.pop("truth_ml") > 0
    told[1].frame.loc[(told[1].frame["case"] == "c") & (told[1].frame["region"] == "ET"), "present"] = True
    (note,) = compare({"ours": told[0], "other": told[1]}, resamples=10).notes
    assert note.endswith("1 regions of cases differ, such as c, ET: not there in ours, there in other")


# ---------------------------------------------------------------- what the results have in common


def test_what_is_left_out_because_not_all_results_have_it_is_told():
    wide = made_scores(cases=("a", "b", "c", "d"), subsets=("FLAIR", "T1ce+T2", "T1"))
    notes = compare({"wide": wide, "narrow": made_scores(cases=("b", "c", "e"))}, resamples=10).notes
    assert "left out: 2 cases of wide; 1 case of narrow; 1 subset of wide" in notes[0]


def test_cases_of_several_data_sets_are_told():
    cases = ("BraTS20_Training_001", "BraTS2021_00002", "BraTS2021_00003", "BRATS_001", "HGG_brats_2013_pat0001_1")
    notes = compare({"ours": made_scores(cases=cases), "theirs": made_scores(cases=cases)}, resamples=10).notes
    assert "brats2021 (2)" in notes[0]
    assert {"brats2020 (1)", "msd (1)", "brats2015 (1)"} <= set(notes[0].partition(": ")[2].split(", "))
    with pytest.raises(
        InputError, match=r"share no case \(ours has BraTS20_Training_001 of brats2020; theirs has BraTS-"
    ):
        compare({"ours": made_scores(cases=cases[:1]), "theirs": made_scores(cases=("BraTS-GLI-00001-000", "x"))})


def test_a_region_that_a_result_lacks_altogether_stays_empty_in_its_row():
    rows = made_scores(shift=0.1).frame
    for order in (("ours", "labels"), ("labels", "ours")):
        both = {"ours": made_scores(), "labels": Scores(rows[rows["region"] == "ET"])}
        table = compare({name: both[name] for name in order}, resamples=10)
        assert table.frame.loc["labels", ["Dice WT", "HD95 WT"]].isna().all()
        assert table.frame.loc[order[1], "Dice ET change"] == pytest.approx(0.1 if order[1] == "labels" else -0.1)
        assert np.isnan(table.frame.loc[order[1], "Dice WT change"])
        assert "labels has no scores of WT, TC" in table.notes


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
    assert published("brats2020", pairs_of(cases))["mmFormer"].means == (87.08, 78.69, 64.08)
    with pytest.raises(InputError, match="BraTS2021_00001 is not of BraTS 2020"):
        published("brats2020", pairs_of(["BraTS2021_00001", *cases[1:]]))
    with pytest.raises(InputError, match="means over 100 cases, these results over 99"):
        published("brats2020", pairs_of(cases[1:]))
    with pytest.raises(InputError, match="there are brats2023, brats2020, brats2018, brats2015"):
        published("brats2025", pairs_of(cases))
    assert all("SMML" not in means for means in published("brats2020", pairs_of(cases)))


def test_published_figures_of_2023_are_of_its_test_split():
    cases = [f"BraTS-GLI-{number:05d}-000" for number in range(251)]
    assert published("brats2023", pairs_of(cases))["IM-Fuse"].means == (90.2, 85.5, 74.3)
    with pytest.raises(InputError, match="means over 251 cases, these results over 250"):
        published("brats2023", pairs_of(cases[1:]))


def test_every_published_figure_names_the_file_and_date_in_which_it_was_read():
    for protocol in PROTOCOLS.values():
        for method, figure in protocol.figures.items():
            assert re.fullmatch(r"[\w-]+/[\w-]+, [\w/.-]+\.md, 20\d\d-\d\d-\d\d", figure.source), (method, figure)
            assert all(20 < value < 100 for value in figure.means)


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
