"""Every option of a training run, with its default, its range and its source."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from smml.data.preprocessing import LATEST, PREPROCESSINGS, find_preprocessing
from smml.errors import InputError
from smml.losses.pixel import GATE_MIN_CLASS_WEIGHT
from smml.losses.refinement import REFINEMENT_MIN_CLASS_WEIGHT
from smml.losses.segmentation import MIN_CLASS_WEIGHT
from smml.models.presets import preset
from smml.models.student import SeparateHeads
from smml.options import BELOW_ONE, PATCH, POSITIVE, SEED, SHARE, SPACING, ZERO_OR_MORE, Range, check, count, option
from smml_kernels import Gate

STRENGTH = Range("lie between 0 and 3", lambda number: 0 <= number <= 3)
WORKERS = Range("be 0 or more and at most 1,000", lambda number: 0 <= number <= 1000)
INSIDE = Range("lie between 0 and 1", lambda number: 0 < number < 1)
# What a run's config.json says besides its options: what it was trained on, and what made it.
RUN_FACTS = frozenset(
    {
        "cases", "cases_content", "validation_cases", "validation_content", "weights", "weights_content", "sam",
        "spacing_mm", "versions", "commit", "processes", "hardware", "resumed",
    }
)  # fmt: skip

TrainingPrecision = Literal["auto", "float32", "bf16"]


@dataclass(frozen=True)
class TrainingConfig:
    """Options of a training run. Defaults are the paper's where it has one and a CPU can bear it.

    Attributes:
        preset: size of the students: "tiny", "tiny-wide", "small" or "paper". "auto" is that of the weights which a run
            starts from, and "tiny" without any; the run's files name the one that was taken.
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
        refinement_only: train the refinement networks alone, from the first step on. The students, and with them the
            segmentation without refinement, stay as the weights have them that the run starts from.
        prior_masks: pairs of masks for which a case's priors are made; while the refinement trains, samples draw
            their masks from these.
        tumour_share: share of patches centred on a tumour voxel.
        gradient_clip: largest norm of the gradient of each network, student or refinement; 0 switches clipping off.
        precision: "float32", or "bf16" for bfloat16 autocast of the networks; the losses compute in float32 always.
            "auto" is the faster of the two on the device (:func:`smml.devices.fastest_precision`), and in a run that is
            resumed the one that it began with. The run's files name the one that was taken.
        ema: decay of the moving average of the weights (0.999, for example), which the predictor then uses; 0: none.
        compile: compile encoders and decoders with torch.compile, which takes minutes at the first step. For a
            GPU: on a CPU a compiled step is slower than a plain one (results/speed/speed.md).
        recompute: keep no activations inside encoders and decoders but compute them again in the backward pass: a third
            more time for a fraction of the memory, and the same results.
        validate_every: steps between validations (:mod:`smml.training.validation`); 0: none.
        validation: folder of labelled cases of other patients to validate on; empty holds some of the training's out.
        holdout: share of the patients that is held out for validation if ``validation`` names no folder.
        patience: stop after this many validations in a row without a new best; 0: never. Like ``validation``, it needs
            ``validate_every``. Where a refinement begins, the search for the best begins anew.
        tensorboard: write the log for TensorBoard too (needs the package ``tensorboard``).
        augment: rotate, flip, vary intensities.
        appearance: strength of the changes of contrast, bias, noise and resolution on top of these
            (:mod:`smml.data.appearance`); 0: none, 1: as patients differ. Without ``augment`` there
            are none.
        preprocessing: version of how images are prepared (:mod:`smml.data.preprocessing`).
        seed: of weights, samples, masks and augmentation.
        checkpoint_every: steps between checkpoints.
        workers: processes that load data (0: the training process does it).
        cache: memory for prepared cases, GiB, which all of a rank's processes share; what does not fit is read again
            for each patch.
        device: torch device; a ``torch.device`` is kept as its name.

    Raises:
        InputError: a value of another type, a number outside its range, an unknown word, or options that exclude each
            other.
    """

    preset: str = option("auto", "Size of the students: tiny, tiny-wide, small, paper, or auto: as the weights.")
    steps: int = option(1000, "Optimiser steps.", count(10_000_000))
    batch_size: int = option(2, "Samples a step, over all processes and parts together.", count(10_000))
    patch: int = option(32, "Edge of the training patch in voxels; a multiple of 16.", PATCH)
    spacing: float | None = option(None, "Voxel edge in mm to resample to; 0 takes the first case's.", SPACING)
    learning_rate: float = option(1e-3, "Rate at the first step.", POSITIVE)
    weight_decay: float = option(1e-4, "L2 penalty of the weights.", ZERO_OR_MORE)
    poly_power: float = option(0.9, "The rate decays as (1 - step / steps) to this power.", ZERO_OR_MORE)
    min_class_weight: float = option(MIN_CLASS_WEIGHT, "Least class weight in the students' cross-entropy.", SHARE)
    consistency_start: float = option(0.1, "Share of the training before pixel consistency sets in.", SHARE)
    consistency_ramp: float = option(0.1, "Share of the training over which it then rises to its weight.", SHARE)
    pixel_weight: float = option(1.0, "Weight of pixel consistency; 0 switches it off.", ZERO_OR_MORE)
    feature_weight: float = option(1.0, "Weight of feature consistency; 0 switches it off.", ZERO_OR_MORE)
    class_weight: float = option(1.0, "Weight of the class relation in feature consistency.", ZERO_OR_MORE)
    gate: Gate = option("lower_ce", "Who teaches whom: lower_ce, correct, entropy or none.")
    gate_min_class_weight: float = option(
        GATE_MIN_CLASS_WEIGHT, "Least class weight in the gate; 1 counts every voxel alike.", SHARE
    )
    separate_heads: SeparateHeads = option("available", "Which sequences the heads of a single sequence see.")
    refinement: str = option("", "SAM for the refinement networks: tiny, vit_b, vit_l, vit_h or a file; empty: none.")
    refinement_start: float = option(0.5, "Share of the training before the refinement begins.", BELOW_ONE)
    refinement_weight: float = option(1.0, "Weight of the divergence of refined and student.", ZERO_OR_MORE)
    refinement_min_class_weight: float = option(
        REFINEMENT_MIN_CLASS_WEIGHT, "Least class weight in the refinement's cross-entropy.", SHARE
    )
    refinement_only: bool = option(False, "Train the refinement alone; the students stay as their weights have them.")
    prior_masks: int = option(2, "Pairs of masks a case for which priors are made.", count(1000))
    tumour_share: float = option(0.6, "Share of patches centred on tumour; the rest on brain.", SHARE)
    gradient_clip: float = option(12.0, "Largest gradient norm of each network; 0: no clipping.", ZERO_OR_MORE)
    accumulate: int = option(1, "Parts in which a step's batch goes through, to save memory.", count(10_000))
    precision: TrainingPrecision = option("auto", "float32, bf16 for autocast of the networks, or auto: the faster.")
    ema: float = option(0.0, "Decay of averaged weights for prediction, such as 0.999; 0: none.", BELOW_ONE)
    compile: bool = option(False, "Compile encoders and decoders first; for a GPU, on a CPU it only costs.")
    recompute: bool = option(False, "Slower, with a fraction of the memory.")
    validate_every: int = option(0, "Steps between validations; 0: none.", count(10_000_000, off=True))
    validation: str = option("", "Folder of cases to validate on; empty holds some out.")
    holdout: float = option(0.1, "Share of the patients that is held out for validation.", INSIDE)
    patience: int = option(
        0, "Stop after so many validations without a new best; 0: never.", count(10_000_000, off=True)
    )
    tensorboard: bool = option(False, "Log for TensorBoard too.")
    augment: bool = option(True, "Rotate, flip and vary intensities.")
    appearance: float = option(0.0, "Strength of changed contrast, bias, noise and resolution; 0: none.", STRENGTH)
    preprocessing: int = option(LATEST, f"Version of how images are prepared: {', '.join(map(str, PREPROCESSINGS))}.")
    seed: int = option(0, "Of weights, samples, masks and augmentation.", SEED)
    checkpoint_every: int = option(100, "Steps between checkpoints.", count(10_000_000))
    workers: int = option(0, "Processes that load data; 0: the training's own.", WORKERS)
    cache: float = option(4.0, "Memory for prepared cases, GiB; the rest are read again each time.", ZERO_OR_MORE)
    device: str = option("cpu", "torch device, for example cpu or cuda.")

    def __post_init__(self) -> None:
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        check(self)
        if self.preset != "auto":
            preset(self.preset)
        find_preprocessing(self.preprocessing)
        if self.accumulate > self.batch_size:
            raise InputError(
                f"accumulate must be at most batch_size, found {self.accumulate} parts of {self.batch_size} samples"
            )
        if not self.validate_every and (self.patience or self.validation):
            unused = "patience" if self.patience else "validation"
            raise InputError(
                f"{unused} was given ({getattr(self, unused)}), but without validate_every no validation takes place; "
                f"set validate_every to the number of steps between validations, or leave {unused} out"
            )
        if self.refinement_step is not None and self.refinement_step >= self.steps:
            raise InputError(
                f"refinement_start of {self.refinement_start:g} leaves none of the {self.steps} steps to the "
                "refinement: lower it, or take more steps"
            )
        if self.refinement_only and self.refinement_step != 0:
            raise InputError(
                "refinement_only trains nothing before the refinement begins: name a SAM as refinement, and set "
                "refinement_start to 0"
            )

    @property
    def refinement_step(self) -> int | None:
        """The first step that trains the refinement, None without refinement."""
        return round(self.refinement_start * self.steps) if self.refinement else None

    def to_dict(self) -> dict:
        """A dictionary of plain values, for logs and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
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
