"""Weights: files of them, read without running code, compared with a model, and written; and their fingerprints."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from smml.errors import InputError
from smml.failures import explain, is_full_disk, is_out_of_memory, telling_memory
from smml.mistaken import true_kind_of


def read_tensors(path: Path, *, kind: str = "", get: str, again: str) -> tuple[dict, object]:
    """What a file of weights says in plain values, and its tensors.

    Args:
        path: a ``.safetensors`` file, or one of ``torch.save`` under any other name.
        kind: of weights, for the sentences: "SAM" or "".
        get: how to come by a file without code in it, a sentence.
        again: what to do about a damaged file of ``torch.save``.

    Returns:
        Facts and tensors: of ``.safetensors`` the metadata under "smml" (checked to be an object, {} without any) and
        all tensors by name; of ``torch.save`` everything beside the entry "weights" and that entry, or {} and the whole
        content if there is no such entry. What the content holds is for the caller to check.

    Raises:
        InputError: damaged, truncated, something else than its name says, or with pickled code in it, which is never
            run; or there is too little memory for it.
    """
    try:
        with telling_memory(os.fspath(path), "close other programs, or take smaller weights or a larger machine"):
            return _read_tensors(path, f"{kind} " if kind else "", get, again)
    except InputError as error:
        # What PyTorch saves is a zip archive.
        if found := true_kind_of(path, but=("a zip archive",)):
            raise InputError(f"{path}: expected weights, found {found}") from error
        raise


def _read_tensors(path: Path, kind: str, get: str, again: str) -> tuple[dict, object]:
    """As :func:`read_tensors`, which knows files that hold no weights at all."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get("smml", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        # Deeply nested metadata ends the parser's recursion.
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"{path}: damaged or truncated {kind}weights ({error}); copy or install them again"
            ) from error
        return facts if isinstance(facts, dict) else {}, tensors
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, because it holds pickled code or is no PyTorch file; only plain weights are loaded. "
            f"{get}"
        ) from error
    # What a damaged file provokes in the unpickler is not enumerable: lookup, index, overflow and codec errors.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged or truncated {kind}checkpoint ({first}); {again}") from error
    if not isinstance(content, dict) or "weights" not in content:
        return {}, content
    return {name: value for name, value in content.items() if name != "weights"}, content["weights"]


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Let ``torch.save`` and safetensors say of a disk what any other writer would, for :func:`smml.files.replacing`.

    Raises:
        OSError: the file could not be written: with ``ENOSPC`` where the disk is full, else with the library's words.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if is_full_disk(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if explain(error) is not None:  # memory, for example
            raise
        raise OSError(errno.EIO, str(error).splitlines()[0]) from error


def are_tensors(tensors: object) -> TypeGuard[dict[str, torch.Tensor]]:
    """Whether something read from a file is a dictionary of tensors."""
    return isinstance(tensors, dict) and all(isinstance(value, torch.Tensor) for value in tensors.values())


def check_fit(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path, owner: str) -> None:
    """Compare names and shapes with a model, which may be on the meta device, where building it costs nothing.

    Args:
        model: that the tensors are meant for.
        tensors: by name.
        path: the file that they come from.
        owner: what the model was built from, for the sentence.

    Raises:
        InputError: they do not fit; one of them is named.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    odd = sorted((name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)), key=str)
    if odd:
        raise InputError(
            f"{path}: {len(odd)} weights do not fit {owner} (for example {odd[0]}: expected {expected.get(odd[0])}, "
            f"found {found.get(odd[0])}); the file was made by another version or edited"
        )


def digest(parts: Iterable[bytes]) -> str:
    """A hash of byte strings, 40 hexadecimal digits; each part's length counts too."""
    state = hashlib.blake2b(digest_size=20)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def weights_fingerprint(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers, by name, dtype, shape and value."""
    return tensors_fingerprint(dict((*module.named_parameters(), *module.named_buffers())), type(module).__name__)


def tensors_fingerprint(tensors: Mapping[str, torch.Tensor], owner: str) -> str:
    """A hash of tensors, by name, dtype, shape and value.

    Args:
        tensors: by name, floating, of at most 32 bits.
        owner: what they are the weights of; part of the hash.
    """

    def parts():
        yield owner.encode()
        for name, tensor in sorted(tensors.items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            # Through float32, because numpy has no bfloat16; both SAM's and half precision fit into it.
            yield tensor.detach().float().cpu().contiguous().numpy().tobytes()

    return digest(parts())
