"""Does an arm of the study find more, or does it only call less? Its curve over how readily tumour is called.

    python scripts/measure_operating_point.py STUDY --output results/study/operating-point

Before the likeliest class is taken, the probability of background is multiplied by a factor: above 1 an arm calls less,
below 1 more, and no weight of the network is touched. Two arms that differ only in how readily they call tumour lie on
one curve; a better one lies above the other's. The subjects are the first of those held out of the preset "probe2",
of which no figure of the study `cpu2` is made; STUDY is a folder of `smml study` whose trainings are kept.

Writes operating-point.csv (a row per arm, seed, factor and region), operating-point.json (with command, versions and
hardware) and operating-point.md.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from smml.data import REGIONS, CaseFiles, read_case, simulate_cohort
from smml.evaluation.metrics import dice
from smml.files import write_text
from smml.inference import Predictor
from smml.runs import made_line, made_with
from smml.study.presets import EVERY_ARM, arm_label, study_preset
from smml.study.run import run_name
from smml.workers import in_processes

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
KEYS = ["arm", "seed", "factor", "region"]
DICE, ALARMS = "dice_present", "false_alarms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the study, with its runs")
    parser.add_argument("--arms", default="pair,both-even", help="names of arms; the first is the one to compare with")
    parser.add_argument("--seeds", default="0", help="training seeds")
    parser.add_argument("--subjects", type=int, default=24, help="simulated subjects to measure on")
    parser.add_argument("--output", type=Path, default=Path("results/study/operating-point"))
    parser.add_argument("--workers", type=int, default=2, help="processes, with a thread each")
    arguments = parser.parse_args()
    arms, seeds = arguments.arms.split(","), [int(seed) for seed in arguments.seeds.split(",")]
    sizes = study_preset("probe2")
    settings = json.loads((arguments.study / "study.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        cases = simulate_cohort(
            folder, arguments.subjects, spacing=sizes.spacing, seed=sizes.data_seed + 1, look=sizes.look
        )
        window = settings["training"]["patch"]
        jobs = [(arguments.study, arm, seed, window, case) for arm in arms for seed in seeds for case in cases]
        done = list(tqdm(in_processes(score, jobs, arguments.workers), total=len(jobs), unit="subject"))
    rows = summarise(pd.concat(done, ignore_index=True))
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows.to_csv(arguments.output / "operating-point.csv", index=False, float_format="%.5g")
    report = {
        "what": "simulated subjects only",
        # Where the study lies is no one else's business.
        "command": "python " + " ".join("STUDY" if word == str(arguments.study) else word for word in sys.argv),
        "preset": settings["preset"],
        "subjects": arguments.subjects,
        "cohort seed": sizes.data_seed + 1,
        "matched": {arm: matched(rows, arms[0], arm) for arm in arms[1:]},
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
    }
    write_text(arguments.output / "operating-point.json", json.dumps(report, indent=1) + "\n")
    text = as_markdown(rows, report, arms, seeds)
    write_text(arguments.output / "operating-point.md", text)
    print(text)


def score(study: Path, arm: str, seed: int, window: int, files: CaseFiles) -> pd.DataFrame:
    """Dice and volumes of one subject from each subset, with each factor."""
    predictor, case = _predictor(study, arm, seed, window), read_case(files)
    scheme, ml = predictor.scheme, float(np.prod(case.spacing)) / 1000
    true = {region: scheme.region(case.label, region) for region in REGIONS}
    one_branch = EVERY_ARM[arm].output == "branch 1"
    rows = []
    for segmentation in predictor.segment_all(predictor.encode(case), branches=one_branch):
        probabilities = segmentation.branches[0] if one_branch else segmentation.probabilities
        for factor in FACTORS:
            labels = np.concatenate([factor * probabilities[:1], probabilities[1:]]).argmax(axis=0)
            for region in REGIONS:
                found = scheme.region(labels, region)
                volumes = (ml * float(true[region].sum()), ml * float(found.sum()))
                rows.append((arm, seed, factor, region, dice(found, true[region]), *volumes))
    return pd.DataFrame(rows, columns=[*KEYS, "dice", "truth_ml", "predicted_ml"])


def _predictor(study: Path, arm: str, seed: int, window: int) -> Predictor:
    """A training of the study."""
    run = study / "runs" / run_name(EVERY_ARM[arm].trained_as or arm, seed)
    return Predictor.from_checkpoint(run, window=window, refine=EVERY_ARM[arm].output == "refined")


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per arm, seed, factor and region: means over the subjects and subsets."""
    there, without = scores[scores["truth_ml"] > 0], scores[scores["truth_ml"] == 0]
    volumes = there.groupby(KEYS)[["predicted_ml", "truth_ml"]].sum()
    return pd.DataFrame(
        {
            "dice": scores.groupby(KEYS)["dice"].mean(),
            DICE: there.groupby(KEYS)["dice"].mean(),
            ALARMS: (without["predicted_ml"] > 0).groupby([without[key] for key in KEYS]).mean(),
            "volume": volumes["predicted_ml"] / volumes["truth_ml"],
        }
    ).reset_index()


def matched(rows: pd.DataFrame, arm: str, other: str) -> dict[str, dict[str, float]]:
    """By region, an arm with as many false alarms as another raises as it is: by which factor, and each one's Dice.

    Between two factors the curve counts as straight over the factor's logarithm. NaN where it ends before.
    """
    found = {}
    for region in REGIONS:
        own, aim = curve(rows, arm, region), curve(rows, other, region).loc[1.0]
        # The more readily background wins, the fewer false alarms; interpolation wants them to rise.
        alarms, factors, overlap = (
            values.to_numpy()[::-1] for values in (own[ALARMS], own.index.to_series(), own[DICE])
        )
        at = {"x": aim[ALARMS], "xp": alarms, "left": np.nan, "right": np.nan}
        found[region] = {
            "false alarms": float(aim[ALARMS]),
            "factor": float(np.exp(np.interp(fp=np.log(factors), **at))),
            arm: float(np.interp(fp=overlap, **at)),
            other: float(aim[DICE]),
        }
    return found


def curve(rows: pd.DataFrame, arm: str, region: str) -> pd.DataFrame:
    """Dice and false alarms in per cent, and the volume: a row per factor, means over the seeds."""
    own = rows[(rows["arm"] == arm) & (rows["region"] == region)].groupby("factor")[["dice", DICE, ALARMS, "volume"]]
    return own.mean() * pd.Series({"dice": 100, DICE: 100, ALARMS: 100, "volume": 1})


def as_markdown(rows: pd.DataFrame, report: dict, arms: list[str], seeds: list[int]) -> str:
    lines = [
        "# Find more, or call less",
        "",
        f"Trainings of preset `{report['preset']}`, seeds {', '.join(map(str, seeds))}, on {report['subjects']} other "
        f"**simulated** subjects (cohort seed {report['cohort seed']}), over the 15 subsets. The probability of "
        "background is multiplied by the factor before the likeliest class is taken: no weight of the network changes. "
        "Factor 1 is the arm as it is. Dice over all cases is the mean of WT, TC and ET, and a case without a region "
        "counts 1 where none of it is called and 0 where any is; the others are of the cases that have the region. "
        "False alarms: the share of the segmentations of the other cases in which some of it is called.",
        "",
        f"| arm | factor | Dice, all, % | {' | '.join(f'Dice {region}, %' for region in REGIONS)} | "
        f"{' | '.join(f'false alarms {region}, %' for region in REGIONS)} | WT volume |",
        "|---|-:|-:|" + "-:|" * (2 * len(REGIONS) + 1),
    ]
    for arm in arms:
        curves = [curve(rows, arm, region) for region in REGIONS]
        for factor in FACTORS:
            own = [each.loc[factor] for each in curves]
            cells = [np.mean([row["dice"] for row in own]), *(row[DICE] for row in own), *(row[ALARMS] for row in own)]
            text = " | ".join(f"{value:.1f}" for value in cells)
            lines.append(f"| {arm_label(arm)} | {factor:g} | {text} | {own[0]['volume']:.2f} |")
    first = arm_label(arms[0])
    lines += ["", f"## {first} with as many false alarms", ""]
    lines += [f"| arm | region | false alarms, % | factor on {first} | Dice of {first}, % | Dice of the arm, % |"]
    lines += ["|---|---|-:|-:|-:|-:|"]
    for arm, regions in report["matched"].items():
        for region, row in regions.items():
            cells = [f"{row['false alarms']:.1f}", f"{row['factor']:.2f}", f"{row[arms[0]]:.1f}", f"{row[arm]:.1f}"]
            lines.append(f"| {arm_label(arm)} | {region} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", made_line(report), ""])


if __name__ == "__main__":
    main()
