"""What weights find where there is nothing: volumes called tumour in healthy simulated subjects, over the 15 subsets.

    python scripts/measure_false_alarms.py --checkpoint small --seed 14 --output results/simulator/small/healthy

Writes false-alarms.csv (a row per subject, subset and region), false-alarms.json (with command, versions and hardware)
and false-alarms.md. The subjects are the first healthy ones of the cohort ``seed``, which is about one in five.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from smml.data import REGIONS, Case, CaseFiles, find_cases, write_case
from smml.data.simulation.cohort import as_stored
from smml.data.simulation.imaging import LOOKS
from smml.data.simulation.subject import simulate_subject, subject_kind
from smml.evaluation.evaluate import evaluate
from smml.files import write_text
from smml.inference import Predictor
from smml.modalities import SUBSETS, subset_name
from smml.models.checkpoint import load_checkpoint
from smml.runs import made_line, made_with
from smml.workers import in_processes

LIMIT_ML = 1.0
LAYOUT = "simulated"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--seed", type=int, default=2, help="cohort seed; training used another")
    parser.add_argument("--look", choices=LOOKS, default="typical", help="of the subjects")
    parser.add_argument("--output", type=Path, default=Path("results/simulator/small/healthy"))
    parser.add_argument("--workers", type=int, default=2, help="processes, with a thread each")
    arguments = parser.parse_args()
    spacing = load_checkpoint(arguments.checkpoint).spacing[0]
    with tempfile.TemporaryDirectory() as folder:
        cases = healthy_subjects(Path(folder), arguments.subjects, arguments.seed, arguments.look, spacing)
        jobs = [(arguments.checkpoint, case) for case in cases]
        done = tqdm(in_processes(score, jobs, arguments.workers), total=len(jobs), unit="subject")
        scores = pd.concat(sorted(done, key=lambda frame: frame["case"].iloc[0]), ignore_index=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    kept = scores[["case", "subset", "region", "predicted_ml"]]
    kept.to_csv(arguments.output / "false-alarms.csv", index=False, float_format="%.4f")
    table = count_quiet(scores)
    report = {
        "what": "healthy simulated subjects only",
        "command": "python " + " ".join(sys.argv),
        "limit_ml": LIMIT_ML,
        "subjects": arguments.subjects,
        "look": arguments.look,
        "quiet": table.to_dict(orient="index"),
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
    }
    write_text(arguments.output / "false-alarms.json", json.dumps(report, indent=1) + "\n")
    text = as_markdown(table, report, arguments)
    write_text(arguments.output / "false-alarms.md", text)
    print(text)


def score(checkpoint: str, case: CaseFiles) -> pd.DataFrame:
    """What the final output of the weights finds in one subject."""
    frame = evaluate(Predictor.from_checkpoint(checkpoint), [case], distances=False, progress=False).frame
    return frame[frame["output"] == frame["output"].iloc[-1]]


def healthy_subjects(folder: Path, count: int, seed: int, look: str, spacing: float) -> list[CaseFiles]:
    """The first ``count`` healthy subjects of the cohort ``seed``, in a look, written to ``folder``."""
    healthy = (index for index in itertools.count() if subject_kind(seed, index) == "healthy")
    for index in itertools.islice(healthy, count):
        subject = as_stored(simulate_subject(seed, index, spacing=spacing, look=look), LAYOUT)
        write_case(Case(f"{index:05d}", *subject, LAYOUT), folder)
    return find_cases(folder)


def count_quiet(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per subset: share of subjects whose false WT, TC and ET stay below the limit, and the mean WT in ml."""
    volumes = scores.pivot_table(index=["subset", "case"], columns="region", values="predicted_ml")
    quiet = (volumes < LIMIT_ML).groupby("subset").mean()
    quiet["WT ml"] = volumes["WT"].groupby("subset").mean()
    return quiet.loc[[subset_name(subset) for subset in SUBSETS], [*REGIONS, "WT ml"]]


def as_markdown(table: pd.DataFrame, report: dict, arguments: argparse.Namespace) -> str:
    rows = [
        f"| {name} | " + " | ".join(f"{100 * row[region]:.0f}" for region in REGIONS) + f" | {row['WT ml']:.1f} |"
        for name, row in table.iterrows()
    ]
    mean = table.mean()
    lines = [
        "# False alarms in healthy subjects",
        "",
        f"`{arguments.checkpoint}` on {arguments.subjects} healthy **simulated** subjects, cohort seed "
        f"{arguments.seed}, look `{arguments.look}`, which training did not see. Per cent of the subjects in whom less "
        f"than {LIMIT_ML:g} ml is called WT, TC or ET, and the mean volume called WT.",
        "",
        f"| subset | {' | '.join(REGIONS)} | mean WT, ml |",
        "|---|---:|---:|---:|---:|",
        *rows,
        "| **mean** | " + " | ".join(f"{100 * mean[region]:.0f}" for region in REGIONS) + f" | {mean['WT ml']:.1f} |",
        "",
        made_line(report),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
