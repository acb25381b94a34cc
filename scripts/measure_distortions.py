"""What the accidents of real files cost: noise outside the brain, a slope that moves 0, an extreme voxel, thick slices.

    python scripts/measure_distortions.py --checkpoint small --cases 8 --seed 13 --output results/simulator/small

Every case of a cohort that is simulated here is segmented as it is and with each accident, from all four sequences and
from each one alone. Writes distortions.csv (a row per case, subset and accident), distortions.json (with command,
versions and hardware) and distortions.md: Dice of WT to the answer without the accident, and for thick slices to the
truth.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from smml import Predictor, read_case
from smml.data import simulate_cohort
from smml.data.case import Case
from smml.data.simulation.imaging import LOOKS
from smml.evaluation.metrics import dice
from smml.files import write_text
from smml.modalities import MODALITIES, subset_name
from smml.runs import made_line, made_with

SLICE_MM = 5.0
SUBSETS = ((*MODALITIES,), *((name,) for name in MODALITIES))


def noise_outside(case: Case, random: np.random.Generator) -> Case:
    """Voxels outside the brain are not 0 but up to some thousandths, as after a resampling of the image."""
    return _changed(case, lambda v: np.where(v == 0, np.abs(random.normal(0, 0.001, v.shape)), v))


def moved_zero(case: Case, random: np.random.Generator) -> Case:
    """A header's slope of 0.01 and an intercept: what was 0 is 3.5."""
    return _changed(case, lambda v: 0.01 * v + 3.5)


def extreme_voxel(case: Case, random: np.random.Generator) -> Case:
    """One voxel of the brain is a million."""

    def change(volume: np.ndarray) -> np.ndarray:
        volume = volume.copy()
        places = np.flatnonzero(volume)
        volume.flat[places[random.integers(len(places))]] = 1e6
        return volume

    return _changed(case, change)


ACCIDENTS: dict[str, Callable[[Case, np.random.Generator], Case]] = {
    "noise of 0.001 outside the brain": noise_outside,
    "slope of 0.01 that moves 0": moved_zero,
    "one voxel of 1e6": extreme_voxel,
}
THICK = f"slices of {SLICE_MM:g} mm"


def thick_slices(case: Case) -> Case:
    """The same head measured in thick axial slices: images averaged, labels those in the middle of a slice."""
    thickness = float(case.spacing[2])
    count = max(1, round(case.shape[2] * thickness / SLICE_MM))
    shape = (*case.shape[:2], count)

    def shrink(volume: np.ndarray, mode: str) -> np.ndarray:
        return F.interpolate(torch.from_numpy(volume)[None, None].float(), size=shape, mode=mode)[0, 0].numpy()

    affine = case.affine.copy()
    factor = case.shape[2] / count
    affine[:3, 3] += affine[:3, 2] * (factor - 1) / 2
    affine[:3, 2] *= factor
    volumes = {name: shrink(volume, "area") for name, volume in case.volumes.items()}
    label = None if case.label is None else shrink(case.label, "nearest-exact").astype(case.label.dtype)
    return replace(case, volumes=volumes, label=label, affine=affine, header=None)


def _changed(case: Case, change: Callable[[np.ndarray], np.ndarray]) -> Case:
    return replace(case, volumes={name: change(volume).astype(np.float32) for name, volume in case.volumes.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--seed", type=int, default=13, help="cohort seed; training used another")
    parser.add_argument("--look", choices=LOOKS, default="typical", help="of the cases")
    parser.add_argument("--output", type=Path, default=Path("results/simulator/small"))
    arguments = parser.parse_args()
    predictor = Predictor.from_checkpoint(arguments.checkpoint, refine=False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cohort = simulate_cohort(
            folder, arguments.cases, spacing=predictor.spacing[0], seed=arguments.seed, look=arguments.look
        )
        for number, files in enumerate(tqdm(cohort, unit="case")):
            rows += score(predictor, read_case(files), np.random.default_rng(number))
    frame = pd.DataFrame(rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    frame.to_csv(arguments.output / "distortions.csv", index=False, float_format="%.4f")
    report = {
        "what": "simulated subjects only",
        "command": "python " + " ".join(sys.argv),
        "cases": int(frame["case"].nunique()),
        "checkpoint": arguments.checkpoint,
        "seed": arguments.seed,
        "look": arguments.look,
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
    }
    write_text(arguments.output / "distortions.json", json.dumps(report, indent=1) + "\n")
    text = as_markdown(frame, report)
    write_text(arguments.output / "distortions.md", text)
    print(text)


def score(predictor: Predictor, case: Case, random: np.random.Generator) -> list[dict]:
    """The rows of one case."""
    clean, truth = answers(predictor, case), case.label > 0
    rows = []
    for name, change in ACCIDENTS.items():
        found = answers(predictor, change(case, random))
        for subset, answer in found.items():
            row = {"case": case.id, "subset": subset, "accident": name}
            rows.append(row | {"dice_to_clean": dice(answer, clean[subset])})
    thick = thick_slices(case)
    for subset, answer in answers(predictor, thick).items():
        row = {"case": case.id, "subset": subset, "accident": THICK}
        if truth.any():
            row |= {"dice": dice(answer, thick.label > 0), "dice_of_clean": dice(clean[subset], truth)}
        rows.append(row)
    return rows


def answers(predictor: Predictor, case: Case) -> dict[str, np.ndarray]:
    """WT by subset, bool [X, Y, Z] on the case's own grid."""
    encoding = predictor.encode(case)
    return {subset_name(subset): predictor.segment(encoding, subset).labels > 0 for subset in SUBSETS}


def as_markdown(frame: pd.DataFrame, report: dict) -> str:
    """The page."""
    lines = [
        "# What the accidents of real files cost",
        "",
        f"`{report['checkpoint']}` on {report['cases']} **simulated** subjects (cohort seed {report['seed']}, look "
        f"`{report['look']}`). Dice of WT to the answer of the same case without the accident.",
        "",
        "| accident | subset | mean | lowest |",
        "|---|---|---:|---:|",
    ]
    for (accident, subset), rows in frame.dropna(subset="dice_to_clean").groupby(["accident", "subset"], sort=False):
        values = rows["dice_to_clean"]
        lines.append(f"| {accident} | {subset} | {values.mean():.3f} | {values.min():.3f} |")
    lines += [
        "",
        f"{THICK.capitalize()} instead of the cohort's: Dice of WT to the truth, mean over the cases with a tumour.",
        "",
        "| subset | cases | thin slices | thick slices | points lost |",
        "|---|---:|---:|---:|---:|",
    ]
    thick = frame[(frame["accident"] == THICK)].dropna(subset="dice")
    for subset, rows in thick.groupby("subset", sort=False):
        thin, wide = rows["dice_of_clean"].mean(), rows["dice"].mean()
        lines.append(f"| {subset} | {len(rows)} | {thin:.3f} | {wide:.3f} | {100 * (thin - wide):.1f} |")
    lines += [
        "",
        made_line(report),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
