"""Convolutions, and the order in which their maps lie in memory: decided here for the whole network.

On a CPU with oneDNN the channels of a voxel lie side by side (:mod:`smml_kernels.channels_last`). Anywhere else, in
what ``torch.compile`` makes, and for maps so small that a call costs more than its arithmetic, they lie as PyTorch's
default has it. Every layer takes both, so no other place has to know.
"""

import platform

import torch
import torch.nn.functional as F
from torch import nn

from smml_kernels import channels_last

NEGATIVE_SLOPE = 0.2
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# Numbers of a map, batch included, below which the plain calls are faster; measured for 3x3x3 convolutions.
_SMALL = 2**15


def lies_channels_last(maps: torch.Tensor, scale: int = 1) -> bool:
    """Whether maps like these, [B, C, X, Y, Z], with edges ``scale`` times as long are kept channels side by side."""
    return maps.numel() * scale**3 >= _SMALL and maps.dtype in _DTYPES and _has_onednn(maps)


def in_order(maps: torch.Tensor) -> torch.Tensor:
    """[B, C, X, Y, Z] in the order of this device; as it is, if it has that order."""
    return maps.contiguous(memory_format=channels_last.FORMAT) if lies_channels_last(maps) else maps


class ReflectConv(nn.Conv3d):
    """A convolution that keeps the size (divided by the stride) and reflects at the border.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: 3, or 1, which needs no border.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        border = self.kernel_size[0] // 2
        if border:
            maps = F.pad(maps, (border,) * 6, mode="reflect")
        if not _has_onednn(maps):
            return super().forward(maps)
        dtype, stride, single = _computed_in(maps, self.weight), self.stride[0], self.in_channels == 1
        # The channel of an image lies side by side with itself in any order, and there the plain call is as fast.
        if lies_channels_last(maps) and not single:
            bias = None if self.bias is None else self.bias.to(dtype)
            return channels_last.convolution(in_order(maps.to(dtype)), self.weight.to(dtype), bias, stride)
        # Left to itself, PyTorch takes a slow routine in float32 for what it holds to be small. And for a single
        # channel float32 is the fastest of all.
        if maps.dtype == self.weight.dtype == torch.float32 and (single or dtype == torch.float32):
            arguments = [0] * 3, [stride] * 3, [1] * 3, 1
            return torch.mkldnn_convolution(maps, self.weight, self.bias, *arguments).to(dtype)
        return super().forward(maps)


class PreNormConv(nn.Module):
    """InstanceNorm -> LeakyReLU(0.2) -> convolution with reflect padding, [B, Cin, X, Y, Z] -> [B, Cout, X', Y', Z'].

    The pre-normalised order of mmFormer. The norm has no affine part: its scale is absorbed by the convolution. The
    arguments are those of :class:`ReflectConv`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = ReflectConv(in_channels, out_channels, kernel_size, stride)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if not lies_channels_last(maps):
            return self.conv(F.leaky_relu(_instance_norm(maps), NEGATIVE_SLOPE))
        conv = self.conv
        return channels_last.pre_norm_convolution(
            maps,
            conv.weight,
            conv.bias,
            stride=conv.stride[0],
            negative_slope=NEGATIVE_SLOPE,
            dtype=_computed_in(maps, conv.weight),
        )


def _instance_norm(maps: torch.Tensor) -> torch.Tensor:
    """InstanceNorm without an affine part."""
    if maps.device.type != "cpu":
        return F.instance_norm(maps)
    # With a group for each channel it is the same, and on a CPU several times as fast, if the maps are contiguous.
    return F.group_norm(maps.contiguous(), maps.shape[1])


def _has_onednn(maps: torch.Tensor) -> bool:
    """Whether oneDNN computes convolutions of these maps, with vectors, and PyTorch is not compiling them itself."""
    return (
        # First, as the compiler cannot look into what follows, and would compile the network in pieces.
        not torch.compiler.is_compiling()
        and maps.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        # Elsewhere it computes 3-D convolutions one number at a time.
        and platform.machine() in ("x86_64", "AMD64")
    )


def _computed_in(maps: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    """What a convolution computes in: the dtype of autocast, or else the wider one."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return torch.promote_types(maps.dtype, weight.dtype)
