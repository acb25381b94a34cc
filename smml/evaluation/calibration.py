"""Calibration: of the voxels of which a model says that they belong to a region with 70 %, do 70 % belong to it?

The probability of a region is the sum of its classes' probabilities. Voxels are sorted by it into ``BINS`` bins of
equal width, and of each bin three sums are kept, for each of WT, TC and ET and for each number of sequences given: how
many voxels, the sum of their probabilities, and how many of them belong to the region. Sums of cases and subsets are
added, so that memory does not grow with them. The expected calibration error (ECE; Guo et al., ICML 2017) is then the
mean over the voxels of the distance between mean probability and share of their bin. It is that of MONAI
(``monai.metrics.CalibrationErrorMetric``) over all voxels as if they were one image; MONAI itself takes one for each
image and means those, and adds in float32.

Voxels count inside the brain alone. Outside it the image is exactly 0 and any model is right and sure of it; such
voxels are most of a file, so that with them the error of every model is near 0 and tells more of the field of view than
of the model.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from smml.data.case import Case
from smml.data.labels import REGIONS, LabelScheme
from smml.evaluation.sheets import Sheet, number
from smml.inference import Segmentation
from smml.modalities import MODALITIES

# As many as MONAI takes.
BINS = 20


@dataclass(frozen=True, eq=False)
class Calibration:
    """Sums over voxels, by number of sequences, region and bin; those of two sets of voxels are added with ``+``.

    Attributes:
        voxels: float64 [4, 3, BINS], how many.
        probability: float64 [4, 3, BINS], the sum of what the model says.
        inside: float64 [4, 3, BINS], how many belong to the region.
    """

    voxels: np.ndarray
    probability: np.ndarray
    inside: np.ndarray

    @classmethod
    def empty(cls) -> "Calibration":
        """Of no voxel at all."""
        voxels, probability, inside = np.zeros((3, len(MODALITIES), len(REGIONS), BINS))
        return cls(voxels, probability, inside)

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray, sequences: int, scheme: LabelScheme) -> "Calibration":
        """Of some voxels.

        Bins hold their lower edge, and the last one both of its edges.

        Args:
            probabilities: of the classes, floating [K, N].
            labels: memory values of the truth, [N].
            sequences: how many the model was given, 1 to 4.
            scheme: which classes make up a region.
        """
        sums = cls.empty()
        for row, region in enumerate(REGIONS):
            said = sum(probabilities[k] for k in scheme.regions[region])
            place = np.minimum((BINS * said).astype(np.intp), BINS - 1)
            own = (sequences - 1, row)
            sums.voxels[own] = np.bincount(place, minlength=BINS)
            sums.probability[own] = np.bincount(place, said, BINS)
            sums.inside[own] = np.bincount(place, scheme.region(labels, region), BINS)
        return sums

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(self.voxels + other.voxels, self.probability + other.probability, self.inside + other.inside)

    def errors(self) -> pd.DataFrame:
        """The expected calibration error, 0 to 1.

        Returns:
            A row for each number of sequences, "sequences" 1 to 4; columns "WT", "TC" and "ET". NaN where there is no
            voxel.
        """
        with np.errstate(invalid="ignore"):
            # |sum of probabilities - inside| of a bin is its voxels times the distance of the two means.
            errors = np.abs(self.probability - self.inside).sum(axis=-1) / self.voxels.sum(axis=-1)
        rows = pd.RangeIndex(1, len(MODALITIES) + 1, name="sequences")
        return pd.DataFrame(errors, index=rows, columns=list(REGIONS))


class BrainVoxels:
    """The voxels of a labelled case that count: those of the brain, which is that of any of its sequences.

    So every subset has the same voxels.

    Args:
        case: with a label and at least one modality.

    Attributes:
        labels: memory values of the truth, uint8 [N].
    """

    def __init__(self, case: Case) -> None:
        assert case.label is not None, "whoever scores a case has seen its label"
        self._inside = np.flatnonzero(case.brain)
        self.labels = case.scheme.learnt(case.label.reshape(-1)[self._inside])

    def of(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities of the classes in these voxels, [K, X, Y, Z] -> [K, N]."""
        return probabilities.reshape(len(probabilities), -1)[:, self._inside]


class OutputCalibration:
    """Calibration of each output over an evaluation, added up from its segmentations as they come.

    An instance is what :func:`smml.evaluation.evaluate` takes as ``observe``.

    Attributes:
        sums: by output, as ``evaluate`` names them: "student", "branch 1" and "branch 2" where branches are scored, and
            "refined".
    """

    def __init__(self) -> None:
        self.sums: dict[str, Calibration] = {}
        self._seen: tuple[Case, BrainVoxels] | None = None

    def __call__(self, case: Case, segmentation: Segmentation) -> None:
        """Add the voxels of a segmentation.

        Args:
            case: with its label.
            segmentation: of this case.
        """
        if self._seen is None or self._seen[0] is not case:
            self._seen = case, BrainVoxels(case)
        inside = self._seen[1]
        student = segmentation.student or segmentation
        outputs = {"student": student.probabilities}
        if student.branches is not None:
            outputs |= {f"branch {number}": said for number, said in enumerate(student.branches, start=1)}
        if segmentation.refined:
            outputs["refined"] = segmentation.probabilities
        for output, said in outputs.items():
            own = Calibration.of(inside.of(said), inside.labels, len(segmentation.subset), case.scheme)
            self.sums[output] = self.sums.get(output, Calibration.empty()) + own

    def frame(self) -> pd.DataFrame:
        """A row for each ``output``, number of ``sequences`` and ``region`` that was seen: its ``ece``, 0 to 1."""
        tables = [
            sums.errors().rename_axis(columns="region").stack().rename("ece").reset_index().assign(output=output)
            for output, sums in self.sums.items()
        ]
        columns = ["output", "sequences", "region", "ece"]
        return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def format_calibration(before: Calibration, after: Calibration, temperatures: tuple[float, ...]) -> str:
    """A Markdown table of the errors in per cent by number of sequences, without and with the temperatures.

    Args:
        before: of the probabilities as the model gives them.
        after: of the tempered ones.
        temperatures: for one sequence, for two and so on.
    """
    plain, tempered = before.errors(), after.errors()
    heads = ["sequences", "temperature", *(head for region in REGIONS for head in (f"ECE {region}", "tempered"))]
    rows = []
    for sequences, temperature in zip(plain.index, temperatures, strict=True):
        errors = (100 * table.loc[sequences, region] for region in REGIONS for table in (plain, tempered))
        rows.append((f"{sequences}", number(temperature, 3), *(number(error, 3) for error in errors)))
    return Sheet(tuple((head, "number") for head in heads), tuple(rows)).markdown()
