"""Turn a finished training run into weights that ship with the package.

    python scripts/ship_weights.py build/run-tiny tiny --commit COMMIT --hardware "4 CPU cores (AVX2)" \\
        --data "smml simulate data/train --cases 320 --spacing 3 --seed 11 --look varied"
    python scripts/ship_weights.py small small --decision results/decision/small/decision.json

Writes smml/weights/NAME.safetensors: the model alone in half precision, with the configuration, spacing, steps, seed,
versions, commit and hardware in its metadata. The second command gives shipped weights another rule for labels; what
it does not name stays as the weights say. Intervals and gains that were fitted with another rule are left out.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from smml.models.checkpoint import SHIPPED, Checkpoint, load_checkpoint, save_checkpoint
from smml.models.decision import ExpectedDice, find_decision

# What shipped weights say of how they were made, beside what they started from.
MADE = ("commit", "hardware", "data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of the run, or a shipped name")
    parser.add_argument("name", help="name under which the weights are loaded")
    parser.add_argument("--commit", help="commit that the run was trained with")
    parser.add_argument("--hardware", help="what it was trained on")
    parser.add_argument("--data", help="what it was trained on: the command that makes the cohort")
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
    # Only what has shipped says a commit. A run's "weights" is what its command named, maybe a folder of that machine.
    said = checkpoint.config if "commit" in checkpoint.config else {}
    made = {name: getattr(arguments, name) or said.get(name) for name in (*MADE, "weights")}
    if unsaid := [f"--{name}" for name in MADE if not made[name]]:
        parser.error(f"{arguments.run} does not say how it was made; give {', '.join(unsaid)}")
    window = arguments.window or checkpoint.window
    path = SHIPPED / f"{arguments.name}.safetensors"
    shipped = replace(
        checkpoint,
        weights=half,
        ema=None,
        training=None,
        config=checkpoint.config | made,
        window=window,
    )
    shipped = with_rule(shipped, rule_for_labels(arguments.decision, checkpoint.decision))
    save_checkpoint(shipped, path, students_of=arguments.students)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {checkpoint.step} steps")


def with_rule(checkpoint: Checkpoint, rule: ExpectedDice | None) -> Checkpoint:
    """The checkpoint with this rule; intervals and gains are of the labels, so another rule leaves them out."""
    if rule == checkpoint.decision:
        return checkpoint
    return replace(checkpoint, decision=rule, intervals=None, gains=None)


def rule_for_labels(asked: str, own: ExpectedDice | None) -> ExpectedDice | None:
    """The rule of a name, or the one whose choice a report tells."""
    if Path(asked).suffix == ".json":
        report = json.loads(Path(asked).read_text(encoding="utf-8"))
        return ExpectedDice(report["chosen"], tuple(report["may_be_absent"]), tuple(report["shown_on"]))
    return find_decision(asked, own)


if __name__ == "__main__":
    main()
