"""Dice, HD95 and NSD of one region of one case, as the field counts them (docs/CONVENTIONS.md, "Scores").

MONAI computes overlap and distances; what an empty region counts is decided here, because the field's convention is not
a library's.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage

# The challenge's penalty in mm when exactly one of prediction and truth is empty: the diagonal of 240 x 240 x 155 mm.
CHALLENGE_PENALTY = 373.13

# Surfaces that are no further apart than this agree, in mm: a voxel edge of BraTS.
NSD_TOLERANCE = 1.0


@dataclass(frozen=True)
class SurfaceScores:
    """What the distances between two surfaces give.

    Attributes:
        hd95: 95th percentile of the distances, in mm; lower is better (:func:`hd95`).
        nsd: normalised surface distance, a share in [0, 1]; higher is better (:func:`nsd`).
    """

    hd95: float
    nsd: float


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
    either = prediction | truth
    # What is background in both counts for nothing; cut away, a small region of a whole head takes a tenth of the time.
    box = bounding_box(either) if either.any() else (slice(1),) * either.ndim
    both = torch.from_numpy(np.stack([prediction[box], truth[box]]))[:, None, None].float()
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
    return surface_scores(prediction, truth, spacing, one_empty=one_empty).hd95


def nsd(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, float, float],
    *,
    tolerance: float = NSD_TOLERANCE,
) -> float:
    """Normalised surface distance, also called surface Dice: the share of both surfaces that is near the other one.

    Args:
        prediction: boolean [X, Y, Z].
        truth: boolean [X, Y, Z].
        spacing: voxel edges in mm.
        tolerance: distance in mm that still counts as near.

    Returns:
        Surface voxels of both masks within ``tolerance`` of the other surface, over all surface voxels of both: a share
        in [0, 1]. Both empty is 1, one empty 0.
    """
    return surface_scores(prediction, truth, spacing, tolerance=tolerance).nsd


def surface_scores(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, float, float],
    *,
    one_empty: float = math.nan,
    tolerance: float = NSD_TOLERANCE,
) -> SurfaceScores:
    """HD95 and NSD at the cost of one of them, since the distances are found once.

    Args:
        prediction: boolean [X, Y, Z].
        truth: boolean [X, Y, Z].
        spacing: voxel edges in mm.
        one_empty: HD95 where exactly one mask is empty, as in :func:`hd95`.
        tolerance: of the NSD in mm, as in :func:`nsd`.
    """
    empty = (not prediction.any(), not truth.any())
    if all(empty):
        return SurfaceScores(0.0, 1.0)
    if any(empty):
        return SurfaceScores(one_empty, 0.0)
    distances, _ = surface_distances(prediction, truth, spacing)
    larger = max(float(torch.quantile(one_way, 0.95)) for one_way in distances)
    near = torch.cat(distances) <= tolerance
    return SurfaceScores(larger, float(near.double().mean()))


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float], *, areas: bool = False
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]:
    """Distance in mm from each element of one surface to the nearest of the other.

    Elements are the voxels of a mask that have one of their six neighbours outside, or, with ``areas``, the corners
    where eight voxels meet of which some are inside (as in DeepMind's ``surface-distance``). The border of the array
    counts as outside.

    Args:
        prediction: boolean [X, Y, Z], not empty.
        truth: boolean [X, Y, Z], not empty.
        spacing: voxel edges in mm.
        areas: cut the surfaces between voxels, and give the area of each element too.

    Returns:
        Distances from the prediction's N elements, float32 [N], and from the truth's, [M]; and the areas in mm2 of the
        same elements, or None.
    """
    # Distances do not change when the common background is cut away, and are found sooner.
    box = bounding_box(prediction | truth)
    edges = [float(edge) for edge in spacing]
    with warnings.catch_warnings():
        # MONAI 1.6 warns about an argument that it passes to itself.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*")
        # Its declared type is that of a call that is neither symmetric nor by areas.
        answer: Any = get_edge_surface_distance(
            torch.from_numpy(prediction[box]),
            torch.from_numpy(truth[box]),
            spacing=edges,
            use_subvoxels=areas,
            symmetric=True,
        )
    surfaces, distances, *maps = answer
    found = (distances[0], distances[1])
    return found, (maps[0][0][surfaces[0]], maps[0][1][surfaces[1]]) if areas else None


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


def bounding_box(mask: np.ndarray, margin: int = 1) -> tuple[slice, ...]:
    """Slices round the True voxels of a mask that has some, ``margin`` voxels wider where there is room.

    With a margin of one, surfaces stay surfaces.
    """
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(max(0, hit[0] - margin), min(mask.shape[axis], hit[-1] + 1 + margin)))
    return tuple(box)
