"""What is the same for all heads: the MNI152 tissue maps, and where vessels, ventricles and nuclei lie in them.

Everything is in template space (MNI, mm, RAS+), made once a process and then only sampled. The courses of vessels are
rough polylines drawn from textbooks.

Source of the tissue maps: ICBM 152 nonlinear 2009a symmetric template, as shipped inside nilearn's package and loaded
at run time (never redistributed here). Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University; free to use, copy, modify and distribute provided that this notice is kept.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

# Voxel edge of the maps that are smooth, mm.
COARSE = 2.0
# How far from a vessel its distance is known, mm.
REACH = 7.0
# Course variants of the surface veins; a subject has one of them.
VARIANTS = 3

# Large arteries and veins by their rough course; they lie on both sides.
_COURSES: dict[str, list[list[tuple[float, float, float]]]] = {
    "artery": [
        [(15, -2, -38), (13, -4, -28), (13, 4, -22), (15, 2, -17)],
        [(15, 2, -17), (28, 3, -18), (40, 0, -10), (43, -8, 2), (44, -22, 12)],
        [(38, 2, -12), (42, 8, 2), (44, 14, 10)],
        [(40, -2, -8), (39, -6, 6), (38, -14, 14)],
        [(42, -8, 2), (50, -12, 10), (58, -20, 18)],
        [(44, -22, 12), (50, -36, 22), (54, -48, 32)],
        [(14, 3, -17), (3, 16, -14), (2, 30, 2), (2, 24, 22), (2, 6, 32), (2, -14, 40)],
        [(2, 30, 2), (3, 46, 14), (4, 52, 28)],
        [(0, -26, -42), (0, -17, -21), (14, -22, -16), (22, -38, -8), (14, -66, 2)],
        [(14, -66, 2), (10, -84, 6)],
    ],
    "vein": [
        [(14, 0, -18), (18, -18, -11), (12, -34, -2), (0, -42, 2)],
        [(2, -2, 14), (2, -20, 9), (2, -38, 6), (0, -46, 0)],
        [(3, 0, 15), (12, -8, 20), (18, -20, 22)],
        [(3, 2, 13), (3, 16, 10), (6, 26, 10)],
        [(18, -20, 22), (24, -34, 20), (28, -46, 18)],
    ],
    "sinus": [
        [(0, -44, 0), (0, -62, -4), (0, -84, -16)],
        [(0, -96, -18), (30, -88, -24), (52, -62, -28), (46, -42, -38)],
        [(12, 4, -28), (14, -6, -29), (14, -14, -30)],
    ],
}
COARSE_MAPS = ("depth", "ventricle", "deep", "plexus", "white", "artery", "vein", "sinus")


@dataclass(frozen=True)
class Atlas:
    """Maps in template space.

    Attributes:
        tissue: grey matter, white matter, brain mask, float32 [3, X, Y, Z], 1 mm.
        tissue_origin: its first voxel's centre, mm.
        smooth: ``COARSE_MAPS``, then the surface veins' variants, float32 [C, X, Y, Z] at ``COARSE`` mm. Distances in
            mm: "depth" from the brain's surface (negative outside), "ventricle" from the ventricles (negative inside),
            vessels at most ``REACH``. "deep" (nuclei), "plexus" and "white" are in [0, 1].
        smooth_origin: its first voxel's centre, mm.
    """

    tissue: torch.Tensor
    tissue_origin: tuple[float, float, float]
    smooth: torch.Tensor
    smooth_origin: tuple[float, float, float]


@functools.lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """Read the tissue maps and derive the others; two to four seconds, once a process."""
    # nilearn takes seconds to import; only a simulation pays for it.
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    images = [load(resolution=1) for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)]
    tissue = torch.from_numpy(np.stack([image.get_fdata(dtype="float32") for image in images]))
    left, back, foot = (float(v) for v in images[0].affine[:3, 3])
    brain = tissue[2] > 0.5
    tissue[1] = tissue[1].clamp(0, 1) * brain
    tissue[0] = torch.minimum(tissue[0].clamp(0, 1) * brain, 1 - tissue[1])

    # A margin, so that structures just outside the brain have a place.
    pooled = F.avg_pool3d(F.pad(tissue, (8,) * 6)[None], int(COARSE))[0]
    half = (COARSE - 1) / 2
    smooth_origin = (left - 8 + half, back - 8 + half, foot - 8 + half)
    grey, white, mask = pooled.numpy()
    axes = [o + COARSE * np.arange(n, dtype=np.float32) for o, n in zip(smooth_origin, mask.shape, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")

    inside = mask > 0.5
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    depth = (depth * COARSE - np.sign(depth) * COARSE / 2).astype(np.float32)
    fluid = (1 - white - grey > 0.45) & (depth > 14) & (np.abs(x) < 42) & (z > -22) & (z < 36) & (y < 42) & (y > -66)
    ventricles = ndimage.binary_opening(fluid) | fluid & (depth > 26)
    pieces, _ = ndimage.label(ventricles, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    ventricles = np.isin(pieces, np.flatnonzero(sizes >= 20))
    away = ndimage.distance_transform_edt(~ventricles) - ndimage.distance_transform_edt(ventricles)
    away = ndimage.gaussian_filter((away * COARSE).astype(np.float32), 0.7)

    thalamus = _blob((x, y, z), (13, -18, 7), (7, 9, 7))
    striatum = np.maximum(_blob((x, y, z), (24, 4, 1), (6, 13, 8)), _blob((x, y, z), (12, 12, 8), (5, 9, 8)))
    deep = np.clip(1.8 * np.maximum(thalamus, striatum) - 0.3, 0, 1)
    plexus = np.maximum(_blob((x, y, z), (22, -42, 8), (7, 9, 9)), 0.6 * _blob((x, y, z), (6, -14, 16), (8, 14, 5)))

    random = np.random.default_rng(20)
    frame = (axes, smooth_origin, mask.shape)
    vessels = [_near(frame, [_wriggle(path, random) for path in paths]) for paths in _COURSES.values()]
    # The superior sagittal sinus follows the brain's upper edge in the midline.
    middle = int(np.argmin(np.abs(axes[0])))
    vessels[2] = np.minimum(vessels[2], _near(frame, [_ridge(inside[middle], axes)], both=False))
    veins = [
        _near(frame, _surface_veins(depth, axes, np.random.default_rng(30 + k)), both=False) for k in range(VARIANTS)
    ]
    maps = [depth, away, deep, plexus, white, *vessels, *veins]
    smooth = torch.from_numpy(np.stack(maps).astype(np.float32))
    return Atlas(tissue=tissue, tissue_origin=(left, back, foot), smooth=smooth, smooth_origin=smooth_origin)


def _blob(points: tuple[np.ndarray, ...], centre: tuple[float, ...], width: tuple[float, ...]) -> np.ndarray:
    """A Gaussian of height 1; its centre's x counts to both sides."""
    x, y, z = points
    a, b, c = width
    return np.exp(-(((np.abs(x) - centre[0]) / a) ** 2 + ((y - centre[1]) / b) ** 2 + ((z - centre[2]) / c) ** 2) / 2)


def _wriggle(path: list[tuple[float, float, float]], random: np.random.Generator) -> np.ndarray:
    """A polyline as places 0.7 mm apart, bent a little at random, [n, 3] mm."""
    nodes = np.asarray(path, np.float32)
    lengths = np.r_[0, np.cumsum(np.linalg.norm(np.diff(nodes, axis=0), axis=1))]
    places = np.arange(0, lengths[-1], 0.7)
    line = np.stack([np.interp(places, lengths, nodes[:, axis]) for axis in range(3)], axis=1)
    bend = ndimage.gaussian_filter1d(random.standard_normal(line.shape), 5, axis=0, mode="nearest") * 6
    return line + bend


def _ridge(section: np.ndarray, axes: list[np.ndarray]) -> np.ndarray:
    """The upper and back edge of the brain's middle section [Y, Z], as places [n, 3] mm."""
    columns = np.flatnonzero(section.any(axis=1))
    columns = columns[(axes[1][columns] < 62)]
    top = np.array([np.flatnonzero(section[c]).max() for c in columns])
    y, z = axes[1][columns], ndimage.gaussian_filter1d(axes[2][top], 2)
    fine = np.arange(y.min(), y.max(), 0.7)
    return np.stack([np.zeros_like(fine), fine, np.interp(fine, y, z)], axis=1)


def _surface_veins(depth: np.ndarray, axes: list[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
    """Random paths over the brain's surface, most of them upwards to the midline, as places [n, 3] mm each."""
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(depth, 1.5)))
    origin = np.array([axis[0] for axis in axes])
    starts = np.argwhere((depth > 0.5) & (depth < 3))
    paths = []
    for start in random.permutation(starts)[:130]:
        place = origin + COARSE * start
        heading = random.standard_normal(3)
        target = random.uniform(0.0, 0.25)
        path = []
        for _ in range(int(random.integers(25, 110))):
            voxel = tuple(np.clip(np.rint((place - origin) / COARSE).astype(int), 0, np.array(depth.shape) - 1))
            normal = gradient[(slice(None), *voxel)]
            normal = normal / max(float(np.linalg.norm(normal)), 1e-6)
            up = np.array([-np.sign(place[0]) * 0.4, 0.0, 1.0])
            heading = heading + 0.35 * random.standard_normal(3) + target * up
            heading = heading - normal * (heading @ normal)
            heading = heading / max(float(np.linalg.norm(heading)), 1e-6)
            # Held at about a millimetre under the surface.
            place = place + 0.8 * heading + normal * np.clip(1.3 - depth[voxel], -1, 1) * 0.3
            path.append(place.copy())
        paths.append(np.asarray(path))
    return paths


def _near(frame, paths: list[np.ndarray], both: bool = True) -> np.ndarray:
    """Distance to the nearest of the paths, at most ``REACH``, on the coarse map; ``both``: mirrored as well."""
    _, origin, shape = frame
    places = np.concatenate(paths)
    if both:
        places = np.concatenate([places, places * [-1, 1, 1]])
    index = (places - np.asarray(origin)) / COARSE
    nearest = np.rint(index).astype(int)
    radius = int(np.ceil(REACH / COARSE))
    offsets = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    voxels = nearest[:, None] + offsets
    distance = (np.linalg.norm(voxels - index[:, None], axis=-1) * COARSE).astype(np.float32)
    good = ((voxels >= 0) & (voxels < shape)).all(-1) & (distance < REACH)
    flat = np.ravel_multi_index(tuple(voxels[good].T), shape)
    result = np.full(int(np.prod(shape)), REACH, np.float32)
    np.minimum.at(result, flat, distance[good])
    return result.reshape(shape)
