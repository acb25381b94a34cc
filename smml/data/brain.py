"""What the brain is of a skull-stripped image: the one place that tells tissue from background.

Files say "nothing here" in more ways than 0. A resampled image has faint noise or ringing there, a scale in the header
moves 0 elsewhere, a normalised image has its mean taken off. So the background is the value that a large part of the
image shares, and the noise round it is measured.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

# Statistics are taken from about so many voxels of a large image.
_SAMPLED = 200_000
# A share of exact zeros that makes 0 the background.
_ZEROS = 0.001
# Without zeros the background is where this share of all voxels lies closest together...
_TOGETHER = 0.1
# ...if that is closer than this, as a share of how far the brightest tissue lies from it.
_NARROW = 0.01
# Noise of the background: at most this share of the same distance, and tissue begins so many deviations beyond it.
_NOISE, _DEVIATIONS = 0.01, 8
# Voxels beyond the noise are tissue if they hang together with at least this share of the largest piece.
_ISLAND = 0.001
# Values of tissue beyond so many times the distance from the median to the outermost of each thousand are no tissue's.
_OUTERMOST, _REACH = 0.001, 1.5
# No brain is larger, in ml; a head with its skull and neck is.
LARGEST_BRAIN = 2600.0


@dataclass(frozen=True, eq=False)
class Brain:
    """Where the brain is.

    Attributes:
        mask: bool, shape of the image.
        background: intensity of the background.
    """

    mask: np.ndarray
    background: float


def find_brain(image: np.ndarray) -> Brain:
    """Tell the brain from the background.

    Where the background is exactly one value, the brain is every voxel of another value, negative ones among them.
    Faint noise round the background is background too, but not where tissue encloses it. An image without anything
    like a background, such as a block from inside the brain, is all brain.

    Args:
        image: one sequence, or slices of it, any shape and numeric dtype, finite.
    """
    image = np.asarray(image)
    if not image.size:
        return Brain(np.zeros(image.shape, bool), 0.0)
    # An odd step, so that it does not keep time with the rows of most images.
    sample = image.reshape(-1)[:: (image.size // _SAMPLED) | 1].astype(np.float64)
    background = _background(sample)
    if background is None:
        return Brain(np.ones(image.shape, bool), 0.0)
    tolerance = _tolerance(sample, background)
    if not tolerance:
        return Brain(image != image.dtype.type(background), background)
    mask = np.abs(image - np.float32(background)) > tolerance
    return Brain(_whole(mask, image != background), background)


def _background(sample: np.ndarray) -> float | None:
    if np.count_nonzero(sample == 0) >= _ZEROS * len(sample):
        return 0.0
    ordered = np.sort(sample)
    count = math.ceil(_TOGETHER * len(ordered))
    spans = ordered[count - 1 :] - ordered[: len(ordered) - count + 1]
    first = int(spans.argmin())
    middle = float(ordered[first + count // 2])
    return middle if spans[first] <= _NARROW * _brightest(np.abs(sample - middle)) else None


def _brightest(distances: np.ndarray) -> float:
    """How far bright tissue lies from the background; a few extreme voxels do not count."""
    distances = distances[distances > 0]
    return float(np.percentile(distances, 99, method="lower")) if len(distances) else 0.0


def _tolerance(sample: np.ndarray, background: float) -> float:
    """Distance from the background up to which a voxel is its noise; 0 where there is none."""
    distances = np.abs(sample - background)
    distances, brightest = distances[distances > 0], _brightest(distances)
    faint = distances[distances <= 10 * _NOISE * brightest]
    # Dark tissue is spread over the faint intensities or lies off the background; noise crowds round it.
    if len(faint) <= 0.1 * len(distances):
        return 0.0
    deviation = 1.4826 * float(np.median(faint))
    return _DEVIATIONS * deviation if deviation <= _NOISE * brightest else 0.0


def _whole(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The mask without specks, its holes filled where voxels are ``other`` than the background."""
    pieces, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(pieces.ravel())[1:]
        mask = np.concatenate([[False], sizes >= _ISLAND * sizes.max()])[pieces]
    outside, count = ndimage.label(~mask)
    open_ = np.zeros(count + 1, bool)
    for axis in range(mask.ndim):
        for end in (0, -1):
            open_[np.unique(outside.take(end, axis))] = True
    return mask | (other & ~open_[outside] & (outside > 0))


def tissue_range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest intensity that tissue can have; a few extreme voxels do not move them.

    Args:
        values: of the brain's voxels, [N], at least one.
    """
    middle = float(np.median(values))
    low = float(np.percentile(values, 100 * _OUTERMOST, method="higher"))
    high = float(np.percentile(values, 100 * (1 - _OUTERMOST), method="lower"))
    return min(middle, middle - _REACH * (middle - low)), max(middle, middle + _REACH * (high - middle))


def warn_of_skull(case: str, brains: Mapping[str, Brain], voxel_ml: float) -> None:
    """Warn once of a case of which a sequence does not look skull-stripped: no brain is as large.

    Args:
        case: its id.
        brains: by sequence.
        voxel_ml: volume of a voxel.
    """
    volumes = {name: float(np.count_nonzero(brain.mask)) * voxel_ml for name, brain in brains.items()}
    large = {name: volume for name, volume in volumes.items() if volume > LARGEST_BRAIN}
    if large:
        warnings.warn(
            f"case {case}: {', '.join(large)} does not look skull-stripped ({max(large.values()):.0f} ml are not "
            f"background, and no brain is larger than {LARGEST_BRAIN:.0f} ml), so the segmentation cannot be trusted: "
            "strip the skull first (with HD-BET or SynthStrip, for example)",
            stacklevel=3,
        )
