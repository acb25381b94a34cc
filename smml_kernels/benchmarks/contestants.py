"""The formulations that are compared: the public one, tidy eager PyTorch, that compiled, and ours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

import smml_kernels
from smml_kernels import reference
from smml_kernels.benchmarks import public
from smml_kernels.benchmarks.cases import Case, Inputs

PUBLIC, EAGER, COMPILED, OURS = "public", "tidy eager", "torch.compile", "ours"
MULTIPLIED = "public, multiplied"


@dataclass(frozen=True)
class Contestant:
    """One way to compute an operation.

    Attributes:
        name: one of the constants of this module.
        runs: what it runs, in words for a table.
        function: takes the operation's positional arguments.
        mask_on_device: whether the mask of masked_fusion belongs on the maps' device, rather than on the CPU.
    """

    name: str
    runs: str
    function: Callable
    mask_on_device: bool = False

    def prepare(self, inputs: Inputs) -> Inputs:
        """The inputs where this formulation wants them, so that no copy enters its time."""
        if not self.mask_on_device:
            return inputs
        device = inputs.leaves[0].device
        return Inputs(inputs.leaves, tuple(c.to(device) for c in inputs.constants), inputs.cotangents)


def contestants(case: Case, device: torch.device) -> list[Contestant]:
    """Who takes part in a case, the baseline first and ours last; :func:`compiled` comes when all cases are done.

    Args:
        case: what is computed.
        device: on "cuda" ours is Triton and nothing else; on "cpu" what "auto" picks.
    """
    operation = case.operation
    tidy = getattr(reference, operation)
    fusion = operation == "masked_fusion"
    found = [
        Contestant(PUBLIC, _PUBLIC_WORDS[operation], getattr(public, operation), mask_on_device=fusion),
        Contestant(EAGER, "smml_kernels.reference", tidy),
    ]
    if fusion:
        words = "mask as a factor, concat, norm, activation, conv"
        found.insert(1, Contestant(MULTIPLIED, words, public.masked_fusion_multiplied, mask_on_device=True))
    found.append(_ours(operation, device))
    return [contestant for contestant in found if contestant.name not in case.without]


def compiled(case: Case) -> Contestant:
    """Tidy eager by torch.compile, which takes half a minute of compiling before its first call."""
    # One size a case: a kernel for dynamic shapes would be slower than what a training step gets.
    function = torch.compile(getattr(reference, case.operation), dynamic=False)
    return Contestant(COMPILED, "torch.compile of tidy eager", function)


def call(case: Case, contestant: Contestant, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """The outputs of one formulation, as a tuple."""
    if case.operation == "masked_fusion":
        *maps, weight, bias = inputs.leaves
        return (contestant.function(maps, inputs.constants[0], weight, bias),)
    outputs = contestant.function(*inputs.leaves, *inputs.constants)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def gradients(outputs: tuple[torch.Tensor, ...], inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Gradients of the leaves for the cotangents of the inputs."""
    return torch.autograd.grad(outputs, inputs.leaves, inputs.cotangents)


def _ours(operation: str, device: torch.device) -> Contestant:
    implementation = "triton" if device.type == "cuda" else "auto"
    runs = "triton" if device.type == "cuda" else f"auto, on this machine: {smml_kernels.report()[operation]}"
    return Contestant(OURS, runs, partial(getattr(smml_kernels, operation), implementation=implementation))


_PUBLIC_WORDS = {
    "relation_loss": "N x N matrices, matmul and normalize",
    "masked_fusion": "stack, boolean mask into zeros, norm, activation, conv",
    "exchange_loss": "one-hot volumes, softmaxes, kl_div",
    "dice_ce_loss": "one-hot volumes, a Python loop over the classes",
}
