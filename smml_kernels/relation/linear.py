"""relation_loss in its linear form: C x C moments instead of N x N similarities, in float64 throughout.

    M = F1^T F2,  A1 = F1^T F1,  A2 = F2^T F2,     s_i = f1_i^T M f2_i,  a_i = f1_i^T A1 f1_i,  b_i = f2_i^T A2 f2_i

and the loss is sum_i w_i (1[a_i > 0] + 1[b_i > 0] - 2 s_i / sqrt(a_i b_i)). With the coefficients q, p1, p2 of
:mod:`smml_kernels.relation.rows`, the backward pass takes three more moments

    P = - F1^T diag(q) F2,    Q1 = F1^T diag(p1) F1,    Q2 = F2^T diag(p2) F2,
    dF1 = - q o (F2 M^T) + F2 P^T + p1 o (F1 A1) + F1 Q1,
    dF2 = - q o (F1 M)   + F1 P   + p2 o (F2 A2) + F2 Q2.

**Why eager is slow.** The definition makes two N x N matrices, their squares, quotients and difference, and as much
again for the gradients: 69 N^2 numbers read or written in float32. At N = 32768 one of these matrices has 4.3 GB, at
N = 262144 275 GB. The linear form in PyTorch is far better, but float64 is not optional (2 - 2 c subtracts), so the
features are copied to float64, and each product of them with a C x C matrix is stored before it is used once:
dozens of N x C float64 maps. Here the features are converted after each load and no such map exists: the features are
read a few times, their gradient is written once, and the rest is 34 N C^2 operations.

**The tiles.** Everything is a matrix product in tiles that fit into registers, 64 x 64 float64 numbers shared by the
threads of a program, over slices of 16. GPUs of compute capability 8.0 and 9.0 do float64 products on tensor cores.

* Moments: the tokens are the dimension that is summed over, and it is the long one. Each 64 x 64 tile of the moments
  is computed by several programs, each with its share of the tokens; a second kernel adds the shares up. A1, A2, Q1
  and Q2 are symmetric: tiles below the diagonal are not computed but copied from above it.
* Rows: a program multiplies 64 tokens by 64 columns of a moment, multiplies the tile elementwise by the features
  again and keeps the sums along the rows.
* Gradient: one kernel writes tiles of dF1 and dF2. A row coefficient scales the features while they are in registers,
  so all four products of a tile add up in one accumulator.

No atomics: every sum has a fixed order, and two runs agree to the bit.

**Several GPUs.** Moments of the batch are sums of moments of its parts: with a process group, 3 C^2 + 1 numbers are
added up in the forward pass (one for the number of tokens), 3 C^2 in the backward pass, and the result is exact.
"""

import torch
import triton
import triton.language as tl

from smml_kernels.common import launch
from smml_kernels.relation.rows import finish_rows, row_coefficients, weight_arguments

# Tokens or channels of a tile, and how many of the summed dimension a product takes at a time.
_TILE = 64
_SLICE = 16
# Programs that share the work on the moments: four on each processor of the largest GPU, as registers allow.
_PROGRAMS = 528
# Fewer tokens than this are not worth a program of their own: its tile must be written and read again.
_SHARE = 256
# So many shares may be stored whatever they take; more only where three of C x C float64 numbers for each share stay
# below three eighths of the float32 features, so that nothing much is needed beside them.
_SHARES = 16
# Elements of a program of the kernel that adds the shares up.
_ELEMENTS = 256


@triton.jit
def _load(x, i, c, rows, columns, row, column):
    """The tile [i, c] of a matrix in float64; i and c are int64 vectors, 0 outside of rows x columns."""
    inside = (i < rows)[:, None] & (c < columns)[None, :]
    return tl.load(x + i[:, None] * row + c[None, :] * column, mask=inside, other=0.0).to(tl.float64)


@triton.jit
def _moment(
    left, right, left_row, left_column, right_row, right_column, tile_m, tile_n, first, last, channels, tokens,
    rows, weight, weight_row, count, WHICH: tl.constexpr, BACKWARD: tl.constexpr, WEIGHTED: tl.constexpr,
    TILE: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """One tile of left^T diag(coefficient) right, summed over the tokens first .. last - 1."""
    m = tile_m.to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tile_n.to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float64)
    for start in range(first, last, SLICE):
        i = (start + tl.arange(0, SLICE)).to(tl.int64)
        x = _load(left, m, i, channels, tokens, left_column, left_row)
        y = _load(right, i, n, tokens, channels, right_row, right_column)
        if BACKWARD:
            q, p1, p2 = row_coefficients(rows, weight, weight_row, count, i, tokens, WEIGHTED)
            y *= (-q if WHICH == 0 else (p1 if WHICH == 1 else p2))[:, None]
        total = tl.dot(x, y, total, out_dtype=tl.float64)
    return total


@triton.jit
def _moments_kernel(
    f1, f2, partial, f1_row, f1_column, f2_row, f2_column, tokens, channels, tiles, share,
    rows, weight, weight_row, count, BACKWARD: tl.constexpr, WEIGHTED: tl.constexpr, TILE: tl.constexpr,
    SLICE: tl.constexpr,
):  # fmt: skip
    """A share of a tile of M, A1, A2, or of P, Q1, Q2 (BACKWARD): partial [shares, 3, C, C]."""
    tile, part, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tile_m, tile_n = tile // tiles, tile % tiles
    if which > 0 and tile_m > tile_n:
        return
    first = part * share
    last = tl.minimum(first + share, tokens)
    if which == 0:
        total = _moment(
            f1, f2, f1_row, f1_column, f2_row, f2_column, tile_m, tile_n, first, last, channels, tokens,
            rows, weight, weight_row, count, 0, BACKWARD, WEIGHTED, TILE, SLICE,
        )  # fmt: skip
    elif which == 1:
        total = _moment(
            f1, f1, f1_row, f1_column, f1_row, f1_column, tile_m, tile_n, first, last, channels, tokens,
            rows, weight, weight_row, count, 1, BACKWARD, WEIGHTED, TILE, SLICE,
        )  # fmt: skip
    else:
        total = _moment(
            f2, f2, f2_row, f2_column, f2_row, f2_column, tile_m, tile_n, first, last, channels, tokens,
            rows, weight, weight_row, count, 2, BACKWARD, WEIGHTED, TILE, SLICE,
        )  # fmt: skip
    m = tile_m.to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tile_n.to(tl.int64) * TILE + tl.arange(0, TILE)
    partial += (3 * part.to(tl.int64) + which) * channels * channels
    inside = (m < channels)[:, None] & (n < channels)[None, :]
    tl.store(partial + m[:, None] * channels + n[None, :], total, mask=inside)


@triton.jit
def _sum_kernel(
    partial, moments, shares, tokens, channels, NUMBER: tl.constexpr, ASYMMETRIC: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Shares [shares, NUMBER, C, C] -> moments [NUMBER C^2 + 1], the last of which is the number of tokens."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    square = tl.cast(channels, tl.int64) * channels
    which, m, n = at // square, at % square // channels, at % channels
    mirrored = (which != ASYMMETRIC) & (m // TILE > n // TILE)
    source = tl.where(mirrored, which * square + n * channels + m, at)
    total = tl.zeros((BLOCK,), tl.float64)
    for part in range(shares):
        total += tl.load(partial + part * NUMBER * square + source, mask=at < NUMBER * square, other=0.0)
    total = tl.where(at < NUMBER * square, total, tokens)
    tl.store(moments + at, total, mask=at <= NUMBER * square)


@triton.jit
def _quadratic(
    left, moment, right, left_row, left_column, right_row, right_column, i, n, tokens, channels, TILE: tl.constexpr,
    SLICE: tl.constexpr,
):  # fmt: skip
    """What the columns n of a moment add to left_i^T moment right_i."""
    product = tl.zeros((TILE, n.shape[0]), tl.float64)
    for start in range(0, channels, SLICE):
        k = (start + tl.arange(0, SLICE)).to(tl.int64)
        x = _load(left, i, k, tokens, channels, left_row, left_column)
        product = tl.dot(x, _load(moment, k, n, channels, channels, channels, 1), product, out_dtype=tl.float64)
    return tl.sum(product * _load(right, i, n, tokens, channels, right_row, right_column), axis=1)


@triton.jit
def _quadratic_kernel(
    f1, f2, moments, partial, f1_row, f1_column, f2_row, f2_column, tokens, channels, tiles, TILE: tl.constexpr,
    COLUMNS: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """What a tile of columns adds to s, a or b of a block of tokens: partial [tiles, 3, N]."""
    program = tl.program_id(0)
    which, tile = program % 3, program // 3 % tiles
    i = (program // 3 // tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    square = tl.cast(channels, tl.int64) * channels
    if which == 0:
        row = _quadratic(
            f1, moments, f2, f1_row, f1_column, f2_row, f2_column, i, n, tokens, channels, TILE, SLICE
        )  # fmt: skip
    elif which == 1:
        row = _quadratic(
            f1, moments + square, f1, f1_row, f1_column, f1_row, f1_column, i, n, tokens, channels, TILE, SLICE
        )  # fmt: skip
    else:
        row = _quadratic(
            f2, moments + 2 * square, f2, f2_row, f2_column, f2_row, f2_column, i, n, tokens, channels, TILE, SLICE
        )  # fmt: skip
    tl.store(partial + (3 * tile.to(tl.int64) + which) * tokens + i, row, mask=i < tokens)


@triton.jit
def _two_products(total, x, row, column, i, n, scale, scaled, plain, k_stride, n_stride, tokens, channels,
                  SLICE: tl.constexpr):  # fmt: skip
    """total + (scale o x) scaled + x plain for a tile of tokens i and columns n."""
    for start in range(0, channels, SLICE):
        k = (start + tl.arange(0, SLICE)).to(tl.int64)
        slice_ = _load(x, i, k, tokens, channels, row, column)
        factor = _load(scaled, k, n, channels, channels, k_stride, n_stride)
        total = tl.dot(slice_ * scale[:, None], factor, total, out_dtype=tl.float64)
        factor = _load(plain, k, n, channels, channels, k_stride, n_stride)
        total = tl.dot(slice_, factor, total, out_dtype=tl.float64)
    return total


@triton.jit
def _gradient_kernel(
    f1, f2, rows, weight, weight_row, moments, derived, upstream, gradient1, gradient2, f1_row, f1_column,
    f2_row, f2_column, tokens, channels, tiles, WEIGHTED: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
    SLICE: tl.constexpr,
):  # fmt: skip
    """One tile of dF1 or dF2 (contiguous); moments are M, A1, A2 and the number of tokens, derived P, Q1, Q2."""
    program = tl.program_id(0)
    branch, tile = program % 2, program // 2 % tiles
    i = (program // 2 // tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    square = tl.cast(channels, tl.int64) * channels
    q, p1, p2 = row_coefficients(rows, weight, weight_row, moments + 3 * square, i, tokens, WEIGHTED)
    total = tl.zeros((TILE, COLUMNS), tl.float64)
    # M and P are needed with the other branch's channels first: transposed for dF1, as they are for dF2.
    if branch == 0:
        total = _two_products(
            total, f2, f2_row, f2_column, i, n, -q, moments, derived, 1, channels, tokens, channels, SLICE
        )  # fmt: skip
        total = _two_products(
            total, f1, f1_row, f1_column, i, n, p1, moments + square, derived + square, channels, 1, tokens,
            channels, SLICE,
        )  # fmt: skip
    else:
        total = _two_products(
            total, f1, f1_row, f1_column, i, n, -q, moments, derived, channels, 1, tokens, channels, SLICE
        )  # fmt: skip
        total = _two_products(
            total, f2, f2_row, f2_column, i, n, p2, moments + 2 * square, derived + 2 * square, channels, 1,
            tokens, channels, SLICE,
        )  # fmt: skip
    # A zero row has no direction of its own: what other tokens would pull at it is cut off.
    norm = tl.load(rows + (1 + branch) * tl.cast(tokens, tl.int64) + i, mask=i < tokens, other=0.0)
    total = tl.where((norm == 0.0)[:, None], 0.0, total * tl.load(upstream).to(tl.float64))
    if gradient1.dtype.element_ty != tl.float64:
        total = total.to(tl.float32)  # half precision is reached from here: the interpreter knows no other way
    at = i[:, None] * channels + n[None, :]
    inside = (i < tokens)[:, None] & (n < channels)[None, :]
    if branch == 0:
        tl.store(gradient1 + at, total, mask=inside)
    else:
        tl.store(gradient2 + at, total, mask=inside)


def _moments(
    f1: torch.Tensor, f2: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor | None, count: torch.Tensor | None
) -> torch.Tensor:
    """Launch the kernels of M, A1, A2 (``count`` None) or P, Q1, Q2: [3 C^2 + 1], the last the number of tokens."""
    tokens, channels = f1.shape
    tile = columns_of_tile(channels)
    tiles = triton.cdiv(channels, tile)
    share = share_of_tokens(tokens, channels, 3 * tiles**2)
    shares = triton.cdiv(tokens, share)
    partial = rows.new_empty((shares, 3, channels, channels))
    _moments_kernel[(tiles * tiles, shares, 3)](
        f1, f2, partial, *f1.stride(), *f2.stride(), tokens, channels, tiles, share, rows,
        *weight_arguments(weight, rows), rows if count is None else count, BACKWARD=count is not None,
        WEIGHTED=weight is not None, TILE=tile, SLICE=_SLICE, num_warps=_warps(tile),
        **launch.OPTIONS,
    )  # fmt: skip
    return add_shares(partial, tokens, tile, 0)


def share_of_tokens(tokens: int, channels: int, tiles: int) -> int:
    """How many tokens a program takes where ``tiles`` tiles of moments are to be computed."""
    shares = min(triton.cdiv(tokens, _SHARE), max(1, _PROGRAMS // tiles), max(_SHARES, tokens // (8 * channels)))
    # A whole number of slices of any form.
    return triton.cdiv(triton.cdiv(tokens, shares), 32) * 32


def add_shares(partial: torch.Tensor, tokens: int, tile: int, asymmetric: int) -> torch.Tensor:
    """Launch the kernel that adds up shares of moments.

    Args:
        partial: [shares, K, C, C]; of symmetric moments, tiles below the diagonal are not read.
        tokens: appended to the moments, so that ranks add it up with them.
        tile: rows and columns of a tile.
        asymmetric: which one of the K moments is not symmetric.

    Returns:
        [K C^2 + 1] in the dtype of ``partial``.
    """
    shares, number, channels, _ = partial.shape
    moments = partial.new_empty(number * channels**2 + 1)
    _sum_kernel[(triton.cdiv(moments.numel(), _ELEMENTS),)](
        partial, moments, shares, tokens, channels, NUMBER=number, ASYMMETRIC=asymmetric, TILE=tile, BLOCK=_ELEMENTS,
        num_warps=4, **launch.OPTIONS,
    )  # fmt: skip
    return moments


def forward(
    f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, group: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the forward pass.

    Args:
        f1: F_1 [N, C], floating, any strides.
        f2: F_2, of the same dtype and shape.
        weight: w [N], floating, any stride, or None for one over the number of tokens of all ranks.
        group: name of a process group, or "".

    Returns:
        The loss, 0-dim float32 (float64 for float64); s, a, b [3, N], float64; M, A1, A2 and the number of tokens of
        all ranks in one vector [3 C^2 + 1], float64.
    """
    dtype = launch.accumulator(f1)
    f1, f2 = _at_least_float32(f1), _at_least_float32(f2)
    tokens, channels = f1.shape
    tile = columns_of_tile(channels)
    tiles = triton.cdiv(channels, tile)
    rows = f1.new_empty((3, tokens), dtype=torch.float64)
    with launch.device_of(f1):
        moments = _moments(f1, f2, rows, None, None)
        if group:
            launch.all_reduce(moments, group)
        partial = rows.new_empty((tiles, 3, tokens))
        _quadratic_kernel[(3 * tiles * triton.cdiv(tokens, _TILE),)](
            f1, f2, moments, partial, *f1.stride(), *f2.stride(), tokens, channels, tiles, TILE=_TILE, COLUMNS=tile,
            SLICE=_SLICE, num_warps=4, **launch.OPTIONS,
        )  # fmt: skip
        loss = finish_rows(partial, rows, weight, moments[-1], dtype, group)
    return loss, rows, moments


def backward(
    upstream: torch.Tensor, f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, rows: torch.Tensor,
    moments: torch.Tensor, group: str,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Launch the backward pass: dL/dF_1 and dL/dF_2, contiguous, in the dtype of F, times ``upstream`` (0-dim).

    With a group they are the derivatives of the loss of the whole batch by this rank's features.
    """
    tokens, channels = f1.shape
    tile = columns_of_tile(channels)
    tiles = triton.cdiv(channels, tile)
    gradients = tuple(torch.empty(f1.shape, dtype=f1.dtype, device=f1.device) for _ in range(2))
    f1, f2 = _at_least_float32(f1), _at_least_float32(f2)
    with launch.device_of(f1):
        derived = _moments(f1, f2, rows, weight, moments[-1])
        if group:
            launch.all_reduce(derived, group)
        _gradient_kernel[(2 * tiles * triton.cdiv(tokens, _TILE),)](
            f1, f2, rows, *weight_arguments(weight, rows), moments, derived, upstream, *gradients,
            *f1.stride(), *f2.stride(), tokens, channels, tiles, WEIGHTED=weight is not None, TILE=_TILE, COLUMNS=tile,
            SLICE=_SLICE, num_warps=_warps(tile), num_stages=_stages(f1), **launch.OPTIONS,
        )  # fmt: skip
    return gradients


def saved(f1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty tensors of the shapes of what the forward pass keeps: the rows and the moments."""
    rows = f1.new_empty((3, f1.shape[0]), dtype=torch.float64)
    return rows, rows.new_empty(3 * f1.shape[1] ** 2 + 1)


def _at_least_float32(f: torch.Tensor) -> torch.Tensor:
    """The features, or a float32 copy of half-precision ones: Triton 3.6 cannot compile their float64 products.

    It counts how many numbers a register of a tensor core would hold from the dtype that was loaded, not multiplied.
    The copy is small beside the arithmetic.
    """
    return f if f.dtype == torch.float64 else f.float()


def columns_of_tile(channels: int) -> int:
    """Channels of a tile."""
    return min(_TILE, max(16, triton.next_power_of_2(channels)))


def _stages(f: torch.Tensor) -> int:
    """Slices that are under way: three of float64 features would not fit the 99 KB of shared memory of some GPUs."""
    return 2 if f.dtype == torch.float64 else 3


def _warps(tile: int) -> int:
    """Warps of a program: four would spill a few registers of a full tile on some GPUs."""
    return 8 if tile == 64 else 4
