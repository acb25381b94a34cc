"""Load SAM: the tiny one that ships here, an official checkpoint by name, or a file.

Official checkpoints, and fine-tuned ones with the same names of weights, such as MedSAM's, are mostly ``.pth`` files;
their size, ViT-B, L or H, is read off the weights. These may lie in a checkpoint of a training, beside its optimiser,
and their names may have a prefix, as ``DataParallel`` puts one in front. What this project trains is
``.safetensors`` with its size in the metadata. No file is ever allowed to run code.
"""

import json
import os
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file

from smml.devices import find_device
from smml.errors import InputError
from smml.files import replacing
from smml.mistaken import true_kind_of
from smml.sam.download import OFFICIAL, fetch
from smml.sam.tiny import TinyConfig, build_tiny
from smml.sam.torchvision_gap import Sam, import_segment_anything
from smml.tensors import are_tensors, check_fit, disk_errors, read_tensors

FORMAT = "smml-sam-1"
WEIGHTS = Path(__file__).resolve().parent / "weights"

_REMEDIES = {"get": "Get an official checkpoint with load_sam('vit_b')", "again": "copy or download it again"}

# Under which entry a training's checkpoint keeps the weights.
_ENTRIES = ("model", "state_dict", "model_state_dict", "weights", "sam")

# Channels and blocks of the image encoder tell the official sizes apart.
_SIZES = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h"}


def load_sam(
    name_or_path: str | os.PathLike = "tiny",
    *,
    device: str | torch.device = "cpu",
    cache: str | os.PathLike | None = None,
    progress: bool = True,
) -> Sam:
    """A SAM that is ready for inference: frozen, in evaluation mode, float32.

    Args:
        name_or_path: "tiny" (ships with the package, trained on simulated data alone); "vit_b", "vit_l" or "vit_h"
            (Meta's, 0.4, 1.2 and 2.6 GB, downloaded on first use); or a ``.pth`` or ``.safetensors`` file.
        device: where to put it.
        cache: folder of downloaded files; see :func:`smml.sam.download.cache_folder`.
        progress: show a bar while downloading.

    Returns:
        A ``segment_anything.modeling.Sam``; ``answers_three`` says whether its three masks for ambiguous prompts were
        trained.

    Raises:
        InputError: an unknown name, no such file, a file that is damaged, tampered with, no SAM or pickled code; no
            network and not cached; the cache cannot be written.
    """
    target = find_device(str(device))
    name = os.fspath(name_or_path)
    if name == "tiny":
        sam = read_tiny(WEIGHTS / "sam-tiny.safetensors")[0]
    elif name in OFFICIAL:
        sam = _read_official(fetch(name, cache=cache, progress=progress), expected=name)
    else:
        path = Path(name)
        if not path.is_file():
            if found := true_kind_of(path):  # a link to content that is not here
                raise InputError(f"{path}: expected a SAM, found {found}")
            raise InputError(
                f"{name}: no such SAM; give tiny, {', '.join(OFFICIAL)}, or a .pth or .safetensors file that exists"
            )
        sam = _read_any(path)
    return sam.to(target).eval().requires_grad_(False)


def save_tiny(sam: Sam, path: str | os.PathLike, config: TinyConfig, facts: dict) -> None:
    """Write a tiny SAM as ``.safetensors`` in half precision, atomically.

    Args:
        sam: its weights.
        path: file to write.
        config: its size.
        facts: how it was made (plain values), kept in the metadata.
    """
    weights = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in sam.state_dict().items()}
    described = {"format": FORMAT, "size": config.to_dict(), **facts}
    with replacing(path) as temporary, disk_errors():
        save_file(weights, temporary, metadata={"smml": json.dumps(described)})


def read_tiny(path: Path) -> tuple[Sam, dict]:
    """A tiny SAM in float32 and the facts stored with it; inverse of :func:`save_tiny`.

    Args:
        path: file of :func:`save_tiny`.

    Raises:
        InputError: damaged, truncated or not a tiny SAM.
    """
    facts, weights = read_tensors(path, kind="SAM", **_REMEDIES)
    return _tiny(path, facts, weights), facts


def _read_any(path: Path) -> Sam:
    """The SAM of a file of either kind."""
    facts, content = read_tensors(path, kind="SAM", **_REMEDIES)
    if path.suffix == ".safetensors" and ("format" in facts or _find_size(_state_dict(content)) is None):
        return _tiny(path, facts, content)
    return _official(path, content)


def _tiny(path: Path, facts: dict, weights: object) -> Sam:
    """A tiny SAM of what its file holds."""
    found = facts.get("format")
    if found != FORMAT or not isinstance(facts.get("size"), dict) or not are_tensors(weights):
        raise InputError(
            f"{path}: not a SAM of this project ({FORMAT} expected, found {found!r}); official SAM checkpoints are "
            ".pth files"
        )
    try:
        with torch.device("meta"):
            sam = build_tiny(TinyConfig.from_dict(facts["size"]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    _fill(sam, weights, path)
    # Files from before the three masks were trained do not say so.
    sam.answers_three = facts.get("multimask") is True
    return sam


def _read_official(path: Path, expected: str | None = None) -> Sam:
    """A SAM from a file with the official names of weights."""
    return _official(path, read_tensors(path, kind="SAM", **_REMEDIES)[1], expected)


def _official(path: Path, content: object, expected: str | None = None) -> Sam:
    """A SAM of one of the official sizes, of what its file holds."""
    weights = _state_dict(content)
    size = _find_size(weights)
    if size is None or (expected is not None and size != expected):
        raise InputError(
            f"{path}: {f'not {expected}' if size else 'not a SAM'}; expected the weights of an official SAM "
            f"({', '.join(OFFICIAL)}) under their official names, found {size or _describe(content)}"
        )
    package = import_segment_anything()
    # Built without memory: the official sizes take seconds to fill with random numbers that nobody needs, and whoever
    # draws numbers before and after should not notice.
    with torch.device("meta"):
        sam = package.sam_model_registry[size]()
    # Only of tensors is there a size.
    _fill(sam, cast(dict[str, torch.Tensor], weights), path)
    sam.answers_three = True
    return sam


def _state_dict(content: object) -> object:
    """The weights in a training's checkpoint, their names without a prefix that all of SAM's have; else the content."""
    while isinstance(content, dict) and not are_tensors(content):
        inner = next((content[name] for name in _ENTRIES if isinstance(content.get(name), dict)), None)
        if inner is None:
            return content
        content = inner
    if not isinstance(content, dict):
        return content
    known = "image_encoder.pos_embed"
    prefix = next((str(name).removesuffix(known) for name in content if str(name).endswith(known)), "")
    if not prefix:
        return content
    return {name.removeprefix(prefix) if isinstance(name, str) else name: value for name, value in content.items()}


def _find_size(weights: object) -> str | None:
    """Which official size a state dictionary is of, or None."""
    if not are_tensors(weights):
        return None
    place = weights.get("image_encoder.pos_embed")
    if place is None or place.ndim != 4:
        return None
    prefix = "image_encoder.blocks."
    depth = len({name[len(prefix) :].split(".")[0] for name in weights if str(name).startswith(prefix)})
    return _SIZES.get((place.shape[-1], depth))


def _describe(weights: object) -> str:
    if not isinstance(weights, dict):
        return f"a {type(weights).__name__}"
    names = ", ".join(str(name) for name in list(weights)[:3])
    return f"{len(weights)} entries ({names} ...)"


def _fill(sam: Sam, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put the weights into a model without memory, in float32, naming the file where they do not fit."""
    check_fit(sam, weights, path, "a SAM of that size")
    weights = {name: tensor.float() for name, tensor in weights.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise InputError(f"{path}: holds NaN or infinite weights; copy or download it again")
    sam.load_state_dict(weights, assign=True)
    # SAM's own normalisation, which is no part of a checkpoint.
    sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)
    sam.pixel_std = torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1)
