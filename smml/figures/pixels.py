"""From intensities and masks to what is painted of them: which are black and white, and where an area ends."""

import numpy as np

from smml.data.brain import find_brain


def intensity_window(volume: np.ndarray) -> tuple[float, float]:
    """Intensities to show black and white: the 1st and 99.5th percentile of the brain.

    Args:
        volume: intensities, [X, Y, Z], any numeric dtype.

    Returns:
        (black, white), the second higher than the first; (0, 1) if there is no brain.
    """
    # Every 8th voxel of a large volume: percentiles hardly change, a full-size case opens much faster.
    step = 8 if volume.size > 2e6 else 1
    inside = volume.ravel()[::step][find_brain(volume).mask.ravel()[::step]]
    if not inside.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(inside, (1, 99.5)))
    return low, max(high, low + 1e-3 * max(1.0, abs(low)))


def edge(inside: np.ndarray, width: int = 1) -> np.ndarray:
    """The outermost pixels of an area; the border of the picture counts as outside.

    Args:
        inside: bool [rows, columns].
        width: of the edge, in pixels.

    Returns:
        bool of the same shape.
    """
    core = inside
    for _ in range(width):
        padded = np.pad(core, 1)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core
