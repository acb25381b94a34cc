"""How much of the brain is tumour in a cohort, and putting that into weights that were trained on it.

    python scripts/measure_prevalence.py data/train --output results/prevalence
    python scripts/measure_prevalence.py data/train --checkpoint runs/first --weights new.safetensors

Prints the share of the brains' voxels in WT, TC and ET over the labelled cases of a folder: the value of no sequence at
all, from which contributions are counted. ``--output`` writes prevalence.json with command, versions and hardware, and
``--weights`` the checkpoint with it.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

from smml.data import find_cases
from smml.data.prevalence import measure_prevalence
from smml.files import write_text
from smml.models.checkpoint import load_checkpoint, save_checkpoint
from smml.runs import made_with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, help="folder of prevalence.json")
    parser.add_argument("--checkpoint", help="to put it into")
    parser.add_argument("--weights", type=Path, help="where the checkpoint is written with it: .safetensors")
    arguments = parser.parse_args()
    cases = [case for case in find_cases(arguments.data) if case.label is not None]
    found = {region: round(share, 5) for region, share in measure_prevalence(cases).items()}
    made = arguments.data / "simulated.json"
    report = {
        "command": "python " + " ".join(sys.argv),
        "cases": len(cases),
        "cohort": json.loads(made.read_text(encoding="utf-8")) if made.is_file() else arguments.data.name,
        "prevalence": found,
        **made_with(),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
    }
    print(json.dumps(report, indent=1))
    if arguments.output:
        write_text(arguments.output / "prevalence.json", json.dumps(report, indent=1) + "\n")
    if arguments.checkpoint and arguments.weights:
        save_checkpoint(replace(load_checkpoint(arguments.checkpoint), prevalence=found), arguments.weights)


if __name__ == "__main__":
    main()
