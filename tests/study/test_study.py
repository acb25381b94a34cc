"""The ablation study: its arms differ in what they say they do, it resumes, and its report counts what it should."""

import dataclasses
import gzip
import json
import math
import re
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from typer.testing import CliRunner

from smml import cli, figures
from smml.data import simulate_cohort
from smml.errors import InputError
from smml.modalities import SUBSETS, subset_name
from smml.models import SMML, Student, StudentConfig, presets
from smml.models.checkpoint import load_checkpoint
from smml.ranks import Ranks
from smml.study import (
    ARMS,
    EVERY_ARM,
    READINGS,
    RIVALS,
    STUDIES,
    Study,
    arm_label,
    compare_arms,
    read_study,
    run_study,
    study_preset,
    write_study,
)
from smml.study import presets as study_presets
from smml.study import report as study_report
from smml.study import run as study_run
from smml.study.presets import StudyPreset
from smml.study.report import COLUMNS, distance_cell
from smml.study.variance import VarianceParts, variance_parts
from smml.study.witnesses import differences_by_seed, differences_sheet, summarise
from smml.training import TrainingConfig
from smml.training.step import take_step

ROOT = Path(__file__).resolve().parents[2]
REGIONS = ("WT", "TC", "ET")
REAL_TINY = presets.PRESETS["tiny"]
NARROW = StudentConfig((4, 4, 4, 8, 8), token_width=8, heads=2, mlp_width=8, token_grid=2, refinement_widths=(4, 4))


@pytest.fixture(autouse=True)
def narrow_tiny(monkeypatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", NARROW)
    monkeypatch.setitem(
        study_presets.STUDIES,
        "smoke",
        StudyPreset(
            spacing=6.0,
            training_cases=2,
            held_out_cases=1,
            data_seed=320,
            seeds=(0,),
            training={"preset": "tiny", "steps": 2, "batch_size": 2, "patch": 32, "checkpoint_every": 1},
        ),
    )


def made_study(effects: dict[str, float], seeds: int = 3, cases: int = 12, spread: float = 0.05) -> Study:
    """Scores in which each arm is better than the first by a known amount."""
    random = np.random.default_rng(0)
    level = random.uniform(0.4, 0.7, cases)
    rows = []
    for arm, effect in effects.items():
        for seed in range(seeds):
            noise = random.normal(0, spread, cases)
            for case in range(cases):
                for subset in map(subset_name, SUBSETS):
                    for region in REGIONS:
                        dice = float(np.clip(level[case] + effect + noise[case], 0, 1))
                        volumes = (10.0 * (case > 0), 15.0)  # the first case has none
                        where = (arm, seed, f"case{case}", subset, ARMS[arm].output, region)
                        rows.append((*where, dice, 5.0, dice / 2, *volumes))
    settings = {"preset": "smoke"} | study_preset("smoke").to_dict() | {"seeds": list(range(seeds))}
    return Study(settings, pd.DataFrame(rows, columns=COLUMNS), {})


def test_the_report_has_dice_by_number_of_sequences_and_the_dearest_sequence_of_each_arm():
    study = made_study({"single": 0.0, "pair": 0.1}, spread=0.0)
    # A case without a region does not count; the second arm loses 0.3 of ET where T2 is added to FLAIR.
    scores = study.scores
    scores.loc[scores["case"] == "case0", "dice"] = 0.0
    hurt = (scores["arm"] == "pair") & (scores["subset"] == "FLAIR+T2") & (scores["region"] == "ET")
    scores.loc[hurt, "dice"] -= 0.3
    text = f"{study_report._number_sheet(study).markdown()}\n{study_report._losses_sheet(study).markdown()}"
    there = scores[(scores["truth_ml"] > 0) & (scores["arm"] == "single")]
    mean = f"{100 * there['dice'].mean():.1f}"
    values = [3 * 11 * 3 * subsets for subsets in (4, 6, 4, 1)]  # seeds, cases, regions
    row = " | ".join(f"{mean} | {count}" for count in values)
    assert f"| {ARMS['single'].title} | {row} |" in text
    lost = re.search(
        rf"\| {re.escape(ARMS['pair'].title)} \| (\S+) \| (\S+) \| ET \| (\S+) \| 0.0 \| 12 \| 84 \|", text
    )
    assert {lost[1], lost[2]} == {"FLAIR", "T2"}
    assert float(lost[3]) == pytest.approx(-30)


def test_the_report_has_surfaces_volumes_and_calibration_where_they_were_kept():
    study = made_study({"single": 0.0, "pair": 0.1}, spread=0.0)
    scores = study.scores
    # Where there is nothing to find neither counts.
    scores.loc[scores["truth_ml"] == 0, ["nsd", "predicted_ml"]] = (1.0, 500.0)
    scores.loc[(scores["arm"] == "pair") & (scores["region"] == "TC"), "predicted_ml"] = 7.0
    there = scores[(scores["truth_ml"] > 0) & (scores["arm"] == "pair")]
    nsd = " | ".join([f"{100 * there['nsd'].mean():.1f}"] * 3)
    assert f"| {ARMS['pair'].title} | {nsd} | 5.0 | 3.0 | 5.0 |" in study_report._surfaces_and_volumes(study)
    assert study_report._calibration(study) == ""
    told = [
        ("pair", seed, sequences, region, 0.001 * sequences * (1 + place) + 0.0001 * (seed - 1))
        for seed in range(3)
        for sequences in (1, 2, 3, 4)
        for place, region in enumerate(REGIONS)
    ]
    told = dataclasses.replace(study, calibration=pd.DataFrame(told, columns=study_report._CALIBRATED))
    row = f"| {ARMS['pair'].title} | 0.25 | 0.50 | 0.75 | 0.20 | 0.40 | 0.60 | 0.80 |"
    assert row in study_report._calibration(told)
    assert ARMS["single"].title not in study_report._calibration(told)
    assert study_report._surfaces_and_volumes(dataclasses.replace(study, scores=scores.drop(columns="nsd"))) == ""


def test_each_arm_differs_from_its_parent_in_what_its_title_says():
    config = {name: STUDIES["cpu"].config(arm, 0).to_dict() for name, arm in (ARMS | READINGS).items()}

    def changed(name: str, parent: str) -> set[str]:
        different = {key for key in config[name] if config[name][key] != config[parent][key]}
        # Without pixel consistency there are no gates to weigh, and so on.
        for part, weights in (("pixel_weight", "gate_"), ("refinement", "refinement_")):
            if part in different:
                different -= {f"{weights}min_class_weight"}
        return different

    assert changed("pixel", "pair") == {"pixel_weight"}
    assert changed("feature", "pair") == {"feature_weight"}
    assert changed("both", "pair") == {"pixel_weight", "feature_weight"}
    assert changed("refined", "both") == {"refinement"}
    assert changed("no-classes", "both-even") == {"class_weight"}
    assert changed("pixel-weak", "pixel") == {"pixel_weight"}
    assert all(changed(f"{arm}-even", arm) == {"gate_min_class_weight"} for arm in ("pixel", "both", "refined"))
    assert changed("refined-even", "both-even") == changed("refined-flat", "both-even") == {"refinement"}
    assert changed("refined-flat", "refined-even") == {"refinement_min_class_weight"}
    weighted = {"pair": "pair", "both": "both-even", "refined": "refined-flat"}
    assert all(changed(f"{arm}-unweighted", of) == {"min_class_weight"} for arm, of in weighted.items())
    assert changed("both-unweighted", "pair-unweighted") == {"pixel_weight", "feature_weight"}
    assert all(changed(name, "both-even") == {"gate"} for name in READINGS if name.startswith("gate-"))
    assert config["pair"]["pixel_weight"] == config["pair"]["feature_weight"] == 0
    assert config["both"]["pixel_weight"] == config["both"]["feature_weight"] == 1
    assert (ARMS["single"].trained_as, ARMS["single"].output) == ("pair", "branch 1")


def test_the_rivals_cost_what_a_second_student_costs():
    sizes = STUDIES["cpu2"]
    single, wide, average = (sizes.config(EVERY_ARM[name], 0) for name in ("pair", "wide", "average"))
    one, two = (sum(p.numel() for p in Student(c).parameters()) for c in (REAL_TINY, wide.preset))
    assert two == pytest.approx(2 * one, rel=0.01)
    assert average.steps == 2 * single.steps
    assert (average.ema, single.ema, wide.ema) == (0.995, 0.0, 0.0)
    same = {"preset", "steps", "ema"}
    for rival in (wide, average):
        different = {key for key, value in rival.to_dict().items() if value != single.to_dict()[key]}
        assert different <= same
    assert all(arm.output == "branch 1" for arm in RIVALS.values())


def test_without_exchange_a_student_trains_as_if_it_were_alone():
    """Arm (a) is branch 1 of arm (b): whatever branch 2 is and sees, branch 1 ends with the same bits."""
    options = study_preset("cpu").config(ARMS["pair"], 0).to_dict() | {"gradient_clip": 0.5, "steps": 4}
    config = TrainingConfig.from_dict(options)
    weights = []
    for other in (0.0, 10.0):
        torch.manual_seed(0)
        model = SMML("tiny").train()
        with torch.no_grad():
            for parameter in model.branches[1].parameters():
                parameter.add_(other * torch.randn_like(parameter))
        optimiser = torch.optim.Adam(model.parameters(), amsgrad=True)
        for step in range(2):
            batch = random_batch(step)
            batch["masks"][:, 1] = True if other else batch["masks"][:, 1]
            take_step(model, optimiser, [batch], config, step, Ranks())
        weights.append([parameter.detach().clone() for parameter in model.branches[0].parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*weights, strict=True))


def random_batch(step: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(step)
    masks = torch.rand(2, 2, 4, generator=random) < 0.5
    masks[..., step % 4] = True
    return {
        "image": torch.randn(2, 4, 32, 32, 32, generator=random),
        "label": torch.randint(0, 4, (2, 32, 32, 32), generator=random).to(torch.uint8),
        "masks": masks,
        "available": torch.ones(2, 4, dtype=torch.bool),
    }


def test_a_study_runs_resumes_and_reports(tmp_path, monkeypatch):
    folder, windows, score = tmp_path / "study", [], study_run.evaluate

    def evaluate(predictor, *rest, **options):
        windows.append(predictor.window)
        return score(predictor, *rest, **options)

    monkeypatch.setattr(study_run, "evaluate", evaluate)
    arguments = ["study", str(folder), "--preset", "smoke", "--arms", "single,pair", "--workers", "1"]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "Unfinished" in result.output
    assert "(b) two students" in result.output
    found = read_study(folder)
    assert found.arms == ["single", "pair"]
    assert not found.complete
    # 1 case, 15 subsets, 3 regions; the arm that shares a training has its own output alone.
    outputs = found.scores.groupby(["arm", "output"]).size().to_dict()
    assert outputs == {("single", "branch 1"): 45, ("pair", "student"): 45, ("pair", "branch 1"): 45}
    assert load_checkpoint(folder / "runs" / "pair-seed0").config["pixel_weight"] == 0
    assert set(windows) == {32}, "windows as large as the patches, whatever the predictor's default"
    counts = found.calibration.groupby("arm").size().to_dict()
    assert counts == {"single": 12, "pair": 12}, "numbers of sequences times regions, of the output that counts"
    one, both = (found.calibration.loc[found.calibration["arm"] == arm, "ece"] for arm in ("single", "pair"))
    assert not np.array_equal(one, both)

    # Again: nothing is trained a second time, and the committed form reads back as what it was made from.
    monkeypatch.setattr(study_run, "train", lambda *_, **__: pytest.fail("trained again"))
    run_study(folder, "smoke", arms=["single", "pair"], progress=False)
    committed = read_study(write_study(found, tmp_path / "results", "title").parent)
    pd.testing.assert_frame_equal(committed.scores, found.scores)
    pd.testing.assert_frame_equal(committed.calibration, found.calibration)
    assert (committed.runs, committed.settings) == (found.runs, found.settings)
    assert set(json.loads((tmp_path / "results" / "study.json").read_text())["runs"]) == {"pair-seed0"}

    with pytest.raises(InputError, match="holds a study of preset 'smoke'"):
        run_study(folder, "cpu", progress=False)


def test_a_study_goes_on_from_its_report(tmp_path, monkeypatch):
    """Whoever has the committed report alone does not train again what it holds, and loses nothing of it."""
    report, output, trained = tmp_path / "report", tmp_path / "study", []
    made = made_study({"single": 0.0, "pair": 0.1}, seeds=1, cases=2).scores
    pair = made[made["arm"] == "pair"]
    pair = pd.concat([pair, pair.assign(output="branch 1")])
    settings = json.loads(json.dumps({"preset": "smoke"} | study_preset("smoke").to_dict()))
    run = {"hardware": "cpu", "commit": "1", "versions": {}, "minutes": 1.0, "pixel_weight": 0.0, "refinement": ""}
    committed = pd.concat([made[made["arm"] == "single"], pair])
    write_study(Study(settings, committed, {"pair-seed0": run}), report, "made")
    before = read_study(report)

    def train_and_score(folder, sizes, arm, seed, *_):
        trained.append(study_run.run_name(arm, seed))
        path = folder / "scores" / f"{trained[-1]}.csv"
        path.parent.mkdir(exist_ok=True)
        pair.drop(columns=["arm", "seed"]).assign(dice=0.5).to_csv(path, index=False)
        path.with_name(f"{trained[-1]}-config.json").write_text(json.dumps(run))
        path.with_name(f"{trained[-1]}-log.csv").write_text("seconds,prior_seconds\n60,0\n")
        return arm, seed

    monkeypatch.setattr(study_run, "_train_and_score", train_and_score)
    run_study(output, "smoke", arms=["pair", "feature"], progress=False, report=report)
    assert trained == ["feature-seed0"]
    found = read_study(output, report)
    assert found.arms == ["single", "pair", "feature"]
    assert list(found.runs) == ["feature-seed0", "pair-seed0"]
    pd.testing.assert_frame_equal(found.scores[found.scores["arm"] != "feature"], before.scores)
    # What was trained here counts before what the report says of the same arm and seed.
    run_study(output, "smoke", arms=["pair"], progress=False)
    again = read_study(output, report).scores
    assert (again["dice"] == 0.5).all()
    assert len(again) == len(found.scores)
    # That of another study does not.
    settings = json.loads((report / "study.json").read_text())
    settings["preset"]["held_out_cases"] += 1
    (report / "study.json").write_text(json.dumps(settings))
    for attempt in (lambda: run_study(output, "smoke", report=report), lambda: read_study(output, report)):
        with pytest.raises(InputError, match="is the report of"):
            attempt()


def test_patients_are_scored_after_each_training_and_not_named(tmp_path):
    patients = simulate_cohort(tmp_path / "patients", 2, spacing=6.0, seed=27, progress=False)
    folder = tmp_path / "study"
    options = ["--preset", "smoke", "--arms", "single,pair", "--workers", "1", "--patients", str(tmp_path / "patients")]
    result = CliRunner().invoke(cli.app, ["study", str(folder), *options], catch_exceptions=False)
    assert result.exit_code == 0
    found = read_study(folder / "report")
    assert found.patients is not None
    assert found.patients.groupby("arm").size().to_dict() == {"single": 45, "pair": 45}
    words = "".join(path.read_text("utf-8") for path in (folder / "report").iterdir() if path.suffix != ".gz")
    assert "Patients, as witnesses" in words
    assert not any(case.id in words for case in patients)
    # The patients' scores are not among those of the study, which has one subject.
    assert found.scores["case"].nunique() == 1
    for case in patients:
        case.label.unlink()
    with pytest.raises(InputError, match="no case with a label"):
        run_study(tmp_path / "other", "smoke", patients=tmp_path / "patients", progress=False)


def test_a_patients_dice_counts_where_the_region_is():
    rows = [
        ("pair", 0, "a", "T1ce", "ET", 0.5, 10.0, 8.0),
        ("pair", 0, "b", "T1ce", "ET", 0.0, 0.0, 3.0),
        ("pair", 0, "c", "T1ce", "ET", 1.0, 0.0, 0.0),
        ("pair", 0, "a", "T1ce", "WT", 0.8, 10.0, 8.0),
        ("pair", 0, "b", "T1ce", "WT", 0.6, 10.0, 8.0),
    ]
    names = ["arm", "seed", "case", "subset", "region", "dice", "truth_ml", "predicted_ml"]
    found = summarise(pd.DataFrame(rows, columns=names)).set_index("region")
    assert found.loc["ET", ["dice", "cases", "false_ml"]].tolist() == [0.5, 1, 3.0]
    assert found.loc["WT", ["dice", "cases"]].tolist() == [pytest.approx(0.7), 2]
    assert math.isnan(found.loc["WT", "false_ml"])


def test_patients_that_contradict_the_simulated_subjects_are_named():
    columns = ["arm", "seed", "subset", "region", "dice", "cases", "false_ml"]
    dice = {"single": (0.5, 0.6, 0.4), "pair": (0.6, 0.5, 0.2), "both-even": (0.7, 0.7)}
    rows = [
        (arm, seed, subset, region, value, 5, math.nan)
        for arm, values in dice.items()
        for seed, value in enumerate(values)
        for subset in ("FLAIR", "T1ce", "FLAIR+T1ce", "T2")
        for region in REGIONS
    ]
    # A subset that not every patient has does not count.
    patients = pd.DataFrame(rows, columns=columns).assign(dice=lambda d: d["dice"].mask(d["subset"] == "T2", 0.0))
    assert differences_by_seed(patients, "pair", "single").round(6).to_dict() == {0: 0.1, 1: -0.1, 2: -0.2}
    assert differences_by_seed(patients, "both-even", "pair").round(6).to_dict() == {0: 0.1, 1: 0.2}
    assert differences_by_seed(patients, "wide", "pair").empty
    pairs = [("pair", "single"), ("both-even", "pair"), ("wide", "pair")]
    compared = pd.DataFrame(pairs, columns=["arm", "parent"]).assign(mean=0.03)
    sheet, apart = differences_sheet(patients, compared)
    assert apart == [("pair", "single")]
    assert [row[2:] for row in sheet.rows] == [
        ("-6.7", "-20.0", "+10.0", "+−−", "+3.0"), ("+15.0", "+10.0", "+20.0", "++", "+3.0")
    ]  # fmt: skip


def test_the_forecast_weighs_what_each_training_costs(monkeypatch):
    clock = iter([0.0, 3600.0, 5 * 3600.0])
    monkeypatch.setattr(study_run.time, "monotonic", lambda: next(clock))
    forecast = study_run._Forecast([1.0, 2.0, 2.0])
    assert forecast.after(1.0) == "2 trainings left, about 4.0 hours at this pace"
    assert forecast.after(2.0) == "1 training left, about 3.3 hours at this pace"
    assert forecast.after(2.0) == "no training is left"


def test_trainings_run_in_processes_of_their_own(tmp_path, capfd):
    """The sizes go along: the processes do not see this one's presets, and train the real ``tiny``."""
    scores = run_study(tmp_path / "study", "smoke", arms=["pair"], workers=2)
    assert (scores / "pair-seed0.csv").exists()
    assert "pair-seed0 is done" in capfd.readouterr().out.splitlines()


def test_differences_are_paired_by_seed_and_case():
    changes = compare_arms(made_study({"single": 0.0, "pair": 0.03, "both": 0.03}, spread=0.002)).set_index(
        ["arm", "parent"]
    )
    gain = changes.loc[("pair", "single")]
    # Cases differ by tens of points, arms by three: only paired is this interval narrow.
    assert gain["mean"] == pytest.approx(0.03, abs=0.002)
    assert 0.02 < gain["mean low"] < gain["mean high"] < 0.04
    assert gain["signs mean"] == "+++"
    nothing = changes.loc[("both", "pair")]
    assert nothing["mean low"] < 0 < nothing["mean high"] or abs(nothing["mean"]) < 0.001
    assert ("refined", "both") not in changes.index


def test_where_a_region_is_what_an_arm_gains_by_calling_nothing_elsewhere_does_not_count():
    study = made_study({"single": 0.0, "pair": 0.0}, spread=0.002)
    quiet = study.scores["case"].isin(sorted(study.scores["case"].unique())[:3]) & (study.scores["region"] == "ET")
    called = study.scores["arm"] == "single"
    scores = study.scores.assign(
        truth_ml=(~quiet).astype(float),
        dice=study.scores["dice"].mask(quiet & called, 0.0).mask(quiet & ~called, 1.0),
    )
    study = Study(study.settings, scores, {})
    everywhere, there = (compare_arms(study, present=present).iloc[0] for present in (False, True))
    cases = scores["case"].nunique()
    assert everywhere["ET"] == pytest.approx(3 / cases, abs=0.01)
    assert everywhere["mean"] == pytest.approx(1 / cases, abs=0.01)
    assert there["ET"] == pytest.approx(0, abs=0.01)
    assert there["mean"] == pytest.approx(0, abs=0.01)
    assert study.values("pair", "ET", present=True).shape[1] == cases - 3
    assert study.values("pair", "mean", present=True).shape[1] == cases


@pytest.mark.parametrize(("seed", "case", "rest"), [(0.0, 0.0, 1.0), (2.0, 0.0, 1.0), (0.0, 3.0, 1.0), (1.0, 2.0, 3.0)])
def test_the_variance_is_parted_among_seeds_cases_and_the_rest(seed, case, rest):
    """Drawn with known parts, the estimate is right in the mean over many tables."""
    random = np.random.default_rng(0)
    tables = (
        seed**0.5 * random.normal(size=(5, 1))
        + case**0.5 * random.normal(size=(1, 20))
        + rest**0.5 * random.normal(size=(5, 20))
        for _ in range(400)
    )
    parts = [variance_parts(table) for table in tables]
    # Negative estimates count as 0, which lifts the mean a little where the truth is 0.
    assert np.mean([part.seed for part in parts]) == pytest.approx(seed, abs=0.15 * (1 + seed))
    assert np.mean([part.case for part in parts]) == pytest.approx(case, abs=0.15 * (1 + case))
    assert np.mean([part.rest for part in parts]) == pytest.approx(rest, rel=0.05)


def test_the_seeds_for_a_width_are_the_fewest_that_reach_it():
    parts = VarianceParts(seed=4.0, case=1.0, rest=2.0, seeds=3, cases=10)
    seeds = parts.seeds_for(2.5)
    assert parts.width(seeds) <= 2.5 < parts.width(seeds - 1)
    assert sum(parts.shares) == pytest.approx(1)
    assert dataclasses.replace(parts, case=100.0).seeds_for(2.5) is None
    with pytest.raises(InputError, match="two or more seeds"):
        variance_parts(np.ones((1, 5)))


def test_many_comparisons_are_told_and_judged_together():
    study = made_study({"single": 0.0, "pair": 0.1, "pixel": 0.1001}, seeds=4)
    text = study_report._many_comparisons(study, compare_arms(study))
    assert "Of 2 comparisons" in text
    assert "97.5 %" in text
    assert "still do: (b) against (a) (" in text
    assert "too few" not in text


def test_few_seeds_promise_nothing_at_a_level_that_they_cannot_reach():
    """One of three seeds drawn three times is as likely as 1 in 27: no percentile below that widens an interval."""
    study = made_study({"single": 0.0, "pair": 0.1, "pixel": 0.1001}, seeds=3)
    text = study_report._many_comparisons(study, compare_arms(study))
    assert "still do: none. Of 2 of them nothing can be said so" in text


def test_volumes_count_where_there_is_something_to_find():
    assert made_study({"pair": 0.0}).volume_ratio("pair", "WT") == pytest.approx(1.5)


def test_an_arm_that_finds_next_to_nothing_has_no_distance_to_boast_of():
    """Only the case without a tumour has an HD95 there, 0; what the others have is theirs still."""
    study = made_study({"single": 0.0, "pair": 0.0, "pixel": 0.0})
    scores = study.scores
    collapsed = (scores["arm"] == "pair") & (scores["seed"] == 1)
    scores.loc[collapsed, "hd95"] = np.where(scores.loc[collapsed, "case"] == "case0", 0.0, np.nan)
    assert distance_cell(study, "pair", "WT") == "–"
    for arm in ("single", "pixel"):
        assert distance_cell(study, arm, "WT") == "5.0 (5.0 to 5.0)"
        assert study.distances("WT").groupby("case").ngroups == 11


def test_distances_of_all_arms_are_over_the_same_scores():
    """Who misses the hard subset, or is silent where nothing is, must not get the smaller distance for it."""
    study = made_study({"single": 0.0, "pair": 0.0})
    scores = study.scores
    hard = scores["subset"] == "T1"
    scores.loc[hard, "hd95"] = 80.0
    scores.loc[hard & (scores["arm"] == "pair") & (scores["seed"] == 0), "hd95"] = np.nan
    scores.loc[(scores["case"] == "case0") & (scores["arm"] == "pair"), "hd95"] = 0.0
    single, pair = (study.distances("TC")[arm] for arm in ("single", "pair"))
    pd.testing.assert_series_equal(single, pair, check_names=False)
    assert single.loc[0].unique().tolist() == [5.0], "the hard subset counts for neither with this seed"
    assert single.loc[1].unique() == pytest.approx([(14 * 5 + 80) / 15])
    assert "case0" not in single.index.get_level_values("case")


def test_arms_of_an_unfinished_study_stand_side_by_side_over_the_seeds_that_all_have():
    study = made_study({"single": 0.0, "pair": 0.1}, spread=0.0)
    scores = study.scores
    scores.loc[scores["seed"] == 2, "dice"] = 0.0
    unfinished = dataclasses.replace(study, scores=scores[(scores["arm"] == "single") | (scores["seed"] < 2)])
    assert not unfinished.complete
    shown = unfinished.on_common_seeds()
    assert shown.seeds("single") == shown.seeds("pair") == [0, 1]
    assert (shown.scores["dice"] > 0).all()
    assert study.on_common_seeds() is study
    alone = dataclasses.replace(study, scores=scores[(scores["arm"] == "single") == (scores["seed"] == 0)])
    assert alone.on_common_seeds() is alone, "no seed is common"


def test_an_arm_that_fails_leaves_the_others_readable_in_the_figure():
    study = made_study({"single": 0.0, "pair": 0.02, "pixel": 0.03, "feature": -0.5, "both": 0.01}, spread=0.005)
    figure = figures.study_figure(study)
    (mean,) = (trace for trace in figure.data if trace.name == "mean")
    low, high = figure.layout.xaxis4.range
    assert high == -low < 25
    drawn = zip(mean.x, mean.text, mean.marker.symbol, mean.error_x.arrayminus, strict=True)
    shown = dict(zip(mean.y, drawn, strict=True))
    x, text, symbol, minus = shown["(d) − (b)"]
    assert low <= x < 0.9 * low
    assert (text.strip()[0], symbol, minus) == ("-", "triangle-left", 0)
    assert float(text) == pytest.approx(min(mean.customdata), abs=3)
    x, text, symbol, minus = shown["(b) − (a)"]
    assert (x, text, symbol) == (pytest.approx(2, abs=0.5), "", "circle")
    assert minus > 0


def test_the_label_of_an_arm_is_its_own_and_names_those_that_came_later():
    labels = {name: arm_label(name) for name in EVERY_ARM}
    assert labels["refined"] == "(f)"
    assert labels["refined-flat"] == "(f) refined-flat"
    assert len(set(labels.values())) == len(labels)


def test_an_unfinished_seed_does_not_count_in_a_difference():
    study = made_study({"single": 0.0, "pair": 0.1})
    gone = (study.scores["arm"] == "pair") & (study.scores["seed"] == 2)
    part = Study(study.settings, study.scores[~gone], {})
    row = compare_arms(part).iloc[0]
    assert (row["seeds"], len(row["signs mean"])) == (2, 2)
    assert not part.complete


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "unknown study preset 'huge'"),
        ({"preset": "smoke", "arms": ["both", "all"]}, "unknown arm 'all'"),
        ({"preset": "smoke", "seeds": [7]}, r"its seeds are \[0\]"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run_study(tmp_path / "study", progress=False, **arguments)
    assert not (tmp_path / "study").exists()


def test_no_study_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no study"):
        read_study(tmp_path)


# ---------------------------------------------------------------- where the report goes


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def asked(*words) -> Exception | None:
    """What the command ends with, None if it works."""
    return CliRunner().invoke(cli.app, ["study", *map(str, words)]).exception


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(study_run, "simulate_cohort", lambda *_, **__: pytest.fail("a cohort was simulated"))
    monkeypatch.setattr(study_run, "train", lambda *_, **__: pytest.fail("trained"))


def made_folder(folder: Path) -> Path:
    """A study as far as its folder goes: settings and runs, and no scores."""
    (folder / "runs" / "pair-seed0").mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"preset": "smoke"} | study_preset("smoke").to_dict()))
    return folder


@pytest.mark.parametrize("report", [[], ["--report"]])
def test_a_report_never_takes_the_place_of_a_study(tmp_path, no_training, report):
    one, other = made_folder(tmp_path / "one"), made_folder(tmp_path / "other")
    new, before = tmp_path / "new", content(tmp_path)
    for output, results in ((one, one), (one, one / "runs" / ".."), (one, other), (new, new)):
        error = asked(output, "--preset", "smoke", "--results", results, *report)
        assert isinstance(error, InputError)
        assert "is the folder of a study" in str(error)
    assert content(tmp_path) == before
    assert not new.exists()
    with pytest.raises(InputError, match=r"name another folder for the report"):
        write_study(made_study({"single": 0.0}), one, "title")
    assert content(tmp_path) == before


def test_a_report_that_cannot_be_a_folder_is_refused_before_anything_is_trained(tmp_path, no_training):
    (tmp_path / "file").write_text("mine")
    for results in (tmp_path / "file", tmp_path / "file" / "report"):
        error = asked(tmp_path / "study", "--preset", "smoke", "--results", results)
        assert isinstance(error, InputError)
        assert f"{tmp_path / 'file'} is a file, expected a folder for the report" in str(error)
    (tmp_path / "odd" / "study.md").mkdir(parents=True)
    error = asked(tmp_path / "study", "--preset", "smoke", "--results", tmp_path / "odd")
    assert f"{tmp_path / 'odd' / 'study.md'}: expected a file to write or replace" in str(error)
    assert not (tmp_path / "study").exists()


@pytest.fixture
def report(tmp_path, monkeypatch) -> Path:
    """The report of a made study, its text left out because the intervals take long."""
    monkeypatch.setattr(study_report, "format_study", lambda study, title: f"# {title}\n")
    return write_study(made_study({"single": 0.0, "pair": 0.0}), tmp_path / "report", "made").parent


def test_a_report_is_written_anew_in_its_place_and_holds_no_study_to_go_on_with(report, no_training):
    before = content(report)
    assert asked(report, "--report", "--results", report) is None
    assert (report / "study.md").read_text(encoding="utf-8").startswith("# Ablation study `smoke`")
    after = content(report)
    assert {name for name in before if before[name] != after[name]} == {"study.md"}, "same scores, same bytes"
    assert b"scores.csv\0" in after["scores.csv.gz"][:30], "not the name that the file had while it was written"
    error = asked(report, "--preset", "smoke")
    assert isinstance(error, InputError)
    assert "holds the report of a study, not its trainings" in str(error)


def test_scores_that_cannot_be_written_leave_the_old_ones(report, monkeypatch):
    before = content(report)

    def broken(self, packed, **_):
        packed.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", broken)
    with pytest.raises(KeyboardInterrupt):
        write_study(made_study({"single": 0.0}), report, "made")
    assert content(report) == before


@pytest.mark.parametrize("name", ["probe", "cpu", "cpu2", "probe2"])
def test_a_committed_report_is_what_its_scores_make(name, tmp_path, monkeypatch):
    committed = ROOT / "results" / "study" / name
    found = read_study(committed)
    if name != "probe":  # their intervals take long; tests/evaluation makes these pages again
        monkeypatch.setattr(study_report, "format_study", lambda *_: (committed / "study.md").read_text("utf-8"))
    written = write_study(found, tmp_path, f"Ablation study `{name}`, simulated cases").parent
    assert (written / "study.md").read_text(encoding="utf-8") == (committed / "study.md").read_text(encoding="utf-8")
    assert (written / "study.json").read_bytes() == (committed / "study.json").read_bytes()
    one, two = (gzip.decompress((folder / "scores.csv.gz").read_bytes()) for folder in (written, committed))
    assert one == two


# ---------------------------------------------------------------- sizes

SIZES = STUDIES["smoke"]


@given(
    name=st.sampled_from([each.name for each in dataclasses.fields(StudyPreset)]),
    value=st.sampled_from([0, -1, 1e9, 10**9, 10**400, math.nan, math.inf, True, None, "3", "", (), (1, 1), (-1,), {}])
    | st.tuples(st.integers())
    | st.dictionaries(
        st.sampled_from(["steps", "patch", "seed", "gate", "device", "stepz"]), st.integers(), max_size=2
    ),
)
def test_any_size_of_a_study_can_be_run_or_is_refused_in_a_sentence(name, value):
    try:
        sizes = dataclasses.replace(SIZES, **{name: value})
    except InputError as error:
        said = str(error)
    else:
        assert 0.2 <= sizes.spacing <= 10
        assert min(sizes.training_cases, sizes.held_out_cases) >= 1
        assert max(sizes.training_cases, sizes.held_out_cases) <= 100_000
        for arm in (EVERY_ARM[arm] for arm in sizes.arms):
            assert sizes.config(arm, sizes.seeds[0]).seed == sizes.seeds[0]
        return
    assert said.splitlines() == [said]
