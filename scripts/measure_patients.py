"""Score weights on labelled patients, and keep a row of every look that was taken at them.

    python scripts/measure_patients.py PATIENTS --checkpoint small --name small

Prints Dice of WT, TC and ET for each subset of sequences, over all cases and over those that enhance, the volume called
ET where there is none, and what one sequence more changes. The rows are added to results/patients/looks.csv: whoever
looks often at few patients chooses by them, so every look counts. No image and no case's name is kept.
"""

import argparse
import datetime
import os
from pathlib import Path

import pandas as pd

from smml import Predictor, evaluate, find_cases
from smml.data import REGIONS
from smml.evaluation import Scores, added_sequences, format_added, largest_loss
from smml.modalities import SUBSETS, subset_name
from smml.runs import commit

LOOKS = Path(__file__).resolve().parent.parent / "results" / "patients" / "looks.csv"
COLUMNS = ["date", "commit", "weights", "preprocessing", "group", "subset", *REGIONS, "cases", "false_ET_ml"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patients", type=Path, help="folder of labelled cases; it stays where it is")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--name", required=True, help="of the weights, in the table")
    parser.add_argument("--decision", default="own", help="how labels are made: own, argmax or expected-dice")
    parser.add_argument("--refine", action="store_true", help="the refined output too, as NAME refined")
    arguments = parser.parse_args()
    predictor = Predictor.from_checkpoint(arguments.checkpoint, refine=arguments.refine, decision=arguments.decision)
    cases = [case for case in find_cases(arguments.patients) if case.label is not None]
    scores = evaluate(predictor, cases, distances=False)
    made = {"date": datetime.date.today().isoformat(), "commit": commit()[:7], "preprocessing": predictor.preprocessing}
    tables = []
    for output, found in scores.outputs().items():
        name = arguments.name if output == "student" else f"{arguments.name} {output}"
        table = by_group(found.frame)
        print(f"\n{name}\n{table.to_string(index=False, float_format='%.3f')}")
        enhancing = found.frame[found.frame["case"].isin(cases_with(found.frame, "ET"))]
        for group, frame in (("all", found.frame), ("enhancing", enhancing)):
            changes = added_sequences(Scores(frame))
            print(f"\n{group}: {largest_loss(changes)}\n{format_added(changes)}")
        tables.append(table.assign(weights=name, **made))
    add_rows(LOOKS, pd.concat(tables))


def cases_with(frame: pd.DataFrame, region: str) -> set[str]:
    """The cases whose truth holds the region."""
    return set(frame.loc[(frame["region"] == region) & (frame["truth_ml"] > 0), "case"])


def by_group(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice by subset, over all cases and over those that enhance, and the most that is called ET without any."""
    enhancing = cases_with(frame, "ET")
    rows = []
    for group, chosen in (("all", frame), ("enhancing", frame[frame["case"].isin(enhancing)])):
        for subset in map(subset_name, SUBSETS):
            some = chosen[chosen["subset"] == subset]
            if some.empty:
                continue
            false = some[(some["region"] == "ET") & ~some["case"].isin(enhancing)]["predicted_ml"]
            means = some.groupby("region")["dice"].mean()
            rows.append(
                {"group": group, "subset": subset}
                | {region: means[region] for region in REGIONS}
                | {"cases": some["case"].nunique(), "false_ET_ml": false.max() if len(false) else None}
            )
    return pd.DataFrame(rows)


def add_rows(path: Path, rows: pd.DataFrame) -> None:
    """Add rows at the end of the table; what stands there stays as it is."""
    text = rows[COLUMNS].to_csv(index=False, header=not path.exists(), float_format="%.3f")
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
