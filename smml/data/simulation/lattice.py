"""Windows of a grid, and the linear operators that act along its axes: smooth noise, resampling, blur, thick slices.

Everything here is separable, so that a field on a window is three products with small matrices. Control points lie at
fixed places in mm: one seed gives the same field on any grid and any window of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from smml.data.simulation.fields import CENTRE, FIELD_OF_VIEW, Grid

# Variance of a cubic B-spline through white noise, averaged over where it is read, per axis.
_SPLINE_VARIANCE = 0.479


@dataclass(frozen=True)
class Window:
    """A box of voxels of a :class:`Grid`.

    Attributes:
        grid: the grid.
        first: index of the box's first voxel in the grid.
        shape: voxels along X, Y, Z.
    """

    grid: Grid
    first: tuple[int, int, int]
    shape: tuple[int, int, int]

    @property
    def spacing(self) -> float:
        """Edge of the cubic voxels, mm."""
        return self.grid.spacing

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into an array on the grid."""
        x, y, z = (slice(start, start + count) for start, count in zip(self.first, self.shape, strict=True))
        return x, y, z

    def axes(self) -> list[torch.Tensor]:
        """Voxel centres along each axis in mm, float32 [n]."""
        return [
            origin + self.spacing * (start + torch.arange(count, dtype=torch.float32, device=self.grid.device))
            for origin, start, count in zip(self.grid.origin, self.first, self.shape, strict=True)
        ]

    def around(self, mask: torch.Tensor, margin: float) -> "Window":
        """The window around the True voxels of ``mask`` [X, Y, Z] on this window, ``margin`` mm wider on each side."""
        extra = math.ceil(margin / self.spacing)
        first, shape = [], []
        for axis, count in enumerate(self.shape):
            others = [other for other in range(3) if other != axis]
            hit = torch.nonzero(mask.any(dim=others[1]).any(dim=others[0])).flatten().tolist()
            low = max(0, hit[0] - extra) if hit else 0
            high = min(count, hit[-1] + extra + 1) if hit else 1
            first.append(self.first[axis] + low)
            shape.append(high - low)
        (x, y, z), (nx, ny, nz) = first, shape
        return Window(self.grid, (x, y, z), (nx, ny, nz))

    def inside(self, outer: "Window") -> tuple[slice, slice, slice]:
        """This window as an index into an array on ``outer``."""
        x, y, z = (
            slice(own - other, own - other + count)
            for own, other, count in zip(self.first, outer.first, self.shape, strict=True)
        )
        return x, y, z


def whole(grid: Grid) -> Window:
    """The window that is the grid."""
    return Window(grid, (0, 0, 0), grid.shape)


def along_axes(field: torch.Tensor, matrices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Apply a matrix [n, m] along each axis of ``field`` [C, mx, my, mz]; None leaves an axis as it is."""
    x, y, z = (matrix if matrix is None else matrix.to(field.device) for matrix in matrices)
    if z is not None:
        field = field @ z.T
    if y is not None:
        field = y @ field
    if x is not None:
        channels, _, *rest = field.shape
        field = (x @ field.reshape(channels, field.shape[1], -1)).reshape(channels, x.shape[0], *rest)
    return field


def noise(window: Window, length: float, random: torch.Generator, channels: int = 1) -> torch.Tensor:
    """Smooth Gaussian noise of unit variance, float32 [channels, X, Y, Z].

    Args:
        window: where it is read.
        length: correlation length in mm.
        random: CPU generator; the numbers drawn do not depend on the window.
        channels: how many independent fields.
    """
    step = 0.6 * length
    counts = [math.ceil(extent / step) + 4 for extent in FIELD_OF_VIEW]
    control = torch.randn(channels, *counts, generator=random) / _SPLINE_VARIANCE**1.5
    matrices = []
    for places, centre, count in zip(window.axes(), CENTRE, counts, strict=True):
        start = centre - (count - 1) / 2 * step
        nodes = torch.arange(count, dtype=torch.float32, device=places.device)
        matrices.append(_spline(((places - start) / step)[:, None] - nodes))
    return along_axes(control.to(window.grid.device), matrices)


def _spline(distance: torch.Tensor) -> torch.Tensor:
    """The cubic B-spline at a distance in steps."""
    t = distance.abs()
    near = 2 / 3 - t**2 + t**3 / 2
    far = (2 - t).clamp_min(0) ** 3 / 6
    return torch.where(t < 1, near, far)


def resample(field: torch.Tensor, source: Window, target: Window) -> torch.Tensor:
    """Linear interpolation of [C, X, Y, Z] from one window to another; beyond the border the edge is repeated."""
    return along_axes(field, [_hat(a, b) for a, b in zip(source.axes(), target.axes(), strict=True)])


def _hat(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    step = source[1] - source[0] if len(source) > 1 else torch.tensor(1.0)
    index = ((target - source[0]) / step).clamp(0, len(source) - 1)
    return (1 - (index[:, None] - torch.arange(len(source), device=source.device)).abs()).clamp_min(0)


def blur_matrix(count: int, sigma: float) -> torch.Tensor | None:
    """Gaussian blur of ``sigma`` voxels along an axis of ``count``, edges repeated, or None where it is too small."""
    if sigma < 0.1:
        return None
    places = torch.arange(count, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def slice_matrix(places: torch.Tensor, thickness: float, offset: float) -> torch.Tensor | None:
    """Thick slices along an axis and their linear interpolation back to its voxels, or None where they are thin.

    Args:
        places: voxel centres in mm, float32 [n].
        thickness: of the slices in mm, centre to centre.
        offset: where the first slice lies, as a share of a slice.
    """
    spacing = float(places[1] - places[0])
    if thickness < 1.2 * spacing:
        return None
    # Slices lie at fixed places in mm, whatever the voxels.
    first = math.floor(float(places[0]) / thickness) - 1
    count = math.ceil((float(places[-1]) - float(places[0])) / thickness) + 4
    centres = (first + offset + torch.arange(count, dtype=torch.float32, device=places.device)) * thickness
    # A voxel's share of a slice: their overlap in mm.
    gap = (places - centres[:, None]).abs()
    overlap = ((thickness + spacing) / 2 - gap).clamp(0, min(thickness, spacing))
    acquired = overlap / overlap.sum(dim=1, keepdim=True).clamp_min(1e-6)
    back = (1 - (places[:, None] - centres).abs() / thickness).clamp_min(0)
    held = back * (overlap.sum(dim=1) > 0)
    return (held / held.sum(dim=1, keepdim=True)) @ acquired


def blur(field: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of [C, X, Y, Z] by ``sigma`` voxels in each axis."""
    return along_axes(field, [blur_matrix(n, sigma) for n in field.shape[1:]])
