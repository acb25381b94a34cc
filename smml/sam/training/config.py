"""Every option of a training of the tiny SAM, with its default, its range and what it means."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from smml.errors import InputError
from smml.options import SEED, Range, check, count, option
from smml.sam.training.scenes import TRAINING_SEED

# Scenes are kept in memory, about 50 kB each.
MOST_SCENES = 1_000_000
# What the random streams of anatomy are numbered with must fit into 64 bits.
_DATA_SEED = Range("be a whole number from 0 to 2^32 - 1", lambda number: 0 <= number < 2**32)
_RATE = Range("be positive and at most 1", lambda number: 0 < number <= 1)


@dataclass(frozen=True)
class SAMTraining:
    """Options of a training of the tiny SAM.

    Attributes:
        steps: optimiser steps.
        seed: of the weights, prompts and intensities.
        data_seed: of the simulated subjects.
        subjects: simulated subjects with a lesion at 3 mm; a sixth of them again at 2 mm, and a quarter as many healthy
            brains.
        slices: rendered a subject.
        shapes: slices with synthetic shapes.
        batch_size: slices a step, each with three prompts.
        learning_rate: after the warm-up of 100 steps; falls as a cosine.
        weights: "tiny" or the file of a tiny SAM to go on from, with its size; None starts from random weights.
        precision: "float32", or "bf16" for bfloat16 autocast of the model; the losses compute in float32 always.
        checkpoint_every: steps between checkpoints.
        device: torch device.

    Raises:
        InputError: a value of another type, a number outside its range, an unknown word, or more scenes than fit into
            memory.
    """

    steps: int = option(2000, "Optimiser steps (Meta's SAM: 90,000).", count(10_000_000))
    seed: int = option(0, "Of weights, prompts and intensities.", SEED)
    data_seed: int = option(TRAINING_SEED, "Of the simulated subjects, of no other cohort.", _DATA_SEED)
    subjects: int = option(32, "Simulated subjects with a lesion.", count(10_000))
    slices: int = option(110, "Slices rendered a subject.", count(10_000))
    shapes: int = option(2000, "Slices with synthetic shapes.", count(MOST_SCENES))
    batch_size: int = option(8, "Slices a step, each with three prompts (Meta's SAM: 256).", count(1024))
    learning_rate: float = option(1e-3, "Rate after the warm-up (Meta's SAM: 8e-4).", _RATE)
    weights: str | None = option(None, "Go on from tiny or from a tiny SAM's file.")
    precision: Literal["float32", "bf16"] = option("float32", "float32, or bf16 for autocast of the model.")
    checkpoint_every: int = option(100, "Steps between checkpoints.", count(10_000_000))
    device: str = option("cpu", "torch device, for example cpu or cuda.")

    def __post_init__(self) -> None:
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        check(self)
        for name in ("weights", "device"):
            if getattr(self, name) == "":
                raise InputError(f"{name} must not be empty; leave it out for its default")
        scenes = self.slices * (self.subjects + self.fine + self.healthy) + self.shapes
        if scenes > MOST_SCENES:
            raise InputError(
                f"subjects {self.subjects:,}, slices {self.slices:,} and shapes {self.shapes:,} make {scenes:,} scenes "
                f"that are all kept in memory; lower one of them until there are at most {MOST_SCENES:,}"
            )

    @property
    def fine(self) -> int:
        """Subjects with a lesion that are rendered at 2 mm, on top of those at 3 mm."""
        return max(1, self.subjects // 6)

    @property
    def healthy(self) -> int:
        """Brains without a tumour."""
        return max(1, self.subjects // 4)

    def to_dict(self) -> dict:
        """A dictionary of plain values, for logs and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SAMTraining":
        """Inverse of :meth:`to_dict`.

        Args:
            values: by option; those left out have their defaults.

        Raises:
            InputError: an option is unknown, or a value is refused.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise InputError(f"unknown SAM training option {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return cls(**values)


def learning_rate(settings: SAMTraining, step: int) -> float:
    """The rate of a step: linear warm-up over 100 steps, then half a cosine down to a hundredth."""
    warm = min(100, max(1, settings.steps // 10))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, settings.steps - warm)
    # math, not numpy: a numpy number in the optimiser's state could not be read back with weights_only.
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
