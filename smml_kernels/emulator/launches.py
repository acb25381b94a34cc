"""Makes Triton's launches on CPU tensors compile for a GPU that is not there and run in the emulator.

The hooks are Triton's private ones, as in :mod:`smml_kernels.aot`, and stay for good: it takes a process of its own, in
which ``TRITON_INTERPRET`` is off.
"""

import importlib.metadata
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch

from smml_kernels import aot
from smml_kernels.emulator.machine import Launch, run
from smml_kernels.emulator.memory import Allocation
from smml_kernels.emulator.program import Program, compile_kernel
from smml_kernels.emulator.ptx import Kernel, parse


@dataclass
class Record:
    """What has run in this process.

    Attributes:
        launches: by kernel (its module and name), how many.
        kernels: how many different pieces of PTX.
        programs: of all launches.
        instructions: executed, counted once for all threads that took them together.
        compiling: seconds of this process's processor time in Triton's compiler.
        running: seconds in the emulator.
    """

    launches: dict[str, int] = field(default_factory=dict)
    kernels: int = 0
    programs: int = 0
    instructions: int = 0
    compiling: float = 0.0
    running: float = 0.0


def install(cache: Path, capability: int = 90) -> Record:
    """From now on, every launch of a Triton kernel in this process runs in the emulator.

    ``implementation="triton"`` is then allowed for CPU tensors, as where Triton interprets.

    Args:
        cache: a folder for what Triton compiles; what is there is not compiled again.
        capability: 90 for sm_90, whose instructions the emulator knows; others may be `NotModelled`.

    Returns:
        What has run, kept up to date.

    Raises:
        RuntimeError: Triton interprets in this process, or its version is not one whose hooks are known.
    """
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from smml_kernels.common import launch

    if launch.INTERPRETED:
        raise RuntimeError("nothing is compiled where Triton interprets: unset TRITON_INTERPRET")
    version = importlib.metadata.version("triton")
    if not version.startswith(aot.TRITON_VERSIONS):
        raise RuntimeError(f"Triton {version}; its hooks are known for {', '.join(aot.TRITON_VERSIONS)}")
    record, compile_only = Record(), JITFunction.run
    programs: dict[str, Program] = {}

    def emulate(self, *args, grid, warmup, **options):
        before = time.process_time()
        compiled = compile_only(self, *args, grid=grid, warmup=True, **options)
        ready = time.process_time()
        if compiled.hash not in programs:
            programs[compiled.hash] = compile_kernel(parse(compiled.asm["ptx"]))
        program = programs[compiled.hash]
        bound = aot.bound(self, args, options)
        parameters, allocations = _arguments(program.kernel, compiled.src.signature, bound)
        size = tuple(grid(bound) if callable(grid) else grid)
        counts = run(
            program,
            Launch(
                grid=(*size, *(1,) * (3 - len(size))),
                threads=32 * compiled.metadata.num_warps,
                parameters=parameters,
                allocations=allocations,
                shared=compiled.metadata.shared,
            ),
        )
        name = f"{self.fn.__module__.removeprefix('smml_kernels.')}.{program.kernel.name}"
        record.launches[name] = record.launches.get(name, 0) + 1
        record.kernels = len(programs)
        record.programs += counts.programs
        record.instructions += counts.instructions
        record.compiling += ready - before
        record.running += time.process_time() - ready
        return compiled

    cache.mkdir(parents=True, exist_ok=True)
    knobs.cache.dir = str(cache)
    knobs.runtime.add_stages_inspection_hook = _without_assembler
    driver.set_active(aot.StandInDriver(capability))
    mock.patch.object(JITFunction, "run", emulate).start()
    mock.patch.object(launch, "INTERPRETED", True).start()  # what lets kernels run on CPU tensors
    return record


def _without_assembler(backend=None, stages=None, options=None, language=None, capability=None):
    """PTX is all that is wanted, and ptxas takes long. Triton asks first for a key of its cache."""
    if stages is None:
        return "ptx alone", "ptx alone"
    stages["cubin"] = lambda source, metadata: b""
    return None


def _arguments(kernel: Kernel, signature: dict, bound: dict[str, object]) -> tuple[bytes, list[Allocation]]:
    """The bytes of the parameter space, and the memory that the launch hands over."""
    values: list[int | float] = []
    allocations = []
    for name, type_ in signature.items():
        for value in _leaves(type_, bound[name]):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                allocations.append(Allocation(name, storage.data_ptr(), storage.nbytes()))
                values.append(value.data_ptr())
            else:
                values.append(value)
    space = bytearray(kernel.parameter_bytes)
    # Behind the kernel's own come Triton's scratch buffers, which nobody uses here: null.
    values += [0] * (len(kernel.parameters) - len(values))
    for (offset, size), value in zip(kernel.parameters.values(), values, strict=True):
        if isinstance(value, float):
            space[offset : offset + size] = struct.pack({4: "<f", 8: "<d"}[size], value)
        else:
            space[offset : offset + size] = (int(value) % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(space), allocations


def _leaves(type_: object, value: object) -> Iterator:
    """What is passed of an argument: of a tuple each element, of a constant nothing."""
    if isinstance(type_, tuple | list):
        for part, element in zip(type_, value, strict=True):  # type: ignore[call-overload]  # of the same form
            yield from _leaves(part, element)
    elif type_ != "constexpr":
        yield value
