"""The command ``smml`` as a user meets it: what works, and one clear sentence with exit status 2 for what cannot."""

import dataclasses
import gzip
import inspect
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import smml
from smml import cli
from smml.data import find_cases, read_case, write_case
from smml.data.layouts import LAYOUTS
from smml.inference import Predictor
from smml.locks import claimed
from smml.modalities import SUBSETS, subset_name
from smml.models import SMML
from smml.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from smml.models.decision import EXPECTED_DICE
from smml.models.gains import Gains
from smml.models.intervals import VolumeIntervals
from smml.models.presets import preset_name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained tiny model at 6 mm, saved as a checkpoint."""
    torch.manual_seed(1)
    model = SMML("tiny")
    path = tmp_path_factory.mktemp("model") / "tiny.pt"
    save_checkpoint(Checkpoint(model.config, model.state_dict(), (6.0, 6.0, 6.0), patch=32), path)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process; returns exit status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["smml", *map(str, arguments)])
        threads = torch.get_num_threads()
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def case_folder(small_cohort, tmp_path) -> Path:
    """A case of its own that a test may damage."""
    return Path(shutil.copytree(find_cases(small_cohort)[1].label.parent, tmp_path / "case"))


def sentence(result):
    """The error of a refused call: exactly one line, exit status 2, no traceback."""
    status, out, err = result
    lines = [line for line in err.splitlines() if line.startswith("smml:")]
    assert status == 2, (out, err)
    assert len(lines) == 1
    assert "Traceback" not in out + err
    return lines[0]


def damage(folder: Path, modality: str, change) -> Path:
    """Replace one modality's voxels by ``change(voxels)``."""
    path = next(folder.glob(f"*_{modality}.nii.gz"))
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj).astype(np.float32)), image.affine), path)
    return path


def test_simulate_train_evaluate_predict_and_info_from_end_to_end(run, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    status, text, _ = run("simulate", data, "--cases", 2, "--spacing", 6, "--seed", 3, "--workers", 1)
    assert status == 0
    assert "2 simulated cases" in text
    assert run("train", data, out, "--steps", 2, "--checkpoint-every", 1, "--threads", 2)[0] == 0
    assert len((out / "log.csv").read_text().splitlines()) == 3
    status, text, _ = run("evaluate", data, "--checkpoint", out, "--output", tmp_path / "scores", "--cases", 1,
                         "--lesion-wise", 2026)  # fmt: skip
    assert status == 0
    assert "**mean**" in text
    assert "By the rules of 2026" in text
    assert (tmp_path / "scores" / "table.html").exists()
    assert "left out" in text
    assert (tmp_path / "scores" / "table.md").read_text().startswith("# ")
    folder = find_cases(data)[0].label.parent
    status, text, _ = run("predict", "--case", folder, "--checkpoint", out, "--output", tmp_path / "seg.nii.gz")
    assert status == 0
    assert "FLAIR+T1ce+T1+T2" in text
    status, text, _ = run("info", data)
    assert status == 0
    assert "2 simulated cases (simulated), 2 with a segmentation" in text
    assert "kernel relation_loss" in text


def test_evaluate_profiles_instead_of_scoring(run, small_cohort, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("smml.evaluation.profile.subsets_of", lambda _: [("t1",)])
    arguments = ["evaluate", small_cohort, "--checkpoint", checkpoint, "--output", tmp_path / "none"]
    status, text, _ = run(*arguments, "--profile")
    assert status == 0
    for words in ("| encoders |", "| decoder |", "skips missing encoders", "as the public code does it", "1 subsets"):
        assert words in text
    assert not (tmp_path / "none").exists()
    assert "float32, bf16" in sentence(run(*arguments, "--precision", "half"))


def test_calibrate_fits_temperatures_writes_them_with_the_weights_and_measures_them(
    run, small_cohort, checkpoint, tmp_path, monkeypatch
):
    # One subset of each size will do here.
    one_each = [("t2",), ("flair", "t2"), ("flair", "t1", "t2"), ("flair", "t1ce", "t1", "t2")]
    monkeypatch.setattr("smml.evaluation.temperatures.subsets_of", lambda _: one_each)
    output = tmp_path / "new" / "calibrated.safetensors"
    status, text, _ = run("calibrate", small_cohort, "--checkpoint", checkpoint, "--output", output, "--cases", 1)
    assert status == 0
    assert "the same 1 cases that the temperatures were fitted on" in text
    temperatures = load_checkpoint(output).temperatures
    rows = re.findall(r"^\| (\d) \| ([\d.]+) \| ", text, re.M)
    assert rows == [(str(number), f"{value:.3f}") for number, value in enumerate(temperatures, start=1)]
    assert max(temperatures) > 1.01, "an untrained model is too sure"
    before, after = load_checkpoint(checkpoint).build().state_dict(), load_checkpoint(output).build().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    status, text, _ = run("calibrate", small_cohort, "--checkpoint", output, "--cases", 1)
    assert status == 0
    assert "every voxel of the brain, 1 cases" in text
    assert re.findall(r"^\| (\d) \| ([\d.]+) \| ", text, re.M) == rows


@pytest.fixture
def scored(checkpoint, tmp_path) -> Path:
    """A folder as `smml evaluate` leaves it: 40 cases of which every further sequence brings a tenth of Dice."""
    folder = tmp_path / "scored"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for case, subset, region in itertools.product(range(40), SUBSETS, ("WT", "TC", "ET")):
        truth, row = random.lognormal(3), {"case": f"{case}", "subset": subset_name(subset), "region": region}
        rows.append(
            row | {"dice": len(subset) / 10, "truth_ml": truth, "predicted_ml": truth * random.lognormal(0, 0.3)}
        )
    pd.DataFrame(rows).to_csv(folder / "scores.csv", index=False)
    facts = Predictor.from_checkpoint(checkpoint).facts()
    (folder / "evaluation.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def test_intervals_are_fitted_to_scores_stored_measured_and_told_by_predict(
    run, scored, case_folder, checkpoint, tmp_path
):
    output = tmp_path / "told.safetensors"
    status, text, _ = run("intervals", scored, "--checkpoint", checkpoint, "--output", output)
    assert status == 0
    assert "the same 40 cases that the intervals were fitted on" in text
    assert "| ● | ○ | ○ | ○ | T1ce | +10.0 | 0.0 | +10.0 |" in text
    status, again, _ = run("intervals", scored, "--checkpoint", output)
    assert status == 0
    assert [line for line in again.splitlines() if line in text.splitlines() and line.startswith("| 4 ")]
    answer = ["--output", tmp_path / "seg.nii.gz"]
    status, text, _ = run("predict", "--case", case_folder, "--modalities", "t1", "--checkpoint", output, *answer)
    assert status == 0
    assert re.search(r"WT [\d.]+ ml \(90 %: [\d.]+ to [\d.]+\), TC .* ET .*\)\n", text)
    assert "as it helped held-out cases: FLAIR, Dice +10.0 points (standard error 0.0)" in text
    with pytest.warns(UserWarning, match="were fitted with windows of 32, an overlap of 0.5 and its own rule"):
        status, text, _ = run("predict", "--case", case_folder, "--checkpoint", output, "--window", 64, *answer)
    assert status == 0
    assert "90 %" not in text, "of other windows nothing is promised"
    status, text, _ = run("predict", "--case", case_folder, "--checkpoint", output, *answer)
    assert "a further scan" not in text


def test_intervals_of_other_weights_or_of_nothing_known_are_refused(run, scored, checkpoint, tmp_path):
    arguments = ["--checkpoint", checkpoint, "--output", tmp_path / "told.safetensors"]
    assert "has no intervals to measure" in sentence(run("intervals", scored, "--checkpoint", checkpoint))
    known = json.loads((scored / "evaluation.json").read_text(encoding="utf-8"))
    for change, said in (
        ({"model": "another"}, "holds the scores of other weights"),
        ({"window": 160}, "holds scores with window 160, and the checkpoint predicts with 32"),
        ({"overlap": 0.0}, "holds scores with overlap 0.0"),
        ({"decision": EXPECTED_DICE.to_dict()}, "holds scores with decision {'rule': 'expected Dice'"),
    ):
        (scored / "evaluation.json").write_text(json.dumps(known | change), encoding="utf-8")
        assert said in sentence(run("intervals", scored, *arguments))
    (scored / "evaluation.json").unlink()
    assert "found no evaluation.json in it" in sentence(run("intervals", scored, *arguments))
    assert not (tmp_path / "told.safetensors").exists()


def test_calibrate_refuses_a_place_for_its_weights_before_the_work(run, small_cohort, checkpoint, tmp_path, no_model):
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    (tmp_path / "folder.safetensors").mkdir()
    own = tmp_path / "own.safetensors"
    save_checkpoint(load_checkpoint(checkpoint), own)
    for output, source, said in (
        ("run/checkpoint.pt", checkpoint, "expected a name ending in .safetensors"),
        ("own.safetensors", own, "is the checkpoint itself"),
        ("folder.safetensors", checkpoint, "Is a directory"),
        ("file/below.safetensors", checkpoint, "cannot be written"),
    ):
        message = sentence(run("calibrate", small_cohort, "--checkpoint", source, "--output", tmp_path / output))
        assert said in message
        assert str(tmp_path / output) in message


def test_predict_needs_only_the_files_of_the_named_modalities(run, case_folder, checkpoint, tmp_path):
    whole = tmp_path / "whole.nii.gz"
    arguments = ["--modalities", "flair,t2", "--checkpoint", checkpoint]
    assert run("predict", "--case", case_folder, *arguments, "--output", whole)[0] == 0
    for gone in ("t1ce", "t1", "seg"):
        next(case_folder.glob(f"*_{gone}.nii.gz")).unlink()
    part, named = tmp_path / "part.nii.gz", tmp_path / "named.nii.gz"
    assert run("predict", "--case", case_folder, *arguments, "--output", part)[0] == 0
    files = [next(case_folder.glob(f"*_{name}.nii.gz")) for name in ("flair", "t2")]
    given = [word for file in files for word in ("--case", file)]
    assert run("predict", *given, "--checkpoint", checkpoint, "--output", named)[0] == 0
    assert whole.read_bytes() == part.read_bytes() == named.read_bytes()


def test_predict_and_evaluate_make_labels_by_the_rule_asked_for(run, small_cohort, case_folder, checkpoint, tmp_path):
    found = {}
    for rule in ("own", "argmax", "expected-dice"):
        path = tmp_path / f"{rule}.nii.gz"
        command = ("predict", "--case", case_folder, "--checkpoint", checkpoint, "--output", path, "--decision", rule)
        assert run(*command)[0] == 0
        found[rule] = np.asarray(nib.load(path).dataobj)
        command = ("evaluate", small_cohort, "--checkpoint", checkpoint, "--cases", 1, "--output", tmp_path / rule)
        assert run(*command, "--decision", rule)[0] == 0
        scores = pd.read_csv(tmp_path / rule / "scores.csv")
        found[rule, "ml"] = scores["predicted_ml"].tolist()
        said = "labels of the greatest expected Dice" in (tmp_path / rule / "table.md").read_text()
        assert said == (rule == "expected-dice")
    assert np.array_equal(found["own"], found["argmax"])
    assert found["own", "ml"] == found["argmax", "ml"]
    assert not np.array_equal(found["expected-dice"], found["argmax"])
    assert found["expected-dice", "ml"] != found["argmax", "ml"]
    begun = ("--output", tmp_path / "expected-dice", "--decision", "argmax")
    said = sentence(run("evaluate", small_cohort, "--checkpoint", checkpoint, "--cases", 1, *begun))
    assert "holds the scores of another evaluation (other decision)" in said
    command = ("predict", "--case", case_folder, "--checkpoint", checkpoint, "--output", tmp_path / "no.nii.gz")
    assert "decision must be one of own" in sentence(run(*command, "--decision", "most"))


@pytest.mark.parametrize("axes", ["RAS", "PIR", "SRA"])
def test_predict_on_another_orientation_gives_the_same_segmentation_in_it(run, case_folder, checkpoint, tmp_path, axes):
    first = tmp_path / "first.nii.gz"
    assert run("predict", "--case", case_folder, "--checkpoint", checkpoint, "--output", first)[0] == 0
    turned = tmp_path / "turned"
    turned.mkdir()
    for file in case_folder.glob("*.nii.gz"):
        image = nib.load(file)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
        nib.save(image.as_reoriented(turn), turned / file.name)
    second = tmp_path / "second.nii.gz"
    assert run("predict", "--case", turned, "--checkpoint", checkpoint, "--output", second)[0] == 0
    a, b = nib.load(first), nib.load(second)
    assert "".join(nib.aff2axcodes(b.affine)) == axes
    same_axes = b.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(b.affine), nib.io_orientation(a.affine))
    )
    np.testing.assert_allclose(same_axes.affine, a.affine, atol=1e-4)
    assert np.array_equal(np.asarray(same_axes.dataobj), np.asarray(a.dataobj))
    assert len(np.unique(np.asarray(a.dataobj))) > 1


def test_probabilities_are_written_on_wish(run, case_folder, checkpoint, tmp_path):
    seg, probabilities = tmp_path / "seg.nii.gz", tmp_path / "p.nii.gz"
    arguments = ["--case", case_folder, "--checkpoint", checkpoint, "--output", seg, "--probabilities", probabilities]
    assert run("predict", *arguments)[0] == 0
    values = nib.load(probabilities).get_fdata(dtype=np.float32)
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-4)
    expected = np.asarray([0, 1, 2, 4])[values.argmax(-1)]
    assert np.array_equal(expected, np.asarray(nib.load(seg).dataobj))


# Values on disk of the classes in memory, by what the data sets say of themselves (docs/CONVENTIONS.md).
VALUES = {
    "brats2015": (0, 1, 2, 3, 4), "brats2018": (0, 1, 2, 4), "brats2020": (0, 1, 2, 4), "brats2021": (0, 1, 2, 4),
    "brats2019": (0, 1, 2, 4), "fets2022": (0, 1, 2, 4), "tcga": (0, 1, 2, 4), "brats2024": (0, 1, 2, 3),
    "brats-met": (0, 1, 2, 3), "brats-men": (0, 1, 2, 3), "brats-ssa": (0, 1, 2, 3), "brats-ped": (0, 2, 4, 1),
    "brats-ped-2023": (0, 1, 2, 3), "nnunet": (0, 1, 2, 3), "brats2023": (0, 1, 2, 3), "msd": (0, 2, 1, 3),
    "simulated": (0, 1, 2, 4),
}  # fmt: skip


@pytest.fixture
def two_grids(case_folder) -> Path:
    """A case whose T2 lies on a grid of its own, a corner cut off."""
    path = next(case_folder.glob("*_t2.nii.gz"))
    image = nib.load(path)
    nib.save(image.slicer[2:, :, 1:], path)
    return case_folder


def test_predict_brings_the_sequences_to_the_grid_of_the_one_named(run, two_grids, checkpoint, tmp_path):
    words = ["predict", "--case", two_grids, "--checkpoint", checkpoint, "--output", tmp_path / "seg.nii.gz"]
    said = sentence(run(*words))
    assert "_t2.nii.gz: expected the shape" in said
    assert "smml predict --align SEQUENCE" in said
    for name in ("t1ce", "t2"):
        status, text, errors = run(*words, "--align", name)
        assert (status, errors) == (0, "")
        assert "where its header puts it; the brains overlap by" in text
        answer, named = nib.load(tmp_path / "seg.nii.gz"), nib.load(next(two_grids.glob(f"*_{name}.nii.gz")))
        assert answer.shape == named.shape
        np.testing.assert_allclose(answer.affine, named.affine, atol=1e-5)
    assert [path.name for path in tmp_path.glob("seg*")] == ["seg.nii.gz"]


def test_predict_registers_on_wish_and_leaves_the_transforms_beside_the_answer(
    run, two_grids, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("smml.data.aligning.find_movement", lambda *_: np.diag([1.0, 1.0, 1.0, 1.0]))
    words = ["predict", "--case", two_grids, "--modalities", "t2,flair", "--checkpoint", checkpoint]
    words += ["--output", tmp_path / "seg.nii.gz"]
    status, text, _ = run(*words, "--align", "t1ce", "--register")
    assert status == 0
    files = [tmp_path / f"seg_{name}_to_t1ce.tfm" for name in ("flair", "t2")]
    assert f"transforms in {files[0]}, {files[1]}" in text
    assert text.count("to T1ce: registered, and left where its header puts it") == 2
    assert all(path.read_text().startswith("#Insight Transform File V1.0") for path in files)
    assert "--register: expected --align too" in sentence(run(*words, "--register"))
    assert "flair, t1ce, t1, t2" in sentence(run(*words, "--align", "pet"))
    assert "--align: expected a value" in sentence(run(*words, "--align", ""))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_predict_writes_the_label_values_of_the_case_without_being_told_the_layout(run, small_cohort, tmp_path, layout):
    values = VALUES[layout]
    torch.manual_seed(1)
    model = SMML("tiny", num_classes=len(values))
    save_checkpoint(Checkpoint(model.config, model.state_dict(), (6.0, 6.0, 6.0), patch=32), tmp_path / "tiny.pt")
    case = read_case(find_cases(small_cohort)[0], label=False)
    files = write_case(dataclasses.replace(case, id="00001", layout=layout), tmp_path / "data")
    # Whoever has PED of 2023 must say so, since no name does.
    said = ["--layout", layout] if layout == "brats-ped-2023" else []
    assert [found.layout for found in find_cases(tmp_path / "data", *said[1:])] == [layout]
    given = [
        word for path in dict.fromkeys(source.path for source in files.images.values()) for word in ("--case", path)
    ]
    outputs = ["--output", tmp_path / "seg.nii.gz", "--probabilities", tmp_path / "p.nii.gz"]
    assert run("predict", *given, "--checkpoint", tmp_path / "tiny.pt", *outputs, *said)[0] == 0
    classes = nib.load(tmp_path / "p.nii.gz").get_fdata(dtype=np.float32).argmax(-1)
    written = np.asarray(nib.load(tmp_path / "seg.nii.gz").dataobj)
    assert len(np.unique(classes)) == len(values), "every class is there, or nothing is tested"
    assert np.array_equal(written, np.asarray(values)[classes])


def test_predict_writes_the_values_of_another_data_set_on_wish(run, case_folder, checkpoint, tmp_path, no_model_yet):
    arguments = ["predict", "--case", case_folder, "--checkpoint", checkpoint, "--output", tmp_path / "seg.nii.gz"]
    assert "brats2023" in sentence(run(*arguments, "--layout", "brats1999"))
    assert "has 5" in sentence(run(*arguments, "--layout", "brats2015"))
    no_model_yet.undo()
    assert run(*arguments, "--layout", "brats2023")[0] == 0
    assert np.unique(nib.load(tmp_path / "seg.nii.gz").dataobj).tolist() == [0, 1, 2, 3]


@pytest.fixture
def no_model_yet():
    """Until it is undone, segmenting fails the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smml.inference.predictor.prepare", lambda *_: pytest.fail("segmented"))
        yield patch


def test_a_damaged_file_is_named_with_the_remedy_and_nothing_is_written(run, case_folder, checkpoint, tmp_path):
    output = tmp_path / "seg.nii.gz"
    output.write_bytes(b"old")
    flair = next(case_folder.glob("*_flair.nii.gz"))
    whole = flair.read_bytes()
    arguments = ["predict", "--case", case_folder, "--checkpoint", checkpoint, "--output", output]
    for broken in (whole[: len(whole) // 2], whole[:10], b"", gzip.compress(b"not an image")):
        flair.write_bytes(broken)
        assert flair.name in sentence(run(*arguments))
    flair.write_bytes(whole)
    for change, word in (
        (lambda v: np.where(v == v.max(), np.nan, v), "NaN"),
        (lambda v: np.where(v == v.max(), np.inf, v), "nf"),
        (lambda v: v * 0, "zero"),
        (lambda v: v[:-1], "shape"),
    ):
        path = damage(case_folder, "flair", change)
        message = sentence(run(*arguments))
        assert word in message
        assert path.name in message or "flair" in message.lower()
        flair.write_bytes(whole)
    assert output.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_an_answer_that_the_next_run_would_take_for_input_is_refused_before_the_first(
    run, small_cohort, checkpoint, tmp_path, no_model_yet
):
    free, named, msd = tmp_path / "free", tmp_path / "named", tmp_path / "msd/imagesTs"
    case = find_cases(small_cohort)[0]
    for folder in (free, named, msd):
        folder.mkdir(parents=True)
    shutil.copy(case.images["t1"].path, free / "jane_t1.nii.gz")
    shutil.copy(case.images["t1"].path, named)
    (msd / "BRATS_001.nii.gz").write_bytes(b"not opened")
    for folder, name, role in (
        (free, "seg.nii.gz", "label"),
        (free, "john_t2.nii.gz", "t2"),
        (named, f"{case.id}_seg.nii.gz", "label"),
        (named, f"deeper/{case.id}_flair.nii.gz", "flair"),
        (msd, "../labelsTs/BRATS_001.nii.gz", "label"),
    ):
        other = tmp_path / "other.nii.gz"
        for outputs in (("--output", folder / name), ("--output", other, "--probabilities", folder / name)):
            message = sentence(run("predict", "--case", folder, "--checkpoint", checkpoint, *outputs))
            assert f"{outputs[-2]} {folder / name}: there, this name stands for {role} of a case" in message


def test_an_answer_beside_the_images_comes_out_the_same_twice(run, small_cohort, checkpoint, tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    shutil.copy(find_cases(small_cohort)[0].images["t1"].path, folder)
    answers = []
    for _ in range(2):
        outputs = ["--output", folder / "seg.nii.gz", "--probabilities", folder / "p.nii.gz"]
        assert run("predict", "--case", folder, "--checkpoint", checkpoint, *outputs)[0] == 0
        answers.append([(folder / name).read_bytes() for name in ("seg.nii.gz", "p.nii.gz")])
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more")],
    ids=repr,
)
def test_too_little_memory_is_one_sentence_with_what_takes_less(
    run, case_folder, checkpoint, tmp_path, monkeypatch, error
):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("smml.inference.predictor.prepare", fails)
    output = tmp_path / "seg.nii.gz"
    message = sentence(run("predict", "--case", case_folder, "--checkpoint", checkpoint, "--output", output))
    assert "too little memory" in message
    assert "--window" in message
    assert "fewer sequences" in message
    assert not output.exists()


def test_places_that_hold_no_cases_are_named(run, checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments in (
        ["evaluate", tmp_path / "nowhere"],
        ["evaluate", tmp_path / "empty"],
        ["train", tmp_path / "empty", tmp_path / "run"],
        ["info", tmp_path / "nowhere"],
        ["predict", "--case", tmp_path / "nowhere", "--output", tmp_path / "x.nii.gz"],
    ):
        extra = ["--checkpoint", checkpoint] if arguments[0] in ("evaluate", "predict") else []
        assert str(tmp_path) in sentence(run(*arguments, *extra))
    assert not (tmp_path / "run").exists()


def test_unknown_names_list_the_valid_ones(run, case_folder, checkpoint, tmp_path):
    output = ["--output", tmp_path / "x.nii.gz"]
    predict = ["predict", "--case", case_folder, "--checkpoint", checkpoint, *output]
    assert "flair, t1ce, t1, t2" in sentence(run(*predict, "--modalities", "flair,pet"))
    assert "empty" in sentence(run(*predict, "--modalities", ","))
    assert "brats2015" in sentence(run("simulate", tmp_path / "x", "--layout", "brats1999"))
    assert "typical, varied" in sentence(run("simulate", tmp_path / "x", "--look", "real"))
    assert "tiny, tiny-wide, small, paper" in sentence(run("train", case_folder, tmp_path / "x", "--preset", "huge"))
    assert "lower_ce" in sentence(run("train", case_folder, tmp_path / "x", "--gate", "open"))
    assert "cpu" in sentence(run(*predict, "--device", "warp"))
    assert "no such checkpoint" in sentence(run("predict", "--case", case_folder, "--checkpoint", "nope", *output))
    assert ".nii.gz" in sentence(run(*predict[:-1], tmp_path / "x.png"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "--case", "CASE", "--output", "OUT", "--modalities", ""], "flair, t1ce, t1, t2"),
        (["predict", "--case", "CASE", "--output", "OUT", "--modalities="], "flair, t1ce, t1, t2"),
        (["predict", "--case", "CASE", "--output", "OUT", "--layout", ""], "brats2015"),
        (["predict", "--case", "CASE", "--output", "OUT", "--checkpoint", ""], "--checkpoint: expected a value"),
        (["predict", "--case", "CASE", "--output", "OUT", "--checkpoint="], "--checkpoint: expected a value"),
        (["predict", "--case", "", "--output", "OUT"], "--case: expected a value"),
        (["predict", "--case", "CASE", "--output", ""], "--output: expected a value"),
        (["predict", "--case", "CASE", "--output", "OUT", "--probabilities", ""], "--probabilities: expected a value"),
        (["evaluate", "CASE", "--output="], "--output: expected a value"),
        (["train", "CASE", "OUT", "--weights", ""], "--weights: expected a value"),
        (["train", "CASE", "OUT", "--config", ""], "--config: expected a value"),
        (["train", "", "OUT"], "an argument: expected a value"),
        (["info", ""], "an argument: expected a value"),
        (["study", "OUT", "--preset", "smoke", "--arms", ""], "both"),
        (["study", "OUT", "--preset", "smoke", "--seeds", ""], "whole numbers"),
    ],
)
def test_an_empty_value_is_not_an_absent_one(run, case_folder, tmp_path, monkeypatch, arguments, words):
    """As of a variable of the shell that is not set: everything there is, or the working folder, was taken instead."""
    monkeypatch.chdir(tmp_path)
    given = {"CASE": case_folder, "OUT": tmp_path / "out.nii.gz"}
    assert words in sentence(run(*(given.get(word, word) for word in arguments)))
    assert not (tmp_path / "out.nii.gz").is_file()


def test_published_means_of_an_empty_name_are_refused_with_the_names(run, tmp_path):
    (tmp_path / "a.csv").write_text(
        "case,subset,region,dice\n" + "".join(f"a,flair,{region},0.5\n" for region in ("WT", "TC", "ET")),
        encoding="utf-8",
    )
    assert "brats2018" in sentence(run("compare", tmp_path / "a.csv", "--published", ""))


def test_the_version_is_printed_without_a_command(run):
    status, out, _ = run("--version")
    assert (status, out) == (0, f"smml {smml.__version__}\n")


def test_a_label_value_of_another_data_set_is_refused(run, case_folder, tmp_path):
    damage(case_folder, "seg", lambda v: np.where(v == v.max(), 7, v))
    assert "7" in sentence(run("train", case_folder, tmp_path / "run", "--steps", 1))


def test_a_damaged_file_is_one_sentence_with_loader_processes_too(run, small_cohort, tmp_path):
    data = Path(shutil.copytree(small_cohort, tmp_path / "data"))
    for case in find_cases(data):
        # In the middle, where the look before the training does not see it.
        content = bytearray(case.images["t2"].path.read_bytes())
        content[len(content) // 2] ^= 255
        case.images["t2"].path.write_bytes(content)
    said = sentence(run("train", data, tmp_path / "run", "--steps", 2, "--workers", 1, "--spacing", 6))
    assert "_t2.nii.gz: expected a complete .nii.gz image" in said


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(28, "No space left on device", "cohort/x"), 2, "smml: cohort/x: no space left on the disk"),
        (MemoryError("Unable to allocate 1 TiB"), 2, "smml: too little memory (Unable to allocate 1 TiB)"),
        (KeyError("t1"), 1, "smml: this is a fault of smml"),
    ],
)
def test_limits_end_in_one_sentence_and_faults_keep_their_traceback(run, tmp_path, monkeypatch, error, status, said):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("smml.data.simulate_cohort", fails)
    found, out, err = run("simulate", tmp_path / "new")
    assert (found, out) == (status, "")
    last = err.splitlines()[-1]
    assert last.startswith(said)
    assert ("Traceback" in err) == (status == 1)
    assert status == 2 or "`smml info`" in last


@pytest.mark.parametrize("size", ["", "2"])
def test_half_a_launcher_is_one_sentence_at_once(run, small_cohort, tmp_path, monkeypatch, size):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", size)
    said = sentence(run("train", small_cohort, tmp_path / "run"))
    assert "torchrun" in said
    assert ("WORLD_SIZE" if not size else "RANK") in said


def test_a_second_training_into_one_folder_is_refused(run, small_cohort, tmp_path):
    with claimed(tmp_path / "run"):
        for words in (["train", small_cohort, tmp_path / "run"], ["train-sam", tmp_path / "run"]):
            said = sentence(run(*words))
            assert f"{tmp_path / 'run'}: another run is writing it right now" in said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def foreign(small_cohort, tmp_path) -> Path:
    """A cohort whose last case has a label value of another data set."""
    data = Path(shutil.copytree(small_cohort, tmp_path / "foreign"))
    damage(find_cases(data)[-1].label.parent, "seg", lambda v: np.where(v == 4, 7, v))
    return data


def test_a_bad_case_is_told_before_the_first_step_and_before_the_first_score(
    run, foreign, small_cohort, checkpoint, tmp_path, monkeypatch
):
    """Also where it is one of those to validate on, which are read long after the first step."""
    monkeypatch.setattr("smml.training.trainer.take_step", lambda *_, **__: pytest.fail("a step was taken"))
    monkeypatch.setattr("smml.inference.predictor.prepare", lambda *_: pytest.fail("segmented"))
    for words in (
        ["train", foreign, tmp_path / "run"],
        ["evaluate", foreign, "--checkpoint", checkpoint, "--output", tmp_path / "scores"],
    ):
        assert "label value 7 is not one of 0, 1, 2, 4" in sentence(run(*words))
    others = Path(shutil.copytree(small_cohort, tmp_path / "others"))
    for case in find_cases(others):
        case.label.parent.rename(others / case.id.replace("Simulated_0", "Simulated_9"))
    for file in others.rglob("*.nii.gz"):
        file.rename(file.with_name(file.name.replace("Simulated_0", "Simulated_9")))
    for case in find_cases(others):
        damage(case.label.parent, "flair", lambda v: v + (v > 0))
    said = sentence(run("train", others, tmp_path / "run", "--validate-every", 1, "--validation", foreign))
    assert "label value 7 is not one of 0, 1, 2, 4" in said
    assert not (tmp_path / "run").exists()


def test_info_looks_at_every_case_and_lists_the_bad_ones(run, foreign, small_cohort):
    status, out, err = run("info", "--check", foreign)
    assert status == 2
    assert "label value 7 is not one of 0, 1, 2, 4" in out
    assert f"{foreign}: 1 of its cases cannot be used (Simulated_00002)" in err
    status, out, _ = run("info", small_cohort, "--check")
    assert status == 0
    assert out.splitlines()[-1].startswith("every label, and the header")
    assert "kernel" not in out
    assert "name the folder" in sentence(run("info", "--check"))


def test_info_says_in_a_line_what_was_fitted_to_a_checkpoint(run, checkpoint, tmp_path):
    status, out, _ = run("info", "tiny")
    assert status == 0
    shipped = load_checkpoint("tiny")
    (line,) = [line for line in out.splitlines() if line.startswith("checkpoint tiny: ")]
    assert f"preset {preset_name(shipped.student)}, {shipped.step} steps" in line
    assert ("intervals of volumes: none" in line) == (shipped.intervals is None)
    fitted = tmp_path / "fitted.safetensors"
    reach = {("t2",): dict.fromkeys(("WT", "TC", "ET"), ((1.0, 1.0), (2.0, 2.0)))}
    save_checkpoint(
        dataclasses.replace(
            load_checkpoint(checkpoint),
            temperatures=(1.5, 1.25, 1.0, 0.75),
            intervals=VolumeIntervals(123, "student", reach),
            gains=Gains(45, {}),
            decision=EXPECTED_DICE,
        ),
        fitted,
    )
    none = "temperatures: none; intervals of volumes: none; rule for labels: argmax; table for next_scan: none"
    some = (
        "temperatures: 1.50, 1.25, 1.00, 0.75; intervals of volumes: fitted on 123 cases; rule for labels: the "
        "greatest expected Dice, of ET none where that is expected to score more and t1ce is given, without parts of "
        "which less is expected than (ml) WT 3, TC 0.5, ET 1.5; table for next_scan: learnt on 45 cases"
    )
    for path, words in ((checkpoint, none), (fitted, some)):
        status, out, _ = run("info", path)
        assert status == 0
        assert out.splitlines()[-1].endswith(words)
    assert "no such checkpoint" in sentence(run("info", tmp_path / "nowhere.pt"))


def test_interrupting_leaves_nothing_half_written(run, small_cohort, tmp_path, monkeypatch):
    import smml.data.simulation.cohort as cohort

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cohort, "simulate_subject", interrupted)
    status, _, err = run("simulate", tmp_path / "new", "--cases", 1, "--workers", 1)
    assert status == 130
    assert "interrupted" in err
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["simulated.json"]


def test_it_runs_as_a_module_and_shows_help_without_loading_torch():
    code = "import sys; import smml.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    result = subprocess.run([sys.executable, "-m", "smml", "--help"], capture_output=True, text=True, check=True)
    assert "predict" in result.stdout


def test_a_prediction_of_the_shipped_weights_finds_the_tumour(run, tmp_path):
    """The whole way with real weights: a simulated case that training has not seen, at the weights' spacing."""
    data = tmp_path / "data"
    run("simulate", data, "--cases", 2, "--spacing", 3, "--seed", 1000, "--workers", 1)
    case = read_case(find_cases(data)[1])
    output = tmp_path / "seg.nii.gz"
    folder = case.sources["label"].parent
    assert run("predict", "--case", folder, "--checkpoint", "tiny", "--output", output)[0] == 0
    found = np.asarray(nib.load(output).dataobj) > 0
    truth = case.label > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.5


def test_results_are_compared_side_by_side(run, tmp_path):
    rows = ["case,subset,region,dice"]
    for number, case in enumerate("abc"):
        rows += [f"{case},flair,{region},{0.5 + 0.1 * number}" for region in ("WT", "TC", "ET")]
    (tmp_path / "ours.csv").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "theirs.csv").write_text("\n".join(rows).replace("0.5", "0.4"), encoding="utf-8")
    output = tmp_path / "comparison.md"
    status, out, _ = run("compare", tmp_path / "ours.csv", f"other={tmp_path / 'theirs.csv'}", "--output", output)
    assert status == 0
    assert "| ours | 60.0 |" in out
    assert "| other | WT | -3.3 | " in out
    assert output.read_text(encoding="utf-8").strip() == out.strip()
    status, _, err = run("compare", tmp_path / "ours.csv", "--published", "brats2020")
    assert status == 2
    assert "case a is not of BraTS 2020" in err


def test_a_result_of_nnunet_is_compared_by_the_subset_behind_its_name(run, tmp_path):
    rows = ["case,subset,region,dice,truth_ml", *(f"a,flair+t2,{region},0.5,9" for region in ("WT", "TC", "ET"))]
    (tmp_path / "ours.csv").write_text("\n".join(rows), encoding="utf-8")
    metrics = {region: {"Dice": 0.75, "n_ref": 9} for region in ("(1, 2, 3)", "(2, 3)", "3")}
    entry = {"reference_file": "labelsTr/a.nii.gz", "metrics": metrics}
    (tmp_path / "summary.json").write_text(json.dumps({"metric_per_case": [entry]}), encoding="utf-8")
    status, out, _ = run("compare", tmp_path / "ours.csv", f"nnunet={tmp_path / 'summary.json'}@T2+FLAIR")
    assert status == 0
    assert "| nnunet | WT | +25.0 | +25.0 | +25.0 |" in out
    assert "| ours | WT | 50.0 | 1 | 0 | 0.0 | 0 | 0 | – | – | – |" in out
    assert "Note: nnunet: nnU-Net's summary.json, given FLAIR+T2" in out
    for name, begins in (("table.md", "| result |"), ("table.html", "<!DOCTYPE html>")):
        status, _, _ = run("compare", tmp_path / "ours.csv", "--output", tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(begins)
    said = sentence(run("compare", tmp_path / "ours.csv", tmp_path / "summary.json"))
    assert "add them, as in summary.json@all" in said


def test_evaluate_leaves_out_what_has_no_segmentation_and_says_how_many(run, small_cohort, checkpoint, tmp_path):
    """As of MSD, where the images of the test stand beside those of the training."""
    data = Path(shutil.copytree(small_cohort, tmp_path / "data"))
    files = find_cases(data)
    files[0].label.unlink()
    arguments = ["evaluate", data, "--checkpoint", checkpoint, "--output", tmp_path / "scores", "--cases", 1]
    status, text, _ = run(*arguments)
    assert status == 0
    assert f"{data}: 1 of 3 cases left out, because they have no segmentation\n" in text
    rows = (tmp_path / "scores" / "scores.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert {row.split(",")[0] for row in rows} == {files[1].id}
    for case in files[1:]:
        case.label.unlink()
    assert "none of its 3 cases has a segmentation" in sentence(run(*arguments))


def test_evaluate_shows_its_table_even_if_it_cannot_write_it_and_then_has_nothing_left_to_score(
    run, small_cohort, checkpoint, tmp_path, monkeypatch
):
    from smml import evaluation
    from smml.errors import InputError

    def full(*_):
        raise InputError("table.md: writing failed (No space left on device)")

    def scored(predictor, case, what, _):
        for name in module._names_of_rows(predictor, case, what):
            numbers = {"modalities": 1, "dice": 0.5, "hd95": 2.0, "nsd": 0.5, "dice_post": 0.5, "truth_ml": 1.0}
            key = dict(zip(("case", "subset", "output", "region"), name, strict=True))
            yield [key | numbers | {"predicted_ml": 1.0}]

    module = sys.modules["smml.evaluation.evaluate"]
    monkeypatch.setattr(module, "_score_case", scored)
    arguments = ["evaluate", small_cohort, "--checkpoint", checkpoint, "--output", tmp_path / "scores"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write_report", full)
        result = run(*arguments)
    assert "No space left" in sentence(result)
    assert "**mean**" in result[1]
    monkeypatch.setattr(module, "_score_case", lambda *_: pytest.fail("scored again"))
    status, text, _ = run(*arguments)
    assert status == 0
    table = [line for line in result[1].splitlines() if line.startswith("|")]
    assert [line for line in text.splitlines() if line.startswith("|")] == table
    assert (tmp_path / "scores" / "table.md").exists()
    said = sentence(run(*arguments, "--window", 64))
    assert "holds the scores of another evaluation (other window 32, here 64)" in said


def test_evaluate_refuses_rules_of_another_year_before_a_model_is_loaded(run, small_cohort, tmp_path, no_model):
    said = sentence(run("evaluate", small_cohort, "--output", tmp_path / "new", "--lesion-wise", 2024))
    assert "lesion-wise rules: expected 2023 or 2026, found '2024'" in said
    assert not (tmp_path / "new").exists()


def test_what_the_package_warns_of_is_a_sentence_and_others_warnings_keep_their_place(run, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(cli, "app", lambda: None)
    run()
    ours, others = str(Path(smml.__file__).parent / "evaluation" / "evaluate.py"), "/other/package.py"
    assert warnings.formatwarning("the disk is full", UserWarning, ours, 3) == "smml: warning: the disk is full\n"
    assert warnings.formatwarning("old", FutureWarning, others, 7).startswith("/other/package.py:7: FutureWarning: old")


def test_evaluate_refuses_an_output_that_is_a_file_before_the_work(run, small_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_predictor", lambda *_, **__: pytest.fail("the work began"))
    (tmp_path / "taken").write_text("kept", encoding="utf-8")
    said = sentence(run("evaluate", small_cohort, "--output", tmp_path / "taken"))
    assert f"{tmp_path / 'taken' / 'scores.csv'}: cannot be written ({tmp_path / 'taken'}: Not a directory)" in said


@pytest.mark.parametrize("command", [cli.predict, cli.evaluate, cli.calibrate, cli.intervals])
def test_the_weights_that_are_taken_unless_named_are_those_for_patients(command):
    assert inspect.signature(command).parameters["checkpoint"].default == "small"


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model, which takes long, fails the test."""
    monkeypatch.setattr(cli, "_predictor", lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.mark.parametrize("option", ["--output", "--probabilities"])
@pytest.mark.parametrize("role", ["flair", "t2", "seg"])
def test_predict_never_writes_over_a_file_of_the_case(run, case_folder, tmp_path, no_model, monkeypatch, option, role):
    scan = next(case_folder.glob(f"*_{role}.nii.gz"))
    before = scan.read_bytes()
    monkeypatch.chdir(case_folder)
    (tmp_path / "link.nii.gz").symlink_to(scan)
    outputs = {"--output": tmp_path / "seg.nii.gz", "--probabilities": tmp_path / "p.nii.gz"}
    for path in (scan, Path(scan.name), tmp_path / "link.nii.gz"):
        words = [word for pair in (outputs | {option: path}).items() for word in pair]
        message = sentence(run("predict", "--case", case_folder, "--modalities", "flair", *words))
        assert f"{option} {path}: is a file of case" in message
    assert scan.read_bytes() == before
    assert not any(path.exists() for path in outputs.values())


def test_predict_refuses_names_that_it_could_not_write_before_a_model_is_loaded(run, case_folder, tmp_path, no_model):
    def refused(output, *more):
        return sentence(run("predict", "--case", case_folder, "--output", tmp_path / output, *more))

    assert "--output" in refused("seg.png")
    assert ".nii.gz or .nii or .mha" in refused("seg.png")
    assert "p.mha: expected a name ending in .nii.gz or .nii;" in refused(
        "seg.mha", "--probabilities", tmp_path / "p.mha"
    )
    both = tmp_path / "sub" / ".." / "seg.nii.gz"
    assert "is the file of --output too; name two files" in refused("seg.nii.gz", "--probabilities", both)


@pytest.mark.parametrize("option", ["--output", "--probabilities"])
def test_predict_refuses_a_place_that_it_could_not_write_before_a_model_is_loaded(
    run, case_folder, tmp_path, no_model, option
):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.nii.gz").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for path, said in (
        (tmp_path / "file" / "new" / "seg.nii.gz", f"cannot be written ({tmp_path / 'file'}: Not a directory)"),
        (tmp_path / "folder.nii.gz", "expected a file to write or replace, found a folder"),
    ):
        outputs = {"--output": tmp_path / "new" / "seg.nii.gz"} | {option: path}
        words = [word for pair in outputs.items() for word in pair]
        assert f"{path}: {said}" in sentence(run("predict", "--case", case_folder, *words))
    assert sorted(tmp_path.rglob("*")) == before


def test_compare_refuses_a_place_that_it_could_not_write_before_it_reads(run, tmp_path, monkeypatch):
    from smml import evaluation

    monkeypatch.setattr(evaluation, "read_named_results", lambda *_: pytest.fail("results were read"))
    (tmp_path / "file").write_text("kept")
    said = sentence(run("compare", "a=a.csv", "b=b.csv", "--output", tmp_path / "file" / "table.md"))
    assert f"{tmp_path / 'file' / 'table.md'}: cannot be written" in said


def test_a_model_of_other_classes_is_refused_before_it_segments(
    run, small_cohort_2015, checkpoint, tmp_path, no_model_yet
):
    folder = find_cases(small_cohort_2015)[0].label.parents[1]
    result = run("predict", "--case", folder, "--checkpoint", checkpoint, "--output", tmp_path / "seg.nii.gz")
    assert "4 classes, but the layout brats2015 has 5" in sentence(result)


def test_a_result_may_lie_under_a_name_with_an_equals_sign(run, tmp_path, monkeypatch):
    rows = ["case,subset,region,dice,output", *(f"a,flair,{region},0.5," for region in ("WT", "TC", "ET"))]
    (tmp_path / "csv" / "lr=0.1").mkdir(parents=True)
    (tmp_path / "csv" / "lr=0.1" / "scores.csv").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    status, out, _ = run("compare", "csv/lr=0.1/scores.csv", "csv/lr=0.1", "named=csv/lr=0.1/scores.csv")
    assert status == 0
    assert [line.split(" ")[1] for line in out.splitlines()[2:5]] == ["scores", "lr=0.1", "named"]


def test_a_terminal_that_lacks_a_sign_shows_its_number_and_the_work_goes_on():
    program = (
        "import sys; from smml import cli; cli.app = lambda: print('\u25cb done'); sys.argv = ['smml']; cli.main()"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(Path(smml.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\\u25cb done\n")
