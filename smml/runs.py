"""What a run's ``config.json`` says besides the options: with what, and where, it was made."""

import platform
import subprocess
from pathlib import Path

import torch

import smml
from smml.ranks import Ranks


def provenance(ranks: Ranks) -> dict:
    """Versions, commit, device and number of processes, as plain values for ``config.json``."""
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else platform.machine()
    return {
        "versions": {"smml": smml.__version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "commit": commit(),
        "processes": ranks.count,
        "hardware": f"{ranks.device.type}, {device}",
    }


def commit() -> str:
    """The commit of the repository that the package is run from; empty where it is none, or git is missing."""
    package = Path(smml.__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "HEAD"],
            cwd=package,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    top, head = answer.stdout.splitlines()
    # An installed package may lie inside some other repository, whose commit says nothing about it.
    return head if Path(top).resolve() == package.parent else ""
