"""Reading PTX: the text that Triton compiles a kernel into, as instructions with typed operands.

Only the language that Triton writes is read: one ``.entry`` a module, no functions, no calls. Everything else is
:class:`NotModelled`, with its line.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from smml_kernels.emulator.faults import NotModelled

WIDTHS = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4, "s32": 4}
WIDTHS |= {"f32": 4, "f16x2": 4, "bf16x2": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "pred": 1}


@dataclass(frozen=True)
class Register:
    """A virtual register: its place among the kernel's registers, and the type it was declared with."""

    index: int
    type: str
    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer as it stands, or the bits of a floating-point number of ``width`` bytes."""

    value: int
    width: int | None = None


@dataclass(frozen=True)
class Special:
    """A register that the machine provides, such as ``%tid.x``."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """The address of a parameter (``space`` "param") or of a shared array ("shared")."""

    space: str
    offset: int
    name: str


@dataclass(frozen=True)
class Label:
    """Where a branch goes: the number of an instruction."""

    target: int
    name: str


@dataclass(frozen=True)
class Negated:
    """``!%p1``."""

    register: Register


@dataclass(frozen=True)
class Address:
    """``[base + offset]``."""

    base: "Register | Symbol | Immediate"
    offset: int


@dataclass(frozen=True)
class Vector:
    """``{a, b, ...}``."""

    elements: tuple


@dataclass(frozen=True)
class Pair:
    """``a|b``: two results, the second of which is a predicate."""

    first: "Register | None"
    second: "Register | None"


Operand = Register | Immediate | Special | Symbol | Label | Negated | Address | Vector | Pair | None


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: the whole word, ``ld.global.v4.b32``.
        operands: as they stand; None for ``_``, a result that nobody wants.
        guard: the predicate it depends on, and the value that lets it run; None for none.
        line: of the PTX, from 1.
        text: as it stands, in one line.
        source: file and line of the Python that it was compiled from, where the PTX tells; "" where not.
    """

    opcode: str
    operands: tuple[Operand, ...]
    guard: tuple[Register, bool] | None
    line: int
    text: str
    source: str

    @property
    def name(self) -> str:
        """The first word of the opcode."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        """The other words."""
        return tuple(self.opcode.split(".")[1:])

    def __str__(self) -> str:
        origin = f", {self.source}" if self.source else ""
        return f"`{self.text}` (line {self.line} of the PTX{origin})"


@dataclass
class Kernel:
    """A kernel as it was read.

    Attributes:
        name: of the entry.
        capability: of the GPU it was compiled for, 90 for sm_90.
        threads: of a program, where the PTX says (``.reqntid``); None where not.
        parameters: by name, in order: offset in the parameter space and bytes.
        parameter_bytes: of that space.
        static_shared: bytes of shared memory that the PTX declares with a size; the launch's come behind.
        registers: every register, by index.
        instructions: in order.
    """

    name: str
    capability: int
    threads: int | None = None
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)
    parameter_bytes: int = 0
    static_shared: int = 0
    registers: list[Register] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True)
class _Statement:
    line: int
    text: str
    location: tuple[str, str] | None


def parse(text: str) -> Kernel:
    """Read a module with one kernel.

    Args:
        text: the PTX.

    Raises:
        NotModelled: something that this reader does not know, with its line.
    """
    lines = _without_comments(text)
    entries = [number for number, line in enumerate(lines) if re.search(r"\.entry\b", line)]
    if len(entries) != 1:
        raise NotModelled(f"a module with {len(entries)} kernels; one was expected")
    for number, line in enumerate(lines, 1):
        if match := re.match(r"\s*(\.(?:visible |weak |extern )*\.?func)\b", line):
            raise NotModelled(f"line {number}: {match[1]}: functions are not modelled")
    target = re.search(r"^\s*\.target\s+sm_(\d+)", "\n".join(lines), re.MULTILINE)
    name, threads, parameters, start = _head(lines, entries[0])
    kernel = Kernel(name, int(target[1]) if target else 0, threads)
    symbols: dict[str, Symbol] = {}
    for type_, count, parameter in parameters:
        bytes_ = WIDTHS[type_] * count
        kernel.parameter_bytes = -(-kernel.parameter_bytes // bytes_) * bytes_ if count == 1 else kernel.parameter_bytes
        kernel.parameters[parameter] = kernel.parameter_bytes, bytes_
        symbols[parameter] = Symbol("param", kernel.parameter_bytes, parameter)
        kernel.parameter_bytes += bytes_
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]+)"', "\n".join(lines), re.MULTILINE))
    _Body(kernel, symbols, files).read(lines[: entries[0]], lines[start:], start)
    return kernel


def _without_comments(text: str) -> list[str]:
    """The lines, with nothing in place of comments."""
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    return [line.partition("//")[0] for line in text.splitlines()]


def _head(lines: list[str], entry: int) -> tuple[str, int | None, list[tuple[str, int, str]], int]:
    """Name, threads, parameters (type, count, name), and the line after the brace that opens the body."""
    head, number = "", entry
    while "{" not in lines[number]:
        head += lines[number] + "\n"
        number += 1
    before, _, rest = lines[number].partition("{")
    head += before
    lines[number] = rest  # what stands behind the brace belongs to the body
    match = re.search(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?(.*)", head, re.DOTALL)
    if match is None:
        raise NotModelled(f"line {entry + 1}: an entry without a name")
    parameters = []
    for text in filter(None, (part.strip() for part in (match[2] or "").split(","))):
        found = re.match(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.\w+\s+|\d+\s+)*([\w$]+)(?:\[(\d+)\])?$", text)
        if found is None or found[1] not in WIDTHS:
            raise NotModelled(f"line {entry + 1}: the parameter `{text}`")
        parameters.append((found[1], int(found[3] or 1), found[2]))
    threads = re.search(r"\.reqntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", match[3])
    if threads and int(threads[2] or 1) * int(threads[3] or 1) != 1:
        raise NotModelled("programs with threads in more than one dimension")
    return match[1], int(threads[1]) if threads else None, parameters, number


class _Body:
    """Reads what stands between the braces of a kernel."""

    def __init__(self, kernel: Kernel, symbols: dict[str, Symbol], files: dict[str, str]) -> None:
        self.kernel, self.symbols, self.files = kernel, symbols, files
        # A brace opens a scope whose registers hide those of the same name outside.
        self.scopes: list[dict[str, Register]] = [{}]
        self.labels: dict[str, int] = {}

    def read(self, before: list[str], body: list[str], start: int) -> None:
        for number, line in enumerate(before, 1):
            if re.search(r"\.shared\b", line):
                self._declare_shared(line.strip().rstrip(";"), number)
        read: list[tuple[_Statement, dict[str, Register]]] = []
        for kind, statement in _statements(body, start):
            if kind == "open":
                self.scopes.append(dict(self.scopes[-1]))
            elif kind == "close":
                self.scopes.pop()
                if not self.scopes:
                    break
            elif kind == "label":
                if statement.text in self.labels:
                    raise NotModelled(f"line {statement.line}: the label {statement.text} for the second time")
                self.labels[statement.text] = len(read)
            elif statement.text.startswith(".reg"):
                self._declare_registers(statement)
            elif statement.text.startswith(".shared"):
                self._declare_shared(statement.text, statement.line)
            elif statement.text.startswith(".pragma"):
                pass
            elif statement.text.startswith("."):
                raise NotModelled(f"line {statement.line}: `{statement.text}`")
            else:
                read.append((statement, self.scopes[-1]))
        # Labels may stand behind the branches to them: operands are read when all are known.
        self.kernel.instructions = [self._instruction(*item) for item in read]

    def _declare_registers(self, statement: _Statement) -> None:
        match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement.text)
        if match is None or match[1] not in WIDTHS:
            raise NotModelled(f"line {statement.line}: `{statement.text}`")
        for name in (part.strip() for part in match[2].split(",")):
            many = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
            for one in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]:
                register = Register(len(self.kernel.registers), match[1], one)
                self.kernel.registers.append(register)
                self.scopes[-1][one] = register

    def _declare_shared(self, text: str, line: int) -> None:
        match = re.search(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?$", text)
        if match is None or match[2] not in WIDTHS:
            raise NotModelled(f"line {line}: `{text}`")
        align, width = int(match[1] or WIDTHS[match[2]]), WIDTHS[match[2]]
        start = -(-self.kernel.static_shared // align) * align
        self.symbols[match[3]] = Symbol("shared", start, match[3])
        if match[4] != "":  # "" is an array without a size: what the launch asks for
            self.kernel.static_shared = start + width * int(match[4] or 1)

    def _instruction(self, statement: _Statement, scope: dict[str, Register]) -> Instruction:
        match = re.fullmatch(r"(?:@(!?)(%?[\w$]+)\s+)?([\w.:]+)\s*(.*)", statement.text)
        if match is None:
            raise NotModelled(f"line {statement.line}: `{statement.text}`")
        guard = None
        if match[2]:
            if match[2] not in scope:
                raise NotModelled(f"line {statement.line}: the unknown predicate {match[2]}")
            guard = scope[match[2]], not match[1]
        operands = tuple(self._operand(text, scope, statement) for text in _split(match[4]))
        source = ""
        if statement.location:
            file, line = statement.location
            source = f"{self.files[file]}:{line}" if file in self.files and line != "0" else ""
        return Instruction(match[3], operands, guard, statement.line, statement.text, source)

    def _operand(self, text: str, scope: dict[str, Register], statement: _Statement) -> Operand:
        if text == "_":
            return None
        if text.startswith("{"):
            return Vector(tuple(self._operand(part, scope, statement) for part in _split(text[1:-1])))
        if text.startswith("["):
            match = re.fullmatch(r"\[\s*([^\s+]+?)\s*(?:\+\s*(-?\w+)\s*)?\]", text)
            base = self._operand(match[1], scope, statement) if match else None
            if match and isinstance(base, Register | Symbol | Immediate):
                return Address(base, int(match[2] or "0", 0))
        elif text.startswith("!") and text[1:].strip() in scope:
            return Negated(scope[text[1:].strip()])
        elif text in scope:
            return scope[text]
        elif text in self.symbols:
            return self.symbols[text]
        elif text in self.labels:
            return Label(self.labels[text], text)
        elif "|" in text:
            first, _, second = text.partition("|")
            one, two = (self._operand(part.strip(), scope, statement) for part in (first, second))
            if isinstance(one, Register | None) and isinstance(two, Register | None):
                return Pair(one, two)
        elif match := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text):
            return Immediate(int(match[2], 16), 4 if match[1] in "fF" else 8)
        elif match := re.fullmatch(r"(-?(?:0[xX][0-9a-fA-F]+|\d+))U?", text):
            return Immediate(int(match[1], 0))
        elif re.fullmatch(r"-?\d+\.\d*(?:[eE][-+]?\d+)?", text):
            return Immediate(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 8)
        elif re.fullmatch(r"%(?:tid|ctaid|ntid|nctaid)\.[xyz]|%laneid|%warpid", text):
            return Special(text)
        raise NotModelled(f"line {statement.line}: the operand `{text}` of `{statement.text}`")


def _statements(lines: list[str], start: int) -> Iterator[tuple[str, _Statement]]:
    """("instruction", "label", "open" or "close", statement) in order; scopes are told from operands in braces."""
    buffer, first, location = "", 0, None
    for number, line in enumerate(lines, start + 1):
        rest = line.strip()
        if match := re.match(r"\.loc\s+(\d+)\s+(\d+)", rest):
            location = match[1], match[2]
            continue
        while rest:
            if not buffer:
                first = number
                if match := re.match(r"([\w$]+)\s*:(?!:)\s*", rest):
                    yield "label", _Statement(number, match[1], location)
                    rest = rest[match.end() :]
                    continue
                if rest[0] in "{}":
                    yield "open" if rest[0] == "{" else "close", _Statement(number, rest[0], location)
                    rest = rest[1:].strip()
                    continue
            before, semicolon, rest = rest.partition(";")
            buffer += " " + before.strip()
            rest = rest.strip()
            if not semicolon:
                break
            if buffer.strip():
                yield "instruction", _Statement(first, " ".join(buffer.split()), location)
            buffer = ""


def _split(text: str) -> list[str]:
    """Operands, apart at the commas outside of brackets."""
    parts, depth, part = [], 0, ""
    for letter in text:
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()] if part.strip() else parts
