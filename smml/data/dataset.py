"""Training samples: a random patch of a random case, augmented, with two different modality masks."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    RandFlipd,
    RandRotated,
    SpatialCropd,
    SpatialPadd,
)
from torch.utils.data import Dataset, get_worker_info

from smml.data.appearance import vary_appearance
from smml.data.layouts import CaseFiles, find_cases
from smml.data.preprocessing import LATEST, PreparedCase, find_preprocessing, prepare
from smml.data.reading import read_case
from smml.data.resampling import divided
from smml.data.shared import SharedCases
from smml.errors import InputError
from smml.modalities import SUBSETS, subset_mask

# The subsets as masks, bool [15, M], in table order.
_MASKS = torch.stack([subset_mask(subset) for subset in SUBSETS])

# A patch is cut larger and turned, then cut to size, so that turning brings in no empty corners (10 degrees need 1.16).
_ROTATION_MARGIN = 1.2


class Priors(Protocol):
    """Priors of a cohort's cases for given pairs of masks (:class:`smml.training.priors.PriorFolder`)."""

    def draw(self, number: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Of case ``number``: masks bool [2, M], and priors float32 [2, M, R, x, y, z] on its prepared grid."""


class CohortDataset(Dataset):
    """Random training samples of a cohort; sample ``i`` is a function of ``(seed, i)`` alone.

    That makes training resumable to the bit and independent of the number of loader processes: whoever knows the step
    knows the samples. ``len(dataset)`` is ``samples``, not the number of cases.

    Args:
        cases: a folder, or cases from ``find_cases``; each needs a label and at least one modality.
        patch: edge of the cubic patch in voxels; smaller volumes are padded with background.
        spacing: voxel edges in mm that all cases are resampled to (None: each keeps its own).
        samples: length of the dataset.
        seed: of everything random.
        augment: rotate by up to 10 degrees, flip each axis, shift and scale intensities by up to 0.1 (docs/METHOD.md).
        tumour_share: share of the patches that are centred on a tumour voxel; the rest are centred on any brain voxel,
            because a network that never sees healthy tissue raises false alarms there.
        cache_bytes: prepared cases are kept in memory up to this size in all; the others are read again each time. The
            processes of a loader, each of which keeps cases of its own, have equal shares of it, unless they share.
        share: let the processes of a loader keep cases in common, where they can (:mod:`smml.data.shared`).
        preprocessing: version of how images are prepared; None is the newest.
        appearance: strength of the changes of contrast, bias, noise and resolution (:mod:`smml.data.appearance`); 0
            makes none. They are part of ``augment``.
        priors: for refinement, where a sample's masks and priors come from; None draws masks freely.

    Raises:
        InputError: a case has no label; sizes are out of range.
    """

    def __init__(
        self,
        cases: str | os.PathLike | Sequence[CaseFiles],
        *,
        patch: int,
        spacing: tuple[float, float, float] | None = None,
        samples: int = 1000,
        seed: int = 0,
        augment: bool = True,
        tumour_share: float = 0.6,
        cache_bytes: int = 4 * 2**30,
        share: bool = False,
        preprocessing: int | None = None,
        appearance: float = 0.0,
        priors: Priors | None = None,
    ) -> None:
        self.cases = find_cases(cases) if isinstance(cases, str | os.PathLike) else list(cases)
        unlabelled = [case.id for case in self.cases if case.label is None]
        if not self.cases:
            raise InputError("no cases to train on: simulate some or name a folder that holds them")
        if unlabelled:
            raise InputError(
                f"{len(unlabelled)} of {len(self.cases)} cases have no segmentation (for example {unlabelled[0]}); "
                "training needs one for each: add the files or leave these cases out"
            )
        classes = {case.layout: case.scheme.learnt_classes for case in self.cases}
        if len(set(classes.values())) > 1:
            each = " and ".join(f"{layout} ({', '.join(names[1:])})" for layout, names in classes.items())
            raise InputError(
                f"the cases mix data sets of four and of five classes, {each}; train on one kind at a time"
            )
        if patch < 32 or patch % 16:
            raise InputError(f"patch must be at least 32 and divisible by 16, found {patch}")
        if not 0 <= tumour_share <= 1:
            raise InputError(f"tumour_share must lie between 0 and 1, found {tumour_share}")
        self.num_classes = len(self.cases[0].scheme.learnt_classes)
        self.patch, self.spacing, self.samples, self.seed = patch, spacing, samples, seed
        self.augment, self.tumour_share, self.priors = augment, tumour_share, priors
        self.preprocessing, self.appearance = LATEST if preprocessing is None else preprocessing, appearance
        find_preprocessing(self.preprocessing)
        self._kept: dict[int, tuple[PreparedCase, dict[str, np.ndarray]]] = {}
        self._kept_bytes, self.cache_bytes = 0, cache_bytes
        self._shared = SharedCases.of(len(self.cases), cache_bytes) if share else None

    def __getstate__(self) -> dict:
        """Everything but the kept cases: a loader process that is spawned prepares its own."""
        return vars(self) | {"_kept": {}, "_kept_bytes": 0, "_shared": None}

    def __len__(self) -> int:
        return self.samples

    def _prepared(self, number: int) -> tuple[PreparedCase, dict[str, np.ndarray]]:
        """Case ``number``, from memory if it is kept there."""
        if number in self._kept:
            return self._kept[number]
        worker = get_worker_info()  # None outside a loader's processes
        if worker is not None and self._shared is not None:
            entry = self._shared.get(number)
            if entry is None:
                entry = self._prepare(number)
                self._shared.put(number, entry)
            return entry
        entry = self._prepare(number)
        size = entry[0].image.nbytes + _label_of(entry[0]).nbytes + sum(places.nbytes for places in entry[1].values())
        if self._kept_bytes + size <= self.cache_bytes // (1 if worker is None else worker.num_workers):
            self._kept_bytes += size
            self._kept[number] = entry
        return entry

    def _prepare(self, number: int) -> tuple[PreparedCase, dict[str, np.ndarray]]:
        """The prepared case, and flat indices of its tumour and brain voxels to centre patches on."""
        prepared = prepare(read_case(self.cases[number]), self.spacing, preprocessing=self.preprocessing)
        prepared = replace(prepared, label=self.cases[number].scheme.learnt(_label_of(prepared)))
        brain = prepared.brain.any(dim=0)
        places = {
            "tumour": np.flatnonzero((_label_of(prepared) > 0).numpy()).astype(np.int32),
            "brain": np.flatnonzero(brain.numpy()).astype(np.int32),
        }
        return prepared, places

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Sample ``index``.

        Returns:
            ``image`` float32 [M, P, P, P]; ``label`` uint8 [P, P, P]; ``masks`` bool [2, M], two different subsets of
            what the case has (the same one twice if it has a single modality); ``available`` bool [M]. With priors
            also ``priors`` float32 [2, M, R, P, P, P], cut, turned and flipped with the image.
        """
        if not 0 <= index < self.samples:
            raise IndexError(index)
        random = np.random.default_rng([self.seed, index])
        number = int(random.integers(len(self.cases)))
        prepared, places = self._prepared(number)
        whole = _label_of(prepared)
        # With its mask beside it, so that turning can tell the brain's edge from the background.
        image = torch.cat([prepared.image, prepared.brain.float()]) if self.augment else prepared.image
        sample = {"image": image, "label": whole[None].float()}
        masks, priors = None, None
        if self.priors is not None:
            # Numbers of their own: patch and augmentation of a sample are the same with and without priors.
            masks, priors = self.priors.draw(number, np.random.default_rng([self.seed, index, 1]))
            sample["priors"] = priors.flatten(0, 2)
        centre = self._draw_centre(places, whole.shape, random)
        sample = self._transforms(centre, random)(sample)
        # Plain tensors in memory of their own: MONAI's carry metadata, and a view would keep the whole volume alive.
        image = torch.as_tensor(np.asarray(sample["image"]).copy())
        label = torch.as_tensor(np.asarray(sample["label"])[0].astype(np.uint8))
        if self.augment:
            image, _ = divided(*image.chunk(2))
            image = _vary_intensity(image, random)
        if self.augment and self.appearance:
            # Numbers of their own here too: the strength does not change which patch is cut, nor the masks.
            image = vary_appearance(image, self.appearance, np.random.default_rng([self.seed, index, 3]))
        result = {
            "image": image,
            "label": label,
            "masks": draw_masks(prepared.available, random) if masks is None else masks,
            "available": prepared.available,
        }
        if priors is not None:
            result["priors"] = torch.as_tensor(np.asarray(sample["priors"]).copy()).unflatten(0, priors.shape[:3])
        return result

    def _draw_centre(
        self, places: dict[str, np.ndarray], shape: torch.Size, random: np.random.Generator
    ) -> tuple[int, ...]:
        wanted = "tumour" if random.random() < self.tumour_share else "brain"
        pool = places[wanted] if len(places[wanted]) else places["brain"]
        if not len(pool):  # constant images: nothing tells the brain from the background
            return tuple(int(n) // 2 for n in shape)
        place = int(pool[random.integers(len(pool))])
        return tuple(int(v) for v in np.unravel_index(place, tuple(shape)))

    def _transforms(self, centre: tuple[int, ...], random: np.random.Generator) -> Compose:
        keys, patch = ["image", "label"], [self.patch] * 3
        modes = ["bilinear", "nearest"]
        if self.priors is not None:
            keys, modes = [*keys, "priors"], [*modes, "bilinear"]
        margin = [round(self.patch * _ROTATION_MARGIN)] * 3 if self.augment else patch
        steps = [SpatialCropd(keys, roi_center=centre, roi_size=margin), SpatialPadd(keys, spatial_size=margin)]
        if self.augment:
            turn = np.deg2rad(10)
            steps += [
                RandRotated(keys, turn, turn, turn, prob=0.5, mode=modes, padding_mode="zeros"),
                CenterSpatialCropd(keys, roi_size=patch),
                *[RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)],
            ]
        return Compose(steps).set_random_state(seed=int(random.integers(2**31)))


def _label_of(prepared: PreparedCase) -> torch.Tensor:
    assert prepared.label is not None  # a case without one was refused
    return prepared.label


def _vary_intensity(image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Scale and shift each modality's brain by up to 0.1; the background stays 0."""
    scale = torch.from_numpy(random.uniform(0.9, 1.1, len(image)).astype(np.float32)).view(-1, 1, 1, 1)
    shift = torch.from_numpy(random.uniform(-0.1, 0.1, len(image)).astype(np.float32)).view(-1, 1, 1, 1)
    return torch.where(image != 0, image * scale + shift, image)


def draw_masks(available: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Two different masks, bool [2, M], drawn uniformly without replacement from the subsets of what is available."""
    possible = _MASKS[~(_MASKS & ~available).any(dim=1)]
    return possible[random.choice(len(possible), size=2, replace=len(possible) < 2)]
