"""Result files of other tools, made here as their sources write them, read and compared with ours."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from smml.errors import InputError
from smml.evaluation import Scores, compare, format_comparison, read_named_results, read_result
from smml.evaluation.formats.cases import case_of
from smml.modalities import SUBSETS, subset_name

REGIONS = ("WT", "TC", "ET")
CASES = ("BraTS-GLI-00000-000", "BraTS-GLI-00002-001", "BraTS-GLI-00003-000")
# MiMoSe's order of names, and the 15 subsets in ours, as its masks have them.
MIMOSE_NAMES = {"t1ce": "t1c", "t1": "t1n", "flair": "t2f", "t2": "t2w"}
# The diagonal of 182 x 218 x 182 voxels, which MiMoSe puts in where one region is empty.
MIMOSE_PENALTY = 337.30105247389906


def ours(path, dice=0.8) -> Scores:
    """Our scores of all cases and subsets; ET is not there in the last case."""
    rows = []
    for case, subset, region in itertools.product(CASES, SUBSETS, REGIONS):
        absent = region == "ET" and case == CASES[-1]
        rows.append(
            {"case": case, "subset": subset_name(subset), "region": region, "dice": 1.0 if absent else dice}
            | {"hd95": 0.0 if absent else 4.0, "truth_ml": 0.0 if absent else 20.0, "predicted_ml": 0.0}
        )
    scores = Scores(pd.DataFrame(rows))
    scores.write(path)
    return scores


def mimose(path, dice=0.7, **changes) -> pd.DataFrame:
    """A file as ``mimose test`` writes it, Dice in float32 with 1e-8 in both sums; a false alarm of ET in one case."""
    rows = []
    for subset, case in itertools.product(SUBSETS, CASES):
        names = [other for name, other in MIMOSE_NAMES.items() if name in subset]
        row = {"subject": case, "modalities": "_".join(names)}
        alarm = case == CASES[-1]
        each = {"WT": dice, "TC": dice, "ET": 1e-8 / 812 if alarm else dice, "ETpp": 1.0 if alarm else dice}
        row |= {f"{region}_dice": float(np.float32(value)) for region, value in each.items()}
        row |= {f"{region}_hd95": MIMOSE_PENALTY if region == "ET" and alarm else 6.0 for region in each}
        rows.append(row)
    table = pd.DataFrame(rows).assign(**changes)
    table.to_csv(path, index=False)
    return table


def nnunet(path, dice=0.75, regions=("(1, 2, 3)", "(2, 3)", "(3,)"), **metrics) -> dict:
    """A ``summary.json`` as nnU-Net's evaluation of a folder writes it; ET of the last case is empty in both."""
    entries = []
    for case in CASES:
        each = {
            region: {"Dice": dice, "IoU": 0.6, "FN": 3, "FP": 5, "TN": 90, "TP": 12, "n_pred": 17, "n_ref": 15}
            | metrics
            for region in regions
        }
        if case == CASES[-1]:
            each[regions[-1]] = {"Dice": math.nan, "IoU": math.nan} | dict.fromkeys(
                ("FN", "FP", "TN", "TP", "n_pred", "n_ref"), 0
            )
        entries.append(
            {
                "metrics": each,
                "prediction_file": f"/out/{case}.nii.gz",
                "reference_file": f"/raw/labelsTr/{case}.nii.gz",
            }
        )
    content = {"foreground_mean": {"Dice": 0.7}, "mean": {}, "metric_per_case": entries}
    path.write_text(json.dumps(content, indent=4, sort_keys=True), encoding="utf-8")
    return content


def brats(path, **changes) -> pd.DataFrame:
    """A table as ``brats-parse-metrics seg`` writes it: a missed ET, one empty in both, a file that is missing."""
    rows = []
    for number, case in enumerate(CASES):
        row: dict = {"subject_id": f"{case}-seg.nii.gz"}
        for region in ("snfh", "et", "netc", "rc", "tc", "wt"):
            score = (0.9, 0.95, 3.0, 1, 0, 0)
            if region == "et":
                score = [score, (0.0, 0.0, 373, 0, 1, 1), (None, None, None, 0, 0, 0)][number]
            names = ("global_dsc", "global_nsd", "global_hd95", "all_instance_tp", "all_instance_fp", "all_instance_fn")
            row |= {f"{name}_{region}": value for name, value in zip(names, score, strict=True)}
            row[f"lesionwise_dsc_mean_{region}"] = 0.9
        rows.append(row)
    missing = {key: 373 if "hd95" in key else 0 for key in rows[0]} | {"subject_id": "BraTS-GLI-00009-000-seg.nii.gz"}
    table = pd.DataFrame([*rows, missing]).assign(**changes)
    summaries = [{"subject_id": name} | dict.fromkeys(table.columns[1:], 0.7) for name in ("mean", "std", "median")]
    pd.concat([table, pd.DataFrame(summaries)]).to_csv(path, index=False)
    return table


# ---------------------------------------------------------------- MiMoSe


def test_mimoses_scores_are_compared_with_ours(tmp_path):
    ours(tmp_path / "scores.csv")
    mimose(tmp_path / "results_per_subject.csv")
    results = read_named_results([str(tmp_path / "scores.csv"), f"mimose={tmp_path / 'results_per_subject.csv'}"])
    table = compare(results, resamples=20)
    row = table.frame.loc["mimose"]
    assert row["Dice WT"] == pytest.approx(0.7)
    assert row["Dice WT change"] == pytest.approx(-0.1)
    assert row["Dice ET"] == pytest.approx(1.4 / 3)
    assert row["HD95 ET"] == pytest.approx(6.0), "its penalty is no distance"
    assert table.left_out == {"WT": 0, "TC": 0, "ET": 15}
    # Whether ET is there it does not say; ours does.
    assert row[["present Dice ET", "absent ET", "false alarms ET"]].tolist() == [pytest.approx(0.7), 15, 15]
    text = format_comparison(table)
    assert "3 cases and 15 subsets" in text
    assert "Note: mimose: MiMoSe's scores of each subject" in text
    assert "(mimose counts 337.3 mm)" in text


def test_mimoses_subsets_are_told_by_the_names_of_2023(tmp_path):
    table = mimose(tmp_path / "m.csv")
    frame = read_result(tmp_path / "m.csv").frame
    assert table["modalities"].tolist()[:9:3] == ["t2w", "t1c", "t1n"]
    wanted = [(case, subset_name(subset)) for subset in SUBSETS for case in CASES]
    assert list(zip(frame["case"], frame["subset"], strict=True))[: len(wanted)] == wanted
    assert set(frame.loc[frame["dice"] < 0.1, "dice"]) == {0.0}, "1e-8 in its sums is no overlap"


def test_mimoses_first_files_without_distances_are_read(tmp_path):
    table = mimose(tmp_path / "m.csv")
    table.drop(columns=[name for name in table if name.endswith("hd95")]).to_csv(tmp_path / "m.csv", index=False)
    assert read_result(tmp_path / "m.csv").frame["hd95"].isna().all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"modalities": "t1c_pet"},
            r"row 2: unknown modality 'pet' in 't1c_pet'; expected t1c, t1n, t2f, t2w joined by",
        ),
        ({"modalities": ""}, "row 2: unknown modality ''"),
        ({"WT_dice": 91.2}, r"row 2: Dice must lie in \[0, 1\], found '91.2' in column WT_dice; per cent / 100"),
        ({"ET_hd95": "far"}, "row 2: ET_hd95 must be a distance in mm, found 'far'"),
        ({"subject": " "}, "row 2: names no case"),
        ({"subject": "a"}, "a, T2 stands there twice"),
    ],
)
def test_a_wrong_cell_of_mimoses_is_told_with_its_place(tmp_path, changes, said):
    mimose(tmp_path / "m.csv", **changes)
    with pytest.raises(InputError, match=said) as error:
        read_result(tmp_path / "m.csv")
    assert str(tmp_path / "m.csv") in str(error.value)


# ---------------------------------------------------------------- nnU-Net


def test_nnunets_summary_is_compared_with_ours_in_the_subset_that_the_user_names(tmp_path):
    ours(tmp_path / "scores.csv")
    nnunet(tmp_path / "summary.json")
    results = read_named_results([f"ours={tmp_path}", f"nnunet={tmp_path / 'summary.json'}@t2+flair"])
    table = compare(results, resamples=20)
    row = table.frame.loc["nnunet"]
    assert table.pairs == [(case, "FLAIR+T2") for case in CASES]
    assert row[["Dice WT", "Dice TC"]].tolist() == [0.75, 0.75]
    assert row["Dice ET"] == pytest.approx((0.75 + 0.75 + 1) / 3), "both empty is 1 in the literature, NaN there"
    assert row["present Dice ET"] == 0.75
    assert row[["HD95 WT", "no HD95 WT"]].isna().all()
    assert table.frame.loc["ours", "HD95 WT"] == 4.0
    notes = " ".join(table.notes)
    assert "14 subsets of ours" in notes
    assert "given FLAIR+T2; WT from (1, 2, 3), TC from (2, 3), ET from (3,); both empty" in notes


def test_nnunet_tells_by_itself_which_regions_are_there(tmp_path):
    nnunet(tmp_path / "summary.json")
    row = compare(read_named_results([f"{tmp_path / 'summary.json'}@all"]), resamples=20).frame.iloc[0]
    assert row[["present ET", "absent ET", "false alarms ET", "missed ET"]].tolist() == [2, 1, 0, 0]
    nnunet(tmp_path / "summary.json", dice=0.0, n_ref=0)
    row = compare(read_named_results([f"{tmp_path / 'summary.json'}@all"]), resamples=20).frame.iloc[0]
    assert row[["present ET", "absent ET", "false alarms ET"]].tolist() == [0, 3, 2]
    assert np.isnan(row["false alarm ml ET"]), "voxels of unknown size are no ml"


@pytest.mark.parametrize("regions", [("(1, 2, 3, 4)", "(1, 3, 4)", "4"), ("(1, 2, 3)", "(1, 3)", "3")])
def test_of_regions_inside_one_another_the_largest_is_wt_in_any_numbering(tmp_path, regions):
    content = nnunet(tmp_path / "s.json", regions=regions)
    for entry in content["metric_per_case"]:
        for number, region in enumerate(regions):
            entry["metrics"][region] |= {"Dice": 0.1 * (number + 1), "n_ref": 5}
    (tmp_path / "s.json").write_text(json.dumps(content), encoding="utf-8")
    frame = read_result(tmp_path / "s.json", "all").frame
    assert frame.groupby("region")["dice"].first().to_dict() == pytest.approx({"WT": 0.1, "TC": 0.2, "ET": 0.3})


def test_a_network_trained_on_labels_is_compared_in_et_alone(tmp_path):
    ours(tmp_path / "scores.csv")
    nnunet(tmp_path / "summary.json", regions=("1", "2", "3"))
    table = compare(read_named_results([f"ours={tmp_path}", f"labels={tmp_path / 'summary.json'}@all"]), resamples=20)
    assert table.frame.loc["labels", "Dice ET"] == pytest.approx(2.5 / 3)
    assert table.frame.loc["labels", ["Dice WT", "Dice TC", "Dice WT change"]].isna().all()
    assert "labels has no scores of WT, TC" in table.notes


def test_fifteen_nnunets_are_one_result(tmp_path):
    ours(tmp_path / "scores.csv")
    arguments = [f"ours={tmp_path}"]
    for number, subset in enumerate(("t1", "flair+t2", "all")):
        nnunet(tmp_path / f"{number}.json", dice=0.1 * number + 0.1)
        arguments.append(f"nnunet={tmp_path / f'{number}.json'}@{subset}")
    table = compare(read_named_results(arguments), resamples=20)
    assert list(table.frame.index) == ["ours", "nnunet"]
    assert table.frame.loc["nnunet", "Dice WT"] == pytest.approx(0.2)
    assert {subset for _, subset in table.pairs} == {"T1", "FLAIR+T2", "FLAIR+T1ce+T1+T2"}
    with pytest.raises(InputError, match="two results are called 'nnunet'"):
        read_named_results([*arguments, arguments[1]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("metric_per_case"), "holds no metric_per_case; expected nnU-Net's summary.json"),
        (lambda content: content["metric_per_case"].clear(), "holds no metric_per_case"),
        (lambda content: content["metric_per_case"][1].pop("metrics"), "entry 2 of metric_per_case has no metrics"),
        (lambda content: content["metric_per_case"].append(content["metric_per_case"][0]), "stands in entry 1 too"),
        (lambda content: content["metric_per_case"][1]["metrics"].pop("(2, 3)"), r"entry 2 .*\(2, 3\): Dice must lie"),
        (
            lambda content: content["metric_per_case"][1]["metrics"]["(2, 3)"].update(Dice=71.0),
            rf"entry 2 of metric_per_case \({CASES[1]}\), \(2, 3\): Dice must lie in .*, found 71.0; per cent / 100",
        ),
        (
            lambda content: content["metric_per_case"][0]["metrics"]["(2, 3)"].pop("n_ref"),
            "n_ref must be a number of voxels, found None",
        ),
        (
            lambda content: [entry["metrics"].pop("(3,)") for entry in content["metric_per_case"]],
            r"holds scores of \(1, 2, 3\), \(2, 3\); expected three regions inside one another",
        ),
    ],
)
def test_a_summary_that_is_not_nnunets_is_refused_with_the_place(tmp_path, change, said):
    content = nnunet(tmp_path / "summary.json")
    change(content)
    (tmp_path / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=said) as error:
        read_result(tmp_path / "summary.json", "all")
    assert str(tmp_path / "summary.json") in str(error.value)


@pytest.mark.parametrize("regions", [("1", "2"), ("1", "2", "4"), ("(1, 2)", "(2, 3)", "3"), ("wt", "tc", "et"), ()])
def test_regions_that_are_not_inside_one_another_are_not_guessed_at(tmp_path, regions):
    entry = {"reference_file": "a.nii.gz", "metrics": {region: {"Dice": 0.5, "n_ref": 1} for region in regions}}
    (tmp_path / "s.json").write_text(json.dumps({"metric_per_case": [entry]}), encoding="utf-8")
    with pytest.raises(InputError, match="expected three regions inside one another"):
        read_result(tmp_path / "s.json", "all")


def test_a_file_that_is_no_json_is_told(tmp_path):
    (tmp_path / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not a JSON file"):
        read_result(tmp_path / "summary.json", "all")


# ---------------------------------------------------------------- brats-evaluation


def test_the_challenges_scores_are_compared_with_ours(tmp_path):
    ours(tmp_path / "scores.csv")
    brats(tmp_path / "seg.csv")
    table = compare(read_named_results([f"ours={tmp_path}", f"brats={tmp_path / 'seg.csv'}@all"]), resamples=20)
    row = table.frame.loc["brats"]
    assert row[["Dice WT", "Dice TC"]].tolist() == [pytest.approx(0.9)] * 2
    assert row["Dice ET"] == pytest.approx((0.9 + 0 + 1) / 3), "blank is empty in both, which counts 1"
    assert row["missed ET"] == 1
    assert row["HD95 ET"] == pytest.approx((3 + 0) / 2), "a penalty is no distance"
    notes = " ".join(table.notes)
    assert "(brats counts 373 mm)" in notes
    assert "1 case of brats" in notes, "one case of ours is none"


def test_of_the_challenges_scores_mean_std_and_median_are_no_cases(tmp_path):
    brats(tmp_path / "seg.csv")
    frame = read_result(tmp_path / "seg.csv", "all").frame
    assert set(frame["case"]) == {*CASES, "BraTS-GLI-00009-000"}
    et = frame[frame["region"] == "ET"].set_index("case")["present"]
    assert et[list(CASES)].tolist() == [1, 1, 0]
    assert np.isnan(et["BraTS-GLI-00009-000"]), "of a prediction that is missing the truth is not told"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"global_dsc_tc": 91.2}, r"row 2: Dice must lie in .*'91.2' in column global_dsc_tc"),
        ({"global_dsc_tc": ""}, "row 2: one of global_dsc_tc and global_hd95_tc is blank"),
        ({"global_hd95_wt": "x"}, "row 2: global_hd95_wt must be a distance in mm, found 'x'"),
        ({"subject_id": "a"}, "a stands there twice"),
        ({"subject_id": "mean"}, "holds no case but mean, std, median"),
    ],
)
def test_a_wrong_cell_of_the_challenges_is_told_with_its_place(tmp_path, changes, said):
    brats(tmp_path / "seg.csv", **changes)
    with pytest.raises(InputError, match=said) as error:
        read_result(tmp_path / "seg.csv", "all")
    assert str(tmp_path / "seg.csv") in str(error.value)


# ---------------------------------------------------------------- which form, which subset


def test_a_form_is_found_out_from_the_file(tmp_path):
    scores = ours(tmp_path / "scores.csv")
    nnunet(tmp_path / "summary.json")
    assert len(read_result(tmp_path).frame) == len(scores.frame), "ours first"
    (tmp_path / "scores.csv").unlink()
    assert read_result(tmp_path, "all").protocol.startswith("nnU-Net's"), "a folder of its predictions"
    (tmp_path / "odd.csv").write_text("patient,score\na,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"columns patient, score are of no known result; expected case,subset,region"):
        read_result(tmp_path / "odd.csv")
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="not a CSV file"):
        read_result(tmp_path / "empty.csv")
    (tmp_path / "typo.csv").write_text("case,subset,region\na,t1,WT\n", encoding="utf-8")
    with pytest.raises(InputError, match="lacks the columns dice"):
        read_result(tmp_path / "typo.csv")
    for missing in (tmp_path / "nothing.json", tmp_path / "nothing.csv"):
        with pytest.raises(InputError, match="no such result"):
            read_result(missing, "all")


def test_what_was_given_is_asked_for_where_a_file_does_not_say_it_and_only_there(tmp_path):
    nnunet(tmp_path / "summary.json")
    brats(tmp_path / "seg.csv")
    mimose(tmp_path / "m.csv")
    ours(tmp_path / "scores.csv")
    for name in ("summary.json", "seg.csv"):
        with pytest.raises(InputError, match=f"does not write which sequences .* as in {name}@all or {name}@flair"):
            read_result(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}@pet: unknown modality 'pet'"):
            read_result(tmp_path / name, "pet")
    for name in ("m.csv", "scores.csv"):
        with pytest.raises(InputError, match="says of every row which sequences were given; leave @all out"):
            read_result(tmp_path / name, "all")


def test_a_path_with_an_at_or_an_equals_sign_is_a_path(tmp_path):
    for folder in ("lr=0.1", "run@2", "a=b@t1"):
        (tmp_path / folder).mkdir()
        ours(tmp_path / folder / "scores.csv")
        assert list(read_named_results([str(tmp_path / folder)])) == [folder]
        assert list(read_named_results([f"x={tmp_path / folder}", str(tmp_path / folder / "scores.csv")])) == [
            "x",
            "scores",
        ]
    with pytest.raises(InputError, match=r"run@2/nothing\.csv: no such result"):
        read_named_results([f"{tmp_path / 'run@2' / 'nothing.csv'}"])
    nnunet(tmp_path / "run@2" / "summary.json")
    assert list(read_named_results([f"{tmp_path / 'run@2' / 'summary.json'}@t1"])) == ["summary"]


def test_files_that_say_themselves_what_was_given_are_not_made_one(tmp_path):
    """A name that is given twice by mistake, as of two runs on other subsets, must not make a mixture."""
    rows = ours(tmp_path / "scores.csv").frame
    for number, subset in enumerate(("T1", "T2")):
        Scores(rows[rows["subset"] == subset]).write(tmp_path / f"{number}.csv")
    with pytest.raises(InputError, match="two results are called 'a'; name them"):
        read_named_results([f"a={tmp_path / '0.csv'}", f"a={tmp_path / '1.csv'}"])


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("BraTS-GLI-00000-000-seg.nii.gz", "BraTS-GLI-00000-000"),
        ("/a/b/BraTS20_Training_001_seg.nii", "BraTS20_Training_001"),
        (r"C:\data\BRATS_001.nii.gz", "BRATS_001"),
        ("BRATS_001", "BRATS_001"),
        ("sub.01.mha", "sub.01"),
    ],
)
def test_the_name_of_a_file_tells_its_case(name, case):
    assert case_of(name) == case
