"""InstanceNorm -> LeakyReLU, with a reflected border round the result where a convolution wants one.

Mean and biased variance are taken about the mean and in float32 at least. The result alone is kept for the backward
pass: LeakyReLU can be undone, and what it was applied to is the normalised map that the gradient needs.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from smml_kernels.channels_last.rows import (
    as_maps,
    as_rows,
    blocks,
    fold_reflection,
    in_every_voxel,
    made_of,
    mean_of_voxels,
    reflect,
)


def norm_activation(
    maps: torch.Tensor, negative_slope: float, eps: float, border: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """LeakyReLU((x - mean) / sqrt(variance + eps)), reflected at the border.

    Args:
        maps: x, [B, C, X, Y, Z], floating, in channels-last format.
        negative_slope: of the LeakyReLU, above 0.
        eps: added to the variance.
        border: voxels that are reflected at each end of each axis, 0 or 1.
        dtype: of the result.

    Returns:
        [B, C, X + 2 border, ...] in channels-last format, and 1 / sqrt(variance + eps), [B, C].
    """
    batch, channels, x, y, z = maps.shape
    row, voxels = z * channels, x * y * z
    exact = torch.promote_types(maps.dtype, torch.float32)
    wider = (batch, x + 2 * border, y + 2 * border, (z + 2 * border) * channels)
    result = as_maps(maps.new_empty(wider, dtype=dtype), channels)
    inverse = maps.new_empty(batch, channels, dtype=exact)
    for some, parts in blocks(as_rows(maps), as_rows(result, border)):
        first = parts[0][0]
        mean = mean_of_voxels([first.to(exact)], channels, first[0].numel() // channels)
        centred = _minus(mean, parts, row)
        if len(parts) == 1:
            variance = mean_of_voxels((part * part for part in centred()), channels, voxels)
        else:
            # Read once, about the mean of the first part. How far that is from the mean of all is then taken off: its
            # square is at most the variance times the number of parts, which costs a digit or two of seven.
            shares = [
                torch.stack([mean_of_voxels([numbers], channels, voxels) for numbers in (part, part * part)])
                for part in centred()
            ]
            off, square = torch.stack(shares).sum(0).unbind(0)
            variance = square - off * off
            centred = _minus(mean + off, parts, row)
        inverse[some] = variance.add_(eps).rsqrt_()
        scale = in_every_voxel(inverse[some], row)
        for part, (_, inside) in zip(centred(), parts, strict=True):
            # The scale is positive, so it does not matter which of the two comes first.
            torch.mul(F.leaky_relu_(part, negative_slope), scale, out=inside)
    if border:
        reflect(result)
    return result, inverse


def _minus(mean: torch.Tensor, parts: list[tuple[torch.Tensor, ...]], row: int) -> Callable[[], Iterable[torch.Tensor]]:
    """The maps of each part less a mean [B, C]."""
    mean = in_every_voxel(mean, row)
    return made_of(parts, lambda rows, _: rows - mean)


def norm_activation_gradient(
    upstream: torch.Tensor,
    result: torch.Tensor,
    inverse: torch.Tensor,
    negative_slope: float,
    border: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The gradient of :func:`norm_activation` in its maps, by the gradient in its result.

    With n = (x - mean) * inverse and g the gradient in n: inverse * (g - mean(g) - n * mean(g n)).

    Args:
        upstream: of the shape and format of ``result``; with a border it is overwritten.
        result: of :func:`norm_activation`.
        inverse: likewise.
        negative_slope: likewise.
        border: likewise.
        dtype: of the maps.

    Returns:
        [B, C, X, Y, Z] in channels-last format.
    """
    if border:
        fold_reflection(upstream)
    channels = result.shape[1]
    rows = as_rows(upstream, border)
    voxels, row = rows[0].numel() // channels, rows.shape[3]
    gradient = rows.new_empty(rows.shape, dtype=dtype)
    for some, parts in blocks(rows, as_rows(result, border), gradient):
        before = made_of(parts, lambda above, out, _: _before_activation(above, out, negative_slope, inverse.dtype))
        scale = inverse[some]
        shift = mean_of_voxels((g for g, _ in before()), channels, voxels).mul_(scale).neg_()
        along = mean_of_voxels((g * normal for g, normal in before()), channels, voxels).mul_(scale).neg_()
        scale, shift, along = (in_every_voxel(each, row) for each in (scale, shift, along))
        for (g, normal), (*_, out) in zip(before(), parts, strict=True):
            torch.addcmul(torch.addcmul(shift, normal, along), g, scale, out=out)
    return as_maps(gradient, channels)


def _before_activation(
    upstream: torch.Tensor, out: torch.Tensor, negative_slope: float, exact: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient in front of the LeakyReLU, and the normalised map there."""
    upstream, out = upstream.to(exact), out.to(exact)
    gradient = torch.ops.aten.leaky_relu_backward(upstream, out, negative_slope, True)
    return gradient, F.leaky_relu(out, 1 / negative_slope)
