"""The machine: threads as lanes of numpy arrays, memory whose bounds are known, and what is checked on the way.

Several programs (CTAs) of a launch run at once, as lanes side by side: an instruction is one numpy operation for all of
them. Of the threads that can run, those at the lowest instruction run first, so that threads that a branch has parted
meet again behind it. Each byte that nothing has written is followed through the instructions that hand it on; it is an
error only where it decides something.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np

from smml_kernels.emulator.faults import Fault
from smml_kernels.emulator.memory import Allocation, GlobalMemory
from smml_kernels.emulator.operands import BITS
from smml_kernels.emulator.program import Branch, Program
from smml_kernels.emulator.ptx import Instruction
from smml_kernels.emulator.shadow import Clash, Shadow, Who

# Undefined bytes of a register of any width.
ALL_BYTES, NO_BYTE = np.uint8(255), np.uint8(0)
# Threads that run at once: more spread the cost of Python over more work, until their registers leave the cache.
_LANES = 4096
# Instructions of one wave: the largest kernel of the tests takes some 20 thousand.
_ENDLESS = 5_000_000
_GRID = (2**31 - 1, 65535, 65535)
_THREADS = 1024
# Bytes of shared memory that a program may ask for, by compute capability; the CUDA programming guide.
_SHARED = {75: 65536, 80: 166912, 86: 101376, 87: 166912, 89: 101376, 90: 232448, 100: 232448, 103: 232448}
_SHARED |= {120: 101376, 121: 101376}


@dataclass(frozen=True)
class Launch:
    """What a kernel is launched with.

    Attributes:
        grid: programs in x, y and z.
        threads: of a program.
        parameters: the bytes of the parameter space.
        allocations: what it may touch.
        shared: bytes of shared memory, beyond what the PTX declares itself.
    """

    grid: tuple[int, int, int]
    threads: int
    parameters: bytes
    allocations: Sequence[Allocation]
    shared: int = 0


@dataclass
class Counts:
    """What a launch took.

    Attributes:
        programs: how many ran.
        instructions: executed, counted once for all threads that took them together.
        bytes_read: of global memory, counted for each thread.
        bytes_written: of global memory.
    """

    programs: int = 0
    instructions: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass
class _Copy:
    """An asynchronous copy that is under way: for each thread where to, what, and in which group."""

    threads: np.ndarray
    places: np.ndarray
    values: np.ndarray
    group: np.ndarray


@dataclass
class _Product:
    """A product of tensor cores that is under way: what it writes and reads, and whether its group is closed."""

    registers: list[int]
    places: np.ndarray
    committed: bool = False


def run(program: Program, launch: Launch) -> Counts:
    """Run every program of a launch.

    Raises:
        Fault: the kernel or the launch does what it must not.
    """
    _check_launch(program, launch)
    return _Grid(program, launch).run()


def _check_launch(program: Program, launch: Launch) -> None:
    kernel = program.kernel
    for axis, size, most in zip("xyz", launch.grid, _GRID, strict=True):
        if not 0 < size <= most:
            raise Fault("launch", f"{kernel.name}: {size} programs in {axis}, where 1 to {most} can be")
    if not 0 < launch.threads <= _THREADS or launch.threads % 32:
        raise Fault("launch", f"{kernel.name}: {launch.threads} threads, where 32 to {_THREADS} can be, in whole warps")
    if kernel.threads not in (None, launch.threads):
        raise Fault("launch", f"{kernel.name}: {launch.threads} threads for a kernel compiled for {kernel.threads}")
    shared, most = kernel.static_shared + launch.shared, _SHARED.get(kernel.capability, max(_SHARED.values()))
    if shared > most:
        raise Fault("launch", f"{kernel.name}: {shared} bytes of shared memory; sm_{kernel.capability} has {most}")
    if len(launch.parameters) < kernel.parameter_bytes:
        raise Fault(
            "launch", f"{kernel.name}: {len(launch.parameters)} bytes of parameters of {kernel.parameter_bytes}"
        )


class _Grid:
    """All programs of a launch, in waves."""

    def __init__(self, program: Program, launch: Launch) -> None:
        self.program, self.launch, self.counts = program, launch, Counts()
        self.memory = GlobalMemory(launch.allocations, program.granules["global"], launch.threads // 32)

    def run(self) -> Counts:
        total = int(np.prod(self.launch.grid, dtype=np.int64))
        at_once = max(1, _LANES // self.launch.threads)
        for first in range(0, total, at_once):
            numbers = np.arange(first, min(first + at_once, total))
            Machine(self.program, self.launch, self.memory, self.counts, numbers).run()
        self.counts.programs = total
        return self.counts


class Machine:
    """Some programs of a launch, run to their end.

    Attributes:
        threads: T, of all the programs.
        specials: what ``%tid.x`` and its like read, by name: int64 [T], or scalars.
        at: the number of the instruction that is executed.
    """

    def __init__(
        self, program: Program, launch: Launch, memory: GlobalMemory, counts: Counts, numbers: np.ndarray
    ) -> None:
        self.program, self.launch, self.memory, self.counts = program, launch, memory, counts
        self.threads = len(numbers) * launch.threads
        self.at = 0
        self._number = np.repeat(numbers, launch.threads)
        self._lane = np.tile(np.arange(launch.threads), len(numbers))
        self.specials = self._specials()
        self._registers: list[np.ndarray | None] = [None] * len(program.kernel.registers)
        # By register, which of its bytes nothing has written: uint8 [T], bit b for byte b.
        self._undefined: dict[int, np.ndarray] = {}
        self._pc = np.zeros(self.threads, np.int64)
        self._alive = np.ones(self.threads, bool)
        self._waiting = np.full(self.threads, -1)  # the barrier that a thread waits at
        self._warps = launch.threads // 32
        self._warp = self._number * self._warps + self._lane // 32
        self._epoch = np.zeros(self.threads, np.int64)
        self._parameters = np.frombuffer(launch.parameters, np.uint8)
        # Shared memory: one piece for each program, a multiple of the longest pattern that a swizzle repeats.
        self.shared_bytes = program.kernel.static_shared + launch.shared
        piece = -(-(self.shared_bytes + 1) // 1024) * 1024
        self._shared_start = np.repeat(np.arange(len(numbers)) * piece, launch.threads)
        self._shared = np.full(len(numbers) * piece, 0xCD, np.uint8)
        self._granule = program.granules["shared"]
        granules = len(self._shared) // self._granule
        self._shared_shadow = Shadow(granules, self._warps)
        self._unwritten = np.ones(granules, bool)
        self._copies: list[_Copy] = []
        self._committed = np.zeros(self.threads, np.int64)
        # By granule, the copy that is under way to it and the product that is reading it: instruction + 1.
        self._arriving = np.zeros(granules, np.int32)
        self._multiplied = np.zeros(granules, np.int32)
        self._products: dict[int, list[_Product]] = {}  # by group of four warps
        self._in_flight: dict[int, int] = {}  # registers that products will write, by their instruction

    def _specials(self) -> dict[str, np.ndarray]:
        grid, zero, one = self.launch.grid, np.asarray(0), np.asarray(1)
        found = {"%tid.x": self._lane, "%tid.y": zero, "%tid.z": zero}
        found |= {"%ntid.x": np.asarray(self.launch.threads), "%ntid.y": one, "%ntid.z": one}
        found |= {f"%nctaid.{axis}": np.asarray(size) for axis, size in zip("xyz", grid, strict=True)}
        found |= {f"%ctaid.{axis}": part for axis, part in zip("xyz", self._coordinates(self._number), strict=True)}
        return found | {"%laneid": self._lane % 32, "%warpid": self._lane // 32}

    def _coordinates(self, number):
        """Of a program, or of an array of them, in the grid."""
        x, y, _ = self.launch.grid
        return number % x, number // x % y, number // (x * y)

    # Registers --------------------------------------------------------------------------------------------------------

    def value(self, index: int) -> np.ndarray:
        """The bits of a register, [T]; what nothing has written is some number, and known as undefined."""
        if self._in_flight and index in self._in_flight:
            product = self.program.kernel.instructions[self._in_flight[index]]
            name = self.program.kernel.registers[index].name
            self.fault("not waited for", f"reads {name}, which {product} has still to write", self._first())
        return self.accumulator(index)

    def accumulator(self, index: int) -> np.ndarray:
        """As :meth:`value`, also while a product is under way to it: the next product may add to it."""
        found = self._registers[index]
        if found is None:
            dtype = self.program.dtypes[index]
            found = np.full(self.threads, dtype.kind == "b" or 0xAAAAAAAAAAAAAAAA & np.iinfo(dtype).max, dtype)
            self._registers[index] = found
            self._undefined[index] = np.full(self.threads, ALL_BYTES)
        return found

    def write(self, index: int, bits: np.ndarray, active: np.ndarray | None, undefined: np.ndarray | None) -> None:
        """Give a register new bits.

        Args:
            index: which register.
            bits: [T], or a scalar.
            active: which threads write, bool [T]; None for all.
            undefined: whose new bits are not defined, bool [T], or which bytes of them, uint8 [T]; None for nobody's.
        """
        if bits.ndim == 0:
            bits = np.full(self.threads, bits)
        if undefined is not None and undefined.dtype == bool:
            undefined = undefined * ALL_BYTES
        if active is None:
            self._registers[index] = bits
            if undefined is not None:
                self._undefined[index] = undefined
            elif self._undefined:
                self._undefined.pop(index, None)
            return
        before = self.accumulator(index)
        self._registers[index] = np.where(active, bits, before)
        known = self._undefined.get(index)
        if known is not None or undefined is not None:
            new = np.where(active, NO_BYTE if undefined is None else undefined, NO_BYTE if known is None else known)
            if new.any():
                self._undefined[index] = new
            else:
                self._undefined.pop(index, None)

    def undefined(self, indices: tuple[int, ...]) -> np.ndarray | None:
        """Which threads have something undefined in any of these registers, bool [T]; None for nobody."""
        found = self.undefined_bytes(indices)
        return None if found is None else found != 0

    def undefined_bytes(self, indices: tuple[int, ...]) -> np.ndarray | None:
        """The bytes that are undefined in any of these registers, uint8 [T], bit b for byte b; None for none."""
        found = None
        for index in indices:
            self.value(index)
            known = self._undefined.get(index) if self._undefined else None
            if known is not None:
                found = known if found is None else found | known
        return found

    def require_defined(self, indices: tuple[int, ...], active: np.ndarray | None, decides: str) -> None:
        """Raise a Fault where something undefined in these registers would decide something."""
        undefined = self.undefined(indices)
        if undefined is None:
            return
        bad = undefined & self._alive if active is None else undefined & active
        if bad.any():
            names = ", ".join(
                dict.fromkeys(
                    self.program.kernel.registers[i].name for i in indices if self._undefined.get(i) is not None
                )
            )
            self.fault("uninitialised", f"{decides} {names}, which nothing has written", int(np.argmax(bad)))

    # Faults -----------------------------------------------------------------------------------------------------------

    def instruction(self) -> Instruction:
        """The one that is executed."""
        return self.program.kernel.instructions[self.at]

    def fault(self, kind: str, what: str, thread: int) -> NoReturn:
        """Raise a Fault that names kernel, instruction, and the thread that ``what`` is said of."""
        number = int(self._number[thread])
        program = tuple(int(part) for part in self._coordinates(number))
        who = f"thread {int(self._lane[thread])} of program {program}"
        raise Fault(kind, f"{self.program.kernel.name}, {self.instruction()}: {who} {what}")

    def require_whole_warps(self, active: np.ndarray | None) -> None:
        """Raise a Fault if of some warp only a part takes this instruction."""
        if active is None and self._alive.all():
            return
        active = self._alive if active is None else active
        taking = active.reshape(-1, 32)
        bad = taking.any(axis=1) & ~taking.all(axis=1)
        if bad.any():
            warp = int(np.argmax(bad))
            count = int(taking[warp].sum())
            here = f"is one of {count} of its warp that come here; all 32 must"
            self.fault("divergence", here, 32 * warp + int(np.argmax(taking[warp])))

    def _first(self) -> int:
        """The first thread at this instruction."""
        return int(np.argmax(self._alive & (self._waiting < 0) & (self._pc <= self.at)))

    def _who(self, rows: np.ndarray | slice) -> Who:
        return Who(self._warp[rows], self._epoch[rows], self.at, self._warps)

    def rows(self, active: np.ndarray | None) -> np.ndarray:
        """The numbers of the threads that are active."""
        return np.arange(self.threads) if active is None else np.flatnonzero(active)

    def _report(self, clash: Clash, rows: np.ndarray, does: str, place: str) -> None:
        other = self.program.kernel.instructions[clash.instruction]
        verb = "wrote" if clash.wrote else "read"
        warp = f"warp {clash.warp % self._warps}"
        if clash.programs:
            program = tuple(int(part) for part in self._coordinates(clash.warp // self._warps))
            before = f"which program {program} {verb} in {other}"
            self.fault("two programs", f"{does} {place}, {before}", int(rows[clash.row]))
        since = "in the same step" if clash.at_once else "with no barrier between"
        own = int(self._lane[rows[clash.row]]) // 32
        self.fault("race", f"(warp {own}) {does} {place}, which {warp} {verb} in {other} {since}", int(rows[clash.row]))

    # Shared memory ----------------------------------------------------------------------------------------------------

    def _shared_places(self, addresses: np.ndarray, size: int, rows: np.ndarray, does: str) -> np.ndarray:
        """Where accesses of ``size`` bytes lie: the first byte of each [n], checked."""
        bad = (addresses < 0) | (addresses + size > self.shared_bytes)
        if bad.any():
            row = int(np.argmax(bad))
            has = f"of shared memory, which has {self.shared_bytes} bytes"
            self.fault("out of bounds", f"{does} {size} bytes at {int(addresses[row]):#x} {has}", int(rows[row]))
        if size & (size - 1) == 0:  # what the whole access must be aligned to
            bad = addresses & (size - 1) != 0
            if bad.any():
                row = int(np.argmax(bad))
                what = f"{does} {size} bytes at {int(addresses[row]):#x} of shared memory, not a multiple of {size}"
                self.fault("misaligned", what, int(rows[row]))
        return self._shared_start[rows] + addresses

    def _granules(self, where: np.ndarray, size: int) -> np.ndarray:
        first = where // self._granule
        return first[:, None] + np.arange(max(1, size // self._granule))

    def _check_under_way(self, where: np.ndarray, places: np.ndarray, rows: np.ndarray, does: str) -> None:
        """Raise a Fault if a copy is under way to one of ``places`` [n, g], or a product reads what is written."""
        checks = []
        if self._products and does != "reads":
            checks.append((self._multiplied, "which {} still reads"))
        if self._copies:
            checks.append((self._arriving, "to which {} is still under way"))
        for books, said in checks:
            entered = books[places].max(axis=1)
            if entered.any():
                row = int(np.argmax(entered != 0))
                other = said.format(self.program.kernel.instructions[int(entered[row]) - 1])
                self.fault("not waited for", f"{does} shared memory at {int(where[row]):#x}, {other}", int(rows[row]))

    def read_shared(
        self, addresses: np.ndarray, width: int, count: int, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Numbers of shared memory, with every check.

        Args:
            addresses: [n] of the threads ``rows``, within their program's shared memory.
            width: bytes of a number.
            count: numbers for each.
            rows: [n] the threads.

        Returns:
            [n, count], and which of the accesses meet something that nothing has written, bool [n] (None: none).
        """
        size = width * count
        where = self._shared_places(addresses, size, rows, "reads")
        places = self._granules(where, size)
        self._check_under_way(addresses, places, rows, "reads")
        for clash in self._shared_shadow.read(places, self._who(rows)):
            self._report(clash, rows, "reads", self._shared_place(clash, rows))
        unwritten = self._unwritten[places].any(axis=1)
        values = self._shared.view(BITS[width])[_numbers(where, width, count)]
        return values, unwritten if unwritten.any() else None

    def _shared_place(self, clash: Clash, rows: np.ndarray) -> str:
        at = clash.granule * self._granule - int(self._shared_start[rows[clash.row]])
        return f"{self._granule} bytes at {at:#x} of shared memory"

    def write_shared(
        self, addresses: np.ndarray, values: np.ndarray, rows: np.ndarray, undefined: np.ndarray | None
    ) -> None:
        """Write numbers to shared memory, with every check.

        Args:
            addresses: [n].
            values: unsigned [n, count].
            rows: [n] the threads.
            undefined: whose values are not defined, bool [n]; None for nobody's.
        """
        width, count = values.dtype.itemsize, values.shape[1]
        size = width * count
        where = self._shared_places(addresses, size, rows, "writes")
        places = self._granules(where, size)
        self._check_under_way(addresses, places, rows, "writes")
        clashes = self._shared_shadow.write(places, self._who(rows))
        view, at = self._shared.view(BITS[width]), _numbers(where, width, count)
        before = view[at] if clashes else values
        view[at] = values
        self._unwritten[places] = False if undefined is None else undefined[:, None]
        self._judge_writes(clashes, rows, before, values, view[at], self._shared_place)

    def _judge_writes(self, clashes: list[Clash], rows: np.ndarray, before: np.ndarray, values: np.ndarray,
                      after: np.ndarray, place: Callable[[Clash, np.ndarray], str]) -> None:  # fmt: skip
        """Of writes that clash, warps of one program that write what is there already do no harm: Triton lets them."""
        for clash in clashes:
            same = not _differs(before[clash.row], values[clash.row]).any()
            if not clash.wrote or clash.programs or not (clash.at_once or same):
                self._report(clash, rows, "writes", place(clash, rows))
        lost = _differs(after, values).any(axis=1)
        if lost.any():
            row = int(np.argmax(lost))
            what = "writes where another thread writes a different value in the same step"
            self.fault("race", what, int(rows[row]))

    # Asynchronous copies ----------------------------------------------------------------------------------------------

    def begin_copy(self, addresses: np.ndarray, values: np.ndarray, rows: np.ndarray) -> None:
        """Let numbers [n, count] be on their way to shared memory: nobody may touch it until they are awaited."""
        size = values.dtype.itemsize * values.shape[1]
        where = self._shared_places(addresses, size, rows, "copies to")
        places = self._granules(where, size)
        self._check_under_way(addresses, places, rows, "copies to")
        for clash in self._shared_shadow.write(places, self._who(rows)):
            self._report(clash, rows, "copies to", self._shared_place(clash, rows))
        self._unwritten[places] = True
        self._arriving[places] = self.at + 1
        self._copies.append(_Copy(rows, where, values, self._committed[rows].copy()))

    def commit_copies(self, active: np.ndarray | None) -> None:
        """End each thread's group of copies."""
        self._committed += 1 if active is None else active

    def wait_for_copies(self, active: np.ndarray | None, left: int | None) -> None:
        """Wait for each thread's groups but the last ``left``; None waits for copies outside of groups as well."""
        under_way = []
        for copy in self._copies:
            done = np.ones(len(copy.threads), bool) if active is None else active[copy.threads]
            if left is not None:
                done = done & (copy.group < self._committed[copy.threads] - left)
            if done.any():
                width, count = copy.values.dtype.itemsize, copy.values.shape[1]
                at = _numbers(copy.places[done], width, count)
                self._shared.view(BITS[width])[at] = copy.values[done]
                places = self._granules(copy.places[done], width * count)
                self._arriving[places] = 0
                self._unwritten[places] = False
                # From now on other warps need a barrier.
                self._shared_shadow.write(places, self._who(copy.threads[done]))
            if not done.all():
                stay = ~done
                under_way.append(_Copy(copy.threads[stay], copy.places[stay], copy.values[stay], copy.group[stay]))
        self._copies = under_way

    # Products of tensor cores -----------------------------------------------------------------------------------------

    def read_shared_for_product(self, addresses: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """16 bytes from each address, which nobody may write until the product is waited for."""
        found = self.read_shared(addresses, 4, 4, rows)
        places = self._granules(self._shared_start[rows] + addresses, 16)
        self._multiplied[places] = self.at + 1
        self._products.setdefault(int(rows[0]) // 128, []).append(_Product([], places.ravel()))
        return found

    def undefined_accumulators(self, indices: list[int]) -> np.ndarray | None:
        """As :meth:`undefined`, while products may be under way."""
        found = [self._undefined[index] for index in indices if index in self._undefined]
        return np.logical_or.reduce(found) if found else None

    def begin_products(self, active: np.ndarray | None, registers: list[int]) -> None:
        """Nobody may read these registers until the groups of warps have waited for their products."""
        self._in_flight.update(dict.fromkeys(registers, self.at))
        for group in self._groups(active):
            self._products.setdefault(group, []).append(_Product(registers, np.zeros(0, np.int64)))

    def _groups(self, active: np.ndarray | None) -> list[int]:
        return [int(group) for group in np.unique(self.rows(active) // 128)]

    def commit_products(self, active: np.ndarray | None) -> None:
        """End each group of products; an empty one marks the end."""
        self.require_whole_warps(active)
        for group in self._groups(active):
            self._products.setdefault(group, []).append(_Product([], np.zeros(0, np.int64), committed=True))

    def wait_for_products(self, active: np.ndarray | None, left: int) -> None:
        """Wait for all groups of products but the last ``left``."""
        self.require_whole_warps(active)
        for group in self._groups(active):
            products = self._products.get(group, [])
            ends = [i for i, product in enumerate(products) if product.committed]
            done = ends[len(ends) - left - 1] + 1 if len(ends) > left else 0
            for product in products[:done]:
                self._multiplied[product.places] = 0
            if done < len(products):
                self._products[group] = products[done:]
            else:
                self._products.pop(group, None)
        waiting = {index for products in self._products.values() for product in products for index in product.registers}
        self._in_flight = {index: at for index, at in self._in_flight.items() if index in waiting}

    # Global memory and parameters -------------------------------------------------------------------------------------

    def _check_global(self, addresses: np.ndarray, size: int, rows: np.ndarray, does: str) -> None:
        row = self.memory.outside(addresses, size)
        if row is not None:
            address = int(addresses[row])
            near = self.memory.nearest(address)
            self.fault("out of bounds", f"{does} {size} bytes at {address:#x}: {near}", int(rows[row]))
        bad = addresses & (size - 1) != 0
        if bad.any():
            row = int(np.argmax(bad))
            what = f"{does} {size} bytes at {int(addresses[row]):#x}, not a multiple of {size}"
            self.fault("misaligned", what, int(rows[row]))

    def read_global(self, addresses: np.ndarray, width: int, count: int, rows: np.ndarray) -> np.ndarray:
        """Numbers [n, count] of ``width`` bytes of global memory, with every check."""
        size = width * count
        self._check_global(addresses, size, rows, "reads")
        values = np.empty((len(rows), count), BITS[width])
        for number, part, offsets in self.memory.parts(addresses):
            places = self._global_granules(offsets, size)
            for clash in self.memory.shadow(number).read(places, self._who(rows[part])):
                self._report(clash, rows[part], "reads", self._global_place(number, clash, rows))
            values[part] = self.memory.view(number, width)[_numbers(offsets, width, count)]
        self.counts.bytes_read += values.nbytes
        return values

    def write_global(self, addresses: np.ndarray, values: np.ndarray, rows: np.ndarray) -> None:
        """Write numbers [n, count] to global memory, with every check."""
        width, count = values.dtype.itemsize, values.shape[1]
        size = width * count
        self._check_global(addresses, size, rows, "writes")
        for number, part, offsets in self.memory.parts(addresses):
            places = self._global_granules(offsets, size)
            clashes = self.memory.shadow(number).write(places, self._who(rows[part]))
            view, at, new = self.memory.view(number, width), _numbers(offsets, width, count), values[part]
            before = view[at] if clashes else new
            view[at] = new
            place = partial(self._global_place, number)
            self._judge_writes(clashes, rows[part], before, new, view[at], place)
        self.counts.bytes_written += values.nbytes

    def _global_granules(self, offsets: np.ndarray, size: int) -> np.ndarray:
        granule = self.program.granules["global"]
        return (offsets // granule)[:, None] + np.arange(max(1, size // granule))

    def _global_place(self, number: int, clash: Clash, rows: np.ndarray) -> str:
        address = self.memory.address_of(number, clash.granule)
        return f"{self.program.granules['global']} bytes at {address:#x}, {self.memory.nearest(address)}"

    def read_parameters(self, addresses: np.ndarray, width: int, rows: np.ndarray) -> np.ndarray:
        """Numbers [n] of the parameter space."""
        bad = (addresses < 0) | (addresses + width > len(self._parameters))
        if bad.any():
            row = int(np.argmax(bad))
            what = f"reads {width} bytes at {int(addresses[row]):#x} of {len(self._parameters)} bytes of parameters"
            self.fault("out of bounds", what, int(rows[row]))
        found = self._parameters[addresses[:, None] + np.arange(width)]
        return np.ascontiguousarray(found).view(BITS[width])[:, 0]

    # Order ------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until every thread has returned."""
        with np.errstate(all="ignore"):
            taken = 0
            while True:
                ready = self._alive & (self._waiting < 0)
                if not ready.any():
                    if not self._alive.any():
                        break
                    self._release()
                    continue
                taken += self._advance(ready)
                if taken > _ENDLESS:
                    self.fault("endless", f"has taken more than {_ENDLESS} instructions", int(np.argmax(ready)))
        self.counts.instructions += taken

    def _advance(self, ready: np.ndarray) -> int:
        """Let the threads at the lowest instruction go on until they meet others or a branch; counts instructions."""
        first = int(self._pc[ready].min())
        here = ready & (self._pc == first)
        others = self._pc[ready & ~here]
        stop = min(int(others.min()) if len(others) else len(self.program.steps), len(self.program.steps))
        active = None if here.all() else here
        self.at = first
        steps, jumps = self.program.steps, self.program.jumps
        if first >= len(steps):
            self.at = len(steps) - 1
            self._alive[here] = False  # behind the last instruction
            return 1
        while self.at < stop:
            jump = jumps[self.at]
            if jump is not None:
                self._jump(jump, here)
                return self.at - first + 1
            steps[self.at](self, active)
            self.at += 1
        self._pc[here] = self.at
        return self.at - first

    def _jump(self, jump: Branch, here: np.ndarray) -> None:
        taken = here
        if jump.guard is not None:
            register, wanted = jump.guard
            self.require_defined((register.index,), here, "is sent by")
            taken = here & (self.value(register.index) == wanted)
        self._pc[here] = self.at + 1
        if jump.kind == "branch":
            self._pc[taken] = jump.target
        elif jump.kind == "exit":
            self._alive[taken] = False
        else:
            self.require_whole_warps(taken)
            self._waiting[taken] = jump.target

    def _release(self) -> None:
        """All threads that are left wait: let each program pass its barrier, if all its threads are at the same one."""
        waiting = self._waiting.reshape(-1, self.launch.threads)
        alive = self._alive.reshape(-1, self.launch.threads)
        bad = alive.any(axis=1) & ~alive.all(axis=1)
        if bad.any():
            program = int(np.argmax(bad))
            thread = int(np.argmax(alive[program]))
            gone = int((~alive[program]).sum())
            self.at = int(self._pc[program * self.launch.threads + thread]) - 1
            what = f"waits for {gone} threads that have returned"
            self.fault("deadlock", what, program * self.launch.threads + thread)
        bad = (waiting != waiting[:, :1]).any(axis=1) & alive.any(axis=1)
        if bad.any():
            program = int(np.argmax(bad))
            self.at = int(self._pc[program * self.launch.threads]) - 1
            what = "waits at one barrier, other threads of its program at another"
            self.fault("deadlock", what, program * self.launch.threads)
        self._waiting[:] = -1
        self._epoch[self._alive] += 1


# By bytes of a number, its bits without the sign, and those of infinity: what lies above them is NaN.
_NAN = {4: (0x7FFFFFFF, 0x7F800000), 8: (0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000)}


def _differs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where numbers differ. Two NaN do not: a GPU computes a single one, numpy several."""
    differs = one != other
    if one.dtype.itemsize in _NAN and differs.any():
        magnitude, infinity = (one.dtype.type(bits) for bits in _NAN[one.dtype.itemsize])
        differs &= ~((one & magnitude > infinity) & (other & magnitude > infinity))
    return differs


def _numbers(where: np.ndarray, width: int, count: int) -> np.ndarray:
    """The places [n, count] of numbers of ``width`` bytes that stand behind one another from byte ``where`` [n] on."""
    return (where // width)[:, None] + np.arange(count)
