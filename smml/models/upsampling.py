"""Trilinear interpolation to a multiple of the size, with the voxels' outer edges aligned.

The numbers are those of ``F.interpolate(maps, scale_factor=..., mode="trilinear", align_corners=False)``. Interpolating
one axis after the other needs fewer products, and PyTorch's own backward pass on a CPU adds up one voxel at a time.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from smml.models.convolution import lies_channels_last
from smml_kernels.channels_last import FORMAT, as_voxels, of_voxels


def double(maps: torch.Tensor) -> torch.Tensor:
    """Interpolate maps to twice their size, [B, C, X, Y, Z] -> [B, C, 2X, 2Y, 2Z], in the order of this device."""
    if not lies_channels_last(maps, scale=2):
        return F.interpolate(maps, scale_factor=2, mode="trilinear", align_corners=False)
    return _Double.apply(maps)


def enlarge(maps: torch.Tensor, scale: int) -> torch.Tensor:
    """Interpolate a few maps of a small grid by ``scale``, [B, C, X, Y, Z] -> [B, C, scale X, ...], contiguous."""
    if maps.device.type != "cpu":
        return F.interpolate(maps, scale_factor=scale, mode="trilinear", align_corners=False)
    with torch.autocast("cpu", enabled=False):
        for axis in (2, 3, 4):
            corner = torch.eye(maps.shape[axis], dtype=maps.dtype)
            weights = F.interpolate(corner[None], scale_factor=scale, mode="linear")[0]
            maps = torch.movedim(maps.movedim(axis, -1) @ weights, -1, axis)
    return maps.contiguous()


class _Double(torch.autograd.Function):
    """Between neighbours a and b lie 3/4 a + 1/4 b and 1/4 a + 3/4 b; beyond an end there is nothing but the end."""

    @staticmethod
    def forward(ctx, maps: torch.Tensor) -> torch.Tensor:
        voxels = as_voxels(maps.contiguous(memory_format=FORMAT))
        # The last axis first: its steps are the shortest, and there is least to do yet.
        for axis in (3, 2, 1):
            shape, last = list(voxels.shape), voxels.shape[axis] - 1
            pairs = voxels.new_empty([*shape[: axis + 1], 2, *shape[axis + 1 :]])
            first, second = pairs.unbind(axis + 1)
            before, behind = voxels.narrow(axis, 0, last), voxels.narrow(axis, 1, last)
            torch.lerp(behind, before, 0.25, out=first.narrow(axis, 1, last))
            torch.lerp(before, behind, 0.25, out=second.narrow(axis, 0, last))
            first.select(axis, 0).copy_(voxels.select(axis, 0))
            second.select(axis, last).copy_(voxels.select(axis, last))
            voxels = pairs.flatten(axis, axis + 1)
        return of_voxels(voxels)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: torch.Tensor) -> torch.Tensor:
        voxels = as_voxels(upstream.contiguous(memory_format=FORMAT))
        for axis in (1, 2, 3):
            first, second = voxels.unflatten(axis, (-1, 2)).unbind(axis + 1)
            last = first.shape[axis] - 1
            voxels = (first + second).mul_(0.75)
            voxels.narrow(axis, 0, last).add_(first.narrow(axis, 1, last), alpha=0.25)
            voxels.narrow(axis, 1, last).add_(second.narrow(axis, 0, last), alpha=0.25)
            voxels.select(axis, 0).add_(first.select(axis, 0), alpha=0.25)
            voxels.select(axis, last).add_(second.select(axis, last), alpha=0.25)
        return of_voxels(voxels)
