"""What can be said of the kernels' speed without a GPU, as the page results/kernels/resources.md.

    python -m smml_kernels.static_performance --output results/kernels/resources.md

Every kernel is compiled ahead of time (:mod:`smml_kernels.aot`) and its machine code is counted
(:mod:`smml_kernels.sass`). For launches at the sizes of training a model then says how long they take at least:

* each tensor that a launch is given passes the memory once, at the bandwidth of the data sheet: what is read again
  comes from a cache;
* a multiprocessor issues four instructions of 32 threads a cycle. Of the kernels of voxels it is known how often their
  threads go through the main loop, and so how many instructions there are;
* a launch takes the longer of the two, and before each one two microseconds pass;
* the launches of relation_loss together take at least what its products take at the data sheet's rate.

It is a model: caches, latencies and waves are not in it, and nothing in the table was measured.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from smml_kernels import aot, sass
from smml_kernels.benchmarks import floors

_GAP = 2e-6
_GRID = (128, 128, 128)


@dataclass(frozen=True)
class Machine:
    """A GPU by its data sheet.

    Attributes:
        name: of the GPU.
        bandwidth: of its memory, bytes a second.
        issue: instructions of single threads a second: multiprocessors x 4 x 32 x boost clock.
        matrix: float64 operations of its tensor cores a second.
    """

    name: str
    bandwidth: float
    issue: float
    matrix: float


# NVIDIA's data sheets of A100 (80 GB, SXM) and H100 (SXM).
MACHINES = {
    80: Machine("A100", 2.039e12, 108 * 128 * 1.41e9, 19.5e12),
    90: Machine("H100", 3.35e12, 132 * 128 * 1.98e9, 67e12),
}


@dataclass(frozen=True)
class Launch:
    """One launch of a case.

    Attributes:
        kernel: module and function.
        bytes: of the tensors that it is given, each once.
        instructions: of all its threads, for kernels of voxels; None where the main loop does not tell.
    """

    kernel: str
    bytes: int
    instructions: float | None

    def seconds(self, machine: Machine) -> float:
        """The least time by memory and instructions."""
        return max(self.bytes / machine.bandwidth, (self.instructions or 0) / machine.issue)


@dataclass(frozen=True)
class Prediction:
    """What the model says of a case.

    Attributes:
        case: operation, shape and dtype.
        capability: of the GPU.
        launches: in order.
        seconds: of all of them.
        floor: the least time that any formulation needs.
    """

    case: str
    capability: int
    launches: tuple[Launch, ...]
    seconds: float
    floor: float


def predict(case: str, run: Callable[[], object], floor: floors.Floor, capability: int) -> Prediction:
    """Compile the launches of a case and let the model say how long they take.

    Args:
        case: its name.
        run: calls the launchers.
        floor: of the case.
        capability: 80 or 90.
    """
    machine = MACHINES[capability]
    with aot.compile_only(capability) as compiled:
        run()
        launches = tuple(_launch(launched) for launched in compiled)
    seconds = sum(launch.seconds(machine) for launch in launches)
    if floor.matrix:
        seconds = max(seconds, floor.flops("both") / machine.matrix)
    least = floor.seconds("both", machine.bandwidth, machine.matrix)
    assert least is not None  # a machine has a matrix rate
    return Prediction(case, capability, launches, seconds + _GAP * len(launches), least)


# Which arguments the main loop of a kernel of voxels passes over. In the products of masked_fusion g meets each map.
_IN_MAIN_LOOP = {
    "dice_ce.op._sums_kernel": ("x", "target"),
    "exchange.op._sums_kernel": ("x1", "x2", "target"),
    "fusion.op._moments_kernel": ("maps",),
    "fusion.backward._products_kernel": ("maps", "g", "g", "g", "g"),
}
# How often a thread goes through the main loop of others; those without a loop are gone through once.
_TURNS: dict[str, Callable[[dict], int]] = {
    "dice_ce.op._gradient_kernel": lambda arguments: 1,
    "exchange.op._gradient_kernel": lambda arguments: 1,
    "fusion.op._mix_kernel": lambda arguments: arguments["M"] * arguments["C"],
}


def _launch(launched: aot.Compiled) -> Launch:
    tensors = {t.untyped_storage().data_ptr(): t for t in _tensors(tuple(launched.arguments.values()))}
    return Launch(launched.name, sum(t.nbytes for t in tensors.values()), _instructions(launched))


def _instructions(launched: aot.Compiled) -> float | None:
    """Of all threads of a launch; None where the main loop does not tell."""
    if launched.name not in {*_TURNS, *_IN_MAIN_LOOP}:
        return None
    counts = sass.counts_of(launched.kernel.asm["cubin"])
    if launched.name in _TURNS:
        return counts.instructions * launched.threads * _TURNS[launched.name](launched.arguments)
    passed = sum(t.nbytes for name in _IN_MAIN_LOOP[launched.name] for t in _tensors(launched.arguments[name]))
    return counts.instructions / counts.bytes * passed


def _tensors(value: object) -> list[torch.Tensor]:
    """The tensors in an argument of a launch."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, tuple) else []


def cases() -> dict[str, tuple[Callable[[], object], floors.Floor]]:
    """Launches at the sizes of training, by name, with their floors."""
    found: dict[str, tuple[Callable[[], object], floors.Floor]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        short, item = str(dtype).removeprefix("torch."), dtype.itemsize
        x, y = torch.empty(1, 4, *_GRID, dtype=dtype), torch.empty(1, *_GRID, dtype=torch.uint8)
        maps = [torch.empty(1, 8, *_GRID, dtype=dtype) for _ in range(4)]
        shape = tuple(x.shape)
        found[f"dice_ce_loss (1, 4, 128, 128, 128) {short}"] = (
            partial(aot.dice_ce, x, y, True), floors.dice_ce_loss(shape, item, 1)
        )  # fmt: skip
        found[f"exchange_loss (1, 4, 128, 128, 128) {short}"] = (
            partial(aot.exchange, x, torch.empty_like(x), y, "lower_ce"), floors.exchange_loss(shape, item, 1)
        )  # fmt: skip
        found[f"masked_fusion (1, 8, 128, 128, 128) {short}"] = (
            partial(aot.masked_fusion, maps), floors.masked_fusion((1, 8, *_GRID), 4, 8, 1.0, item)
        )  # fmt: skip
    for tokens, channels in ((1024, 512), (32768, 128)):
        f = torch.empty(tokens, channels)
        found[f"relation_loss ({tokens}, {channels}) float32, linear"] = (
            partial(aot.relation, f, torch.empty_like(f), None, "linear"), floors.relation_loss(tokens, channels, 4)
        )  # fmt: skip
    return found


def page(predictions: list[Prediction], rows: list[aot.Resources], *, quick: bool) -> str:
    """Both tables as Markdown, with the model and what made them.

    Args:
        predictions: of the first tables.
        rows: of the last.
        quick: whether these are not all kernels.
    """
    import triton

    said = (__doc__ or "").partition("* each tensor")
    model = (said[1] + said[2]).strip()
    machines = "; ".join(
        f"sm_{capability} {m.name}, {m.bandwidth / 1e9:.0f} GB/s, {m.issue / 1e12:.1f} T instructions/s,\n"
        f"float64 {m.matrix / 1e12:.1f} TFLOP/s"
        for capability, m in MACHINES.items()
    )
    words = "--quick " if quick else ""
    lines = [
        "# What the compiler makes of the kernels",
        "",
        f"`python -m smml_kernels.static_performance {words}--output results/kernels/resources.md`,",
        f"Triton {triton.__version__}, torch {torch.__version__}. No GPU is involved: the kernels are compiled ahead",
        "of time through their launchers, and nothing here was measured.",
        "",
        "## Predicted times",
        "",
        "The model:",
        "",
        model,
        "",
        f"Data sheets: {machines}.",
        "*Floor* is the least time of any formulation by the same numbers. Forward and backward, all modalities there.",
        "What a GPU took, with the kernels of then: [H200](../../smml_kernels/benchmarks/results/nvidia-h200.md).",
        "",
        "| case | sm | launches | MB moved | predicted, us | floor, us | of the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for p in predictions:
        moved = sum(launch.bytes for launch in p.launches) / 1e6
        lines.append(
            f"| {p.case} | {p.capability} | {len(p.launches)} | {moved:.1f} | {1e6 * p.seconds:.0f} "
            f"| {1e6 * p.floor:.0f} | {100 * p.floor / p.seconds:.0f} % |"
        )
    lines += ["", "| case | sm | launch | MB moved | M instructions | predicted, us |", "|---|---|---|---|---|---|"]
    for p in predictions:
        for launch in p.launches:
            counted = f"{launch.instructions / 1e6:.0f}" if launch.instructions else ""
            lines.append(
                f"| {p.case} | {p.capability} | `{launch.kernel}` | {launch.bytes / 1e6:.1f} | {counted} "
                f"| {1e6 * launch.seconds(MACHINES[p.capability]):.1f} |"
            )
    return "\n".join(
        [*lines, "", "## The kernels" if quick else "## Every kernel", "", aot.COLUMNS, "", aot.table(rows), ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the Markdown file to write")
    parser.add_argument("--quick", action="store_true", help="of the second table what `aot --quick` compiles")
    asked = parser.parse_args()
    predictions = [
        predict(name, run, floor, capability) for capability in MACHINES for name, (run, floor) in cases().items()
    ]
    rows = []
    for capability in aot.QUICK_CAPABILITIES if asked.quick else aot.CAPABILITIES:
        rows += aot.resources(capability, aot.cases_of(capability, quick=asked.quick))
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(page(predictions, rows, quick=asked.quick))


if __name__ == "__main__":
    main()
