"""One subject's brain: the MNI152 tissue maps, warped at random.

Source of the maps: ICBM 152 nonlinear 2009a symmetric template, as shipped inside nilearn's package and loaded at run
time (never redistributed here). Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University; free to use, copy, modify and distribute provided that this notice is kept.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from smml.data.simulation.fields import CENTRE, Grid, sample, smooth_noise, uniform


@dataclass(frozen=True)
class Anatomy:
    """Tissue fractions of one subject, float32 [X, Y, Z] each, in [0, 1]; they add up to ``brain``."""

    white: torch.Tensor
    grey: torch.Tensor
    csf: torch.Tensor
    brain: torch.Tensor


@functools.lru_cache(maxsize=1)
def _template() -> tuple[torch.Tensor, tuple[float, float, float]]:
    """Grey matter, white matter and brain mask at 1 mm, float32 [3, X, Y, Z], and the first voxel's centre in mm."""
    # nilearn takes seconds to import; only a simulation pays for it.
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    images = [load(resolution=1) for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)]
    maps = torch.stack([torch.from_numpy(image.get_fdata(dtype="float32")) for image in images])
    x, y, z = (float(v) for v in images[0].affine[:3, 3])
    return maps, (x, y, z)


@functools.lru_cache(maxsize=2)
def _template_for(spacing: float) -> tuple[torch.Tensor, tuple[float, float, float], float]:
    """The template averaged to voxels that suit a grid of ``spacing`` mm, so that sampling it does not alias.

    Returns:
        Maps [3, X, Y, Z], the first voxel's centre in mm, and the voxel edge in mm.
    """
    maps, origin = _template()
    factor = max(1, int(spacing / 1.5))
    if factor > 1:
        maps = F.avg_pool3d(maps[None], factor)[0]
    # The centre of the first block of voxels.
    x, y, z = (o + (factor - 1) / 2 for o in origin)
    return maps, (x, y, z), float(factor)


def draw_warp(random: torch.Generator) -> Callable[[Grid], torch.Tensor]:
    """Draw one subject's shape: flip, rotation, scale, shift and a smooth deformation.

    Returns:
        A function from a :class:`Grid` to template coordinates in mm, float32 [3, X, Y, Z]; it can be called for
        several grids and describes the same subject on each.
    """
    flip = -1.0 if uniform(random, 0, 1) < 0.5 else 1.0
    scale = [uniform(random, 0.94, 1.07) for _ in range(3)]
    angles = [math.radians(uniform(random, -6, 6)) for _ in range(3)]
    shift = [uniform(random, -3, 3) for _ in range(3)]
    seed = int(torch.randint(0, 2**62, (), generator=random))

    linear = torch.diag(torch.tensor([flip / scale[0], 1 / scale[1], 1 / scale[2]]))
    for axis, angle in enumerate(angles):
        turn = torch.eye(3)
        i, j = [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        linear = linear @ turn
    return functools.partial(_warp_points, linear=linear, shift=torch.tensor(shift), seed=seed)


def _warp_points(grid: Grid, *, linear: torch.Tensor, shift: torch.Tensor, seed: int) -> torch.Tensor:
    centre = torch.tensor(CENTRE, device=grid.device).view(3, 1, 1, 1)
    points = grid.coordinates() - centre - shift.to(grid.device).view(3, 1, 1, 1)
    points = torch.einsum("ij,jxyz->ixyz", linear.to(grid.device), points) + centre
    # Two scales: the shape of the head and lobes, and the course of gyri and ventricles.
    random = torch.Generator().manual_seed(seed)
    coarse = smooth_noise(grid, 70.0, random, channels=3)
    fine = smooth_noise(grid, 26.0, random, channels=3)
    return points + 4.0 * coarse + 1.4 * fine


def sample_anatomy(points: torch.Tensor, spacing: float) -> Anatomy:
    """Tissue fractions at template coordinates.

    Args:
        points: mm in template space, float32 [3, X, Y, Z].
        spacing: voxel edge of the grid that the points belong to, mm.
    """
    maps, origin, template_spacing = _template_for(spacing)
    grey, white, mask = sample(maps.to(points.device), origin, template_spacing, points)
    brain = (mask > 0.5).float()
    white = white.clamp(0, 1) * brain
    grey = torch.minimum(grey.clamp(0, 1) * brain, 1 - white)
    csf = (1 - white - grey).clamp(0, 1) * brain
    return Anatomy(white=white, grey=grey, csf=csf, brain=brain)
