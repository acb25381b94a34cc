"""Running the study: one training and one evaluation after the other, each kept as soon as it is done.

    OUTPUT/study.json             the preset; a folder holds one study
    OUTPUT/cohort/                simulated subjects
    OUTPUT/runs/ARM-seedN/        a training run (:func:`smml.training.train`)
    OUTPUT/scores/ARM-seedN.csv   its scores; whoever is interrupted goes on after the last of these

Networks as small as the CPU preset's gain little from a second thread: on a CPU, several trainings run side by side
with a thread each.

Windows are as large as the training patches: on images as coarse as the CPU preset's the predictor's default, half as
large again, holds the whole head and so much background that the statistics of the norms shift. The whole tumour then
comes out up to twice its size (docs/METHOD.md).
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from smml.data import simulate_cohort
from smml.data.checking import check_cases
from smml.errors import InputError
from smml.evaluation import evaluate
from smml.files import write_text
from smml.inference import Predictor
from smml.locks import claimed
from smml.runs import CONFIG, LOG
from smml.study.presets import ARMS, READINGS, StudyPreset, arms_named, study_preset
from smml.training import train
from smml.workers import in_processes

SETTINGS = "study.json"
REPORT_SCORES = "scores.csv.gz"


def run_study(
    output: str | os.PathLike,
    preset: str = "cpu",
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Train and score what is still missing of a study.

    Args:
        output: the study's folder, made or completed.
        preset: a name of :data:`smml.study.STUDIES`.
        arms: names of :data:`smml.study.ARMS` and :data:`smml.study.READINGS`; None takes (a) to (f).
        seeds: some of the preset's; None takes all.
        device: torch device.
        workers: trainings side by side, each in a process of its own with one thread; 1 stays in this process and
            leaves the threads as they are.
        progress: show what is being done.

    Returns:
        The folder of the scores, for :func:`smml.study.read_study`.

    Raises:
        InputError: an unknown name, a seed that the preset lacks, or a folder that holds another study or a report;
            another process trains one of these arms and seeds right now.
    """
    output, sizes, chosen = Path(output), study_preset(preset), arms_named(None if arms is None else list(arms))
    strange = [seed for seed in seeds or () if seed not in sizes.seeds]
    if strange:
        raise InputError(f"seed {strange[0]} is not one of preset {preset!r}: its seeds are {list(sizes.seeds)}")
    # Several may do other arms or seeds of one study; which study it is, and its subjects, are one process's at a time.
    with claimed(output, wait=True):
        _claim(output, {"preset": preset} | sizes.to_dict())
        for name, count, cohort_seed in _cohorts(sizes):
            folder = output / "cohort" / name
            # The cases held out too, which are read after the first training only.
            check_cases(
                simulate_cohort(folder, count, spacing=sizes.spacing, seed=cohort_seed, progress=progress),
                progress=progress,
            )
    # Seed by seed, so that an unfinished study compares all arms on fewer seeds rather than fewer arms.
    trained = dict.fromkeys(arm.trained_as or name for name, arm in chosen.items())
    jobs = [(name, seed) for seed in (sizes.seeds if seeds is None else seeds) for name in trained]
    jobs = [job for job in jobs if not _scores(output, *job).exists()]
    if workers <= 1:
        for job in jobs:
            _train_and_score(output, sizes, *job, device, progress)
        return output / "scores"
    for name in in_processes(_train_and_score, [(output, sizes, *job, device, False) for job in jobs], workers):
        if progress:
            print(f"{name} is done", flush=True)
    return output / "scores"


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
    output: Path, sizes: StudyPreset, arm: str, seed: int, device: str | torch.device, progress: bool
) -> str:
    """One training run, from where it was left, and its scores; the run's name."""
    scores = _scores(output, arm, seed)
    training, held_out = (
        simulate_cohort(output / "cohort" / name, count, spacing=sizes.spacing, seed=cohort_seed, progress=False)
        for name, count, cohort_seed in _cohorts(sizes)
    )
    config = sizes.config((ARMS | READINGS)[arm], seed, device)
    run = output / "runs" / scores.stem
    if progress:
        print(f"{scores.stem}: {(ARMS | READINGS)[arm].title}", flush=True)
    result = train(training, run, config, resume=True, progress=progress)
    predictor = Predictor.from_checkpoint(result.checkpoint, device=device, window=config.patch)
    frame = evaluate(predictor, held_out, branches=True, progress=progress).frame
    for file in (CONFIG, LOG):
        shutil.copyfile(run / file, _beside(scores, file))
    # Last, as its presence says that the arm is done.
    write_text(scores, frame.drop(columns=["modalities"]).to_csv(index=False, float_format="%.5g"))
    return scores.stem


def _cohorts(sizes: StudyPreset) -> tuple[tuple[str, int, int], ...]:
    """Folder, number of subjects and seed of the cohort to train on and of the one held out."""
    return (
        ("training", sizes.training_cases, sizes.data_seed),
        ("held-out", sizes.held_out_cases, sizes.data_seed + 1),
    )


def _scores(output: Path, arm: str, seed: int) -> Path:
    return output / "scores" / f"{run_name(arm, seed)}.csv"


def _beside(scores: Path, file: str) -> Path:
    """Where the run's own ``config.json`` or ``log.csv`` is kept beside its scores."""
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
        if found != json.loads(json.dumps(settings)):
            raise InputError(
                f"{output}: holds a study of preset {found.get('preset')!r} with other sizes; name another folder, or "
                "remove this one"
            )
        return
    write_text(path, json.dumps(settings, indent=2) + "\n")
