"""A folder of simulated cases in the files and label values of any supported data set."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tqdm.auto import tqdm

import smml
from smml.data.case import Case
from smml.data.layouts import LAYOUTS, CaseFiles, find_cases
from smml.data.simulation.imaging import find_look
from smml.data.simulation.subject import Subject, simulate_subject
from smml.data.writing import case_paths, write_case
from smml.devices import find_device
from smml.errors import InputError
from smml.files import write_text
from smml.locks import LOCK, claimed
from smml.workers import in_processes

# What the folder holds and how to make it again; its presence also says that the images are simulated.
PROVENANCE = "simulated.json"

# BraTS stores its images with X to the left and Y to the back; readers must cope with it, so the simulator does too.
_STORED = nib.orientations.axcodes2ornt(("L", "P", "S"))


def simulate_cohort(
    root: str | os.PathLike,
    cases: int,
    *,
    spacing: float = 3.0,
    seed: int = 0,
    layout: str = "simulated",
    look: str = "typical",
    first_id: int = 0,
    device: str = "cpu",
    workers: int | None = None,
    progress: bool = True,
) -> list[CaseFiles]:
    """Write a simulated cohort, or complete one that was begun with the same settings.

    Same settings, same bytes on the CPU; subject ``i`` does not depend on ``cases``. Cases that are already complete
    are kept, so a second call returns at once.

    Args:
        root: folder to make or to complete.
        cases: how many subjects.
        spacing: voxel edge in mm; about 0.5 s a case at 3 mm and 1 s at 2 mm on one CPU core.
        seed: cohort seed; other seeds share no subject.
        layout: file names, formats and label values, a key of ``smml.data.LAYOUTS``; the ids of "simulated"
            ("Simulated_00003") are no patient's.
        look: "typical" (protocols as they are) or "varied" (for training: contrasts, artefacts and resolution far
            beyond that), of the same subjects.
        first_id: number in the id of the first subject, so that cohorts that meet need not share ids; nothing else
            of a subject depends on it.
        device: torch device that computes.
        workers: processes on the CPU; None uses all cores, 1 stays in this process.
        progress: show a progress bar.

    Returns:
        The cases, sorted by id.

    Raises:
        InputError: an argument is out of range, or the folder holds a cohort of other settings or other files.
    """
    _check_arguments(cases, spacing, seed, layout, first_id, device)
    version = find_look(look).version
    root = Path(root)
    settings = {"simulated": True, "spacing_mm": spacing, "seed": seed, "layout": layout, "look": look}
    settings |= {"look_version": version, "first_id": first_id}
    todo = [index for index in range(cases) if not _complete(root, first_id + index, layout)]
    # The lock too: whoever was killed right after the claim left it.
    if not (root / PROVENANCE).exists() or (todo and (root / LOCK).exists()):
        # Two that begin at once with other settings would mix their cases; with the same ones they write the same.
        with claimed(root, wait=True):
            _claim(root, settings)
    _claim(root, settings)
    workers = min(len(todo), workers or os.cpu_count() or 1) if torch.device(device).type == "cpu" else 1
    jobs = [(root, first_id + index, index, spacing, seed, layout, look, device) for index in todo]
    with tqdm(total=len(jobs), desc="simulating cases", unit="case", disable=not progress or not jobs) as bar:
        if workers <= 1 or len(jobs) < 4:
            for job in jobs:
                _write_subject(*job)
                bar.update()
        else:
            for _ in in_processes(_write_subject, jobs, workers):
                bar.update()
    wanted = {_case_id(number, layout) for number in range(first_id, first_id + cases)}
    return [case for case in find_cases(root, layout) if any(case.id.endswith(name) for name in wanted)]


def _check_arguments(cases: int, spacing: float, seed: int, layout: str, first_id: int, device: str) -> None:
    if cases < 1:
        raise InputError(f"cases must be at least 1, found {cases}")
    if not 0.5 <= spacing <= 6:
        raise InputError(f"spacing must lie between 0.5 and 6 mm, found {spacing:g}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, found {seed}")
    if not 0 <= first_id <= 100_000 - cases:
        raise InputError(f"ids have five digits: first_id must lie between 0 and {100_000 - cases}, found {first_id}")
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}: choose from {', '.join(LAYOUTS)}")
    find_device(device)


def _claim(root: Path, settings: dict) -> None:
    """Write the provenance file, or check that the one that is there says the same."""
    path = root / PROVENANCE
    if path.exists():
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be read as JSON ({error}); remove the folder or choose another"
            ) from error
        found.setdefault("first_id", 0)  # cohorts from before ids could begin elsewhere
        different = [key for key, value in settings.items() if found.get(key) != value]
        if different:
            raise InputError(
                f"{root}: holds a cohort simulated with "
                + ", ".join(f"{key}={found.get(key)!r} instead of {settings[key]!r}" for key in different)
                + "; choose another folder or remove this one"
            )
        return
    if root.exists() and (not root.is_dir() or any(not entry.name.startswith(".") for entry in root.iterdir())):
        raise InputError(f"{root}: exists and is not a simulated cohort; choose an empty or new folder")
    notice = {
        "what": "Simulated brain-tumour MRI. Not patient data.",
        "anatomy": "MNI152 2009a maps, (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, McGill University",
        "smml": smml.__version__,
        "torch": str(torch.__version__),
    }
    write_text(path, json.dumps(settings | notice, indent=2) + "\n")


def _case_id(number: int, layout: str) -> str:
    """The case id of a number in a layout (for 2015 without the grade's folder)."""
    return LAYOUTS[layout].case_name.format(id=f"{number:05d}", number=number)


def _complete(root: Path, number: int, layout: str) -> bool:
    """True if the last file of a case, its label, is there: files appear whole and in order (images first)."""
    return case_paths(root, f"{number:05d}", LAYOUTS[layout])["label"].exists()


def _write_subject(
    root: Path, number: int, index: int, spacing: float, seed: int, layout: str, look: str, device: str
) -> None:
    subject = simulate_subject(seed, index, spacing=spacing, device=device, look=look)
    volumes, labels, affine = as_stored(subject, layout)
    write_case(Case(f"{number:05d}", volumes, labels, affine, layout), root)


def as_stored(subject: Subject, layout: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Volumes, labels in the memory values of ``layout``, and affine, with the axes in BraTS's order (LPS)."""
    affine = subject.affine
    shape = subject.labels.shape
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), _STORED)
    stored_affine = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    labels = subject.labels
    if len(LAYOUTS[layout].scheme.learnt_classes) == 4:
        # NCR and NET are one class from BraTS 2017 on.
        labels = np.asarray([0, 1, 2, 1, 3], np.uint8)[labels]
    volumes = {
        name: np.ascontiguousarray(nib.apply_orientation(volume, turn)) for name, volume in subject.volumes.items()
    }
    return volumes, np.ascontiguousarray(nib.apply_orientation(labels, turn)), stored_affine
