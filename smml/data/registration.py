"""Rigid registration of two sequences of one patient, by SimpleITK.

Sequences have other contrasts, so what is made as high as it can be is their mutual information (Mattes): how much the
intensity of one tells of the other's. Only tissue takes part, the background is 0 in both. One thread and a fixed seed:
the same images give the same transform.
"""

from typing import NamedTuple

import numpy as np
import torch

from smml.data.brain import Brain, tissue_range
from smml.data.reading import LPS_TO_RAS, import_simpleitk
from smml.data.resampling import transform_masked
from smml.errors import InputError

# Voxel edge in mm on which sequences are compared: finer ones only cost time.
WORKING_EDGE = 2.0
# Voxels of background kept round a brain; its edge tells where it is.
_MARGIN = 3
_BINS = 32
_SEED = 1
# Coarse, then fine: voxels taken together along each axis, width in mm of the Gaussian before, and share of voxels.
_LEVELS = ((2, 2.0, 1.0), (1, 1.0, 0.25))
_ITERATIONS = 200


class Tissue(NamedTuple):
    """What of an image is tissue, and where.

    Attributes:
        values: float32 [X, Y, Z], above the background, extreme intensities cut off; 0 outside the mask.
        mask: bool [X, Y, Z], the brain.
        affine: float64 [4, 4], voxel index -> RAS+ mm.
    """

    values: np.ndarray
    mask: np.ndarray
    affine: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """Voxel edges in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def middle(self) -> np.ndarray:
        """Centre of the brain's voxels in mm, [3]."""
        return self.affine[:3, :3] @ np.argwhere(self.mask).mean(axis=0) + self.affine[:3, 3]


def working_tissue(volume: np.ndarray, brain: Brain, affine: np.ndarray, edge: float) -> Tissue:
    """The tissue of an image along its own axes, in cubes, cropped to the brain and a little more.

    Args:
        volume: float32 [X, Y, Z].
        brain: where its brain is.
        affine: [4, 4], voxel index -> RAS+ mm.
        edge: of the cubes in mm.

    Raises:
        InputError: there is no brain in it, or next to none.
    """
    if not brain.mask.any():
        raise InputError("found no brain in it, only background")
    low, high = tissue_range(volume[brain.mask])
    values = (volume.clip(low, high) - brain.background).astype(np.float32)
    inside = np.argwhere(brain.mask)
    first, last = inside.min(axis=0), inside.max(axis=0)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.ceil((last - first + 1) * edges / edge).astype(int) + 2 * _MARGIN
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(edge / edges)
    matrix[:3, 3] = (first + last) / 2 - matrix[:3, :3] @ ((shape - 1) / 2)
    resampled, mask = transform_masked(
        torch.from_numpy(values), torch.from_numpy(brain.mask), matrix, [int(length) for length in shape]
    )
    if not bool(mask.any()):
        raise InputError(f"found a brain of less than a cube of {edge:g} mm in it")
    return Tissue(resampled.numpy(), mask.numpy(), affine @ matrix)


def brought(moving: Tissue, fixed: Tissue, matrix: np.ndarray) -> Tissue:
    """Tissue on the grid of another.

    Args:
        moving: what is brought.
        fixed: whose grid it is.
        matrix: [4, 4], mm in ``fixed`` -> mm in ``moving``.
    """
    index = np.linalg.inv(moving.affine) @ matrix @ fixed.affine
    values, mask = transform_masked(
        torch.from_numpy(moving.values), torch.from_numpy(moving.mask), index, fixed.mask.shape
    )
    return Tissue(values.numpy(), mask.numpy(), fixed.affine)


def mutual_information(fixed: Tissue, moving: Tissue) -> float:
    """How much the intensity of one tells of the other's, in nats, over the brain of the first.

    Args:
        fixed: with at least one voxel of brain.
        moving: on the same grid; its background counts as one intensity more.
    """
    joint, _, _ = np.histogram2d(fixed.values[fixed.mask], moving.values[fixed.mask], bins=_BINS)
    joint /= joint.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / apart[there])).sum())


def register(fixed: Tissue, moving: Tissue, start: np.ndarray | None = None) -> np.ndarray:
    """Find the rigid movement between two images of one head.

    Args:
        fixed: stays where it is.
        moving: of the same patient, any contrast.
        start: [3], mm by which ``moving`` lies away from ``fixed``, to begin with; None is not at all.

    Returns:
        float64 [4, 4], RAS+ mm in ``fixed`` -> RAS+ mm in ``moving``, at the same place of the head.

    Raises:
        MissingPackage: SimpleITK is not installed.
        InputError: it found no way, for example because too little of one lies in the other.
    """
    sitk = import_simpleitk("registration", extra="register")
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([share for _, _, share in _LEVELS], seed=_SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=1e-3,
        numberOfIterations=_ITERATIONS,
        relaxationFactor=0.5,
        gradientMagnitudeTolerance=1e-6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([together for together, _, _ in _LEVELS])
    method.SetSmoothingSigmasPerLevel([width for _, width, _ in _LEVELS])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    transform = sitk.Euler3DTransform()
    # Turning about the middle of the brain moves it least.
    transform.SetCenter((LPS_TO_RAS[:3, :3] @ fixed.middle).tolist())
    if start is not None:
        transform.SetTranslation((LPS_TO_RAS[:3, :3] @ start).tolist())
    method.SetInitialTransform(transform, inPlace=True)
    # Sums of several threads come out in any order, and the metric asks for the number of the whole process.
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    method.SetNumberOfThreads(1)
    try:
        method.Execute(_itk_image(sitk, fixed), _itk_image(sitk, moving))
    except RuntimeError as error:
        # ITK wraps its reason in a paragraph of its own.
        reason = str(error).strip().splitlines()[-1].rpartition("): ")[2]
        raise InputError(f"registration found no way ({reason})") from error
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    turn, centre = np.reshape(transform.GetMatrix(), (3, 3)), np.array(transform.GetCenter())
    found = np.eye(4)
    found[:3, :3] = turn
    found[:3, 3] = np.array(transform.GetTranslation()) + centre - turn @ centre
    return LPS_TO_RAS @ found @ LPS_TO_RAS


def _itk_image(sitk, tissue: Tissue):
    lps = LPS_TO_RAS @ tissue.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(tissue.values.T))
    image.SetSpacing(tissue.edges.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / tissue.edges).ravel().tolist())
    return image
