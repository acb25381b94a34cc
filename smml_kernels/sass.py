"""What a GPU really executes of a kernel: its machine instructions (SASS), read from the assembled code.

The work of a kernel is in its loops. The main loop is the innermost one that moves the most bytes of global memory, and
of a kernel without such a loop all of it; instructions a byte are counted there, for one thread.
"""

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)(.*)")
_LABEL = re.compile(r"\s*(\.L_x?_?\d+):")
# Products of tensor cores: float64; half precision and TensorFloat-32; the same of four warps.
_TENSOR = ("DMMA", "HMMA", "HGMMA", "UTCHMMA")
_LOADS, _STORES = ("LDG", "LDGSTS"), ("STG",)
_SHORTEST_LOOP = 4


@dataclass(frozen=True)
class Counts:
    """What is in a kernel's machine code.

    Attributes:
        load: bytes of the widest load of global memory by one thread; 0 for none.
        store: of the widest store.
        tensor: names of the tensor-core instructions, "" for none.
        instructions: of the main loop, or of the kernel without one.
        bytes: of global memory that a thread moves there.
        looped: whether that is a loop.
    """

    load: int
    store: int
    tensor: str
    instructions: int
    bytes: int
    looped: bool


def ask(tool: str, option: str, cubin: bytes) -> str:
    """What a tool that Triton brings, "cuobjdump" or "nvdisasm", says of assembled code."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [getattr(knobs.nvidia, tool).path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@functools.cache  # disassembling is slow, and some launches compile into what another one did
def counts_of(cubin: bytes) -> Counts:
    """Count what is in the assembled code of one kernel."""
    return count(ask("nvdisasm", "-c", cubin))


def count(listing: str) -> Counts:
    """Count what a listing of one kernel by nvdisasm holds."""
    instructions, labels = _read(listing)
    widths = [_moved(opcode) for opcode, _ in instructions]
    names = [opcode.partition(".")[0] for opcode, _ in instructions]
    first, last, looped = _main_loop(instructions, labels, widths)
    tensor = sorted({opcode for opcode, _ in instructions if opcode.startswith(_TENSOR)})
    return Counts(
        load=max((w for w, name in zip(widths, names, strict=True) if name in _LOADS), default=0),
        store=max((w for w, name in zip(widths, names, strict=True) if name in _STORES), default=0),
        tensor=", ".join(tensor),
        instructions=last - first,
        bytes=sum(widths[first:last]),
        looped=looped,
    )


def _read(listing: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The instructions (opcode, operands) in order, and the number of the instruction behind each label."""
    instructions: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append((found[1], found[2]))
    # Behind the end stands padding.
    while instructions and instructions[-1][0] in ("NOP", "BRA"):
        instructions.pop()
    return instructions, labels


def _moved(opcode: str) -> int:
    """Bytes of global memory that an instruction moves for a thread."""
    name, *words = opcode.split(".")
    if name not in (*_LOADS, *_STORES):
        return 0
    for word, width in (("256", 32), ("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if word in words:
            return width
    return 4


def _main_loop(instructions: list[tuple[str, str]], labels: dict[str, int], widths: list[int]) -> tuple[int, int, bool]:
    """Where the main loop begins and ends, and whether there is one; else the whole kernel."""
    loops = set()
    for number, (opcode, operands) in enumerate(instructions):
        target = re.search(r"`\((\.L_x?_?\d+)\)", operands)
        if opcode.startswith("BRA") and target and labels.get(target[1], number) <= number - _SHORTEST_LOOP:
            loops.add((labels[target[1]], number + 1))
    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    moving = [(sum(widths[a:b]), -a, b) for a, b in innermost if sum(widths[a:b])]
    if not moving:
        return 0, len(instructions), False
    _, start, end = max(moving)
    return -start, end, True
