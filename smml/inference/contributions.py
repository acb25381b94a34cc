"""What each sequence contributed to a segmentation: exact Shapley values over the subsets of what a case has.

The value of a subset is the probability that the network gives a voxel of belonging to a region. A sequence's share is
what it adds to that when it joins the others, averaged over all orders in which they can join (Shapley, 1953); for n
sequences

    phi_i = sum over S without i of  |S|! (n - |S| - 1)! / n!  (p(S + i) - p(S)).

Nothing is sampled: with at most four sequences there are at most 15 subsets, which one encoding serves. The empty set
has no segmentation. Its value is the prevalence of the region, the share of the brain's voxels that belong to it in
training (``Predictor.prevalence``): what one would say of a voxel of which nothing is known but that it is brain. So in
each voxel of the brain the values add up to the probability with all sequences less the prevalence.

A contribution says what moved the network's answer and not whether it moved it to the truth. It is of the probabilities
before any temperature: temperatures differ with the number of sequences, so a sequence that the network ignores would
seem to change how sure it is.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import factorial

import numpy as np

from smml.data.case import Case
from smml.data.labels import REGIONS, LabelScheme, Region
from smml.errors import InputError
from smml.inference.predictor import Predictor
from smml.inference.results import Encoding
from smml.inference.windows import Progress
from smml.modalities import Subset, parse_subset, subset_name, subsets_of


@dataclass(frozen=True, eq=False)
class Contributions:
    """Shapley values of a case's sequences, of which there are n.

    Attributes:
        modalities: the sequences, in the project's order.
        prevalence: value of the empty set by region, in [0, 1].
        ml: by sequence and region, the values summed over the brain, in ml: how much of the expected volume (the sum of
            the probabilities) the sequence brought; below 0 where it took some away.
        expected_ml: by region, the sum of the probabilities with all sequences over the brain, in ml.
        brain_ml: volume of the brain in ml; its product with the prevalence and the values add up to ``expected_ml``.
        values: float32 [n, 3, V], by sequence, region and voxel of the brain, in [-1, 1]; :meth:`map` puts them in
            place.
        brain: int64 [V], where those voxels lie on the case's grid, counted in C order.
        shape: of that grid.
    """

    modalities: Subset
    prevalence: dict[Region, float]
    ml: dict[str, dict[Region, float]]
    expected_ml: dict[Region, float]
    brain_ml: float
    values: np.ndarray = field(repr=False)
    brain: np.ndarray = field(repr=False)
    shape: tuple[int, int, int] = field(repr=False)

    def map(self, modality: str, region: Region) -> np.ndarray:
        """The values of one sequence voxel by voxel.

        Args:
            modality: one of ``modalities``.
            region: "WT", "TC" or "ET".

        Returns:
            float32 [X, Y, Z] on the case's grid, in [-1, 1]; 0 outside the brain.

        Raises:
            InputError: the case had no such sequence, or there is no such region.
        """
        if modality not in self.modalities:
            raise InputError(
                f"no contribution of {modality!r}: the case had {subset_name(self.modalities, ', ')}; choose one of "
                f"{', '.join(self.modalities)}"
            )
        if region not in REGIONS:
            raise InputError(f"unknown region {region!r}: choose from {', '.join(REGIONS)}")
        filled = np.zeros(self.shape, np.float32)
        filled.reshape(-1)[self.brain] = self.values[self.modalities.index(modality), REGIONS.index(region)]
        return filled


class ContributionSums:
    """Shapley values from the probabilities of one subset after the other, of which none is kept.

    Memory is that of n x 3 numbers for each voxel of the brain, which is that of any of the case's sequences together.

    Args:
        case: with at least one sequence.
        prevalence: value of the empty set by region; see ``Predictor.prevalence``.
    """

    def __init__(self, case: Case, prevalence: Mapping[Region, float]) -> None:
        self._case = case
        self._prevalence = {region: float(prevalence[region]) for region in REGIONS}
        self._missing = set(subsets_of(case.modalities))
        self._brain = np.flatnonzero(case.brain)
        n = len(case.modalities)
        self._values = np.empty((n, len(REGIONS), len(self._brain)), np.float32)
        for row, region in enumerate(REGIONS):
            # Before a sequence joins the empty set: 0! (n - 1)! / n! of its value.
            self._values[:, row] = -self._prevalence[region] / n
        self._expected: dict[Region, float] = {}

    def add(self, subset: str | Iterable[str], probabilities: np.ndarray, scheme: LabelScheme) -> None:
        """Take in one subset, in any order of them.

        Args:
            subset: the sequences that were given.
            probabilities: of the classes, floating [K, X, Y, Z] on the case's grid. With tempered ones the values are
                those of what is reported, and no longer 0 for a sequence that the network ignores.
            scheme: which classes make up a region.

        Raises:
            InputError: a subset that the case cannot have, or one that was added before.
        """
        names = parse_subset(subset)
        if names not in self._missing:
            raise InputError(
                f"case {self._case.id}: subset {subset_name(names)} was added before, or is none of "
                f"{subset_name(self._case.modalities, ', ')}; add each of these sequences' subsets once"
            )
        n, size = len(self._case.modalities), len(names)
        joined = factorial(size - 1) * factorial(n - size) / factorial(n)
        left_out = factorial(size) * factorial(n - size - 1) / factorial(n) if size < n else 0.0
        inside = {
            k: probabilities[k].reshape(-1)[self._brain].astype(np.float32, copy=False)
            for k in sorted({k for classes in scheme.regions.values() for k in classes})
        }
        for row, region in enumerate(REGIONS):
            said = sum(inside[k] for k in scheme.regions[region])
            for place, name in enumerate(self._case.modalities):
                self._values[place, row] += np.float32(joined if name in names else -left_out) * said
            if size == n:
                self._expected[region] = float(np.sum(said, dtype=np.float64))
        self._missing.remove(names)

    def result(self) -> Contributions:
        """The values, once every subset was added.

        Raises:
            InputError: some were not.
        """
        if self._missing:
            raise InputError(
                f"case {self._case.id}: {len(self._missing)} subsets are missing, for example "
                f"{subset_name(next(iter(self._missing)))}; add every subset of the sequences that the case has"
            )
        voxel = float(np.prod(self._case.spacing)) / 1000
        sums = voxel * self._values.sum(axis=-1, dtype=np.float64)
        return Contributions(
            modalities=self._case.modalities,
            prevalence=dict(self._prevalence),
            ml={
                name: dict(zip(REGIONS, row.tolist(), strict=True))
                for name, row in zip(self._case.modalities, sums, strict=True)
            },
            expected_ml={region: voxel * self._expected[region] for region in REGIONS},
            brain_ml=voxel * len(self._brain),
            values=self._values,
            brain=self._brain,
            shape=self._case.shape,
        )


def contributions(
    predictor: Predictor,
    encoding: Encoding,
    *,
    cancelled: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> Contributions:
    """What each sequence of a case contributed to the probability of WT, TC and ET.

    Segments the case from every subset of what it has, and keeps none of the segmentations. With refinement the
    probabilities are the refined ones.

    Args:
        predictor: that made the encoding. Its temperatures have no say.
        encoding: of :meth:`smml.inference.Predictor.encode`; of a case with one to four sequences.
        cancelled: as in :meth:`smml.inference.Predictor.segment_all`.
        progress: likewise.

    Raises:
        Cancelled: ``cancelled`` said so.
    """
    plain = copy.copy(predictor)
    plain.temperatures = None
    sums = ContributionSums(encoding.case, predictor.prevalence)
    for result in plain.segment_all(encoding, cancelled=cancelled, progress=progress):
        sums.add(result.subset, result.probabilities, result.scheme)
    return sums.result()
