"""The order in memory: maps as rows of voxels, cut into blocks that a core's cache holds."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

Made = TypeVar("Made")
FORMAT = torch.channels_last_3d
# Numbers of one block: with what is made of it on the way, some megabytes of float32.
_BLOCK = 2**19


def is_channels_last(maps: torch.Tensor) -> bool:
    """Whether the channels of [B, C, X, Y, Z] lie side by side, and not only by accident of a size of 1."""
    return maps.is_contiguous(memory_format=FORMAT) and not maps.is_contiguous()


def as_voxels(maps: torch.Tensor) -> torch.Tensor:
    """[B, C, X, Y, Z] -> a view [B, X, Y, Z, C], contiguous if the channels lie side by side."""
    return maps.permute(0, 2, 3, 4, 1)


def of_voxels(voxels: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`as_voxels`, a view."""
    return voxels.permute(0, 4, 1, 2, 3)


def as_rows(maps: torch.Tensor, border: int = 0) -> torch.Tensor:
    """[B, C, X, Y, Z] in this format -> a view [B, X, Y, Z * C], less ``border`` voxels at each end of each axis."""
    batch, channels, *edges = maps.shape
    x, y, z = (edge - 2 * border for edge in edges)
    sample, _, plane, line, voxel = maps.stride()
    start = maps.storage_offset() + border * (plane + line + voxel)
    return maps.as_strided((batch, x, y, z * channels), (sample, plane, line, 1), start)


def as_maps(rows: torch.Tensor, channels: int) -> torch.Tensor:
    """The inverse of :func:`as_rows`: contiguous rows [B, X, Y, Z * C] -> a view [B, C, X, Y, Z]."""
    batch, x, y, row = rows.shape
    return of_voxels(rows.view(batch, x, y, row // channels, channels))


def blocks(*rows: torch.Tensor) -> list[tuple[slice, list[tuple[torch.Tensor, ...]]]]:
    """The samples that are worked on together, and their rows in parts along X, one after the other.

    A small map is one block with its neighbours in the batch; a large one has parts, so that what is read for one
    operation is still in the cache for the next.

    Args:
        rows: tensors [B, X, Y, Z * C] that are cut in the same way.
    """
    batch, edge, *plane = rows[0].shape
    if rows[0].numel() <= _BLOCK:
        return [(slice(None), [rows])]
    size = plane[0] * plane[1]
    together = max(1, _BLOCK // (edge * size))
    step = max(1, min(edge, _BLOCK // size))
    several = [slice(start, start + together) for start in range(0, batch, together)]
    parts = [slice(start, start + step) for start in range(0, edge, step)]
    return [(some, [tuple(each[some, part] for each in rows) for part in parts]) for some in several]


def made_of(parts: list[tuple[torch.Tensor, ...]], make: Callable[..., Made]) -> Callable[[], Iterable[Made]]:
    """What is made of each part: kept where there is one part, made anew at every call where there are more."""
    if len(parts) > 1:
        return lambda: (make(*part) for part in parts)
    kept = [make(*parts[0])]
    return lambda: kept


def mean_of_voxels(parts: Iterable[torch.Tensor], channels: int, voxels: int) -> torch.Tensor:
    """The mean over all voxels of each channel of each sample, [B, C]; parts are [B, X', Y, Z * C]."""
    total = None
    for part in parts:
        share = part.reshape(len(part), -1, channels).sum(1)
        total = share if total is None else total.add_(share)
    assert total is not None
    return total.div_(voxels)


def in_every_voxel(values: torch.Tensor, row: int) -> torch.Tensor:
    """One number a channel, [B, C], as a row that broadcasts: [B, 1, 1, row] with row = Z * C."""
    batch, channels = values.shape
    return values[:, None].expand(-1, row // channels, -1).reshape(batch, 1, 1, row)


def reflect(maps: torch.Tensor) -> None:
    """Fill the outermost voxels of [B, C, X, Y, Z] in place by those two further in, axis by axis."""
    for axis in (2, 1, 0):
        for outer, inner in _ends(maps, axis):
            outer.copy_(inner)


def fold_reflection(maps: torch.Tensor) -> None:
    """The adjoint of :func:`reflect`, in place: what lies in the outermost voxels is added to those two further in."""
    for axis in (0, 1, 2):
        for outer, inner in _ends(maps, axis):
            inner.add_(outer)


def _ends(maps: torch.Tensor, axis: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Views of the two outermost layers along an axis and of those that they mirror, without the ends of earlier axes.

    Both layers in one view, where the two that they mirror are not the same or in each other's order.
    """
    batch, channels, *edges = maps.shape
    sample, _, *strides = maps.stride()
    start, stride = maps.storage_offset() + sum(strides[:axis]), strides[axis]
    size = [batch, *(edge - 2 for edge in edges[:axis])]
    steps = [sample, *strides[:axis]]
    # What lies behind the axis is one run of numbers.
    rest = channels
    for edge in edges[axis + 1 :]:
        rest *= edge
    last = edges[axis] - 1
    if last > 4:
        outer = maps.as_strided([*size, 2, rest], [*steps, last * stride, 1], start)
        inner = maps.as_strided([*size, 2, rest], [*steps, (last - 4) * stride, 1], start + 2 * stride)
        return [(outer, inner)]

    def layer(number: int) -> torch.Tensor:
        return maps.as_strided([*size, rest], [*steps, 1], start + number * stride)

    return [(layer(0), layer(2)), (layer(last), layer(last - 2))]
