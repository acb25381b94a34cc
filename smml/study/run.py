"""Running the study: one training and one evaluation after the other, each kept as soon as it is done.

    OUTPUT/study.json             the preset; a folder holds one study
    OUTPUT/cohort/                simulated subjects
    OUTPUT/runs/ARM-seedN/        a training run (:func:`smml.training.train`)
    OUTPUT/scores/ARM-seedN.csv   its scores; whoever is interrupted goes on after the last of these
    OUTPUT/scores/ARM-seedN-calibration.csv   its calibration error by number of sequences
    OUTPUT/scores/ARM-seedN-patients.csv   scores on labelled patients, where a folder of them was named

Networks as small as the CPU preset's gain little from a second thread: on a CPU, several trainings run side by side
with a thread each.

Windows are as large as the training patches: on images as coarse as the CPU preset's the predictor's default, half as
large again, holds the whole head and so much background that the statistics of the norms shift. The whole tumour then
comes out up to twice its size (docs/METHOD.md).
"""

import json
import os
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd
import torch

from smml.data import CaseFiles, find_cases, simulate_cohort
from smml.data.checking import check_cases
from smml.errors import InputError
from smml.evaluation import OutputCalibration, evaluate
from smml.files import write_text
from smml.inference import Predictor
from smml.locks import claimed
from smml.runs import CONFIG, LOG
from smml.study.presets import EVERY_ARM, StudyPreset, arms_named, study_preset
from smml.training import train
from smml.workers import in_processes

SETTINGS = "study.json"
REPORT_SCORES = "scores.csv.gz"
CALIBRATION = "calibration.csv"
PATIENTS = "patients.csv"


def run_study(
    output: str | os.PathLike,
    preset: str = "cpu",
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    workers: int = 1,
    patients: str | os.PathLike | None = None,
    report: str | os.PathLike | None = None,
    progress: bool = True,
) -> Path:
    """Train and score what is still missing of a study.

    Args:
        output: the study's folder, made or completed.
        preset: a name of :data:`smml.study.STUDIES`.
        arms: names of :data:`smml.study.EVERY_ARM`; None takes the preset's.
        seeds: some of the preset's; None takes all.
        device: torch device.
        workers: trainings side by side, each in a process of its own with one thread; 1 stays in this process and
            leaves the threads as they are.
        patients: folder of labelled cases on which every training is scored too, as witnesses.
        report: a report of the same study to go on from: its trainings are left out; a folder that holds none is
            passed over.
        progress: show what is being done, and a forecast of the time that is left.

    Returns:
        The folder of the scores, for :func:`smml.study.read_study`.

    Raises:
        InputError: an unknown name, a seed that the preset lacks, or a folder that holds another study or a report, or
            a report of another study; no labelled case among the patients; another process trains one of these arms and
            seeds right now.
    """
    output, sizes = Path(output), study_preset(preset)
    chosen = arms_named(list(sizes.arms if arms is None else arms))
    strange = [seed for seed in seeds or () if seed not in sizes.seeds]
    if strange:
        raise InputError(f"seed {strange[0]} is not one of preset {preset!r}: its seeds are {list(sizes.seeds)}")
    settings = json.loads(json.dumps({"preset": preset} | sizes.to_dict()))
    done, witnesses = reported_runs(report, settings), _patients(patients)
    # Several may do other arms or seeds of one study; which study it is, and its subjects, are one process's at a time.
    with claimed(output, wait=True):
        _claim(output, settings)
        for name, count, cohort_seed in _cohorts(sizes):
            folder = output / "cohort" / name
            # The cases held out too, which are read after the first training only.
            check_cases(_simulated(folder, sizes, count, cohort_seed, progress), progress=progress)
    # Seed by seed, so that an unfinished study compares all arms on fewer seeds rather than fewer arms.
    trained = dict.fromkeys(arm.trained_as or name for name, arm in chosen.items())
    jobs = [(name, seed) for seed in (sizes.seeds if seeds is None else seeds) for name in trained]
    jobs = [job for job in jobs if run_name(*job) not in done and not _scores(output, *job).exists()]
    arguments = [(output, sizes, *job, device, witnesses, progress and workers <= 1) for job in jobs]
    forecast = _Forecast([_cost(arm) for arm, _ in jobs])
    finished = (
        (_train_and_score(*each) for each in arguments)
        if workers <= 1
        else in_processes(_train_and_score, arguments, workers)
    )
    for arm, seed in finished:
        left = forecast.after(_cost(arm))
        if progress:
            print(f"{run_name(arm, seed)} is done", flush=True)
            print(left, flush=True)
    return output / "scores"


def _cost(arm: str) -> float:
    """What a training costs beside that of two students that exchange nothing, roughly."""
    of = EVERY_ARM[arm]
    return of.longer * (2.0 if of.wide else 1.0) * (1.4 if of.options.get("refinement") else 1.0)


class _Forecast:
    """How much time is left, from what the finished trainings took.

    Args:
        costs: of the trainings to do, in any unit.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self._left, self._done, self._count, self._begin = sum(costs), 0.0, len(costs), time.monotonic()

    def after(self, cost: float) -> str:
        """One more training of this cost is done: a sentence on the others."""
        self._left, self._done, self._count = self._left - cost, self._done + cost, self._count - 1
        if not self._count:
            return "no training is left"
        hours = (time.monotonic() - self._begin) / 3600 * self._left / self._done
        trainings = "training" if self._count == 1 else "trainings"
        return f"{self._count} {trainings} left, about {hours:.1f} hours at this pace"


def is_report(folder: Path) -> bool:
    """Whether a folder holds what :func:`smml.study.write_study` wrote, and no study beside it."""
    of_a_study = ("cohort", "runs", "scores")
    return all((folder / name).is_file() for name in (SETTINGS, REPORT_SCORES)) and not any(
        (folder / name).exists() for name in of_a_study
    )


def run_name(arm: str, seed: int) -> str:
    """Name of a training run and of its scores."""
    return f"{arm}-seed{seed}"


def _train_and_score(
    output: Path,
    sizes: StudyPreset,
    arm: str,
    seed: int,
    device: str | torch.device,
    patients: list[CaseFiles],
    progress: bool,
) -> tuple[str, int]:
    """One training run, from where it was left, and its scores; which it was."""
    scores = _scores(output, arm, seed)
    training, held_out = (
        _simulated(output / "cohort" / name, sizes, count, cohort_seed, progress=False)
        for name, count, cohort_seed in _cohorts(sizes)
    )
    config = sizes.config(EVERY_ARM[arm], seed, device)
    run = output / "runs" / scores.stem
    if progress:
        print(f"{scores.stem}: {EVERY_ARM[arm].title}", flush=True)
    result = train(training, run, config, resume=True, progress=progress)
    predictor = Predictor.from_checkpoint(result.checkpoint, device=device, window=config.patch)
    for file in (CONFIG, LOG):
        shutil.copyfile(run / file, _beside(scores, file))
    # The held-out subjects' scores last, as their presence says that the arm is done.
    if patients:
        witnessed = evaluate(predictor, patients, branches=True, progress=progress)
        _write(witnessed.frame.drop(columns="modalities"), _beside(scores, PATIENTS))
    calibration = OutputCalibration()
    scored = evaluate(predictor, held_out, branches=True, observe=calibration, progress=progress)
    _write(calibration.frame(), _beside(scores, CALIBRATION))
    _write(scored.frame.drop(columns="modalities"), scores)
    return arm, seed


def _write(frame: pd.DataFrame, path: Path) -> None:
    write_text(path, frame.to_csv(index=False, float_format="%.5g"))


def reported_runs(report: str | os.PathLike | None, settings: dict) -> Collection[str]:
    """Names of the trainings that a report of this study holds; none where there is no report.

    Args:
        report: folder of the report.
        settings: of the study, as its ``study.json`` has them.

    Raises:
        InputError: it is the report of another study.
    """
    if report is None or not is_report(Path(report)):
        return ()
    found = json.loads((Path(report) / SETTINGS).read_text(encoding="utf-8"))
    if found["preset"] != settings:
        raise InputError(
            f"{report}: is the report of a study of preset {found['preset'].get('preset')!r} with other sizes; name "
            "another folder for the report"
        )
    return found["runs"].keys()


def _patients(folder: str | os.PathLike | None) -> list[CaseFiles]:
    """The labelled cases of a folder, looked at before the first training."""
    if folder is None:
        return []
    cases = [case for case in find_cases(folder) if case.label is not None]
    if not cases:
        raise InputError(f"{folder}: no case with a label; expected labelled patients to score the trainings on")
    check_cases(cases, progress=False)
    return cases


def _simulated(folder: Path, sizes: StudyPreset, count: int, seed: int, progress: bool) -> list[CaseFiles]:
    return simulate_cohort(folder, count, spacing=sizes.spacing, seed=seed, look=sizes.look, progress=progress)


def _cohorts(sizes: StudyPreset) -> tuple[tuple[str, int, int], ...]:
    """Folder, number of subjects and seed of the cohort to train on and of the one held out."""
    return (
        ("training", sizes.training_cases, sizes.data_seed),
        ("held-out", sizes.held_out_cases, sizes.data_seed + 1),
    )


def _scores(output: Path, arm: str, seed: int) -> Path:
    return output / "scores" / f"{run_name(arm, seed)}.csv"


def _beside(scores: Path, file: str) -> Path:
    """Where another file of the run is kept beside its scores."""
    scores.parent.mkdir(parents=True, exist_ok=True)
    return scores.with_name(f"{scores.stem}-{file}")


def _claim(output: Path, settings: dict) -> None:
    """Make the folder this study's, or find that it is."""
    path = output / SETTINGS
    if is_report(output):
        raise InputError(
            f"{output}: holds the report of a study, not its trainings; name another folder to train in, or add "
            "--report to write the report anew"
        )
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != settings:
            raise InputError(
                f"{output}: holds a study of preset {found.get('preset')!r} with other sizes; name another folder, or "
                "remove this one"
            )
        return
    write_text(path, json.dumps(settings, indent=2) + "\n")
