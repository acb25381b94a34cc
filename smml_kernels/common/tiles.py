"""Tiles [K, BLOCK] of the per-voxel losses: all classes of BLOCK neighbouring voxels, and what is done with them."""

import torch
import triton
import triton.language as tl

# Bytes of a tile: with four classes, each of 4 warps' threads loads 16 bytes of each class.
_BYTES = 8192
# Enough programs to keep the largest GPU busy, few enough that adding up their sums costs nothing.
_PROGRAMS = 528

WARPS = 4
# Of the one program that adds partial sums up.
FINISH_WARPS = 8


def tile_shape(x: torch.Tensor) -> tuple[int, int, int]:
    """How logits [B, K, V] are cut.

    Returns:
        K padded to a power of two; voxels of a tile, so that a thread loads 16 bytes of each class at once; and how
        many of these lie side by side in one thread.
    """
    padded, side_by_side = triton.next_power_of_2(x.shape[1]), 16 // x.element_size()
    # Many classes of 64 bits, two registers each: half a tile, or they do not fit.
    bytes_of_tile = _BYTES // 2 if x.dtype == torch.float64 and padded > 4 else _BYTES
    return padded, max(16, bytes_of_tile // x.element_size() // padded), side_by_side


def programs_for(x: torch.Tensor, block: int) -> int:
    """How many programs share the voxels of one sample of [B, K, V]."""
    return min(triton.cdiv(x.shape[2], block), max(1, _PROGRAMS // max(1, x.shape[0])))


def rows_at_once(sums: int, padded: int) -> int:
    """Rows of partial sums [P, sums, padded] that ``add_up`` loads at once."""
    return max(1, 8192 // (sums * padded))


@triton.jit
def _shifted(x, k, K: tl.constexpr):
    """x minus its largest real class; -1e30 in the rows from K on, which are padding, so that 0 * log 0 stays 0."""
    real = (k < K)[:, None]
    return tl.where(real, x - tl.max(tl.where(real, x, float("-inf")), axis=0)[None, :], -1e30)


@triton.jit
def _exp(x):
    """exp of what is at most 0. The unit of a GPU takes powers of two; what is too small for a normal number is 0."""
    return tl.exp2(x * 1.4426950408889634) if x.dtype == tl.float32 else tl.exp(x)


@triton.jit
def softmax(x, k, K: tl.constexpr):
    """Over the classes of a tile [KP, BLOCK] whose rows from K on are padding; 0 there."""
    e = _exp(_shifted(x, k, K))
    return e * (1.0 / tl.sum(e, axis=0))[None, :]


@triton.jit
def softmax_and_log(x, k, K: tl.constexpr):
    """:func:`softmax` and its logarithm, which is about -1e30 in the rows that are padding."""
    x = _shifted(x, k, K)
    e = _exp(x)
    total = tl.sum(e, axis=0)
    return e * (1.0 / total)[None, :], x - tl.log(total)[None, :]


@triton.jit
def one_hot(y, k, valid, tile):
    """1 where a voxel has the class k and ``valid`` allows it, else 0: [KP, BLOCK]; NaN where ``tile`` is NaN.

    A one that depends on the tile lies in the threads where the tile lies; a constant would be moved between them.
    """
    return tl.where((k[:, None] == y[None, :]) & valid, 1.0 + 0.0 * tile, 0.0)


@triton.jit
def fold(x, KP: tl.constexpr, BLOCK: tl.constexpr, BY: tl.constexpr):
    """Sums of BY neighbouring columns: [KP, BLOCK] -> [KP, BLOCK / BY]. A thread adds up its own voxels."""
    return tl.sum(tl.reshape(x, (KP, BLOCK // BY, BY)), axis=2)


@triton.jit
def add_up(partial, rows, SUMS: tl.constexpr, KP: tl.constexpr, ROWS: tl.constexpr):
    """Partial sums [rows, SUMS, KP] added up over the rows, in float64, ROWS at a time: [SUMS, KP]."""
    total = tl.zeros((ROWS, SUMS * KP), tl.float64)
    r = tl.arange(0, ROWS)[:, None]
    for start in range(0, rows, ROWS):
        at = (start + r) * (SUMS * KP) + tl.arange(0, SUMS * KP)[None, :]
        total += tl.load(partial + at, mask=start + r < rows, other=0.0).to(tl.float64)
    return tl.reshape(tl.sum(total, axis=0), (SUMS, KP))


@triton.jit
def row(table, i, SUMS: tl.constexpr):
    """Row i of a table [SUMS, KP] that is spread over threads."""
    return tl.sum(tl.where(tl.arange(0, SUMS)[:, None] == i, table, 0.0), axis=0)
