"""The same patch as other scanners would show it: contrast, bias, noise and resolution, each sequence by itself.

Everything here keeps the order of tissues (no inversion of grey values), the background and the brain's edge. What
changes the scale of intensities works on z-scores lifted above 0, where a scanner's intensities are.
"""

import numpy as np
import torch
from monai.transforms import (
    AdjustContrast,
    GaussianSmooth,
    RandBiasField,
    RandGaussianNoise,
    RandHistogramShift,
    RandRicianNoise,
)

from smml.data.resampling import divided, resize_masked

# Zero intensity lies about so many standard deviations below the mean of a brain.
_ZERO = 3.0
# How often a sequence gets each of the changes at strength 1.
_OFTEN = 0.3


def vary_appearance(image: torch.Tensor, strength: float, random: np.random.Generator) -> torch.Tensor:
    """Change the appearance of each sequence of a patch.

    Args:
        image: z-scores, background exactly 0, float32 [M, x, y, z].
        strength: 0 changes nothing, 1 about as much as patients and scanners differ; 3 at most.
        random: where all chance comes from.

    Returns:
        float32 [M, x, y, z], a new tensor; what is exactly 0 stays so.
    """
    if strength <= 0:
        return image.clone()
    return torch.stack([_vary(channel, strength, random) for channel in image])


def _vary(channel: torch.Tensor, strength: float, random: np.random.Generator) -> torch.Tensor:
    """One sequence [x, y, z]."""
    # All numbers are drawn whether they are needed or not, so that a change in one place moves nothing after it.
    happens = random.random(6) < min(1.0, _OFTEN * max(1.0, strength))
    gamma = float(np.exp(strength * random.uniform(-0.35, 0.35)))
    level, width = strength * random.uniform(0.02, 0.25), strength * random.uniform(0.3, 0.8)
    axis, thick = int(random.integers(3)), 1 + strength * random.uniform(0.5, 2.0)
    scale, shift = np.exp(strength * random.uniform(-0.15, 0.15)), strength * random.uniform(-0.2, 0.2)
    rician, coarse = random.random(2) < 0.5
    seeds = [int(seed) for seed in random.integers(2**31, size=3)]
    brain = channel != 0
    if not bool(brain.any()):
        return channel.clone()
    # Contrast of the tissues: a curve that rises, through random points or as a power.
    if happens[0]:
        curve = RandHistogramShift(num_control_points=(4, 8), prob=1)
        curve.set_random_state(seeds[0])
        values = channel[brain]
        channel = channel.clone()
        channel[brain] = torch.lerp(values, _plain(curve(values[None]))[0], min(1.0, 0.7 * strength))
    if happens[1]:
        values = channel[brain]
        channel = channel.clone()
        channel[brain] = _plain(AdjustContrast(gamma, retain_stats=True)(values[None]))[0]
    lifted = channel + _ZERO
    if happens[2]:
        field = RandBiasField(degree=3, coeff_range=(-0.1 * strength, 0.1 * strength), prob=1)
        field.set_random_state(seeds[1])
        lifted = _plain(field(lifted[None]))[0]
    # Resolution before noise: a scanner's noise is not blurred by its own resolution.
    if happens[3] and coarse:
        shape = list(channel.shape)
        shape[axis] = max(1, round(shape[axis] / thick))
        thin, kept = resize_masked(lifted, brain, shape)
        wide, found = resize_masked(thin, kept, channel.shape)
        lifted = torch.where(found, wide, lifted)
    elif happens[3]:
        blur = GaussianSmooth([width if a == axis else width / 2 for a in range(3)])
        parts = torch.stack([torch.where(brain, lifted, 0), brain.float()])
        wide, found = divided(*_plain(blur(parts)))
        lifted = torch.where(found, wide, lifted)
    if happens[4]:
        kind = RandRicianNoise if rician else RandGaussianNoise
        noise = kind(prob=1, mean=0.0, std=level, sample_std=False)
        noise.set_random_state(seeds[2])
        lifted = _plain(noise(lifted[None]))[0]
    result = lifted - _ZERO
    if happens[5]:
        result = result * float(scale) + float(shift)
    return torch.where(brain, result, 0)


def _plain(tensor: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Without MONAI's metadata."""
    return torch.as_tensor(np.asarray(tensor), dtype=torch.float32)
