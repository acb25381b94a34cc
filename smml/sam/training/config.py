"""Every option of a training of the tiny SAM, with its default, its range and what it means."""

import math
from dataclasses import asdict, dataclass, field, fields

from smml.errors import InputError
from smml.sam.training.scenes import TRAINING_SEED

PRECISIONS = ("float32", "bf16")
# Scenes are kept in memory, about 50 kB each.
MOST_SCENES = 1_000_000


def _whole(default: int, least: int, most: int, help: str):
    """A field that holds a whole number from ``least`` to ``most``."""
    return field(default=default, metadata={"help": help, "least": least, "most": most})


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
        InputError: a number outside its range, an unknown word, or more scenes than any memory holds.
    """

    steps: int = _whole(2000, 1, 10_000_000, "Optimiser steps (Meta's SAM: 90,000).")
    seed: int = _whole(0, 0, 2**63 - 1, "Of weights, prompts and intensities.")
    data_seed: int = _whole(TRAINING_SEED, 0, 2**32 - 1, "Of the simulated subjects, of no other cohort.")
    subjects: int = _whole(32, 1, 10_000, "Simulated subjects with a lesion.")
    slices: int = _whole(110, 1, 10_000, "Slices rendered a subject.")
    shapes: int = _whole(2000, 1, MOST_SCENES, "Slices with synthetic shapes.")
    batch_size: int = _whole(8, 1, 1024, "Slices a step, each with three prompts (Meta's SAM: 256).")
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Rate after the warm-up; it falls as a cosine (Meta's SAM: 8e-4, in steps)."}
    )
    weights: str | None = field(default=None, metadata={"help": "Go on from tiny or from a tiny SAM's file."})
    precision: str = field(default="float32", metadata={"help": "float32, or bf16 for autocast of the model."})
    checkpoint_every: int = _whole(100, 1, 10_000_000, "Steps between checkpoints.")
    device: str = field(default="cpu", metadata={"help": "Torch device, such as cpu, cuda or cuda:1."})

    def __post_init__(self) -> None:
        for option in fields(self):
            value, limits = getattr(self, option.name), option.metadata
            if "least" in limits:
                least, most = limits["least"], limits["most"]
                if type(value) is not int or not least <= value <= most:
                    raise InputError(
                        f"SAM training: {option.name} must be a whole number from {least} to {most}, found {value!r}"
                    )
        rate = self.learning_rate
        if type(rate) not in (int, float) or not 0 < rate <= 1:
            raise InputError(f"SAM training: learning_rate must be a number above 0 and at most 1, found {rate!r}")
        if self.precision not in PRECISIONS:
            raise InputError(f"SAM training: precision must be float32 or bf16, found {self.precision!r}")
        for name, value in (("weights", self.weights), ("device", self.device)):
            if not (isinstance(value, str) and value) and (name, value) != ("weights", None):
                raise InputError(f"SAM training: {name} must be a name, found {value!r}")
        scenes = self.slices * (self.subjects + self.fine + self.healthy) + self.shapes
        if scenes > MOST_SCENES:
            raise InputError(
                f"SAM training: subjects {self.subjects}, slices {self.slices} and shapes {self.shapes} make {scenes} "
                f"scenes, which are all kept in memory; lower one of them until there are at most {MOST_SCENES}"
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
    def from_dict(cls, values: dict) -> "SAMTraining":
        """Inverse of :meth:`to_dict`.

        Args:
            values: by option; those left out have their defaults.

        Raises:
            InputError: an option is unknown, or a value is refused.
        """
        known = {option.name for option in fields(cls)}
        unknown = sorted(map(str, values.keys() - known))
        if unknown:
            raise InputError(f"SAM training: unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return cls(**values)


def learning_rate(settings: SAMTraining, step: int) -> float:
    """The rate of a step: linear warm-up over 100 steps, then half a cosine down to a hundredth."""
    warm = min(100, max(1, settings.steps // 10))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, settings.steps - warm)
    # math, not numpy: a numpy number in the optimiser's state could not be read back with weights_only.
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
