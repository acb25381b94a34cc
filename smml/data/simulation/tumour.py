"""A glioma grown by reaction-diffusion in one subject's tissue, and its compartments.

Growth is the Fisher-Kolmogorov equation du/dt = div(D grad u) + rho u (1 - u) for the tumour cell density u in [0, 1],
with D ten times larger in white than in grey matter and zero in CSF and outside the brain (Swanson et al., 2000;
Harpold et al., 2007). Oedema and core are noisy level sets of u; necrosis lies deep in the core, the enhancing rim
around it, its gaps are non-enhancing tumour.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from smml.data.simulation.anatomy import Anatomy
from smml.data.simulation.fields import Grid, gaussian_blur, sample, smooth_noise, uniform

GROWTH_SPACING = 3.0
# Tumour cell density above which the tumour counts as visible.
_VISIBLE = 0.2

# How often each kind of subject is drawn. BraTS has an enhancing part in most but not all cases, necrosis in most.
KINDS = {"ring": 0.62, "solid": 0.17, "low-grade": 0.14, "healthy": 0.07}


@dataclass(frozen=True)
class Tumour:
    """Compartments of one tumour on the subject's grid.

    Attributes:
        labels: uint8 [X, Y, Z] with the five classes of BraTS 2015 (0 none, 1 NCR, 2 ED, 3 NET, 4 ET).
        density: tumour cell density u, float32 [X, Y, Z] in [0, 1].
    """

    labels: torch.Tensor
    density: torch.Tensor


def draw_kind(random: torch.Generator) -> str:
    """Draw the kind of a subject with the frequencies of ``KINDS``."""
    position = uniform(random, 0, 1)
    for kind, share in KINDS.items():
        position -= share
        if position < 0:
            return kind
    return "healthy"


def grow(anatomy: Anatomy, kind: str, random: torch.Generator) -> torch.Tensor:
    """Grow one tumour on the growth grid until its visible part has a random volume.

    Args:
        anatomy: tissue on the grid of ``GROWTH_SPACING`` mm.
        kind: a key of ``KINDS`` other than "healthy".
        random: CPU generator.

    Returns:
        u, float32 [X, Y, Z] on the growth grid.
    """
    median = 45.0 if kind == "low-grade" else 75.0
    volume = float(np.clip(median * math.exp(0.65 * torch.randn((), generator=random).item()), 10.0, 200.0))
    target = volume * 1000.0 / GROWTH_SPACING**3

    seeds = 1 + int(uniform(random, 0, 1) < 0.15)
    density = torch.zeros_like(anatomy.white)
    # Deep white matter: the seed must have room to become a tumour.
    depth = torch.from_numpy(ndimage.distance_transform_edt((anatomy.brain > 0).cpu().numpy())) * GROWTH_SPACING
    places = torch.nonzero((anatomy.white.cpu() > 0.7) & (depth > 12.0))
    centres: list[torch.Tensor] = []
    for number in range(seeds):
        pool = places
        if number:  # a second focus in the neighbourhood of the first
            distance = (places - centres[0]).float().norm(dim=1) * GROWTH_SPACING
            near = places[(distance > 25) & (distance < 60)]
            pool = near if len(near) else places
        centre = pool[int(torch.randint(0, len(pool), (), generator=random))]
        centres.append(centre)
        x, y, z = centre.tolist()
        density[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 0.9 if number == 0 else 0.5

    # Dimensionless step: D dt / h^2 = 0.15 in white matter (explicit scheme is stable below 1/6); rho dt sets how
    # sharp the front is, from invasive (0.05) to compact (0.13).
    diffusion = 0.15 * anatomy.white + 0.015 * anatomy.grey
    diffusion = diffusion * (anatomy.csf < 0.6) * anatomy.brain
    growth_rate = uniform(random, 0.05, 0.13) * (anatomy.white + 0.6 * anatomy.grey) * (anatomy.csf < 0.6)
    faces = [_face_mean(diffusion, axis) for axis in range(3)]
    for _ in range(400):
        change = growth_rate * density * (1 - density)
        for axis, face in enumerate(faces):
            flux = face * density.diff(dim=axis)
            inflow = torch.zeros_like(density)
            n = density.shape[axis]
            inflow.narrow(axis, 0, n - 1).add_(flux)
            inflow.narrow(axis, 1, n - 1).sub_(flux)
            change = change + inflow
        density = (density + change).clamp_(0, 1)
        if int((density > _VISIBLE).sum()) >= target:
            break
    return density


def _face_mean(diffusion: torch.Tensor, axis: int) -> torch.Tensor:
    """Diffusivity on the faces between voxels: the harmonic mean, so that nothing crosses into a voxel with D = 0."""
    n = diffusion.shape[axis]
    left, right = diffusion.narrow(axis, 0, n - 1), diffusion.narrow(axis, 1, n - 1)
    return 2 * left * right / (left + right).clamp_min(1e-12)


def mass_effect(density: torch.Tensor, growth_grid: Grid, grid: Grid, strength: float) -> torch.Tensor:
    """Displacement field of tissue pushed outwards by the core, mm, float32 [3, X, Y, Z] on ``grid``.

    The pressure is the blurred core; tissue moves down its gradient, at most ``strength`` mm.
    """
    core = (density > 0.6).float()[None]
    pressure = gaussian_blur(core, (12.0 / GROWTH_SPACING,) * 3)[0]
    gradient = torch.stack(torch.gradient(pressure))
    largest = gradient.norm(dim=0).amax().clamp_min(1e-6)
    push = -strength * gradient / largest
    return sample(push, growth_grid.origin, growth_grid.spacing, grid.coordinates())


def compartments(
    density: torch.Tensor, anatomy: Anatomy, kind: str, grid: Grid, random: torch.Generator
) -> torch.Tensor:
    """Label the voxels of one tumour: uint8 [X, Y, Z], classes of BraTS 2015.

    Args:
        density: u on ``grid``, float32 [X, Y, Z].
        anatomy: tissue on ``grid`` after mass effect.
        kind: a key of ``KINDS``.
        grid: the subject's grid.
        random: CPU generator.
    """
    ragged, lumpy, patchy, gaps = smooth_noise(grid, 9.0, random, channels=4)
    core_share = uniform(random, 0.45, 0.8) if kind == "low-grade" else uniform(random, 0.2, 0.6)
    thickness = uniform(random, 3.0, 6.5)
    broken = uniform(random, -1.7, -0.4)
    necrotic = uniform(random, 0, 1) < 0.85
    solid_gap = uniform(random, 0.9, 1.8)
    low_grade_spots = uniform(random, 0, 1) < 0.3

    tissue = (anatomy.brain > 0) & (anatomy.csf < 0.7)
    whole = (density + 0.08 * ragged > _VISIBLE) & (density > 0.05) & tissue
    # The densest share of the tumour is its core: BraTS's ratios of TC to WT, whatever the density reached.
    packed = density + 0.08 * lumpy
    level = torch.quantile(packed[whole], 1 - core_share) if bool(whole.any()) else torch.inf
    whole = _tidy(whole | ((packed > level) & (density > _VISIBLE) & (anatomy.brain > 0)), grid)
    core = _tidy(whole & (packed > level), grid)
    depth = _depth(core, grid)

    labels = torch.zeros(grid.shape, dtype=torch.uint8, device=grid.device)
    labels[whole] = 2
    if kind == "low-grade":
        labels[core] = 3
        if low_grade_spots:
            labels[core & (patchy > 1.6)] = 4
    elif kind == "solid":
        labels[core] = 4
        labels[core & (gaps > solid_gap)] = 3
    else:
        rim = core & (depth <= thickness * (1 + 0.45 * patchy).clamp(0.25, 2.2))
        labels[core] = 1 if necrotic else 3
        labels[rim] = 4
        labels[rim & (gaps < broken)] = 3
    return labels


def _depth(core: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Distance in mm from each core voxel's centre to the core's surface, float32 [X, Y, Z], 0 outside."""
    mask = core.cpu().numpy()
    result = np.zeros(mask.shape, np.float32)
    box = ndimage.find_objects(mask.astype(np.uint8))
    if box:
        window = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box[0])
        inside = ndimage.distance_transform_edt(mask[window]) * grid.spacing - grid.spacing / 2
        result[window] = np.maximum(inside, 0)
    return torch.from_numpy(result).to(core.device)


def _tidy(mask: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Drop islands below 0.25 ml, which level sets of noise leave behind, and fill closed holes."""
    array = mask.cpu().numpy()
    islands, count = ndimage.label(array)
    if count > 1:
        sizes = np.bincount(islands.ravel())
        keep = sizes * grid.spacing**3 >= 250.0
        keep[0] = False
        array = keep[islands]
    return torch.from_numpy(ndimage.binary_fill_holes(array)).to(mask.device)
