"""Do 90 % intervals hold 90 % of true volumes, and is the scan that is named next the best one? On simulated subjects.

    torchrun --standalone --nproc-per-node 2 scripts/measure_intervals.py --checkpoint small --output results/intervals

Fits intervals and the table of gains to the subjects of one cohort and measures both on those of another, over the 15
subsets. Scores are kept in ``--work`` case by case: what was interrupted goes on with the same command, and
``smml intervals WORK/fit --checkpoint small --output NEW.safetensors`` puts what was fitted into the weights. With
``small`` at 2 mm a subject takes 45 s on one core, so that 200 and 100 subjects take two hours on two.

Writes intervals.json (with command, seeds, versions and hardware) and intervals.md.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from smml.data import REGIONS, simulate_cohort
from smml.data.simulation.imaging import LOOKS
from smml.evaluation import (
    Scores,
    conformal_quantile,
    evaluate,
    fit_gains,
    fit_intervals,
    format_gains,
    format_intervals,
    format_next_scan,
    measure_intervals,
    measure_next_scan,
)
from smml.files import write_text
from smml.inference import Predictor
from smml.models.checkpoint import load_checkpoint
from smml.models.intervals import LEVELS, POWER
from smml.ranks import start_ranks
from smml.runs import made_line, made_with

FIT_SEED, MEASURE_SEED = 421, 422
POWERS = (1 / 3, 1 / 2, POWER, 1.0)
# Coverage that is taken for the promised one, measured on 100 subjects.
ACCEPTED = (0.84, 0.96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--fit", type=int, default=200, help="subjects to fit to")
    parser.add_argument("--measure", type=int, default=100, help="subjects to measure on")
    parser.add_argument("--look", choices=LOOKS, default="typical", help="of the subjects")
    parser.add_argument("--spacing", type=float, help="voxel edge in mm, to try things; default: the checkpoint's")
    parser.add_argument("--work", type=Path, default=Path("build/intervals"), help="cohorts and scores")
    parser.add_argument("--output", type=Path, default=Path("results/intervals"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scores = {}
    with start_ranks() as ranks:
        predictor = read_predictor(arguments.checkpoint, arguments.spacing)
        for name, seed, count in (("fit", FIT_SEED, arguments.fit), ("measure", MEASURE_SEED, arguments.measure)):
            cases = None
            if ranks.first:
                cases = simulate_cohort(
                    arguments.work / f"{name}-cohort",
                    count,
                    spacing=predictor.spacing[0],
                    seed=seed,
                    look=arguments.look,
                    workers=ranks.count,
                )
            cases = ranks.gather(cases)[0]
            kept = arguments.work / name
            scores[name] = evaluate(predictor, cases, distances=False, keep=kept, ranks=ranks, progress=ranks.first)
    if ranks.first:
        report(arguments, scores["fit"], scores["measure"])


def read_predictor(checkpoint: str, spacing: float | None) -> Predictor:
    """The checkpoint's; at another spacing with windows of the training's patch."""
    if spacing is None:
        return Predictor.from_checkpoint(checkpoint)
    found = load_checkpoint(checkpoint)
    return Predictor(
        found.build(), (spacing,) * 3, patch=found.patch, window=found.patch, preprocessing=found.preprocessing
    )


def report(arguments: argparse.Namespace, known: Scores, new: Scores) -> None:
    """Fit, measure, and write both files."""
    intervals, gains = fit_intervals(known), fit_gains(known)
    measured, named = measure_intervals(new, intervals), measure_next_scan(new, gains)
    coverage = measured.groupby(["modalities", "region"])["covered"].mean()
    choice = named[named["rise_t1ce"].notna()]
    content = {
        "what": "simulated subjects only",
        "command": "python " + " ".join(sys.argv),
        "checkpoint": arguments.checkpoint,
        "look": arguments.look,
        "seeds": {"fit": FIT_SEED, "measure": MEASURE_SEED},
        "subjects": {"fit": arguments.fit, "measure": arguments.measure},
        "coverage": {str(size): part.droplevel(0).round(4).to_dict() for size, part in coverage.groupby(level=0)},
        "outside": [f"{size} {region}" for (size, region), share in coverage.items() if not within(share)],
        "named_best": round(float(named["right"].mean()), 4),
        "without_t1ce": {
            column: round(float(choice[column].mean()), 4)
            for column in ("right", "always_t1ce", "rise", "rise_t1ce", "rise_best")
        },
        "gains": gains.to_dict(),
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
    }
    write_text(arguments.output / "intervals.json", json.dumps(content, indent=1) + "\n")
    lines = [
        "# How far volumes may be off, and which scan next",
        "",
        f"`{arguments.checkpoint}` on **simulated** subjects, look `{arguments.look}`: fitted to {arguments.fit} of "
        f"the cohort seed {FIT_SEED}, measured on {arguments.measure} of the seed {MEASURE_SEED}; training saw neither."
        " What is calibrated on simulated subjects promises nothing for patients.",
        "",
        f"## True volumes in their {100 * LEVELS[0]:g} % interval",
        "",
        "By the number of sequences given, over all subsets of that size; the length is the median.",
        "",
        format_intervals(measured),
        "",
        f"Outside {100 * ACCEPTED[0]:g} to {100 * ACCEPTED[1]:g} %: {', '.join(content['outside']) or 'none'}.",
        "",
        "## Which power of the volume makes intervals short",
        "",
        "Median length in ml of intervals whose errors are differences of powers of ml, both sides alike or each by "
        "itself, fitted to one half of the first cohort and measured on the other, over all subsets.",
        "",
        format_powers(known),
        "",
        "## Which scan next",
        "",
        "Choices are pairs of a subject and of one or two sequences at hand. Best: raises the mean Dice of WT, TC and "
        "ET of this subject as much as any other absent sequence does.",
        "",
        format_next_scan(named),
        "",
        f"## What a further sequence brings, {gains.cases} subjects",
        "",
        format_gains(gains),
        "",
        made_line(content),
        "",
    ]
    text = "\n".join(lines)
    write_text(arguments.output / "intervals.md", text)
    print(text)


def within(share: float) -> bool:
    return ACCEPTED[0] <= share <= ACCEPTED[1]


def format_powers(scores: Scores) -> str:
    """The median length by power and by whether both sides are ranked together."""
    frame = scores.output().frame
    cases = sorted(frame["case"].unique())
    known = frame["case"].isin(cases[::2])
    rows = []
    for power in POWERS:
        for alike in (True, False):
            parts = []
            for (_, region), part in frame.groupby(["subset", "region"]):
                truth, found = part["truth_ml"].to_numpy() ** power, part["predicted_ml"].to_numpy() ** power
                errors, new = (truth - found)[known[part.index]], ~known[part.index]
                if alike:
                    down = up = conformal_quantile(np.abs(errors), LEVELS[0])
                else:
                    share = (1 + LEVELS[0]) / 2
                    down, up = (max(0.0, conformal_quantile(side, share)) for side in (-errors, errors))
                low, high = np.maximum(found[new] - down, 0), found[new] + up
                covered = (low <= truth[new] + 1e-6) & (truth[new] <= high + 1e-6)
                lengths = high ** (1 / power) - low ** (1 / power)
                parts.append(pd.DataFrame({"region": region, "length": lengths, "covered": covered}))
            table = pd.concat(parts).groupby("region").agg({"length": "median", "covered": "mean"})
            cells = [f"{table.loc[r, 'length']:.1f} | {100 * table.loc[r, 'covered']:.1f}" for r in REGIONS]
            rows.append(f"| {power:.2f} | {'together' if alike else 'each'} | {' | '.join(cells)} |")
    heads = " | ".join(f"{region}, ml | {region} covered, %" for region in REGIONS)
    return "\n".join([f"| power | sides | {heads} |", "|-:|---|" + "-:|" * (2 * len(REGIONS)), *rows])


if __name__ == "__main__":
    main()
