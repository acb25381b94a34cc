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
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from smml_kernels import GATES

# The private hooks were tried with these.
TRITON_VERSIONS = ("3.6.", "3.9.")


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
    """

    case: str
    kernel: str
    capability: int
    warps: int
    registers: int
    shared: int
    stack: int


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
def _compile_only(capability: int) -> Iterator[list]:
    """Inside, launches compile for ``capability`` and do not run; yields the list that collects what was compiled."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiled = []
    launch = JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(kernel)
        return kernel

    driver.set_active(StandInDriver(capability))
    with mock.patch.object(JITFunction, "run", run):
        yield compiled


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
    with _compile_only(capability) as compiled:
        for case, run in cases.items():
            compiled.clear()
            run()
            for kernel in compiled:
                usage = _usage(kernel.asm["cubin"])
                row = Resources(
                    case=case,
                    kernel=kernel.metadata.name,
                    capability=capability,
                    warps=kernel.metadata.num_warps,
                    registers=usage["REG"],
                    shared=kernel.metadata.shared,
                    stack=usage["STACK"],
                )
                found.setdefault((case, kernel.hash), row)
    return list(found.values())


def _usage(cubin: bytes) -> dict[str, int]:
    """{"REG": ..., "STACK": ..., ...} of one kernel, by the cuobjdump in Triton's package."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
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
                cases[name] = partial(_dice_ce, x, y, from_logits)
            for gate in GATES if classes == 4 else ("lower_ce",):
                cases[f"exchange {short} K={classes} {gate}"] = partial(
                    _exchange, x, None if gate == "entropy" else y, gate
                )
        for channels in (128,) if quick else (16, 128, 512):
            f = torch.empty(4096, channels, dtype=dtype)
            # Weights may be of half precision, too.
            weight = None if channels == 16 else torch.empty(4096, dtype=torch.float32 if dtype.itemsize > 4 else dtype)
            for form in ("linear", "direct", "linear tf32", "direct tf32"):
                if "tf32" not in form or (dtype != torch.float64 and not (quick and dtype == torch.bfloat16)):
                    cases[f"relation {short} C={channels} {form}"] = partial(_relation, f, weight, form)
        for channels in (8,) if quick else (8, 16, 64, 128):
            maps = [torch.empty(1, channels, 16, 16, 16, dtype=dtype) for _ in range(4)]
            cases[f"masked_fusion {short} C={channels}"] = partial(_masked_fusion, maps)
    return cases


def _dice_ce(x: torch.Tensor, y: torch.Tensor, from_logits: bool) -> None:
    from smml_kernels.dice_ce import op

    _, coefficients = op.forward(x, y, from_logits, 0.0, "")
    op.backward(x.new_empty(()), x, y, coefficients, from_logits)


def _exchange(x: torch.Tensor, y: torch.Tensor | None, gate: str) -> None:
    from smml_kernels.exchange import op

    _, _, coefficients = op.forward(x, x, y, gate, 0.0, "")
    one = x.new_empty(())
    op.backward(one, one, x, x, y, coefficients, gate, True, True)


def _relation(f: torch.Tensor, weight: torch.Tensor | None, form: str) -> None:
    from smml_kernels.relation import op

    launchers, options = op.launchers_of(form)
    _, *saved = launchers.forward(f, f, weight, "", **options)
    launchers.backward(f.new_empty((), dtype=saved[0].dtype), f, f, weight, *saved, "", **options)


def _masked_fusion(maps: list[torch.Tensor]) -> None:
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
    parser.add_argument("--capability", type=int, action="append", help="80, 90, ...; may be repeated (default: both)")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--quick", action="store_true", help="leave out cases that compile into much the same; float32 alone below 90"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file as well")
    asked = parser.parse_args()
    rows = []
    for capability in asked.capability or [80, 90]:
        cases = {name: run for name, run in every_case(quick=asked.quick).items() if asked.only in name}
        if asked.quick and capability < 90:
            cases = {name: run for name, run in cases.items() if "float32" in name}
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

    return (
        "# What the compiler makes of the kernels\n\n"
        f"`python -m smml_kernels.aot`, Triton {triton.__version__}, torch {torch.__version__}. No GPU is involved: "
        "the kernels are\ncompiled ahead of time through their launchers. `registers` is a thread's; a `stack` above 0 "
        "would be a spill.\n\n" + rows + "\n"
    )


def table(rows: list[Resources]) -> str:
    """The rows as a Markdown table."""
    head = ("case", "kernel", "sm", "warps", "registers", "shared, bytes", "stack, bytes")
    cells = [(r.case, f"`{r.kernel}`", r.capability, r.warps, r.registers, r.shared, r.stack) for r in rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, ["---"] * len(head), *cells))


if __name__ == "__main__":
    main()
