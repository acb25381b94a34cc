"""Dice and HD95 of one region of one case, as the field counts them (docs/CONVENTIONS.md, "Scores").

MONAI computes both; what an empty region counts is decided here, because the field's convention is not a library's.
"""

import math
import warnings

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy import ndimage

# The challenge's penalty in mm when exactly one of prediction and truth is empty: the diagonal of 240 x 240 x 155 mm.
CHALLENGE_PENALTY = 373.13


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two masks A and B: twice the voxels of both over the voxels of A and those of B.

    Both empty is 1, a false alarm on an empty truth is 0. (The published form adds 1e-8 above and below, which decides
    the same two cases and changes no other score by more than 1e-8.)

    Args:
        prediction: boolean [X, Y, Z].
        truth: boolean [X, Y, Z].

    Returns:
        A score in [0, 1].
    """
    both = torch.from_numpy(np.stack([prediction, truth]))[:, None, None].float()
    return float(compute_dice(both[0], both[1], ignore_empty=False))


def hd95(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float], *, one_empty: float = math.nan
) -> float:
    """95th percentile of the distances between two surfaces, the larger of the two directions, in mm.

    Args:
        prediction: boolean [X, Y, Z].
        truth: boolean [X, Y, Z].
        spacing: voxel edges in mm.
        one_empty: what counts where exactly one mask is empty: NaN (left out of means, and counted) or
            ``CHALLENGE_PENALTY``. Both empty is 0.
    """
    empty = (not prediction.any(), not truth.any())
    if all(empty):
        return 0.0
    if any(empty):
        return one_empty
    # Distances do not change when the common background is cut away, and are found sooner.
    box = _bounding_box(prediction | truth)
    both = torch.from_numpy(np.stack([prediction[box], truth[box]]))[:, None, None].float()
    with warnings.catch_warnings():
        # MONAI 1.6 warns about an argument that it passes to itself.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*")
        edges = [float(edge) for edge in spacing]
        surface = compute_hausdorff_distance(both[0], both[1], percentile=95, spacing=edges)
    return float(surface)


def boundary_recall(
    prediction: np.ndarray, truth: np.ndarray, tolerance: float = 2.0, spacing: tuple[float, float, float] = (1, 1, 1)
) -> float:
    """Share of the truth's surface voxels that lie within ``tolerance`` of the prediction's surface.

    Args:
        prediction: boolean [X, Y, Z].
        truth: boolean [X, Y, Z].
        tolerance: in the units of ``spacing``; with unit spacing, voxels.
        spacing: voxel edges.

    Returns:
        A share in [0, 1]; NaN if the truth is empty, 0 if only the prediction is.
    """
    if not truth.any():
        return math.nan
    if not prediction.any():
        return 0.0
    # The border of the array counts as outside, so a region that touches it has a surface there.
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth)]
    distance = ndimage.distance_transform_edt(~edges[0], sampling=spacing)
    return float((distance[edges[1]] <= tolerance).mean())


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Slices round the True voxels, one voxel wider where there is room, so that surfaces stay surfaces."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(max(0, hit[0] - 1), min(mask.shape[axis], hit[-1] + 2)))
    return tuple(box)
