"""Do simulated cases need their sequences? Scores of shipped weights on held-out simulated cases, over the 15 subsets.

    python scripts/measure_sequences.py --cases 40 --seed 13 --output results/simulator/tiny/typical

Writes scores.csv (a row per case, subset and region), table.md, sequences.json (every mean, with command, seed,
versions and hardware) and sequences.md (the table and the checks): besides WT, TC and ET also the class ED, and the
share of its boundary found within 2 voxels.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import pandas as pd

from smml.data import REGIONS, Case, read_case, simulate_cohort
from smml.data.simulation.imaging import LOOKS
from smml.evaluation import boundary_recall, dice, summary_table
from smml.evaluation.evaluate import evaluate
from smml.evaluation.report import write_report
from smml.evaluation.tables import MEAN, format_table
from smml.files import write_text
from smml.inference import Predictor, Segmentation
from smml.modalities import subset_name
from smml.runs import made_line, made_with

ED = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--seed", type=int, default=2, help="cohort seed; training used another")
    parser.add_argument("--look", choices=LOOKS, default="typical", help="of the cases")
    parser.add_argument("--output", type=Path, default=Path("results/simulator/tiny/typical"))
    arguments = parser.parse_args()
    predictor = Predictor.from_checkpoint(arguments.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        files = simulate_cohort(
            folder, arguments.cases, spacing=predictor.spacing[0], seed=arguments.seed, look=arguments.look
        )
        cases = [read_case(file) for file in files]
        recorder = OedemaRecorder()
        scores = evaluate(predictor, cases, observe=recorder)
        oedema = recorder.means()
    write_report(scores, arguments.output, f"{arguments.checkpoint} on {arguments.cases} simulated cases")
    table = summary_table(scores).join(oedema)
    table.loc[MEAN, list(oedema.columns)] = table.drop(index=MEAN)[list(oedema.columns)].mean()
    report = {
        "what": "simulated cases only",
        "command": "python " + " ".join(sys.argv),
        "checkpoint": arguments.checkpoint,
        "protocol": scores.protocol,
        "seed": arguments.seed,
        "look": arguments.look,
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
        "means": json.loads(table.to_json(orient="index")),
        "checks": checks(table, scores.frame),
    }
    write_text(arguments.output / "sequences.json", json.dumps(report, indent=1) + "\n")
    text = as_markdown(report, arguments.cases)
    write_text(arguments.output / "sequences.md", text)
    print(text)


def as_markdown(report: dict, cases: int) -> str:
    """``sequences.md``, from what ``sequences.json`` holds and the number of cases."""
    table = pd.DataFrame.from_dict(report["means"], orient="index").astype(float)  # null is NaN
    # The first simulator, of which there are reports, had one look.
    look = f", look `{report['look']}`" if "look" in report else ""
    lines = [
        "# Do simulated cases need their sequences?",
        "",
        f"`{report['checkpoint']}` on {cases} **simulated** cases, cohort seed {report['seed']}{look}, which "
        'training did not see. Dice in per cent, HD95 in mm; "ED recall" is the share of the boundary of the oedema '
        "that lies within 2 voxels of the predicted one, in per cent.",
        "",
        f"Protocol: {report['protocol']}.",
        "",
        format_table(table.rename(columns={"ED recall": "Dice ED recall"})).replace("Dice ED recall", "ED recall"),
        "",
        *[f"- {name}: {value}" for name, value in report["checks"].items()],
        "",
        made_line(report),
        "",
    ]
    return "\n".join(lines)


class OedemaRecorder:
    """Notes, for each segmentation of an evaluation, how well it found the class ED."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def __call__(self, case: Case, result: Segmentation) -> None:
        found, truth = result.labels == ED, case.label == ED
        if truth.any():
            recall = boundary_recall(found, truth, tolerance=2.0)
            row = {"subset": subset_name(result.subset), "Dice ED": dice(found, truth), "ED recall": recall}
            self.rows.append(row)

    def means(self) -> pd.DataFrame:
        """Mean Dice of ED and recall of its boundary at 2 voxels, a row a subset."""
        return pd.DataFrame(self.rows).groupby("subset").mean()


def checks(table: pd.DataFrame, scores: pd.DataFrame) -> dict[str, str | float]:
    """What the literature's shape demands of the cohort, as numbers."""
    rows = table.drop(index=MEAN)
    full, no_t1ce = rows.loc["FLAIR+T1ce+T1+T2"], rows.loc["FLAIR+T1+T2"]
    no_fluid = rows.loc["T1ce+T1"]
    regions = [f"Dice {region}" for region in REGIONS]
    has_et = scores[(scores["region"] == "ET") & (scores["truth_ml"] > 0)].groupby("subset")["dice"].mean()
    order = rows[regions].mean(axis=1).sort_values()
    return {
        "ET Dice, all four minus all but T1ce": round(float(full["Dice ET"] - no_t1ce["Dice ET"]), 3),
        "the same on the cases that have ET": round(float(has_et[full.name] - has_et[no_t1ce.name]), 3),
        "ED Dice, all four minus T1ce+T1": round(float(full["Dice ED"] - no_fluid["Dice ED"]), 3),
        "ED boundary recall, all four minus T1ce+T1": round(float(full["ED recall"] - no_fluid["ED recall"]), 3),
        "worst subset by mean Dice over the regions": str(order.index[0]),
        "its mean Dice, and that of the second worst": f"{order.iloc[0]:.3f}, {order.iloc[1]:.3f} ({order.index[1]})",
    }


if __name__ == "__main__":
    main()
