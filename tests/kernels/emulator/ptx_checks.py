"""Small kernels in PTX, written by hand, run on numpy arrays."""

import numpy as np

from smml_kernels.emulator import machine
from smml_kernels.emulator.memory import Allocation
from smml_kernels.emulator.program import compile_kernel
from smml_kernels.emulator.ptx import parse

REGISTERS = """
    .reg .pred %p<9>;
    .reg .b16 %h<9>;
    .reg .b32 %r<40>;
    .reg .b64 %d<30>;
"""
WIDTHS = {"pred": 1, "b16": 2, "b32": 4, "b64": 8}
LETTERS = {"pred": "p", "b16": "h", "b32": "r", "b64": "d"}


def module(body: str, arguments: list[str], threads: int, shared: int = 0) -> str:
    """A kernel named ``small`` whose parameters are pointers: line 8 is the first of the body."""
    declared = ", ".join(f".param .u64 {name}" for name in arguments)
    lines = [".version 8.4", ".target sm_90a", ".address_size 64", f".visible .entry small({declared})"]
    lines += [f".reqntid {threads}", "{" + " ".join(REGISTERS.split())]
    lines += [f"    .shared .align 1024 .b8 buffer[{shared}];" if shared else ""]
    return "\n".join(lines) + "\n" + body.strip("\n") + "\n    ret;\n}\n"


def execute(body: str, threads: int = 32, grid: tuple[int, int, int] = (1, 1, 1), shared: int = 0, **arrays):
    """Run a body: its arrays are parameters of the kernel, by name; returns what was counted."""
    program = compile_kernel(parse(module(body, list(arrays), threads, shared)))
    allocations = [Allocation(name, array.ctypes.data, array.nbytes) for name, array in arrays.items()]
    parameters = np.array([array.ctypes.data for array in arrays.values()], np.uint64).tobytes()
    return machine.run(program, machine.Launch(grid, threads, parameters, allocations))


def evaluate(instruction: str, result: str, *sources: np.ndarray) -> np.ndarray:
    """What an instruction computes of numbers of as many threads as they have.

    Args:
        instruction: with ``{d}``, ``{a}``, ``{b}``, ``{c}`` for the result and the sources.
        result: the register that takes the result: pred, b16, b32 or b64.
        sources: each [T], T at most 128: numbers of 2, 4 or 8 bytes, or bool.

    Returns:
        Unsigned [T]; for a predicate bool.
    """
    count = len(sources[0])
    threads = -(-count // 32) * 32
    arrays, lines, names = {}, ["mov.u32 %r0, %tid.x;", "cvt.u64.u32 %d0, %r0;"], {}
    for place, (letter, source) in enumerate(zip("abc", sources, strict=False)):
        padded = np.zeros(threads, source.dtype)
        padded[:count] = source
        if source.dtype == bool:
            padded = padded.astype(np.uint16)
        kind = f"b{8 * padded.itemsize}"
        arrays[f"source{place}"] = padded
        register = f"%{LETTERS[kind]}{place + 1}"
        lines += [f"ld.param.b64 %d9, [source{place}];", f"mad.lo.s64 %d9, %d0, {padded.itemsize}, %d9;"]
        lines += [f"ld.global.{kind} {register}, [%d9];"]
        if source.dtype == bool:
            lines += [f"setp.ne.b16 %p{place + 1}, {register}, 0;"]
            register = f"%p{place + 1}"
        names[letter] = register
    width = 4 if result == "pred" else WIDTHS[result]
    arrays["found"] = np.zeros(threads, f"u{width}")
    names["d"] = f"%{LETTERS[result]}8"
    lines += [instruction.format(**names) + ";"]
    if result == "pred":
        lines += ["selp.b32 %r8, 1, 0, %p8;"]
    lines += ["ld.param.b64 %d9, [found];", f"mad.lo.s64 %d9, %d0, {width}, %d9;"]
    lines += [f"st.global.b{8 * width} [%d9], %{LETTERS[f'b{8 * width}']}8;"]
    execute("\n".join(lines), threads, **arrays)
    found = arrays["found"][:count]
    return found.astype(bool) if result == "pred" else found
