"""A folder of cases in one call: what became of each, told once, whatever happens in between."""

import csv
import dataclasses
import os
import pickle
import shutil
import signal
import sys
import warnings
import weakref
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import smml.cohort.predict as module
from smml import cli
from smml.cohort import predict_cohort
from smml.cohort.page import SIDE, write_page, write_slice
from smml.cohort.rows import CohortRow, CohortTable
from smml.data import Case, find_cases, read_case, write_case
from smml.data.brain import Brain, warn_of_skull
from smml.data.labels import BRATS_2018, REGIONS
from smml.errors import InputError
from smml.figures.theme import REGION_COLOURS, rgb
from smml.inference import Predictor, Segmentation, VolumeIntervals
from smml.inference.predictor import scheme_that_fits
from smml.modalities import MODALITIES
from smml.models import SMML, StudentConfig
from smml.ranks import Ranks

NARROW = StudentConfig((2, 2, 4, 4, 8), token_width=12, heads=3, mlp_width=24, token_grid=2, refinement_widths=(2, 4))
OPTIONS = {"progress": False}
GOOD = ("BraTS-GLI-00005-000", *(f"Simulated_{number:05d}" for number in (0, 1, 2, 4, 7)))
BAD = ("Simulated_00003", "Simulated_00006")


class Thresholds:
    """Stands for a predictor without a network: classes by the intensity of the first sequence."""

    scheme, device = BRATS_2018, torch.device("cpu")
    save = Predictor.save

    def __init__(self, model: str = "made up", intervals: VolumeIntervals | None = None) -> None:
        self.model, self.intervals, self.seen = model, intervals, []

    def facts(self) -> dict:
        return {"model": self.model}

    def predict(self, case: Case) -> Segmentation:
        scheme_that_fits(case.layout, 4)
        self.seen.append(case.id)
        first = next(iter(case.volumes.values()))
        labels = np.digitize(first, np.quantile(first, (0.95, 0.97, 0.99))).astype(np.uint8)
        probabilities = np.eye(4, dtype=np.float32)[labels].transpose(3, 0, 1, 2)
        place = case.affine, case.modalities, case.layout
        return Segmentation(labels, probabilities, *place, header=case.header, intervals=self.intervals)


@pytest.fixture(scope="module")
def eight(small_cohort, tmp_path_factory) -> Path:
    """Eight cases: 3 is damaged, 4 has no T1, 5 is of another data set, 6 lies on two grids. Read it only."""
    root = tmp_path_factory.mktemp("cohorts") / "eight"
    three = find_cases(small_cohort)
    for number in range(8):
        files = three[number % 3]
        if number == 5:
            write_case(dataclasses.replace(read_case(files, label=False), id="00005", layout="brats2023"), root)
            continue
        name = f"Simulated_{number:05d}"
        (root / name).mkdir(parents=True)
        for path in files.paths:
            shutil.copy(path, root / name / path.name.replace(files.id, name))
    flair = root / BAD[0] / f"{BAD[0]}_flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:1000])
    (root / "Simulated_00004" / "Simulated_00004_t1.nii.gz").unlink()
    other = root / BAD[1] / f"{BAD[1]}_t2.nii.gz"
    image = nib.load(other)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), other)
    return root


@pytest.fixture
def three(small_cohort, tmp_path) -> Path:
    """Three cases that a test may change."""
    return Path(shutil.copytree(small_cohort, tmp_path / "three"))


@pytest.fixture
def run(monkeypatch, capsys):
    """The command, with ``Thresholds`` for a model; returns exit status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["smml", "predict", *map(str, arguments)])
        monkeypatch.setattr(cli, "_predictor", lambda *_, **__: Thresholds())
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return call


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of a cohort without times."""
    with open(folder / "cases.csv", newline="", encoding="utf-8") as stream:
        return [row | {"seconds": "-" if row["seconds"] else ""} for row in csv.DictReader(stream)]


def answers(folder: Path) -> dict[str, bytes]:
    """Every file but those with times in them, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("cases.csv", "cases.html")
    }


def test_with_align_a_case_on_two_grids_is_segmented_on_the_one_named(run, eight, tmp_path):
    status, out, err = run(eight, "--output", tmp_path / "out", "--align", "t1ce")
    assert status == 1, err
    rows = {row["case"]: row for row in table(tmp_path / "out")}
    assert [case for case, row in rows.items() if row["reason"]] == [BAD[0]]
    assert "7 of 8 cases segmented" in out
    assert "T2 to T1ce: resampled where its header puts it" in rows[BAD[1]]["warnings"]
    grid = nib.load(eight / BAD[1] / f"{BAD[1]}_t1ce.nii.gz")
    answer = nib.load(tmp_path / "out" / rows[BAD[1]]["output"])
    assert answer.shape == grid.shape
    assert np.allclose(answer.affine, grid.affine)
    # Those on one grid are what they are without it.
    run(eight, "--output", tmp_path / "plain")
    assert (
        answers(tmp_path / "out")["Simulated_00000/Simulated_00000_seg.nii.gz"]
        == (answers(tmp_path / "plain")["Simulated_00000/Simulated_00000_seg.nii.gz"])
    )
    status, _, err = run(eight, "--output", tmp_path / "out")
    assert status == 2
    assert "other align 't1ce', here None" in err


def test_alignment_of_a_cohort_names_one_sequence(three, tmp_path):
    with pytest.raises(InputError, match="register: expected a sequence to align to"):
        predict_cohort(Thresholds(), three, tmp_path / "out", register=True, **OPTIONS)
    with pytest.raises(InputError, match=r"align: expected one sequence, found FLAIR, T2"):
        predict_cohort(Thresholds(), three, tmp_path / "out", align="flair+t2", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_bad_case_is_a_line_with_its_reason_and_the_rest_goes_on(run, eight, tmp_path):
    status, out, err = run(eight, "--output", tmp_path / "out")
    assert status == 1, err
    rows = {row["case"]: row for row in table(tmp_path / "out")}
    assert list(rows) == sorted([*GOOD, *BAD])
    assert [case for case, row in rows.items() if not row["reason"]] == sorted(GOOD)
    assert "cannot be read" in rows[BAD[0]]["reason"]
    assert "expected the shape" in rows[BAD[1]]["reason"]
    assert "6 of 8 cases segmented" in out
    for case in BAD:
        assert f"{case}: {rows[case]['reason']}\n" in out
        assert rows[case]["output"] == rows[case]["sequences"] == rows[case]["WT ml"] == ""
    assert rows["Simulated_00004"]["sequences"] == "FLAIR+T1ce+T2"
    assert rows["Simulated_00000"]["sequences"] == "FLAIR+T1ce+T1+T2"
    assert "Traceback" not in err
    labels = {case: np.asarray(nib.load(tmp_path / "out" / rows[case]["output"]).dataobj) for case in GOOD}
    assert np.unique(labels["Simulated_00000"]).tolist() == [0, 1, 2, 4], "the values of its own data set"
    assert np.unique(labels[GOOD[0]]).tolist() == [0, 1, 2, 3]
    voxel = 6**3 / 1000
    assert float(rows["Simulated_00000"]["ET ml"]) == pytest.approx((labels["Simulated_00000"] == 4).sum() * voxel)
    assert float(rows["Simulated_00000"]["WT ml"]) == pytest.approx((labels["Simulated_00000"] > 0).sum() * voxel)
    page = (tmp_path / "out" / "cases.html").read_text(encoding="utf-8")
    assert page.count("<img") == 6
    assert rows[BAD[0]]["reason"].split(":")[1] in page
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == []


def test_a_cohort_is_found_again_as_labels_of_its_data_set(eight, tmp_path):
    predict_cohort(Thresholds(), eight, tmp_path / "out", **OPTIONS)
    good = next(files for files in find_cases(eight, mixed=True) if files.id == "Simulated_00000")
    assert good.label.relative_to(eight) == Path("Simulated_00000/Simulated_00000_seg.nii.gz")
    assert (tmp_path / "out" / good.label.relative_to(eight)).exists()


def test_the_labels_are_those_of_the_predictor(three, tmp_path):
    torch.manual_seed(0)
    predictor = Predictor(SMML(NARROW), (12.0, 12.0, 12.0), window=32)
    files = find_cases(three)[0]
    (row,) = predict_cohort(predictor, [files], tmp_path / "out", modalities="t1+flair", **OPTIONS)
    expected = BRATS_2018.encode(predictor.predict(read_case(files), "flair+t1").labels)
    assert len(np.unique(expected)) > 1
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out" / row.output).dataobj), expected)
    assert row.sequences == ("flair", "t1")
    assert row.seconds > 0


def test_a_case_that_lacks_a_sequence_that_was_asked_for_is_a_line(eight, tmp_path):
    rows = predict_cohort(Thresholds(), find_cases(eight, mixed=True), tmp_path, modalities=["t1"], **OPTIONS)
    failed = {row.case: row.reason for row in rows if row.reason}
    assert list(failed) == ["Simulated_00004"], "the others' T1 is whole, and nothing else is read"
    assert "T1 was asked for, but the case has only FLAIR, T1ce, T2" in failed["Simulated_00004"]


def test_a_case_of_other_classes_than_the_model_s_is_a_line(small_cohort_2015, tmp_path):
    (row,) = predict_cohort(Thresholds(), small_cohort_2015, tmp_path, **OPTIONS)
    assert "the layout brats2015 has 5" in row.reason


def test_a_second_call_does_what_is_not_complete_and_nothing_twice(eight, tmp_path):
    whole = shutil.copytree(eight, tmp_path / "data")
    out, first = tmp_path / "out", Thresholds()
    rows = predict_cohort(first, whole, out, **OPTIONS)
    assert sorted(first.seen) == sorted(GOOD)
    before, files = table(out), {path: path.stat().st_ino for path in out.rglob("*.nii.gz")}
    for _ in range(2):
        again = Thresholds()
        assert predict_cohort(again, whole, out, **OPTIONS)[1].reason == rows[1].reason
        assert again.seen == []
    assert table(out) == before
    assert {path: path.stat().st_ino for path in out.rglob("*.nii.gz")} == files
    name = f"{BAD[0]}_flair.nii.gz"
    shutil.copy(eight / "Simulated_00000" / "Simulated_00000_flair.nii.gz", whole / BAD[0] / name)
    next((out / "slices").glob("Simulated_00007*")).unlink()
    repaired = Thresholds()
    predict_cohort(repaired, whole, out, **OPTIONS)
    assert repaired.seen == [BAD[0], "Simulated_00007"]
    assert [row["case"] for row in table(out) if row["reason"]] == [BAD[1]]


@pytest.mark.parametrize("moment", ["predict", "save", "write_slice", "add", "write_page"])
def test_a_killed_call_leaves_whole_files_and_the_next_one_ends_as_if_nothing_had_been(three, tmp_path, moment):
    """At the second case; the page comes at the end."""
    options = OPTIONS | {"output_layout": "bids", "probabilities": tmp_path / "out"}
    predict_cohort(Thresholds(), three, tmp_path / "whole", **OPTIONS | {"output_layout": "bids"})
    predict_cohort(Thresholds(), three, tmp_path / "whole-p", **options | {"probabilities": tmp_path / "whole-p"})
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        try:
            _kill_at(moment, second=moment != "write_page")
            predict_cohort(Thresholds(), three, out, **options)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    done = 3 if moment == "write_page" else 1
    assert len(table(out)) == done
    left = answers(out)
    expected = answers(tmp_path / "whole-p")
    assert {name: left[name] for name in left if "/." not in f"/{name}"}.items() <= expected.items()
    again = Thresholds()
    rows = predict_cohort(again, three, out, **options)
    assert len(again.seen) == 3 - done
    assert [row.case for row in rows] == [row["case"] for row in table(out)]
    assert table(out) == table(tmp_path / "whole-p")
    assert answers(out) == expected
    assert (out / "cases.html").read_text(encoding="utf-8").count("<img") == 3
    assert answers(tmp_path / "whole").keys() == {name for name in expected if "probseg" not in name}


def _kill_at(moment: str, *, second: bool) -> None:
    """Let this process kill itself in the middle of a step."""
    owner = {"predict": Thresholds, "save": Thresholds, "add": CohortTable}.get(moment, module)
    step, calls = getattr(owner, moment), []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 1 + second:
            if moment == "save":  # between two files
                step(*arguments, **options | {"probabilities": None})
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments, **options)

    setattr(owner, moment, killed)


def test_answers_of_other_settings_are_neither_mixed_nor_lost(three, tmp_path):
    out = tmp_path / "out"
    predict_cohort(Thresholds(), three, out, **OPTIONS)
    before = answers(out)
    for model, options, said in (
        ("another", {}, "other model 'made up', here 'another'"),
        ("made up", {"modalities": "t1"}, "other modalities"),
        ("made up", {"output_layout": "bids"}, "other output_layout 'own', here 'bids'"),
        ("made up", {"probabilities": tmp_path / "p"}, "other probabilities False, here True"),
    ):
        with pytest.raises(InputError, match="holds the answers of another prediction") as refused:
            predict_cohort(Thresholds(model), three, out, **OPTIONS | options)
        assert said in str(refused.value)
    assert answers(out) == before
    assert not (tmp_path / "p").exists()


def test_answers_of_other_intervals_are_not_mixed_and_those_of_the_same_go_on(three, tmp_path):
    first, other = (
        VolumeIntervals(40, "student", {MODALITIES: dict.fromkeys(REGIONS, ((reach, 2.0), (reach, 3.0)))})
        for reach in (0.5, 1.0)
    )
    out, files = tmp_path / "out", find_cases(three)
    predict_cohort(Thresholds(intervals=first), files[:1], out, **OPTIONS)
    for wrong in (other, None):
        with pytest.raises(InputError, match=r"another prediction \(other intervals\)"):
            predict_cohort(Thresholds(intervals=wrong), files, out, **OPTIONS)
    again = Thresholds(intervals=VolumeIntervals.from_dict(first.to_dict()))
    predict_cohort(again, files, out, **OPTIONS)
    assert again.seen == [each.id for each in files[1:]]
    for row in table(out):
        volume = first.volume(MODALITIES, "ET", float(row["ET ml"]), 0.95)
        ends = [float(row[f"ET {end} 95 %"]) for end in ("from", "to")]
        assert ends == pytest.approx([volume.low, volume.high], abs=0.01)


def test_what_nobody_knows_who_made_is_not_written_over(three, tmp_path):
    out = tmp_path / "out"
    predict_cohort(Thresholds(), three, out, **OPTIONS)
    (out / "cohort.json").unlink()
    with pytest.raises(InputError, match=r"cases\.csv: is there already"):
        predict_cohort(Thresholds(), three, out, **OPTIONS)
    (out / "cases.csv").unlink()
    with pytest.raises(InputError, match=r"_seg\.nii\.gz: is there already"):
        predict_cohort(Thresholds(), three, out, **OPTIONS)


@pytest.mark.parametrize("text", ["", "case,dice\na,1\n", "{head}a,simulated,PET,,,,,,,,\n", "{head}a,simulated\n"])
def test_a_table_that_was_edited_is_told_and_left_alone(three, tmp_path, text):
    predict_cohort(Thresholds(), find_cases(three)[:1], tmp_path / "out", **OPTIONS)
    path = tmp_path / "out" / "cases.csv"
    head = path.read_text().splitlines(keepends=True)[0]
    path.write_text(text.format(head=head))
    with pytest.raises(InputError, match="is not what this command wrote"):
        predict_cohort(Thresholds(), three, tmp_path / "out", **OPTIONS)
    assert path.read_text() == text.format(head=head)


def test_other_images_under_the_same_names_are_refused(three, tmp_path):
    predict_cohort(Thresholds(), three, tmp_path / "out", **OPTIONS)
    one, two = find_cases(three)[:2]
    for name in one.images:
        shutil.copy(one.images[name].path, two.images[name].path)
    with pytest.raises(InputError, match=f"was made from other images of case {two.id}"):
        predict_cohort(Thresholds(), three, tmp_path / "out", **OPTIONS)
    (tmp_path / "out" / two.id / f"{two.id}_seg.nii.gz").unlink()
    again = Thresholds()
    predict_cohort(again, three, tmp_path / "out", **OPTIONS)
    assert again.seen == [two.id]


def test_several_folders_go_into_one_output(three, eight, tmp_path):
    out, one = tmp_path / "out", find_cases(eight, mixed=True)[0]
    predict_cohort(Thresholds(), three, out, **OPTIONS)
    rows = predict_cohort(Thresholds(), [one], out, **OPTIONS)
    assert [row.case for row in rows] == [one.id]
    assert [row["case"] for row in table(out)] == [one.id, *(files.id for files in find_cases(three))]


def test_an_answer_is_never_written_where_the_cases_are(run, three, monkeypatch):
    monkeypatch.setattr(module, "read_case", lambda *_, **__: pytest.fail("read"))
    before = answers(three)
    first = find_cases(three)[0]
    status, _, err = run(three, "--output", three)
    assert status == 2
    assert "is a file of case Simulated_00000, which would be lost" in err
    first.label.unlink()
    status, _, err = run(first.images["t1"].path.parent, "--output", three)
    assert "this name stands for label of a case" in err
    before.pop(str(first.label.relative_to(three)))
    assert answers(three) == before


def test_two_cases_never_share_an_answer(three, tmp_path):
    one = find_cases(three)[0]
    with pytest.raises(InputError, match="would hold the answers of two cases"):
        predict_cohort(Thresholds(), [one, one], tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_what_the_package_warns_of_stands_with_the_case_and_other_warnings_pass(three, tmp_path):
    class Warning_(Thresholds):
        def predict(self, case):
            if case.id.endswith("1"):
                warn_of_skull(case.id, {"t1": Brain(np.ones((20, 20, 20), bool), 0.0)}, 1.0)
            warnings.warn("somebody else's", UserWarning, stacklevel=1)
            return super().predict(case)

    with pytest.warns(UserWarning, match="somebody else's"):
        rows = predict_cohort(Warning_(), three, tmp_path / "out", **OPTIONS)
    assert [bool(row.warnings) for row in rows] == [False, True, False]
    assert "does not look skull-stripped" in table(tmp_path / "out")[1]["warnings"]
    assert "with a warning" in (tmp_path / "out" / "cases.html").read_text(encoding="utf-8")


def test_no_case_stays_in_memory_when_the_next_is_read(three, tmp_path, monkeypatch):
    alive = []

    def watched(*arguments, **options):
        assert [reference for reference in alive if reference() is not None] == []
        case = read_case(*arguments, **options)
        alive.append(weakref.ref(case))
        return case

    monkeypatch.setattr(module, "read_case", watched)
    predict_cohort(Thresholds(), three, tmp_path / "out", **OPTIONS)
    assert len(alive) == 3


def test_too_little_memory_for_one_case_is_its_reason_and_a_fault_of_the_program_is_none(three, tmp_path, monkeypatch):
    class Fails(Thresholds):
        error = MemoryError()

        def predict(self, case):
            if case.id.endswith("1"):
                raise self.error
            return super().predict(case)

    rows = predict_cohort(Fails(), three, tmp_path / "out", **OPTIONS)
    assert [row.reason.partition(":")[0] for row in rows] == ["", "too little memory", ""]
    monkeypatch.setattr(Fails, "error", KeyError("a fault"))
    with pytest.raises(KeyError):
        predict_cohort(Fails(), three, tmp_path / "other", **OPTIONS)


def test_a_place_that_takes_no_answer_ends_the_work_at_once(three, tmp_path, files_of_at_most):
    with files_of_at_most(600), pytest.raises(InputError, match="writing failed"):
        predict_cohort(Thresholds(), three, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / "cases.csv").exists(), "no row before its files"
    predict_cohort(Thresholds(), three, tmp_path / "out", **OPTIONS)
    assert len(table(tmp_path / "out")) == 3


def test_a_worker_that_outlives_a_call_takes_the_next_one_s_model(three, tmp_path, monkeypatch):
    """Both have the same facts."""
    monkeypatch.setattr(module, "in_processes", lambda work, jobs, workers: (work(*job) for job in jobs))
    reach = dict.fromkeys(REGIONS, ((0.5, 2.0), (1.0, 3.0)))
    predict_cohort(Thresholds(), three, tmp_path / "none", workers=2, **OPTIONS)
    told = Thresholds(intervals=VolumeIntervals(40, "student", {MODALITIES: reach}))
    predict_cohort(told, three, tmp_path / "some", workers=2, **OPTIONS)
    assert [row["ET to 90 %"] for row in table(tmp_path / "none")] == [""] * 3
    assert all(row["ET to 90 %"] for row in table(tmp_path / "some"))


def test_workers_give_what_one_process_gives(three, tmp_path, monkeypatch):
    """With the model as they are sent it; tests/test_workers.py has the processes."""
    asked = []

    def in_this_process(work, jobs, workers):
        asked.append(workers)
        return (work(*job) for job in reversed(jobs))

    monkeypatch.setattr(module, "in_processes", in_this_process)
    one = predict_cohort(Thresholds(), three, tmp_path / "one", **OPTIONS)
    two = predict_cohort(Thresholds(), three, tmp_path / "two", workers=2, **OPTIONS)
    assert asked == [2]
    assert answers(tmp_path / "one") == answers(tmp_path / "two")
    assert [row.case for row in one] == [row.case for row in two]
    assert table(tmp_path / "one") == table(tmp_path / "two")
    with pytest.raises(InputError, match="1 in each process of torchrun"):
        predict_cohort(Thresholds(), three, tmp_path / "one", workers=2, ranks=Ranks(0, 2), **OPTIONS)


def test_a_predictor_is_the_same_in_another_process():
    for predictor in (
        Predictor(SMML(NARROW), (12.0, 12.0, 12.0), window=32),
        Predictor.from_checkpoint("tiny-refined"),
    ):
        assert pickle.loads(pickle.dumps(predictor)).facts() == predictor.facts()


def test_probabilities_have_one_order_and_say_which(eight, tmp_path):
    predict_cohort(Thresholds(), eight, tmp_path / "out", probabilities=tmp_path / "p", **OPTIONS)
    for case, values in (("Simulated_00000/Simulated_00000_", (0, 1, 2, 4)), (f"{GOOD[0]}/{GOOD[0]}-", (0, 1, 2, 3))):
        image = nib.load(tmp_path / "p" / f"{case}seg_probabilities.nii.gz")
        labels = np.asarray(nib.load(tmp_path / "out" / f"{case}seg.nii.gz").dataobj)
        assert np.array_equal(np.asarray(values)[np.asarray(image.dataobj).argmax(-1)], labels)
        said = f"volumes: 0 background, 1 NCR/NET, 2 ED, {values[-1]} ET"
        assert bytes(image.header["descrip"]).rstrip(b"\0").decode() == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected a folder of cases, as in smml predict COHORT"),
        (["{data}", "--case", "{data}"], "found both"),
        (["{data}", "--layout", "brats-ped"], "expected names of brats-ped"),
        (["{data}", "--output-layout", "nnunet"], "choose from own, bids"),
        (["{data}", "--output-layout", "bids", "--probabilities", "{data}"], "in BIDS they lie beside the labels"),
        (["{data}", "--modalities", "pet"], "flair, t1ce, t1, t2"),
        (["--case", "{data}", "--workers", "2"], "--workers: is for a cohort"),
        (["--case", "{data}", "--output-layout", "bids"], "--output-layout: is for a cohort"),
        (["{data}/nothing"], "nothing"),
    ],
)
def test_wrong_usage_is_one_sentence_before_a_model_is_loaded(
    run, small_cohort, tmp_path, monkeypatch, arguments, said
):
    words = [word.format(data=small_cohort) for word in arguments]
    monkeypatch.setattr(Thresholds, "__init__", lambda *_: pytest.fail("a model was loaded"))
    status, out, err = run(*words, "--output", tmp_path / "out")
    assert status == 2
    lines = [line for line in err.splitlines() if line.startswith("smml: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists()


def test_a_slice_shows_the_regions_outlines_in_the_voxels_true_shape(tmp_path):
    """8 voxels of 2 mm across, 8 of 1 mm to the back: twice as wide as high; to the patient's left is to the right."""
    volume, labels = np.zeros((8, 8, 4), np.float32), np.zeros((8, 8, 4), np.uint8)
    volume[1:7, 1:7] = 100 + np.arange(6)[:, None, None]
    labels[1:3, 2:6, 1] = 2
    labels[1:2, 3:5, 1] = 3
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    case = Case("a", {"t2": volume}, None, affine, "brats2021")
    write_slice(tmp_path / "a.png", case, Segmentation(labels, np.zeros((4, 1, 1, 1)), affine, ("t2",), "brats2021"))
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert picture.shape == (SIDE // 2, SIDE, 3)
    for region, columns, rows in (("WT", (150, 209), (30, 89)), ("ET", (180, 209), (45, 74))):
        at = np.argwhere((picture == rgb(REGION_COLOURS[region])).all(-1))
        assert (at[:, 1].min(), at[:, 1].max()) == columns, region
        assert (at[:, 0].min(), at[:, 0].max()) == rows, region
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_page_shows_every_row_and_fetches_nothing(tmp_path):
    rows = {
        "a<b": CohortRow("a<b", "simulated", ("flair",), {"WT ml": 1.25}, 2.0, ("odd",), "a/a.nii.gz"),
        "c": CohortRow("c", "simulated", reason="because <it> is so"),
    }
    text = write_page(tmp_path, rows, "T & t").read_text(encoding="utf-8")
    assert "a&lt;b" in text
    assert "because &lt;it&gt; is so" in text
    assert "1 of 2 cases segmented" in text
    assert "http" not in text
    assert "Bars reach" not in text


def test_a_row_survives_the_file(tmp_path):
    rows = [
        CohortRow(
            "a", "brats2015", ("t1ce", "t1"), {"WT ml": 1.5, "ET ml": 0.0}, 3.5, ("one", 'two, "2"'), "a.nii", "", "d"
        ),
        CohortRow("b", "simulated", reason="line,\u2028 comma"),
    ]
    kept = CohortTable(tmp_path, {"model": 1})
    kept.begin()
    for row in reversed(rows):
        kept.add(row)
    again = CohortTable(tmp_path, {"model": 1}).rows
    assert list(again) == ["a", "b"]
    assert again["a"] == rows[0]
    assert again["b"].reason == rows[1].reason


def test_answers_in_other_label_values_are_not_taken_for_those_asked_for(three, tmp_path):
    """As when the names in nnU-Net's dataset.json were corrected."""
    cases = find_cases(three)
    predict_cohort(Thresholds(), cases, tmp_path / "out", **OPTIONS)
    other = [dataclasses.replace(case, layout="brats2018") for case in cases]
    with pytest.raises(InputError, match="in the values of simulated, and these are now those of brats2018"):
        predict_cohort(Thresholds(), other, tmp_path / "out", **OPTIONS)
