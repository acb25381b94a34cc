"""Choose how much must be expected of a part of a region to be called, on simulated validation subjects.

    python scripts/choose_decision.py --checkpoint small --may-be-absent ET --shown-on t1ce \\
        --work build/decision-small --output results/decision/small

Compares the argmax with the rule of the greatest expected Dice (smml/models/decision.py) for several least volumes: of
WT, then of TC with the choice for WT, then of ET with both. Chosen is the volume with the greatest sum of two means of
Dice, over the cases that have the region and over all (the literature's mean, where a false alarm counts 0), among
those that call less than 1 ml of WT in 95 % of the answers for subjects without a tumour (``--quiet``). With
``--more-missed 2`` at most 2 points more of the regions may be missed than by the argmax. With ``--may-be-absent ET``
nothing is called of ET where that is expected to score more, with ``--shown-on t1ce`` if T1ce is given. Writes
decision.json (with command, versions and hardware) and decision.md. Probabilities are kept in the work folder, in steps
of 1/250: what was interrupted goes on with the same command.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from smml.data import REGIONS, Case, read_case, write_case
from smml.data.labels import Region, scheme_for_classes
from smml.data.simulation.cohort import as_stored
from smml.data.simulation.subject import simulate_subject, subject_kind
from smml.devices import fastest_precision
from smml.evaluation.sheets import Kind, Sheet, number
from smml.files import replacing, write_text
from smml.inference import Predictor
from smml.modalities import MODALITIES, subset_name
from smml.models.decision import ExpectedDice, labelling
from smml.runs import made_line, made_with
from smml.tensors import weights_fingerprint
from smml.workers import in_processes

SEED = 12  # validation, docs/CONVENTIONS.md
LAYOUT = "simulated"
STEPS = 250
GRID = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
QUIET_ML = 1.0
SEQUENCES = {1: "one", 2: "two", 3: "three", 4: "four"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--subjects", type=int, default=36, help="the first ones of the cohort, in each look")
    parser.add_argument("--healthy", type=int, default=12, help="further healthy ones, in the look typical")
    parser.add_argument("--work", type=Path, required=True, help="folder for the probabilities, some MB a subject")
    parser.add_argument("--workers", type=int, default=2, help="processes, with a thread each")
    parser.add_argument(
        "--quiet", type=float, default=95.0, help="per cent of the answers without a tumour with under 1 ml of WT"
    )
    parser.add_argument(
        "--more-missed", type=float, help="points more of a region than by the argmax that may be missed; else any"
    )
    parser.add_argument("--may-be-absent", nargs="*", choices=REGIONS, default=[], help="the rule weighs that they are")
    parser.add_argument("--shown-on", nargs="*", choices=MODALITIES, default=[], help="if these sequences are given")
    parser.add_argument("--output", type=Path, default=Path("results/decision/small"))
    arguments = parser.parse_args()
    if arguments.shown_on and not arguments.may_be_absent:
        parser.error("--shown-on says of which sequences --may-be-absent holds; give that too")
    # In the order in which a rule names them, whatever the command's is.
    may_be_absent = tuple(region for region in REGIONS if region in arguments.may_be_absent)
    shown_on = tuple(name for name in MODALITIES if name in arguments.shown_on)
    subjects = validation_subjects(arguments.subjects, arguments.healthy)
    jobs = [(arguments.checkpoint, look, index, arguments.work) for look, index in subjects]
    files = list(tqdm(in_processes(keep_probabilities, jobs, arguments.workers), total=len(jobs), unit="subject"))
    limits = {"quiet": arguments.quiet, "more_missed": arguments.more_missed}
    least: dict[Region, float] = dict.fromkeys(REGIONS, 0.0)
    tables = {}
    for region in REGIONS:
        rules = [ExpectedDice(least | {region: value}, may_be_absent, shown_on) for value in GRID]
        scores = pd.concat(in_processes(score, [(file, region, rules) for file in files], arguments.workers))
        tables[region] = table = tabulate(scores)
        least[region] = choose(table, region, **limits)
    report = {
        "what": "simulated subjects only",
        "command": "python " + " ".join(sys.argv),
        "checkpoint": arguments.checkpoint,
        "subjects": len(subjects),
        "limits": limits,
        "may_be_absent": may_be_absent,
        "shown_on": shown_on,
        "chosen": least,
        "tables": {region: table.reset_index().round(3).to_dict("records") for region, table in tables.items()},
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}, {fastest_precision(torch.device('cpu'))}",
    }
    write_text(arguments.output / "decision.json", json.dumps(report, indent=1) + "\n")
    text = as_markdown(report)
    write_text(arguments.output / "decision.md", text)
    print(text)


def validation_subjects(count: int, healthy: int) -> list[tuple[str, int]]:
    """Look and number of the first ``count`` subjects in each look, and of so many healthy ones that follow."""
    further = (index for index in itertools.count(count) if subject_kind(SEED, index) == "healthy")
    return [
        *(("typical", index) for index in range(count)),
        *(("varied", index) for index in range(count)),
        *(("typical", index) for index in itertools.islice(further, healthy)),
    ]


def keep_probabilities(checkpoint: str, look: str, index: int, work: Path) -> Path:
    """Probabilities of the regions of one subject from every subset, in the box of its brain, kept in ``work``."""
    torch.set_num_threads(1)
    precision = fastest_precision(torch.device("cpu"))
    predictor = Predictor.from_checkpoint(checkpoint, decision="argmax", precision=precision, refine=False)
    # By the weights and the precision: other ones of the same name have other probabilities.
    path = work / f"{weights_fingerprint(predictor.model)}-{precision}" / f"{look}-{index:05d}.npz"
    if path.exists():
        return path
    assert predictor.spacing is not None  # a checkpoint has one
    spacing = predictor.spacing[0]
    with tempfile.TemporaryDirectory() as folder:
        stored = as_stored(simulate_subject(SEED, index, spacing=spacing, look=look), LAYOUT)
        case = read_case(write_case(Case(f"{index:05d}", *stored, LAYOUT), folder))
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(np.asarray(case.brain)))
    assert case.label is not None  # just written
    arrays = {"label": case.label[box], "ml": np.prod(case.spacing) / 1000}
    for found in predictor.segment_all(predictor.encode(case)):
        shown, name = found.probabilities, "+".join(found.subset)
        regions = np.stack([1 - shown[0], shown[1] + shown[3], shown[3]])[(slice(None), *box)]
        arrays[name] = (STEPS * regions).round().clip(0, STEPS).astype(np.uint8)
        arrays[f"{name}|l"] = found.labels[box]
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)
    return path


def score(path: Path, region: Region, rules: list[ExpectedDice]) -> pd.DataFrame:
    """A row per subset and rule: volumes of one region in ml, true, called, and both."""
    torch.set_num_threads(1)
    scheme, rows = scheme_for_classes(4), []
    with np.load(path) as kept:
        truth, ml = scheme.region(kept["label"], region), float(kept["ml"])
        for name in kept.files:
            if name in ("label", "ml") or name.endswith("|l"):
                continue
            whole, core, enhancing = kept[name].astype(np.float32) / STEPS
            classes = [1 - whole, np.maximum(core - enhancing, 0), np.maximum(whole - core, 0), enhancing]
            called = {"argmax": kept[f"{name}|l"]}
            for rule in rules:
                making = labelling(rule.from_subset(name.split("+")), scheme, truth.shape, ml)
                for k, probability in enumerate(classes):
                    making.see(k, torch.from_numpy(probability))
                called[f"{rule.least_ml[region]:g}"] = making.labels()
            for least, labels in called.items():
                found = scheme.region(labels, region)
                both = (found & truth).sum()
                rows.append((path.stem, subset_name(name), least, truth.sum() * ml, found.sum() * ml, both * ml))
    return pd.DataFrame(rows, columns=["case", "subset", "least", "truth", "called", "both"])


def tabulate(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per rule, in per cent; ``least`` is the index."""
    scores = scores.assign(sequences=scores["subset"].str.count(r"\+") + 1)
    dice = 2 * scores["both"] / (scores["truth"] + scores["called"])
    empty = scores["truth"] == 0
    scores = scores.assign(dice=dice, literature=dice.where(~empty, (scores["called"] == 0).astype(float)))
    there, absent = scores[~empty].groupby("least"), scores[empty].groupby("least")
    columns = {
        "Dice": there["dice"].mean(),
        **{
            f"from {word}": scores[~empty & (scores["sequences"] == n)].groupby("least")["dice"].mean()
            for n, word in SEQUENCES.items()
        },
        "literature's mean": scores.groupby("least")["literature"].mean(),
        "missed": there["both"].apply(lambda volumes: (volumes == 0).mean()),
        "quiet": absent["called"].apply(lambda volumes: (volumes < QUIET_ML).mean()),
    }
    counts = {"cases": scores[~empty]["case"].nunique(), "without": scores[empty]["case"].nunique()}
    order = ["argmax", *(f"{value:g}" for value in GRID)]
    return (100 * pd.DataFrame(columns)).loc[order].assign(**counts)


def choose(table: pd.DataFrame, region: Region, quiet: float, more_missed: float | None) -> float:
    """The least volume with the greatest sum of both means, among those within the limits.

    Args:
        table: of the region, what :func:`tabulate` gives.
        quiet: per cent, of WT alone: without TC or ET there may be a tumour all the same, whose parts are hard to tell.
        more_missed: points, or None for no limit.

    Raises:
        SystemExit: no volume is within the limits.
    """
    rules = table.drop("argmax")
    if more_missed is not None:
        rules = rules[rules["missed"] <= table.loc["argmax", "missed"] + more_missed]
    if region == "WT":
        rules = rules[rules["quiet"] >= quiet]
    if rules.empty:
        raise SystemExit(f"{region}: no least volume is within the limits; see --quiet and --more-missed")
    return float((rules["Dice"] + rules["literature's mean"]).idxmax())


def as_markdown(report: dict) -> str:
    """``decision.md``, from what ``decision.json`` holds."""
    parts = []
    for region, rows in report["tables"].items():
        chosen = f"{report['chosen'][region]:g}"
        names = ["Dice", *(f"from {word}" for word in SEQUENCES.values()), "literature's mean", "missed", "quiet"]
        kinds: list[tuple[str, Kind]] = [("least, ml", "word"), *((name, "number") for name in names)]
        lines = tuple(
            (f"**{row['least']}**" if row["least"] == chosen else row["least"], *(number(row[name]) for name in names))
            for row in rows
        )
        counts = f"{rows[0]['cases']} subjects that have it, {rows[0]['without']} that do not"
        parts.append(f"## {region}: {counts}\n\n{Sheet(tuple(kinds), lines).markdown()}")
    tables = "\n\n".join(parts)
    quiet, more_missed = report["limits"]["quiet"], report["limits"]["more_missed"]
    limits = [f"WT quiet in at least {quiet:g} %"] if quiet else []
    if more_missed is not None:
        limits.append(f"at most {more_missed:g} points more missed than by the argmax")
    absent = ", ".join(report["may_be_absent"])
    given = f" and {', '.join(report['shown_on'])} is given" if report["shown_on"] else ""
    none = f"\nNothing is called of {absent} where that is expected to score more{given}." if absent else ""
    within = f",\namong the rows with {' and '.join(limits)}" if limits else ""
    return f"""# How labels are made of the probabilities of `{report["checkpoint"]}`

{report["subjects"]} **simulated** validation subjects (cohort seed {SEED}, looks `typical` and `varied`), all 15
subsets, in per cent. Each row but the first calls a region as large as makes the expected Dice greatest and leaves out
parts of which less than the volume is expected; "argmax" gives each voxel its likeliest class. Dice over the subjects
that have the region, from all subsets and by the number of sequences; the literature's mean counts a region that is not
there 1, and 0 if any of it is called; "missed" is nothing of it found; "quiet" is less than {QUIET_ML:g} ml called
where there is none. In bold what was chosen: the greatest sum of Dice and the literature's mean{within}.{none}

{tables}

{made_line(report)}
"""


if __name__ == "__main__":
    main()
