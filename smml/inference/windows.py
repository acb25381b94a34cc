"""Sliding windows whose places depend on the volume's grid alone.

A window must lie where it lies for every subset, or encodings could not be shared and a missing modality could speak
through the choice of windows; so no brain box crops the volume and no empty window is skipped.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices

from smml.models import Student

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class WindowPlan:
    """Windows that cover a padded volume.

    Attributes:
        window: edges of a window in voxels, each at least 32 and divisible by 16.
        padding: background added before and after each axis, [(before, after)] * 3.
        places: where the windows lie in the padded volume.
        importance: blending weight of a window's voxels, float32 [window]; highest in its middle.
    """

    window: tuple[int, int, int]
    padding: tuple[tuple[int, int], ...]
    places: tuple[Slices, ...]
    importance: torch.Tensor

    @property
    def padded_shape(self) -> tuple[int, int, int]:
        """Voxels of the padded volume."""
        return tuple(max(place[axis].stop for place in self.places) for axis in range(3))

    def pad(self, image: torch.Tensor) -> torch.Tensor:
        """Pad [..., X, Y, Z] with background (0) to the size that the windows cover."""
        before_and_after = [n for pair in reversed(self.padding) for n in pair]
        return F.pad(image, before_and_after)

    def crop(self, volume: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`pad`."""
        inside = tuple(
            slice(before, n - after) for (before, after), n in zip(self.padding, volume.shape[-3:], strict=True)
        )
        return volume[(..., *inside)]


def default_window(patch: int) -> int:
    """Edge of a window in voxels for a network that was trained on patches of edge ``patch``: half as large again.

    Fewer seams, and less time. Much larger windows shift the statistics of the norms; on coarse images, where such a
    window holds the whole head, so does this one (docs/METHOD.md).

    Args:
        patch: at least 32 and divisible by 16.
    """
    return patch + patch // 32 * 16


def plan_windows(shape: tuple[int, int, int], window: int, overlap: float = 0.5) -> WindowPlan:
    """Cover a volume with windows.

    Args:
        shape: voxels of the volume.
        window: largest edge of a window; along an axis that is shorter, the window shrinks to the next size that the
            network can take, and the volume is padded to it.
        overlap: share of a window that the next one covers again (docs/METHOD.md: 0.5).
    """
    edges = tuple(min(window, max(Student.MINIMUM, -(-n // Student.STRIDE) * Student.STRIDE)) for n in shape)
    padding = []
    for n, edge in zip(shape, edges, strict=True):
        missing = max(0, edge - n)
        padding.append((missing // 2, missing - missing // 2))
    padded = tuple(n + sum(pair) for n, pair in zip(shape, padding, strict=True))
    interval = tuple(max(1, int(edge * (1 - overlap))) for edge in edges)
    places = tuple(tuple(place) for place in dense_patch_slices(padded, edges, interval))
    importance = compute_importance_map(edges, mode="gaussian", sigma_scale=0.125)
    return WindowPlan(edges, tuple(padding), places, importance.clamp_min(1e-3).float())
