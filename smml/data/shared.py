"""Prepared cases in memory that the processes of a loader share, so that each is prepared once for all of them.

The memory is an anonymous mapping: processes that are forked have it in common, its pages are taken when they are first
written, and it is gone with the last process, whatever ends that one. Processes that are not forked (macOS, Windows)
cannot have it.
"""

import mmap
import multiprocessing
import pickle

import numpy as np
import torch

from smml.data.preprocessing import PreparedCase

# A case, and flat indices of its voxels to centre patches on.
Entry = tuple[PreparedCase, dict[str, np.ndarray]]

# Arrays begin at multiples of a cache line.
_LINE = 64


class SharedCases:
    """What :class:`smml.data.dataset.CohortDataset` keeps of each case, by its number.

    Args:
        cases: how many there are.
        size: bytes at most.
    """

    def __init__(self, cases: int, size: int) -> None:
        self._memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        # Of each case where it begins and how many arrays it has, -1 for one that is not there; then how much is taken.
        self._table = np.frombuffer(mmap.mmap(-1, 8 * (2 * cases + 1)), np.int64)
        self._table[:-1] = -1
        self._lock = multiprocessing.get_context("fork").Lock()

    @classmethod
    def of(cls, cases: int, size: int) -> "SharedCases | None":
        """As the class; None where a loader's processes are not forked, or where there is no such memory.

        Args:
            cases: how many there are.
            size: bytes at most; 0 shares nothing.
        """
        # The first is the default. Asked without allow_none it would be fixed, and nobody could choose any more.
        method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
        if size <= 0 or method != "fork":
            return None
        try:
            return cls(cases, size)
        except (OSError, OverflowError, ValueError):
            return None

    def get(self, number: int) -> Entry | None:
        """Case ``number`` in the shared memory itself, which must not be changed; None if it is not there.

        Args:
            number: of the case.
        """
        with self._lock:
            begin, arrays = (int(value) for value in self._table[2 * number : 2 * number + 2])
        if begin < 0:
            return None
        sizes = self._memory[begin : begin + 8 * (arrays + 1)].view(np.int64).tolist()
        header, *rest = self._parts(begin, sizes)
        image, label, others, places = pickle.loads(header.data, buffers=rest)
        return PreparedCase(image=torch.from_numpy(image), label=torch.from_numpy(label), **others), places

    def put(self, number: int, entry: Entry) -> None:
        """Keep a case, unless it is there already or does not fit in any more.

        Args:
            number: of the case.
            entry: of it, with a label.
        """
        prepared, places = entry
        assert prepared.label is not None  # the data set refuses a case without one
        others = {"available": prepared.available, "geometry": prepared.geometry}
        arrays: list[pickle.PickleBuffer] = []
        content = (prepared.image.contiguous().numpy(), prepared.label.contiguous().numpy(), others, places)
        header = pickle.dumps(content, protocol=5, buffer_callback=arrays.append)
        parts = [memoryview(header), *(array.raw() for array in arrays)]
        sizes = [part.nbytes for part in parts]
        with self._lock:
            begin = int(self._table[-1])
            end = begin + _rounded(8 * len(sizes)) + sum(map(_rounded, sizes))
            if self._table[2 * number] >= 0 or end > len(self._memory):
                return
            self._table[-1] = end
        self._memory[begin : begin + 8 * len(sizes)].view(np.int64)[:] = sizes
        for place, part in zip(self._parts(begin, sizes), parts, strict=True):
            place[:] = np.frombuffer(part, np.uint8)
        # Told last, and with the lock, so that whoever finds it finds all of it.
        with self._lock:
            self._table[2 * number : 2 * number + 2] = begin, len(arrays)

    def _parts(self, begin: int, sizes: list[int]) -> list[np.ndarray]:
        """Where header and arrays of these sizes lie, of a case that begins there."""
        at, parts = begin + _rounded(8 * len(sizes)), []
        for size in sizes:
            parts.append(self._memory[at : at + size])
            at += _rounded(size)
        return parts


def _rounded(size: int) -> int:
    """Up to whole lines."""
    return -(-size // _LINE) * _LINE
