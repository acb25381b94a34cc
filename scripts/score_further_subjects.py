"""Score trainings of a study on further held-out subjects: a narrower interval of the difference of two arms.

    python scripts/score_further_subjects.py build/cpu2 COHORT --output results/study/cpu2/further

The study's folder holds its trained weights (``smml study build/cpu2``) and the scores of its own held-out subjects.
COHORT holds these and more, made by the same seed and the same version of the look; those that the study has scored are
left out. Scores are kept in the study's folder subject by subject: what was interrupted goes on with the same command.

Writes further.csv.gz (a row per arm, seed, subject, subset and region, of the study's own subjects too), further.json
(with command, versions and hardware) and further.md: the difference over the study's own subjects, over the further
ones, and over all.
"""

import argparse
import gzip
import json
import math
import os
import platform
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from smml.data import CaseFiles, find_cases
from smml.data.simulation import lesion
from smml.errors import InputError
from smml.evaluation import bootstrap_mean, evaluate
from smml.evaluation.bootstrap import Interval, bootstrap_stratified_mean
from smml.evaluation.sheets import Kind, Sheet, number
from smml.files import replacing, write_text
from smml.inference import Predictor
from smml.models.checkpoint import load_checkpoint
from smml.runs import made_line, made_with
from smml.study import EVERY_ARM, Study, read_study
from smml.study.run import run_name
from smml.study.variance import signs, variance_parts
from smml.workers import in_processes

COLUMNS = ["subjects", "arm", "seed", "case", "subset", "output", "region", "dice", "truth_ml", "predicted_ml"]
OWN, FURTHER = "the study's own", "further"
# What there is to find in a subject: the region that says so, the first that it has, and the simulator's kinds.
KINDS = {
    "with ET": ("ET", ("ring", "solid")),
    "tumour without ET": ("WT", ("low-grade",)),
    "no tumour": (None, ("healthy",)),
}
WANTED = 2.5  # Dice points, as the study's own report asks for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of smml study, with its runs")
    parser.add_argument("cohort", type=Path, help="the study's held-out subjects and more")
    parser.add_argument("--arms", nargs=2, default=["refined-flat", "pair"], help="the arm, and what it is compared to")
    parser.add_argument("--workers", type=int, default=2, help="processes, with a thread each")
    parser.add_argument("--output", type=Path, default=Path("results/study/cpu2/further"))
    arguments = parser.parse_args()
    study = read_study(arguments.study)
    known = set(study.scores["case"])
    cases = [case for case in find_cases(arguments.cohort) if case.id not in known]
    if not cases:
        raise InputError(f"{arguments.cohort}: holds only subjects that the study has scored; simulate more of them")
    jobs = [(arguments.study, arm, seed, cases) for arm in arguments.arms for seed in study.seeds(arm)]
    scores = pd.concat(in_processes(score, jobs, arguments.workers), ignore_index=True)
    scores = scores.sort_values(["arm", "seed", "case"], kind="stable", ignore_index=True)
    own = study.scores[study.scores["arm"].isin(arguments.arms)]
    own = own[[row.output == EVERY_ARM[row.arm].output for row in own.itertuples()]]
    together = pd.concat([own.assign(subjects=OWN), scores.assign(subjects=FURTHER)], ignore_index=True)
    with (
        replacing(arguments.output / "further.csv.gz") as temporary,
        open(temporary, "wb") as stream,
        gzip.GzipFile("further.csv", "wb", fileobj=stream, mtime=0) as packed,
    ):
        together[COLUMNS].to_csv(packed, index=False, float_format="%.5g")
    # Of the scores as they are written: whoever reads the file finds the same figures.
    written = pd.read_csv(arguments.output / "further.csv.gz")
    report = {
        "what": "simulated subjects only",
        "command": "python " + " ".join(sys.argv),
        "preset": study.settings,
        "arms": arguments.arms,
        "differences": differences(written, study.settings, *arguments.arms),
        "by kind": differences_by_kind(written, study.settings, *arguments.arms),
        "runs": {
            name: study.runs[name]
            for name in (run_name(arm, seed) for arm in arguments.arms for seed in study.seeds(arm))
        },
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
    }
    write_text(arguments.output / "further.json", json.dumps(report, indent=1) + "\n")
    text = as_markdown(report)
    write_text(arguments.output / "further.md", text)
    print(text)


def score(study: Path, arm: str, seed: int, cases: list[CaseFiles]) -> pd.DataFrame:
    """Dice and volumes of one training on the cases, of the output that counts; kept in the study's folder."""
    torch.set_num_threads(1)
    name = run_name(arm, seed)
    run = study / "runs" / name
    # As the study scores: windows as large as the training's patches.
    predictor = Predictor.from_checkpoint(run, window=load_checkpoint(run).patch)
    found = evaluate(predictor, cases, distances=False, keep=study / "further" / name, progress=False)
    frame = found.frame[found.frame["output"] == EVERY_ARM[arm].output].assign(arm=arm, seed=seed)
    print(f"{name} is scored", file=sys.stderr, flush=True)
    return frame[COLUMNS[1:]]


def differences(scores: pd.DataFrame, settings: dict, arm: str, parent: str) -> list[dict]:
    """Mean Dice of an arm less that of another, in points: over all cases and over those with the region.

    Args:
        scores: as further.csv.gz has them.
        settings: of the study's preset.
        arm: its name.
        parent: the other's name.
    """
    rows = []
    for subjects, own in ((OWN, {OWN}), (FURTHER, {FURTHER}), ("all", {OWN, FURTHER})):
        study = Study(settings, scores[scores["subjects"].isin(own)], {})
        for present in (False, True):
            values = 100 * study.difference(arm, parent, present=present)
            parts = variance_parts(values.to_numpy())
            rows.append(
                {"subjects": subjects, "counted": "those with the region" if present else "all cases"}
                | _told(bootstrap_mean(values.to_numpy()), values.mean(axis=1))
                | {
                    "cases": values.shape[1],
                    "share of seeds, cases, rest": [round(share, 3) for share in parts.shares],
                    f"seeds for {WANTED:g} points": parts.seeds_for(WANTED),
                }
            )
    return rows


def differences_by_kind(scores: pd.DataFrame, settings: dict, arm: str, parent: str) -> list[dict]:
    """The same, over all subjects, of those without any region, those without ET and those with all three.

    And their mean by the shares with which the simulator draws them: the chance of how many of each are in the sample
    is not in its interval.

    Args:
        scores, settings, arm, parent: as for :func:`differences`.
    """
    values = 100 * Study(settings, scores, {}).difference(arm, parent)
    regions = scores[scores["truth_ml"] > 0].groupby("case")["region"].agg(set)
    kinds = np.array([_kind(regions.get(case, set())) for case in values])
    shares = {kind: sum(lesion.KINDS[name] for name in names) for kind, (_, names) in KINDS.items()}
    own = {kind: values.loc[:, kinds == kind] for kind in shares}
    rows = [
        {"subjects": kind, "share": share}
        | _told(bootstrap_mean(own[kind].to_numpy()), own[kind].mean(axis=1))
        | {"cases": own[kind].shape[1]}
        for kind, share in shares.items()
    ]
    weighted = bootstrap_stratified_mean(values.to_numpy(), kinds.tolist(), shares)
    by_seed = sum(share * own[kind].mean(axis=1) for kind, share in shares.items())
    return [*rows, {"subjects": "by these shares", "share": 1.0} | _told(weighted, by_seed) | {"cases": len(kinds)}]


def _kind(regions: set[str]) -> str:
    return next(kind for kind, (region, _) in KINDS.items() if region is None or region in regions)


def _told(interval: Interval, by_seed: pd.Series) -> dict:
    """What is told of a difference in points."""
    ends = {"difference": interval.mean, "low": interval.low, "high": interval.high}
    return {name: round(value, 3) for name, value in ends.items()} | {"by seed": by_seed.round(3).tolist()}


def as_markdown(report: dict) -> str:
    """``further.md``, from what ``further.json`` holds."""
    rows, kinds = [], []
    for row in report["differences"]:
        shares = [number(100 * share, 0) for share in row["share of seeds, cases, rest"]]
        wanted = row[f"seeds for {WANTED:g} points"]
        needed = number(math.nan if wanted is None else wanted, 0)
        rows.append((row["subjects"], str(row["cases"]), row["counted"], *_cells(row), *shares, needed))
    for row in report["by kind"]:
        kinds.append((row["subjects"], number(100 * row["share"], 0), str(row["cases"]), *_cells(row)))
    cells: list[tuple[str, Kind]] = [("difference", "number"), ("low", "number"), ("high", "number")]
    cells += [("width", "number"), ("sign by seed", "word")]
    first: list[tuple[str, Kind]] = [("subjects", "word"), ("number", "number")]
    last: list[tuple[str, Kind]] = [(f"{part}, %", "number") for part in ("from seeds", "from cases", "residual")]
    last += [(f"seeds needed for {WANTED:g} points", "number")]
    arm, parent = (EVERY_ARM[name].title for name in report["arms"])
    seeds = len(report["differences"][0]["by seed"])
    return f"""# The same trainings on further subjects

{arm}, less {parent}: mean Dice over WT, TC and ET and the 15 subsets in points, with a 95 % interval over {seeds}
training seeds and **simulated** held-out subjects. Preset `{report["preset"]["preset"]}`; the further subjects are
those that follow the study's own in the same cohort, of which no score was seen before. They were added because the
study's interval was wider than planned, and for no other reason. "All cases" counts a case without a region as 1
where none of it is called, and as 0 where any is.

{Sheet((*first, ("counted", "word"), *cells, *last), tuple(rows)).markdown()}

The same over all subjects, by what there is to find in them, all cases counted. The last row weighs the three kinds by
the shares with which the simulator draws them, so that it does not depend on how many of each came to be in the sample
(intervals: cases are resampled within their kind):

{Sheet((first[0], ("drawn, %", "number"), first[1], *cells), tuple(kinds)).markdown()}

{made_line(report)}
"""


def _cells(row: dict) -> tuple[str, ...]:
    """Difference, its interval, the width of that, and the sign of each seed."""
    means = (f"{row[name]:+.1f}" for name in ("difference", "low", "high"))
    return (*means, number(row["high"] - row["low"]), signs(row["by seed"]))


if __name__ == "__main__":
    main()
