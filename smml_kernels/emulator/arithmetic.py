"""Instructions that compute a number of each thread from numbers of the same thread: one table for each kind.

:func:`find` looks an opcode up. What a table lacks, the emulator lacks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from smml_kernels.emulator import approximate
from smml_kernels.emulator.faults import NotModelled
from smml_kernels.emulator.operands import BITS, FLOATS, SIGNED, dtype_of
from smml_kernels.emulator.ptx import WIDTHS

Compute = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Operation:
    """What an opcode computes.

    Attributes:
        result: type of the result.
        sources: types of the arguments.
        compute: from arguments [T] (or scalars) to the result.
    """

    result: str
    sources: tuple[str, ...]
    compute: Compute


def find(opcode: str) -> Operation | None:
    """The operation of an opcode such as ``add.s32``; None if it is of another kind.

    Raises:
        NotModelled: an opcode of this kind that the tables lack.
    """
    name, *modifiers = opcode.split(".")
    if name not in _FINDERS:
        return None
    found = _FINDERS[name](name, tuple(modifiers))
    if found is None:
        raise NotModelled(f"the form {opcode}")
    return found


# Integers -------------------------------------------------------------------------------------------------------------


def _divided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The quotient, rounded towards zero; all bits set for a divisor of zero."""
    quotient = np.floor_divide(x, y)
    if np.asarray(x).dtype.kind == "i":
        quotient = quotient + ((np.remainder(x, y) != 0) & ((x < 0) != (y < 0))).astype(quotient.dtype)
    return np.where(y == 0, np.asarray(-1, np.int64).astype(quotient.dtype), quotient)


def _remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What division leaves, with the sign of the dividend; the dividend for a divisor of zero."""
    return np.where(y == 0, x, x - _divided(x, y) * y)


def _high(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The upper half of a product."""
    dtype = np.asarray(x).dtype
    if dtype.itemsize == 8:
        numbers = np.broadcast_arrays(x, y)
        product = numbers[0].astype(object) * numbers[1].astype(object)
        upper = (product >> 64) & (2**64 - 1)
        return upper.astype(np.uint64).view(dtype)
    wide = (SIGNED if dtype.kind == "i" else BITS)[2 * dtype.itemsize]
    return (np.multiply(x, y, dtype=wide) >> wide.type(8 * dtype.itemsize)).astype(dtype)


def _wide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dtype = np.asarray(x).dtype
    return np.multiply(x, y, dtype=(SIGNED if dtype.kind == "i" else BITS)[2 * dtype.itemsize])


_INTEGER: dict[str, Compute] = {
    "add": np.add,
    "sub": np.subtract,
    "mul.lo": np.multiply,
    "mul.hi": _high,
    "mul.wide": _wide,
    "mad.lo": lambda x, y, z: x * y + z,
    "mad.hi": lambda x, y, z: _high(x, y) + z,
    "mad.wide": lambda x, y, z: _wide(x, y) + z,
    "div": _divided,
    "rem": _remainder,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
}


def _integer(key: str, type_: str) -> Operation | None:
    compute = _INTEGER.get(key)
    if compute is None or type_ not in ("u16", "s16", "u32", "s32", "u64", "s64"):
        return None
    if key in ("neg", "abs"):
        return Operation(type_, (type_,), compute)
    result = type_
    if key.endswith(".wide"):
        result = f"{type_[0]}{16 * WIDTHS[type_]}"
        if result not in WIDTHS:
            return None
    return Operation(result, (type_, type_, result) if key.startswith("mad") else (type_, type_), compute)


# Floating point -------------------------------------------------------------------------------------------------------


def _two_sum(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x + y rounded, and what rounding took; float64."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def _to_odd(total: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """``total + rest`` rounded to odd: rounded once more, to a shorter format, it is rounded right."""
    bits = total.view(np.int64)
    # Where the sum is not exact and its last bit is even, the neighbour on the side of the rest is odd.
    step = np.where((rest > 0) == (total > 0), 1, -1)
    return np.where((rest != 0) & (bits & 1 == 0) & np.isfinite(total), bits + step, bits).view(np.float64)


def _fma32(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x y + z with one rounding, float32: the product is exact in float64."""
    product = np.asarray(np.multiply(x, y, dtype=np.float64))
    return _to_odd(*_two_sum(product, np.asarray(z, np.float64))).astype(np.float32)


def _halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A float64 as the sum of two with half of its digits."""
    scaled = x * (2.0**27 + 1)
    upper = scaled - (scaled - x)
    return upper, x - upper


def _fma64(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x y + z with one rounding, float64 (Boldo and Melquiond); two roundings where its parts would overflow."""
    x, y, z = (np.asarray(value) for value in (x, y, z))
    plain = x * y + z
    (a, b), (c, d) = _halves(x), _halves(y)
    upper = x * y
    lower = b * d - (((upper - a * c) - b * c) - a * d)
    high, low = _two_sum(z, lower)
    total, rest = _two_sum(upper, high)
    middle, error = _two_sum(low, rest)
    fused = total + _to_odd(np.asarray(middle), np.asarray(error))
    safe = (np.abs(x) < 1e150) & (np.abs(y) < 1e150) & (np.abs(z) < 1e300) & ((np.abs(upper) > 1e-280) | (upper == 0))
    return np.where(safe & (upper != 0), fused, plain)


def _minimum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where((x == y) & np.signbit(x), x, np.fmin(x, y))  # -0 is less than 0


def _maximum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where((x == y) & ~np.signbit(x), x, np.fmax(x, y))


_FLOAT: dict[str, Compute] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": _minimum,
    "max": _maximum,
    "min.NaN": lambda x, y: np.where(np.isnan(x) | np.isnan(y), np.float32(np.nan), _minimum(x, y)),
    "max.NaN": lambda x, y: np.where(np.isnan(x) | np.isnan(y), np.float32(np.nan), _maximum(x, y)),
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
}


def _float(name: str, modifiers: tuple[str, ...], type_: str) -> Operation | None:
    """``name[.rn|.approx|.full][.NaN][.ftz].f32`` or ``.f64``; other roundings are not modelled."""
    words = set(modifiers[:-1])
    if type_ == "f64" and words == {"approx", "ftz"} and name in approximate.UNITS64:
        return Operation(type_, (type_,), approximate.UNITS64[name])
    nan = ".NaN" if "NaN" in words else ""
    if words - {"rn", "approx", "full", "ftz", "NaN"} or (type_ == "f64" and words - {"rn"}):
        return None
    arguments = 2
    if "approx" in words or "full" in words:
        compute: Compute | None = approximate.divide if name == "div" else approximate.UNITS.get(name)
    elif name == "fma":
        compute = _fma32 if type_ == "f32" else _fma64
    else:
        compute = _FLOAT.get(name + nan)
    if compute is None:
        return None
    if name == "fma":
        arguments = 3
    elif name in ("neg", "abs", *approximate.UNITS):
        arguments = 1
    if "ftz" in words:
        compute = _flushing(compute)
    return Operation(type_, (type_,) * arguments, compute)


def _flushing(compute: Compute) -> Compute:
    return lambda *values: approximate.flushed(compute(*map(approximate.flushed, values)))


def _number(name: str, modifiers: tuple[str, ...]) -> Operation | None:
    type_ = modifiers[-1]
    if type_ in ("f32", "f64"):
        return _float(name, modifiers, type_)
    return _integer(".".join((name, *modifiers[:-1])), type_)


# Bits -----------------------------------------------------------------------------------------------------------------

_LOGICAL: dict[str, Compute] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.bitwise_not,
}


def _logical(name: str, modifiers: tuple[str, ...]) -> Operation | None:
    (type_,) = modifiers
    if type_ not in ("pred", "b16", "b32", "b64"):
        return None
    return Operation(type_, (type_,) * (1 if name == "not" else 2), _LOGICAL[name])


def _shift(name: str, modifiers: tuple[str, ...]) -> Operation | None:
    (type_,) = modifiers
    bits = 8 * WIDTHS.get(type_, 0)
    if bits < 16 or type_[0] not in ("b" if name == "shl" else "bus"):
        return None
    dtype = dtype_of(type_)

    def compute(x: np.ndarray, by: np.ndarray) -> np.ndarray:
        within = np.minimum(by, bits - 1).astype(dtype)
        if name == "shl":
            return np.where(by < bits, np.left_shift(x, within), dtype.type(0))
        return np.where((by < bits) | (dtype.kind == "i"), np.right_shift(x, within), dtype.type(0))

    return Operation(type_, (type_, "u32"), compute)


def _bit_field(name: str, modifiers: tuple[str, ...]) -> Operation | None:
    """``bfe``: so many bits from a place, extended by zeros or by the sign."""
    (type_,) = modifiers
    if type_ not in ("u32", "s32"):
        return None

    def compute(x: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        start, length = start.astype(np.int64) & 255, length.astype(np.int64) & 255
        # Beyond bit 31 a signed number has its sign, an unsigned one zeros: what int64 has there.
        field = (np.asarray(x).astype(np.int64) >> np.minimum(start, 63)) & ((1 << np.minimum(length, 62)) - 1)
        if type_ == "s32":
            top = np.where(length == 0, 0, np.asarray(x).astype(np.int64) >> np.minimum(start + length - 1, 31) & 1)
            field = field - (top << np.minimum(length, 62))
        return field.astype(dtype_of(type_))

    return Operation(type_, (type_, "u32", "u32"), compute)


# Comparison -----------------------------------------------------------------------------------------------------------

_ORDERED: dict[str, Compute] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def _comparison(word: str, type_: str) -> Compute | None:
    """Of numbers; with floating point, ``equ`` and its like are true where one is NaN, and ``eq`` false."""
    if type_ not in FLOATS:
        return _ORDERED.get(_UNSIGNED.get(word, word) if type_[0] == "u" else word)
    if word in ("num", "nan"):
        return lambda x, y: (np.isnan(x) | np.isnan(y)) == (word == "nan")
    ordered, unordered = _ORDERED.get(word), _ORDERED.get(word.removesuffix("u"))
    if word.endswith("u") and unordered is not None:
        return lambda x, y: unordered(x, y) | np.isnan(x) | np.isnan(y)
    if ordered is None:
        return None
    return lambda x, y: ordered(x, y) & ~np.isnan(x) & ~np.isnan(y)


def _seen_as(form: Compute, compute: Compute) -> Compute:
    return lambda x, y: compute(form(x), form(y))


def _compare(name: str, modifiers: tuple[str, ...]) -> Operation | None:
    """``setp.lt[.and|.or|.xor][.ftz].f32``."""
    type_, words = modifiers[-1], [word for word in modifiers[1:-1] if word != "ftz"]
    if type_ in ("f16x2", "bf16x2") or type_ not in WIDTHS or len(words) > 1:
        return None
    compute = _comparison(modifiers[0], "f32" if type_ == "bf16" else type_)
    if type_ == "bf16" and compute is not None:
        compute = _seen_as(from_bfloat16, compute)
    if compute is None or (type_ in ("b16", "b32", "b64") and modifiers[0] not in ("eq", "ne")):
        return None
    if "ftz" in modifiers:
        compute = _seen_as(approximate.flushed, compute)
    if not words:
        return Operation("pred", (type_, type_), compute)
    if words[0] not in ("and", "or", "xor"):
        return None
    join = _LOGICAL[words[0]]
    return Operation("pred", (type_, type_, "pred"), lambda x, y, p: join(compute(x, y), p))


# Conversion -----------------------------------------------------------------------------------------------------------

_TO_INTEGER: dict[str, Compute] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even; float32 to uint16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """uint16 to float32."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _to_half(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), np.uint16(0x7FFF), np.asarray(x).astype(np.float16).view(np.uint16))


def to_integer(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A whole floating-point number as an integer: beyond the range the nearest one, 0 for NaN."""
    limits = np.iinfo(dtype)
    inside = (x > limits.min) & (x < limits.max)
    result = np.where(inside, x, 0).astype(dtype)
    return np.where(inside | np.isnan(x), result, np.where(x > 0, limits.max, limits.min).astype(dtype))


def _convert(name: str, modifiers: tuple[str, ...]) -> Operation | None:
    *words, result, source = modifiers
    flush = "ftz" in words
    words = [word for word in words if word != "ftz"]
    halves = {"f16x2": _to_half, "bf16x2": to_bfloat16}.get(result)
    if halves is not None:
        if words != ["rn"] or source != "f32":
            return None
        return Operation(
            "b32", ("f32", "f32"), lambda x, y: halves(x).astype(np.uint32) << np.uint32(16) | halves(y)
        )  # fmt: skip
    compute = _conversion(words, result, source)
    if compute is None:
        return None
    if flush and "f32" in (result, source):
        plain, before, after = compute, source == "f32", result == "f32"

        def compute(x: np.ndarray) -> np.ndarray:
            y = plain(approximate.flushed(x) if before else x)
            return approximate.flushed(y) if after else y

    return Operation(result, (source,), compute)


def _conversion(words: list[str], result: str, source: str) -> Compute | None:
    if result not in WIDTHS or source not in WIDTHS or "pred" in (result, source):
        return None
    if source == "bf16":
        if result not in ("f32", "f64") or words:
            return None
        return from_bfloat16 if result == "f32" else lambda x: from_bfloat16(x).astype(np.float64)
    if result == "bf16":
        return to_bfloat16 if source == "f32" and words == ["rn"] else None
    dtype = dtype_of(result)
    if result in FLOATS and source in FLOATS:
        if words and words[0] in _TO_INTEGER and result == source:
            return _TO_INTEGER[words[0]]
        narrower = WIDTHS[result] < WIDTHS[source]
        return (lambda x: np.asarray(x).astype(dtype)) if words == (["rn"] if narrower else []) else None
    if result in FLOATS:
        return (lambda x: np.asarray(x).astype(dtype)) if words == ["rn"] and source[0] in "us" else None
    if source in FLOATS:
        if len(words) != 1 or words[0] not in _TO_INTEGER or result[0] not in "us":
            return None
        whole = _TO_INTEGER[words[0]]
        return lambda x: to_integer(whole(np.asarray(x).astype(np.float64)), dtype)
    return (lambda x: np.asarray(x).astype(dtype)) if not words and result[0] in "us" and source[0] in "us" else None


_FINDERS: dict[str, Callable[[str, tuple[str, ...]], Operation | None]] = {
    **dict.fromkeys(("add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max", "neg", "abs"), _number),
    **dict.fromkeys(("sqrt", "rsqrt", "rcp", "ex2", "lg2"), _number),
    **dict.fromkeys(_LOGICAL, _logical),
    "shl": _shift,
    "shr": _shift,
    "bfe": _bit_field,
    "setp": _compare,
    "cvt": _convert,
}
