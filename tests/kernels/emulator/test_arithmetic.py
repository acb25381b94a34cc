"""Every instruction that computes, against Python's integers and fractions, or numpy."""

import math
from fractions import Fraction

import numpy as np
import pytest
from ptx_checks import evaluate

INTEGERS = {"u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64}
REGISTERS = {2: "b16", 4: "b32", 8: "b64"}
FLOATS = {"f32": np.float32, "f64": np.float64}


def integers(type_: str, number: int, seed: int) -> np.ndarray:
    """Of any size, small ones, and the ends of the range, [number]."""
    limits = np.iinfo(INTEGERS[type_])
    generator = np.random.default_rng(seed)
    values = generator.integers(limits.min, limits.max, number, dtype=limits.dtype, endpoint=True)
    values = np.where(generator.random(number) < 0.3, values % 11, values).astype(limits.dtype)
    values[:4] = generator.permutation(np.array([limits.min, limits.max, 0, 1], limits.dtype))
    return values


def floats(type_: str, number: int, seed: int) -> np.ndarray:
    """Of very different sizes, with zeros of both signs, infinities and NaN, [number]."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(number) * 2.0 ** generator.integers(-30, 30, number)
    values[:6] = generator.permutation([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0])
    return values.astype(FLOATS[type_])


def wrapped(value: int, dtype) -> np.ndarray:
    bits = 8 * np.dtype(dtype).itemsize
    return np.asarray(value % 2**bits, f"u{bits // 8}").view(dtype)


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else -1


EXACT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "div": quotient,
    "rem": lambda a, b: a - b * quotient(a, b) if b else a,
    "min": min,
    "max": max,
    "mad.lo": lambda a, b, c: a * b + c,
    "neg": lambda a: -a,
    "abs": abs,
}


@pytest.mark.parametrize("type_", INTEGERS)
@pytest.mark.parametrize("name", EXACT)
def test_integer_arithmetic_wraps_and_rounds_towards_zero(name, type_):
    number = EXACT[name].__code__.co_argcount if hasattr(EXACT[name], "__code__") else {"abs": 1}.get(name, 2)
    sources = [integers(type_, 32, seed) for seed in range(number)]
    places = ", ".join("{" + letter + "}" for letter in "dabc"[: number + 1])
    found = evaluate(f"{name}.{type_} {places}", REGISTERS[sources[0].itemsize], *sources)
    expected = [wrapped(EXACT[name](*map(int, values)), sources[0].dtype) for values in zip(*sources, strict=True)]
    np.testing.assert_array_equal(found.view(sources[0].dtype), expected)


@pytest.mark.parametrize("type_", INTEGERS)
def test_the_upper_half_of_a_product(type_):
    a, b = integers(type_, 32, 1), integers(type_, 32, 2)
    found = evaluate(f"mul.hi.{type_} {{d}}, {{a}}, {{b}}", REGISTERS[a.itemsize], a, b)
    upper = [int(x) * int(y) >> 8 * a.itemsize for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(found.view(a.dtype), [wrapped(p, a.dtype) for p in upper])
    c = integers(type_, 32, 3)
    found = evaluate(f"mad.hi.{type_} {{d}}, {{a}}, {{b}}, {{c}}", REGISTERS[a.itemsize], a, b, c)
    expected = [wrapped(p + int(z), a.dtype) for p, z in zip(upper, c, strict=True)]
    np.testing.assert_array_equal(found.view(a.dtype), expected)


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32"])
def test_products_of_twice_the_width(type_):
    wide = type_[0] + str(2 * int(type_[1:]))
    a, b, c = integers(type_, 32, 1), integers(type_, 32, 2), integers(wide, 32, 3)
    register = REGISTERS[c.itemsize]
    products = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    found = evaluate(f"mul.wide.{type_} {{d}}, {{a}}, {{b}}", register, a, b).view(c.dtype)
    np.testing.assert_array_equal(found, [wrapped(p, c.dtype) for p in products])
    found = evaluate(f"mad.wide.{type_} {{d}}, {{a}}, {{b}}, {{c}}", register, a, b, c).view(c.dtype)
    np.testing.assert_array_equal(found, [wrapped(p + int(z), c.dtype) for p, z in zip(products, c, strict=True)])


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize(
    ("name", "exact"), [("and", lambda a, b: a & b), ("or", lambda a, b: a | b), ("xor", lambda a, b: a ^ b)]
)
def test_logic_of_bits(name, exact, bits):
    a, b = integers(f"u{bits}", 32, 1), integers(f"u{bits}", 32, 2)
    found = evaluate(f"{name}.b{bits} {{d}}, {{a}}, {{b}}", f"b{bits}", a, b)
    np.testing.assert_array_equal(found, exact(a, b))
    np.testing.assert_array_equal(evaluate(f"not.b{bits} {{d}}, {{a}}", f"b{bits}", a), ~a)


def test_logic_of_predicates():
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    np.testing.assert_array_equal(evaluate("and.pred {d}, {a}, {b}", "pred", a, b), a & b)
    np.testing.assert_array_equal(evaluate("or.pred {d}, {a}, {b}", "pred", a, b), a | b)
    np.testing.assert_array_equal(evaluate("xor.pred {d}, {a}, {b}", "pred", a, b), a ^ b)
    np.testing.assert_array_equal(evaluate("not.pred {d}, {a}", "pred", a), ~a)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_by_more_than_the_width_leave_zeros_or_the_sign(bits):
    x = integers(f"u{bits}", 8, 4)
    by = np.array([0, 1, 5, bits - 1, bits, bits + 1, 255, 2**32 - 1], np.uint32)
    left = [wrapped(int(v) << int(n), x.dtype) if n < 256 else 0 for v, n in zip(x, by, strict=True)]
    np.testing.assert_array_equal(evaluate(f"shl.b{bits} {{d}}, {{a}}, {{b}}", f"b{bits}", x, by), left)
    right = [int(v) >> int(n) for v, n in zip(x, by, strict=True)]
    np.testing.assert_array_equal(evaluate(f"shr.u{bits} {{d}}, {{a}}, {{b}}", f"b{bits}", x, by), right)
    np.testing.assert_array_equal(evaluate(f"shr.b{bits} {{d}}, {{a}}, {{b}}", f"b{bits}", x, by), right)
    signed = x.view(f"i{bits // 8}")
    found = evaluate(f"shr.s{bits} {{d}}, {{a}}, {{b}}", f"b{bits}", x, by).view(signed.dtype)
    np.testing.assert_array_equal(found, [int(v) >> int(n) for v, n in zip(signed, by, strict=True)])


@pytest.mark.parametrize("type_", ["u32", "s32"])
def test_fields_of_bits(type_):
    x = integers(type_, 32, 5)
    start, length = np.arange(32, dtype=np.uint32), np.array([0, 1, 4, 32] * 8, np.uint32)

    def field(value, start, length):
        digits = [value >> min(start + i, 31 if type_ == "s32" else 99) & 1 for i in range(length)]
        number = sum(digit << i for i, digit in enumerate(digits))
        return number - (digits[-1] << length) if digits and type_ == "s32" else number

    expected = []
    for v, s, n in zip(x, start, length, strict=True):
        number = field(int(v), int(s), int(n))
        if type_ == "s32" and n and s + n > 32:  # the sign of the whole number fills what lies beyond
            number = int(v) >> int(s)
        expected.append(number)
    found = evaluate(f"bfe.{type_} {{d}}, {{a}}, {{b}}, {{c}}", "b32", x, start, length)
    np.testing.assert_array_equal(found.view(x.dtype), np.array(expected, x.dtype))


@pytest.mark.parametrize("type_", ["f32", "f64"])
@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("add", np.add),
        ("sub", np.subtract),
        ("mul", np.multiply),
        ("div.rn", np.divide),
        ("min", np.fmin),
        ("max", np.fmax),
    ],
)
def test_floating_point_is_that_of_ieee(name, exact, type_):
    a, b = floats(type_, 64, 1), floats(type_, 64, 2)
    found = evaluate(f"{name}.{type_} {{d}}, {{a}}, {{b}}", REGISTERS[a.itemsize], a, b)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(found.view(a.dtype), exact(a, b))


@pytest.mark.parametrize("type_", ["f32", "f64"])
@pytest.mark.parametrize(
    ("name", "exact"), [("neg", np.negative), ("abs", np.abs), ("sqrt.rn", np.sqrt), ("rcp.rn", np.reciprocal)]
)
def test_floating_point_of_one_number(name, exact, type_):
    a = floats(type_, 64, 3)
    found = evaluate(f"{name}.{type_} {{d}}, {{a}}", REGISTERS[a.itemsize], a)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(found.view(a.dtype), exact(a))


def test_the_lesser_of_zeros_is_the_negative_one_and_nan_goes_through_where_asked():
    a, b = np.array([0, -0.0, np.nan, 1], np.float32), np.array([-0.0, 0, 1, np.nan], np.float32)
    found = evaluate("min.f32 {d}, {a}, {b}", "b32", a, b).view(np.float32)
    assert np.signbit(found[:2]).all()
    assert (found[2:] == 1).all()
    assert np.isnan(evaluate("max.NaN.f32 {d}, {a}, {b}", "b32", a, b).view(np.float32)[2:]).all()
    assert np.isnan(evaluate("min.NaN.f32 {d}, {a}, {b}", "b32", a, b).view(np.float32)[2:]).all()


def rounded(exact: Fraction, digits: int) -> Fraction:
    """To so many binary digits, ties to even."""
    if exact == 0:
        return exact
    unit = Fraction(2) ** (math.floor(math.log2(abs(exact))) + 1 - digits)
    while abs(exact) >= unit * 2**digits:
        unit *= 2
    while abs(exact) < unit * 2 ** (digits - 1):
        unit /= 2
    return round(exact / unit) * unit  # Python rounds ties to even


@pytest.mark.parametrize(("type_", "digits"), [("f32", 24), ("f64", 53)])
def test_a_fused_multiply_add_rounds_once(type_, digits):
    a, b = floats(type_, 128, 1)[6:], floats(type_, 128, 2)[6:]
    c = (-a * b * np.array([1, 1 + 2.0**-20, 2.0**-30], a.dtype)[np.arange(len(a)) % 3]).astype(a.dtype)
    found = evaluate(f"fma.rn.{type_} {{d}}, {{a}}, {{b}}, {{c}}", REGISTERS[a.itemsize], a, b, c).view(a.dtype)
    twice = 0
    for x, y, z, w in zip(a, b, c, found, strict=True):
        expected = rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), digits)
        assert Fraction(float(w)) == expected, (x, y, z)
        twice += x * y + z != w
    assert twice > 20, "otherwise the numbers would not tell one rounding from two"


def test_a_fused_multiply_add_of_what_is_not_finite():
    a, b, c = (np.array(v, np.float32) for v in ([np.inf, 0, 1, np.nan], [1, np.inf, 1, 1], [-np.inf, 1, np.inf, 1]))
    for type_ in ("f32", "f64"):
        x = [v.astype(FLOATS[type_]) for v in (a, b, c)]
        found = evaluate(f"fma.rn.{type_} {{d}}, {{a}}, {{b}}, {{c}}", REGISTERS[x[0].itemsize], *x).view(x[0].dtype)
        np.testing.assert_array_equal(found, [np.nan, np.nan, np.inf, np.nan])


def test_subnormal_numbers_become_zeros_where_asked():
    tiny = np.array([1e-39, -1e-39, 1.5, 2e-38], np.float32)
    one = np.ones(4, np.float32)
    for word, flushed in (("", False), (".ftz", True)):
        found = evaluate(f"mul{word}.f32 {{d}}, {{a}}, {{b}}", "b32", tiny, one).view(np.float32)
        np.testing.assert_array_equal(found, np.where(flushed & (np.abs(tiny) < 2.0**-126), 0, tiny))
    halved = evaluate("mul.ftz.f32 {d}, {a}, {b}", "b32", tiny, one / 2).view(np.float32)
    assert halved[3] == 0, "the result is flushed too"


APPROXIMATE = {
    "ex2.approx": (np.exp2, 2.0**-22),
    "lg2.approx": (np.log2, 2.0**-22),
    "rcp.approx": (np.reciprocal, 2.0**-23),
    "sqrt.approx": (np.sqrt, 2.0**-23),
    "rsqrt.approx": (lambda x: 1 / np.sqrt(x), 2.0**-22.9),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_an_approximate_unit_is_wrong_within_its_bound(name):
    exact, bound = APPROXIMATE[name]
    x = np.random.default_rng(7).uniform(0.01, 60, 128).astype(np.float32)
    found = evaluate(f"{name}.f32 {{d}}, {{a}}", "b32", x).view(np.float32)
    true = exact(x.astype(np.float64))
    allowed = np.where((name == "lg2.approx") & (x >= 0.5) & (x <= 2), bound, bound * np.abs(true))
    assert (np.abs(found - true) <= allowed).all()
    assert (found != true.astype(np.float32)).mean() > 0.2, "an exact unit would hide that a kernel needs exactness"
    again = evaluate(f"{name}.f32 {{d}}, {{a}}", "b32", x[::-1].copy()).view(np.float32)
    np.testing.assert_array_equal(again[::-1], found)


def test_approximate_units_at_special_numbers():
    x = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1, 4, -3], np.float32)
    with np.errstate(all="ignore"):
        for name, exact in (("ex2", np.exp2), ("lg2", np.log2), ("rcp", np.reciprocal), ("sqrt", np.sqrt)):
            found = evaluate(f"{name}.approx.ftz.f32 {{d}}, {{a}}", "b32", x).view(np.float32)
            wanted = exact(x)
            sure = ~np.isfinite(wanted) | (wanted == np.rint(wanted)) | (np.frexp(wanted)[0] == 0.5)
            np.testing.assert_array_equal(found[sure], wanted[sure])


@pytest.mark.parametrize(("name", "exact"), [("rcp", np.reciprocal), ("rsqrt", lambda x: 1 / np.sqrt(x))])
def test_the_first_guess_of_a_float64_has_its_upper_half(name, exact):
    x = np.concatenate([np.random.default_rng(8).uniform(1e-3, 1e3, 64), [np.inf, 0.0, 1e-310, np.nan]])
    found = evaluate(f"{name}.approx.ftz.f64 {{d}}, {{a}}", "b64", x)
    assert not (found & np.uint64(0xFFFFFFFF)).any()
    guess = found.view(np.float64)
    assert (np.abs(guess[:64] * 1 / exact(x[:64]) - 1) < 2.0**-19).all()
    np.testing.assert_array_equal(guess[64:], [0, np.inf, np.inf, np.nan])


@pytest.mark.parametrize("word", ["full", "approx"])
def test_approximate_division(word):
    a, b = floats("f32", 64, 1)[6:], floats("f32", 64, 2)[6:]
    found = evaluate(f"div.{word}.f32 {{d}}, {{a}}, {{b}}", "b32", a, b).view(np.float32)
    true = a.astype(np.float64) / b
    assert (np.abs(found - true) <= 2.0**-22 * np.abs(true)).all()
    assert (found != true.astype(np.float32)).any()


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@pytest.mark.parametrize("type_", INTEGERS)
@pytest.mark.parametrize("word", COMPARISONS)
def test_comparison_of_integers(word, type_):
    a, b = integers(type_, 32, 1), integers(type_, 32, 2)
    b[::3] = a[::3]
    found = evaluate(f"setp.{word}.{type_} {{d}}, {{a}}, {{b}}", "pred", a, b)
    np.testing.assert_array_equal(found, COMPARISONS[word](a, b))


@pytest.mark.parametrize("type_", ["f32", "f64"])
@pytest.mark.parametrize("word", COMPARISONS)
def test_comparison_of_floats_is_false_for_nan_or_true_where_asked(word, type_):
    a, b = floats(type_, 64, 1), floats(type_, 64, 2)
    b[::3] = a[::3]
    nan = np.isnan(a) | np.isnan(b)
    for suffix, of_nan in (("", False), ("u", True)):
        found = evaluate(f"setp.{word}{suffix}.{type_} {{d}}, {{a}}, {{b}}", "pred", a, b)
        np.testing.assert_array_equal(found, np.where(nan, of_nan, COMPARISONS[word](a, b)))
    np.testing.assert_array_equal(evaluate(f"setp.nan.{type_} {{d}}, {{a}}, {{b}}", "pred", a, b), nan)
    np.testing.assert_array_equal(evaluate(f"setp.num.{type_} {{d}}, {{a}}, {{b}}", "pred", a, b), ~nan)


def test_comparison_of_bfloat16():
    numbers = np.array([1.0, -2.0, 0.5, np.nan], np.float32)
    bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    zero = np.zeros(4, np.uint16)
    np.testing.assert_array_equal(
        evaluate("setp.le.bf16 {d}, {a}, {b}", "pred", bits, zero), [False, True, False, False]
    )  # fmt: skip


@pytest.mark.parametrize("word", ["and", "or", "xor"])
def test_a_comparison_joined_with_a_predicate(word):
    a, b = np.array([1, 1, 2, 2], np.int32), np.array([1, 1, 1, 1], np.int32)
    c = np.array([True, False, True, False])
    join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[word]
    np.testing.assert_array_equal(
        evaluate(f"setp.eq.{word}.s32 {{d}}, {{a}}, {{b}}, {{c}}", "pred", a, b, c), join(a == b, c)
    )


@pytest.mark.parametrize("source", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("result", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_conversion_between_integers_keeps_low_bits_or_extends_the_sign(result, source):
    x = integers(source, 32, 1)
    found = evaluate(f"cvt.{result}.{source} {{d}}, {{a}}", REGISTERS[np.dtype(INTEGERS[result]).itemsize], x)
    expected = [wrapped(int(v), INTEGERS[result]) for v in x]
    np.testing.assert_array_equal(found.view(INTEGERS[result]), expected)


def test_conversion_of_bytes_within_wider_registers():
    x = np.array([0x12FF, 0x0080, 0x007F, 0xFF01], np.uint16)
    np.testing.assert_array_equal(
        evaluate("cvt.s16.s8 {d}, {a}", "b16", x), np.array([0xFFFF, 0xFF80, 0x7F, 1], np.uint16)
    )
    np.testing.assert_array_equal(evaluate("cvt.u16.u8 {d}, {a}", "b16", x), np.array([0xFF, 0x80, 0x7F, 1], np.uint16))
    np.testing.assert_array_equal(
        evaluate("cvt.s8.s32 {d}, {a}", "b32", np.array([0x1FF, 0x80], np.uint32)), np.array([2**32 - 1, 0xFFFFFF80])
    )


@pytest.mark.parametrize("result", ["f32", "f64"])
@pytest.mark.parametrize("source", ["s16", "u32", "s32", "u64", "s64"])
def test_conversion_from_integers(result, source):
    x = integers(source, 32, 1)
    dtype = FLOATS[result]
    found = evaluate(f"cvt.rn.{result}.{source} {{d}}, {{a}}", REGISTERS[np.dtype(dtype).itemsize], x)
    np.testing.assert_array_equal(found.view(dtype), x.astype(dtype))


@pytest.mark.parametrize(
    ("word", "round_"), [("rzi", math.trunc), ("rni", round), ("rmi", math.floor), ("rpi", math.ceil)]
)
@pytest.mark.parametrize("result", ["s32", "u32", "s64"])
def test_conversion_to_integers_ends_at_the_range_and_takes_nan_for_zero(word, round_, result):
    x = np.array([0.5, 1.5, -1.5, -0.5, 2.5, 1e30, -1e30, np.inf, -np.inf, np.nan, 2e9, 3e9], np.float32)
    found = evaluate(f"cvt.{word}.{result}.f32 {{d}}, {{a}}", REGISTERS[np.dtype(INTEGERS[result]).itemsize], x)
    limits = np.iinfo(INTEGERS[result])

    def clamped(v):
        if math.isnan(v):
            return 0
        return int(min(max(v if math.isinf(v) else round_(v), limits.min), limits.max))

    expected = [clamped(float(v)) for v in x]
    np.testing.assert_array_equal(found.view(INTEGERS[result]), np.array(expected, INTEGERS[result]))


def test_conversion_between_floats():
    x = floats("f64", 64, 1)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(
            evaluate("cvt.rn.f32.f64 {d}, {a}", "b32", x).view(np.float32), x.astype(np.float32)
        )
        half = x.astype(np.float32).astype(np.float16)
        found = evaluate("cvt.rn.f16.f32 {d}, {a}", "b16", x.astype(np.float32)).view(np.float16)
    np.testing.assert_array_equal(found, half)
    np.testing.assert_array_equal(
        evaluate("cvt.f32.f16 {d}, {a}", "b32", half).view(np.float32), half.astype(np.float32)
    )
    single = x.astype(np.float32)
    np.testing.assert_array_equal(
        evaluate("cvt.f64.f32 {d}, {a}", "b64", single).view(np.float64), single.astype(np.float64)
    )
    found = evaluate("cvt.rni.f32.f32 {d}, {a}", "b32", single).view(np.float32)
    np.testing.assert_array_equal(found, np.rint(single))


def nearest_bfloat16(x: np.ndarray) -> np.ndarray:
    """By PyTorch, float32 to the bits of bfloat16."""
    import torch

    return torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def test_bfloat16_is_rounded_as_pytorch_rounds_it():
    x = floats("f32", 96, 5)
    x[-8:] = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.3e38, 3.4e38, 1e-40, -1e-40, 2.0**-133, 1], np.float32)
    expected = nearest_bfloat16(x)
    finite = ~np.isnan(x)
    found = evaluate("cvt.rn.bf16.f32 {d}, {a}", "b16", x)
    np.testing.assert_array_equal(found[finite], expected[finite])
    assert np.isnan((found[~finite].astype(np.uint32) << 16).view(np.float32)).all()
    wide = evaluate("cvt.f64.bf16 {d}, {a}", "b64", expected).view(np.float64)
    np.testing.assert_array_equal(
        wide, (expected.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    )
    back = evaluate("cvt.f32.bf16 {d}, {a}", "b32", expected)
    np.testing.assert_array_equal(back, expected.astype(np.uint32) << 16)
    pair = evaluate("cvt.rn.bf16x2.f32 {d}, {a}, {b}", "b32", x[finite], x[finite][::-1].copy())
    np.testing.assert_array_equal(pair >> 16, expected[finite])
    np.testing.assert_array_equal(pair & 0xFFFF, expected[finite][::-1])
    pair = evaluate("cvt.rn.f16x2.f32 {d}, {a}, {b}", "b32", x[finite], x[finite][::-1].copy())
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(pair >> 16, x[finite].astype(np.float16).view(np.uint16))
