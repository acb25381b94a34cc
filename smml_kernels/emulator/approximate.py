"""The approximate units of a GPU: results that are wrong in the last digits, as wrong as NVIDIA's manual allows.

Which error a GPU makes is not documented, its bound is. Here the error is drawn from the bits of the argument, so that
the same argument always gives the same result; a kernel whose tests pass does not lean on digits that nobody promises.
"""

from collections.abc import Callable

import numpy as np

# Relative bounds, from the PTX manual's "floating point instructions".
_BOUNDS = {"ex2": 2.0**-22, "lg2": 2.0**-22, "rcp": 2.0**-23, "sqrt": 2.0**-23, "rsqrt": 2.0**-22.9, "div": 2.0**-22}
_SMALLEST_NORMAL = np.float32(2.0**-126)


def flushed(x: np.ndarray) -> np.ndarray:
    """Subnormal numbers as zeros of their sign, as under ``.ftz``; float32 [T]."""
    return np.where(np.abs(x) < _SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def _off(exact: np.ndarray, bound: float | np.ndarray, argument: np.ndarray) -> np.ndarray:
    """``exact`` in float64, wrong by up to ``bound`` and rounded to float32."""
    bits = np.ascontiguousarray(argument, np.float32).view(np.uint32)
    mixed = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x7FEB352D)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x846CA68B)
    share = (mixed ^ (mixed >> np.uint32(16))).astype(np.float64) * 2.0**-31 - 1  # in [-1, 1]
    # Rounding costs up to 2^-24 more: the sum stays inside the bound.
    return (exact * (1 + share * (bound - 2.0**-24))).astype(np.float32)


def _exact_where(exact: np.ndarray, certain: np.ndarray, approximate: np.ndarray) -> np.ndarray:
    return np.where(certain | ~np.isfinite(exact), exact.astype(np.float32), approximate)


def _ex2(x: np.ndarray) -> np.ndarray:
    exact = np.exp2(x.astype(np.float64))
    return _exact_where(exact, x == np.rint(x), _off(exact, _BOUNDS["ex2"], x))


def _lg2(x: np.ndarray) -> np.ndarray:
    exact = np.log2(x.astype(np.float64))
    # Beside 1, where the logarithm goes through 0, the bound is an absolute one.
    relative = np.where(
        (x >= 0.5) & (x <= 2) & (exact != 0), np.minimum(_BOUNDS["lg2"] / np.abs(exact), 1), _BOUNDS["lg2"]
    )
    return _exact_where(exact, exact == np.rint(exact), _off(exact, relative, x))


def _rcp(x: np.ndarray) -> np.ndarray:
    exact = 1 / x.astype(np.float64)
    return _exact_where(exact, np.abs(np.frexp(x)[0]) == 0.5, _off(exact, _BOUNDS["rcp"], x))


def _sqrt(x: np.ndarray) -> np.ndarray:
    exact = np.sqrt(x.astype(np.float64))
    return _exact_where(exact, exact == 0, _off(exact, _BOUNDS["sqrt"], x))


def _rsqrt(x: np.ndarray) -> np.ndarray:
    exact = 1 / np.sqrt(x.astype(np.float64))
    return _exact_where(exact, exact == 0, _off(exact, _BOUNDS["rsqrt"], x))


def divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x / y within two units of the last place; exact for a power of two; 0 for |y| in (2^126, 2^128)."""
    exact = x.astype(np.float64) / y.astype(np.float64)
    certain = (np.abs(np.frexp(y)[0]) == 0.5) | (exact == 0)
    result = _exact_where(exact, certain, _off(exact, _BOUNDS["div"], x * np.float32(3) + y))
    huge = (np.abs(y) > np.float32(2.0**126)) & np.isfinite(y)
    return np.where(huge, np.where(np.isinf(x), np.float32(np.nan), np.copysign(np.float32(0), result)), result)


def _upper(x: np.ndarray) -> np.ndarray:
    """A float64 without the lower 32 bits, and without subnormal numbers."""
    kept = (np.ascontiguousarray(x, np.float64).view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    return np.where(np.abs(x) < np.finfo(np.float64).tiny, np.copysign(0.0, x), kept)


def _rcp64(x: np.ndarray) -> np.ndarray:
    """A first guess of 1 / x: the unit sees and gives the upper 32 bits of a float64, 20 digits of it."""
    return _upper(1 / _upper(x))


def _rsqrt64(x: np.ndarray) -> np.ndarray:
    """The same of 1 / sqrt(x)."""
    return _upper(1 / np.sqrt(_upper(x)))


# Of float64, in which they are always ``.approx.ftz``.
UNITS64: dict[str, Callable[[np.ndarray], np.ndarray]] = {"rcp": _rcp64, "rsqrt": _rsqrt64}
UNITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ex2": _ex2,
    "lg2": _lg2,
    "rcp": _rcp,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
}
