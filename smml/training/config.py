"""Every option of a training run, with its default and its source."""

import math
from dataclasses import asdict, dataclass, fields

from smml.errors import InputError
from smml.models.presets import preset

_ZERO_OR_MORE = (
    *("weight_decay", "poly_power", "pixel_weight", "feature_weight", "class_weight", "refinement_weight"),
    *("gradient_clip", "workers"),
)
_SHARES = (
    *("consistency_start", "consistency_ramp", "tumour_share"),
    *("min_class_weight", "gate_min_class_weight", "refinement_min_class_weight"),
)


@dataclass(frozen=True)
class TrainingConfig:
    """Options of a training run. Defaults are the paper's where it has one and a CPU can bear it.

    Attributes:
        preset: size of the students: "tiny", "small" or "paper".
        steps: optimiser steps.
        batch_size: samples a step, over all processes and micro-batches together (paper: 2).
        accumulate: parts in which a step's batch goes through the network, one after the other, to save memory. Losses
            are those of the parts, averaged by their numbers of samples. That is the loss of the whole batch for means
            over samples (cross-entropy), and not for what relates all of a batch: Dice's sums, L_pc's gated mean, L_rel
            and L_cls look within each part. It is exact over processes, whatever their number.
        patch: edge of the training patch, voxels (paper: 128).
        spacing: voxel edge in mm that all cases are resampled to; None takes that of the first case.
        learning_rate: at the first step (paper: 2e-4; short runs from scratch want more).
        weight_decay: L2 penalty (paper: 1e-4).
        poly_power: the rate decays as (1 - t / steps)^poly_power (paper: 0.9).
        min_class_weight: w_min of the cross-entropy's class weights (public code: 0, under which a patch of background
            alone teaches it nothing; docs/METHOD.md).
        consistency_start: share of the training after which L_pc switches on (public code: 100 of 1000 epochs).
        consistency_ramp: share of the training over which it then rises linearly to its weight.
        pixel_weight: l_pc, weight of L_{1->2} + L_{2->1}; 0 switches it off.
        feature_weight: l_fc, weight of L_fc; 0 switches it off.
        class_weight: lambda, weight of L_cls inside L_fc.
        gate: who teaches whom at pixel level: "lower_ce", "correct", "entropy" or "none".
        gate_min_class_weight: w_min of the gate's class weights. 1 counts every voxel alike; with the cross-entropy's,
            L_pc teaches to segment too much and costs Dice (results/study).
        separate_heads: which modalities the sep heads see: "available" or "masked".
        refinement: the SAM that makes priors for the refinement networks ("tiny", "vit_b", ..., or a file); empty
            trains without refinement.
        refinement_start: share of the training after which the refinement begins. Then each case's priors are made
            once, from prompts of what the students say of it at that moment, and kept in the run's folder.
        refinement_weight: l_ref, weight of the KL between refined and student.
        refinement_min_class_weight: w_min of the class weights in the refinement's cross-entropy. 1 counts every voxel
            alike; with the students' weights it calls the oedema larger than it is (results/study).
        prior_masks: pairs of masks for which a case's priors are made; while the refinement trains, samples draw
            their masks from these.
        tumour_share: share of patches centred on a tumour voxel.
        gradient_clip: largest norm of the gradient of each network, student or refinement; 0 switches clipping off.
        precision: "float32", or "bf16" for bfloat16 autocast of the networks; the losses compute in float32 always.
        ema: decay of the moving average of the weights (0.999, for example), which the predictor then uses; 0: none.
        compile: compile encoders and decoders with torch.compile, which takes minutes at the first step.
        recompute: keep no activations inside encoders and decoders but compute them again in the backward pass: a third
            more time for a fraction of the memory, and the same results.
        validate_every: steps between validations (:mod:`smml.training.validation`); 0: none.
        validation: folder of labelled cases to validate on; empty holds some of the training cases out.
        holdout: share of the cases that is held out for validation if ``validation`` names no folder.
        patience: stop after this many validations in a row without a new best; 0: never. Like ``validation``, it needs
            ``validate_every``.
        tensorboard: write the log for TensorBoard too (needs the package ``tensorboard``).
        augment: rotate, flip, vary intensities.
        seed: of weights, samples, masks and augmentation.
        checkpoint_every: steps between checkpoints.
        workers: processes that load data (0: the training process does it).
        device: torch device.

    Raises:
        InputError: a number outside its range, an unknown word, or options that exclude each other.
    """

    preset: str = "tiny"
    steps: int = 1000
    batch_size: int = 2
    patch: int = 32
    spacing: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    poly_power: float = 0.9
    min_class_weight: float = 0.05
    consistency_start: float = 0.1
    consistency_ramp: float = 0.1
    pixel_weight: float = 1.0
    feature_weight: float = 1.0
    class_weight: float = 1.0
    gate: str = "lower_ce"
    gate_min_class_weight: float = 1.0
    separate_heads: str = "available"
    refinement: str = ""
    refinement_start: float = 0.5
    refinement_weight: float = 1.0
    refinement_min_class_weight: float = 1.0
    prior_masks: int = 2
    tumour_share: float = 0.6
    gradient_clip: float = 12.0
    accumulate: int = 1
    precision: str = "float32"
    ema: float = 0.0
    compile: bool = False
    recompute: bool = False
    validate_every: int = 0
    validation: str = ""
    holdout: float = 0.1
    patience: int = 0
    tensorboard: bool = False
    augment: bool = True
    seed: int = 0
    checkpoint_every: int = 100
    workers: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        preset(self.preset)
        for name in ("steps", "batch_size", "learning_rate", "checkpoint_every", "prior_masks", "accumulate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive and finite, found {getattr(self, name)}")
        for name in _ZERO_OR_MORE:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or more and finite, found {getattr(self, name)}")
        # What PyTorch takes as a seed.
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 to 2^63 - 1, found {self.seed}")
        if self.spacing is not None and not 0.2 <= self.spacing <= 10:
            raise InputError(f"spacing must lie between 0.2 and 10 mm, found {self.spacing}")
        if not 0 <= self.refinement_start < 1:
            raise InputError(f"refinement_start must lie in [0, 1), found {self.refinement_start}")
        if self.accumulate > self.batch_size:
            raise InputError(
                f"accumulate must be at most batch_size, found {self.accumulate} parts of {self.batch_size} samples"
            )
        for name in ("validate_every", "patience"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 (off) or more, found {getattr(self, name)}")
        if not self.validate_every and (self.patience or self.validation):
            option = "patience" if self.patience else "validation"
            raise InputError(
                f"{option} was given ({getattr(self, option)}), but without validate_every no validation takes place; "
                f"set validate_every to the number of steps between validations, or leave {option} out"
            )
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie between 0 and 1, found {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema must lie in [0, 1), found {self.ema}; 0 switches it off")
        if not 0 < self.holdout < 1:
            raise InputError(f"holdout must lie between 0 and 1, found {self.holdout}")
        if self.patch < 32 or self.patch % 16:
            raise InputError(f"patch must be at least 32 and divisible by 16, found {self.patch}")
        for name, choices in (
            ("gate", ("lower_ce", "correct", "entropy", "none")),
            ("separate_heads", ("available", "masked")),
            ("precision", ("float32", "bf16")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}")

    @property
    def refinement_step(self) -> int | None:
        """The first step that trains the refinement, None without refinement."""
        return round(self.refinement_start * self.steps) if self.refinement else None

    def to_dict(self) -> dict:
        """A dictionary of plain values, for logs and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TrainingConfig":
        """Inverse of :meth:`to_dict`.

        Args:
            values: by option; those left out have their defaults.

        Raises:
            InputError: an option is unknown.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise InputError(f"unknown training option {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return cls(**values)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of step 0, 1, ...: lr (1 - step / steps)^power."""
    return config.learning_rate * (1 - step / config.steps) ** config.poly_power


def consistency_ramp(config: TrainingConfig, step: int) -> float:
    """r(t): 0 before ``consistency_start``, then linear up to 1 over ``consistency_ramp``."""
    progress = step / config.steps - config.consistency_start
    if progress < 0:
        return 0.0
    return min(1.0, progress / config.consistency_ramp) if config.consistency_ramp > 0 else 1.0
