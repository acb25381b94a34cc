"""Memory whose bounds are known: the tensors that a launch was given, and the shared memory of each program."""

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from smml_kernels.emulator.operands import BITS
from smml_kernels.emulator.shadow import LazyShadow


@dataclass(frozen=True)
class Allocation:
    """A piece of this process's memory that a kernel may touch.

    Attributes:
        name: for messages.
        address: of its first byte.
        bytes: its size.
    """

    name: str
    address: int
    bytes: int


class GlobalMemory:
    """Several allocations at their real addresses."""

    def __init__(self, allocations: Iterable[Allocation], granule: int, warps: int) -> None:
        """
        Args:
            allocations: tensors that share a storage may come several times.
            granule: bytes of the smallest access.
            warps: of a program.
        """
        by_address: dict[int, Allocation] = {}
        for allocation in allocations:
            known = by_address.get(allocation.address)
            if allocation.bytes and (known is None or known.bytes < allocation.bytes):
                by_address[allocation.address] = allocation
        self._allocations = [by_address[address] for address in sorted(by_address)]
        self._starts = np.array([allocation.address for allocation in self._allocations], np.int64)
        self._ends = self._starts + np.array([allocation.bytes for allocation in self._allocations], np.int64)
        self._granule = granule
        self._bytes, self._origins, self._shadows = [], [], []
        for allocation in self._allocations:
            # Views of 8 bytes need a start and a size that 16 divides; no access is let beyond the true ones.
            origin = allocation.address & ~15
            size = -(-(allocation.address + allocation.bytes - origin) // 16) * 16
            self._origins.append(origin)
            self._bytes.append(np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(origin)))
            self._shadows.append(LazyShadow(size // granule, warps))

    def outside(self, addresses: np.ndarray, size: int) -> int | None:
        """The first of the addresses [n] whose ``size`` bytes are not inside of one allocation; None if all are."""
        if not len(self._starts):
            return 0
        index = np.searchsorted(self._starts, addresses, side="right") - 1
        bad = (index < 0) | (addresses + size > self._ends[index])
        return int(np.argmax(bad)) if bad.any() else None

    def nearest(self, address: int) -> str:
        """Where an address lies, seen from the closest allocation."""
        if not self._allocations:
            return "the launch was given no memory"
        distances = [
            max(a.address - address, address - (a.address + a.bytes) + 1, 0) for a in self._allocations
        ]  # fmt: skip
        closest = self._allocations[int(np.argmin(distances))]
        of = f"`{closest.name}` ({closest.bytes} bytes at {closest.address:#x})"
        if address < closest.address:
            return f"{closest.address - address} bytes before {of}"
        return f"byte {address - closest.address} of {of}"

    def parts(self, addresses: np.ndarray) -> Iterator[tuple[int, np.ndarray | slice, np.ndarray]]:
        """For each allocation that the addresses [n] lie in: its number, which of them, and their offsets in it."""
        index = np.searchsorted(self._starts, addresses, side="right") - 1
        first = int(index[0])
        if (index == first).all():
            yield first, slice(None), addresses - self._origins[first]
            return
        for number in np.unique(index):
            rows = np.flatnonzero(index == number)
            yield int(number), rows, addresses[rows] - self._origins[number]

    def view(self, number: int, width: int) -> np.ndarray:
        """An allocation as unsigned numbers of ``width`` bytes."""
        return self._bytes[number].view(BITS[width])

    def shadow(self, number: int) -> LazyShadow:
        """Who touched it."""
        return self._shadows[number]

    def address_of(self, number: int, granule: int) -> int:
        """The address of a granule of the shadow."""
        return self._origins[number] + granule * self._granule
