"""Resampling that never looks at the background: the brain's edge keeps the brain's intensities.

Interpolating an image as it is mixes the background into every voxel of the edge, and that much tissue then is too dark
or, where the background means "average", too bright. Here tissue and mask go through the same weights and one is
divided by the other.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

# A voxel is brain if at least this share of what it is made from is.
_SHARE = 0.5
# Edge of the voxels, in mm, on which smooth fields are made: finer ones would only cost time.
_COARSE = 5.0


def resize_weights(old: int, new: int) -> torch.Tensor:
    """Weights of one axis, float32 [new, old], rows summing to 1; both grids have the same outer edges.

    Linear interpolation where voxels become smaller. Where they become larger, each is the mean of what it covers, so
    nothing is skipped.

    Args:
        old: voxels before.
        new: voxels after.
    """
    scale = old / new
    places = (torch.arange(new, dtype=torch.float64) + 0.5) * scale - 0.5
    distance = (places[:, None] - torch.arange(old, dtype=torch.float64)).abs()
    wide = max(scale, 1.0)
    # A trapezoid: flat over what the new voxel covers for sure, 0 half an old voxel beyond it.
    weights = ((wide + 1) / 2 - distance).clamp(0, 1)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def resize(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Bring float32 [X, Y, Z] to a shape by :func:`resize_weights` along each axis."""
    for axis, (old, new) in enumerate(zip(volume.shape, shape, strict=True)):
        if old != new:
            volume = torch.tensordot(resize_weights(old, new), volume.movedim(axis, 0), 1).movedim(0, axis)
    return volume.contiguous()


def resize_masked(volume: torch.Tensor, mask: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring a volume and its mask to a shape, each new voxel from voxels of the mask alone.

    Args:
        volume: float32 [X, Y, Z]; never read outside the mask.
        mask: bool [X, Y, Z].
        shape: wanted.

    Returns:
        float32 and bool of that shape; the volume is 0 outside the mask.
    """
    inside = torch.where(mask, volume, 0)
    if tuple(shape) == tuple(volume.shape):
        return inside, mask
    return divided(resize(inside, shape), resize(mask.float(), shape))


def transform_masked(
    volume: torch.Tensor, mask: torch.Tensor, matrix: np.ndarray, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring a volume and its mask to a grid that may lie oblique, each new voxel from voxels of the mask alone.

    Linear interpolation; a new voxel that is larger than the old ones is the mean over several places in it, so that
    nothing is skipped.

    Args:
        volume: float32 [X, Y, Z]; never read outside the mask.
        mask: bool [X, Y, Z].
        matrix: [4, 4], index of a new voxel -> index in ``volume``.
        shape: of the new grid.

    Returns:
        float32 and bool of that shape; the volume is 0 outside the mask and beyond the old grid.
    """
    linear, origin = np.asarray(matrix, np.float64)[:3, :3], np.asarray(matrix, np.float64)[:3, 3]
    # Rounding must not turn a voxel of the same size into two.
    counts = [max(1, math.ceil(step - 1e-3)) for step in np.linalg.norm(linear, axis=0)]
    places = list(itertools.product(*[(np.arange(count) + 0.5) / count - 0.5 for count in counts]))
    parts = []
    for part in (torch.where(mask, volume, 0).numpy(), mask.numpy().astype(np.float32)):
        total = np.zeros(tuple(shape), np.float32)
        for place in places:
            offset = origin + linear @ np.array(place)
            # Beyond the old grid there is nothing, and the last voxel reaches half an edge beyond its middle.
            total += ndimage.affine_transform(part, linear, offset, tuple(shape), order=1, mode="grid-constant")
        parts.append(torch.from_numpy(total / len(places)))
    return divided(*parts)


def divided(weighted: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tissue that was interpolated with 0 outside the mask -> the tissue alone, and the mask, bool.

    Args:
        weighted: interpolated tissue, floating, any shape.
        share: the mask interpolated by the same weights.
    """
    mask = share >= _SHARE
    return torch.where(mask, weighted / share.clamp_min(_SHARE), 0), mask


def smooth_field(volume: torch.Tensor, mask: torch.Tensor, spacing: Sequence[float], width: float) -> torch.Tensor:
    """The slow part of a volume: a Gaussian mean over the mask alone, float32 [X, Y, Z], defined everywhere.

    Args:
        volume: float32 [X, Y, Z].
        mask: bool [X, Y, Z] with at least one voxel.
        spacing: voxel edges in mm.
        width: standard deviation of the Gaussian in mm.
    """
    shape = [max(1, round(n * min(1.0, edge / _COARSE))) for n, edge in zip(volume.shape, spacing, strict=True)]
    sigma = [width * new / (old * edge) for new, old, edge in zip(shape, volume.shape, spacing, strict=True)]
    parts = [resize(torch.where(mask, volume, 0), shape), resize(mask.float(), shape)]
    tissue, share = (
        resize(torch.from_numpy(ndimage.gaussian_filter(part.numpy(), sigma, mode="nearest")), volume.shape)
        for part in parts
    )
    # Far from the brain both fade away; the mean over the brain stands in.
    floor = 1e-3
    mean = volume[mask].double().mean().float()
    return (tissue + floor * mean) / (share + floor)
