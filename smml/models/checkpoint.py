"""Checkpoints: what training saves and what prediction loads, never with code in it.

A training checkpoint (``.pt``) holds the model, the optimiser, the step, random states, the configuration, the spacing
and the versions that made it; it is written atomically and read with ``weights_only=True``. Shipped weights
(``.safetensors``) hold the model alone with the same facts in their metadata; where the students are those of other
shipped weights, the file holds the refinement networks and names those weights.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

import smml
from smml.data.labels import Region
from smml.data.preprocessing import LATEST, PREPROCESSINGS
from smml.data.prevalence import check_prevalence
from smml.errors import InputError
from smml.files import replacing
from smml.mistaken import true_kind_of
from smml.models.decision import ExpectedDice, check_decision
from smml.models.gains import Gains
from smml.models.intervals import VolumeIntervals
from smml.models.presets import StudentConfig, preset_name
from smml.models.presets import preset as find_preset
from smml.models.smml import SMML
from smml.models.temperature import check_temperatures
from smml.tensors import are_tensors, check_fit, disk_errors, read_tensors, tensors_fingerprint

FORMAT = "smml-checkpoint-1"
SHIPPED = Path(__file__).resolve().parent.parent / "weights"

# What to do about a file that cannot be read.
_REMEDIES = {
    "get": "Ask its author for a .safetensors file, or save it again with `smml train`",
    "again": "copy or train it again",
}

# What a training can have been: edges of a voxel of a head in mm, and of a patch in voxels.
_SPACINGS = (0.05, 50.0)
_PATCHES = (32, 1024)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says.

    Attributes:
        student: the size of the students.
        weights: state dictionary of :class:`SMML`.
        spacing: voxel edges in mm that the model was trained at.
        patch: edge of the training patch in voxels.
        step: training steps done.
        config: the training configuration; with refinement ``sam`` is the fingerprint of the SAM's weights.
        training: optimiser and random states, None in shipped weights.
        versions: of smml and torch that wrote it.
        ema: the moving average of the weights, where training kept one; it is what predicts.
        preprocessing: version of how the images of the training were prepared (see ``smml.data.preprocessing``).
        refinement: the SAM whose priors the refinement networks were trained with (see ``smml.sam.load_sam``); empty
            for a model without refinement.
        temperatures: of the students' probabilities with one sequence, with two and so on
            (:mod:`smml.models.temperature`); None where none were fitted, as in files that do not say so, and the
            probabilities stay as they are.
        prevalence: share of the brains' voxels of its training that belong to each region; None where nobody measured
            it (:mod:`smml.data.prevalence`).
        intervals: of the volumes that it finds (:mod:`smml.models.intervals`); None where none were fitted.
        gains: what a further sequence is expected to bring (:mod:`smml.models.gains`); None likewise.
        window: edge in voxels of the windows that it predicts with, where somebody chose one for these weights; None:
            the patch's.
        decision: how labels are made of its probabilities (:mod:`smml.models.decision`); None: the argmax.
    """

    student: StudentConfig
    weights: dict[str, torch.Tensor]
    spacing: tuple[float, float, float]
    patch: int
    step: int = 0
    config: dict = field(default_factory=dict)
    training: dict | None = None
    versions: dict[str, str] = field(
        default_factory=lambda: {"smml": smml.__version__, "torch": str(torch.__version__)}
    )
    refinement: str = ""
    ema: dict[str, torch.Tensor] | None = None
    preprocessing: int = LATEST
    temperatures: tuple[float, ...] | None = None
    prevalence: dict[Region, float] | None = None
    intervals: VolumeIntervals | None = None
    gains: Gains | None = None
    window: int | None = None
    decision: ExpectedDice | None = None

    def facts(self) -> dict:
        """Everything but tensors, as plain values."""
        return {
            "format": FORMAT,
            "student": self.student.to_dict(),
            "spacing": list(self.spacing),
            "patch": self.patch,
            "step": self.step,
            "config": self.config,
            "versions": self.versions,
            "refinement": self.refinement,
            "preprocessing": self.preprocessing,
            "temperatures": None if self.temperatures is None else list(self.temperatures),
            "prevalence": self.prevalence,
            "intervals": None if self.intervals is None else self.intervals.to_dict(),
            "gains": None if self.gains is None else self.gains.to_dict(),
            "window": self.window,
            "decision": None if self.decision is None else self.decision.to_dict(),
        }

    def build(self) -> SMML:
        """The model with these weights, the averaged ones if there are any, in evaluation mode, on the CPU."""
        model = SMML(self.student, refine=bool(self.refinement))
        model.load_state_dict(self.ema or self.weights)
        return model.eval()


def save_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike, *, students_of: str | None = None) -> None:
    """Write a ``.pt`` or ``.safetensors`` file atomically.

    The latter holds what predicts alone: the averaged weights if there are any, and no training state.

    Args:
        checkpoint: what to save.
        path: ends in .pt or .safetensors.
        students_of: name of shipped weights with the same students, to the bit. A ``.safetensors`` file then holds the
            refinement networks alone, and takes the students from there whenever it is loaded.

    Raises:
        InputError: the folder cannot be written to, or the disk is full; ``students_of`` has other students, or the
            checkpoint has no refinement.
    """
    weights, facts = checkpoint.ema or checkpoint.weights, checkpoint.facts()
    if students_of is not None:
        if Path(path).suffix != ".safetensors" or not checkpoint.refinement:
            raise InputError(
                f"{path}: expected the name of a .safetensors file and a model with refinement, as only their students "
                "can come from elsewhere"
            )
        students = _students(weights)
        facts["students_of"] = {"weights": students_of, "fingerprint": _fingerprint(students)}
        _borrow(Path(path), facts["students_of"])
        weights = {name: tensor for name, tensor in weights.items() if name not in students}
    with replacing(path) as temporary, disk_errors():
        if Path(path).suffix == ".safetensors":
            tensors = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
            save_file(tensors, temporary, metadata={"smml": json.dumps(facts)})
        else:
            content = {**checkpoint.facts(), "weights": checkpoint.weights, "training": checkpoint.training}
            if checkpoint.ema is not None:
                content["ema"] = checkpoint.ema
            torch.save(content, temporary)


def _students(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a model's weights that are its students'."""
    return {name: tensor for name, tensor in weights.items() if name.startswith("branches.")}


def _fingerprint(students: dict[str, torch.Tensor]) -> str:
    return tensors_fingerprint(students, "students")


def _borrow(path: Path, lent: object) -> dict[str, torch.Tensor]:
    """The students that a file takes from shipped weights.

    Args:
        path: of the file, for the sentences.
        lent: what it says of them, ``weights`` and ``fingerprint``.

    Raises:
        InputError: it says something else, there are no such weights, or they have other students.
    """
    if not isinstance(lent, dict) or not all(isinstance(lent.get(fact), str) for fact in ("weights", "fingerprint")):
        raise InputError(f"{path}: students_of must name weights and fingerprint, found {lent!r:.80}")
    name = lent["weights"]
    # Looked up among those that are there: a name out of a file must lead nowhere else.
    shipped = {file.stem: file for file in SHIPPED.glob("*.safetensors")}.get(name)
    # Whoever borrows does not lend, so no file leads back to itself.
    if shipped is None or shipped.resolve() == path.resolve():
        raise InputError(f"{path}: takes its students from {name!r:.80}, which does not ship with this version of smml")
    _, weights = read_tensors(shipped, **_REMEDIES)
    students = _students(weights) if are_tensors(weights) else {}
    if _fingerprint(students) != lent["fingerprint"]:
        raise InputError(
            f"{path}: was trained on other students than {name!r} has in this version; train its refinement again from "
            f"{name!r}, or use the release or commit of smml that made it"
        )
    return students


def find_checkpoint(name_or_path: str | os.PathLike) -> Path:
    """The file that a checkpoint's name or path stands for: a file, a run's folder, or the name of shipped weights.

    Raises:
        InputError: there is no such file; the shipped names are listed.
    """
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "checkpoint.pt"
    if path.is_file():
        return path
    shipped = SHIPPED / f"{name_or_path}.safetensors"
    if shipped.is_file():
        return shipped
    if found := true_kind_of(path):  # a link to content that is not here
        raise InputError(f"{path}: expected a checkpoint, found {found}")
    names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors"))) or "none in this version"
    raise InputError(
        f"{name_or_path}: no such checkpoint; give a .pt or .safetensors file, the folder of a training run, or the "
        f"name of weights that ship with the package ({names})"
    )


def load_checkpoint(name_or_path: str | os.PathLike, *, preset: str | None = None) -> Checkpoint:
    """Read a checkpoint.

    Args:
        name_or_path: see :func:`find_checkpoint`.
        preset: insist on this preset's size (the number of classes apart).

    Raises:
        InputError: no such file, truncated, not a checkpoint of this project, with pickled code in it, of another
            preset, with a value out of its range, or with weights that do not fit its own configuration.
    """
    path = find_checkpoint(name_or_path)
    facts, weights = read_tensors(path, **_REMEDIES)
    if not facts and path.suffix != ".safetensors":
        raise InputError(f"{path}: not a checkpoint of smml; expected what `smml train` saves")
    if (version := facts.get("format")) != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this version ({FORMAT} expected, found {version!r})")
    ema = facts.get("ema")
    if not are_tensors(weights) or not (ema is None or are_tensors(ema)):
        raise InputError(f"{path}: holds something other than tensors as weights; save it again with `smml train`")
    if "students_of" in facts:
        weights = weights | _borrow(path, facts["students_of"])
    try:
        checkpoint = _checked(facts, weights)
    except InputError as error:
        raise InputError(f"{path}: {error}; the file was edited or damaged: copy or train it again") from error
    # The latter of a whole number that is too long to be shown.
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: the checkpoint is incomplete ({error!r}); save it again with `smml train`"
        ) from error
    if checkpoint.preprocessing not in PREPROCESSINGS:
        known = ", ".join(map(str, PREPROCESSINGS))
        raise InputError(
            f"{path}: was trained on images prepared as in version {checkpoint.preprocessing!s:.40}, and this smml "
            f"prepares them as in {known}; train it anew, or use the release or commit of smml that made it"
        )
    _check_size(path, checkpoint.student, preset)
    with torch.device("meta"):
        model = SMML(checkpoint.student, refine=bool(checkpoint.refinement))
    for tensors in (weights,) if ema is None else (weights, ema):
        check_fit(model, tensors, path, "the configuration stored with them")
    return checkpoint


def _checked(facts: dict, weights: dict[str, torch.Tensor]) -> Checkpoint:
    """The checkpoint of a file's facts; KeyError if one is missing, InputError if one is out of its range."""
    spacing, patch, step = facts["spacing"], facts["patch"], facts["step"]
    low, high = _SPACINGS
    # Not isinstance: True is an int. A NaN fails the comparison.
    if (
        not isinstance(spacing, list | tuple)
        or len(spacing) != 3
        or not all(type(edge) in (int, float) and low <= edge <= high for edge in spacing)
    ):
        raise InputError(f"spacing must be three edges of {low:g} to {high:g} mm, found {spacing!r:.80}")
    low, high = _PATCHES
    # Files that are older than the choice of a window have none.
    window = facts.get("window")
    for name, edge in (("patch", patch), ("window", patch if window is None else window)):
        if type(edge) is not int or not low <= edge <= high or edge % 16:
            raise InputError(f"{name} must be a whole number from {low} to {high}, divisible by 16, found {edge!r:.80}")
    if type(step) is not int or not 0 <= step < 2**62:
        raise InputError(f"step must be a whole number that is not negative, found {step!r:.80}")
    for name, kind in (("config", dict), ("versions", dict), ("refinement", str), ("training", dict | None)):
        # Shipped weights have no training, and files of version 0.1.0 name no refinement.
        if name in facts and not isinstance(facts[name], kind):
            raise InputError(f"{name} must be a {getattr(kind, '__name__', 'dict')}, found {facts[name]!r:.80}")
    x, y, z = map(float, spacing)
    # Files that are older than the versions name none.
    preprocessing = facts.get("preprocessing", 1)
    if type(preprocessing) is not int:
        raise InputError(f"preprocessing must be a whole number, found {preprocessing!r:.80}")
    student = StudentConfig.from_dict(facts["student"])
    return Checkpoint(
        student=student,
        weights=weights,
        spacing=(x, y, z),
        patch=patch,
        step=step,
        config=dict(facts["config"]),
        training=facts.get("training"),
        versions=dict(facts["versions"]),
        refinement=facts.get("refinement", ""),
        ema=facts.get("ema"),
        preprocessing=preprocessing,
        temperatures=check_temperatures(facts.get("temperatures"), student.num_modalities),
        prevalence=check_prevalence(facts.get("prevalence")),
        intervals=VolumeIntervals.from_dict(facts.get("intervals")),
        gains=Gains.from_dict(facts.get("gains")),
        window=window,
        decision=check_decision(facts.get("decision")),
    )


def _check_size(path: Path, student: StudentConfig, preset: str | None) -> None:
    if preset is None:
        return
    wanted = {**find_preset(preset).to_dict(), "num_classes": student.num_classes}
    if student.to_dict() != wanted:
        found = preset_name(student) or "another size"
        raise InputError(
            f"{path}: is a checkpoint of preset {found!r}, expected {preset!r}; choose that preset or another file"
        )
