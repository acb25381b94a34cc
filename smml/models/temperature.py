"""A temperature: how sure a model's probabilities are, without a change of which class is the likeliest.

``p^(1/T)``, divided by its sum over the classes, is the softmax of the logits divided by T: above 1 the probabilities
come closer to each other, below 1 the largest grows (Guo et al., ICML 2017). A model has one for each number of
sequences that it can be given, because it is not equally sure of itself with one and with four
(:mod:`smml.evaluation.temperatures` fits them).
"""

from collections.abc import Sequence

import torch

from smml.errors import InputError

# What a temperature can be, and where the fit looks for it.
TEMPERATURES = (0.1, 10.0)


def temper_(probabilities: torch.Tensor, temperature: float, *, dim: int = 0) -> torch.Tensor:
    """Temper probabilities in place, since those of a whole case are large; a temperature of 1 changes no bit.

    Args:
        probabilities: floating, any shape; they sum to 1 along ``dim``.
        temperature: within ``TEMPERATURES``.
        dim: that of the classes.

    Returns:
        ``probabilities`` itself.
    """
    if temperature == 1:
        return probabilities
    probabilities.pow_(1 / temperature)
    return probabilities.div_(probabilities.sum(dim=dim, keepdim=True))


def check_temperatures(temperatures: object, count: int) -> tuple[float, ...] | None:
    """Temperatures as they come from a file or a caller.

    Args:
        temperatures: for one sequence, for two and so on; None where none were fitted.
        count: how many sequences the model can be given.

    Returns:
        The same as floats.

    Raises:
        InputError: another number of them, or one out of its range.
    """
    if temperatures is None:
        return None
    low, high = TEMPERATURES
    # Not isinstance: True is an int. A NaN fails the comparison.
    if (
        not isinstance(temperatures, Sequence)
        or len(temperatures) != count
        or not all(type(value) in (int, float) and low <= value <= high for value in temperatures)
    ):
        raise InputError(
            f"temperatures must be {count} numbers from {low:g} to {high:g}, one for each number of sequences, found "
            f"{temperatures!r:.80}"
        )
    return tuple(map(float, temperatures))
