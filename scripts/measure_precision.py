"""What bfloat16 costs a short training in scores: the same trainings in float32 and in bf16, on a simulated cohort.

    python scripts/measure_precision.py [--steps 200] [--seeds 3]

Preset `tiny` on 16 simulated subjects of 3 mm (cohort seed 80), each seed once in each precision, scored in float32 on
8 other subjects (cohort seed 81) over the 15 subsets. Writes results/speed/precision.json and precision.md.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from smml import Predictor, evaluate, find_cases, simulate_cohort, train
from smml.data.labels import REGIONS
from smml.files import write_text
from smml.runs import provenance
from smml.training import TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "results" / "speed"
WORDS = ("float32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HOME)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        simulate_cohort(home / "train", 16, spacing=3.0, seed=80, progress=False)
        simulate_cohort(home / "test", 8, spacing=3.0, seed=81, progress=False)
        for seed in range(arguments.seeds):
            for word in WORDS:
                config = TrainingConfig("tiny", steps=arguments.steps, seed=seed, precision=word)
                began = time.perf_counter()
                result = train(home / "train", home / f"{word}-{seed}", config, progress=False)
                seconds = time.perf_counter() - began
                predictor = Predictor.from_checkpoint(result.checkpoint)
                table = evaluate(predictor, find_cases(home / "test"), distances=False, progress=False).frame
                means = {region: float(table[table.region == region].dice.mean()) for region in REGIONS}
                rows.append({"seed": seed, "precision": word, "seconds": seconds, "dice": means})
                print(rows[-1], flush=True)
    command = f"python scripts/measure_precision.py --steps {arguments.steps} --seeds {arguments.seeds}"
    found = {
        "rows": rows,
        "made by": {"command": command, "threads": arguments.threads} | provenance(torch.device("cpu")),
    }
    write_text(arguments.output / "precision.json", json.dumps(found, indent=1) + "\n")
    write_text(arguments.output / "precision.md", page(found))


def page(found: dict) -> str:
    """Dice by seed, region and precision, and the difference."""
    made, rows = found["made by"], found["rows"]
    lines = [
        "# What bfloat16 costs in scores",
        "",
        f"`{made['command']}`, commit {made['commit']}, torch {made['versions']['torch']}, {made['hardware']}, "
        f"{made['threads']} threads. Preset `tiny`, "
        "simulated subjects: 16 to train on (cohort seed 80), 8 held out (81). Mean Dice in points over cases and the "
        "15 subsets; losses and norms are computed in float32 in both.",
        "",
        "| seed | region | float32 | bf16 | bf16 minus float32 |",
        "|---|---|---|---|---|",
    ]
    by = {(row["seed"], row["precision"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    for seed in seeds:
        for region in REGIONS:
            one, other = (100 * by[seed, word]["dice"][region] for word in WORDS)
            lines.append(f"| {seed} | {region} | {one:.1f} | {other:.1f} | {other - one:+.1f} |")
    differences = [100 * (by[s, "bf16"]["dice"][r] - by[s, "float32"]["dice"][r]) for s in seeds for r in REGIONS]
    spread = [
        100 * (max(values) - min(values)) for r in REGIONS for values in [[by[s, "float32"]["dice"][r] for s in seeds]]
    ]
    seconds = {word: statistics.mean(row["seconds"] for row in rows if row["precision"] == word) for word in WORDS}
    lines += [
        "",
        f"Mean difference {statistics.mean(differences):+.1f} points; between seeds alone, in float32, a region's mean "
        f"differs by {min(spread):.1f} to {max(spread):.1f} points. A training took {seconds['float32']:.0f} s in "
        f"float32 and {seconds['bf16']:.0f} s in bf16.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
