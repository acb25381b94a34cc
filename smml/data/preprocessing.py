"""From a case on its own grid to the network's input, and back.

Each modality is prepared from itself alone: the axes are turned to RAS+, the voxels resampled to the wanted spacing,
and the brain brought to mean 0 and standard deviation 1; the background becomes 0. Neither a cropping box nor a brain
mask is shared between modalities, so nothing of one can reach the network through another.

A network wants its images as they were in its training, so the ways of preparing have numbers, and a checkpoint stores
its own:

1. (No longer here: the brain was what is not exactly 0, and its edge was interpolated with the background.)
2. The brain is what :func:`smml.data.brain.find_brain` finds. Extreme intensities are cut off, and resampling averages
   the brain's voxels alone (:mod:`smml.data.resampling`).
3. As 2, and the slow part of the intensities, which is the coil's, is divided out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from smml.data.brain import Brain, find_brain, tissue_range, warn_of_skull
from smml.data.case import Case
from smml.data.resampling import resize_masked, smooth_field
from smml.errors import InputError
from smml.modalities import MODALITIES

_Number = TypeVar("_Number", int, float)

# Spacings that differ by less are the same: resampling would only blur.
_SAME_SPACING = 0.01
# Standard deviation in mm of the Gaussian that finds the coil's part of the intensities.
_COIL = 15.0
# Times that it is found and divided out. Tissue that is cut off hides a part of it from the first.
_PASSES = 3


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

    def turned(self, volume: np.ndarray) -> np.ndarray:
        """One volume [X, Y, Z] with its axes in RAS+ order."""
        # A copy even where nothing turns: what is prepared must not share memory with the case.
        return np.array(nib.apply_orientation(volume, self.to_canonical), order="C")

    def resample_labels(self, label: np.ndarray) -> torch.Tensor:
        """Turn and resample labels [X, Y, Z], each voxel from the nearest one, uint8 [x, y, z]."""
        turned = torch.from_numpy(self.turned(label))
        if self.shape != self.canonical_shape:
            turned = F.interpolate(turned[None, None].float(), size=self.shape, mode="nearest-exact")[0, 0]
        return turned.to(torch.uint8)

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

    @property
    def brain(self) -> torch.Tensor:
        """Where each modality's brain is, bool [M, x, y, z]; prepared images are exactly 0 elsewhere."""
        return self.image != 0


def prepare(
    case: Case, spacing: tuple[float, float, float] | None = None, *, preprocessing: int | None = None
) -> PreparedCase:
    """Prepare a case for the network.

    Args:
        case: with at least one modality.
        spacing: voxel edges in mm that the network was trained at (axes in RAS+ order), or None to keep the case's.
        preprocessing: version that the network was trained with; None is the newest.

    Returns:
        See :class:`PreparedCase`. A case that does not look skull-stripped is warned of.

    Raises:
        InputError: no such version.
    """
    prepare_image = find_preprocessing(LATEST if preprocessing is None else preprocessing)
    geometry = plan_geometry(case, spacing)
    image, brains = torch.zeros(len(MODALITIES), *geometry.shape), {}
    for m, name in enumerate(MODALITIES):
        if name in case.volumes:
            turned = geometry.turned(case.volumes[name])
            brains[name] = find_brain(turned)
            image[m] = prepare_image(turned, brains[name], geometry)
    warn_of_skull(case.id, brains, float(np.prod(case.spacing)) / 1000)
    label = None if case.label is None else geometry.resample_labels(case.label)
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


def normalise(volume: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over the brain's voxels of [X, Y, Z], which ``brain`` (bool) marks; else 0.

    A volume that is constant inside the brain becomes 0 everywhere.
    """
    result = torch.zeros_like(volume)
    if not bool(brain.any()):
        return result
    values = volume[brain].double()
    deviation = values.std(correction=0)
    if deviation > 1e-6 * values.abs().max():
        result[brain] = ((values - values.mean()) / deviation).to(volume.dtype)
    return result


def _masked(volume: np.ndarray, brain: Brain, geometry: Geometry, coil: float = 0.0) -> torch.Tensor:
    """Version 2, and with the width ``coil`` in mm of the smooth part version 3."""
    if not brain.mask.any():
        return torch.zeros(geometry.shape)
    low, high = tissue_range(volume[brain.mask])
    # The background becomes 0 before anything else: of an image whose 0 was moved, only that is a zero of intensity.
    tissue = torch.from_numpy((volume.clip(low, high) - brain.background).astype(np.float32))
    tissue, mask = resize_masked(tissue, torch.from_numpy(brain.mask), geometry.shape)
    if coil and bool(mask.any()):
        tissue = _without_coil(tissue, mask, geometry.spacing, coil)
    return normalise(tissue, mask)


def _without_coil(
    tissue: torch.Tensor, mask: torch.Tensor, spacing: tuple[float, float, float], width: float
) -> torch.Tensor:
    """Divide out the slow part of the intensities of [X, Y, Z]; bright and dark tissue hardly takes part in it."""
    values = tissue[mask].numpy()
    # An image with its mean taken off has no zero any more; the darkest tissue stands in.
    zero = 0.0 if np.percentile(values, 5) > 0 else float(np.percentile(values, 0.1))
    even = torch.where(mask, tissue - zero, 0)
    for _ in range(_PASSES):
        low, high = (float(value) for value in np.percentile(even[mask].numpy(), (25, 75)))
        if high <= 0:
            break
        field = smooth_field(even.clamp(low, high), mask, spacing, width)
        even = torch.where(mask, even / field.clamp_min(0.1 * high), 0)
    return even


# From one modality's volume float32 [X, Y, Z] in RAS+, its brain and the geometry to float32 [x, y, z].
Preprocessing = Callable[[np.ndarray, Brain, Geometry], torch.Tensor]
PREPROCESSINGS: dict[int, Preprocessing] = {2: _masked, 3: partial(_masked, coil=_COIL)}
# What new trainings use.
LATEST = 3


def find_preprocessing(version: int) -> Preprocessing:
    """A version by its number.

    Raises:
        InputError: there is none.
    """
    if type(version) is not int or version not in PREPROCESSINGS:
        known = ", ".join(map(str, PREPROCESSINGS))
        raise InputError(f"preprocessing must be one of the versions {known}, found {version!r:.80}")
    return PREPROCESSINGS[version]
