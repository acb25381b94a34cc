"""Does the refinement help? Student and refined, side by side, on held-out simulated cases over the 15 subsets.

    python scripts/measure_refinement.py --cases 6 --seed 2 --output results/refinement

Writes scores.csv (a row per case, subset, output and region), table.md (both tables and the paired differences) and
refinement.json (command, seed, versions, hardware, differences with 95 % intervals). Both outputs come from the same
weights and the same pass over the students.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

from smml.data import REGIONS, simulate_cohort
from smml.evaluation import compare, evaluate, format_comparison, write_report
from smml.files import write_text
from smml.inference import Predictor
from smml.runs import made_with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-refined")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--seed", type=int, default=2, help="cohort seed; training used another")
    parser.add_argument("--output", type=Path, default=Path("results/refinement"))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    predictor = Predictor.from_checkpoint(arguments.checkpoint, refine=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        files = simulate_cohort(folder, arguments.cases, spacing=predictor.spacing[0], seed=arguments.seed)
        scores = evaluate(predictor, files)
    _, table = write_report(scores, arguments.output, f"{arguments.checkpoint} on {arguments.cases} simulated cases")
    both = compare({name: scores[scores["output"] == name] for name in ("student", "refined")})
    changes = {region: both.loc["refined", f"Dice {region} change"] for region in REGIONS}
    report = {
        "what": "simulated cases only",
        "command": "python " + " ".join(sys.argv),
        "checkpoint": arguments.checkpoint,
        "protocol": scores.attrs["protocol"],
        "seed": arguments.seed,
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}, 2 threads",
        "seconds": round(time.perf_counter() - began),
        "change of Dice, refined minus student": {
            region: {"mean": change.mean, "low": change.low, "high": change.high} for region, change in changes.items()
        },
    }
    write_text(arguments.output / "refinement.json", json.dumps(report, indent=1) + "\n")
    comparison = "\n## The difference\n\n" + format_comparison(both) + "\n"
    write_text(table, table.read_text(encoding="utf-8") + comparison)
    print(comparison)


if __name__ == "__main__":
    main()
