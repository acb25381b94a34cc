"""What prediction hands over: an encoded case and a segmentation."""

from dataclasses import dataclass, field

import nibabel as nib
import numpy as np

from smml.data.case import Case
from smml.data.labels import LabelScheme, Region
from smml.data.layouts import layout_named
from smml.data.preprocessing import PreparedCase
from smml.inference.windows import WindowPlan
from smml.modalities import Subset
from smml.models import StudentShares
from smml.models.intervals import LEVELS, Volume, VolumeIntervals


@dataclass(frozen=True)
class Segmentation:
    """A segmentation on the case's own grid.

    Attributes:
        labels: uint8 [X, Y, Z], in-memory values, by the predictor's rule (:mod:`smml.models.decision`).
        probabilities: float32 [K, X, Y, Z], mean of the two branches, tempered where the predictor has temperatures
            and the refinement networks did not have the last word.
        affine: float64 [4, 4], the case's.
        subset: the modalities it was made from.
        layout: of the case, a key in ``LAYOUTS``; it decides the label values on disk.
        branch_labels: uint8 [2, X, Y, Z], what each branch says by itself, by the same rule.
        uncertainty: float32 [X, Y, Z], half the sum over the classes of the distances between the two branches'
            probabilities (their total variation distance), in [0, 1]; where ``probabilities`` are tempered, that of the
            branches tempered alike, taken on the grid of the network.
        student: where the refinement networks had the last word, the segmentation of the students alone.
        branches: float32 [2, K, X, Y, Z], each branch's own probabilities, never tempered; kept only if asked for.
        header: the case's, for what is written; None if it has none.
        intervals: how far its volumes may be off; None where the model has no intervals for this output.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    affine: np.ndarray
    subset: Subset
    layout: str
    branch_labels: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    student: "Segmentation | None" = None
    branches: np.ndarray | None = None
    header: nib.Nifti1Header | None = field(default=None, repr=False)
    intervals: VolumeIntervals | None = field(default=None, repr=False)

    @property
    def scheme(self) -> LabelScheme:
        """Classes, regions and label values of the layout."""
        return layout_named(self.layout).scheme

    @property
    def refined(self) -> bool:
        """Whether the refinement networks had the last word."""
        return self.student is not None

    def volume(self, region: Region, *, level: float = LEVELS[0]) -> Volume:
        """The volume of what is called a region, with the interval that holds the true one in ``level`` of the cases.

        Args:
            region: "WT", "TC" or "ET".
            level: 0.9 or 0.95.

        Returns:
            In ml; without an interval (NaN) where the model has none for these sequences.

        Raises:
            InputError: another level.
        """
        voxels = int(self.scheme.region(self.labels, region).sum())
        ml = voxels * abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000
        if self.intervals is None:
            return Volume(ml, level=level)
        return self.intervals.volume(self.subset, region, ml, level)


@dataclass(frozen=True)
class Encoding:
    """What the encoders made of a case.

    Attributes:
        case: the case, on its own grid.
        prepared: the network's input.
        plan: the windows.
        windows: per batch of windows, what branch 1 and branch 2 made of them; None if that is computed when asked
            for, because keeping it would need too much memory.
    """

    case: Case
    prepared: PreparedCase
    plan: WindowPlan
    windows: tuple[tuple[StudentShares, StudentShares], ...] | None = field(repr=False, default=None)
