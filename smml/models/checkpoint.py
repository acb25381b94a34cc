"""Checkpoints: what training saves and what prediction loads, never with code in it.

A training checkpoint (``.pt``) holds the model, the optimiser, the step, random states, the configuration, the spacing
and the versions that made it; it is written atomically and read with ``weights_only=True``. Shipped weights
(``.safetensors``) hold the model alone with the same facts in their metadata.
"""

import errno
import json
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import smml
from smml.errors import InputError
from smml.files import replacing
from smml.models.presets import PRESETS, StudentConfig
from smml.models.presets import preset as find_preset
from smml.models.smml import SMML

FORMAT = "smml-checkpoint-1"
SHIPPED = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says.

    Attributes:
        student: the size of the students.
        weights: state dictionary of :class:`SMML`.
        spacing: voxel edges in mm that the model was trained at.
        patch: edge of the training patch in voxels, the window of inference.
        step: training steps done.
        config: the training configuration; with refinement ``sam`` is the fingerprint of the SAM's weights.
        training: optimiser and random states, None in shipped weights.
        versions: of smml and torch that wrote it.
        ema: the moving average of the weights, where training kept one; it is what predicts.
        refinement: the SAM whose priors the refinement networks were trained with (see ``smml.sam.load_sam``); empty
            for a model without refinement.
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
        }

    def build(self) -> SMML:
        """The model with these weights, the averaged ones if there are any, in evaluation mode, on the CPU."""
        model = SMML(self.student, refine=bool(self.refinement))
        model.load_state_dict(self.ema or self.weights)
        return model.eval()


def save_checkpoint(path: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Write a ``.pt`` or ``.safetensors`` file atomically.

    The latter holds what predicts alone: the averaged weights if there are any, and no training state.
    """
    with replacing(path) as temporary:
        try:
            if Path(path).suffix == ".safetensors":
                weights = {
                    name: tensor.contiguous().cpu() for name, tensor in (checkpoint.ema or checkpoint.weights).items()
                }
                save_file(weights, temporary, metadata={"smml": json.dumps(checkpoint.facts())})
            else:
                content = {**checkpoint.facts(), "weights": checkpoint.weights, "training": checkpoint.training}
                if checkpoint.ema is not None:
                    content["ema"] = checkpoint.ema
                torch.save(content, temporary)
        except (RuntimeError, SafetensorError) as error:
            # Neither library reports a full disk as the OSError that it is.
            raise OSError(errno.EIO, str(error).splitlines()[0]) from error


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
            preset, or with weights that do not fit its own configuration.
    """
    path = find_checkpoint(name_or_path)
    facts, weights, training = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    ema = facts.get("ema") if path.suffix != ".safetensors" else None
    version = facts.get("format") if isinstance(facts, dict) else None
    if version != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this version ({FORMAT} expected, found {version!r})")
    try:
        student = StudentConfig.from_dict(facts["student"])
        checkpoint = Checkpoint(
            student=student,
            weights=weights,
            spacing=tuple(float(v) for v in facts["spacing"]),
            patch=int(facts["patch"]),
            step=int(facts["step"]),
            config=dict(facts["config"]),
            training=training,
            versions=dict(facts["versions"]),
            refinement=str(facts.get("refinement", "")),  # files of version 0.1.0 do not say
            ema=ema,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: the checkpoint is incomplete ({error!r}); save it again with `smml train`"
        ) from error
    _check_size(path, student, preset)
    _check_weights(path, checkpoint, weights)
    if ema is not None:
        _check_weights(path, checkpoint, ema)
    return checkpoint


def _read_torch(path: Path) -> tuple[dict, dict, dict | None]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, because it holds pickled code or is no PyTorch file; only plain weights are loaded. "
            "Ask its author for a .safetensors file, or save it again with `smml train`"
        ) from error
    # What a damaged file provokes in the unpickler is not enumerable: lookup, index, overflow and codec errors.
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged or truncated checkpoint ({first}); copy or train it again") from error
    if not isinstance(content, dict) or "weights" not in content:
        raise InputError(f"{path}: not a checkpoint of smml; expected what `smml train` saves")
    weights = content["weights"]
    for tensors in (weights, content.get("ema") or {}):
        if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise InputError(f"{path}: holds something other than tensors as weights; save it again with `smml train`")
    return content, weights, content.get("training")


def _read_safetensors(path: Path) -> tuple[dict, dict, None]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("smml", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged or truncated weights ({error}); copy or install them again") from error
    return facts, weights, None


def _check_size(path: Path, student: StudentConfig, preset: str | None) -> None:
    if preset is None:
        return
    wanted = {**find_preset(preset).to_dict(), "num_classes": student.num_classes}
    if student.to_dict() != wanted:
        found = next((name for name, value in PRESETS.items() if value.widths == student.widths), "another size")
        raise InputError(
            f"{path}: is a checkpoint of preset {found!r}, expected {preset!r}; choose that preset or another file"
        )


def _check_weights(path: Path, checkpoint: Checkpoint, weights: dict[str, torch.Tensor]) -> None:
    """Compare names and shapes with the model on the meta device, where building it costs nothing."""
    with torch.device("meta"):
        model = SMML(checkpoint.student, refine=bool(checkpoint.refinement))
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise InputError(
            f"{path}: {len(odd)} weights do not fit the configuration stored with them (for example {odd[0]}); "
            "the file was made by another version or edited"
        )
