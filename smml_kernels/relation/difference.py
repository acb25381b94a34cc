"""relation_loss in its linear form with TensorFloat-32: moments of the sum and the difference of the branches.

Tensor cores multiply TensorFloat-32 several times faster than float64, but keep three digits of each factor, and
2 - 2 c of branches that nearly agree subtracts more than three digits. So nothing may be subtracted that was rounded.
With X1 = k1 F1 and X2 = k2 F2 scaled to equal norm (constants: the loss sees no scale),

    S = (X1 + X2) / 2,    D = X1 - X2,    G1 - G2 = Delta = S D^T + D S^T,    (G1 + G2) / 2 = H = S S^T + D D^T / 4,

D is formed from the features in float32, before any rounding to TensorFloat-32. With n1 = |g1_i|, n2 = |g2_i|,

    n1 - n2 = delta_i = 2 H_i . Delta_i / (n1 + n2),    L_i = (|Delta_i|^2 - delta_i^2) / (n1 n2),

and H_i . Delta_i and |Delta_i|^2 are quadratic forms of s_i and d_i in the moments S^T S, S^T D, D^T D. (Of a token
whose n1 and n2 differ by more than a factor of 2, delta^2 would take most of |Delta|^2 away: it has 2 - 2 c.) The
derivative by G1 is e1 G1 + q Delta, by G2 it is e2 G2 - q Delta, with q = 2 w / (n1 n2) and

    e1 = - q (delta + L n2 / 2) / n1,    e2 = - q (- delta + L n1 / 2) / n2,

through the five moments S^T q S, S^T q D, D^T q D, X1^T e1 X1, X2^T e2 X2. All of it is of the size of the difference.

That is 54 N C^2 operations instead of 34. What it cannot mend: a copy that is *rotated* agrees without D being small,
and then S and D bring back the rounding; and a token whose size differs between the branches by a factor r (beyond
the overall scale) gets a gradient with r times the rounding. Wherever float32 products may not be TensorFloat-32 the
float64 form runs, which knows neither weakness.

**The tiles** are those of :mod:`smml_kernels.relation.linear`. S, D, X1 and X2 are never stored: each is a sum
c1 f1 + c2 f2, so that one kernel makes every operand from the features and two numbers.
"""

import torch
import triton
import triton.language as tl

from smml_kernels.common import launch
from smml_kernels.relation import linear
from smml_kernels.relation.rows import TOKENS_OF_PROGRAM, finish_loss, row_weight, weight_arguments

_TILE = 64
_SLICE = 32
# Sums along a row: a, b, H . Delta, |Delta|^2, of the absolute features (0 for zero rows alone), and s.
_SUMS = 7


@triton.jit
def _operand(f1, f2, mix, kind, i, c, tokens, channels, row1, column1, row2, column2, TRANSPOSED: tl.constexpr):
    """The tile [i, c] (TRANSPOSED: [c, i]) of S, D, X1 or X2, for a kind of 0, 1, 2 or 3."""
    if TRANSPOSED:
        inside = (c < channels)[:, None] & (i < tokens)[None, :]
        at1 = c[:, None] * column1 + i[None, :] * row1
        at2 = c[:, None] * column2 + i[None, :] * row2
    else:
        inside = (i < tokens)[:, None] & (c < channels)[None, :]
        at1 = i[:, None] * row1 + c[None, :] * column1
        at2 = i[:, None] * row2 + c[None, :] * column2
    x1 = tl.load(f1 + at1, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(f2 + at2, mask=inside, other=0.0).to(tl.float32)
    # k1 is a power of two, so the first product is exact, and the second is not rounded before it is subtracted.
    return tl.fma(x2, tl.load(mix + 2 * kind + 1), x1 * tl.load(mix + 2 * kind))


@triton.jit
def _moments_kernel(
    f1, f2, mix, rows, partial, row1, column1, row2, column2, tokens, channels, tiles, share,
    NUMBER: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """A share of a tile of the moments SS, SD, DD (NUMBER 3), or of the five of the backward pass."""
    tile, part, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tile_m, tile_n = tile // tiles, tile % tiles
    if which != 1 and tile_m > tile_n:
        return
    # S and S, S and D, D and D; then X1 and X1, X2 and X2.
    left = tl.where(which < 3, which // 2, which - 1)
    right = tl.where(which < 3, (which + 1) // 2, which - 1)
    coefficient = tl.where(which < 3, 0, which - 2).to(tl.int64)
    m = tile_m.to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tile_n.to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    first = part * share
    for start in range(first, tl.minimum(first + share, tokens), SLICE):
        i = (start + tl.arange(0, SLICE)).to(tl.int64)
        x = _operand(f1, f2, mix, left, i, m, tokens, channels, row1, column1, row2, column2, True)
        y = _operand(f1, f2, mix, right, i, n, tokens, channels, row1, column1, row2, column2, False)
        if NUMBER == 5:
            y *= tl.load(rows + coefficient * tokens + i, mask=i < tokens, other=0.0)[:, None]
        total = tl.dot(x, y, total, input_precision="tf32")
    partial += (NUMBER * part.to(tl.int64) + which) * channels * channels
    inside = (m < channels)[:, None] & (n < channels)[None, :]
    tl.store(partial + m[:, None] * channels + n[None, :], total, mask=inside)


@triton.jit
def _product(
    total, f1, f2, mix, kind, table, scale, i, n, tokens, channels, row1, column1, row2, column2, SLICE: tl.constexpr
):
    """total + (scale o operand) table for a tile of tokens i and columns n."""
    for start in range(0, channels, SLICE):
        k = (start + tl.arange(0, SLICE)).to(tl.int64)
        x = _operand(f1, f2, mix, kind, i, k, tokens, channels, row1, column1, row2, column2, False)
        inside = (k < channels)[:, None] & (n < channels)[None, :]
        y = tl.load(table + k[:, None] * channels + n[None, :], mask=inside, other=0.0)
        total = tl.dot(x * scale[:, None], y, total, input_precision="tf32")
    return total


@triton.jit
def _sums_kernel(
    f1, f2, mix, tables, partial, row1, column1, row2, column2, tokens, channels, tiles, TILE: tl.constexpr,
    COLUMNS: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """What a tile of columns adds to the sums of a block of tokens: partial [tiles, 7, N].

    ``tables`` are A1, A2, SD, SS + DD / 4, DD, SS, M, and each product is of one operand, one table and the operands
    again: x1 A1 x1, x2 A2 x2, x1 M x2; s SD s, s (SS + DD / 4) d, d SD d / 4 of H . Delta; s DD s, 2 d SD s, d SS d
    of |Delta|^2.
    """
    program = tl.program_id(0)
    tile = program % tiles
    i = (program // tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    square = tl.cast(channels, tl.int64) * channels
    one = tl.full((TILE,), 1.0, tl.float32)
    mixed = tl.zeros((TILE,), tl.float32)
    squared = tl.zeros((TILE,), tl.float32)
    zero = tl.zeros((TILE, COLUMNS), tl.float32)
    stride = tl.cast(tokens, tl.int64)
    at = partial + 7 * tile * stride + i
    for branch in tl.static_range(2):
        x = _operand(f1, f2, mix, 2 + branch, i, n, tokens, channels, row1, column1, row2, column2, False)
        p = _product(
            zero, f1, f2, mix, 2 + branch, tables + branch * square, one, i, n, tokens, channels, row1, column1, row2,
            column2, SLICE,
        )  # fmt: skip
        tl.store(at + branch * stride, tl.sum(p * x, axis=1), mask=i < tokens)
        tl.store(at + (4 + branch) * stride, tl.sum(tl.abs(x), axis=1), mask=i < tokens)
    p = _product(
        zero, f1, f2, mix, 2, tables + 6 * square, one, i, n, tokens, channels, row1, column1, row2, column2, SLICE
    )
    x = _operand(f1, f2, mix, 3, i, n, tokens, channels, row1, column1, row2, column2, False)
    tl.store(at + 6 * stride, tl.sum(p * x, axis=1), mask=i < tokens)
    s = _operand(f1, f2, mix, 0, i, n, tokens, channels, row1, column1, row2, column2, False)
    d = _operand(f1, f2, mix, 1, i, n, tokens, channels, row1, column1, row2, column2, False)
    p = _product(
        zero, f1, f2, mix, 0, tables + 2 * square, one, i, n, tokens, channels, row1, column1, row2, column2, SLICE
    )
    mixed += tl.sum(p * s, axis=1)
    p = _product(
        zero, f1, f2, mix, 0, tables + 3 * square, one, i, n, tokens, channels, row1, column1, row2, column2, SLICE
    )
    mixed += tl.sum(p * d, axis=1)
    p = _product(
        zero, f1, f2, mix, 1, tables + 2 * square, one, i, n, tokens, channels, row1, column1, row2, column2, SLICE
    )
    mixed += 0.25 * tl.sum(p * d, axis=1)
    squared += 2.0 * tl.sum(p * s, axis=1)
    p = _product(
        zero, f1, f2, mix, 0, tables + 4 * square, one, i, n, tokens, channels, row1, column1, row2, column2, SLICE
    )
    squared += tl.sum(p * s, axis=1)
    p = _product(
        zero, f1, f2, mix, 1, tables + 5 * square, one, i, n, tokens, channels, row1, column1, row2, column2, SLICE
    )
    squared += tl.sum(p * d, axis=1)
    tl.store(at + 2 * stride, mixed, mask=i < tokens)
    tl.store(at + 3 * stride, squared, mask=i < tokens)


@triton.jit
def _rows_kernel(
    partial, rows, losses, weight, weight_row, count, parts, tokens, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr
):
    """Partial sums [parts, 7, N] -> q, e1, e2 and which rows are not zero [5, N], and the loss of each block."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < tokens
    stride = tl.cast(tokens, tl.int64)
    a = tl.zeros((BLOCK,), tl.float32)
    b = tl.zeros((BLOCK,), tl.float32)
    mixed = tl.zeros((BLOCK,), tl.float32)
    squared = tl.zeros((BLOCK,), tl.float32)
    size1 = tl.zeros((BLOCK,), tl.float32)
    size2 = tl.zeros((BLOCK,), tl.float32)
    product = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        at = partial + 7 * part * stride + i
        a += tl.load(at, mask=inside, other=0.0)
        b += tl.load(at + stride, mask=inside, other=0.0)
        mixed += tl.load(at + 2 * stride, mask=inside, other=0.0)
        squared += tl.load(at + 3 * stride, mask=inside, other=0.0)
        size1 += tl.load(at + 4 * stride, mask=inside, other=0.0)
        size2 += tl.load(at + 5 * stride, mask=inside, other=0.0)
        product += tl.load(at + 6 * stride, mask=inside, other=0.0)
    # Not "a > 0 and ...", so that NaN shows in the loss.
    apart = (size1 == 0.0) | (size2 == 0.0) | (a <= 0.0) | (b <= 0.0)
    n1 = tl.sqrt(tl.where(apart, 1.0, a))
    n2 = tl.sqrt(tl.where(apart, 1.0, b))
    delta = 2.0 * mixed / (n1 + n2)
    loss = (squared - delta * delta) / (n1 * n2)
    # Rows of unequal size do not nearly cancel in G1 - G2; there the cosine is the better number.
    unequal = (n1 > 2.0 * n2) | (n2 > 2.0 * n1)
    loss = tl.where(unequal, 2.0 - 2.0 * (product / n1) / n2, loss)
    loss = tl.where(loss < 0.0, 0.0, loss)
    w = row_weight(weight, weight_row, count, i, inside, WEIGHTED)
    q = tl.where(apart, 0.0, 2.0 * w.to(tl.float32) / (n1 * n2))
    present1 = tl.where(size1 == 0.0, 0.0, 1.0)
    present2 = tl.where(size2 == 0.0, 0.0, 1.0)
    tl.store(rows + i, q, mask=inside)
    tl.store(rows + stride + i, tl.where(apart, 0.0, -q * (delta + 0.5 * loss * n2) / n1), mask=inside)
    tl.store(rows + 2 * stride + i, tl.where(apart, 0.0, -q * (0.5 * loss * n1 - delta) / n2), mask=inside)
    tl.store(rows + 3 * stride + i, present1, mask=inside)
    tl.store(rows + 4 * stride + i, present2, mask=inside)
    loss = tl.where(apart, present1 + present2, loss).to(tl.float64) * w
    tl.store(losses + tl.program_id(0), tl.sum(tl.where(inside, loss, 0.0), axis=0))


@triton.jit
def _gradient_kernel(
    f1, f2, mix, rows, tables, upstream, gradient1, gradient2, row1, column1, row2, column2, tokens, channels, tiles,
    TILE: tl.constexpr, COLUMNS: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """One tile of dF1 or dF2 (contiguous); tables are, for each branch, three by moments and three by weighted ones."""
    program = tl.program_id(0)
    branch, tile = program % 2, program // 2 % tiles
    i = (program // 2 // tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    stride = tl.cast(tokens, tl.int64)
    square = tl.cast(channels, tl.int64) * channels
    one = tl.full((TILE,), 1.0, tl.float32)
    q = tl.load(rows + i, mask=i < tokens, other=0.0)
    e = tl.load(rows + (1 + branch) * stride + i, mask=i < tokens, other=0.0)
    total = tl.zeros((TILE, COLUMNS), tl.float32)
    tables += 6 * branch * square
    for term in tl.static_range(3):
        # X A1 and X Q1; S (D^T X) and S (D^T q X); D (S^T X) and D (S^T q X).
        kind = 2 + branch if term == 0 else term - 1
        scale = e if term == 0 else q
        total = _product(
            total, f1, f2, mix, kind, tables + term * square, scale, i, n, tokens, channels, row1, column1, row2,
            column2, SLICE,
        )  # fmt: skip
        total = _product(
            total, f1, f2, mix, kind, tables + (3 + term) * square, one, i, n, tokens, channels, row1, column1, row2,
            column2, SLICE,
        )  # fmt: skip
    # The scale of the branch: mix holds k1 in X1 = k1 F1 + 0 F2 and k2 in X2 = 0 F1 + k2 F2.
    total = total * tl.load(mix + 4 + 3 * branch) * tl.load(upstream)
    present = tl.load(rows + (3 + branch) * stride + i, mask=i < tokens, other=0.0)
    total = tl.where((present == 0.0)[:, None], 0.0, total)
    at = i[:, None] * channels + n[None, :]
    inside = (i < tokens)[:, None] & (n < channels)[None, :]
    if branch == 0:
        tl.store(gradient1 + at, total, mask=inside)
    else:
        tl.store(gradient2 + at, total, mask=inside)


def _moments(
    f1: torch.Tensor, f2: torch.Tensor, mix: torch.Tensor, rows: torch.Tensor | None, group: str
) -> torch.Tensor:
    """Launch the kernels of SS, SD, DD (``rows`` None) or SqS, SqD, DqD, Q1, Q2.

    Returns:
        The moments [3 or 5, C, C] of all ranks' tokens, float32.
    """
    tokens, channels = f1.shape
    tile = linear.columns_of_tile(channels)
    tiles = triton.cdiv(channels, tile)
    number = 3 if rows is None else 5
    share = linear.share_of_tokens(tokens, channels, number * tiles**2)
    shares = triton.cdiv(tokens, share)
    partial = mix.new_empty((shares, number, channels, channels))
    _moments_kernel[(tiles * tiles, shares, number)](
        f1, f2, mix, mix if rows is None else rows, partial, *f1.stride(), *f2.stride(), tokens, channels, tiles,
        share, NUMBER=number, TILE=tile, SLICE=_SLICE, num_warps=_warps(tile), **launch.OPTIONS,
    )  # fmt: skip
    moments = linear.add_shares(partial, tokens, tile, 1)
    if group:
        launch.all_reduce(moments, group)
    return moments[:-1].view(number, channels, channels)


def _pulls(ss: torch.Tensor, sd: torch.Tensor, dd: torch.Tensor) -> list[torch.Tensor]:
    """D^T X1, S^T X1, - D^T X2, - S^T X2 from the moments: what S and D are multiplied with in Delta X1, - Delta X2."""
    return [sd.T + dd / 2, ss + sd / 2, dd / 2 - sd.T, sd / 2 - ss]


def _mix(f1: torch.Tensor, f2: torch.Tensor, group: str) -> tuple[torch.Tensor, torch.Tensor]:
    """How S, D, X1, X2 are made of F1 and F2, [4, 2] float32, and the number of all ranks' tokens, float64.

    k1 is the power of two that brings the mean square of X1 near 1, and k2 makes that of X2 equal to it.
    """
    squares = [torch.linalg.vector_norm(f, dtype=torch.float64).square() for f in (f1, f2)]
    totals = torch.stack([*squares, torch.full_like(squares[0], f1.shape[0])])
    if group:
        launch.all_reduce(totals, group)
    size = (totals[:2] / (totals[2] * f1.shape[1])).sqrt()
    size = torch.where(size == 0, 1.0, size)
    k1 = torch.ldexp(torch.ones_like(size[0]), -torch.frexp(size[0])[1].clamp(-126, 126))
    # The largest float32 is enough: it brings features of 1e-41 to 1e-3.
    k2 = (k1 * size[0] / size[1]).clamp(max=3e38)
    zero = torch.zeros_like(k1)
    return torch.stack([k1 / 2, k2 / 2, k1, -k2, k1, zero, zero, k2]).float(), totals[2]


def forward(
    f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, group: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the forward pass.

    Args:
        f1: F_1 [N, C], floating but not float64, any strides.
        f2: F_2, of the same dtype and shape.
        weight: w [N], floating, any stride, or None for one over the number of tokens of all ranks.
        group: name of a process group, or "".

    Returns:
        The loss, 0-dim float32; q, e1, e2 and which rows are not zero [5, N], float32; SS, SD, DD of all ranks and
        the mix of the branches in one vector [3 C^2 + 8], float32.
    """
    tokens, channels = f1.shape
    tile = linear.columns_of_tile(channels)
    tiles, blocks = triton.cdiv(channels, tile), triton.cdiv(tokens, TOKENS_OF_PROGRAM)
    rows, _ = saved(f1)
    losses = rows.new_empty(blocks, dtype=torch.float64)
    loss = rows.new_empty((), dtype=torch.float64 if group else torch.float32)
    with launch.device_of(f1):
        mix, count = _mix(f1, f2, group)
        ss, sd, dd = moments = _moments(f1, f2, mix, None, group)
        even, odd = ss + dd / 4, (sd + sd.T) / 2
        tables = torch.stack([even + odd, even - odd, sd, even, dd, ss, ss - dd / 4 + (sd.T - sd) / 2])
        partial = rows.new_empty((tiles, _SUMS, tokens))
        _sums_kernel[(tiles * triton.cdiv(tokens, _TILE),)](
            f1, f2, mix, tables, partial, *f1.stride(), *f2.stride(), tokens, channels, tiles, TILE=_TILE,
            COLUMNS=tile, SLICE=_SLICE, num_warps=_warps(tile), **launch.OPTIONS,
        )  # fmt: skip
        _rows_kernel[(blocks,)](
            partial, rows, losses, *weight_arguments(weight, rows), count, tiles, tokens,
            WEIGHTED=weight is not None, BLOCK=TOKENS_OF_PROGRAM, num_warps=4, **launch.OPTIONS,
        )  # fmt: skip
        loss = finish_loss(losses, loss, torch.float32, group)
    return loss, rows, torch.cat([moments.flatten(), mix])


def backward(
    upstream: torch.Tensor, f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, rows: torch.Tensor,
    moments: torch.Tensor, group: str,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Launch the backward pass: dL/dF_1 and dL/dF_2, contiguous, in the dtype of F, times ``upstream`` (0-dim).

    With a group they are the derivatives of the loss of the whole batch by this rank's features.
    """
    tokens, channels = f1.shape
    tile = linear.columns_of_tile(channels)
    tiles = triton.cdiv(channels, tile)
    gradients = tuple(torch.empty(f1.shape, dtype=f1.dtype, device=f1.device) for _ in range(2))
    ss, sd, dd = moments[:-8].view(3, channels, channels)
    mix = moments[-8:].clone()  # aligned, as the kernels were compiled for
    with launch.device_of(f1):
        ssq, sdq, ddq, q1, q2 = _moments(f1, f2, mix, rows, group)
        even, odd = ss + dd / 4, (sd + sd.T) / 2
        p, pq = _pulls(ss, sd, dd), _pulls(ssq, sdq, ddq)
        tables = torch.stack([even + odd, *p[:2], q1, *pq[:2], even - odd, *p[2:], q2, *pq[2:]])
        _gradient_kernel[(2 * tiles * triton.cdiv(tokens, _TILE),)](
            f1, f2, mix, rows, tables, upstream, *gradients, *f1.stride(), *f2.stride(), tokens, channels, tiles,
            TILE=_TILE, COLUMNS=tile, SLICE=_SLICE, num_warps=_warps(tile), **launch.OPTIONS,
        )  # fmt: skip
    return gradients


def saved(f1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty tensors of the shapes of what the forward pass keeps: the rows, and the moments with the mix."""
    rows = f1.new_empty((5, f1.shape[0]), dtype=torch.float32)
    return rows, rows.new_empty(3 * f1.shape[1] ** 2 + 8)


def _warps(tile: int) -> int:
    return 8 if tile == 64 else 4
