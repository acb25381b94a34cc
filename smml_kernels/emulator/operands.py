"""Operands as functions: from an operand and a type to what reads it, or writes it, in a machine.

Registers hold the bits of every thread as unsigned numbers [T]; a type says how an instruction sees them.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from smml_kernels.emulator.faults import NotModelled
from smml_kernels.emulator.ptx import (
    WIDTHS,
    Address,
    Immediate,
    Instruction,
    Negated,
    Operand,
    Pair,
    Register,
    Special,
    Symbol,
    Vector,
)

if TYPE_CHECKING:
    from smml_kernels.emulator.machine import Machine

Reader = Callable[["Machine"], np.ndarray]
Writer = Callable[["Machine", np.ndarray, np.ndarray | None, np.ndarray | None], None]
# What an instruction does to a machine, for the threads that take it (bool [T]; None for all).
Step = Callable[["Machine", np.ndarray | None], None]

BITS: dict[int, np.dtype] = {width: np.dtype(f"u{width}") for width in (1, 2, 4, 8)}
SIGNED: dict[int, np.dtype] = {width: np.dtype(f"i{width}") for width in (1, 2, 4, 8)}
FLOATS: dict[str, np.dtype] = {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}


def dtype_of(type_: str) -> np.dtype:
    """How numpy sees a type of PTX; bfloat16, which numpy lacks, as its bits."""
    if type_ == "pred":
        return np.dtype(bool)
    if type_ in FLOATS:
        return FLOATS[type_]
    if type_ not in WIDTHS:
        raise NotModelled(f"the type {type_}")
    return (SIGNED if type_[0] == "s" else BITS)[WIDTHS[type_]]


def reader(operand: Operand, type_: str) -> Reader:
    """What reads an operand as ``type_``: [T], or a scalar where all threads have the same.

    A register that is wider than the type gives its lower bits.
    """
    dtype = dtype_of(type_)
    if isinstance(operand, Register):
        index, width = operand.index, WIDTHS[operand.type]
        if (operand.type == "pred") != (type_ == "pred") or width < dtype.itemsize:
            raise NotModelled(f"{operand.name}, declared .{operand.type}, read as .{type_}")
        if type_ == "pred":
            return lambda machine: machine.value(index)
        if width == dtype.itemsize:
            return lambda machine: machine.value(index).view(dtype)
        return lambda machine: machine.value(index).astype(BITS[dtype.itemsize]).view(dtype)
    if isinstance(operand, Negated):
        inner = reader(operand.register, type_)
        return lambda machine: ~inner(machine)
    if isinstance(operand, Special):
        name = operand.name
        return lambda machine: machine.specials[name].astype(dtype)
    constant = _constant(operand, type_, dtype)
    return lambda machine: constant


def _constant(operand: Operand, type_: str, dtype: np.dtype) -> np.ndarray:
    if isinstance(operand, Symbol):
        return np.asarray(operand.offset, dtype)
    if not isinstance(operand, Immediate):
        raise NotModelled(f"{operand} as .{type_}")
    if type_ == "pred":
        return np.asarray(bool(operand.value))
    if operand.width is None and type_ in FLOATS:
        raise NotModelled(f"the integer {operand.value} as .{type_}")
    if operand.width not in (None, dtype.itemsize):
        raise NotModelled(f"a number of {operand.width} bytes as .{type_}")
    bits = operand.value & ((1 << 8 * dtype.itemsize) - 1)
    return np.asarray(bits, BITS[dtype.itemsize]).view(dtype)


def writer(operand: Operand, type_: str) -> Writer:
    """What writes a result of ``type_``; in a wider register it is extended by its sign, or by zeros.

    The writer takes the machine, the result ([T] or a scalar), the threads that write (None for all) and the threads
    whose result is not defined (None for none), as :meth:`Machine.write` does.
    """
    if operand is None:
        return lambda machine, result, active, undefined: None
    if isinstance(operand, Pair):
        raise NotModelled("a second result")
    if not isinstance(operand, Register):
        raise NotModelled(f"{operand} as a result")
    index, dtype, width = operand.index, dtype_of(type_), WIDTHS[operand.type]
    if (operand.type == "pred") != (type_ == "pred") or width < dtype.itemsize:
        raise NotModelled(f"{operand.name}, declared .{operand.type}, for a result of .{type_}")
    if type_ == "pred":
        return lambda machine, result, active, undefined: machine.write(index, np.asarray(result), active, undefined)
    bits = BITS[width]
    wider = (SIGNED if dtype.kind == "i" else BITS)[width] if width > dtype.itemsize else None

    def write(machine: "Machine", result: np.ndarray, active: np.ndarray | None, undefined: np.ndarray | None) -> None:
        result = np.asarray(result)
        machine.write(index, (result if wider is None else result.astype(wider)).view(bits), active, undefined)

    return write


def address(operand: Operand) -> Reader:
    """What computes an address: int64 [T]."""
    if not isinstance(operand, Address):
        raise NotModelled(f"{operand} as an address")
    offset = operand.offset
    if isinstance(operand.base, Register):
        index = operand.base.index
        if operand.base.type not in ("b64", "u64", "s64", "b32", "u32", "s32"):
            raise NotModelled(f"{operand.base.name}, declared .{operand.base.type}, as an address")
        return lambda machine: machine.value(index).astype(np.int64) + offset
    start = (operand.base.offset if isinstance(operand.base, Symbol) else operand.base.value) + offset
    return lambda machine: np.full(machine.threads, start, np.int64)


def elements(operand: Operand) -> tuple[Operand, ...]:
    """The elements of a vector, or the operand itself as the only one."""
    return operand.elements if isinstance(operand, Vector) else (operand,)


def registers(operands: Iterable[Operand]) -> tuple[int, ...]:
    """The registers that operands read, in addresses and vectors too."""
    found: list[int] = []
    for operand in operands:
        if isinstance(operand, Register):
            found.append(operand.index)
        elif isinstance(operand, Negated):
            found.append(operand.register.index)
        elif isinstance(operand, Address):
            found += registers([operand.base])
        elif isinstance(operand, Vector):
            found += registers(operand.elements)
    return tuple(found)


def expect(instruction: Instruction, *counts: int) -> None:
    """Raise NotModelled unless the instruction has one of these numbers of operands."""
    if len(instruction.operands) not in counts:
        raise NotModelled(f"{len(instruction.operands)} operands")
