"""Matrices over the registers of warps, as the manual's figures place them, against numpy."""

import numpy as np
import pytest
from ptx_checks import execute

START = """
    mov.u32 %r0, %tid.x;
    cvt.u64.u32 %d0, %r0;
    ld.param.b64 %d1, [a]; ld.param.b64 %d2, [b]; ld.param.b64 %d3, [c];
"""


def cut(x: np.ndarray) -> np.ndarray:
    """What tf32 keeps of float32."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def fragments(matrix: np.ndarray, place) -> np.ndarray:
    """[32, elements]: what each thread holds of a matrix, by ``place(thread, element) -> row, column``."""
    number = matrix.size // 32
    return np.array([[matrix[place(t, i)] for i in range(number)] for t in range(32)], matrix.dtype)


def of_a(thread, element):
    return thread // 4 + 8 * (element % 2), thread % 4 + 4 * (element // 2)


def of_b(thread, element):
    return thread % 4 + 4 * element, thread // 4


def of_c(thread, element):
    return thread // 4 + 8 * (element // 2), 2 * (thread % 4) + element % 2


def load(name: str, pointer: str, letter: str, first: int, number: int, width: int) -> str:
    lines = [f"mad.lo.s64 %d4, %d0, {number * width}, {pointer};"]
    lines += [f"ld.global.b{8 * width} %{letter}{first + i}, [%d4 + {i * width}];" for i in range(number)]
    return "\n".join(lines)


def braces(letter: str, first: int, number: int) -> str:
    return "{" + ", ".join(f"%{letter}{first + i}" for i in range(number)) + "}"


@pytest.mark.parametrize(
    ("shape", "type_", "rows", "inner"),
    [
        ("m8n8k4", "f64", 8, 4), ("m16n8k4", "f64", 16, 4), ("m16n8k8", "f64", 16, 8), ("m16n8k16", "f64", 16, 16),
        ("m16n8k4", "tf32", 16, 4), ("m16n8k8", "tf32", 16, 8),
    ],
)  # fmt: skip
def test_the_product_of_a_warp(shape, type_, rows, inner):
    generator = np.random.default_rng(1)
    dtype, letter, width = (np.float64, "d", 8) if type_ == "f64" else (np.float32, "r", 4)
    a, b, c = (generator.standard_normal(s).astype(dtype) for s in ((rows, inner), (inner, 8), (rows, 8)))
    numbers = a.size // 32, b.size // 32, c.size // 32
    held = [fragments(a, of_a), fragments(b, of_b), fragments(c, of_c)]
    first = np.cumsum([5, *numbers])
    body = START + "\n".join(
        load(name, pointer, letter, int(start), number, width)
        for name, pointer, start, number in zip("abc", ("%d1", "%d2", "%d3"), first, numbers, strict=False)
    )
    places = [braces(letter, int(start), number) for start, number in zip(first, numbers, strict=False)]
    kinds = "f64.f64.f64.f64" if type_ == "f64" else "f32.tf32.tf32.f32"
    body += f"\nmma.sync.aligned.{shape}.row.col.{kinds} {places[2]}, {places[0]}, {places[1]}, {places[2]};\n"
    body += "\n".join(
        f"st.global.b{8 * width} [%d4 + {i * width}], %{letter}{int(first[2]) + i};" for i in range(numbers[2])
    )
    execute(body, 32, a=held[0], b=held[1], c=held[2])
    if type_ == "tf32":
        a, b = cut(a), cut(b)
    exact = a.astype(np.float64) @ b.astype(np.float64) + c
    np.testing.assert_allclose(held[2], fragments(exact, of_c), rtol=1e-15 if type_ == "f64" else 1e-7, atol=1e-16)


SPANS = {128: 1, 64: 2, 32: 3}


def swizzled(matrix: np.ndarray, span: int, start: int) -> tuple[np.ndarray, int]:
    """The bytes of shared memory with a matrix [rows, 8] from ``start`` on, and its descriptor.

    Rows are ``span`` bytes apart, eight of them a block; in each, pieces of 16 bytes trade places by the row number.
    """
    memory = np.zeros(start + len(matrix) * span, np.uint8)
    for row in range(len(matrix)):
        for piece in range(2):
            at = start + row * span + 16 * piece
            by = at // 128 % (span // 16)
            place = at ^ by * 16
            memory[place : place + 16] = matrix[row, 4 * piece : 4 * piece + 4].view(np.uint8)
    return memory, start >> 4 | (8 * span >> 4) << 32 | SPANS[span] << 62


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("from_registers", [True, False])
@pytest.mark.parametrize("add", [True, False])
def test_the_product_of_four_warps(span, from_registers, add):
    generator = np.random.default_rng(2)
    left, right, before = (generator.standard_normal(s).astype(np.float32) for s in ((64, 8), (16, 8), (64, 16)))
    memory, of_right = swizzled(right, span, 0)
    memory = np.concatenate([memory, np.zeros(-len(memory) % 1024, np.uint8)])
    more, of_left = swizzled(left, span, len(memory))
    memory = np.concatenate([memory, more[len(memory) :]])
    memory = np.concatenate([memory, np.zeros(-len(memory) % 2048, np.uint8)])
    held = np.concatenate([fragments(left[16 * w : 16 * w + 16], of_a) for w in range(4)])
    accumulators = np.zeros((128, 8), np.float32)
    for thread in range(128):
        for i in range(8):
            row, column = of_c(thread % 32, i % 4)
            accumulators[thread, i] = before[16 * (thread // 32) + row, 8 * (i // 4) + column]
    each = len(memory) // 128 // 16  # pieces of 16 bytes that a thread brings
    body = START + load("a", "%d1", "r", 1, 4, 4)
    for i in range(each):
        body += f"""
            mad.lo.s64 %d4, %d0, 16, %d2;
            ld.global.v4.b32 {braces("r", 20, 4)}, [%d4 + {2048 * i}];
            shl.b32 %r30, %r0, 4;
            st.shared.v4.b32 [%r30 + {2048 * i}], {braces("r", 20, 4)};
        """
    body += load("c", "%d3", "r", 8, 8, 4)
    first = braces("r", 1, 4) if from_registers else "%d6"
    body += f"""
        fence.proxy.async.shared::cta;
        bar.sync 0;
        mov.b64 %d5, {of_right - 2**64 if of_right >= 2**63 else of_right};
        mov.b64 %d6, {of_left - 2**64 if of_left >= 2**63 else of_left};
        mov.pred %p1, {-1 if add else 0};
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n16k8.f32.tf32.tf32 {braces("r", 8, 8)}, {first}, %d5, %p1, 1, 1;
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
    """
    body += "\n".join(f"st.global.b32 [%d4 + {4 * i}], %r{8 + i};" for i in range(8))
    execute(body, 128, shared=len(memory), a=held, b=memory, c=accumulators)
    exact = cut(left).astype(np.float64) @ cut(right).astype(np.float64).T + (before if add else 0)
    for thread in range(128):
        for i in range(8):
            row, column = of_c(thread % 32, i % 4)
            expected = exact[16 * (thread // 32) + row, 8 * (i // 4) + column]
            np.testing.assert_allclose(accumulators[thread, i], expected, rtol=1e-6, atol=1e-6)
