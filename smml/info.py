"""What is installed, where it runs and what it found: the text of ``smml info``."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import smml
import smml_kernels
from smml.data import CaseFiles, find_cases
from smml.data.checking import find_problems, what_is_not_learnt
from smml.models.checkpoint import SHIPPED, Checkpoint, load_checkpoint
from smml.models.presets import preset_name
from smml.sam.download import OFFICIAL, cache_folder

_PACKAGES = ("torch", "triton", "monai", "nibabel", "nilearn", "SimpleITK", "plotly", "jupyterlab")


def describe(what: Path | None = None, layout: str | None = None) -> str:
    """A few lines for a person or a bug report.

    Args:
        what: also describe the cases in this folder, or this checkpoint: a file, the folder of a run, or the name of
            shipped weights where no folder has that name.
        layout: as for ``find_cases``.

    Raises:
        InputError: the folder is missing or holds no cases, or the checkpoint cannot be used.
    """
    lines = [f"smml {smml.__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines.append("packages: " + ", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        lines.append(f"device: CUDA, {', '.join(names)}")
    else:
        lines.append(f"device: CPU, {torch.get_num_threads()} threads")
    lines += [f"kernel {name}: {runs}" for name, runs in smml_kernels.report().items()]
    for file in sorted(SHIPPED.glob("*.safetensors")):
        lines.append(f"weights {file.stem!r}: {_training(load_checkpoint(file))}; simulated data")
    lines.append("SAM: 'tiny' ships with the package; " + "; ".join(_official_sams()))
    if what is not None and _is_checkpoint(what):
        lines.append(describe_checkpoint(what))
    elif what is not None:
        lines.append(_describe_cohort(what, find_cases(what, layout)))
    return "\n".join(lines)


def describe_checkpoint(name_or_path: str | os.PathLike) -> str:
    """A line on a checkpoint: its training, and what was fitted to it on other cases.

    Args:
        name_or_path: see :func:`smml.models.checkpoint.find_checkpoint`.

    Raises:
        InputError: the checkpoint cannot be used.
    """
    found = load_checkpoint(name_or_path)
    fitted = {
        "temperatures": "" if found.temperatures is None else ", ".join(f"{value:.2f}" for value in found.temperatures),
        "intervals of volumes": "" if found.intervals is None else f"fitted on {found.intervals.cases} cases",
        "rule for labels": "argmax" if found.decision is None else str(found.decision).removeprefix("labels of "),
        "table for next_scan": "" if found.gains is None else f"learnt on {found.gains.cases} cases",
    }
    said = "; ".join(f"{name}: {value or 'none'}" for name, value in fitted.items())
    return f"checkpoint {name_or_path}: {_training(found)}; {said}"


def _training(checkpoint: Checkpoint) -> str:
    refined = f", refined with SAM {checkpoint.refinement!r}" if checkpoint.refinement else ""
    name = preset_name(checkpoint.student)
    size = "a size of its own" if name is None else f"preset {name}"
    return f"{size}, {checkpoint.step} steps at {checkpoint.spacing[0]:g} mm{refined}"


def _is_checkpoint(path: Path) -> bool:
    """Whether this is a checkpoint and no folder of cases."""
    if path.is_dir():
        return (path / "checkpoint.pt").is_file()
    return path.suffix in (".pt", ".safetensors") or (SHIPPED / f"{path}.safetensors").is_file()


def check_cohort(data: Path, layout: str | None = None) -> tuple[str, dict[str, str]]:
    """Look at every case of a folder as training and evaluation do before they begin.

    Args:
        data: the folder.
        layout: as for ``find_cases``.

    Returns:
        A line on the cohort, and by id what is wrong with each case that cannot be used.

    Raises:
        InputError: the folder is missing or holds no cases.
    """
    cases = find_cases(data, layout)
    return _describe_cohort(data, cases), find_problems(cases)


def _official_sams() -> list[str]:
    """Which of Meta's checkpoints are here."""
    folder = cache_folder()
    return [
        f"{name} {f'in {folder}' if (folder / file.name).is_file() else 'is downloaded on first use'}"
        for name, file in OFFICIAL.items()
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _describe_cohort(data: Path, cases: Sequence[CaseFiles]) -> str:
    layouts = ", ".join(sorted({case.layout for case in cases}))
    sequences = Counter(name for case in cases for name in case.modalities)
    having = ", ".join(f"{name} {count}" for name, count in sequences.items())
    kind = "simulated cases" if (data / "simulated.json").exists() else "cases"
    labelled = sum(case.label is not None for case in cases)
    cohort = f"cohort {data}: {len(cases)} {kind} ({layouts}), {labelled} with a segmentation; sequences: {having}"
    return "\n".join([cohort, *what_is_not_learnt(cases)])
