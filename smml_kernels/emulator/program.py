"""From instructions to what the machine executes: a function for each, found by its opcode."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smml_kernels.emulator import arithmetic, moves, tensor_cores
from smml_kernels.emulator.faults import NotModelled
from smml_kernels.emulator.operands import Step, dtype_of, expect, reader, registers, writer
from smml_kernels.emulator.ptx import WIDTHS, Immediate, Instruction, Kernel, Label, Register

if TYPE_CHECKING:
    from smml_kernels.emulator.machine import Machine


@dataclass(frozen=True)
class Branch:
    """An instruction after which threads go on elsewhere, end, or wait.

    Attributes:
        kind: "branch", "exit" or "barrier".
        target: the number of an instruction, or of a barrier.
        guard: the predicate, and the value for which it is taken; None for always.
    """

    kind: str
    target: int
    guard: tuple[Register, bool] | None


@dataclass(frozen=True)
class Program:
    """A kernel, ready to run.

    Attributes:
        kernel: as it was read.
        steps: what each instruction does.
        jumps: for those that change the order: how; None for the others.
        dtypes: of each register's bits.
        granules: by memory ("shared", "global"), the bytes of its smallest access.
    """

    kernel: Kernel
    steps: list[Step]
    jumps: list[Branch | None]
    dtypes: list[np.dtype]
    granules: dict[str, int]


def compile_kernel(kernel: Kernel) -> Program:
    """Find what every instruction does.

    Raises:
        NotModelled: names every instruction that the emulator has no model of.
    """
    steps: list[Step] = []
    jumps: list[Branch | None] = []
    unknown: dict[str, str] = {}
    for instruction in kernel.instructions:
        jump: Branch | None = None
        step: Step = _nothing
        try:
            jump = _jump(instruction)
            if jump is None:
                step = _step(instruction)
                if instruction.guard is not None:
                    step = _guarded(step, *instruction.guard)
        except NotModelled as error:
            unknown.setdefault(f"{instruction.opcode}, {error}", f"{instruction}: {error}")
        steps.append(step)
        jumps.append(jump)
    if unknown:
        raise NotModelled(f"{kernel.name}: " + "; ".join(unknown.values()))
    dtypes = [np.dtype(bool) if r.type == "pred" else np.dtype(f"u{WIDTHS[r.type]}") for r in kernel.registers]
    granules = {"shared": 16, "global": 16}
    for instruction in kernel.instructions:
        for space, size in moves.accesses(instruction):
            granules[space] = min(granules[space], size)
    return Program(kernel, steps, jumps, dtypes, granules)


def _nothing(machine: "Machine", active: np.ndarray | None) -> None:
    pass


# Fences order what this machine has in order anyway; the fences of tensor cores are in tensor_cores.py.
_FENCES = ("membar.", "fence.", "bar.warp.sync")


def _jump(instruction: Instruction) -> Branch | None:
    operands, opcode = instruction.operands, instruction.opcode
    if opcode in ("bra", "bra.uni"):
        expect(instruction, 1)
        if not isinstance(operands[0], Label):
            raise NotModelled("a branch without a label")
        return Branch("branch", operands[0].target, instruction.guard)
    if opcode in ("ret", "exit", "ret.uni"):
        return Branch("exit", 0, instruction.guard)
    if opcode in ("bar.sync", "barrier.sync", "barrier.sync.aligned", "bar.cta.sync", "barrier.cta.sync.aligned"):
        if len(operands) != 1 or not isinstance(operands[0], Immediate):
            raise NotModelled("a barrier for a part of the threads")
        return Branch("barrier", operands[0].value, instruction.guard)
    return None


def _step(instruction: Instruction) -> Step:
    if instruction.opcode.startswith(_FENCES):
        return _nothing
    operation = arithmetic.find(instruction.opcode)
    if operation is not None:
        return _elementwise(instruction, operation)
    for kinds in (moves.KINDS, tensor_cores.KINDS):
        if instruction.name in kinds:
            return kinds[instruction.name](instruction)
    raise NotModelled("the emulator has no model of this instruction")


def _elementwise(instruction: Instruction, operation: arithmetic.Operation) -> Step:
    expect(instruction, 1 + len(operation.sources))
    result, *sources = instruction.operands
    readers = [reader(source, type_) for source, type_ in zip(sources, operation.sources, strict=True)]
    write, compute, used = writer(result, operation.result), operation.compute, registers(sources)
    dtype = dtype_of(operation.result)

    def step(machine: "Machine", active: np.ndarray | None) -> None:
        values = compute(*[read(machine) for read in readers])
        write(machine, np.asarray(values, dtype), active, machine.undefined(used))

    return step


def _guarded(step: Step, register: Register, wanted: bool) -> Step:
    used = (register.index,)

    def guarded(machine: "Machine", active: np.ndarray | None) -> None:
        machine.require_defined(used, active, "depends on")
        holds = machine.value(register.index)
        taking = holds if wanted else ~holds
        if active is not None:
            taking = taking & active
        if taking.any():
            step(machine, None if taking.all() else taking)

    return guarded
