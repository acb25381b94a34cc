"""What every form of relation_loss shares: from s_i, a_i, b_i of a token to its loss and to its coefficients.

With s_i = g1_i . g2_i, a_i = |g1_i|^2, b_i = |g2_i|^2 and c_i = s_i / sqrt(a_i b_i), token i adds

    w_i L_i,    L_i = 1[a_i > 0] + 1[b_i > 0] - 2 c_i

to the loss. Every backward pass is made of three coefficients of a token,

    q_i = - dL/ds_i = 2 w_i / sqrt(a_i b_i),    p1_i = 2 dL/da_i = 2 w_i c_i / a_i,    p2_i the same with b_i:

the derivatives by the similarities of token i are p1_i g1_i - q_i g2_i and, in the second branch, p2_i g2_i - q_i g1_i.

They are float64 whatever the features are: near agreement 2 - 2 c subtracts two nearly equal numbers. That is a few
operations on N numbers, and each kernel that needs the coefficients computes them again from s, a, b, so that only
[3, N] is stored. Where a or b is 0 all three vanish, without a division by it.
"""

import torch
import triton
import triton.language as tl

from smml_kernels.common import launch

# Tokens of a program of the kernel that finishes the rows.
TOKENS_OF_PROGRAM = 256
# Partial losses added up at a time; one program does it, always in the same order.
_LOSSES = 1024


@triton.jit
def inverse_root(x):
    """1 / sqrt(x) where x > 0 and 0 where x <= 0; NaN stays NaN, so that it shows in the loss."""
    zero = x <= 0.0
    return tl.where(zero, 0.0, 1.0 / tl.sqrt(tl.where(zero, 1.0, x)))


@triton.jit
def row_weight(weight, weight_row, count, i, inside, WEIGHTED: tl.constexpr):
    """w of the tokens i in float64: as given, or one over the number of tokens that ``count`` points to."""
    if WEIGHTED:
        w = tl.load(weight + i * weight_row, mask=inside, other=0.0).to(tl.float64)
    else:
        w = tl.where(inside, 1.0 / tl.load(count), 0.0)
    return w


@triton.jit
def row_coefficients(rows, weight, weight_row, count, i, tokens, WEIGHTED: tl.constexpr):
    """(q, p1, p2) of the tokens i, float64; zero for tokens past the last."""
    inside = i < tokens
    s = tl.load(rows + i, mask=inside, other=0.0)
    a = inverse_root(tl.load(rows + tokens + i, mask=inside, other=0.0))
    b = inverse_root(tl.load(rows + 2 * tokens + i, mask=inside, other=0.0))
    w = 2.0 * row_weight(weight, weight_row, count, i, inside, WEIGHTED)
    # Two roots, not the root of a product: a_i b_i of large features would overflow first.
    wc = w * (s * a * b)
    return w * a * b, wc * a * a, wc * b * b


@triton.jit
def _rows_kernel(
    partial, rows, losses, weight, weight_row, count, parts, tokens, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr
):
    """Partial sums [parts, 3, N] -> s, a, b [3, N] and the loss of each block of tokens."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < tokens
    s = tl.zeros((BLOCK,), tl.float64)
    a = tl.zeros((BLOCK,), tl.float64)
    b = tl.zeros((BLOCK,), tl.float64)
    stride = tl.cast(tokens, tl.int64)
    for part in range(parts):
        at = partial + 3 * part * stride + i
        s += tl.load(at, mask=inside, other=0.0)
        a += tl.load(at + stride, mask=inside, other=0.0)
        b += tl.load(at + 2 * stride, mask=inside, other=0.0)
    tl.store(rows + i, s, mask=inside)
    tl.store(rows + stride + i, a, mask=inside)
    tl.store(rows + 2 * stride + i, b, mask=inside)
    present = tl.where(a > 0.0, 1.0, 0.0).to(tl.float64) + tl.where(b > 0.0, 1.0, 0.0)
    loss = present - 2.0 * (s * inverse_root(a) * inverse_root(b))
    loss *= row_weight(weight, weight_row, count, i, inside, WEIGHTED)
    tl.store(losses + tl.program_id(0), tl.sum(tl.where(inside, loss, 0.0), axis=0))


@triton.jit
def _loss_kernel(losses, loss, number, BLOCK: tl.constexpr):
    """Partial losses -> the loss."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, number, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(losses + at, mask=at < number, other=0.0)
    tl.store(loss, tl.sum(total, axis=0))


def finish_rows(
    partial: torch.Tensor,
    rows: torch.Tensor,
    weight: torch.Tensor | None,
    count: torch.Tensor,
    dtype: torch.dtype,
    group: str,
) -> torch.Tensor:
    """Launch the kernels that turn partial sums into ``rows`` and the loss.

    Args:
        partial: [parts, 3, N], float64.
        rows: s, a, b [3, N], float64, written.
        weight: [N] of any floating dtype and stride, or None for 1 / count.
        count: the number of tokens of all ranks together, one float64 on the device.
        dtype: of the loss.
        group: name of the process group whose ranks' losses are added up, or "".

    Returns:
        The loss, 0-dim.
    """
    tokens = rows.shape[1]
    blocks = triton.cdiv(tokens, TOKENS_OF_PROGRAM)
    losses = rows.new_empty(blocks)
    loss = rows.new_empty((), dtype=torch.float64 if group else dtype)
    _rows_kernel[(blocks,)](
        partial, rows, losses, *weight_arguments(weight, rows), count, partial.shape[0], tokens,
        WEIGHTED=weight is not None, BLOCK=TOKENS_OF_PROGRAM, num_warps=4, **launch.OPTIONS,
    )  # fmt: skip
    return finish_loss(losses, loss, dtype, group)


def weight_arguments(weight: torch.Tensor | None, stand_in: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The pointer and the stride of the weight; of something that is never read where there is none.

    Half-precision weights are copied to float32: where they scale a factor of a float64 product, Triton 3.6 takes the
    product for one of their dtype and stops.
    """
    if weight is None:
        return stand_in, 0
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return weight, weight.stride(0)


def finish_loss(losses: torch.Tensor, loss: torch.Tensor, dtype: torch.dtype, group: str) -> torch.Tensor:
    """Launch the kernel that adds partial losses up into ``loss``, and add up those of the ranks."""
    _loss_kernel[(1,)](losses, loss, losses.shape[0], BLOCK=_LOSSES, num_warps=4, **launch.OPTIONS)
    if group:
        launch.all_reduce(loss, group)
    return loss.to(dtype)
