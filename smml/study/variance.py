"""What the width of a difference's interval comes from: training seeds, held-out cases, or both together."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from smml.errors import InputError

# Of a normal distribution: 95 % lie within so many standard deviations of its mean, on each side.
_HALF_WIDTH = 1.959964


@dataclass(frozen=True)
class VarianceParts:
    """Variance of one value, by where it comes from (two-way random effects without repetition).

    Attributes:
        seed: that all cases of a training share.
        case: that all trainings share on a case.
        rest: that neither explains.
        seeds: trainings that were averaged.
        cases: cases that were averaged.
    """

    seed: float
    case: float
    rest: float
    seeds: int
    cases: int

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of the variance of the mean that come from seeds, cases and the rest; NaN where there is none."""
        parts = np.array([self.seed / self.seeds, self.case / self.cases, self.rest / (self.seeds * self.cases)])
        with np.errstate(invalid="ignore"):
            first, second, third = (parts / parts.sum()).tolist()
        return first, second, third

    def width(self, seeds: int) -> float:
        """Width of the 95 % interval of the mean over so many seeds and these cases, in the unit of the values.

        Args:
            seeds: how many trainings.
        """
        variance = self.seed / seeds + self.case / self.cases + self.rest / (seeds * self.cases)
        return 2 * _HALF_WIDTH * math.sqrt(variance)

    def seeds_for(self, width: float) -> int | None:
        """The fewest seeds with which the interval is at most so wide; None: the cases alone make it wider.

        Args:
            width: in the unit of the values.
        """
        left = (width / (2 * _HALF_WIDTH)) ** 2 - self.case / self.cases
        if left <= 0:
            return None
        return max(1, math.ceil((self.seed + self.rest / self.cases) / left))


def signs(values: Iterable[float]) -> str:
    """The sign of each value, such as "++-0".

    Args:
        values: differences, one a training seed.
    """
    return "".join("+" if value > 0 else "-" if value < 0 else "0" for value in values)


def variance_parts(values: np.ndarray) -> VarianceParts:
    """Estimate the parts by the analysis of variance; a negative estimate counts as 0.

    Args:
        values: float [S, N], a difference for each seed and case.

    Raises:
        InputError: fewer than two seeds or cases, or values that are not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise InputError(
            f"parts of a variance need finite values of two or more seeds and cases, found {list(values.shape)} with "
            f"{int((~np.isfinite(values)).sum())} not finite"
        )
    seeds, cases = values.shape
    mean, by_seed, by_case = values.mean(), values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_case[None] + mean
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (cases - 1))
    of_seeds = cases * float(((by_seed - mean) ** 2).sum()) / (seeds - 1)
    of_cases = seeds * float(((by_case - mean) ** 2).sum()) / (cases - 1)
    return VarianceParts(
        seed=max(0.0, (of_seeds - of_rest) / cases),
        case=max(0.0, (of_cases - of_rest) / seeds),
        rest=of_rest,
        seeds=seeds,
        cases=cases,
    )
