"""Products of small matrices that a warp (``mma``) or four warps (``wgmma``) hold together.

Sums are taken in float64 and rounded once; a tensor core rounds more often, in ways that NVIDIA does not document. The
tf32 operands lose their lower 13 bits, as they do on the hardware.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from smml_kernels.emulator.faults import NotModelled
from smml_kernels.emulator.operands import Step, elements, expect, reader, registers, writer
from smml_kernels.emulator.ptx import Immediate, Instruction, Operand, Register, Vector

if TYPE_CHECKING:
    from smml_kernels.emulator.machine import Machine

# Where an element of a fragment lies in its matrix: (row, column) by element, each [32] over the threads of a warp.
Layout = list[tuple[np.ndarray, np.ndarray]]

_GROUP, _IN_GROUP = np.arange(32) // 4, np.arange(32) % 4


def tf32(bits: np.ndarray) -> np.ndarray:
    """What a tensor core sees of a float32 operand: uint32 to float64, the lower 13 bits cut off."""
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def _rows_of_eight(number: int) -> Layout:
    """A [8 or 16, K] and C, D of tf32 alike: elements alternate between the upper and the lower eight rows."""
    return [(_GROUP + 8 * (i % 2), _IN_GROUP + 4 * (i // 2)) for i in range(number)]


def _accumulators(number: int) -> Layout:
    """C and D: two neighbours of a row, then the same eight rows below."""
    return [(_GROUP + 8 * (i // 2), 2 * _IN_GROUP + i % 2) for i in range(number)]


def _columns(number: int) -> Layout:
    """B [K, 8]."""
    return [(_IN_GROUP + 4 * i, _GROUP) for i in range(number)]


# By shape and type: rows of A and its columns. The layouts follow from the number of elements.
_SHAPES = {
    "m8n8k4.f64": (8, 4),
    "m16n8k4.f64": (16, 4),
    "m16n8k8.f64": (16, 8),
    "m16n8k16.f64": (16, 16),
    "m16n8k4.tf32": (16, 4),
    "m16n8k8.tf32": (16, 8),
}


def _mma(instruction: Instruction) -> Step:
    """``mma.sync``: D = A B + C, each spread over the registers of one warp."""
    expect(instruction, 4)
    words = instruction.modifiers
    form = ".".join((words[2], words[6])) if len(words) == 9 else ""
    kinds = {"f64": ("f64", "f64", "f64", "f64"), "tf32": ("f32", "tf32", "tf32", "f32")}.get(form.partition(".")[2])
    if form not in _SHAPES or words[:2] != ("sync", "aligned") or words[3:5] != ("row", "col") or words[5:] != kinds:
        raise NotModelled(f"the form {instruction.opcode}")
    rows, inner = _SHAPES[form]
    double = form.endswith(".f64")
    parts = [elements(operand) for operand in instruction.operands]
    counts = rows * 8 // 32, rows * inner // 32, inner * 8 // 32, rows * 8 // 32
    if tuple(map(len, parts)) != counts:
        raise NotModelled(f"{[len(part) for part in parts]} elements of {list(counts)}")
    of_d, of_b = _accumulators(counts[0]), _columns(counts[2])
    of_a = [(_GROUP, _IN_GROUP)] if rows == 8 else _rows_of_eight(counts[1])
    result = "f64" if double else "f32"
    operand = "f64" if double else "b32"
    readers = [
        [reader(e, kind) for e in part] for part, kind in zip(parts[1:], (operand, operand, result), strict=True)
    ]
    writers = [writer(e, result) for e in parts[0]]
    used = registers(e for part in parts[1:] for e in part)

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        machine.require_whole_warps(active)
        value = (lambda bits: bits) if double else tf32
        a = _gathered(machine, readers[0], of_a, (rows, inner), value)
        b = _gathered(machine, readers[1], of_b, (inner, 8), value)
        c = _gathered(machine, readers[2], of_d, (rows, 8), lambda number: number)
        d = np.matmul(a, b) + c
        undefined = _of_any_in_its_warp(machine.undefined(used))
        for write, (row, column) in zip(writers, of_d, strict=True):
            found = np.ascontiguousarray(d[:, row, column]).reshape(-1)
            write(machine, found if double else found.astype(np.float32), active, undefined)

    return step


def _gathered(machine: "Machine", readers: list, layout: Layout, shape: tuple[int, int], value: Callable) -> np.ndarray:
    """The matrices of all warps, float64 [warps, *shape]."""
    found = np.zeros((machine.threads // 32, *shape))
    for read, (row, column) in zip(readers, layout, strict=True):
        numbers = np.broadcast_to(value(read(machine)), (machine.threads,))
        found[:, row, column] = numbers.reshape(-1, 32)
    return found


def _of_any_in_its_warp(undefined: np.ndarray | None) -> np.ndarray | None:
    """An element of which one thread lacks its part spoils a row or a column; here, all that the warp gets."""
    return None if undefined is None else np.repeat(undefined.reshape(-1, 32).any(axis=1), 32)


def _wgmma(instruction: Instruction) -> Step:
    """``wgmma``: products of four warps, with B (and perhaps A) in shared memory, under way until waited for."""
    words = instruction.modifiers
    if words[0] == "fence":
        return lambda machine, active: machine.require_whole_warps(active)
    if words[0] == "commit_group":
        return lambda machine, active: machine.commit_products(active)
    if words[0] == "wait_group":
        (left,) = instruction.operands
        if not isinstance(left, Immediate):
            raise NotModelled(f"the form {instruction.opcode}")
        return lambda machine, active: machine.wait_for_products(active, left.value)
    match = re.fullmatch(r"mma_async\.sync\.aligned\.m64n(\d+)k8\.f32\.tf32\.tf32", ".".join(words))
    if match is None:
        raise NotModelled(f"the form {instruction.opcode}")
    expect(instruction, 6)
    d, a, b, wanted, *scales = instruction.operands
    columns = int(match[1])
    if not isinstance(d, Vector) or len(d.elements) != columns // 2 or any(_number(scale) != 1 for scale in scales):
        raise NotModelled(f"the form {instruction.opcode}")
    return _product(columns, d, a, b, wanted)


def _number(operand: Operand) -> int | None:
    return operand.value if isinstance(operand, Immediate) else None


def _product(columns: int, d: Vector, a: Operand, b: Operand, wanted: Operand) -> Step:
    results = [e.index for e in d.elements if isinstance(e, Register)]
    writers = [writer(e, "f32") for e in d.elements]
    descriptor_b, use_before = reader(b, "b64"), reader(wanted, "pred")
    of_a = [reader(e, "b32") for e in a.elements] if isinstance(a, Vector) else None
    descriptor_a = None if isinstance(a, Vector) else reader(a, "b64")
    deciding = registers([b, wanted] if of_a else [a, b, wanted])
    used = registers([a]) if of_a else ()

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        machine.require_whole_warps(active)
        machine.require_defined(deciding, active, "multiplies by")
        groups = np.arange(machine.threads) // 128
        taking = np.unique(groups if active is None else groups[active])
        before = [machine.accumulator(index).reshape(-1, 4, 32) for index in results]
        sums = np.zeros((len(results), machine.threads // 128, 4, 32), np.float32)
        unknown = np.zeros(machine.threads, bool)
        spoilt = machine.undefined(used)
        add = np.broadcast_to(use_before(machine), (machine.threads,))
        for group in taking:
            first = 128 * int(group)
            rows = np.arange(first, first + 128)
            by_b = int(np.broadcast_to(descriptor_b(machine), (machine.threads,))[first])
            right, missing = _operand_in_shared(machine, by_b, columns, rows)
            if of_a is not None:
                left = _fragment(machine, of_a, rows)
            elif descriptor_a is not None:
                by_a = int(np.broadcast_to(descriptor_a(machine), (machine.threads,))[first])
                left, missing_too = _operand_in_shared(machine, by_a, 64, rows)
                missing = missing or missing_too
            if missing or (spoilt is not None and spoilt[rows].any()):
                unknown[rows] = True
            product = (left @ right.T).reshape(4, 16, columns)
            for i in range(len(results)):
                part = product[:, _GROUP + 8 * (i % 4 // 2), 8 * (i // 4) + 2 * _IN_GROUP + i % 2]
                old = before[i][group].view(np.float32).astype(np.float64) if add[first] else 0.0
                sums[i, group] = part + old
        if add.any() and (old_unknown := machine.undefined_accumulators(results)) is not None:
            unknown |= old_unknown & add
        for write, total in zip(writers, sums, strict=True):
            write(machine, total.reshape(-1), active, unknown if unknown.any() else None)
        machine.begin_products(active, results)

    return step


def _fragment(machine: "Machine", readers: list, rows: np.ndarray) -> np.ndarray:
    """A from registers: float64 [64, 8]."""
    left = np.zeros((4, 16, 8))
    for read, (row, column) in zip(readers, _rows_of_eight(len(readers)), strict=True):
        left[:, row, column] = tf32(np.broadcast_to(read(machine), (machine.threads,))[rows]).reshape(4, 32)
    return left.reshape(64, 8)


def _operand_in_shared(machine: "Machine", descriptor: int, rows: int, threads: np.ndarray) -> tuple[np.ndarray, bool]:
    """A matrix [rows, 8] that a descriptor points to, in float64, and whether something in it was never written.

    Eight rows lie behind one another, ``span`` bytes each; pieces of 16 bytes are swapped by the row, as the PTX manual
    draws it.
    """
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    span = {1: 128, 2: 64, 3: 32}.get(descriptor >> 62 & 3)
    if span is None:
        raise NotModelled("wgmma on shared memory without a swizzle")
    row = np.arange(rows)[:, None]
    plain = start + row // 8 * stride + row % 8 * span + 16 * np.arange(2)[None, :]
    where = (plain ^ (plain >> 7 & span // 16 - 1) << 4).ravel()
    readers = threads[np.arange(len(where)) % len(threads)]
    values, unwritten = machine.read_shared_for_product(where, readers)
    return tf32(values.reshape(rows, 8)), unwritten is not None


KINDS: dict[str, Callable[[Instruction], Step]] = {"mma": _mma, "wgmma": _wgmma}
