"""Right before fast: the error of every formulation against float64, on inputs that are not those of the timing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from smml_kernels import reference
from smml_kernels.benchmarks.cases import Case, Inputs
from smml_kernels.benchmarks.contestants import Contestant, call, gradients

# Above these a formulation computes something else: rounding stays well below, a forgotten factor far above. tf32
# operands carry 11 bits, as float16; bfloat16 carries 8. float32 has room for a cuDNN convolution in tf32, PyTorch's
# default.
TOLERANCES = {"float64": 1e-9, "float32": 2e-3, "tf32": 5e-2, "bfloat16": 3e-2, "float16": 5e-3}


@dataclass(frozen=True)
class Accuracy:
    """Relative errors ||x - truth|| / ||truth|| against float64, the worst over the sets of inputs.

    Attributes:
        result: of the outputs.
        gradient: of the worst gradient.
        tolerance: what the dtype of the case allows.
    """

    result: float
    gradient: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False also for NaN."""
        return self.result <= self.tolerance and self.gradient <= self.tolerance

    @property
    def why(self) -> str:
        """In words, for a contestant that is refused."""
        return (
            f"refused: wrong against float64 (result off by {self.result:.1e}, gradient by {self.gradient:.1e}, "
            f"allowed {self.tolerance:.0e})"
        )


def truth(case: Case, sets: Sequence[Inputs]) -> list[tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]]:
    """(outputs, gradients) of the reference in float64 for each set of inputs."""
    exact = Contestant("truth", "reference in float64", getattr(reference, case.operation))
    found = []
    for inputs in sets:
        precise = inputs.double()
        outputs = call(case, exact, precise)
        found.append((tuple(o.detach() for o in outputs), gradients(outputs, precise)))
    return found


def accuracy(case: Case, contestant: Contestant, sets: Sequence[Inputs], truths: Sequence) -> Accuracy:
    """The errors of one formulation.

    Args:
        case: sets the tolerance.
        contestant: whose errors.
        sets: inputs, other than those it will be timed on.
        truths: of :func:`truth` for the same inputs.

    Raises:
        whatever the formulation raises.
    """
    result = gradient = 0.0
    for inputs, (true_outputs, true_gradients) in zip(sets, truths, strict=True):
        prepared = contestant.prepare(inputs)
        outputs = call(case, contestant, prepared)
        found = gradients(outputs, prepared)
        result = _worse(result, *map(relative_error, outputs, true_outputs))
        gradient = _worse(gradient, *map(relative_error, found, true_gradients))
    return Accuracy(result, gradient, TOLERANCES[case.dtype_name])


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """||found - exact|| / ||exact||; infinite for another shape, for NaN, and for anything where ``exact`` is zero."""
    if found.shape != exact.shape:
        return float("inf")
    size = torch.linalg.vector_norm(exact).item()
    error = torch.linalg.vector_norm(found.detach().double() - exact).item()
    if error == 0.0:
        return 0.0
    ratio = error / size if size > 0 else float("inf")
    return ratio if ratio == ratio else float("inf")


def _worse(*errors: float) -> float:
    return max(errors)
