"""Grids in millimetres and the smooth random fields that every step of the simulator draws on.

Fields are defined by control points a fixed number of millimetres apart and only then sampled on the voxel grid, so
one seed describes the same subject at any voxel spacing. Random numbers come from a CPU generator, whatever the
device, so CPU and GPU simulate the same subject up to rounding.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Field of view in mm round the MNI152 brain (145 x 182 x 156 mm), and its centre in MNI space (mm, RAS+). The largest
# of the warped brains lose less than 0.3 % of their voxels to its border.
FIELD_OF_VIEW = (168.0, 204.0, 180.0)
CENTRE = (0.0, -17.0, 5.0)


@dataclass(frozen=True)
class Grid:
    """A regular RAS+ grid over the field of view.

    Attributes:
        spacing: edge of the cubic voxels, mm.
        device: where the tensors on this grid live.
    """

    spacing: float
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X (left to right), Y (back to front), Z (foot to head)."""
        x, y, z = (max(1, round(extent / self.spacing)) for extent in FIELD_OF_VIEW)
        return x, y, z

    @property
    def origin(self) -> tuple[float, float, float]:
        """Centre of voxel (0, 0, 0) in mm."""
        x, y, z = (c - (n - 1) / 2 * self.spacing for c, n in zip(CENTRE, self.shape, strict=True))
        return x, y, z

    def coordinates(self) -> torch.Tensor:
        """Centres of all voxels in mm, float32 [3, X, Y, Z]."""
        axes = [
            start + self.spacing * torch.arange(n, dtype=torch.float32, device=self.device)
            for start, n in zip(self.origin, self.shape, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def sample(volume: torch.Tensor, origin: tuple[float, ...], spacing: float, points: torch.Tensor) -> torch.Tensor:
    """Trilinear samples of ``volume`` at points in mm; outside is zero.

    Args:
        volume: float [C, X, Y, Z].
        origin: centre of its first voxel, mm.
        spacing: its voxel edge, mm.
        points: float [3, ...] in mm.

    Returns:
        float [C, ...].
    """
    index = [(points[axis] - origin[axis]) / spacing for axis in range(3)]
    # grid_sample wants coordinates in [-1, 1], the last axis first.
    unit = [2 * index[axis] / (volume.shape[axis + 1] - 1) - 1 for axis in range(3)]
    grid = torch.stack(unit[::-1], dim=-1)
    flat = grid.reshape(1, -1, 1, 1, 3)
    values = F.grid_sample(volume[None], flat, mode="bilinear", padding_mode="zeros", align_corners=True)
    return values.reshape(volume.shape[0], *points.shape[1:])


def gaussian_blur(volume: torch.Tensor, sigma: tuple[float, float, float]) -> torch.Tensor:
    """Separable Gaussian blur of [C, X, Y, Z], ``sigma`` in voxels per axis; edges are repeated."""
    for axis, width in enumerate(sigma):
        if width < 0.05:
            continue
        radius = max(1, math.ceil(3 * width))
        offsets = torch.arange(-radius, radius + 1, dtype=volume.dtype, device=volume.device)
        kernel = torch.exp(-0.5 * (offsets / width) ** 2)
        kernel = kernel / kernel.sum()
        moved = volume.movedim(axis + 1, -1)
        flat = F.pad(moved.reshape(-1, 1, moved.shape[-1]), (radius, radius), mode="replicate")
        blurred = F.conv1d(flat, kernel.view(1, 1, -1))
        volume = blurred.reshape(moved.shape).movedim(-1, axis + 1)
    return volume.contiguous()


def smooth_noise(grid: Grid, length: float, random: torch.Generator, channels: int = 1) -> torch.Tensor:
    """Smooth Gaussian noise of unit variance, float32 [channels, X, Y, Z].

    Args:
        grid: where it is sampled.
        length: correlation length in mm.
        random: CPU generator; the numbers drawn do not depend on the grid's spacing.
        channels: how many independent fields.
    """
    step = length / 2
    shape = [math.ceil(extent / step) + 5 for extent in FIELD_OF_VIEW]
    control = torch.randn(channels, *shape, generator=random)
    control = gaussian_blur(control, (1.0, 1.0, 1.0))
    control = control / control.std(dim=(1, 2, 3), keepdim=True)
    origin = tuple(c - (n - 1) / 2 * step for c, n in zip(CENTRE, shape, strict=True))
    return sample(control.to(grid.device), origin, step, grid.coordinates())


def uniform(random: torch.Generator, low: float, high: float) -> float:
    """One number drawn uniformly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=random).item()
