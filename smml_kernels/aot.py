"""Compile every kernel for GPUs that are not there, through its real launcher, and read what the compiler made of it.

    python -m smml_kernels.aot --capability 90

Triton asks its driver which GPU to compile for. Here the driver is a stand-in that names one, and every launch stops
after compilation, so that any machine with Triton can see whether a kernel compiles, how many registers and how much
shared memory it takes, and whether it spills: registers that did not fit are kept on the stack, in slow memory.

The hooks are Triton's private ones. It runs in a process of its own, as the stand-in stays for good.
"""

import argparse
import contextlib
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from smml_kernels import GATES, sass

# The private hooks were tried with these.
TRITON_VERSIONS = ("3.6.", "3.9.")
# By compute capability what a multiprocessor has: bytes of shared memory, warps and programs at most (the CUDA
# programming guide's table of technical specifications). All have 65536 registers.
_PROCESSORS = {80: (167936, 64, 32), 86: (102400, 48, 16), 89: (102400, 48, 24), 90: (233472, 64, 32)}
_PROCESSORS |= {100: (233472, 64, 32), 120: (102400, 48, 32)}
_REGISTERS = 65536
# Of shared memory each program has so many bytes reserved for the system: what is left for one is the first number.
_RESERVED = 1024
CAPABILITIES = (80, 86, 89, 90, 120)
QUICK_CAPABILITIES = (80, 86, 90)
# GPUs with little shared memory and without float64 tensor cores: relation_loss in float64 is what may not fit.
_SMALL = (86, 89, 120)


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Attributes:
        case: which launch compiled it.
        kernel: its name.
        capability: the GPU's compute capability, 90 for sm_90.
        warps: of a program.
        registers: of a thread (at most 255).
        shared: bytes of shared memory of a program.
        stack: bytes of stack of a thread; more than 0 is a spill.
        programs: how many fit a multiprocessor at once.
        load: bytes of the widest load of global memory by one thread; 0 for none.
        store: of the widest store.
        tensor: tensor-core instructions.
        instructions: of the main loop, as :mod:`smml_kernels.sass` finds it.
        bytes: of global memory that a thread moves there.
    """

    case: str
    kernel: str
    capability: int
    warps: int
    registers: int
    shared: int
    stack: int
    programs: int
    load: int
    store: int
    tensor: str
    instructions: int
    bytes: int

    @property
    def shared_limit(self) -> int:
        """Bytes of shared memory that a program can have on this GPU."""
        return _processor(self.capability)[0] - _RESERVED


@dataclass(frozen=True)
class Compiled:
    """A launch that stopped after compilation.

    Attributes:
        kernel: what Triton compiled.
        name: module and function, such as "dice_ce.op._sums_kernel".
        arguments: by name.
        threads: of all programs.
    """

    kernel: Any
    name: str
    arguments: dict[str, Any]
    threads: int


class StandInDriver:
    """As much of a Triton driver as compiling takes."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self._target

    def get_current_device(self) -> int:
        # What was compiled is kept by device: each capability must be a device of its own.
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compile_only(capability: int) -> Iterator[list[Compiled]]:
    """Inside, launches compile for ``capability`` and do not run; yields the list that collects what was compiled."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiled = []
    launch = JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        arguments = bound(self, args, kwargs)
        name = f"{self.fn.__module__.removeprefix('smml_kernels.')}.{self.fn.__name__}"
        programs = math.prod(grid(arguments) if callable(grid) else grid)
        compiled.append(Compiled(kernel, name, arguments, 32 * kernel.metadata.num_warps * programs))
        return kernel

    driver.set_active(StandInDriver(capability))
    with mock.patch.object(JITFunction, "run", run):
        yield compiled


def bound(function: Any, args: tuple, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a kernel's launch by name, with defaults."""
    found = {p.name: p.default for p in function.params if p.has_default}
    names = [p.name for p in function.params]
    return found | dict(zip(names, args, strict=False)) | {n: v for n, v in options.items() if n in names}


def resources(capability: int, cases: dict[str, Callable[[], object]]) -> list[Resources]:
    """Compile the kernels that each case launches.

    Args:
        capability: 80 for sm_80, 90 for sm_90, ...
        cases: by name, functions that call launchers. The launchers' tensors may lie on the CPU.

    Raises:
        RuntimeError: Triton interprets in this process.
    """
    from smml_kernels.common import launch

    if launch.INTERPRETED:
        raise RuntimeError("nothing is compiled where Triton interprets: unset TRITON_INTERPRET")
    found: dict[tuple, Resources] = {}
    with compile_only(capability) as compiled:
        for case, run in cases.items():
            compiled.clear()
            run()
            for launched in compiled:
                if (case, launched.kernel.hash) not in found:
                    found[case, launched.kernel.hash] = resources_of(case, launched.kernel, capability)
    return list(found.values())


def resources_of(case: str, kernel: Any, capability: int) -> Resources:
    """What a compiled kernel takes."""
    usage, counts = _usage(kernel.asm["cubin"]), sass.counts_of(kernel.asm["cubin"])
    warps, registers, shared = kernel.metadata.num_warps, usage["REG"], kernel.metadata.shared
    return Resources(
        case=case,
        kernel=kernel.metadata.name,
        capability=capability,
        warps=warps,
        registers=registers,
        shared=shared,
        stack=usage["STACK"],
        programs=programs_at_once(capability, warps, registers, shared),
        load=counts.load,
        store=counts.store,
        tensor=counts.tensor,
        instructions=counts.instructions,
        bytes=counts.bytes,
    )


def programs_at_once(capability: int, warps: int, registers: int, shared: int) -> int:
    """How many programs (CTAs) fit a multiprocessor; 0 where one takes more than there is."""
    memory, most_warps, most = _processor(capability)
    of_a_warp = -(-registers * 32 // 256) * 256  # registers are handed out in pieces of 256
    by_registers = _REGISTERS // of_a_warp // warps
    return min(by_registers, memory // (shared + _RESERVED), most_warps // warps, most)


def _processor(capability: int) -> tuple[int, int, int]:
    """The limits of a multiprocessor; of an unknown one those of the nearest older one that is known."""
    return _PROCESSORS[max((known for known in _PROCESSORS if known <= capability), default=80)]


def _usage(cubin: bytes) -> dict[str, int]:
    """{"REG": ..., "STACK": ..., ...} of one kernel."""
    text = sass.ask("cuobjdump", "-res-usage", cubin)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def every_case(*, quick: bool = False) -> dict[str, Callable[[], object]]:
    """A launch of every kernel in every dtype, at the sizes that SMML trains with.

    Args:
        quick: leave out what is compiled into much the same as something else; float16 is, beside bfloat16.
    """
    cases: dict[str, Callable[[], object]] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        short = str(dtype).removeprefix("torch.")
        if quick and dtype == torch.float16:
            continue
        for classes in (4, 5):
            x = torch.empty(1, classes, 64, 64, 64, dtype=dtype)
            y = torch.empty(1, 64, 64, 64, dtype=torch.uint8)
            for from_logits in (True, False):
                name = f"dice_ce {short} K={classes} {'logits' if from_logits else 'probabilities'}"
                cases[name] = partial(dice_ce, x, y, from_logits)
            for gate in GATES if classes == 4 else ("lower_ce",):
                cases[f"exchange {short} K={classes} {gate}"] = partial(
                    exchange, x, x, None if gate == "entropy" else y, gate
                )
        for channels in (128,) if quick else (16, 128, 512):
            f = torch.empty(4096, channels, dtype=dtype)
            # Weights may be of half precision, too.
            weight = None if channels == 16 else torch.empty(4096, dtype=torch.float32 if dtype.itemsize > 4 else dtype)
            for form in ("linear", "direct", "linear tf32", "direct tf32"):
                if "tf32" not in form or (dtype != torch.float64 and not (quick and dtype == torch.bfloat16)):
                    cases[f"relation {short} C={channels} {form}"] = partial(relation, f, f, weight, form)
        for channels in (8,) if quick else (8, 16, 64, 128):
            maps = [torch.empty(1, channels, 16, 16, 16, dtype=dtype) for _ in range(4)]
            cases[f"masked_fusion {short} C={channels}"] = partial(masked_fusion, maps)
    return cases


def cases_of(capability: int, *, quick: bool) -> dict[str, Callable[[], object]]:
    """The cases that tell something of a GPU.

    All for 8.0 (quickly, only those in float32) and 9.0, for those with little shared memory relation_loss in float64.
    """
    cases = every_case(quick=quick)
    if capability in _SMALL:
        return {name: run for name, run in cases.items() if "relation float64" in name}
    if quick and capability < 90:
        return {name: run for name, run in cases.items() if "float32" in name}
    return cases


def dice_ce(x: torch.Tensor, y: torch.Tensor, from_logits: bool) -> None:
    from smml_kernels.dice_ce import op

    _, coefficients = op.forward(x, y, from_logits, 0.0, "")
    op.backward(x.new_empty(()), x, y, coefficients, from_logits)


def exchange(x1: torch.Tensor, x2: torch.Tensor, y: torch.Tensor | None, gate: str) -> None:
    from smml_kernels.exchange import op

    _, _, coefficients = op.forward(x1, x2, y, gate, 0.0, "")
    one = x1.new_empty(())
    op.backward(one, one, x1, x2, y, coefficients, gate, True, True)


def relation(f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, form: str) -> None:
    from smml_kernels.relation import op

    launchers, options = op.launchers_of(form)
    _, *saved = launchers.forward(f1, f2, weight, "", **options)
    launchers.backward(f1.new_empty((), dtype=saved[0].dtype), f1, f2, weight, *saved, "", **options)


def masked_fusion(maps: list[torch.Tensor]) -> None:
    from smml_kernels.fusion import backward, op

    # Under autocast the parameters stay in float32 and the upstream gradient comes in the maps' dtype.
    channels, dtype = maps[0].shape[1], torch.promote_types(maps[0].dtype, torch.float32)
    weight, bias = torch.empty(channels, 4 * channels, dtype=dtype), torch.empty(channels, dtype=dtype)
    mask, slots = torch.ones(1, 4, dtype=torch.uint8), range(len(maps))
    out, statistics = op.forward(maps, slots, mask, weight, bias, 0.01, 1e-5, maps[0].dtype)
    wanted = [True] * (2 + len(maps))
    backward.backward(out, maps, slots, mask, weight, statistics, 0.01, wanted, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--capability",
        type=int,
        action="append",
        help="80, 86, 89, 90, 120; may be repeated (default: all; with --quick 80, 86, 90)",
    )
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out cases that compile into much the same; without --capability also, of 80, all but float32, and, "
        "of 86, all but relation_loss in float64",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file as well")
    asked = parser.parse_args()
    rows = []
    for capability in asked.capability or (QUICK_CAPABILITIES if asked.quick else CAPABILITIES):
        quick = asked.quick and not asked.capability
        cases = cases_of(capability, quick=True) if quick else every_case(quick=asked.quick)
        cases = {name: run for name, run in cases.items() if asked.only in name}
        for name, run in cases.items():
            found = resources(capability, {name: run})
            if not asked.json:  # line by line: whoever stops it sees how far it came
                print("\n".join(table(found).splitlines()[2 if rows else 0 :]), flush=True)
            rows += found
    if asked.json:
        json.dump([asdict(row) for row in rows], sys.stdout)
    if asked.output:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.write_text(_page(table(rows)))


def _page(rows: str) -> str:
    """The table as a page that says what made it."""
    import triton

    command = shlex.join(["python", "-m", "smml_kernels.aot", *sys.argv[1:]])
    return (
        "# What the compiler makes of the kernels\n\n"
        f"`{command}`, Triton {triton.__version__}, torch {torch.__version__}. No GPU is involved: the kernels are\n"
        "compiled ahead of time through their launchers.\n\n"
        f"{COLUMNS}\n\n{rows}\n"
    )


COLUMNS = """`registers` is a thread's; a `stack` above 0 would be a spill. `CTAs an SM` is how many programs fit a
multiprocessor. Widest load and store are bytes of one thread. `instructions` and `bytes` are those of one thread in the
main loop, the innermost one that moves the most bytes, or of the whole kernel where no loop does."""


def table(rows: list[Resources]) -> str:
    """The rows as a Markdown table."""
    head = ("case", "kernel", "sm", "warps", "registers", "shared, bytes", "stack, bytes", "CTAs an SM")
    head += ("widest load", "widest store", "tensor cores", "instructions", "bytes", "instructions a byte")
    cells = [
        (
            r.case, f"`{r.kernel}`", r.capability, r.warps, r.registers, r.shared, r.stack, r.programs, r.load or "",
            r.store or "", r.tensor, r.instructions, r.bytes, f"{r.instructions / r.bytes:.2f}" if r.bytes else "",
        )
        for r in rows
    ]  # fmt: skip
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, ["---"] * len(head), *cells))


if __name__ == "__main__":
    main()
