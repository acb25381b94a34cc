"""Does the refinement help? Student and refined, side by side, on held-out simulated cases over the 15 subsets.

    python scripts/measure_refinement.py --cases 5 --seed 13 --output results/refinement

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
from smml.evaluation import Comparison, Scores, compare, evaluate, format_comparison, write_report
from smml.files import write_text
from smml.inference import Predictor
from smml.runs import made_with

# What an end of an interval is called in the report and in a comparison.
ENDS = {"mean": "change", "low": "low", "high": "high"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-refined")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--skip", type=int, default=0, help="subjects of the cohort that were looked at before")
    parser.add_argument("--seed", type=int, default=2, help="cohort seed; training used another")
    parser.add_argument("--output", type=Path, default=Path("results/refinement"))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    predictor = Predictor.from_checkpoint(arguments.checkpoint, refine=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        count = arguments.skip + arguments.cases
        files = simulate_cohort(folder, count, spacing=predictor.spacing[0], seed=arguments.seed)
        scores = evaluate(predictor, files[arguments.skip :])
    _, table, _ = write_report(scores, arguments.output, f"{arguments.checkpoint} on {arguments.cases} simulated cases")
    both = student_and_refined(scores)
    change = both.frame.loc["refined"]
    report = {
        "what": "simulated cases only",
        "command": "python " + " ".join(sys.argv),
        "checkpoint": arguments.checkpoint,
        "protocol": scores.protocol,
        "seed": arguments.seed,
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}, 2 threads",
        "seconds": round(time.perf_counter() - began),
        "change of Dice, refined minus student": {
            region: {end: change[f"Dice {region} {part}"] for end, part in ENDS.items()} for region in REGIONS
        },
    }
    write_text(arguments.output / "refinement.json", json.dumps(report, indent=1) + "\n")
    write_text(table, table.read_text(encoding="utf-8") + difference(both))
    print(difference(both))


def student_and_refined(scores: Scores) -> Comparison:
    """What the refinement changes: the refined output against that of the students alone."""
    outputs = scores.outputs()
    return compare({name: outputs[name] for name in ("student", "refined")})


def difference(both: Comparison) -> str:
    """The last part of table.md."""
    return "\n## The difference\n\n" + format_comparison(both) + "\n"


if __name__ == "__main__":
    main()
