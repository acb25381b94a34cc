"""relation_loss in its direct form: the N x N similarities themselves, in tiles that are never stored.

A tile of G_b = F_b F_b^T compares 64 tokens with 64 others. With the tiles of both branches in registers, a program
adds

    s_i += sum_j G1_ij G2_ij,    a_i += sum_j G1_ij^2,    b_i += sum_j G2_ij^2

and forgets them. The backward pass makes the tiles again. With the coefficients of
:mod:`smml_kernels.relation.rows`, and as token i also appears in the rows of all the others,

    dF1_i = sum_j H1_ij f1_j,    H1_ij = (p1_i + p1_j) G1_ij - (q_i + q_j) G2_ij,    dF2 with 1 and 2 exchanged.

**Why eager is slow.** It stores what is not needed twice: some 69 N x N float32 numbers read or written, 290 MB at
N = 1024. Here the features are read from cache over and over, and 24 N C bytes need to come from memory. The price is
arithmetic, 12 N^2 C operations, which is less than the linear form's as long as there are few tokens per channel.

**Precision.** The products are float32, or TensorFloat-32 where PyTorch's own would be; sums over j of squares of
G are float64, and so are the coefficients and H before it is rounded once for the last product: near agreement
s_i^2 is almost a_i b_i, and p1 G1 almost q G2. What is left is the rounding of G, which the eager form has too.
Features are first scaled by a power of two, exactly, so that G, of the second power, stays within float32.

**The tiles.** Channels are summed in slices, so any number of them fits. In the forward pass the columns j of a block
of rows are shared by several programs, and a second kernel adds up their sums. In the backward pass a program owns 128
columns of a block of both gradients; for more channels than that, G is computed once for each such block.
"""

import torch
import triton
import triton.language as tl

from smml_kernels.common import launch
from smml_kernels.relation.rows import finish_rows, row_coefficients, weight_arguments

# Tokens of a block each way, forward; tokens of a block, others at a time and columns of a block, backward. Channels
# are summed 16 at a time. Larger tiles spill registers with eight warps: two float32 products and float64 sums of them.
_TILE = 64
_TOKENS, _OTHERS = 32, 32
_COLUMNS = {torch.float32: 128, torch.float64: 32}
_SLICE = 16
# Programs that the forward pass is spread over, where there are tokens enough.
_PROGRAMS = 264


@triton.jit
def _similarity(
    f, i, j, row, column, tokens, channels, scale, ACC: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr
):
    """The tile [i, j] of G of the scaled features; 0 for tokens past the last."""
    g = tl.zeros((i.shape[0], j.shape[0]), ACC)
    for start in range(0, channels, SLICE):
        k = (start + tl.arange(0, SLICE)).to(tl.int64)
        inside = (i < tokens)[:, None] & (k < channels)[None, :]
        x = tl.load(f + i[:, None] * row + k[None, :] * column, mask=inside, other=0.0).to(ACC)
        inside = (k < channels)[:, None] & (j < tokens)[None, :]
        y = tl.load(f + k[:, None] * column + j[None, :] * row, mask=inside, other=0.0).to(ACC)
        g = tl.dot(x * scale, y * scale, g, input_precision=PRECISION, out_dtype=ACC)
    return g.to(tl.float64)


@triton.jit
def _rows_kernel(
    f1, f2, scales, partial, f1_row, f1_column, f2_row, f2_column, tokens, channels, share, ACC: tl.constexpr,
    TILE: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """s, a, b of a block of tokens, summed over a share of the others: partial [shares, 3, N]."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    part = tl.program_id(1)
    scale1 = tl.load(scales).to(ACC)
    scale2 = tl.load(scales + 1).to(ACC)
    s = tl.zeros((TILE,), tl.float64)
    a = tl.zeros((TILE,), tl.float64)
    b = tl.zeros((TILE,), tl.float64)
    for start in range(part * share, tl.minimum((part + 1) * share, tokens), TILE):
        j = (start + tl.arange(0, TILE)).to(tl.int64)
        g1 = _similarity(f1, i, j, f1_row, f1_column, tokens, channels, scale1, ACC, SLICE, PRECISION)
        g2 = _similarity(f2, i, j, f2_row, f2_column, tokens, channels, scale2, ACC, SLICE, PRECISION)
        s += tl.sum(g1 * g2, axis=1)
        a += tl.sum(g1 * g1, axis=1)
        b += tl.sum(g2 * g2, axis=1)
    at = partial + 3 * part * tl.cast(tokens, tl.int64) + i
    tl.store(at, s, mask=i < tokens)
    tl.store(at + tokens, a, mask=i < tokens)
    tl.store(at + 2 * tokens, b, mask=i < tokens)


@triton.jit
def _gradient_kernel(
    f1, f2, scales, rows, weight, weight_row, upstream, gradient1, gradient2, f1_row, f1_column, f2_row, f2_column,
    tokens, channels, blocks, WEIGHTED: tl.constexpr, ACC: tl.constexpr, TILE: tl.constexpr, OTHERS: tl.constexpr,
    COLUMNS: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of dF1 and the same tile of dF2, contiguous; scales are those of the features and the number of tokens."""
    program = tl.program_id(0)
    i = (program // blocks).to(tl.int64) * TILE + tl.arange(0, TILE)
    c = (program % blocks).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    scale1 = tl.load(scales).to(ACC)
    scale2 = tl.load(scales + 1).to(ACC)
    q, p1, p2 = row_coefficients(rows, weight, weight_row, scales + 2, i, tokens, WEIGHTED)
    total1 = tl.zeros((TILE, COLUMNS), ACC)
    total2 = tl.zeros((TILE, COLUMNS), ACC)
    for start in range(0, tokens, OTHERS):
        j = (start + tl.arange(0, OTHERS)).to(tl.int64)
        g1 = _similarity(f1, i, j, f1_row, f1_column, tokens, channels, scale1, ACC, SLICE, PRECISION)
        g2 = _similarity(f2, i, j, f2_row, f2_column, tokens, channels, scale2, ACC, SLICE, PRECISION)
        qj, p1j, p2j = row_coefficients(rows, weight, weight_row, scales + 2, j, tokens, WEIGHTED)
        both = q[:, None] + qj[None, :]
        h1 = ((p1[:, None] + p1j[None, :]) * g1 - both * g2).to(ACC)
        h2 = ((p2[:, None] + p2j[None, :]) * g2 - both * g1).to(ACC)
        inside = (j < tokens)[:, None] & (c < channels)[None, :]
        y = tl.load(f1 + j[:, None] * f1_row + c[None, :] * f1_column, mask=inside, other=0.0).to(ACC) * scale1
        total1 = tl.dot(h1, y, total1, input_precision=PRECISION, out_dtype=ACC)
        y = tl.load(f2 + j[:, None] * f2_row + c[None, :] * f2_column, mask=inside, other=0.0).to(ACC) * scale2
        total2 = tl.dot(h2, y, total2, input_precision=PRECISION, out_dtype=ACC)
    # A zero row has no direction of its own: what other tokens would pull at it is cut off.
    a = tl.load(rows + tokens + i, mask=i < tokens, other=0.0)
    b = tl.load(rows + 2 * tokens + i, mask=i < tokens, other=0.0)
    factor = tl.load(upstream).to(tl.float64)
    at = i[:, None] * channels + c[None, :]
    inside = (i < tokens)[:, None] & (c < channels)[None, :]
    # d(scale x)/dx; in float64, as the gradient of tiny features is beyond float32 only at the very end.
    total1 = tl.where((a == 0.0)[:, None], 0.0, total1.to(tl.float64) * (factor * tl.load(scales)))
    tl.store(gradient1 + at, total1.to(ACC), mask=inside)
    total2 = tl.where((b == 0.0)[:, None], 0.0, total2.to(tl.float64) * (factor * tl.load(scales + 1)))
    tl.store(gradient2 + at, total2.to(ACC), mask=inside)


def _scale(f: torch.Tensor) -> torch.Tensor:
    """The power of two that brings the largest feature into [0.5, 1), or nearly so at the ends of float32; float64."""
    acc = launch.accumulator(f)
    exponent = torch.frexp(torch.linalg.vector_norm(f, float("inf"), dtype=acc))[1]
    # Both the power and its inverse must be normal numbers.
    most = 126 if acc == torch.float32 else 1022
    return torch.ldexp(torch.ones((), dtype=torch.float64, device=f.device), -exponent.clamp(-most, most))


def forward(
    f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, group: str, tf32: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the forward pass.

    Args:
        f1: F_1 [N, C], floating, any strides.
        f2: F_2, of the same dtype and shape.
        weight: w [N], floating, any stride, or None for 1 / N.
        group: must be "": other ranks' tokens are not here to be compared with.
        tf32: whether float32 products may be rounded to TensorFloat-32.

    Returns:
        The loss, 0-dim float32 (float64 for float64); s, a, b of the scaled features [3, N], float64; the scales of
        both branches and N [3], float64.
    """
    assert not group, "the direct form cannot be split over ranks"
    tokens, channels = f1.shape
    acc = launch.accumulator(f1)
    blocks = triton.cdiv(tokens, _TILE)
    share = triton.cdiv(blocks, min(blocks, max(1, _PROGRAMS // blocks))) * _TILE
    parts = triton.cdiv(tokens, share)
    rows, _ = saved(f1)
    count = torch.full((), tokens, dtype=torch.float64, device=f1.device)
    scales = torch.stack([_scale(f1), _scale(f2), count])
    partial = rows.new_empty((parts, 3, tokens))
    with launch.device_of(f1):
        _rows_kernel[(blocks, parts)](
            f1, f2, scales, partial, *f1.stride(), *f2.stride(), tokens, channels, share, ACC=launch.triton_dtype(acc),
            TILE=_TILE, SLICE=_SLICE, PRECISION=_precision(tf32), num_warps=8, **launch.OPTIONS,
        )  # fmt: skip
        loss = finish_rows(partial, rows, weight, scales[2], acc, "")
    return loss, rows, scales


def backward(
    upstream: torch.Tensor, f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, rows: torch.Tensor,
    scales: torch.Tensor, group: str, tf32: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Launch the backward pass: dL/dF_1 and dL/dF_2, contiguous, in the dtype of F, times ``upstream`` (0-dim)."""
    tokens, channels = f1.shape
    acc = launch.accumulator(f1)
    columns = min(_COLUMNS[acc], max(32, triton.next_power_of_2(channels)))
    blocks = triton.cdiv(channels, columns)
    gradients = tuple(torch.empty(f1.shape, dtype=f1.dtype, device=f1.device) for _ in range(2))
    with launch.device_of(f1):
        _gradient_kernel[(blocks * triton.cdiv(tokens, _TOKENS),)](
            f1, f2, scales, rows, *weight_arguments(weight, rows), upstream, *gradients, *f1.stride(),
            *f2.stride(), tokens, channels, blocks, WEIGHTED=weight is not None, ACC=launch.triton_dtype(acc),
            TILE=_TOKENS, OTHERS=_OTHERS, COLUMNS=columns, SLICE=_SLICE, PRECISION=_precision(tf32),
            num_warps=4 if columns == 32 and acc == torch.float32 else 8, **launch.OPTIONS,
        )  # fmt: skip
    return gradients


def saved(f1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty tensors of the shapes of what the forward pass keeps: the rows and the scales."""
    rows = f1.new_empty((3, f1.shape[0]), dtype=torch.float64)
    return rows, rows.new_empty(3)


def _precision(tf32: bool) -> str:
    return "tf32" if tf32 else "ieee"
