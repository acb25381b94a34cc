"""Who touched which place of memory last: two accesses of which one writes must be in order, or it is a race.

Within a program (a CTA) order comes from barriers: each has an epoch that a barrier ends. Between the programs of one
launch there is none. Threads of one warp count as in order.
"""

from dataclasses import dataclass

import numpy as np

# How many have read a place since a barrier: one warp, several warps of one program, several programs.
_ONE, _WARPS, _PROGRAMS = 0, 1, 2


@dataclass(frozen=True)
class Who:
    """The threads that access memory in one instruction.

    Attributes:
        warp: [n] the warp of each, numbered through all programs of the launch.
        epoch: [n] how many barriers its program has passed.
        instruction: its number.
        warps: of a program.
    """

    warp: np.ndarray
    epoch: np.ndarray
    instruction: int
    warps: int

    def stamps(self, granules: int) -> np.ndarray:
        """Warp and epoch in one number each, [n granules], never 0."""
        return np.repeat((self.epoch.astype(np.int64) << 32) | (self.warp + 1), granules)


@dataclass(frozen=True)
class Clash:
    """Two accesses that nothing puts in order.

    Attributes:
        row: which of the accessing threads.
        granule: which place.
        warp: who was there before.
        instruction: what it did there.
        wrote: whether that was a write.
        programs: whether the two are of different programs.
        at_once: whether the two are of one instruction that both execute in the same step.
    """

    row: int
    granule: int
    warp: int
    instruction: int
    wrote: bool
    programs: bool
    at_once: bool = False


class Shadow:
    """The last write and the last reads of every granule: so many bytes that no access of the kernel is smaller."""

    def __init__(self, granules: int, warps: int) -> None:
        self.warps = warps
        self._writer = np.zeros(granules, np.int64)
        self._reader = np.zeros(granules, np.int64)
        self._crowd = np.zeros(granules, np.int8)
        self._written_by = np.zeros(granules, np.int32)
        self._read_by = np.zeros(granules, np.int32)

    def _unordered(self, before: np.ndarray, now: np.ndarray) -> np.ndarray:
        """Whether an earlier access and one of now are of different warps without a barrier between."""
        same_warp = (before & 0xFFFFFFFF) == (now & 0xFFFFFFFF)
        in_order = same_warp | (self._same_program(before, now) & (before >> 32 < now >> 32))
        return (before != 0) & ~in_order

    def _same_program(self, before: np.ndarray, now: np.ndarray) -> np.ndarray:
        return ((before & 0xFFFFFFFF) - 1) // self.warps == ((now & 0xFFFFFFFF) - 1) // self.warps

    def _clash(self, bad: np.ndarray, stamps: np.ndarray, places: np.ndarray, now: np.ndarray, by: np.ndarray,
               wrote: bool, at_once: bool = False) -> list[Clash]:  # fmt: skip
        """Where reads or writes of before clash with those of now, one for each row."""
        flat = places.ravel()
        found: dict[int, Clash] = {}
        for at in np.flatnonzero(bad):
            warp, mine = int(stamps[at] & 0xFFFFFFFF) - 1, int(now[at] & 0xFFFFFFFF) - 1
            row = int(at) // places.shape[1]
            programs = warp // self.warps != mine // self.warps
            clash = Clash(row, int(flat[at]), warp, int(by[flat[at]]), wrote, programs, at_once)
            found.setdefault(row, clash)
        return list(found.values())

    def read(self, places: np.ndarray, who: Who) -> list[Clash]:
        """Enter reads of the granules ``places`` [n, g]; returns those that clash with an earlier write."""
        flat, now = places.ravel(), who.stamps(places.shape[1])
        before = self._writer[flat]
        bad = self._unordered(before, now) if before.any() else None
        reader = self._reader[flat]
        if reader.any():
            others = self._unordered(reader, now)
            foreign = others & ~self._same_program(reader, now)
            # A barrier since the last read starts anew, but other programs stay.
            kept = np.where(reader >> 32 == now >> 32, self._crowd[flat], self._crowd[flat] & _PROGRAMS)
            self._crowd[flat] = np.where(foreign, _PROGRAMS, np.where(others, np.maximum(kept, _WARPS), kept))
        self._reader[flat] = now
        self._read_by[flat] = who.instruction
        self._several_at_once(flat, now)
        if bad is None or not bad.any():
            return []
        return self._clash(bad, before, places, now, self._written_by, True)

    def _several_at_once(self, flat: np.ndarray, now: np.ndarray) -> None:
        """In one instruction several warps may read one place, of which the last stays in the books."""
        last = self._reader[flat]
        lost = last != now
        if lost.any():
            crowd = np.where(self._same_program(last, now), _WARPS, _PROGRAMS)[lost]
            np.maximum.at(self._crowd, flat[lost], crowd.astype(np.int8))

    def write(self, places: np.ndarray, who: Who) -> list[Clash]:
        """Enter writes; returns those that clash with an earlier access, or with one of the same instruction."""
        flat, now = places.ravel(), who.stamps(places.shape[1])
        found: list[Clash] = []
        reader = self._reader[flat]
        if reader.any():
            crowd = self._crowd[flat]
            same_epoch = reader >> 32 == now >> 32
            bad = self._unordered(reader, now) | (crowd == _PROGRAMS) | ((crowd == _WARPS) & same_epoch)
            if bad.any():
                found += self._clash(bad, reader, places, now, self._read_by, False)
        before = self._writer[flat]
        if before.any():
            bad = self._unordered(before, now)
            if bad.any():
                found += self._clash(bad, before, places, now, self._written_by, True)
        self._writer[flat] = now
        self._written_by[flat] = who.instruction
        last = self._writer[flat]
        bad = last != now
        if bad.any():
            found += self._clash(bad, last, places, now, self._written_by, True, at_once=True)
        return found


class LazyShadow:
    """The shadow of memory that most launches only read: it is made when something is written there first."""

    def __init__(self, granules: int, warps: int) -> None:
        self._size, self._warps = granules, warps
        self._shadow: Shadow | None = None
        self._reads: list[tuple[np.ndarray, Who]] = []

    def read(self, places: np.ndarray, who: Who) -> list[Clash]:
        """As :meth:`Shadow.read`."""
        if self._shadow is not None:
            return self._shadow.read(places, who)
        self._reads.append((places, who))
        return []

    def write(self, places: np.ndarray, who: Who) -> list[Clash]:
        """As :meth:`Shadow.write`."""
        if self._shadow is None:
            self._shadow = Shadow(self._size, self._warps)
            for read in self._reads:
                self._shadow.read(*read)
            self._reads.clear()
        return self._shadow.write(places, who)
