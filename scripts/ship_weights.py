"""Turn a finished training run into weights that ship with the package.

    python scripts/ship_weights.py build/run-tiny tiny --commit COMMIT --hardware "4 CPU cores (AVX2)" \\
        --data "smml simulate data/train --cases 320 --spacing 3 --seed 11 --look varied"

Writes smml/weights/NAME.safetensors: the model alone in half precision, with the configuration, spacing, steps, seed,
versions, commit and hardware in its metadata.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from smml.models.checkpoint import SHIPPED, load_checkpoint, save_checkpoint
from smml.models.decision import ExpectedDice, find_decision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("name", help="name under which the weights are loaded")
    parser.add_argument("--commit", required=True, help="commit that the run was trained with")
    parser.add_argument("--hardware", required=True, help="what it was trained on")
    parser.add_argument("--data", required=True, help="what it was trained on: the command that makes the cohort")
    parser.add_argument("--weights", help="what the run started from, where not from random weights")
    parser.add_argument("--students", help="shipped weights with the same students, which are then not stored again")
    parser.add_argument(
        "--window", type=int, help="edge of the windows, where validation chose another than the default"
    )
    parser.add_argument(
        "--decision",
        default="own",
        help="how labels are made: own (the run's), argmax, expected-dice, or the decision.json of choose_decision.py",
    )
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.run)
    # The moving average, where the run kept one: it is what predicts.
    half = {name: tensor.to(torch.float16) for name, tensor in (checkpoint.ema or checkpoint.weights).items()}
    made = {"commit": arguments.commit, "hardware": arguments.hardware, "data": arguments.data}
    made["weights"] = arguments.weights
    window = arguments.window or checkpoint.window
    path = SHIPPED / f"{arguments.name}.safetensors"
    shipped = replace(
        checkpoint,
        weights=half,
        ema=None,
        training=None,
        config=checkpoint.config | made,
        window=window,
        decision=rule_for_labels(arguments.decision, checkpoint.decision),
    )
    save_checkpoint(shipped, path, students_of=arguments.students)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {checkpoint.step} steps")


def rule_for_labels(asked: str, own: ExpectedDice | None) -> ExpectedDice | None:
    """The rule of a name, or the one whose choice a report tells."""
    if Path(asked).suffix == ".json":
        report = json.loads(Path(asked).read_text(encoding="utf-8"))
        return ExpectedDice(report["chosen"], tuple(report.get("may_be_absent", ())), tuple(report.get("shown_on", ())))
    return find_decision(asked, own)


if __name__ == "__main__":
    main()
