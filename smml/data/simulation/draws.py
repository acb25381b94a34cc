"""A subject's random numbers: a stream for each purpose, so that what one draws moves nothing in another."""

import numpy as np
import torch

from smml.data.simulation.fields import uniform

STREAMS = ("kind", "shape", "growth", "compartments", "head", "contrast", "image", "grain", "look", "deep white")


class Draws:
    """Random numbers from one of a subject's streams.

    Args:
        seed: the cohort's seed, 0 or more.
        index: the subject's number in the cohort, 0 or more.
        stream: one of ``STREAMS``.
    """

    def __init__(self, seed: int, index: int, stream: str):
        state = np.random.SeedSequence([seed, index, 1 + STREAMS.index(stream)]).generate_state(2, np.uint32)
        self.generator = torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return uniform(self.generator, low, high)

    def normal(self, width: float = 1.0, mean: float = 0.0) -> float:
        """Normal, cut at 2.5 standard deviations."""
        return mean + width * max(-2.5, min(2.5, torch.randn((), generator=self.generator).item()))

    def log_between(self, low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return float(np.exp(self.between(np.log(low), np.log(high))))

    def chance(self, share: float) -> bool:
        """True in ``share`` of the draws."""
        return self.between(0, 1) < share

    def choice(self, shares: dict[str, float]) -> str:
        """A key, as often as its value says."""
        position = self.between(0, 1) * sum(shares.values())
        for key, share in shares.items():
            position -= share
            if position < 0:
                return key
        return next(iter(shares))


class Middle(Draws):
    """No random numbers: the middle of every range, and whatever is most frequent."""

    def __init__(self) -> None:
        pass

    def between(self, low: float, high: float) -> float:
        """The mean of both ends."""
        return (low + high) / 2

    def normal(self, width: float = 1.0, mean: float = 0.0) -> float:
        """The mean."""
        return mean

    def chance(self, share: float) -> bool:
        """True if that is so in half of the draws or more."""
        return share >= 0.5

    def choice(self, shares: dict[str, float]) -> str:
        """The most frequent key."""
        return max(shares, key=lambda key: shares[key])
