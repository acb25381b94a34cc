"""How far can probabilities be believed, before and after temperatures? Fitted and measured on simulated subjects.

    python scripts/measure_calibration.py --checkpoint small --output results/calibration/small

Fits a temperature for each number of sequences to the subjects of one cohort and measures the expected calibration
error with and without them on those of another, over the 15 subsets. With ``small`` at 2 mm a subject takes 50 s on one
core. ``--weights FILE`` writes the weights with what was fitted.

Writes calibration.json (with command, seeds, versions and hardware) and calibration.md.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from smml.data import CaseFiles, simulate_cohort
from smml.data.simulation.imaging import LOOKS
from smml.evaluation import Calibration, fit_temperatures, format_calibration, measure_calibration
from smml.files import write_text
from smml.inference import Predictor
from smml.models.checkpoint import load_checkpoint, save_checkpoint
from smml.runs import made_line, made_with

FIT_SEED, MEASURE_SEED = 15, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--fit", type=int, default=20, help="subjects to fit to")
    parser.add_argument("--measure", type=int, default=40, help="subjects to measure on")
    parser.add_argument("--look", choices=LOOKS, default="typical", help="of the subjects")
    parser.add_argument("--weights", type=Path, help="write the weights with their temperatures here: .safetensors")
    parser.add_argument("--output", type=Path, default=Path("results/calibration/small"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    predictor = Predictor.from_checkpoint(arguments.checkpoint, refine=False)
    with tempfile.TemporaryDirectory() as folder:
        fit, measure = (
            _cohort(Path(folder) / name, count, seed, predictor, arguments.look)
            for name, count, seed in (("fit", arguments.fit, FIT_SEED), ("measure", arguments.measure, MEASURE_SEED))
        )
        temperatures = fit_temperatures(predictor, fit).temperatures
        if arguments.weights:
            save_checkpoint(
                replace(load_checkpoint(arguments.checkpoint), temperatures=temperatures), arguments.weights
            )
        before, after = measure_calibration(predictor, measure, temperatures)
    report(arguments, temperatures, before, after)


def _cohort(folder: Path, count: int, seed: int, predictor: Predictor, look: str) -> Sequence[CaseFiles]:
    return simulate_cohort(folder, count, spacing=predictor.spacing[0], seed=seed, look=look, workers=1, progress=False)


def report(
    arguments: argparse.Namespace, temperatures: tuple[float, ...], before: Calibration, after: Calibration
) -> None:
    """Write both files."""
    plain, tempered = before.errors(), after.errors()
    ratios = (tempered / plain).round(3)
    halved = [f"{size} {region}" for size in ratios.index for region in ratios if ratios.loc[size, region] <= 0.5]
    content = {
        "what": "simulated subjects only",
        "command": "python " + " ".join(sys.argv),
        "checkpoint": arguments.checkpoint,
        "look": arguments.look,
        "seeds": {"fit": FIT_SEED, "measure": MEASURE_SEED},
        "subjects": {"fit": arguments.fit, "measure": arguments.measure},
        "temperatures": [round(value, 4) for value in temperatures],
        "before": plain.round(5).to_dict("index"),
        "after": tempered.round(5).to_dict("index"),
        "halved": halved,
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
    }
    write_text(arguments.output / "calibration.json", json.dumps(content, indent=1) + "\n")
    lines = [
        "# How far probabilities can be believed",
        "",
        f"`{arguments.checkpoint}` on **simulated** subjects, look `{arguments.look}`: temperatures fitted to "
        f"{arguments.fit} of the cohort seed {FIT_SEED}, measured on {arguments.measure} of the seed {MEASURE_SEED}; "
        "training saw neither. Expected calibration error in per cent, over every voxel of the brains. What is "
        "calibrated on simulated subjects promises nothing for patients.",
        "",
        format_calibration(before, after, temperatures),
        "",
        f"At most half of what it was: {', '.join(halved) or 'nowhere'} (number of sequences, region).",
        "",
        made_line(content),
    ]
    write_text(arguments.output / "calibration.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
