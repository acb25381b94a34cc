"""From a case on its own grid to the network's input, and back.

Each modality is prepared from itself alone: the axes are turned to RAS+, the voxels resampled to the wanted spacing,
and the brain (its non-zero voxels) brought to mean 0 and standard deviation 1; the background stays 0. Neither a
cropping box nor a brain mask is shared between modalities, so nothing of one can reach the network through another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from smml.data.case import Case
from smml.modalities import MODALITIES

_Number = TypeVar("_Number", int, float)

# Spacings that differ by less are the same: resampling would only blur.
_SAME_SPACING = 0.01


@dataclass(frozen=True)
class Geometry:
    """How a case's own grid became the network's grid, so that it can be undone.

    Attributes:
        to_canonical: nibabel orientation transform [3, 2] from the case's axes to RAS+.
        native_shape: voxels on the case's own grid.
        canonical_shape: the same with the axes in RAS+ order, before resampling.
        shape: voxels of the prepared tensors.
        spacing: their voxel edges in mm.
    """

    to_canonical: np.ndarray
    native_shape: tuple[int, int, int]
    canonical_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    def forward(self, volume: np.ndarray, *, nearest: bool = False) -> torch.Tensor:
        """Turn and resample one volume [X, Y, Z]; float32, or uint8 with ``nearest`` (labels)."""
        # A copy even where nothing turns: what is prepared must not share memory with the case.
        turned = np.array(nib.apply_orientation(volume, self.to_canonical), order="C")
        tensor = torch.from_numpy(turned)
        if self.shape != self.canonical_shape:
            mode = {"mode": "nearest-exact"} if nearest else {"mode": "trilinear", "align_corners": False}
            tensor = F.interpolate(tensor[None, None].float(), size=self.shape, **mode)[0, 0]
        return tensor.to(torch.uint8 if nearest else torch.float32)

    def inverse(self, channels: torch.Tensor) -> torch.Tensor:
        """Bring [K, x, y, z] (probabilities) back to the case's own grid, float32 [K, X, Y, Z] on the CPU."""
        tensor = channels.detach().float().cpu()
        if self.shape != self.canonical_shape:
            tensor = F.interpolate(tensor[None], size=self.canonical_shape, mode="trilinear", align_corners=False)[0]
        # io_orientation gives the case's axes in terms of RAS+, so the way back ends at exactly that orientation.
        back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(("R", "A", "S")), self.to_canonical)
        turned = [nib.apply_orientation(channel, back) for channel in tensor.numpy()]
        return torch.from_numpy(np.stack(turned))


@dataclass(frozen=True)
class PreparedCase:
    """A case as the network sees it.

    Attributes:
        image: float32 [M, x, y, z] in RAS+, normalised; a modality that was not read is 0.
        available: bool [M], which modalities were read.
        label: uint8 [x, y, z], in-memory values, or None.
        geometry: the way back.
    """

    image: torch.Tensor
    available: torch.Tensor
    label: torch.Tensor | None
    geometry: Geometry


def prepare(case: Case, spacing: tuple[float, float, float] | None = None) -> PreparedCase:
    """Prepare a case for the network.

    Args:
        case: with at least one modality.
        spacing: voxel edges in mm that the network was trained at (axes in RAS+ order), or None to keep the case's.

    Returns:
        See :class:`PreparedCase`.
    """
    geometry = plan_geometry(case, spacing)
    image = torch.zeros(len(MODALITIES), *geometry.shape)
    for m, name in enumerate(MODALITIES):
        if name in case.volumes:
            image[m] = normalise(geometry.forward(case.volumes[name]))
    label = None if case.label is None else geometry.forward(case.label, nearest=True)
    available = torch.tensor([name in case.volumes for name in MODALITIES])
    return PreparedCase(image=image, available=available, label=label, geometry=geometry)


def plan_geometry(case: Case, spacing: tuple[float, float, float] | None = None) -> Geometry:
    """The geometry of :func:`prepare`; it depends on the case's grid alone, never on its voxels' values."""
    to_canonical = nib.io_orientation(case.affine)
    order = np.argsort(to_canonical[:, 0])
    canonical_shape = _three(int(case.shape[axis]) for axis in order)
    own = _three(float(case.spacing[axis]) for axis in order)
    if spacing is None or all(abs(a / b - 1) < _SAME_SPACING for a, b in zip(own, spacing, strict=True)):
        shape, target = canonical_shape, own
    else:
        # The field of view stays the same; the voxel edge is the wanted one up to rounding to whole voxels.
        shape = _three(max(1, round(n * a / b)) for n, a, b in zip(canonical_shape, own, spacing, strict=True))
        target = _three(n * a / m for n, a, m in zip(canonical_shape, own, shape, strict=True))
    return Geometry(to_canonical, case.shape, canonical_shape, shape, target)


def _three(values: Iterable[_Number]) -> tuple[_Number, _Number, _Number]:
    x, y, z = values
    return x, y, z


def normalise(volume: torch.Tensor) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over the non-zero voxels of [X, Y, Z]; zeros stay 0.

    A volume that is constant inside the brain becomes 0 everywhere.
    """
    brain = volume != 0
    if not bool(brain.any()):
        return torch.zeros_like(volume)
    values = volume[brain].double()
    deviation = values.std(correction=0)
    result = torch.zeros_like(volume)
    if deviation > 1e-6 * values.abs().max():
        result[brain] = ((values - values.mean()) / deviation).to(volume.dtype)
    return result
