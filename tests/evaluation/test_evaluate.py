"""The scores of a model over cases and subsets, and the table made of them."""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from smml.data import Case
from smml.data.labels import BRATS_2023
from smml.data.layouts import CaseFiles, ImageSource, find_cases
from smml.errors import InputError
from smml.evaluation import Scores, evaluate, format_table, summary_table, write_report
from smml.evaluation.evaluate import _fingerprint, protocol
from smml.evaluation.report import check_report
from smml.inference import Segmentation
from smml.locks import claimed
from smml.modalities import MODALITIES, SUBSETS, subset_name
from smml.models.decision import ExpectedDice


class Oracle:
    """Stands in for a predictor: knows ED with FLAIR or T2 only, and ET with T1ce only."""

    scheme = BRATS_2023
    decision = None

    def encode(self, case):
        return case

    def segment_all(self, case, subsets, *, branches=False):
        return (self.segment(case, subset) for subset in subsets)

    def segment(self, case, names):
        labels = case.label.copy()
        if "t1ce" not in names:
            labels[labels == 3] = 1
        if not {"flair", "t2"} & set(names):
            labels[labels == 2] = 0
        return Segmentation(labels, np.empty(0), case.affine, names, case.layout)


def made_case(name="a", modalities=MODALITIES, et=True):
    label = np.zeros((12, 12, 12), np.uint8)
    label[2:10, 2:10, 2:10] = 2
    label[4:8, 4:8, 4:8] = 3 if et else 1
    volumes = {m: np.ones(label.shape, np.float32) for m in modalities}
    return Case(name, volumes, label, np.diag([2.0, 2.0, 2.0, 1.0]), "brats2021")


@pytest.fixture(scope="module")
def scores():
    return evaluate(Oracle(), [made_case("a"), made_case("b", et=False)], progress=False)


def test_a_row_for_each_case_subset_and_region(scores):
    rows = scores.frame
    assert len(rows) == 2 * 15 * 3
    assert set(rows["subset"]) == {subset_name(subset) for subset in SUBSETS}
    assert rows.loc[rows["case"] == "a", "truth_ml"].max() == pytest.approx(512 * 8 / 1000)


def test_the_table_has_the_fields_order_and_means_by_hand(scores):
    table = summary_table(scores)
    assert list(table.index) == [subset_name(subset) for subset in SUBSETS] + ["mean"]
    assert (table.loc["FLAIR+T1ce+T1+T2", ["Dice WT", "Dice TC", "Dice ET"]] == 1).all()
    # T1ce alone: the core without the oedema. WT: 64 of 512 voxels found.
    assert table.loc["T1ce", "Dice WT"] == pytest.approx(2 * 64 / (64 + 512))
    # Without T1ce: ET of case a is missed (0), case b has none and none is found (1).
    assert table.loc["FLAIR", "Dice ET"] == pytest.approx(0.5)
    assert table.loc["mean", "Dice ET"] == pytest.approx((8 * 1 + 7 * 0.5) / 15)


def test_the_protocol_names_the_rule_of_the_labels_and_is_silent_of_the_argmax():
    rule = ExpectedDice({"WT": 2.0, "TC": 0.5, "ET": 0.25})
    said = (
        "labels of the greatest expected Dice, without parts of which less is expected than (ml) WT 2, TC 0.5, ET 0.25;"
    )
    assert said in protocol(3, decision=rule)
    assert "expected" not in protocol(3)


def test_an_observer_is_told_of_each_segmentation_of_each_case():
    told, cases = [], [made_case("a"), made_case("b", modalities=("flair", "t1"))]
    evaluate(Oracle(), cases, observe=lambda case, result: told.append((case, result.subset)), progress=False)
    expected = [(cases[0], subset) for subset in SUBSETS]
    expected += [(cases[1], subset) for subset in SUBSETS if set(subset) <= {"flair", "t1"}]
    assert [(case.id, subset) for case, subset in told] == [(case.id, subset) for case, subset in expected]
    assert all(one is two for (one, _), (two, _) in zip(told, expected, strict=True))


def test_distances_that_do_not_exist_are_left_out_and_counted(scores):
    table = summary_table(scores)
    assert table.loc["FLAIR", "HD95 left out"] == 1
    assert table.loc["FLAIR", "HD95 ET"] == 0, "case b: both empty"
    assert table.loc["mean", "HD95 left out"] == 7
    penalised = evaluate(Oracle(), [made_case()], ["flair"], one_empty=373.13, progress=False)
    assert summary_table(penalised).loc["FLAIR", "HD95 ET"] == pytest.approx(373.13)


def test_a_small_et_that_is_not_there_costs_nothing_once_it_is_relabelled():
    class Alarmed(Oracle):
        def segment(self, case, names):
            result = super().segment(case, names)
            # 27 voxels of 8 mm3.
            result.labels[4:7, 4:7, 4:7] = 3
            return result

    rows = evaluate(Alarmed(), [made_case(et=False)], ["all"], progress=False).frame.set_index("region")
    assert rows.loc["ET", ["dice", "dice_post"]].tolist() == [0, 1]
    assert rows.loc["WT", ["dice", "dice_post"]].tolist() == [1, 1]
    assert rows.loc["TC", ["dice", "dice_post"]].tolist() == [1, 1]


def test_a_case_that_lacks_sequences_is_scored_on_what_it_has():
    scores = evaluate(Oracle(), [made_case(modalities=("flair", "t1"))], progress=False)
    assert set(scores.frame["subset"]) == {"FLAIR", "T1", "FLAIR+T1"}
    assert list(summary_table(scores).index) == ["T1", "FLAIR", "FLAIR+T1", "mean"]


def test_the_written_table_shows_protocol_dots_and_per_cent(scores, tmp_path):
    csv, markdown, _ = write_report(scores, tmp_path / "new", "a model on simulated cases")
    text = markdown.read_text(encoding="utf-8")
    assert f"Protocol: {scores.protocol}. " in text
    assert "2 cases" in scores.protocol
    assert "left out" in text
    assert "| ○ | ● | ○ | ○ | 22.2 |" in text
    back = Scores.read(csv, scores.protocol)
    assert len(back.frame) == len(scores.frame)
    pd.testing.assert_frame_equal(summary_table(back), summary_table(scores), check_exact=False, rtol=1e-5)


def test_a_missing_distance_is_a_dash_not_a_number():
    scores = evaluate(Oracle(), [made_case()], ["flair"], progress=False)
    assert math.isnan(summary_table(scores).loc["FLAIR", "HD95 ET"])
    assert "–" in format_table(summary_table(scores))


def test_what_cannot_be_scored_is_refused_before_the_first_case_is_segmented(monkeypatch):
    """Sorted last, a single such case would cost the hours spent on all before it."""
    from dataclasses import replace

    monkeypatch.setattr(Oracle, "segment", lambda *_: pytest.fail("a case was segmented"))
    source = {"flair": ImageSource(Path("never_read_flair.nii.gz"))}
    for last, said in (
        (replace(made_case("z"), label=None), "case z: has no segmentation"),
        (CaseFiles("z", "brats2021", source), "case z: has no segmentation"),
        (replace(made_case("z"), layout="brats2015"), "5 classes"),
        (CaseFiles("z", "brats2015", source, Path("never_read_seg.nii.gz")), "5 classes"),
    ):
        with pytest.raises(InputError, match=said):
            evaluate(Oracle(), [made_case("a"), last], progress=False)


def test_a_place_that_cannot_take_the_report_is_told_beforehand_and_nothing_is_left(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    (tmp_path / "odd" / "table.md").mkdir(parents=True)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for place, said in (
        ("file", "Not a directory"),
        ("file/below", "Not a directory"),
        ("odd", "found a folder"),
        ("broken", "No such file"),
    ):
        with pytest.raises(InputError, match=said) as error:
            check_report(tmp_path / place)
        assert str(tmp_path / place) in str(error.value)
    before = sorted(tmp_path.rglob("*"))
    check_report(tmp_path / "new" / "below")
    check_report(tmp_path)
    monkeypatch.chdir(tmp_path)
    check_report("evaluation")
    assert sorted(tmp_path.rglob("*")) == before


def test_unusable_input_is_refused_by_name():
    from dataclasses import replace

    with pytest.raises(InputError, match="no cases"):
        evaluate(Oracle(), [], progress=False)
    with pytest.raises(InputError, match="case x: has no segmentation"):
        evaluate(Oracle(), [replace(made_case("x"), label=None)], progress=False)
    with pytest.raises(InputError, match="5 classes"):
        evaluate(Oracle(), [replace(made_case("x"), layout="brats2015")], progress=False)
    with pytest.raises(InputError, match="lack the columns"):
        summary_table(Scores(pd.DataFrame({"case": []})))


class Stopping(Oracle):
    """An oracle that is stopped at a case, as by SIGKILL: whatever the process had in memory is gone."""

    prior = None

    def __init__(self, at=None, facts=()):
        self.at, self.encoded, self._facts = at, [], dict(facts)

    def facts(self):
        return {"model": "an oracle", "window": 48, **self._facts}

    def encode(self, case):
        if case.id == self.at:
            raise KeyboardInterrupt
        self.encoded.append(case.id)
        return case


THREE = [made_case("001"), made_case("b, c", ("flair", "t1")), made_case("d\u2028e", et=False)]


FEW = ("flair", "t1", "flair+t1ce")


def few(predictor, cases, **options):
    return evaluate(predictor, cases, FEW, progress=False, **options)


@pytest.mark.parametrize("torn", [0, 1, 60, 200])
def test_an_evaluation_that_was_stopped_goes_on_behind_the_last_whole_case(tmp_path, torn):
    whole, path = few(Stopping(), THREE, keep=tmp_path / "whole"), tmp_path / "part" / "scores.csv"
    content = (tmp_path / "whole" / "scores.csv").read_bytes()
    for stopped in THREE:
        with pytest.raises(KeyboardInterrupt):
            few(Stopping(stopped.id), THREE, keep=path.parent)
        assert content.startswith(path.read_bytes())
        path.write_bytes(content[: path.stat().st_size + torn])
    oracle = Stopping()
    again = few(oracle, THREE, keep=tmp_path / "part")
    assert oracle.encoded == [THREE[2].id], "what was scored is not scored again"
    pd.testing.assert_frame_equal(again.frame, whole.frame, check_exact=True)
    done = Stopping(at="001")
    finished = few(done, THREE, keep=tmp_path / "part")
    pd.testing.assert_frame_equal(finished.frame, whole.frame, check_exact=True)
    for scores, folder in ((whole, "whole"), (again, "part")):
        kept = (tmp_path / folder / "scores.csv").read_bytes()
        write_report(scores, tmp_path / folder, "an oracle")
        assert (tmp_path / folder / "scores.csv").read_bytes() == kept, "the report has the rows that were kept"
    names = ["evaluation.json", "scores.csv", "table.html", "table.md"]
    for name in names:
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "part").iterdir()) == names


def test_kept_rows_are_those_of_an_evaluation_that_keeps_none_to_six_digits(tmp_path):
    plain, kept = (evaluate(Stopping(), THREE, keep=keep, progress=False) for keep in (None, tmp_path))
    pd.testing.assert_frame_equal(kept.frame, plain.frame, rtol=1e-5)
    assert kept.protocol == plain.protocol


def test_scores_of_another_evaluation_are_neither_mixed_nor_lost(tmp_path):
    few(Stopping(), THREE, keep=tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = made_case("001", et=False)
    for cases, predictor, options, said in (
        (THREE, Stopping(facts={"window": 64}), {}, r"other window 48, here 64\)"),
        (THREE, Stopping(), {"one_empty": 373.13}, "other one_empty None, here 373.13"),
        (THREE, Stopping(), {"subsets": ["flair"]}, "other subsets"),
        (THREE, Stopping(), {"lesion_wise": "2023"}, "other lesion_wise None, here '2023'"),
        (THREE[:2], Stopping(), {}, "other cases"),
        ([other, *THREE[1:]], Stopping(), {}, "other cases"),
    ):
        with pytest.raises(InputError, match=said):
            evaluate(predictor, cases, **({"subsets": FEW, "keep": tmp_path, "progress": False} | options))
    known = json.loads(before["evaluation.json"])
    (tmp_path / "evaluation.json").write_text(json.dumps(known | {"mirrored": True}), encoding="utf-8")
    with pytest.raises(InputError, match="other mirrored True, here None"):
        few(Stopping(), THREE, keep=tmp_path)
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(InputError, match=r"no evaluation\.json beside it says of what"):
        few(Stopping(), THREE, keep=tmp_path)
    assert (tmp_path / "scores.csv").read_bytes() == before["scores.csv"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_note_of_what_was_evaluated_is_told(tmp_path, content):
    few(Stopping(), THREE, keep=tmp_path)
    (tmp_path / "evaluation.json").write_bytes(content)
    with pytest.raises(InputError, match=r"evaluation\.json: cannot be read"):
        few(Stopping(), THREE, keep=tmp_path)


def test_rows_that_were_edited_are_told_and_left_alone(tmp_path):
    few(Stopping(), THREE, keep=tmp_path)
    path = tmp_path / "scores.csv"
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in (
        (1, "case;dice"),
        (7, lines[8]),
        (9, lines[8].replace(",1,", ",one,")),
        (len(lines), lines[8]),
    ):
        path.write_text("\n".join([*lines[: number - 1], line, *lines[number:], ""]), encoding="utf-8")
        before = path.read_bytes()
        with pytest.raises(InputError, match=r"line \d+ is not what this evaluation wrote there"):
            few(Stopping(), THREE, keep=tmp_path)
        assert path.read_bytes() == before


def test_an_evaluation_that_came_to_nothing_binds_nobody(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        few(Stopping("001"), THREE, keep=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        few(Stopping("001"), THREE, keep=tmp_path, lesion_wise="2023")
    scores = few(Stopping(facts={"window": 64}), THREE[:1], keep=tmp_path)
    assert set(scores.frame["case"]) == {"001"}


# ---------------------------------------------------------------- lesion by lesion


def test_lesions_are_scored_by_the_rules_of_the_year_that_is_named():
    cases = [made_case("a"), made_case("b", et=False)]
    by_year = {
        year: evaluate(Oracle(), cases, ["flair"], lesion_wise=year, progress=False) for year in ("2023", "2026")
    }
    found = {year: scores.frame.set_index(["case", "region"]) for year, scores in by_year.items()}
    columns = ["lesion_rules", "lesions", "lesions_found", "false_lesions", "lesion_dice", "lesion_hd95", "lesion_nsd"]
    # From FLAIR the ET of case a is missed, and b has none.
    assert found["2023"].loc[("a", "ET"), columns].tolist() == ["2023", 1, 0, 0, 0, 374, 0]
    assert found["2026"].loc[("a", "ET"), columns].tolist() == ["2026", 1, 0, 0, 0, math.inf, 0]
    assert found["2023"].loc[("b", "ET"), columns].tolist() == ["2023", 0, 0, 0, 1, 0, 1]
    assert math.isnan(found["2026"].loc[("b", "ET"), "lesion_dice"])
    assert found["2026"].loc[("a", "WT"), columns].tolist() == ["2026", 1, 1, 0, 1, 0, 1]
    assert by_year["2023"].protocol.endswith("; lesion by lesion by the rules of 2023")
    with pytest.raises(InputError, match="lesion-wise rules: expected 2023 or 2026, found '2024'"):
        evaluate(Oracle(), cases, lesion_wise="2024", progress=False)


def test_lesions_that_nobody_asked_for_cost_nothing_and_change_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["smml.evaluation.evaluate"], "lesion_scores", lambda *_: pytest.fail("scored"))
    scores = few(Stopping(), THREE, keep=tmp_path)
    heads = "case,subset,modalities,output,region,dice,hd95,nsd,dice_post,truth_ml,predicted_ml"
    assert (tmp_path / "scores.csv").read_text(encoding="utf-8").split("\n")[0] == heads
    assert list(scores.frame.columns) == heads.split(",")
    assert "lesion" not in scores.protocol


def test_an_evaluation_with_lesions_goes_on_with_the_same_rules_alone(tmp_path):
    whole = few(Stopping(), THREE, keep=tmp_path / "whole", lesion_wise="2026")
    with pytest.raises(KeyboardInterrupt):
        few(Stopping(THREE[1].id), THREE, keep=tmp_path / "part", lesion_wise="2026")
    for other, said in (
        (None, "other lesion_wise '2026', here None"),
        ("2023", "other lesion_wise '2026', here '2023'"),
    ):
        with pytest.raises(InputError, match=said):
            few(Stopping(), THREE, keep=tmp_path / "part", lesion_wise=other)
    again = few(Stopping(), THREE, keep=tmp_path / "part", lesion_wise="2026")
    pd.testing.assert_frame_equal(again.frame, whole.frame, check_exact=True)
    assert np.isinf(whole.frame["lesion_hd95"]).any()
    assert (tmp_path / "part" / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()
    kept = (tmp_path / "part" / "scores.csv").read_bytes()
    assert write_report(again, tmp_path / "part", "an oracle")[0].read_bytes() == kept


def test_an_evaluation_from_before_lesions_were_an_option_goes_on(tmp_path):
    import json

    few(Stopping(), THREE, keep=tmp_path)
    known = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    del known["lesion_wise"]
    (tmp_path / "evaluation.json").write_text(json.dumps(known), encoding="utf-8")
    assert len(few(Stopping(at="001"), THREE, keep=tmp_path).frame) == (3 + 3 + 3) * 3 - 3


def test_a_disk_that_is_full_for_a_while_costs_no_score(tmp_path, monkeypatch):
    """Rows wait in memory and are written as soon as there is room; half of a row is never left in between."""
    import builtins

    whole = few(Stopping(), THREE, keep=tmp_path / "whole")
    path, full = tmp_path / "part" / "scores.csv", [0]

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def write(self, content):
            self.stream.write(content[:20])
            raise OSError(28, "No space left on device", str(path))

    def opened(file, *arguments, **options):
        stream = real(file, *arguments, **options)
        if file != path or not arguments or "b" not in arguments[0] or arguments[0] == "rb":
            return stream
        full[0] += 1
        return Full(stream) if full[0] in fails else stream

    real = builtins.open
    monkeypatch.setattr(builtins, "open", opened)
    fails = {2, 3}
    with pytest.warns(UserWarning, match=r"scores\.csv: cannot be written \(No space left on device\)") as warned:
        scores = few(Stopping(), THREE, keep=tmp_path / "part")
    assert len(warned) == 1
    pd.testing.assert_frame_equal(scores.frame, whole.frame, check_exact=True)
    assert path.read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()
    path.unlink()
    full[0], fails = 0, {1}
    with pytest.raises(InputError, match=r"scores\.csv: cannot be written \(No space left on device\); free some"):
        few(Stopping(), THREE, keep=tmp_path / "part")


def test_a_disk_that_stays_full_leaves_whole_rows_alone(tmp_path, files_of_at_most):
    scores = few(Stopping(), THREE, keep=tmp_path / "whole")
    whole = (tmp_path / "whole" / "scores.csv").read_bytes()
    first = whole.index(b'\n"b, c",') + 1  # where the second case begins
    with files_of_at_most(first + 20), pytest.warns(UserWarning, match="cannot be written"):
        found = few(Stopping(), THREE, keep=tmp_path / "part")
    pd.testing.assert_frame_equal(found.frame, scores.frame, check_exact=True)
    assert (tmp_path / "part" / "scores.csv").read_bytes() == whole[:first]


def test_files_that_cannot_be_read_are_told_before_the_first_case_is_segmented(small_cohort, tmp_path):
    import shutil

    from smml.data import find_cases

    data = shutil.copytree(small_cohort, tmp_path / "data")
    last = find_cases(data)[-1]
    for path in (last.images["t1"].path, last.label):
        whole = path.read_bytes()
        path.write_bytes(whole[:-100])
        oracle = Stopping()
        with pytest.raises(InputError, match=f"{path.name}: expected a complete"):
            evaluate(oracle, find_cases(data), keep=tmp_path / "scores", progress=False)
        assert not oracle.encoded
        assert not (tmp_path / "scores").exists(), "nor does it bind whoever mends the file"
        path.write_bytes(whole)


def test_labels_of_another_meaning_are_another_evaluation(tmp_path):
    few(Stopping(), THREE, keep=tmp_path)
    other = [dataclasses.replace(case, layout="brats-ped-2023") for case in THREE]
    with pytest.raises(InputError, match="other cases"):
        few(Stopping(), other, keep=tmp_path)


def test_a_label_that_was_corrected_is_another_evaluation(small_cohort, tmp_path):
    """Of an uncompressed file all is looked at: who corrects a label changes little of it."""
    (files, *_) = find_cases(shutil.copytree(small_cohort, tmp_path / "data"))
    image = nib.load(files.label)
    # As large as BraTS's own, where a look at 64 KB misses most corrections.
    stored = np.zeros((160, 160, 100), np.uint8)
    stored[tuple(slice(0, n) for n in image.shape)] = np.asarray(image.dataobj)
    plain, digests = files.label.with_name(files.label.name.removesuffix(".gz")), set()
    for place in range(20):
        stored[80, 80, place] = 4
        nib.save(nib.Nifti1Image(stored, image.affine), plain)
        digests.add(_fingerprint(dataclasses.replace(files, label=plain)))
    assert len(digests) == 20


def test_two_evaluations_never_write_one_folder(tmp_path):
    with claimed(tmp_path), pytest.raises(InputError, match="another run is writing it right now"):
        few(Stopping(), THREE, keep=tmp_path)
    assert not (tmp_path / "scores.csv").exists()
    few(Stopping(), THREE, keep=tmp_path)


def test_a_table_of_one_region_has_the_others_empty():
    """Results of nnU-Net that was trained on labels are of ET alone."""
    frame = few(Stopping(), THREE).frame
    table = summary_table(Scores(frame[frame["region"] == "ET"]))
    assert table[["Dice WT", "HD95 TC"]].isna().all(axis=None)
    assert table["Dice ET"].notna().all()
