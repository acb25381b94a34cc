"""Which implementation runs, and why.

Three words, in a call (``implementation=``) or in the environment (``SMML_KERNELS``), which decides wherever a call
says "auto":

========  ==========================================================================================================
auto      Triton for tensors on an NVIDIA GPU of compute capability 8.0 or more, PyTorch for any other
torch     PyTorch: :mod:`smml_kernels.reference`, and of relation_loss :mod:`~smml_kernels.relation.torch_linear`
triton    Triton or an error that says why not; on the CPU it needs ``TRITON_INTERPRET=1`` from the start (for tests)
========  ==========================================================================================================
"""

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import Literal, get_args

import torch

Implementation = Literal["auto", "torch", "triton"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
OPERATIONS = ("relation_loss", "masked_fusion", "exchange_loss", "dice_ce_loss")
ENVIRONMENT_VARIABLE = "SMML_KERNELS"

_SMALLEST_CAPABILITY = (8, 0)


def constant_when_traced(function: Callable) -> Callable:
    """Mark a function whose result torch.compile may take as fixed when it traces.

    What ``torch.compiler.assume_constant_result`` does, which imports all of ``torch._dynamo`` for it: seconds that
    whoever compiles nothing need not wait at import. The tests that compile without a graph break rest on the mark.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a mark that functions have no type for
    return function


@constant_when_traced
def use_triton(operation: str, implementation: Implementation, device: torch.device) -> bool:
    """Whether ``operation`` runs by Triton on tensors of ``device``; otherwise it runs by PyTorch.

    Raises:
        ValueError: an unknown word, in the call or in the environment.
        RuntimeError: Triton is asked for where it cannot run.
    """
    asked, source = _asked(implementation)
    if asked == "torch":
        return False
    obstacle = _obstacle(device.type, device.index)
    if asked == "triton" and obstacle and not (device.type == "cpu" and interprets()):
        raise RuntimeError(f"{source} was asked for {operation}, but {obstacle}; use 'auto' or 'torch'")
    return obstacle == "" or asked == "triton"


def interprets() -> bool:
    """Whether Triton is installed and runs kernels in its interpreter, on the CPU, in this process."""
    if importlib.util.find_spec("triton") is None:
        return False
    from smml_kernels.common import launch

    return launch.INTERPRETED


def report() -> dict[str, str]:
    """Which implementation each operation would use now, and why: ``{operation: "torch: reason"}``.

    It never raises, so that a wrong environment variable can be reported instead of hiding everything else.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    lines = {}
    for name in OPERATIONS:
        try:
            lines[name] = _reason(name, device)
        except (ValueError, RuntimeError) as error:
            lines[name] = f"none: {error}"
    return lines


def _asked(implementation: str) -> tuple[str, str]:
    """The word that decides, and where it came from."""
    asked, source = implementation, f"implementation={implementation!r}"
    if asked == "auto" and (from_environment := os.environ.get(ENVIRONMENT_VARIABLE, "")):
        asked, source = from_environment, f"{ENVIRONMENT_VARIABLE}={from_environment}"
    if asked not in IMPLEMENTATIONS:
        raise ValueError(f"{source} is unknown: choose from {', '.join(IMPLEMENTATIONS)}")
    return asked, source


@functools.cache
def _obstacle(device_type: str, index: int | None) -> str:
    """Why compiled Triton kernels cannot run on a device; empty if they can. It does not change in a process."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device_type != "cuda":
        return f"Triton kernels are compiled for NVIDIA GPUs, and this is a {device_type} device"
    if torch.version.hip:
        return "the kernels have not been tried on AMD GPUs"
    capability = torch.cuda.get_device_capability(index)
    if capability < _SMALLEST_CAPABILITY:
        return "the kernels need compute capability 8.0, and {} has {}.{}".format(
            torch.cuda.get_device_name(index), *capability
        )
    if interprets():
        return "TRITON_INTERPRET=1 makes Triton interpret kernels on the CPU in this process"
    return ""


def _reason(name: str, device: torch.device) -> str:
    asked, source = _asked("auto")
    chosen = "triton" if use_triton(name, "auto", device) else "torch"
    if asked != "auto":
        return f"{chosen}: {source}"
    if chosen == "torch":
        return f"torch: {_obstacle(device.type, device.index)}"
    version = importlib.metadata.version("triton")
    return f"triton: version {version} on {torch.cuda.get_device_name(device)}; torch for tensors on the CPU"
