"""Sliding windows whose places depend on the volume's grid alone: planning, cutting and blending them.

A window must lie where it lies for every subset, or encodings could not be shared and a missing modality could speak
through the choice of windows; so no brain box crops the volume and no empty window is skipped.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices

from smml.models import Student

Slices = tuple[slice, slice, slice]

# Told how many batches of windows are done, and of how many.
Progress = Callable[[int, int], None]

# Windows that are encoded together. Besides filling a GPU, more than one makes PyTorch choose oneDNN's convolutions on
# a CPU, which are several times faster than what it takes for a single small volume.
WINDOW_BATCH = 4

# Voxels that go through the network together, if that is more than one window. Above, a full-resolution map of 16
# channels takes more than 32 MiB, for which a C library may ask the system for fresh pages every time: on a CPU four
# windows of 64 then take longer than twice two.
BATCH_VOXELS = 2 * 64**3


class Cancelled(Exception):
    """The work was given up between two batches of windows because ``cancelled()`` said so; nothing came of it."""


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
        x, y, z = (max(place[axis].stop for place in self.places) for axis in range(3))
        return x, y, z

    @property
    def together(self) -> int:
        """Windows that go through the network together."""
        return max(1, min(WINDOW_BATCH, BATCH_VOXELS // math.prod(self.window)))

    @property
    def batches(self) -> list[tuple[Slices, ...]]:
        """The places of the windows, in batches that go through the network together."""
        size = self.together
        return [self.places[start : start + size] for start in range(0, len(self.places), size)]

    def pad(self, image: torch.Tensor) -> torch.Tensor:
        """Pad [..., X, Y, Z] with background (0) to the size that the windows cover."""
        before_and_after = [n for pair in reversed(self.padding) for n in pair]
        return F.pad(image, before_and_after)

    def crop(self, volume: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`pad`."""
        x, y, z = (slice(before, n - after) for (before, after), n in zip(self.padding, volume.shape[-3:], strict=True))
        return volume[..., x, y, z]


def plan_windows(shape: tuple[int, int, int], window: int, overlap: float = 0.5) -> WindowPlan:
    """Cover a volume with windows.

    Args:
        shape: voxels of the volume.
        window: largest edge of a window; along an axis that is shorter, the window shrinks to the next size that the
            network can take, and the volume is padded to it.
        overlap: share of a window that the next one covers again (docs/METHOD.md: 0.5).
    """
    x, y, z = (min(window, max(Student.MINIMUM, -(-n // Student.STRIDE) * Student.STRIDE)) for n in shape)
    edges = (x, y, z)
    padding = []
    for n, edge in zip(shape, edges, strict=True):
        missing = max(0, edge - n)
        padding.append((missing // 2, missing - missing // 2))
    padded = tuple(n + sum(pair) for n, pair in zip(shape, padding, strict=True))
    interval = tuple(max(1, int(edge * (1 - overlap))) for edge in edges)
    places = tuple((x, y, z) for x, y, z in dense_patch_slices(padded, edges, interval))
    importance = compute_importance_map(edges, mode="gaussian", sigma_scale=0.125)
    return WindowPlan(edges, tuple(padding), places, importance.clamp_min(1e-3).float())


def windows_of(
    plan: WindowPlan,
    volume: torch.Tensor,
    *,
    cancelled: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> Iterator[torch.Tensor]:
    """The windows of a padded volume, a batch at a time: [B, ..., window] each.

    Args:
        plan: the windows.
        volume: of :meth:`WindowPlan.pad`, [..., X, Y, Z].
        cancelled: asked before every batch; once it says True the work is given up.
        progress: called after every batch with the number done and the number of all.

    Raises:
        Cancelled: ``cancelled`` said so.
    """
    for places in _watched(plan.batches, cancelled, progress):
        yield torch.stack([volume[(..., *place)] for place in places])


def blend_windows(
    plan: WindowPlan,
    windows: Iterable[torch.Tensor],
    *,
    cancelled: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Add up what a network made of every window with the plan's weights, and divide by their sum.

    Args:
        plan: the windows.
        windows: float32 [B, ..., window], batch by batch, as :func:`windows_of` gives them.
        cancelled: asked before every batch; once it says True the work is given up.
        progress: called after every batch with the number done and the number of all.

    Returns:
        The blended volume, float32 [..., X, Y, Z] on the padded grid and the windows' device.

    Raises:
        Cancelled: ``cancelled`` said so.
    """
    blended: torch.Tensor | None = None
    windows = iter(windows)
    for places in _watched(plan.batches, cancelled, progress):
        batch = next(windows)
        if blended is None:
            blended = batch.new_zeros(*batch.shape[1:-3], *plan.padded_shape)
            importance, weight = plan.importance.to(batch.device), batch.new_zeros(plan.padded_shape)
        for place, window in zip(places, batch, strict=True):
            blended[(..., *place)].addcmul_(window, importance)
            weight[place] += importance
    assert blended is not None, "a plan has at least one window"
    return blended.div_(weight)


def _watched(
    batches: Sequence[tuple[Slices, ...]], cancelled: Callable[[], bool] | None, progress: Progress | None
) -> Iterator[tuple[Slices, ...]]:
    """The batches one by one, ``cancelled`` asked before each and ``progress`` told after it."""
    for done, batch in enumerate(batches, start=1):
        if cancelled is not None and cancelled():
            raise Cancelled
        yield batch
        if progress is not None:
            progress(done, len(batches))
