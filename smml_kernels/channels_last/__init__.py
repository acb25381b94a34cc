"""InstanceNorm, LeakyReLU and convolution of maps whose channels lie side by side in memory: a CPU's fast way.

A CPU multiplies whole vectors of channels at once, so its convolutions want the channels of a voxel together. PyTorch's
own instance norm hands its result back contiguous, whatever it was given, and every convolution behind it turns the
maps round again. Here they stay as they are, from layer to layer.

Everything works on *rows*: a map [B, C, X, Y, Z] in this format is a matrix [B, X, Y, Z * C] without a copy, so that
one operation on a row of Z * C neighbours does for all channels what would otherwise be done C numbers at a time.
"""

from smml_kernels.channels_last.convolution import convolution
from smml_kernels.channels_last.layer import pre_norm_convolution
from smml_kernels.channels_last.rows import FORMAT, as_voxels, is_channels_last, of_voxels

__all__ = ["FORMAT", "as_voxels", "convolution", "is_channels_last", "of_voxels", "pre_norm_convolution"]
