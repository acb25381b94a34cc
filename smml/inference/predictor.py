"""Segmenting a case: encode its modalities once, then fuse and decode any subset of them.

Encoders do not see the mask, so what they make of a case serves all 15 subsets; evaluation over the subsets and
switching a modality on or off only repeat fusion and decoding.

Labels are the argmax, or what the rule of the checkpoint makes of the probabilities (:mod:`smml.models.decision`).

Where a checkpoint has temperatures, the students' probabilities and their uncertainty are tempered by that of the
number of sequences given (:mod:`smml.models.temperature`); labels are not changed by it.

With refinement a second pass follows: the students' coarse segmentation prompts SAM in each modality given, and the
refinement networks have the last word. Nothing in it looks at a label. The temperatures are the students': neither what
SAM and the refinement networks are given nor what these answer is tempered.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from smml.data.case import Case
from smml.data.checking import warn_of_not_learnt
from smml.data.labels import LabelScheme, Region, scheme_for_classes
from smml.data.layouts import layout_named
from smml.data.preprocessing import LATEST, find_preprocessing, prepare
from smml.data.prevalence import PREVALENCE, check_prevalence
from smml.data.writing import write_probabilities, write_segmentation
from smml.devices import keep_freed_memory
from smml.errors import InputError
from smml.inference.results import Encoding, Segmentation
from smml.inference.windows import (
    Cancelled,
    Progress,
    WindowPlan,
    blend_windows,
    plan_windows,
    windows_of,
)
from smml.modalities import MODALITIES, Subset, parse_subset, subset_mask, subset_name, subsets_of
from smml.models import SMML, Precision, StudentShares
from smml.models.checkpoint import Checkpoint, load_checkpoint
from smml.models.decision import ExpectedDice, find_decision, labelling
from smml.models.gains import Gain, Gains
from smml.models.intervals import VolumeIntervals
from smml.models.temperature import check_temperatures, temper_
from smml.sam.load import load_sam
from smml.sam.prior import SAMPrior
from smml.tensors import weights_fingerprint

# Encodings above this are not kept but computed again for each subset. With it a notebook's kernel stays under 2.5 GB
# on a case of 240 x 240 x 155 voxels (scripts/measure_large_case.py).
KEEP_BYTES = 5 * 2**28

# Probabilities of subsets that are blended at the same time take no more than this.
BLEND_BYTES = 2**30

# Windows times subsets that are fused and decoded together on a GPU.
FUSED_ON_GPU = 32


class Predictor:
    """A trained pair of students, ready to segment cases.

    Args:
        model: the network; it is put into evaluation mode.
        spacing: voxel edges in mm that it was trained at; cases are resampled to it and the result back.
        patch: edge of the patch in voxels that it was trained on.
        window: largest edge of the sliding window in voxels; None: the patch's, because larger windows shift the
            statistics of the norms (docs/METHOD.md).
        overlap: of neighbouring windows.
        device: torch device that computes.
        keep_bytes: encodings of a case above this size are computed again for each subset instead of kept.
        prior: SAM's priors for the refinement networks; None leaves the refinement out.
        precision: "float32", or "bf16" for autocast of the networks: faster on a GPU, and a little different.
        preprocessing: version that the model was trained with (see ``smml.data.preprocessing``); None is the
            newest.
        temperatures: for one to four sequences given, by which the students' probabilities and uncertainty are
            tempered; None leaves them as they are.
        prevalence: share of the brains' voxels of the training that belong to each region, the value of no sequence at
            all (:mod:`smml.inference.contributions`); None takes that of the cohort that the shipped weights were
            trained on.
        intervals: of the volumes that the model finds, for ``Segmentation.volume``; None where none were fitted.
        gains: what a further sequence is expected to bring, for :meth:`next_scan`; None likewise.
        decision: how labels are made of probabilities; None is the argmax.

    Raises:
        InputError: sizes, temperatures or prevalence out of range, an unknown precision or version, a model of other
            sequences, or a prior for a model without refinement.
    """

    def __init__(
        self,
        model: SMML,
        spacing: tuple[float, float, float] | None,
        *,
        patch: int = 32,
        window: int | None = None,
        overlap: float = 0.5,
        device: str | torch.device = "cpu",
        keep_bytes: int = KEEP_BYTES,
        prior: SAMPrior | None = None,
        precision: Precision = "float32",
        preprocessing: int | None = None,
        temperatures: Sequence[float] | None = None,
        prevalence: Mapping[Region, float] | None = None,
        intervals: VolumeIntervals | None = None,
        gains: Gains | None = None,
        decision: ExpectedDice | None = None,
    ) -> None:
        window = patch if window is None else window
        if window < 32 or window % 16:
            raise InputError(f"window must be at least 32 and divisible by 16, found {window}")
        if not 0 <= overlap < 1:
            raise InputError(f"overlap must lie in [0, 1), found {overlap}")
        if prior is not None and model.refinements is None:
            raise InputError("a prior was given, but the model has no refinement networks; leave the prior out")
        if precision not in get_args(Precision):
            raise InputError(f"precision must be one of {', '.join(get_args(Precision))}, found {precision!r}")
        if model.config.num_modalities != len(MODALITIES):
            raise InputError(
                f"cases have {len(MODALITIES)} sequences ({', '.join(MODALITIES)}), but the model takes "
                f"{model.config.num_modalities}; use a model of these"
            )
        self.temperatures = check_temperatures(temperatures, len(MODALITIES))
        self.prevalence = check_prevalence(prevalence) or PREVALENCE
        self.intervals, self.gains, self.decision = intervals, gains, decision
        self.preprocessing = LATEST if preprocessing is None else preprocessing
        find_preprocessing(self.preprocessing)
        self.model, self.device = model.eval().to(device), torch.device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.precision, self.prior = precision, prior
        self.spacing, self.window, self.overlap, self.keep_bytes = spacing, window, overlap, keep_bytes
        self.scheme = scheme_for_classes(model.config.num_classes)

    @classmethod
    def from_checkpoint(
        cls,
        name_or_path: str | os.PathLike,
        *,
        preset: str | None = None,
        refine: bool | None = None,
        sam: str | os.PathLike | None = None,
        window: int | None = None,
        overlap: float = 0.5,
        device: str | torch.device = "cpu",
        keep_bytes: int = KEEP_BYTES,
        precision: Precision = "float32",
        decision: str | ExpectedDice = "own",
    ) -> "Predictor":
        """Load a training run, a checkpoint file, or weights that ship with the package ("small").

        Args:
            name_or_path: see :func:`smml.models.checkpoint.find_checkpoint`.
            preset: insist on this preset.
            refine: whether the refinement networks have the last word; by default if the checkpoint has them.
            sam: the SAM that makes the priors; by default the one of the name or file that the checkpoint was trained
                with, and a warning if its weights are not the same any more.
            window: largest edge of the sliding window in voxels; None: the checkpoint's, else its patch's. With
                another, or another overlap, volumes have no intervals, with a warning: they were not fitted so.
            overlap: of neighbouring windows.
            device: torch device that computes.
            keep_bytes: encodings of a case above this size are computed again for each subset instead of kept.
            precision: "float32", or "bf16" for autocast of the networks.
            decision: how labels are made of probabilities: "own", the checkpoint's rule, which without one is the
                argmax; "argmax"; "expected-dice"; or a rule. With another than its own, volumes have no intervals
                either.

        Raises:
            InputError: the checkpoint cannot be used (:func:`smml.models.checkpoint.load_checkpoint`), or another
                decision.
        """
        checkpoint: Checkpoint = load_checkpoint(name_or_path, preset=preset)
        if refine and not checkpoint.refinement:
            raise InputError(
                f"{name_or_path}: was trained without refinement; leave refine out, or train with --refinement"
            )
        prior = None
        if refine or (refine is None and checkpoint.refinement):
            prior = SAMPrior(load_sam(sam or checkpoint.refinement, device=device))
            if sam is None:
                _check_sam(name_or_path, checkpoint, prior)
        own = checkpoint.patch if checkpoint.window is None else checkpoint.window
        window = own if window is None else window
        rule = find_decision(decision, checkpoint.decision)
        intervals = checkpoint.intervals
        if intervals is not None and (window, overlap, rule) != (own, 0.5, checkpoint.decision):
            warnings.warn(
                f"{name_or_path}: its intervals of volumes were fitted with windows of {own}, an overlap of 0.5 and "
                "its own rule for labels; with others volumes are given without intervals",
                stacklevel=2,
            )
            intervals = None
        return cls(
            checkpoint.build(),
            checkpoint.spacing,
            window=window,
            overlap=overlap,
            device=device,
            keep_bytes=keep_bytes,
            prior=prior,
            precision=precision,
            preprocessing=checkpoint.preprocessing,
            temperatures=checkpoint.temperatures,
            prevalence=checkpoint.prevalence,
            intervals=intervals,
            gains=checkpoint.gains,
            decision=rule,
        )

    def facts(self) -> dict:
        """What a segmentation depends on besides the case, as plain values: equal ones give equal segmentations.

        Weights count by their fingerprints; the device, where numbers differ in their last digits, does not count.
        """
        return {
            "model": weights_fingerprint(self.model),
            "sam": None if self.prior is None else self.prior.fingerprint,
            "spacing": None if self.spacing is None else list(self.spacing),
            "window": self.window,
            "overlap": self.overlap,
            "precision": self.precision,
            "preprocessing": self.preprocessing,
            "temperatures": None if self.temperatures is None else list(self.temperatures),
            "decision": None if self.decision is None else self.decision.to_dict(),
        }

    def predict(self, case: Case, subset: str | Iterable[str] | None = None) -> Segmentation:
        """Segment a case from a subset of its modalities; the others are not looked at.

        For several subsets of one case, :meth:`encode` it once.

        Args:
            case: with at least one modality.
            subset: names, such as "flair+t2"; None uses all that the case has.

        Returns:
            As :meth:`segment`.

        Raises:
            InputError: unknown or empty subset, a modality that the case lacks, or classes that are not the model's.
        """
        if subset is not None:
            case = replace(case, volumes={name: case.volumes[name] for name in _asked(case, subset)})
        return next(self.segment_all(self.encode(case), [case.modalities]))

    @torch.inference_mode()
    def encode(
        self, case: Case, *, cancelled: Callable[[], bool] | None = None, progress: Progress | None = None
    ) -> Encoding:
        """Run each available modality's encoders, window by window.

        Args:
            case: with at least one modality.
            cancelled: asked before every batch of windows; once it says True the work is given up.
            progress: called after every batch with the number done and the number of all.

        Raises:
            InputError: the case has no modality, or its layout other classes than the model.
            Cancelled: ``cancelled`` said so.
        """
        if not case.volumes:
            raise InputError(f"case {case.id}: no modality was read; name at least one of {', '.join(MODALITIES)}")
        scheme_that_fits(case.layout, self.scheme.num_classes)
        warn_of_not_learnt([case])
        prepared = prepare(case, self.spacing, preprocessing=self.preprocessing)
        plan = plan_windows(prepared.geometry.shape, self.window, self.overlap)
        if self._bytes_of_encodings(plan, int(prepared.available.sum())) > self.keep_bytes:
            return Encoding(case, prepared, plan)
        windows = windows_of(plan, plan.pad(prepared.image), cancelled=cancelled, progress=progress)
        with self.autocast():
            encoded = tuple(self.model.encode(window.to(self.device), prepared.available) for window in windows)
        return Encoding(case, prepared, plan, encoded)

    @torch.inference_mode()
    def segment(
        self,
        encoding: Encoding,
        subset: str | Iterable[str] | None = None,
        *,
        branches: bool = False,
        cancelled: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment from a subset of the encoded modalities.

        Args:
            encoding: of :meth:`encode`.
            subset: names; None uses all that the case has.
            branches: also keep each branch's own probabilities.
            cancelled: asked before every batch of windows; once it says True the work is given up.
            progress: called after every batch with the number done and the number of all; with refinement the count
                starts again for each branch's second pass.

        Returns:
            The mean of the branches' probabilities, resampled to the case's own grid, where labels are made of them,
            and tempered then. With refinement it is the refined one, which is not tempered, and ``student`` holds what
            the students said alone.

        Raises:
            InputError: unknown or empty subset, or a modality that the case lacks.
            Cancelled: ``cancelled`` said so.
        """
        wanted = [encoding.case.modalities if subset is None else subset]
        return next(self.segment_all(encoding, wanted, branches=branches, cancelled=cancelled, progress=progress))

    def segment_all(
        self,
        encoding: Encoding,
        subsets: Iterable[str | Iterable[str]] | None = None,
        *,
        branches: bool = False,
        cancelled: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Segmentation]:
        """Segment from many subsets: the same numbers as :meth:`segment`, in one go over the windows.

        Subsets go through fusion and decoder together where that fills the device, and windows whose encodings were
        too large to keep are encoded once for many subsets instead of once for each.

        Args:
            encoding: of :meth:`encode`.
            subsets: which; None takes every subset of what the case has, in table order.
            branches: also keep each branch's own probabilities.
            cancelled: asked before every batch of windows; once it says True the work is given up.
            progress: as in :meth:`segment`; the count starts again for every group of subsets that fits in memory.

        Returns:
            An iterator over the segmentations, in the order of ``subsets``. They are made as they are asked for, a
            group at a time, because 15 sets of probabilities are large.

        Raises:
            InputError: unknown or empty subset, or a modality that the case lacks; at once.
            Cancelled: ``cancelled`` said so.
        """
        case = encoding.case
        wanted = subsets_of(case.modalities) if subsets is None else [_asked(case, subset) for subset in subsets]
        bytes_of_one = 2 * self.model.config.num_classes * 4 * int(np.prod(encoding.plan.padded_shape))
        group = max(1, BLEND_BYTES // bytes_of_one)

        @torch.inference_mode()
        def segmentations() -> Iterator[Segmentation]:
            for start in range(0, len(wanted), group):
                some = wanted[start : start + group]
                masks = torch.stack([subset_mask(names) for names in some])
                blended = self.blend(encoding, masks, cancelled, progress)
                for names, mask, coarse in zip(some, masks, blended, strict=True):
                    student = self._on_own_grid(encoding, coarse, names, keep=branches)
                    if self.prior is None:
                        yield student
                    else:
                        refined = self._refine(encoding, mask, coarse, cancelled, progress)
                        yield self._on_own_grid(encoding, refined, names, student=student, keep=branches)

        # Not a generator itself: what cannot be asked for is told at once, not with the first segmentation.
        return segmentations()

    def next_scan(self, have: Encoding | Case | str | Iterable[str]) -> Gain:
        """The absent sequence that is expected to raise the mean Dice most, with its standard error.

        That is a mean over held-out cases, which the images of this one do not change; ``gains.expected`` has the other
        absent sequences too.

        Args:
            have: the sequences at hand, by name, or a case or an encoding that has them.

        Raises:
            InputError: unknown or empty subset, all four are at hand, or the model has no table of gains.
        """
        if isinstance(have, Encoding):
            have = have.case
        if self.gains is None:
            raise InputError(
                "the model has no table of what a further sequence brings; fit one with `smml intervals` on scores of "
                "held-out cases"
            )
        return self.gains.next_scan(have.modalities if isinstance(have, Case) else have)

    @torch.inference_mode()
    def coarse(self, encoding: Encoding, mask: torch.Tensor) -> torch.Tensor:
        """Each branch's own probabilities on the prepared grid, before any refinement: what SAM is prompted with.

        Args:
            encoding: of :meth:`encode`.
            mask: bool [M], the modalities given.

        Returns:
            float32 [2, K, x, y, z].
        """
        return encoding.plan.crop(self.blend(encoding, mask[None])[0])

    def _on_own_grid(
        self,
        encoding: Encoding,
        branches: torch.Tensor,
        names: Subset,
        student: Segmentation | None = None,
        keep: bool = False,
    ) -> Segmentation:
        """Both branches' probabilities [2, K, padded grid] -> a segmentation on the case's own grid."""
        cropped, shape = encoding.plan.crop(branches), encoding.case.shape
        probabilities = torch.empty(branches.shape[1], *shape)
        kept = torch.empty(*branches.shape[:2], *shape) if keep else None
        uncertainty = torch.zeros(shape)
        voxel_ml = float(np.prod(encoding.case.spacing)) / 1000
        rule = None if self.decision is None else self.decision.from_subset(names)
        labels, *branch_labels = (labelling(rule, self.scheme, shape, voxel_ml) for _ in range(3))
        temperature = 1.0 if self.temperatures is None or student is not None else self.temperatures[len(names) - 1]
        # Class by class: all of them and both branches at once would be the largest thing in memory by far.
        for k in range(branches.shape[1]):
            both = encoding.prepared.geometry.inverse(cropped[:, k])
            torch.add(both[0], both[1], out=probabilities[k]).div_(2)
            if kept is not None:
                kept[:, k] = both
            # Labels before the temperature, which brings two that were almost equal so close that they may round to one
            # number.
            labels.see(k, probabilities[k])
            for own, probability in zip(branch_labels, both, strict=True):
                own.see(k, probability)
            if temperature == 1:
                uncertainty.add_(both[0].sub_(both[1]).abs_(), alpha=0.5)
        if temperature != 1:
            temper_(probabilities, temperature)
            # Where the branches spoke, and not on the case's own grid: there it would take as long again to bring all
            # their classes.
            one, two = temper_(cropped.clone(), temperature, dim=1)
            uncertainty = encoding.prepared.geometry.inverse((one - two).abs_().sum(dim=0, keepdim=True).div_(2))[0]
        return Segmentation(
            labels=labels.labels(),
            probabilities=probabilities.numpy(),
            affine=encoding.case.affine,
            subset=names,
            layout=encoding.case.layout,
            branch_labels=np.stack([own.labels() for own in branch_labels]),
            uncertainty=uncertainty.numpy(),
            student=student,
            branches=None if kept is None else kept.numpy(),
            header=encoding.case.header,
            intervals=self._intervals_of("student" if student is None else "refined"),
        )

    def _intervals_of(self, output: str) -> VolumeIntervals | None:
        """Those that were fitted to this output."""
        return self.intervals if self.intervals is not None and self.intervals.output == output else None

    def _refine(
        self,
        encoding: Encoding,
        mask: torch.Tensor,
        branches: torch.Tensor,
        cancelled: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Refined probabilities of both branches on the padded grid, from the students' [2, K, X, Y, Z]."""
        assert self.prior is not None, "asked for only with a prior"
        assert self.model.refinements is not None, "a prior is refused for a model without them"
        plan = encoding.plan
        coarse, rows = plan.crop(branches), mask.to(self.device)
        blends = []
        for branch, network in enumerate(self.model.refinements):
            if cancelled is not None and cancelled():
                raise Cancelled
            prior = self.prior(encoding.prepared.image[None], coarse[branch][None].cpu(), mask[None])
            prior = plan.pad(prior[0]).to(self.device)
            # The windows were blended as probabilities; their logarithm is the logits up to a constant a voxel.
            logits = branches[branch].clamp_min(torch.finfo(torch.float32).tiny).log()
            with self.autocast():
                refined = (
                    network(window, maps, rows.expand(len(window), -1)).logits.float().softmax(dim=1)
                    for window, maps in zip(windows_of(plan, logits), windows_of(plan, prior), strict=True)
                )
                blends.append(blend_windows(plan, refined, cancelled=cancelled, progress=progress))
        return torch.stack(blends)

    def blend(
        self,
        encoding: Encoding,
        masks: torch.Tensor,
        cancelled: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Probabilities of both branches for many subsets on the padded grid, before any refinement.

        Args:
            encoding: of :meth:`encode`.
            masks: bool [S, M], the modalities given in each subset.
            cancelled: asked before every batch of windows; once it says True the work is given up.
            progress: called after every batch with the number done and the number of all.

        Returns:
            float32 [S, 2, K, X, Y, Z].

        Raises:
            InputError: a subset asks for a modality that was not encoded.
            Cancelled: ``cancelled`` said so.
        """
        plan, most = encoding.plan, self.fused_together(encoding.plan)
        encoded: Iterable[tuple[StudentShares, StudentShares]] | None = encoding.windows
        with self.autocast():
            if encoded is None:
                windows = windows_of(plan, plan.pad(encoding.prepared.image))
                encoded = (self.model.encode(window.to(self.device), masks.any(dim=0)) for window in windows)
            segmented = (self.model.segment(pair, masks, most) for pair in encoded)
            return blend_windows(plan, segmented, cancelled=cancelled, progress=progress)

    def fused_together(self, plan: WindowPlan) -> int:
        """Windows times subsets that are fused and decoded together.

        Args:
            plan: of the windows; on a CPU large ones go through the network one by one.
        """
        return plan.together if self.device.type == "cpu" else FUSED_ON_GPU

    def autocast(self) -> torch.autocast:
        """The context in which the networks compute."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _bytes_of_encodings(self, plan: WindowPlan, modalities: int) -> int:
        """Memory that all windows' encodings take, in bytes (both branches, so many modalities)."""
        widths = self.model.config.widths
        voxels = float(np.prod(plan.window))
        per_modality = sum(width * voxels / 8**level for level, width in enumerate(widths))
        bytes_each = 2 if self.precision == "bf16" else 4
        return int(2 * bytes_each * per_modality * modalities * len(plan.places))

    def save(
        self,
        segmentation: Segmentation,
        path: str | os.PathLike,
        *,
        layout: str | None = None,
        probabilities: str | os.PathLike | None = None,
    ) -> Path:
        """Write the labels on the case's grid in its data set's label values; each file appears whole or not at all.

        A case of free file names counts as "brats2021" (:func:`smml.data.find_case`): 1 NCR/NET, 2 ED, 4 ET. Name a
        layout to write the values of another data set of the same classes.

        Args:
            segmentation: of :meth:`predict` or :meth:`segment`.
            path: ``.nii``, ``.nii.gz`` or ``.mha``.
            layout: data set whose label values are written, a key in ``LAYOUTS``; None: that of the case.
            probabilities: also write the class probabilities there, 4D NIfTI, after the labels. Its volumes have the
                order of the classes in memory, background first; the header's ``descrip`` names them.

        Raises:
            InputError: unknown layout or suffix, one file for both, no place to write, or classes the layout lacks.
        """
        layout = layout or segmentation.layout
        scheme_that_fits(layout, len(segmentation.scheme.learnt_classes))
        if probabilities is not None and Path(probabilities).resolve() == Path(path).resolve():
            raise InputError(f"{path}: was named for the labels and for the probabilities; name two files")
        affine, header = segmentation.affine, segmentation.header
        write_segmentation(segmentation.labels, path, affine, layout, header=header)
        if probabilities is not None:
            write_probabilities(segmentation.probabilities, probabilities, affine, header=header, layout=layout)
        return Path(path)


def _asked(case: Case, subset: str | Iterable[str]) -> Subset:
    """The names of a subset that the case has; an InputError if it lacks one."""
    names = parse_subset(subset)
    if absent := [name for name in names if name not in case.volumes]:
        raise InputError(
            f"case {case.id}: subset {subset_name(names)} asks for {subset_name(absent, ', ')}, but only "
            f"{subset_name(case.modalities, ', ')} was read; choose a subset of these"
        )
    return names


def scheme_that_fits(layout: str, num_classes: int) -> LabelScheme:
    """Label values of a layout; an InputError if it is unknown or does not fit a model of so many classes."""
    scheme = layout_named(layout).scheme
    if (needed := len(scheme.learnt_classes)) != num_classes:
        found = f"the model has {num_classes} classes, but the layout {layout} has {needed}"
        raise InputError(f"{found}; use a model trained on that data set")
    return scheme


def _check_sam(name: str | os.PathLike, checkpoint: Checkpoint, prior: SAMPrior) -> None:
    """Warn if the SAM that the checkpoint names has other weights than in its training."""
    known = checkpoint.config.get("sam")  # None where the file does not say
    if known not in (None, prior.fingerprint):
        warnings.warn(
            f"{name}: its refinement was trained with other weights of the SAM {checkpoint.refinement!r} than are "
            "here now; its refined output may be worse than it was. Train the refinement again, name the SAM's file "
            "(sam=), or leave the refinement out",
            stacklevel=3,
        )
