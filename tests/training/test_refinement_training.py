"""Refinement from training to evaluation: made of what the students say, in step with the image, blind to the label."""

import csv
import dataclasses
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smml.data.layouts import find_cases
from smml.data.reading import read_case
from smml.errors import InputError
from smml.evaluation import Scores, evaluate, refinement_table, summary_table, write_report
from smml.inference import Predictor
from smml.modalities import MODALITIES, subset_mask
from smml.models import SMML, StudentConfig, presets
from smml.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from smml.sam import SAMPrior, TinyConfig, build_tiny, load_sam, save_tiny
from smml.tensors import weights_fingerprint
from smml.training import TrainingConfig, train
from smml.training.ema import AverageWeights
from smml.training.priors import PriorFolder, make_priors
from smml.training.trainer import COLUMNS

NARROW = StudentConfig((2, 2, 4, 4, 8), token_width=12, heads=3, mlp_width=24, token_grid=2)
SAM_SIZE = TinyConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, channels=16, decoder_mlp=16)


@pytest.fixture(autouse=True)
def narrow_tiny(monkeypatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", NARROW)


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory) -> Path:
    """A tiny SAM with random weights: what it says is nonsense, but it says it of what it is shown."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("sam") / "random.safetensors"
    save_tiny(build_tiny(SAM_SIZE), path, SAM_SIZE, {"training": "none"})
    return path


@pytest.fixture(scope="module")
def prior(sam_file) -> SAMPrior:
    return SAMPrior(load_sam(sam_file))


@pytest.fixture(scope="module")
def config(sam_file) -> TrainingConfig:
    return TrainingConfig(
        steps=4, batch_size=1, patch=32, consistency_start=0.25, consistency_ramp=0.5, checkpoint_every=4, seed=3,
        refinement=str(sam_file), precision="float32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(small_cohort, config, tmp_path_factory) -> Path:
    """A training with refinement from its third step on. Read it only."""
    output = tmp_path_factory.mktemp("runs") / "refined"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", NARROW)
        train(small_cohort, output, config, progress=False)
    return output


def sees_tumour(refine: bool = True) -> SMML:
    """Students that find tumour in much of any image, so that there is something to prompt with."""
    torch.manual_seed(1)
    model = SMML(NARROW, refine=refine).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def rows(output: Path) -> list[dict[str, str]]:
    with open(output / "log.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# ---------------------------------------------------------------- training


def test_the_refinement_begins_at_its_step_and_its_cost_is_in_the_log(run):
    table = rows(run)
    assert tuple(table[0]) == COLUMNS
    assert [float(row["refine_1"]) > 0 and float(row["refine_2"]) > 0 for row in table] == [False, False, True, True]
    assert [float(row["refine_kl_1"]) >= 0 for row in table[2:]] == [True, True]
    assert [float(row["prior_seconds"]) > 0 for row in table] == [False, False, True, False]


def test_the_refinement_networks_learn_and_only_when_they_are_asked_to(run, small_cohort, config, tmp_path):
    torch.manual_seed(config.seed)
    start = SMML("tiny", refine=True).state_dict()
    end = load_checkpoint(run).weights
    assert start.keys() == end.keys()
    changed = [name for name in start if name.startswith("refinements.") and not torch.equal(start[name], end[name])]
    assert len(changed) > 10
    plain = dataclasses.replace(config, refinement="")
    train(small_cohort, tmp_path / "plain", plain, progress=False)
    checkpoint = load_checkpoint(tmp_path / "plain")
    assert checkpoint.refinement == ""
    assert not any(name.startswith("refinements.") for name in checkpoint.weights)
    assert all(float(row["refine_1"]) == 0 for row in rows(tmp_path / "plain"))
    # Up to the step where it begins, the option changes nothing.
    same = [name for name in COLUMNS if name not in ("seconds", "gradient_norm")]
    for with_it, without in zip(rows(run)[:2], rows(tmp_path / "plain")[:2], strict=True):
        assert [with_it[name] for name in same] == [without[name] for name in same]


def test_a_run_without_refinement_lends_its_students_to_one_with_it(run, small_cohort, config, tmp_path):
    """And one with refinement to one without."""
    plain = dataclasses.replace(config, refinement="", steps=1)
    train(small_cohort, tmp_path / "plain", plain, weights=run, progress=False)
    assert not any(name.startswith("refinements.") for name in load_checkpoint(tmp_path / "plain").weights)
    late = dataclasses.replace(config, steps=1, refinement_start=0.0)
    train(small_cohort, tmp_path / "late", late, weights=tmp_path / "plain", progress=False)
    assert any(name.startswith("refinements.") for name in load_checkpoint(tmp_path / "late").weights)


def alone(config: TrainingConfig) -> TrainingConfig:
    return dataclasses.replace(config, refinement_only=True, refinement_start=0.0, ema=0.9)


@pytest.mark.parametrize("threads", [1, 2])
def test_with_refinement_only_the_students_stay_to_the_bit_and_the_refinement_learns(
    run, small_cohort, config, tmp_path, threads
):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # with two, each branch has a thread of its own
    try:
        train(small_cohort, tmp_path / "alone", alone(config), weights=run, progress=False)
    finally:
        torch.set_num_threads(before)
    start, end = load_checkpoint(run).weights, load_checkpoint(tmp_path / "alone")
    for weights in (end.weights, end.ema):
        moved = {name.split(".")[0] for name in start if not torch.equal(start[name], weights[name])}
        assert moved == {"refinements"}
    table = rows(tmp_path / "alone")
    assert all(float(row["refine_1"]) > 0 and float(row["fuse_1"]) > 0 for row in table)
    assert not any(float(row[name]) for row in table for name in ("teach_12", "teach_21", "relation", "classes"))


def test_the_average_keeps_the_bits_of_what_is_not_trained():
    module = torch.nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[-0.0, 1 / 3]]))
    module.weight.requires_grad_(False)
    average = AverageWeights(module, 0.99)
    before = module.weight.clone().view(torch.int32), module.bias.clone()
    with torch.no_grad():
        module.bias += 1
    average.update(module, 10_000)
    assert torch.equal(average.weights["weight"].view(torch.int32), before[0]), "-0 is not 0"
    assert torch.allclose(average.weights["bias"], before[1] + 0.01)


def test_the_refinement_learns_alone_what_it_learns_beside_students_that_train(run, small_cohort, config, tmp_path):
    """The first step is the same for it: its own losses do not reach the students, nor theirs reach it."""
    one = dataclasses.replace(alone(config), steps=1, ema=0.0)
    train(small_cohort, tmp_path / "alone", one, weights=run, progress=False)
    train(small_cohort, tmp_path / "both", replace(one, refinement_only=False), weights=run, progress=False)
    found, wanted = (load_checkpoint(tmp_path / name).weights for name in ("alone", "both"))
    for name in found:
        assert name.startswith("branches.") or torch.equal(found[name], wanted[name]), name


def test_refinement_only_needs_students_that_somebody_trained(small_cohort, config, tmp_path):
    with pytest.raises(InputError, match=r"name their weights \(weights, --weights\)"):
        train(small_cohort, tmp_path / "none", alone(config), progress=False)
    assert not list(tmp_path.glob("none/*.pt"))


# ---------------------------------------------------------------- priors on disk


def test_priors_are_those_of_the_masks_that_they_are_drawn_with(small_cohort, prior, tmp_path):
    model = sees_tumour()
    files = find_cases(small_cohort)[:1]
    made = make_priors(
        model, files, prior, tmp_path, spacing=(6.0, 6.0, 6.0), patch=32, pairs=2, seed=5, progress=False
    )
    predictor = Predictor(model, (6.0, 6.0, 6.0), window=32)
    encoding = predictor.encode(read_case(files[0], label=False))
    drawn = [made.draw(0, np.random.default_rng(seed)) for seed in range(8)]
    assert len({tuple(masks.flatten().tolist()) for masks, _ in drawn}) == 2
    masks, volumes = drawn[0]
    assert float(volumes.max()) > 0
    for branch, mask in enumerate(masks):
        coarse = predictor.coarse(encoding, mask)[branch][None]
        wanted = prior(encoding.prepared.image[None], coarse, mask[None])[0]
        assert torch.allclose(volumes[branch], wanted, atol=0.003)
        assert not volumes[branch][~mask].any()


def test_nothing_but_the_images_reaches_the_priors(small_cohort, prior, tmp_path):
    """Priors of a cohort whose labels are turned upside down, and of one that has none, are the same."""
    cases = find_cases(small_cohort)[:1]
    other = tmp_path / "unlabelled"
    shutil.copytree(small_cohort, other)
    for file in other.rglob("*seg*"):
        file.unlink()
    unlabelled = find_cases(other)[:1]
    assert cases[0].label is not None
    assert unlabelled[0].label is None
    folders = []
    for name, files in (("with", cases), ("without", unlabelled)):
        options = {"spacing": (6.0, 6.0, 6.0), "patch": 32, "pairs": 1, "seed": 5, "progress": False}
        folders.append(make_priors(sees_tumour(), files, prior, tmp_path / name, **options))
    (masks, volumes), (masks_without, without) = (folder.draw(0, np.random.default_rng(0)) for folder in folders)
    assert float(volumes.max()) > 0
    assert torch.equal(masks, masks_without)
    assert torch.equal(volumes, without)


def test_an_incomplete_or_damaged_folder_of_priors_is_refused(small_cohort, prior, tmp_path):
    with pytest.raises(InputError, match="no complete set of priors"):
        PriorFolder(tmp_path)
    options = {"spacing": (6.0, 6.0, 6.0), "patch": 32, "pairs": 1, "seed": 5, "progress": False}
    folder = make_priors(sees_tumour(), find_cases(small_cohort)[:1], prior, tmp_path, **options)
    path = tmp_path / "case-00000.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"case-00000\.npz: cannot be read"):
        folder.draw(0, np.random.default_rng(0))


# ---------------------------------------------------------------- inference


@pytest.fixture(scope="module")
def case(small_cohort):
    return read_case(find_cases(small_cohort)[0])


def test_the_label_reaches_neither_prior_nor_refined_output(case, prior):
    """The same case with another label, and with none at all, is refined to the same bits."""
    predictor = Predictor(sees_tumour(), case.spacing, window=48, prior=prior)
    random = np.random.default_rng(0)
    cases = [
        case,
        dataclasses.replace(case, label=random.integers(0, 4, case.label.shape, np.uint8)),
        dataclasses.replace(case, label=None),
    ]
    results = [predictor.segment(predictor.encode(one), ("flair", "t1ce")) for one in cases]
    assert all(result.refined for result in results)
    for result in results[1:]:
        assert np.array_equal(result.probabilities, results[0].probabilities)


def test_the_students_are_the_same_with_and_without_refinement(case, prior):
    model = sees_tumour()
    plain, refined = (Predictor(model, case.spacing, window=48, prior=one) for one in (None, prior))
    without, with_it = (one.segment(one.encode(case), ("t2",)) for one in (plain, refined))
    assert not without.refined
    assert without.student is None
    assert with_it.refined
    assert not with_it.student.refined
    assert np.array_equal(with_it.student.probabilities, without.probabilities)
    assert not np.array_equal(with_it.probabilities, without.probabilities)
    assert np.allclose(with_it.probabilities.sum(axis=0), 1, atol=1e-4)
    assert np.array_equal(with_it.labels, with_it.probabilities.argmax(axis=0))


def test_temperatures_are_the_students_and_leave_the_refinement_its_last_word(case, prior):
    """Neither what the refinement networks are given nor what they answer is tempered."""
    model = sees_tumour()
    plain, tempered = (
        Predictor(model, case.spacing, window=48, prior=prior, temperatures=one) for one in (None, (2.0, 1.0, 1.0, 1.0))
    )
    before, after = (one.segment(one.encode(case), ("t2",)) for one in (plain, tempered))
    assert np.array_equal(after.probabilities, before.probabilities)
    assert np.array_equal(after.uncertainty, before.uncertainty)
    assert np.array_equal(after.student.labels, before.student.labels)
    assert not np.array_equal(after.student.probabilities, before.student.probabilities)
    assert not np.array_equal(after.student.uncertainty, before.student.uncertainty)


@torch.inference_mode()
def test_one_window_gives_the_numbers_of_the_network_called_directly(case, prior):
    model = sees_tumour()
    predictor = Predictor(model, case.spacing, window=48, prior=prior)
    encoding = predictor.encode(case)
    assert len(encoding.plan.places) == 1
    mask = subset_mask(("t1ce", "t1"))
    students = predictor.blend(encoding, mask[None])[0]
    coarse, refined = predictor.coarse(encoding, mask), predictor._refine(encoding, mask, students)
    for branch, network in enumerate(model.refinements):
        volumes = prior(encoding.prepared.image[None], coarse[branch][None], mask[None])
        logits = students[branch].clamp_min(1e-30).log()
        wanted = network(logits[None], encoding.plan.pad(volumes[0])[None], mask[None]).logits[0].softmax(dim=0)
        assert torch.allclose(refined[branch], wanted, atol=1e-4)


def test_a_prior_without_refinement_networks_is_refused(prior):
    with pytest.raises(InputError, match="no refinement networks"):
        Predictor(sees_tumour(refine=False), (6.0, 6.0, 6.0), prior=prior)


def test_priors_given_to_a_network_without_refinement_are_refused():
    model = sees_tumour(refine=False)
    priors = torch.zeros(2, 1, 4, 3, 32, 32, 32)
    with pytest.raises(InputError, match="refine=True"):
        model(torch.zeros(1, 4, 32, 32, 32), torch.ones(2, 1, 4, dtype=torch.bool), None, priors)


# ---------------------------------------------------------------- checkpoints and evaluation


def test_a_checkpoint_knows_its_sam_and_the_predictor_follows_it(run, sam_file, tmp_path):
    checkpoint = load_checkpoint(run)
    assert checkpoint.refinement == str(sam_file)
    assert Predictor.from_checkpoint(run).prior is not None
    assert Predictor.from_checkpoint(run, refine=False).prior is None
    moved = shutil.copy(sam_file, tmp_path / "moved.safetensors")
    assert Predictor.from_checkpoint(run, refine=True, sam=moved).prior is not None


def test_other_weights_under_the_same_name_do_not_pass_unnoticed(run, sam_file, tmp_path):
    own = shutil.copy(sam_file, tmp_path / "own.safetensors")
    shutil.copytree(run, tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.config["sam"] == weights_fingerprint(load_sam(sam_file))
    save_checkpoint(replace(checkpoint, refinement=str(own)), tmp_path / "run" / "checkpoint.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Predictor.from_checkpoint(tmp_path / "run")
    torch.manual_seed(1)
    save_tiny(build_tiny(SAM_SIZE), own, SAM_SIZE, {"training": "none"})
    with pytest.warns(UserWarning, match="trained with other weights of the SAM"):
        Predictor.from_checkpoint(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Predictor.from_checkpoint(tmp_path / "run", sam=own)  # whoever names it means it
        Predictor.from_checkpoint(tmp_path / "run", refine=False)


def test_a_run_is_not_resumed_with_other_weights_of_its_sam(small_cohort, config, sam_file, tmp_path):
    own = shutil.copy(sam_file, tmp_path / "own.safetensors")
    short = replace(config, refinement=str(own), steps=1, refinement_start=0.0)
    train(small_cohort, tmp_path / "run", short, progress=False)
    torch.manual_seed(1)
    save_tiny(build_tiny(SAM_SIZE), own, SAM_SIZE, {"training": "none"})
    with pytest.raises(InputError, match=r"was trained with sam='\w{40}' instead of '\w{40}'"):
        train(small_cohort, tmp_path / "run", short, resume=True, progress=False)


def test_a_sam_named_by_its_file_is_found_from_any_folder(small_cohort, config, sam_file, tmp_path, monkeypatch):
    shutil.copy(sam_file, tmp_path / "own.safetensors")
    monkeypatch.chdir(tmp_path)
    short = replace(config, refinement="own.safetensors", steps=1, refinement_start=0.0)
    train(small_cohort, "run", short, progress=False)
    monkeypatch.chdir("/")
    assert load_checkpoint(tmp_path / "run").refinement == str(tmp_path / "own.safetensors")


def test_a_checkpoint_without_refinement_cannot_refine(tmp_path):
    model = SMML("tiny")
    plain = Checkpoint(model.config, model.state_dict(), (6.0, 6.0, 6.0), 32, 0, {}, None)
    save_checkpoint(plain, tmp_path / "checkpoint.pt")
    assert Predictor.from_checkpoint(tmp_path).prior is None
    with pytest.raises(InputError, match="trained without refinement"):
        Predictor.from_checkpoint(tmp_path, refine=True)


@pytest.fixture(scope="module")
def scores(case, prior) -> Scores:
    predictor = Predictor(sees_tumour(), case.spacing, window=48, prior=prior)
    return evaluate(predictor, [case], subsets=[("flair",), MODALITIES], progress=False)


def test_evaluation_scores_student_and_refined(scores):
    assert scores.frame.groupby("output").size().to_dict() == {"student": 6, "refined": 6}


def test_tables_show_both_side_by_side_and_never_mix_them(scores, tmp_path):
    student, refined = (summary_table(scores, output=name) for name in ("student", "refined"))
    alone = scores.outputs()["student"]
    by_hand = alone.frame[alone.frame["region"] == "WT"].groupby("subset")["dice"].mean()
    assert student.loc["FLAIR", "Dice WT"] == pytest.approx(by_hand["FLAIR"])
    assert not student.equals(refined)
    assert summary_table(scores).equals(refined)
    both = refinement_table(scores)
    text = write_report(scores, tmp_path, "made")[1].read_text(encoding="utf-8")
    assert "student" in text.lower()
    assert "refined" in text.lower()
    assert len(both) > 0
    assert refinement_table(alone) is None
