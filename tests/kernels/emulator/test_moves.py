"""Every instruction that moves values, against the manual's words written as loops."""

import numpy as np
import pytest
from ptx_checks import evaluate, execute

POINTERS = """
    mov.u32 %r0, %tid.x;
    cvt.u64.u32 %d0, %r0;
    ld.param.b64 %d1, [x];
    ld.param.b64 %d2, [y];
"""


def pointers(of_x: int, of_y: int) -> str:
    """%d3 and %d4 point to so many bytes of x and y for each thread, %r1 is so much of shared memory as of y."""
    return (
        POINTERS + f"mad.lo.s64 %d3, %d0, {of_x}, %d1; mad.lo.s64 %d4, %d0, {of_y}, %d2; mul.lo.s32 %r1, %r0, {of_y};"
    )


@pytest.mark.parametrize(
    ("form", "registers", "width"),
    [
        ("b8", "%h1", 1), ("b16", "%h1", 2), ("b32", "%r3", 4), ("b64", "%d5", 8), ("v2.b32", "{ %r3, %r4 }", 8),
        ("v4.b32", "{%r3, %r4, %r5, %r6}", 16), ("v2.b64", "{%d5, %d6}", 16), ("v4.b16", "{%h1, %h2, %h3, %h4}", 8),
        ("v2.b8", "{%h1, %h2}", 2),
    ],
)  # fmt: skip
def test_loads_and_stores_of_every_width_through_global_and_shared_memory(form, registers, width):
    x = np.random.default_rng(1).integers(0, 256, 64 * width, dtype=np.uint8)
    y = np.zeros_like(x)
    body = f"""
        {pointers(width, width)}
        ld.global.{form} {registers}, [%d3 + 0];
        st.shared.{form} [%r1], {registers};
        ld.shared.{form} {registers}, [%r1];
        st.global.{form} [%d4], {registers};
    """
    counts = execute(body, 64, shared=64 * 16, x=x, y=y)
    np.testing.assert_array_equal(y, x)
    assert counts.bytes_read == counts.bytes_written == x.nbytes


def test_words_about_caches_change_nothing():
    x, y = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    body = (
        pointers(4, 4)
        + """
        ld.global.nc.L1::evict_last.b32 %r2, [%d3];
        st.global.cs.b32 [%d4], %r2;
    """
    )
    execute(body, x=x, y=y)
    np.testing.assert_array_equal(y, x)


def test_small_numbers_are_extended_in_wider_registers():
    x, y = np.array([0x80] * 32, np.uint8), np.zeros((32, 2), np.uint32)
    execute(
        pointers(1, 8) + "ld.global.s8 %r3, [%d3]; ld.global.u8 %r4, [%d3]; st.global.v2.b32 [%d4], {%r3, %r4};",
        x=x,
        y=y,
    )
    assert (y == [0xFFFFFF80, 0x80]).all()


def test_a_negative_offset_and_a_predicate():
    x, y = np.arange(33, dtype=np.uint32), np.full(32, 7, np.uint32)
    body = (
        pointers(4, 4)
        + """
        setp.lt.u32 %p1, %r0, 5;
        add.s64 %d3, %d3, 8;
        mov.b32 %r2, 0;
        @%p1 ld.global.b32 %r2, [%d3 + -4];
        @!%p1 st.global.b32 [%d4], %r2;
        @%p1 st.global.b32 [%d4], {%r2};
    """
    )
    execute(body, x=x, y=y)
    np.testing.assert_array_equal(y, np.where(np.arange(32) < 5, np.arange(32) + 1, 0))


def test_parameters_by_name_by_offset_and_by_address():
    x, y = np.zeros(32, np.uint64), np.zeros((32, 2), np.uint64)
    body = (
        pointers(8, 16)
        + """
        ld.param.v2.b32 {%r2, %r3}, [x];
        mov.b64 %d5, {%r2, %r3};
        mov.b64 %d6, x;
        mov.b64 %d7, y;
        setp.lt.u32 %p1, %r0, 7;
        selp.b64 %d6, %d6, %d7, %p1;
        ld.param.b64 %d7, [%d6];
        st.global.v2.b64 [%d4], {%d5, %d7};
    """
    )
    execute(body, x=x, y=y)
    assert (y[:, 0] == x.ctypes.data).all()
    np.testing.assert_array_equal(y[:, 1], np.where(np.arange(32) < 7, x.ctypes.data, y.ctypes.data))


def test_parts_of_a_number_the_lowest_first():
    x = np.arange(32, dtype=np.uint64) * np.uint64(0x0123456789)
    found = evaluate("mov.b64 {{%r11, %r12}}, {a}; mov.b64 {d}, {{%r12, %r11}}", "b64", x)
    np.testing.assert_array_equal(found, x << np.uint64(32) | x >> np.uint64(32))
    x = x.astype(np.uint32)
    found = evaluate("mov.b32 {{%h1, %h2}}, {a}; mov.b32 {d}, {{%h2, %h1}}", "b32", x)
    np.testing.assert_array_equal(found, x << np.uint32(16) | x >> np.uint32(16))


def test_bytes_are_chosen_from_two_words_or_are_a_sign():
    a, b = np.array([0x83020100] * 6, np.uint32), np.array([0x07060584] * 6, np.uint32)
    choice = np.array([0x3210, 0x7654, 0x0123, 0x7773, 0xB8C3, 0x1111], np.uint32)
    found = evaluate("prmt.b32 {d}, {a}, {b}, {c}", "b32", a, b, choice)
    expected = [0x83020100, 0x07060584, 0x00010283, 0x07070783, 0xFF00FF83, 0x01010101]
    np.testing.assert_array_equal(found, np.array(expected, np.uint32))


@pytest.mark.parametrize("type_", ["b16", "b32", "b64", "f32", "s32"])
def test_selection(type_):
    bits = int(type_[1:])
    a = np.random.default_rng(6).integers(0, 256, bits, np.uint8).view(f"u{bits // 8}")
    b, c = a[::-1].copy(), np.arange(8) % 3 == 0
    found = evaluate(f"selp.{type_} {{d}}, {{a}}, {{b}}, {{c}}", f"b{bits}", a, b, c)
    np.testing.assert_array_equal(found, np.where(c, a, b))


def test_constants():
    none = np.zeros(4, np.uint32)
    for text, expected in (("0f3F800000", 1.0), ("0fFF800000", -np.inf)):
        assert (evaluate(f"mov.b32 {{d}}, {text}", "b32", none).view(np.float32) == expected).all()
    assert (evaluate("mov.b64 {d}, 0d3FF8000000000000", "b64", none).view(np.float64) == 1.5).all()
    assert (evaluate("mov.b64 {d}, -2", "b64", none).view(np.int64) == -2).all()
    assert (evaluate("mov.u32 {d}, 0xFFFFFFFE", "b32", none) == 2**32 - 2).all()
    assert evaluate("mov.pred {d}, -1", "pred", none).all()


def origin(mode: str, lane: int, by: int, clamp: int, segments: int) -> tuple[int, bool]:
    """The manual's pseudocode of shfl.sync: which thread the value comes from, and the predicate."""
    most = (lane & segments) | (clamp & ~segments)
    least = lane & segments
    if mode == "up":
        source, inside = lane - by, lane - by >= most
    elif mode == "down":
        source, inside = lane + by, lane + by <= most
    elif mode == "bfly":
        source, inside = lane ^ by, lane ^ by <= most
    else:
        source = least | (by & ~segments)
        inside = source <= most
    return (source if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("by", [1, 5, 16])
@pytest.mark.parametrize("limits", [31, 0, 0x1807, 0x1C1F])
def test_values_of_other_threads_of_a_warp(mode, by, limits):
    x, y = np.random.default_rng(2).integers(0, 2**32, 64, dtype=np.uint32), np.zeros((64, 2), np.uint32)
    body = (
        pointers(4, 8)
        + f"""
        ld.global.b32 %r2, [%d3];
        shfl.sync.{mode}.b32 %r3|%p1, %r2, {by}, {limits}, -1;
        selp.b32 %r4, 1, 0, %p1;
        st.global.v2.b32 [%d4], {{%r3, %r4}};
    """
    )
    execute(body, 64, x=x, y=y)
    for thread in range(64):
        source, inside = origin(mode, thread % 32, by, limits & 31, limits >> 8)
        assert y[thread].tolist() == [x[thread // 32 * 32 + source], inside], thread


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_of_sixteen_bits_through_shared_memory(count, transposed):
    """Row r of matrix i is where thread 8 i + r points; thread t gets of row t // 4 columns 2 (t % 4) and the next."""
    x = np.random.default_rng(3).integers(0, 2**16, (2, 4, 8, 8), dtype=np.uint16)  # [warp, matrix, row, column]
    y = np.zeros((64, 4), np.uint32)
    registers = ", ".join(f"%r{10 + i}" for i in range(count))
    body = f"""
        {pointers(16, 16)}
        mov.b32 %r10, 0; mov.b32 %r11, 0; mov.b32 %r12, 0; mov.b32 %r13, 0;
        ld.global.v4.b32 {{%r2, %r3, %r4, %r5}}, [%d3];
        st.shared.v4.b32 [%r1], {{%r2, %r3, %r4, %r5}};
        ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{registers}}}, [%r1];
        st.global.v4.b32 [%d4], {{%r10, %r11, %r12, %r13}};
    """
    execute(body, 64, shared=1024, x=x.reshape(64, 8), y=y)
    halves = y.view(np.uint16).reshape(2, 32, 4, 2)
    for warp in range(2):
        for thread in range(32):
            for matrix in range(count):
                for half in range(2):
                    row, column = thread // 4, 2 * (thread % 4) + half
                    row, column = (column, row) if transposed else (row, column)
                    assert halves[warp, thread, matrix, half] == x[warp, matrix, row, column]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_storing_matrices_is_the_reverse_of_loading_them(count, transposed):
    x, y = np.random.default_rng(4).integers(0, 2**32, (64, 4), dtype=np.uint32), np.zeros((64, 4), np.uint32)
    word = ".trans" if transposed else ""
    to, back = (", ".join(f"%r{first + i}" for i in range(count)) for first in (2, 10))
    body = f"""
        {pointers(16, 16)}
        ld.global.v4.b32 {{%r2, %r3, %r4, %r5}}, [%d3];
        mov.b32 %r10, 0; mov.b32 %r11, 0; mov.b32 %r12, 0; mov.b32 %r13, 0;
        stmatrix.sync.aligned.m8n8.x{count}{word}.shared.b16 [%r1], {{{to}}};
        ldmatrix.sync.aligned.m8n8.x{count}{word}.shared.b16 {{{back}}}, [%r1];
        st.global.v4.b32 [%d4], {{%r10, %r11, %r12, %r13}};
    """
    execute(body, 64, shared=1024, x=x, y=y)
    np.testing.assert_array_equal(y[:, :count], x[:, :count])


COPY = """
    setp.lt.u32 %p1, %r0, 20;
    selp.b32 %r2, {size}, 0, %p1;
    cp.async.{way}.shared.global [%r1 + 0], [%d3 + 0], {size}, %r2;
    cp.async.commit_group;
    {wait};
    ld.shared.{form} {registers}, [%r1];
    st.global.{form} [%d4], {registers};
"""


@pytest.mark.parametrize(
    ("way", "size", "form", "registers"),
    [("ca", 4, "b32", "%r3"), ("ca", 8, "b64", "%d5"), ("cg", 16, "v2.b64", "{%d5, %d6}")],
)
@pytest.mark.parametrize("wait", ["cp.async.wait_group 0", "cp.async.wait_all"])
def test_asynchronous_copies_arrive_and_what_is_not_read_is_zero(way, size, form, registers, wait):
    x = np.random.default_rng(5).integers(1, 256, (32, size), dtype=np.uint8)
    y = np.ones_like(x)
    body = COPY.format(way=way, size=size, form=form, registers=registers, wait=wait)
    # The last threads read nothing: their addresses may lie anywhere.
    execute(pointers(size, size) + body, shared=1024, x=x[:20].copy(), y=y)
    np.testing.assert_array_equal(y, np.where(np.arange(32)[:, None] < 20, x, 0))


def test_of_two_groups_of_copies_the_first_can_be_waited_for():
    x, y = np.arange(1, 65, dtype=np.uint32).reshape(32, 2), np.zeros((32, 2), np.uint32)
    body = (
        pointers(8, 8)
        + """
        cp.async.ca.shared.global [%r1], [%d3], 4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%r1 + 4], [%d3 + 4], 4;
        cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.b32 %r2, [%r1];
        cp.async.wait_group 0;
        ld.shared.b32 %r3, [%r1 + 4];
        st.global.v2.b32 [%d4], {%r2, %r3};
    """
    )
    execute(body, shared=1024, x=x, y=y)
    np.testing.assert_array_equal(y, x)
