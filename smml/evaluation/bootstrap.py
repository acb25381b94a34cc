"""What a mean over cases is worth: confidence intervals by resampling them, and the standard error.

Of several visits of a patient both make one draw, or one observation.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from smml.data.releases import patient_of
from smml.errors import InputError

_NUMBERS_AT_ONCE = 2**16


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: of the values themselves, not of the resamples.
        low: 2.5th percentile of the resampled means (at the default level).
        high: 97.5th percentile.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def bootstrap_mean(values: np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of paired values with a percentile bootstrap interval (Efron & Tibshirani, 1993, chapter 13).

    Args:
        values: float [N], one a case, or [S, N], one a seed and case: then seeds are resampled too, and a case that is
            drawn is drawn for every seed, as its scores are not independent.
        level: of the interval.
        resamples: how many.
        seed: of the resampling; the same input gives the same interval.

    Raises:
        InputError: no values, or some are not finite.
    """
    values = _finite(values)
    _check_options(level, resamples)
    rows, columns = _draws(*values.shape, resamples, seed)
    # The means many at a time, but not so many that large cohorts fill the memory.
    block = max(1, _NUMBERS_AT_ONCE // values.size)
    means = np.concatenate(
        [
            values[rows[first : first + block, :, None], columns[first : first + block, None, :]].mean(axis=(1, 2))
            for first in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def bootstrap_stratified_mean(
    values: np.ndarray,
    strata: Sequence[str],
    shares: Mapping[str, float],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean over a population of which the share of each kind of case is known (Cochran, 1977, section 5A.9).

    How many cases of each kind a sample happens to hold then moves the mean no more: it is that of the kinds' means,
    weighted by their shares. Cases are resampled within their kind, seeds as by :func:`bootstrap_mean`.

    Args:
        values: float [N], one a case, or [S, N], one a seed and case.
        strata: the kind of each case, N of them.
        shares: of each kind in the population, 1 together; a kind in it has a case at least.
        level: of the interval.
        resamples: how many.
        seed: of the resampling; the same input gives the same interval.

    Raises:
        InputError: no values, some that are not finite, or kinds and shares that do not go together.
    """
    values = _finite(values)
    _check_options(level, resamples)
    kinds = np.asarray(strata)
    if kinds.shape != values.shape[1:] or set(kinds) != set(shares) or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(
            f"each of the {values.shape[1]} cases needs a kind, and each kind a share, 1 together; found {len(kinds)} "
            f"kinds, {sorted(set(kinds))}, with the shares {dict(shares)}"
        )
    random = np.random.default_rng(seed)
    seeds = len(values)
    weights = _counts(random, resamples, seeds) / seeds
    means, mean = np.zeros(resamples), 0.0
    for kind, share in shares.items():
        own = values[:, kinds == kind]
        cases = own.shape[1]
        means += share * ((weights @ own) * _counts(random, resamples, cases)).sum(axis=1) / cases
        mean += share * float(own.mean())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _counts(random: np.random.Generator, resamples: int, size: int) -> np.ndarray:
    """How often each of ``size`` is drawn in as many draws, [resamples, size]."""
    return random.multinomial(size, np.full(size, 1 / size), size=resamples)


@functools.lru_cache(maxsize=4)
def _draws(seeds: int, cases: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn seeds [resamples, seeds] and cases [resamples, cases].

    Kept, because drawing takes far longer than the means, and a report draws for dozens of values of one shape.
    """
    random = np.random.default_rng(seed)
    rows, columns = np.empty((resamples, seeds), np.int32), np.empty((resamples, cases), np.int32)
    for number in range(resamples):
        rows[number], columns[number] = random.integers(seeds, size=seeds), random.integers(cases, size=cases)
    rows.flags.writeable = columns.flags.writeable = False
    return rows, columns


def bootstrap_mean_over_subsets(
    values: np.ndarray,
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean over cases, then over subsets, where cases lack some subsets, with an interval from resampling patients.

    A patient who is drawn is drawn with all cases (visits), and a case with all subsets that it has: they are alike,
    and copies of one must not make an interval shorter. Without gaps and with one case a patient this is
    :func:`bootstrap_mean` of the cases' means; with gaps a mean of those would count a subset the more, the fewer
    others its cases have.

    Args:
        values: float [N, S], a case in each row and a subset in each column; NaN where a case lacks a subset. Every
            row and every column holds a value.
        groups: name of the patient of each row; None takes each case as a patient.
        level: of the interval.
        resamples: how many.
        seed: of the resampling; the same input gives the same interval.

    Raises:
        InputError: no values, infinite ones, or a row or column without any.
    """
    values = np.asarray(values, np.float64)
    there = ~np.isnan(values)
    if values.ndim != 2 or not values.size or np.isinf(values).any() or not (there.any(0).all() and there.any(1).all()):
        raise InputError(
            f"a bootstrap over subsets needs values [cases, subsets] that are finite or missing, found "
            f"{list(values.shape)}; leave out cases and subsets without any"
        )
    _check_options(level, resamples)
    random = np.random.default_rng(seed)
    known, cases = np.where(there, values, 0), len(values)
    names = np.arange(cases) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    patients = int(names.max()) + 1
    means = np.empty(resamples)
    for number in range(resamples):
        drawn = np.bincount(random.integers(patients, size=patients), minlength=patients)[names]
        counts = drawn @ there
        # A subset that no drawn case has is left out of this mean.
        means[number] = np.mean((drawn @ known)[counts > 0] / counts[counts > 0])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float((known.sum(0) / there.sum(0)).mean()), float(low), float(high))


def standard_error(values: pd.DataFrame) -> pd.Series:
    """Standard error of each column's mean over cases; NaN of fewer than two patients.

    The visits of a patient are one observation of several values, so the deviations of each are added up first.

    Args:
        values: floating, a case in each row, by its id; NaN where it has none.
    """
    there = values.notna()
    groups = [patient_of(str(case)) for case in values.index]
    sums = (values - values.mean()).fillna(0).groupby(groups).sum()
    patients = there.groupby(groups).any().sum().astype(float)
    return np.sqrt((sums**2).sum() * patients / (patients - 1).where(patients > 1)) / there.sum()


def _finite(values: np.ndarray) -> np.ndarray:
    """The values as float64 [seeds, cases]."""
    values = np.atleast_2d(np.asarray(values, np.float64))
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise InputError(
            f"a bootstrap needs finite values [cases] or [seeds, cases], found {list(values.shape)} with "
            f"{int((~np.isfinite(values)).sum())} not finite; leave such cases out of both methods"
        )
    return values


def _check_options(level: float, resamples: int) -> None:
    if not 0 < level < 1 or resamples < 1:
        raise InputError(f"level must lie in (0, 1) and resamples be 1 or more, found {level} and {resamples}")
