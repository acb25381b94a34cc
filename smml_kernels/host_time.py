"""What a call costs the processor before any kernel could run: no GPU takes part.

    python -m smml_kernels.host_time [--beside CHECKOUT] [--output FILE]

A call of an operation on small tensors, forward and backward, is made again and again with a stand-in for the GPU:
Triton compiles for it once, and its launches stop where its driver would hand a kernel over. PyTorch, autograd and this
package do all that they do for a GPU, on tensors that lie in the processor's memory. What is missing: the launcher of
Triton's driver, about the same for any kernel, and PyTorch's allocator for GPUs in the place of the one for processors.

Seconds are those of the processor (``time.process_time``), so that others on the machine matter less; figures of
different machines must not be compared. ``--beside`` measures another checkout of this project, too, the two by turns
in processes of their own, and gives the ratio.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

_CACHE = "build/host_time"


def silent_driver(aot, capability: int = 90):
    """A driver as compiling takes it, whose launches do nothing.

    Its ``launches`` is their number, and ``last`` what the last one was given: the hash of what was compiled, the
    device it was loaded for, the grid and the kernel's arguments.

    Args:
        aot: the module of that name of the checkout that is measured.
        capability: 90 for sm_90.
    """

    class Silent(aot.StandInDriver):
        launches = 0
        last: tuple = ()

        class utils:
            # In the place of a handle of the function: the device.
            load_binary = staticmethod(lambda name, binary, shared, device: (1, device, 0, 0, 1024))
            unload_module = staticmethod(lambda module: None)
            get_device_properties = staticmethod(lambda device: {"max_shared_mem": 232448})

        def launcher_cls(self, source, metadata) -> Callable[..., None]:
            def launcher(x, y, z, stream, function, packed, words, enter, leave, *arguments) -> None:
                self.launches += 1
                self.last = (metadata.hash, function, (x, y, z), arguments)

            return launcher

    return Silent(capability)


def install(cache: Path):
    """From now on launches of this process end in :func:`silent_driver`, which is returned.

    Args:
        cache: a folder for what Triton compiles.
    """
    os.environ["TRITON_INTERPRET"] = "0"
    from triton import knobs
    from triton.runtime import driver

    from smml_kernels import aot
    from smml_kernels.common import launch

    knobs.cache.dir = str(cache)
    silent = silent_driver(aot)
    driver.set_active(silent)
    mock.patch.object(launch, "INTERPRETED", True).start()  # what lets kernels take tensors of a CPU
    return silent


def calls() -> dict[str, Callable[[], object]]:
    """Of each operation a call and its gradients, on a few voxels; masked_fusion with two of four modalities."""
    import torch

    import smml_kernels

    torch.manual_seed(0)
    torch.set_num_threads(1)

    def leaf(*shape: int):
        return torch.randn(*shape).requires_grad_()

    maps, weight, bias = [leaf(1, 8, 4, 4, 4) for _ in range(2)], leaf(8, 32), leaf(8)
    mask, fused = torch.tensor([[True, False, True, False]]), torch.randn(1, 8, 4, 4, 4)
    x1, x2, y = leaf(1, 4, 4, 4, 4), leaf(1, 4, 4, 4, 4), torch.ones(1, 4, 4, 4, dtype=torch.uint8)
    f1, f2, one, word = leaf(32, 16), leaf(32, 16), torch.ones(()), "triton"

    def masked_fusion():
        out = smml_kernels.masked_fusion([maps[0], None, maps[1], None], mask, weight, bias, implementation=word)
        return torch.autograd.grad(out, [weight, bias, *maps], fused)

    def exchange_loss():
        losses = smml_kernels.exchange_loss(x1, x2, y, implementation=word)
        return torch.autograd.grad(losses, [x1, x2], [one, one])

    def dice_ce_loss():
        return torch.autograd.grad(smml_kernels.dice_ce_loss(x1, y, implementation=word), x1, one)

    def relation_loss():
        loss = smml_kernels.relation_loss(f1, f2, form="direct", implementation=word)
        return torch.autograd.grad(loss, [f1, f2], one)

    return {f.__name__: f for f in (masked_fusion, exchange_loss, dice_ce_loss, relation_loss)}


def measure(number: int, cache: Path) -> dict[str, dict[str, float]]:
    """Of each operation {"us": processor time of a call, "launches": kernels, "calls": functions called}.

    Args:
        number: of calls that a time is the mean of; it is the least of five.
        cache: a folder for what Triton compiles.
    """
    silent, found = install(cache), {}
    for name, call in calls().items():
        call()
        before = silent.launches
        call()
        launches, functions = silent.launches - before, functions_called(call)
        times = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(number):
                call()
            times.append((time.process_time() - began) / number)
        found[name] = {"us": 1e6 * min(times), "launches": launches, "calls": functions}
    return found


def functions_called(call: Callable[[], object]) -> int:
    """How many functions of Python a call runs through: unlike a time, the same each time."""
    number = 0

    def count(frame, event, argument) -> None:
        nonlocal number
        number += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
    return number


def by_turns(folders: list[Path], number: int, rounds: int) -> list[dict[str, dict[str, float]]]:
    """:func:`measure` of each checkout, in processes of their own, one after the other: medians over the rounds."""
    found: list[list[dict]] = [[] for _ in folders]
    for _ in range(rounds):
        for folder, rows in zip(folders, found, strict=True):
            # -P: the modules of the checkout alone, not those beside this file.
            command = [sys.executable, "-P", __file__, "--json", "--calls", str(number)]
            words = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            done = subprocess.run(command, env=words, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout))
    return [
        {name: {key: statistics.median(row[name][key] for row in rows) for key in rows[0][name]} for name in rows[0]}
        for rows in found
    ]


def page(here: dict, beside: dict | None, words: str, other: str) -> str:
    """The table as Markdown.

    Args:
        here: of :func:`measure`, this checkout.
        beside: another one, or None.
        words: how it was made.
        other: what the other checkout is called.
    """
    head, rule = "| operation | launches | functions of Python | us |", "|---|---|---|---|"
    lines = []
    for name, row in here.items():
        line = f"| `{name}` | {row['launches']:.0f} | {row['calls']:.0f} | {row['us']:.0f} |"
        if beside is not None:
            old = beside[name]
            line += f" {old['calls']:.0f} | {old['us']:.0f} | {row['us'] / old['us']:.2f} |"
        lines.append(line)
    if beside is not None:
        head += f" functions, {other} | us, {other} | ratio of us |"
        rule += "---|---|---|"
    return "\n".join(
        [
            "# The host's time of a call",
            "",
            words,
            "",
            "Forward and backward on a few voxels, `masked_fusion` with two of four modalities: processor time and",
            "functions of Python before any kernel could run. No GPU took part: a stand-in's launches do nothing.",
            "",
            head,
            rule,
            *lines,
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser("python -m smml_kernels.host_time", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--beside", type=Path, help="another checkout of this project, measured by turns with this one")
    parser.add_argument("--calls", type=int, default=300, help="calls of each operation (default: 300)")
    parser.add_argument("--rounds", type=int, default=3, help="turns (default: 3)")
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file as well")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)  # one process of a turn
    asked = parser.parse_args()
    if asked.json:
        json.dump(measure(asked.calls, Path.cwd() / _CACHE), sys.stdout)
        return 0
    import torch

    from smml_kernels.benchmarks import machine

    folders = [machine.ROOT] if asked.beside is None else [machine.ROOT, asked.beside.resolve()]
    here, *others = by_turns(folders, asked.calls, asked.rounds)
    other = ""
    if asked.beside is not None:
        git = ["git", "-C", str(folders[1]), "rev-parse", "--short", "HEAD"]
        other = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "beside"
    command = shlex.join(["python", "-m", "smml_kernels.host_time", *(["--beside", "CHECKOUT"] if others else [])])
    made = machine.provenance(torch.device("cpu"), command, 0)
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("python", "torch", "triton"))
    words = f"`{command}`, {made['date']}, commit {made['commit']}. {made['hardware']['cpu']}; {versions}."
    text = page(here, others[0] if others else None, words, other)
    print(text)
    if asked.output:
        asked.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
