"""What an evaluation costs, beside another tree of this project.

    python scripts/measure_evaluation.py --before FOLDER

``--before`` is a checkout of an older commit. Each tree evaluates the same simulated cases in a process of its own,
with all scores but those lesion by lesion (Dice, HD95, NSD, each branch), keeps the rows of each case on disk and
writes its report. The processes take turns, so that a machine that slows down slows both down; of each the median
counts. On a busy machine nothing here means much.

Writes results/speed/evaluation.json and evaluation.md: seconds of the evaluation and of its report by tree, and how
many times as long this tree takes as the older one.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measure_speed import commit, machine, server

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "results" / "speed"
PARTS = ("evaluate", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of an older commit of this project")
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--spacing", type=float, default=2.0, help="voxel edge of the simulated cases in mm")
    parser.add_argument("--checkpoint", default="small", help="shipped weights that both trees have")
    parser.add_argument("--subsets", nargs="*", help="only these, such as t1 flair+t2; default: all 15")
    parser.add_argument("--seed", type=int, default=3, help="cohort seed: pictures and timings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--busy", metavar="WHAT", help="what else ran on the machine, for the page")
    parser.add_argument("--output", type=Path, default=HOME)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return
    from smml.data import simulate_cohort
    from smml.files import write_text

    trees = {"before": arguments.before.resolve(), "now": ROOT}
    with tempfile.TemporaryDirectory() as folder:
        simulate_cohort(folder, arguments.cases, spacing=arguments.spacing, seed=arguments.seed)
        measured = take_turns(trees, Path(folder), arguments)
    seconds = {
        name: {part: statistics.median(run[part] for run in runs) for part in PARTS} for name, runs in measured.items()
    }
    found = {
        "what": "simulated cases only",
        "seconds": seconds,
        "ratio": {part: seconds["now"][part] / seconds["before"][part] for part in PARTS}
        | {"together": sum(seconds["now"].values()) / sum(seconds["before"].values())},
        "all": measured,
        "made by": provenance(arguments, trees),
    }
    write_text(arguments.output / "evaluation.json", json.dumps(found, indent=1) + "\n")
    write_text(arguments.output / "evaluation.md", table(found))
    print(table(found))


def take_turns(trees: dict[str, Path], data: Path, arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Seconds of each part, of each tree, of each turn."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    with contextlib.ExitStack() as stack:
        go = {name: stack.enter_context(server(words(tree, data, arguments), tree)) for name, tree in trees.items()}
        for _ in range(arguments.repeats):
            for name, once in go.items():
                measured[name].append(json.loads(once()))
                print(name, measured[name][-1], flush=True)
    return measured


def words(tree: Path, data: Path, arguments: argparse.Namespace) -> list[str]:
    """The command of a process of ``tree`` that has loaded the model, and evaluates and reports at every call."""
    command = [__file__, "--before", str(tree), "--checkpoint", arguments.checkpoint]
    command += ["--threads", str(arguments.threads), "--serve", str(data)]
    return command + (["--subsets", *arguments.subsets] if arguments.subsets else [])


def serve(arguments: argparse.Namespace) -> None:
    """Load the model, evaluate the first case without the clock, then all of them for every line that comes in."""
    # The script's own folder would come first: another smml than that of the tree must not.
    sys.path = [folder for folder in sys.path if Path(folder or ".").resolve() != ROOT / "scripts"]
    import torch

    import smml
    from smml import Predictor, evaluation, find_cases

    if Path(smml.__file__).resolve().parent.parent != arguments.before:
        raise SystemExit(f"{smml.__file__} is not of {arguments.before}")
    torch.set_num_threads(arguments.threads)
    predictor, cases = Predictor.from_checkpoint(arguments.checkpoint), find_cases(arguments.serve)
    some = {"subsets": arguments.subsets} if arguments.subsets else {}

    def once(chosen: list) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            scores = evaluation.evaluate(predictor, chosen, **some, branches=True, keep=folder, progress=False)
            scored = time.perf_counter()
            evaluation.write_report(scores, folder, "timed")
            return {"evaluate": scored - began, "report": time.perf_counter() - scored}

    once(cases[:1])
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(once(cases)), flush=True)


def provenance(arguments: argparse.Namespace, trees: dict[str, Path]) -> dict:
    """Command, commits, versions and hardware."""
    of_size = f"--threads {arguments.threads} --repeats {arguments.repeats} --cases {arguments.cases}"
    return {
        "command": f"python scripts/measure_evaluation.py --before FOLDER {of_size}",
        "beside": arguments.busy,
        "commits": {name: commit(tree) for name, tree in trees.items()},
        "cases": arguments.cases,
        "spacing": arguments.spacing,
        "seed": arguments.seed,
        "checkpoint": arguments.checkpoint,
        "subsets": arguments.subsets or "all 15",
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        **machine(),
    }


def table(found: dict) -> str:
    """The page."""
    made, seconds, ratio = found["made by"], found["seconds"], found["ratio"]
    subsets = made["subsets"] if isinstance(made["subsets"], str) else ", ".join(made["subsets"])
    busy = f"beside {made['beside']}; " if made["beside"] else ""
    together = {name: sum(parts.values()) for name, parts in seconds.items()}
    lines = [
        "# What an evaluation costs",
        "",
        f"`{made['command']}`: {made['cases']} **simulated** cases (seed {made['seed']}, {made['spacing']:g} mm), "
        f"`{made['checkpoint']}`, subsets: {subsets}; Dice, HD95 and NSD of both branches and their mean, rows kept on "
        f"disk. Threads: {made['threads']}; {busy}medians of {made['repeats']}, the trees taking turns; "
        f"{made['processor']}, torch {made['torch']}. Commit {made['commits']['now']}, "
        f"before: {made['commits']['before']}.",
        "",
        "| part | before, s | now, s | now over before |",
        "|---|-:|-:|-:|",
    ]
    for part in (*PARTS, "together"):
        before, now = ((seconds[name] | {"together": together[name]})[part] for name in ("before", "now"))
        lines.append(f"| {part} | {before:.2f} | {now:.2f} | {ratio[part]:.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
