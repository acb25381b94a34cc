"""Which sequence carries what? Contributions of the sequences on held-out simulated subjects, and what they cost.

    python scripts/measure_contributions.py --checkpoint small --subjects 20 --output results/contributions/small

For the first subjects of the cohort that have enhancing tumour: the mean contribution of each sequence per voxel of the
true ET and of the true ED (the values of WT less those of TC, which are those of their difference), and how often which
one is the largest. Then, on the first of them, CPU time of `segment_all` over all subsets alone and with contributions,
taking turns on one thread.

Writes contributions.csv (a row per subject, part and sequence), contributions.json and contributions.md.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from measure_intervals import read_predictor
from tqdm.auto import tqdm

from smml.data import Case
from smml.data.simulation.cohort import as_stored
from smml.data.simulation.imaging import LOOKS
from smml.data.simulation.subject import simulate_subject
from smml.files import write_text
from smml.inference import Encoding, Predictor, contributions
from smml.modalities import DISPLAY_NAMES
from smml.runs import made_line, made_with

SEED = 423
LAYOUT = "simulated"
ED, ET = 2, 3
# Fewer voxels of a part say little about it.
FEWEST_ML = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--look", choices=LOOKS, default="typical", help="of the subjects")
    parser.add_argument("--spacing", type=float, help="voxel edge in mm, to try things; default: the checkpoint's")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing")
    parser.add_argument("--output", type=Path, default=Path("results/contributions"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    predictor = read_predictor(arguments.checkpoint, arguments.spacing)
    cases = itertools.islice(enhancing(predictor.spacing[0], arguments.look), arguments.subjects)
    rows, first = [], None
    for case in tqdm(cases, total=arguments.subjects, unit="subject"):
        encoding = predictor.encode(case)
        first = first or encoding
        rows += shares(predictor, encoding)
    table = pd.DataFrame(rows)
    largest = table.loc[table.groupby(["subject", "part"])["mean"].idxmax()]
    counts = largest.groupby("part")["sequence"].value_counts(normalize=True).unstack(fill_value=0.0)
    alone, together = cost(predictor, first, arguments.rounds)
    report = {
        "what": "simulated subjects only",
        "command": "python " + " ".join(sys.argv),
        "checkpoint": arguments.checkpoint,
        "seed": SEED,
        "look": arguments.look,
        "subjects": arguments.subjects,
        "prevalence": predictor.prevalence,
        "largest": counts.round(4).to_dict(orient="index"),
        "cpu_seconds": {"segment_all": round(alone, 2), "with contributions": round(together, 2)},
        "times": round(together / alone, 3),
        **made_with(),
        "hardware": f"CPU, one thread of {os.cpu_count()} cores, {platform.machine()}",
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_text(arguments.output / "contributions.csv", table.to_csv(index=False, float_format="%.4f"))
    write_text(arguments.output / "contributions.json", json.dumps(report, indent=1) + "\n")
    text = as_markdown(table, counts, report)
    write_text(arguments.output / "contributions.md", text)
    print(text)


def enhancing(spacing: float, look: str) -> Iterator[Case]:
    """The subjects of the cohort that have both parts, one after the other."""
    for index in itertools.count():
        volumes, labels, affine = as_stored(simulate_subject(SEED, index, spacing=spacing, look=look), LAYOUT)
        if all((labels == part).sum() * spacing**3 / 1000 >= FEWEST_ML for part in (ED, ET)):
            yield Case(f"{index:05d}", volumes, labels, affine, LAYOUT)


def shares(predictor: Predictor, encoding: Encoding) -> list[dict]:
    """A row per part and sequence: the mean of its contributions over the true voxels of the part."""
    case, found = encoding.case, contributions(predictor, encoding)
    assert case.label is not None
    rows = []
    for part, value in (("ET", ET), ("ED", ED)):
        inside = case.label == value
        for name in found.modalities:
            values = found.map(name, "ET") if part == "ET" else found.map(name, "WT") - found.map(name, "TC")
            mean = float(values[inside].mean(dtype="float64"))
            rows.append({"subject": case.id, "part": part, "sequence": DISPLAY_NAMES[name], "mean": mean})
    return rows


def cost(predictor: Predictor, encoding: Encoding, rounds: int) -> tuple[float, float]:
    """Median CPU seconds of all subsets alone and with contributions, taking turns."""

    def alone() -> None:
        for _ in predictor.segment_all(encoding):
            pass

    def timed(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    def together() -> None:
        # Found once for a case, and part of what contributions cost.
        encoding.case.__dict__.pop("brains", None)
        contributions(predictor, encoding)

    both = [(timed(alone), timed(together)) for _ in range(rounds)]
    return statistics.median(one for one, _ in both), statistics.median(two for _, two in both)


def as_markdown(table: pd.DataFrame, counts: pd.DataFrame, report: dict) -> str:
    means = table.groupby(["part", "sequence"])["mean"].mean().unstack()
    names = list(DISPLAY_NAMES.values())
    lines = [
        "# Which sequence carries what",
        "",
        f"`{report['checkpoint']}` on {report['subjects']} **simulated** subjects with enhancing tumour, cohort seed "
        f"{report['seed']}, look `{report['look']}`, which training did not see. The mean contribution (Shapley value) "
        "to the probability of a voxel of the true ET and of the true ED, and in per cent of the subjects: which "
        "sequence has the largest.",
        "",
        f"| part | {' | '.join(names)} | {' | '.join(f'{name} largest, %' for name in names)} |",
        "|---|" + "-:|" * (2 * len(names)),
    ]
    for part in ("ET", "ED"):
        cells = [f"{means.loc[part, name]:+.3f}" for name in names]
        cells += [f"{100 * counts.loc[part].get(name, 0.0):.0f}" for name in names]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    seconds = report["cpu_seconds"]
    lines += [
        "",
        f"All subsets of one subject take {seconds['segment_all']:.2f} s of CPU time, with contributions "
        f"{seconds['with contributions']:.2f} s: {report['times']:.2f} times as long.",
        "",
        made_line(report),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
