"""Image embeddings of slices that were seen before: in memory up to a budget, and on wish in a folder.

Encoding a slice is what costs; prompting it again is cheap. A key is a hash of everything that the embedding depends on
(:func:`embedding_key`), so nothing here ever goes stale, whoever shares the folder.
"""

import os
import threading
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from smml.errors import InputError
from smml.files import replacing
from smml.tensors import digest

# Part of every key. Change it when smml.sam.slices shows SAM something else for the same slice.
_VERSION = b"smml-embedding-2"


def embedding_key(weights: str, slice_: torch.Tensor, window: tuple[float, float]) -> str:
    """The key of a slice's embedding.

    Args:
        weights: fingerprint of the SAM that encodes.
        slice_: [H, W], its voxels.
        window: (low, high) of :func:`smml.sam.slices.intensity_window`, which the embedding depends on too.
    """
    voxels = slice_.detach().float().cpu().contiguous().numpy()
    described = f"{weights} {tuple(voxels.shape)} {window[0]!r} {window[1]!r}"
    return digest((_VERSION, described.encode(), voxels.tobytes()))


class EmbeddingCache:
    """Embeddings by key, the least recently used leave first.

    Args:
        max_bytes: of the embeddings kept in memory, whatever device they are on; 0 keeps none.
        folder: also keep them there, one file each, for later runs and other processes. It is not limited: a case of
            96 axial slices in four sequences takes 110 MB with the tiny SAM and 1.6 GB with the official ones. Delete
            it whenever you like.

    Two processes may fill a folder at once: files appear whole, under names that tell their content. A file that was
    damaged is made anew. A folder that cannot be written to any more (full, say) is reported once, as a warning, and
    then only read: the embeddings are still right, only computed again.

    Raises:
        InputError: the folder cannot be made or written to.
    """

    def __init__(self, max_bytes: int = 512 * 2**20, folder: str | os.PathLike | None = None) -> None:
        if max_bytes < 0:
            raise InputError(f"max_bytes must be 0 or more, found {max_bytes}")
        self.max_bytes = max_bytes
        self.folder = None if folder is None else Path(folder)
        self.bytes = 0
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self._writable = self.folder is not None
        if self.folder is not None:
            with replacing(self.folder / ".writable") as probe:
                probe.touch()
            (self.folder / ".writable").unlink(missing_ok=True)

    def __getstate__(self) -> dict:
        """For another process: what it may keep and where, and none of what is kept here."""
        return {"max_bytes": self.max_bytes, "folder": self.folder, "_writable": self._writable}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, bytes=0, _kept=OrderedDict(), _lock=threading.Lock())

    @property
    def active(self) -> bool:
        """Whether anything is kept at all."""
        return self.max_bytes > 0 or self.folder is not None

    def __len__(self) -> int:
        """Embeddings in memory."""
        return len(self._kept)

    def get(self, key: str, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """An embedding [C, h, w] that was put here, or None; it is not to be changed.

        Args:
            key: it was put under.
            device: where the embedding is wanted.
        """
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        if found is None and self.folder is not None:
            found = self._read(key)
            if found is not None:
                found = found.to(device)
                self._keep(key, found)
        return None if found is None else found.to(device)

    def put(self, key: str, embedding: torch.Tensor) -> None:
        """Keep an embedding.

        Args:
            key: says what it was made from and by which model.
            embedding: [C, h, w]; copied.
        """
        # A copy: a row of a batch would keep the whole batch alive.
        embedding = embedding.detach().clone(memory_format=torch.contiguous_format)
        self._keep(key, embedding)
        if self._writable:
            self._write(key, embedding)

    def clear(self) -> None:
        """Forget what is in memory; the folder stays."""
        with self._lock:
            self._kept.clear()
            self.bytes = 0

    def _keep(self, key: str, embedding: torch.Tensor) -> None:
        if embedding.nbytes > self.max_bytes:
            return
        with self._lock:
            old = self._kept.pop(key, None)
            self.bytes += embedding.nbytes - (0 if old is None else old.nbytes)
            self._kept[key] = embedding
            while self.bytes > self.max_bytes:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def _path(self, key: str) -> Path:
        assert self.folder is not None  # nothing is read or written without one
        # Some file systems slow down with tens of thousands of files in one folder.
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> torch.Tensor | None:
        """The embedding in a file, or None where there is none that is whole."""
        try:
            with safe_open(self._path(key), framework="pt") as file:
                facts, embedding = file.metadata() or {}, file.get_tensor("embedding")
        except (SafetensorError, OSError, ValueError):
            return None
        # safetensors notices a file that was cut off, but not one whose bytes have changed.
        return embedding if facts.get("digest") == _content(key, embedding) else None

    def _write(self, key: str, embedding: torch.Tensor) -> None:
        embedding = embedding.cpu()
        try:
            with replacing(self._path(key)) as temporary:
                save_file({"embedding": embedding}, temporary, metadata={"digest": _content(key, embedding)})
        except (InputError, SafetensorError) as error:
            self._writable = False
            warnings.warn(f"{self.folder}: embeddings are no longer stored ({error})", RuntimeWarning, stacklevel=2)


def _content(key: str, embedding: torch.Tensor) -> str:
    return digest((key.encode(), str(tuple(embedding.shape)).encode(), embedding.numpy().tobytes()))
