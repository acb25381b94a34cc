"""Options of the training engine: each does what it says, and none breaks resuming to the bit."""

import copy
import csv
import dataclasses
import json
import math
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ranks_server
import torch

from smml import cli, runs
from smml.data import CaseFiles, find_cases
from smml.errors import InputError, MissingPackage, TrainingDiverged
from smml.evaluation import evaluate
from smml.figures import curves_figure
from smml.inference import Predictor
from smml.models import SMML, presets
from smml.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from smml.ranks import Ranks
from smml.training import TrainingConfig, train, trainer
from smml.training.ema import AverageWeights
from smml.training.objective import TERMS
from smml.training.step import accelerate, micro_batches, take_step
from smml.training.validation import VALIDATION_COLUMNS, BestScore, split_cases

NARROW = ranks_server.NARROW
CONFIG = TrainingConfig(
    steps=4, batch_size=2, patch=32, consistency_start=0.25, consistency_ramp=0.25, checkpoint_every=2, seed=3,
    precision="float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def narrow_tiny(monkeypatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", NARROW)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks as narrow as these only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fresh() -> tuple[SMML, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = SMML(NARROW).train()
    return model, torch.optim.Adam(model.parameters(), amsgrad=True)


def batch_of(rows: range) -> dict[str, torch.Tensor]:
    """Some of three samples, in float32 and without priors."""
    made = ranks_server.made_batch(0)
    chosen = {name: tensor[rows.start : rows.stop] for name, tensor in made.items() if name != "priors"}
    return chosen | {"image": chosen["image"].float()}


def gradients(model: SMML) -> dict[str, torch.Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def run_config(**changes) -> TrainingConfig:
    return dataclasses.replace(CONFIG, **changes)


# ---------------------------------------------------------------- one step


def test_accumulated_parts_are_averaged_by_their_numbers_of_samples():
    config = run_config(batch_size=3, accumulate=2, gradient_clip=0)
    parts = [batch_of(part) for part in micro_batches(range(3), 2)]
    assert [len(part["image"]) for part in parts] == [2, 1]
    model, optimiser = fresh()
    row = take_step(model, optimiser, parts, config, 3, Ranks())
    found, alone = gradients(model), []
    for part in parts:
        model, optimiser = fresh()
        single = dataclasses.replace(config, batch_size=len(part["image"]), accumulate=1)
        alone.append((take_step(model, optimiser, [part], single, 3, Ranks()), gradients(model)))
    (row_a, a), (row_b, b) = alone
    for name in ("total", *TERMS):
        assert row[name] == pytest.approx((2 * row_a[name] + row_b[name]) / 3, rel=1e-6), name
    largest = max(float(gradient.abs().max()) for gradient in found.values() if gradient is not None)
    for name, gradient in found.items():
        shares = [scale * g for scale, g in ((2 / 3, a[name]), (1 / 3, b[name])) if g is not None]
        assert (gradient is None) == (not shares), name
        if shares:
            torch.testing.assert_close(gradient, sum(shares), rtol=0, atol=1e-5 * largest, msg=name)


def test_recomputed_activations_change_neither_loss_nor_gradient_and_are_not_kept():
    kept = []
    for recompute in (False, True):
        model, optimiser = fresh()
        accelerate(model, run_config(recompute=recompute))
        stored = []

        def pack(tensor, stored=stored):
            stored.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            row = take_step(model, optimiser, [batch_of(range(2))], run_config(recompute=recompute), 3, Ranks())
        kept.append((row["total"], gradients(model), sum(stored)))
    (total, plain, much), (other, recomputed, little) = kept
    assert total == other
    assert all(a is b or torch.equal(a, b) for a, b in zip(plain.values(), recomputed.values(), strict=True))
    assert little < 0.8 * much


def test_bfloat16_computes_the_networks_and_leaves_weights_and_losses_in_float32():
    totals = []
    for precision in ("float32", "bf16"):
        model, optimiser = fresh()
        seen = []
        model.branches[0].fusion_decoder.head.register_forward_hook(lambda *_, seen=seen: seen.append(_[2].dtype))
        row = take_step(model, optimiser, [batch_of(range(2))], run_config(precision=precision), 3, Ranks())
        assert seen == [torch.bfloat16 if precision == "bf16" else torch.float32]
        assert all(p.dtype == torch.float32 for p in model.parameters())
        totals.append(row["total"])
    assert totals[0] != totals[1]
    assert totals[1] == pytest.approx(totals[0], rel=0.02)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU, where weights and a missing norm differ in device"
)
def test_on_a_gpu_a_refinement_without_a_gradient_does_not_stop_the_step():
    model = SMML(NARROW, refine=True).train().cuda()
    batch = {name: tensor.cuda() for name, tensor in batch_of(range(2)).items()}
    config = run_config(refinement="tiny", device="cuda")
    row = take_step(model, torch.optim.Adam(model.parameters()), [batch], config, 0, Ranks())
    assert 0 < row["gradient_norm"] < math.inf


def test_compiling_marks_the_parts_that_are_tensors_only_and_renames_no_weight():
    model, _ = fresh()
    names = list(model.state_dict())
    accelerate(model, run_config(compile=True))
    assert list(model.state_dict()) == names
    marked = {name for name, module in model.named_modules() if module._compiled_call_impl is not None}
    assert {"branches.0.encoders.0", "branches.1.intra.3", "branches.0.fusion_decoder.decoder"} <= marked
    assert "branches.0" not in marked


def test_what_is_compiled_is_compiled_as_a_whole():
    student = fresh()[0].branches[0]
    levels = student.encoders[0](torch.rand(2, 1, 32, 32, 32))
    torch.compiler.reset()
    # "fullgraph" refuses whatever the compiler cannot look into; the backend only runs what was traced.
    for part, argument in (
        (student.encoders[0], torch.rand(2, 1, 32, 32, 32)),
        (student.fusion_decoder.decoder, levels),
    ):
        torch.compile(part, fullgraph=True, backend="eager")(argument)


# ---------------------------------------------------------------- averaged weights


def test_the_average_is_its_formula_and_can_stand_in_for_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    average = AverageWeights(model, 0.25)
    expected = 1.0
    for step, value in ((1, 3.0), (2, 5.0), (3, -1.0)):
        torch.nn.init.constant_(model.weight, value)
        average.update(model, step)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.weights["weight"]) == pytest.approx(expected)
    with average.in_place_of(model):
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == -1.0


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_with_averaged_weights_predicts_with_them(tmp_path, suffix):
    model, _ = fresh()
    average = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    path = tmp_path / f"both{suffix}"
    save_checkpoint(Checkpoint(NARROW, model.state_dict(), (6.0, 6.0, 6.0), 32, ema=average), path)
    built = Predictor.from_checkpoint(path).model.state_dict()
    assert all(torch.equal(built[name], tensor) for name, tensor in average.items())


# ---------------------------------------------------------------- runs


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def options() -> dict:
    return {
        "batch_size": 2, "accumulate": 2, "precision": "bf16", "ema": 0.9, "validate_every": 1, "holdout": 0.34
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(small_cohort, options, tmp_path_factory) -> Path:
    """Everything that is saved, switched on. Read it only."""
    output = tmp_path_factory.mktemp("runs") / "all"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", NARROW)
        train(small_cohort, output, run_config(**options), progress=False)
    return output


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_interrupted_and_resumed_equals_undisturbed_with_every_option(small_cohort, run, options, tmp_path):
    config = run_config(**options)

    def interrupt(row):
        if row["step"] == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(small_cohort, tmp_path / "run", config, progress=False, on_step=interrupt)
    train(small_cohort, tmp_path / "run", config, resume=True, progress=False)
    for name in ("checkpoint.pt", "best.pt"):
        one, two = (torch.load(folder / name, weights_only=True) for folder in (run, tmp_path / "run"))
        leaves, others = (torch.utils._pytree.tree_flatten_with_path(content)[0] for content in (one, two))
        assert len(leaves) == len(others)
        for (path, a), (_, b) in zip(leaves, others, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, (name, path)
    assert (run / "validation.csv").read_bytes() == (tmp_path / "run" / "validation.csv").read_bytes()


def test_validation_scores_what_predicts_and_keeps_the_best(run, small_cohort, options):
    scores = table(run / "validation.csv")
    assert tuple(scores[0]) == VALIDATION_COLUMNS
    assert [row["step"] for row in scores] == ["1", "2", "3", "4"]
    dice = [float(row["dice"]) for row in scores]
    best, last = load_checkpoint(run / "best.pt"), load_checkpoint(run)
    assert best.step == 1 + int(np.argmax(dice))
    assert best.training is None
    assert last.training["best"]["step"] == best.step
    assert last.ema is not None
    assert not all(torch.equal(last.ema[name], tensor) for name, tensor in last.weights.items())
    # The last score again, from the checkpoint: the averaged weights, on the case held out.
    _, held = split_cases(find_cases(small_cohort), run_config(**options))
    subsets = [name.removeprefix("dice_").lower() for name in VALIDATION_COLUMNS[5:]]
    again = evaluate(Predictor.from_checkpoint(run), held, subsets, progress=False)
    assert dice[-1] == pytest.approx(again.frame["dice"].mean(), abs=1e-5)


def test_cases_held_out_are_not_trained_on(small_cohort, options):
    files = find_cases(small_cohort)
    kept, held = split_cases(files, run_config(**options))
    assert (len(kept), len(held)) == (2, 1)
    assert {case.id for case in kept} | {case.id for case in held} == {case.id for case in files}
    assert split_cases(files, CONFIG) == (files, [])
    with pytest.raises(InputError, match="holds 3 of the patients that are trained on"):
        split_cases(files, run_config(validate_every=1, validation=str(small_cohort)))
    with pytest.raises(InputError, match="leaves none of the 1 patients"):
        split_cases(files[:1], run_config(validate_every=1))


def visits(layout: str, *names: str) -> list[CaseFiles]:
    return [CaseFiles(name, layout, {}, Path(f"{name}-seg.nii.gz")) for name in names]


def test_images_that_are_trained_on_under_another_name_are_refused(small_cohort, tmp_path):
    for case in find_cases(small_cohort):
        folder = tmp_path / case.id.replace("Simulated_0", "Simulated_9")
        folder.mkdir()
        for path in case.label.parent.iterdir():
            shutil.copyfile(path, folder / path.name.replace("Simulated_0", "Simulated_9"))
    with pytest.raises(InputError, match="is the image of case Simulated_00000, which is trained on"):
        split_cases(find_cases(small_cohort), run_config(validate_every=1, validation=str(tmp_path)))


def test_no_patient_is_on_both_sides_of_the_hold_out():
    files = visits("brats2023", *(f"BraTS-GLI-{patient:05d}-{visit:03d}" for patient in range(8) for visit in range(3)))
    for seed in range(4):
        kept, held = split_cases(files, run_config(validate_every=1, holdout=0.25, seed=seed))
        assert (len(kept), len(held)) == (18, 6)
        assert not {case.patient for case in kept} & {case.patient for case in held}


def test_a_folder_to_validate_on_that_shares_a_patient_is_refused_by_the_names_of_both_visits(monkeypatch):
    ours = visits("brats2023", "BraTS-GLI-00001-000", "BraTS-GLI-00002-000")
    theirs = visits("brats2023", "BraTS-GLI-00001-001", "BraTS-GLI-00003-000")
    monkeypatch.setattr("smml.training.validation.find_cases", lambda _: theirs)
    config = run_config(validate_every=1, validation="held")
    with pytest.raises(
        InputError, match=r"holds 1 of the patients .* BraTS-GLI-00001-001, trained on as BraTS-GLI-00001-000\)"
    ):
        split_cases(ours, config)
    assert split_cases(ours[1:], config) == (ours[1:], theirs)


def test_a_run_stops_early_when_validation_no_longer_improves(small_cohort, tmp_path, monkeypatch):
    scores = iter([0.3, 0.5, 0.4, 0.5, 0.9])
    row = dict.fromkeys(VALIDATION_COLUMNS, 0.0)
    monkeypatch.setattr(trainer, "validate", lambda model, files, step, *_: row | {"step": step, "dice": next(scores)})
    config = run_config(steps=6, batch_size=1, validate_every=1, patience=2, checkpoint_every=100)
    train(small_cohort, tmp_path, config, progress=False)
    assert load_checkpoint(tmp_path).step == 4
    assert load_checkpoint(tmp_path / "best.pt").step == 2
    before = (tmp_path / "checkpoint.pt").read_bytes()
    train(small_cohort, tmp_path, config, resume=True, progress=False)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before, "a run that stopped early is finished"


def test_the_search_for_the_best_begins_anew_where_the_refinement_begins(small_cohort, tmp_path, monkeypatch):
    """Students that get worse must not end a run before its refinement has taken a step."""
    scores = iter([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    row = dict.fromkeys(VALIDATION_COLUMNS, 0.0)
    monkeypatch.setattr(trainer, "validate", lambda model, files, step, *_: row | {"step": step, "dice": next(scores)})
    config = run_config(
        steps=6,
        batch_size=1,
        validate_every=1,
        patience=2,
        checkpoint_every=100,
        refinement="tiny",
        refinement_start=0.5,
    )
    train(small_cohort, tmp_path, config, progress=False)
    assert load_checkpoint(tmp_path).step == 6
    assert load_checkpoint(tmp_path / "best.pt").step == 4, "the first that has a trained refinement"


def test_the_command_says_how_far_it_came_and_why_no_further(small_cohort, tmp_path, monkeypatch, capsys):
    row = dict.fromkeys(VALIDATION_COLUMNS, 0.0)
    dice = {1: 0.3, 2: 0.5, 3: 0.4, 4: 0.5}
    monkeypatch.setattr(trainer, "validate", lambda model, files, step, *_: row | {"step": step, "dice": dice[step]})

    def said(name: str, *words: str) -> str:
        command = ["smml", "train", small_cohort, tmp_path / name, "--batch-size", "1", *words]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out

    early = ["--steps", "6", "--validate-every", "1", "--patience", "2"]
    for words in (early, [*early, "--resume"]):
        text = said("early", *words)
        assert "stopped early after 4 of 6 steps: 2 validations in a row without a new best (patience)" in text
        assert "Dice 0.500 at step 2" in text
        assert str(tmp_path / "early" / "best.pt") in text
    assert "trained 2 steps; best validation: Dice 0.500 at step 2" in said(
        "whole", "--steps", "2", "--validate-every", "1"
    )
    text = said("plain", "--steps", "1")
    assert text.startswith("trained 1 steps; checkpoint in ")
    assert "best" not in text


def test_of_equal_scores_the_earlier_is_the_best():
    best = BestScore()
    assert [best.take(dice, step) for step, dice in enumerate((0.2, 0.4, 0.4, 0.3))] == [True, True, False, False]
    assert (best.dice, best.step, best.since) == (0.4, 1, 2)


def test_a_run_of_an_earlier_version_can_be_resumed(small_cohort, tmp_path):
    train(small_cohort, tmp_path, run_config(batch_size=1, steps=1), progress=False)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for name in ("accumulate", "precision", "ema", "compile", "recompute", "validate_every", "validation", "holdout"):
        del content["config"][name]
    torch.save(content, tmp_path / "checkpoint.pt")
    train(small_cohort, tmp_path, run_config(batch_size=1, steps=1), resume=True, progress=False)


# ---------------------------------------------------------------- what is written, and where


def test_the_run_says_with_what_it_was_made(run):
    facts = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert facts["versions"]["torch"] == str(torch.__version__)
    assert (facts["seed"], facts["processes"], facts["ema"]) == (3, 1, 0.9)
    root = Path(runs.smml.__file__).parents[1]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    assert facts["commit"] == head.stdout.strip()


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "smml", types.SimpleNamespace(__file__=str(tmp_path / "smml" / "__init__.py")))
    assert runs.commit() == ""


def test_tensorboard_gets_the_rows_or_its_absence_is_named(small_cohort, tmp_path, monkeypatch):
    config = run_config(steps=1, batch_size=1, tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackage, match=r'pip install "smml\[tensorboard\]"'):
        train(small_cohort, tmp_path / "without", config, progress=False)
    written = {}
    writer = types.SimpleNamespace(
        add_scalar=lambda name, value, step: written.update({(name, step): value}), close=lambda: None
    )
    fake = types.SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    train(small_cohort, tmp_path / "with", config, progress=False)
    row = table(tmp_path / "with" / "log.csv")[0]
    assert written["training/total", 0] == pytest.approx(float(row["total"]), rel=1e-5)


def test_learning_curves_show_losses_scores_and_the_best(run, tmp_path):
    figure = curves_figure(run, smooth=1)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["total"].y) == pytest.approx([float(row["total"]) for row in table(run / "log.csv")])
    assert list(traces["mean Dice"].x) == [1, 2, 3, 4]
    assert traces["best.pt"].x[0] == load_checkpoint(run / "best.pt").step
    with pytest.raises(InputError, match="no such log"):
        curves_figure(tmp_path)


def test_evaluation_over_ranks_has_the_rows_of_one(small_cohort, run):
    files, predictor = find_cases(small_cohort), Predictor.from_checkpoint(run)
    subsets = ("flair", "t1ce+t2")
    whole = evaluate(predictor, files, subsets, progress=False)
    parts = []

    class Recording(Ranks):
        def gather(self, value):
            if not value:  # what its look at the cases found wrong
                return [value]
            parts.append(value)
            return [*parts, {number: [] for number in range(len(files)) if number not in value}]

    evaluate(predictor, files, subsets, ranks=Recording(1, 2), progress=False)

    class Last(Ranks):
        def gather(self, value):
            return [value, *parts] if value else [value]

    both = evaluate(predictor, files, subsets, ranks=Last(0, 2), progress=False)
    assert [sorted(part) for part in parts] == [[1]]
    assert both.frame.equals(whole.frame)
    assert both.protocol == whole.protocol


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulate": 0}, "accumulate must be positive"),
        ({"accumulate": 3}, "accumulate must be at most batch_size, found 3 parts of 2 samples"),
        ({"precision": "fp16"}, "float32, bf16"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\)"),
        ({"holdout": 1.0}, "holdout must lie between 0 and 1"),
        ({"patience": -1}, "patience must be 0"),
        ({"validate_every": -1}, "validate_every must be 0"),
        ({"patience": 3}, r"patience was given \(3\), but without validate_every"),
        ({"validation": "held"}, r"validation was given \(held\), but without validate_every"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": 2**64}, "seed must be a whole number from 0"),
        *(({"learning_rate": rate}, "learning_rate must be positive and finite") for rate in (math.nan, math.inf, 0.0)),
        *(
            ({name: number}, f"{name} must be 0 or more and finite")
            for name in (
                "pixel_weight",
                "feature_weight",
                "class_weight",
                "refinement_weight",
                "weight_decay",
                "poly_power",
                "gradient_clip",
            )
            for number in (-1.0, math.nan, math.inf)
        ),
        ({"workers": -1}, "workers must be 0 or more"),
        *(
            ({name: number}, f"{name} must lie between 0 and 1")
            for name in ("consistency_start", "consistency_ramp", "tumour_share", "holdout", "gate_min_class_weight")
            for number in (-0.1, 1.1, math.nan)
        ),
        ({"refinement_start": math.nan}, "refinement_start must lie in"),
        ({"ema": math.nan}, "ema must lie in"),
        ({"spacing": math.nan}, "spacing must lie between"),
    ],
)
def test_an_option_out_of_range_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(copy.copy(CONFIG), **options)


@pytest.mark.parametrize(
    "words", [("--seed", "-1"), ("--learning-rate", "nan"), ("--pixel-weight", "-1"), ("--patience", "2")]
)
def test_the_command_refuses_an_option_before_anything_is_written(small_cohort, tmp_path, monkeypatch, capsys, words):
    monkeypatch.setattr(
        sys, "argv", ["smml", "train", str(small_cohort), str(tmp_path / "run"), "--steps", "1", *words]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"smml: {words[0][2:].replace('-', '_')} ")
    assert not (tmp_path / "run").exists()


def test_a_diverged_training_is_no_input_error_and_leaves_the_checkpoint(small_cohort, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"

    def spoil(row):
        if row["step"] == 1:
            monkeypatch.setattr(trainer, "take_step", broken)

    def broken(model, *rest):
        next(iter(model.parameters())).data.fill_(math.nan)
        return take_step(model, *rest)

    with pytest.raises(TrainingDiverged, match="training diverged at step 2") as error:
        train(small_cohort, output, run_config(batch_size=1, checkpoint_every=1), progress=False, on_step=spoil)
    assert not isinstance(error.value, InputError)
    assert load_checkpoint(output).step == 2
    monkeypatch.setattr(sys, "argv", ["smml", "train", str(small_cohort), str(tmp_path / "x"), "--batch-size", "1"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("smml: training diverged at step 0 (")
