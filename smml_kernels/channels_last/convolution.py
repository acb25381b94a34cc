"""3-D convolutions without padding of maps in channels-last format, by oneDNN, and their gradients.

Three things make them faster than a plain call. Where a vector of the CPU holds 16 numbers (AVX512), 8 output channels
fill half of it: then two neighbours along z are computed as one voxel of twice the channels, by a kernel of 3 x 3 x 4
that moves two voxels at a time. It multiplies a third more, at twice the rate, and in memory its result is the map
itself. The gradient in the maps is again a convolution, of the gradient in the result by the mirrored kernel, done the
same way. And oneDNN is taken where PyTorch would not take it: for a single sample, and for bfloat16 on a CPU that only
stores it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from smml_kernels.channels_last.rows import FORMAT, as_voxels, of_voxels

# Float32 numbers that one instruction multiplies.
_LANES = 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
# Numbers in the planes of a single float32 sample, Cin X Y, up to which PyTorch does not take oneDNN (ConvParams::
# use_mkldnn in aten/src/ATen/native/Convolution.cpp).
_TAKEN_FOR_SMALL = 20480


def convolution(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int = 1) -> torch.Tensor:
    """A convolution without padding that keeps the format; differentiable once.

    Args:
        maps: [B, Cin, X, Y, Z], floating, in channels-last format, on the CPU.
        weight: [Cout, Cin, k, k, k], k 1 or 3, of the same dtype.
        bias: [Cout], or None.
        stride: 1 or 2, along every axis.

    Returns:
        [B, Cout, X', Y', Z'] in channels-last format.
    """
    return _Convolution.apply(maps, weight, bias, stride)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int) -> torch.Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.stride, ctx.with_bias = stride, bias is not None
        return forward(maps, weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        of_maps = gradient_of_maps(upstream, maps, weight, ctx.stride) if ctx.needs_input_grad[0] else None
        return of_maps, *gradient_of_weight(upstream, maps, weight, ctx.stride, ctx.with_bias), None


def forward(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int) -> torch.Tensor:
    """:func:`convolution` without a graph."""
    if not _folds(weight.shape[0], weight, stride, maps.shape[4] - 2):
        return _onednn(maps, weight, bias, [stride] * 3)
    bias = bias if bias is None else bias.repeat(2)
    return _unfold(_onednn(maps, _for_two(weight), bias, [1, 1, 2]))


def gradient_of_maps(upstream: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """The gradient of :func:`convolution` in its maps, in channels-last format."""
    upstream = upstream.contiguous(memory_format=FORMAT)
    if stride > 1:
        of_maps = _gradients(upstream, maps, weight, [stride] * 3, [True, False, False])[0]
        return of_maps.contiguous(memory_format=FORMAT)
    border = weight.shape[2] - 1
    mirrored = weight.flip(2, 3, 4).transpose(0, 1)
    if not _folds(weight.shape[1], weight, stride, maps.shape[4]):
        return _onednn(upstream, mirrored.contiguous(), None, [1] * 3, border)
    return _unfold(_onednn(upstream, _for_two(mirrored), None, [1, 1, 2], border))


def gradient_of_weight(
    upstream: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor, stride: int, with_bias: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of :func:`convolution` in its weight and in its bias (None without one)."""
    upstream = upstream.contiguous(memory_format=FORMAT)
    out_channels = weight.shape[0]
    if weight.shape[2] == 1 and stride == 1 and maps.dtype == torch.float32:
        # oneDNN takes three times as long for these in float32. One product for each plane, then their sum: adding
        # all voxels one by one would lose a digit.
        above, below = (as_voxels(each).flatten(0, 1).flatten(1, 2) for each in (upstream, maps))
        of_weight = (above.transpose(1, 2) @ below).sum(0).view_as(weight)
        return of_weight, above.sum((0, 1)) if with_bias else None
    wanted = [False, True, with_bias]
    if not _folds(out_channels, weight, stride, upstream.shape[4]):
        _, of_weight, of_bias = _gradients(upstream, maps, weight, [stride] * 3, wanted)
        return of_weight, of_bias
    two = _fold(upstream)
    # Of the kernel only the shape matters.
    kernel = weight.new_empty(2 * out_channels, weight.shape[1], 3, 3, 4)
    _, of_two, of_bias = _gradients(two, maps, kernel, [1, 1, 2], wanted)
    of_weight = of_two[:out_channels, ..., :-1] + of_two[out_channels:, ..., 1:]
    return of_weight, of_bias.view(2, -1).sum(0) if with_bias else None


def _folds(channels: int, weight: torch.Tensor, stride: int, depth: int) -> bool:
    """Whether two neighbours along z are computed as one voxel: for few output channels, and an even number of them."""
    return stride == 1 and weight.shape[2] == 3 and 2 * channels <= _LANES and depth % 2 == 0


def _for_two(weight: torch.Tensor) -> torch.Tensor:
    """The kernel of two neighbours along z, [Cout, Cin, 3, 3, 3] -> [2 Cout, Cin, 3, 3, 4]: itself, and one further."""
    return torch.cat([F.pad(weight, (0, 1)), F.pad(weight, (1, 0))])


def _unfold(two: torch.Tensor) -> torch.Tensor:
    """[B, 2 C, X, Y, Z / 2] -> [B, C, X, Y, Z]: in this format the same numbers in the same places."""
    batch, channels, x, y, z = two.shape
    return of_voxels(as_voxels(two).view(batch, x, y, 2 * z, channels // 2))


def _fold(maps: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`_unfold`."""
    batch, channels, x, y, z = maps.shape
    return of_voxels(as_voxels(maps).view(batch, x, y, z // 2, 2 * channels))


def _takes_bfloat16() -> bool:
    """Whether oneDNN, which is there, computes in bfloat16 on this CPU, as it does on x86-64 with AVX512.

    Elsewhere PyTorch's own routine for bfloat16 takes tens to hundreds of times as long as float32.
    """
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _onednn(
    maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: list[int], padding: int = 0
) -> torch.Tensor:
    """One convolution. PyTorch's own choice is a much slower routine for what it takes for small, in float32."""
    if _by_way_of_float32(maps):
        bias = None if bias is None else bias.float()
        return _onednn(maps.float(), weight.float(), bias, stride, padding).to(maps.dtype)
    if maps.dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        out = F.conv3d(maps, weight, bias, stride, padding)
    else:
        out = torch.mkldnn_convolution(maps, weight, bias, [padding] * 3, stride, [1] * 3, 1)
    # Maps of one channel lie in either order at once, and their result may come in the other one.
    return out.contiguous(memory_format=FORMAT)


def _gradients(
    upstream: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor, stride: list[int], wanted: list[bool]
) -> tuple[Any, ...]:
    """The gradients of one convolution in maps, weight and bias; None for what is not wanted."""
    if _by_way_of_float32(maps):
        found = _gradients(upstream.float(), maps.float(), weight.float(), stride, wanted)
        return tuple(None if each is None else each.to(maps.dtype) for each in found)
    if maps.dtype == torch.float32 and len(maps) == 1 and maps[..., 0].numel() <= _TAKEN_FOR_SMALL:
        return _gradients_in_halves(upstream, maps, weight, stride, wanted)
    sizes = [weight.shape[0]] if wanted[2] else None
    arguments = (sizes, stride, [0] * 3, [1] * 3, False, [0] * 3, 1, wanted)
    return torch.ops.aten.convolution_backward(upstream, maps, weight, *arguments)


def _gradients_in_halves(
    upstream: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor, stride: list[int], wanted: list[bool]
) -> tuple[Any, ...]:
    """:func:`_gradients` of a single sample, made two: its halves along x.

    PyTorch leaves a small single sample in float32 to a routine of its own that takes up to seven times as long.
    """
    step, half = stride[0], (upstream.shape[2] + 1) // 2
    # The input of a half, and how far it reaches beyond the maps if the result has an odd number of planes.
    begin, length = step * half, step * (half - 1) + weight.shape[2]
    beyond = max(begin + length - maps.shape[2], 0)
    padded = F.pad(maps, (0, 0, 0, 0, 0, beyond))
    of_result = F.pad(upstream, (0, 0, 0, 0, 0, 2 * half - upstream.shape[2]))
    of_two, *others = _gradients(
        torch.cat(of_result.split(half, 2)),
        torch.cat([padded[:, :, :length], padded[:, :, begin : begin + length]]),
        weight,
        stride,
        wanted,
    )
    if of_two is None:
        return None, *others
    of_maps = torch.zeros_like(padded)
    of_maps[:, :, :length] += of_two[:1]
    of_maps[:, :, begin : begin + length] += of_two[1:]
    return of_maps[:, :, : maps.shape[2]], *others


def _by_way_of_float32(maps: torch.Tensor) -> bool:
    """Whether these are numbers that this CPU only stores: the sums are the same, and the result is rounded to them."""
    return maps.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available() and not _takes_bfloat16()
