"""Runs the PTX that Triton compiles the kernels into, on the CPU, and checks what a GPU would let pass.

What it models, finds and leaves out is in docs/EMULATOR.md. ``make test-ptx`` runs the tests of the kernels in it, by
:mod:`smml_kernels.emulator.plugin`; :func:`~smml_kernels.emulator.launches.install` does the same for any program.
"""

from smml_kernels.emulator.faults import KINDS, Fault, NotModelled
from smml_kernels.emulator.machine import Launch, run
from smml_kernels.emulator.memory import Allocation
from smml_kernels.emulator.program import compile_kernel
from smml_kernels.emulator.ptx import parse

__all__ = ["KINDS", "Allocation", "Fault", "Launch", "NotModelled", "compile_kernel", "parse", "run"]
