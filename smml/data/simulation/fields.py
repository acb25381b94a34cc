"""The grid in millimetres that every step of the simulator draws on, and sampling at places in millimetres.

Random numbers come from a CPU generator, whatever the device, so CPU and GPU simulate the same subject up to rounding.
"""

from dataclasses import dataclass
from typing import Literal

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


def sample(
    volume: torch.Tensor,
    origin: tuple[float, ...],
    spacing: float,
    points: torch.Tensor,
    beyond: Literal["zeros", "border"] = "zeros",
) -> torch.Tensor:
    """Trilinear samples of ``volume`` at points in mm.

    Args:
        volume: float [C, X, Y, Z].
        origin: centre of its first voxel, mm.
        spacing: its voxel edge, mm.
        points: float [3, ...] in mm.
        beyond: what lies outside the volume: 0, as outside a tissue, or what lies at its border.

    Returns:
        float [C, ...].
    """
    index = [(points[axis] - origin[axis]) / spacing for axis in range(3)]
    # grid_sample wants coordinates in [-1, 1], the last axis first.
    unit = [2 * index[axis] / (volume.shape[axis + 1] - 1) - 1 for axis in range(3)]
    grid = torch.stack(unit[::-1], dim=-1)
    flat = grid.reshape(1, -1, 1, 1, 3)
    values = F.grid_sample(volume[None], flat, mode="bilinear", padding_mode=beyond, align_corners=True)
    return values.reshape(volume.shape[0], *points.shape[1:])


def uniform(random: torch.Generator, low: float, high: float) -> float:
    """One number drawn uniformly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=random).item()
