"""What both passes of ``masked_fusion`` share: how kernels reach the maps, skip missing ones, and normalise a voxel.

**One compiled kernel for every subset of modalities.** A kernel gets a tuple of M pointers and picks one at run time.
A map that is None is given some other map's address and its bit of ``given`` is 0, so that nothing is read there:
which maps are missing never decides what has to be compiled.

**Statistics as three numbers.** xhat = (x - mean) / sqrt(var + eps) is computed as (x - pivot) * rstd + shift, where
the pivot is the first voxel of the channel. Take a channel with a mean of 10000 and a spread of 1: float32 holds its
mean only to the third decimal, and so would xhat be. But x - pivot is exact for neighbouring numbers, and the mean of
*that* is as small as the spread, so that xhat keeps its digits. A constant channel becomes exactly 0.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

# Enough programs that every multiprocessor of the largest GPU has two.
ENOUGH = 264


@triton.jit
def pick(tensors, m, M: tl.constexpr):
    """The pointer number ``m``, known at run time only, of a tuple of M that point to one dtype."""
    picked = tensors[0]
    for i in tl.static_range(1, M):
        picked = tl.where(m == i, tensors[i], picked)
    return picked


@triton.jit
def is_present(mask, given, sample, m, M: tl.constexpr):
    """Whether modality m of the sample is there: given at all, and in the mask [B, M]."""
    return (((given >> m) & 1) != 0) & (tl.load(mask + sample * M + m) != 0)


@triton.jit
def normalised(values, statistics):
    """(x - mean) / sqrt(var + eps) of voxels of one channel, whose statistics are (pivot, rstd, shift)."""
    return (values - tl.load(statistics)) * tl.load(statistics + 1) + tl.load(statistics + 2)


@triton.jit
def store(pointer, values, mask):
    """Store in the dtype pointed to; float64 goes to half precision by way of float32, as no direct way is reliable."""
    if pointer.dtype.scalar.element_ty.primitive_bitwidth == 16:
        values = values.to(tl.float32)
    tl.store(pointer, values, mask=mask)


@triton.jit
def column_sums(vectors, N: tl.constexpr, BLOCK: tl.constexpr):
    """The sums of a tuple of N = 2^n vectors [BLOCK], as one vector [N], with one exchange between threads for all.

    Joining a pair makes its members neighbours in a thread's registers: nothing moves.
    """
    for level in tl.static_range(N.bit_length() - 1):
        joined = ()
        for i in tl.static_range(N >> (level + 1)):
            joined = joined + (tl.join(vectors[i], vectors[i + (N >> (level + 1))]),)
        vectors = joined
    return tl.sum(tl.reshape(vectors[0], (BLOCK, N)), axis=0)


def arrange(
    features: Sequence[torch.Tensor], slots: Sequence[int], modalities: int
) -> tuple[tuple[torch.Tensor, ...], int, tuple[int, int, int]]:
    """The given maps as kernels take them.

    Args:
        features: the maps that are given, [B, C, X, Y, Z].
        slots: their places among the modalities.
        modalities: M.

    Returns:
        M maps of the same strides, None replaced by the first that is given; the bits of those given; and the strides
        of sample, channel and voxel. Maps are copied only where their voxels have no common stride or maps differ in
        strides.
    """
    stride = features[0].stride()
    alike = all(f.stride() == stride for f in features)
    strides = strides_of_voxels(tuple(features[0].shape), stride) if alike else None
    if strides is None:
        features = [f.contiguous() for f in features]
        strides = features[0].flatten(2).stride()
    everyone, bits = [features[0]] * modalities, 0
    for slot, f in zip(slots, features, strict=True):
        everyone[slot] = f
        bits |= 1 << slot
    return tuple(everyone), bits, strides


@functools.lru_cache(maxsize=256)
def strides_of_voxels(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int, int] | None:
    """The strides of sample, channel and voxel of a map [B, C, X, Y, Z]; None if its voxels have no common one.

    A launch asks it for tensors of the same shapes again and again, and PyTorch's answer is a new tensor each time.
    """
    map = torch.empty_strided(shape, stride, device="meta")
    try:
        return map.view(*shape[:2], -1).stride()
    except RuntimeError:
        return None


def tiling(channels: int, voxels: int, others: int, acc: torch.dtype, enough: int) -> tuple[int, int]:
    """Channels and voxels of a program's tile: as large as registers hold, smaller where programs would be few.

    Args:
        channels: that are written; 16 of them a program at most, 8 in float64.
        voxels: of a sample.
        others: factor of the number of programs, such as the batch.
        acc: dtype of the sums.
        enough: programs.
    """
    chunk = min(8 if acc == torch.float64 else 16, triton.next_power_of_2(channels))
    block = 512  # 4 voxels a thread, to load 16 bytes of float32
    while others * triton.cdiv(channels, chunk) * triton.cdiv(voxels, block) < enough:
        if block > 128:
            block //= 2
        elif chunk > 4:
            chunk //= 2
        else:
            break
    return chunk, block
