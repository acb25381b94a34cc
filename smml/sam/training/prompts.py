"""Prompts drawn at random from known objects, for training and measuring SAM, and what they are compared with.

Prompts of use, from a prediction and without the truth, are made in :mod:`smml.sam.prompts`. Coordinates are those of
:mod:`smml.sam.slices`: half-open boxes and voxel centres, as (row, column).
"""

import numpy as np
import torch
from scipy import ndimage

# A side of a jittered box moves by up to this share of the box's length across it, and by at least a voxel.
JITTER = 0.10


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest half-open box (top, left, bottom, right) round a mask [H, W] that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def jittered_box(mask: np.ndarray, random: np.random.Generator, jitter: float = JITTER) -> np.ndarray:
    """The box of a mask, each side moved in or out at random; float32 [4], inside the slice, never empty.

    A side moves by a uniform amount of up to ``jitter`` times the box's length, or one voxel if that is more; boxes of
    fewer than 6 voxels move by at most a sixth of their length.
    """
    top, left, bottom, right = mask_box(mask)
    height, width = bottom - top, right - left
    limits = np.array([min(max(jitter * n, 1.0), max(jitter, 1 / 6) * n) for n in (height, width, height, width)])
    box = np.array([top, left, bottom, right]) + random.uniform(-1, 1, 4) * limits
    edges = np.array([mask.shape[0], mask.shape[1]] * 2)
    return np.clip(box, 0, edges).astype(np.float32)


def draw_points(
    mask: np.ndarray, inside: int, outside: int, random: np.random.Generator, box: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Points in and near a mask: float32 [P, 2] and labels [P] (1 inside, 0 outside, -1 padding where too few fit).

    The first point inside is drawn from the deeper half of the mask, the others anywhere in it. Points outside come
    from the surroundings, within half a box length of the box.
    """
    points = np.zeros((inside + outside, 2), np.float32)
    labels = np.full(inside + outside, -1, np.int64)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    deep = np.argwhere(depth >= max(0.5 * depth.max(), 1))
    anywhere = np.argwhere(mask)
    for number in range(inside):
        places = anywhere if number else deep
        points[number], labels[number] = places[random.integers(len(places))], 1
    if outside:
        top, left, bottom, right = mask_box(mask) if box is None else box
        rows, columns = (bottom - top) / 2, (right - left) / 2
        near = np.zeros_like(mask)
        near[
            max(0, int(top - rows)) : int(bottom + rows) + 1, max(0, int(left - columns)) : int(right + columns) + 1
        ] = 1
        # The voxels along the edge belong to neither side for sure.
        places = np.argwhere(near & ~ndimage.binary_dilation(mask))
        for number in range(inside, inside + outside if len(places) else inside):
            points[number], labels[number] = places[random.integers(len(places))], 0
    return points, labels


def fill_box(box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The voxels [H, W] whose centre lies in a box: the simplest of baselines."""
    rows, columns = np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5
    return ((rows >= box[0]) & (rows < box[2]))[:, None] & ((columns >= box[1]) & (columns < box[3]))[None]


def fill_ellipse(box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The voxels [H, W] whose centre lies in the ellipse inscribed in a box."""
    rows = (np.arange(shape[0]) + 0.5 - (box[0] + box[2]) / 2) / max((box[2] - box[0]) / 2, 1e-6)
    columns = (np.arange(shape[1]) + 0.5 - (box[1] + box[3]) / 2) / max((box[3] - box[1]) / 2, 1e-6)
    return (rows**2)[:, None] + (columns**2)[None] <= 1


def iou(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    """Intersection over union of two boolean masks; 1 where both are empty."""
    union = float((a | b).sum())
    return float((a & b).sum()) / union if union else 1.0
