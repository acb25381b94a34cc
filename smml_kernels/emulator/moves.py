"""Instructions that move values: between registers, between threads, and to and from memory."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from smml_kernels.emulator.faults import NotModelled
from smml_kernels.emulator.operands import BITS, Step, Writer, address, elements, expect, reader, registers, writer
from smml_kernels.emulator.ptx import WIDTHS, Address, Immediate, Instruction, Operand, Pair, Vector

if TYPE_CHECKING:
    from smml_kernels.emulator.machine import Machine

_SPACES = ("param", "global", "shared")
# Words about caches and order that change nothing here.
_HINTS = {"ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "weak", "relaxed", "cta", "gpu", "sys", "uni"}


def accesses(instruction: Instruction) -> list[tuple[str, int]]:
    """Which memory ("shared", "global") an instruction that is modelled accesses, with the bytes of one access."""
    if instruction.name in ("ld", "st"):
        space, type_, count = _form(instruction)
        return [] if space == "param" else [(space, WIDTHS[type_] * count)]
    if instruction.name in ("ldmatrix", "stmatrix"):
        return [("shared", 16)]
    if instruction.name == "cp" and len(instruction.operands) >= 3 and isinstance(instruction.operands[2], Immediate):
        size = instruction.operands[2].value
        return [("shared", size), ("global", size)]
    return []


def _form(instruction: Instruction) -> tuple[str, str, int]:
    """Memory, type and number of elements of a load or a store."""
    words = [word.partition("::")[0] for word in instruction.modifiers if word not in _HINTS]
    words = [word for word in words if word not in ("L1", "L2")]
    count = 1
    if len(words) == 3 and words[1] in ("v2", "v4", "v8"):
        count = int(words.pop(1)[1])
    if len(words) != 2 or words[0] not in _SPACES or words[1] not in WIDTHS or words[1] == "pred":
        raise NotModelled(f"the form {instruction.opcode}")
    return words[0], words[1], count


def _spread(machine: "Machine", values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values [n] of some threads as those of all, [T]: 0 or False for the others."""
    if len(rows) == machine.threads:
        return np.ascontiguousarray(values)
    found = np.zeros(machine.threads, values.dtype)
    found[rows] = values
    return found


def _move(instruction: Instruction) -> Step:
    """``mov``: a copy, or numbers packed into a wider one, or a wider one taken apart."""
    expect(instruction, 2)
    (type_,), (to, source) = instruction.modifiers, instruction.operands
    if isinstance(source, Vector):
        return _pack(type_, to, source)
    if isinstance(to, Vector):
        return _unpack(type_, to, source)
    write, read, used = writer(to, type_), reader(source, type_), registers([source])
    return lambda machine, active: write(machine, read(machine), active, machine.undefined_bytes(used))


def _select(instruction: Instruction) -> Step:
    """``selp``: one of two numbers, by a predicate: what is not chosen does not matter."""
    expect(instruction, 4)
    to, *sources = instruction.operands
    type_ = ".".join(instruction.modifiers)
    if type_ not in WIDTHS or type_ == "pred":
        raise NotModelled(f"the form {instruction.opcode}")
    kinds = (type_, type_, "pred")
    readers = [reader(source, kind) for source, kind in zip(sources, kinds, strict=True)]
    write, parts = writer(to, type_), [registers([source]) for source in sources]

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        a, b, wanted = (read(machine) for read in readers)
        one, other, by = (machine.undefined_bytes(part) for part in parts)
        undefined = None
        if one is not None or other is not None or by is not None:
            chosen = np.where(wanted, _bytes(one), _bytes(other))
            undefined = np.where(_bytes(by) != 0, 255, chosen).astype(np.uint8)
        write(machine, np.where(wanted, a, b), active, undefined)

    return step


def _bytes(undefined: np.ndarray | None) -> np.ndarray:
    """Undefined bytes, of which None is none."""
    return np.asarray(0, np.uint8) if undefined is None else undefined


def _permute(instruction: Instruction) -> Step:
    """``prmt``: four bytes chosen from eight; bit 3 of a choice spreads the byte's sign instead."""
    expect(instruction, 4)
    if instruction.modifiers != ("b32",):
        raise NotModelled(f"the form {instruction.opcode}")
    to, *sources = instruction.operands
    readers, write = [reader(source, "b32") for source in sources], writer(to, "b32")
    parts = [registers([source]) for source in sources]

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        x, y, choice = (read(machine).astype(np.uint64) for read in readers)
        eight, result, spoilt = x | y << np.uint64(32), np.asarray(0, np.uint64), np.asarray(0, np.uint64)
        of_x, of_y, of_choice = (machine.undefined_bytes(part) for part in parts)
        unknown = (_bytes(of_x) & 15 | _bytes(of_y) << 4).astype(np.uint64)
        for place in range(4):
            chosen = choice >> np.uint64(4 * place) & np.uint64(15)
            number = chosen & np.uint64(7)
            byte = eight >> number * np.uint64(8) & np.uint64(255)
            sign = (byte >> np.uint64(7)) * np.uint64(255)
            result = result | np.where(chosen >= 8, sign, byte) << np.uint64(8 * place)
            spoilt = spoilt | (unknown >> number & np.uint64(1)) << np.uint64(place)
        undefined = np.where(_bytes(of_choice) != 0, 255, spoilt).astype(np.uint8)
        write(machine, result.astype(np.uint32), active, undefined if undefined.any() else None)

    return step


def _part(type_: str, number: int) -> tuple[str, int]:
    width = WIDTHS.get(type_, 0) // number
    if width not in (1, 2, 4) or type_[0] != "b":
        raise NotModelled(f"{number} parts of .{type_}")
    return f"b{8 * width}", width


def _pack(type_: str, to: Operand, source: Vector) -> Step:
    part, width = _part(type_, len(source.elements))
    readers, write = [reader(e, part) for e in source.elements], writer(to, type_)
    each, every = [registers([e]) for e in source.elements], registers([source])
    wide, low = BITS[WIDTHS[type_]], (1 << width) - 1

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        result = np.zeros(machine.threads, wide)
        undefined = None if machine.undefined_bytes(every) is None else np.zeros(machine.threads, np.uint8)
        for place, read in enumerate(readers):
            result |= np.asarray(read(machine)).astype(wide) << wide.type(8 * width * place)
            if undefined is not None:
                undefined |= (_bytes(machine.undefined_bytes(each[place])) & low) << width * place
        write(machine, result, active, undefined)

    return step


def _unpack(type_: str, to: Vector, source: Operand) -> Step:
    part, width = _part(type_, len(to.elements))
    read, writers, used = reader(source, type_), [writer(e, part) for e in to.elements], registers([source])
    wide, low = BITS[WIDTHS[type_]], (1 << width) - 1

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        value, undefined = read(machine), machine.undefined_bytes(used)
        for place, write in enumerate(writers):
            # Extended to all bytes, as the register may be wider.
            missing = None if undefined is None else undefined >> width * place & low != 0
            write(machine, (value >> wide.type(8 * width * place)).astype(BITS[width]), active, missing)

    return step


def _load(instruction: Instruction) -> Step:
    expect(instruction, 2)
    space, type_, count = _form(instruction)
    to, source = instruction.operands
    writers = [writer(element, type_) for element in elements(to)]
    if len(writers) != count:
        raise NotModelled(f"{len(writers)} results of {count}")
    where, used, width = address(source), registers([source]), WIDTHS[type_]
    if space == "param":
        return _load_parameter(source, type_, writers)

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        machine.require_defined(used, active, "reads at")
        rows = machine.rows(active)
        at, undefined = where(machine)[rows], None
        if space == "shared":
            values, unwritten = machine.read_shared(at, width, count, rows)
            undefined = None if unwritten is None else _spread(machine, unwritten, rows)
        else:
            values = machine.read_global(at, width, count, rows)
        for place, write in enumerate(writers):
            write(machine, _signed(_spread(machine, values[:, place], rows), type_), active, undefined)

    return step


def _signed(values: np.ndarray, type_: str) -> np.ndarray:
    return values.view(f"i{values.dtype.itemsize}") if type_[0] == "s" else values


def _load_parameter(source: Operand, type_: str, writers: list[Writer]) -> Step:
    where, used, width = address(source), registers([source]), WIDTHS[type_]

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        machine.require_defined(used, active, "reads at")
        rows = machine.rows(active)
        at = where(machine)[rows]
        for place, write in enumerate(writers):
            values = machine.read_parameters(at + place * width, width, rows)
            write(machine, _signed(_spread(machine, values, rows), type_), active, None)

    return step


def _store(instruction: Instruction) -> Step:
    expect(instruction, 2)
    space, type_, count = _form(instruction)
    to, source = instruction.operands
    if space == "param":
        raise NotModelled("a store to parameters")
    width = WIDTHS[type_]
    readers = [reader(element, f"b{8 * width}") for element in elements(source)]
    if len(readers) != count:
        raise NotModelled(f"{len(readers)} values of {count}")
    where, used, stored = address(to), registers([to]), registers([source])

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        machine.require_defined(used, active, "writes at")
        rows = machine.rows(active)
        values = np.empty((len(rows), count), BITS[width])
        for place, read in enumerate(readers):
            value = read(machine)
            values[:, place] = value if value.ndim == 0 else value[rows]
        if space == "global":
            machine.require_defined(stored, active, "writes to global memory")
            machine.write_global(where(machine)[rows], values, rows)
            return
        undefined = machine.undefined(stored)
        machine.write_shared(where(machine)[rows], values, rows, None if undefined is None else undefined[rows])

    return step


def _shuffle(instruction: Instruction) -> Step:
    """``shfl.sync``: a value of another thread of the warp, as the PTX manual computes which."""
    expect(instruction, 5)
    words, (to, value, by, limits, members) = instruction.modifiers, instruction.operands
    if len(words) != 3 or words[0] != "sync" or words[1] not in ("up", "down", "bfly", "idx") or words[2] != "b32":
        raise NotModelled(f"the form {instruction.opcode}")
    if not isinstance(members, Immediate) or members.value & 0xFFFFFFFF != 0xFFFFFFFF:
        raise NotModelled("a shuffle in a part of a warp")
    results = (to.first, to.second) if isinstance(to, Pair) else (to, None)
    write, flag = writer(results[0], "b32"), writer(results[1], "pred")
    read, read_by, read_limits = reader(value, "b32"), reader(by, "b32"), reader(limits, "b32")
    used, deciding, mode = registers([value]), registers([by, limits]), words[1]

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        machine.require_whole_warps(active)
        machine.require_defined(deciding, active, "looks for a thread by")
        lane = np.arange(machine.threads) % 32
        offset = np.asarray(read_by(machine)).astype(np.int64) & 31
        clamp = np.asarray(read_limits(machine)).astype(np.int64)
        segment = clamp >> 8 & 31
        most, least = (lane & segment) | (clamp & 31 & ~segment), lane & segment
        if mode == "up":
            source = lane - offset
            inside = source >= most
        elif mode == "down":
            source = lane + offset
            inside = source <= most
        else:
            source = lane ^ offset if mode == "bfly" else least | (offset & ~segment)
            inside = source <= most
        origin = np.arange(machine.threads) - lane + np.where(inside, source, lane)
        values = np.broadcast_to(read(machine), (machine.threads,))[origin]
        undefined = machine.undefined_bytes(used)
        write(machine, values, active, None if undefined is None else undefined[origin])
        flag(machine, inside, active, None)

    return step


def _matrix_form(instruction: Instruction) -> tuple[int, bool]:
    """How many matrices, and whether transposed."""
    words = [word for word in instruction.modifiers if word not in ("sync", "aligned", "shared", "b16", "m8n8")]
    transposed = "trans" in words
    words = [word for word in words if word != "trans"]
    if len(words) != 1 or words[0] not in ("x1", "x2", "x4") or "b16" not in instruction.modifiers:
        raise NotModelled(f"the form {instruction.opcode}")
    return int(words[0][1]), transposed


def _leading(machine: "Machine", rows: np.ndarray, count: int, used: tuple[int, ...], does: str) -> np.ndarray:
    """Of the threads ``rows`` [warps, 32] those whose addresses are taken; they must be defined."""
    leading = rows[:, : 8 * count].ravel()
    mask = np.zeros(machine.threads, bool)
    mask[leading] = True
    machine.require_defined(used, mask, does)
    return leading


def _load_matrix(instruction: Instruction) -> Step:
    """``ldmatrix``: 8 x 8 matrices of 16 bits, the rows of matrix i at the addresses of threads 8 i .. 8 i + 7."""
    expect(instruction, 2)
    count, transposed = _matrix_form(instruction)
    to, source = instruction.operands
    writers, where, used = [writer(e, "b32") for e in elements(to)], address(source), registers([source])
    if len(writers) != count:
        raise NotModelled(f"{len(writers)} results of {count}")

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        machine.require_whole_warps(active)
        rows = machine.rows(active).reshape(-1, 32)
        leading = _leading(machine, rows, count, used, "reads at")
        values, unwritten = machine.read_shared(where(machine)[leading], 4, 4, leading)
        halves = values.view(np.uint16).reshape(-1, count, 8, 8)  # [warps, matrix, row, column]
        unknown = np.zeros(len(leading), bool) if unwritten is None else unwritten
        unknown = np.repeat(unknown.reshape(-1, count, 8, 1), 8, axis=3)
        if transposed:
            halves, unknown = halves.transpose(0, 1, 3, 2), unknown.transpose(0, 1, 3, 2)
        # Thread t holds row t // 4, columns 2 (t % 4) and the next.
        pairs = np.ascontiguousarray(halves).view(np.uint32).reshape(-1, count, 32)
        spoilt = np.logical_or.reduce(unknown.reshape(-1, count, 32, 2), axis=3)
        for matrix, write in enumerate(writers):
            undefined = _spread(machine, spoilt[:, matrix].ravel(), rows.ravel()) if unwritten is not None else None
            write(machine, _spread(machine, pairs[:, matrix].ravel(), rows.ravel()), active, undefined)

    return step


def _store_matrix(instruction: Instruction) -> Step:
    """``stmatrix``: the reverse of ``ldmatrix``."""
    expect(instruction, 2)
    count, transposed = _matrix_form(instruction)
    to, source = instruction.operands
    readers, where = [reader(e, "b32") for e in elements(source)], address(to)
    each = [registers([e]) for e in elements(source)]
    used = registers([to])
    if len(readers) != count:
        raise NotModelled(f"{len(readers)} values of {count}")

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        machine.require_whole_warps(active)
        rows = machine.rows(active).reshape(-1, 32)
        leading = _leading(machine, rows, count, used, "writes at")
        pairs = np.stack([np.broadcast_to(read(machine), (machine.threads,))[rows] for read in readers], axis=1)
        halves = np.ascontiguousarray(pairs).view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            halves = halves.transpose(0, 1, 3, 2)
        values = np.ascontiguousarray(halves).reshape(-1, 8).view(np.uint32)
        undefined = None
        found = [machine.undefined(part) for part in each]
        if any(part is not None for part in found):
            unknown = np.stack([np.zeros(rows.shape, bool) if f is None else f[rows] for f in found], axis=1)
            # A row comes from four threads; transposed it comes from eight, and one of them is enough to spoil it.
            grid = np.repeat(unknown.reshape(-1, count, 8, 4), 2, axis=3)
            undefined = grid.any(axis=2 if transposed else 3).ravel()
        machine.write_shared(where(machine)[leading], values, leading, undefined)

    return step


def _copy(instruction: Instruction) -> Step:
    """``cp.async``: from global to shared memory beside the other work; and its groups."""
    words, operands = instruction.modifiers, instruction.operands
    if words == ("async", "commit_group"):
        return lambda machine, active: machine.commit_copies(active)
    if words == ("async", "wait_all"):
        return lambda machine, active: machine.wait_for_copies(active, None)
    if words == ("async", "wait_group"):
        if len(operands) != 1 or not isinstance(operands[0], Immediate):
            raise NotModelled(f"the form {instruction.opcode}")
        left = operands[0].value
        return lambda machine, active: machine.wait_for_copies(active, left)
    plain = [word for word in words if not word.startswith("L2::")]
    if plain not in (["async", "ca", "shared", "global"], ["async", "cg", "shared", "global"]) or len(operands) < 3:
        raise NotModelled(f"the form {instruction.opcode}")
    to, source, size, *rest = operands
    if not isinstance(size, Immediate) or size.value not in (4, 8, 16) or not isinstance(to, Address):
        raise NotModelled(f"the form {instruction.opcode}")
    expect(instruction, 3, 4)
    where_to, where_from, used = address(to), address(source), registers([to, source, *rest])
    read_size, count = reader(rest[0] if rest else size, "u32"), size.value // 4

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        machine.require_defined(used, active, "copies by")
        rows = machine.rows(active)
        sizes = np.broadcast_to(read_size(machine), (machine.threads,))[rows]
        if ((sizes != 0) & (sizes != size.value)).any():
            raise NotModelled(f"{instruction}: a copy of a part of its bytes")
        values = np.zeros((len(rows), count), np.uint32)  # what is not read arrives as zeros
        reading = sizes != 0
        if reading.any():
            values[reading] = machine.read_global(where_from(machine)[rows[reading]], 4, count, rows[reading])
        machine.begin_copy(where_to(machine)[rows], values, rows)

    return step


KINDS: dict[str, Callable[[Instruction], Step]] = {
    "mov": _move,
    "selp": _select,
    "prmt": _permute,
    "ld": _load,
    "st": _store,
    "shfl": _shuffle,
    "ldmatrix": _load_matrix,
    "stmatrix": _store_matrix,
    "cp": _copy,
}
