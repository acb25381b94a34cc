"""A case in memory: its volumes on the grid of their files, its label, and what follows from them."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np

from smml.data.brain import Brain, find_brain
from smml.data.labels import LabelScheme
from smml.data.layouts import layout_named


@dataclass(frozen=True, eq=False)
class Case:
    """One patient, as read from disk or made in memory.

    Attributes:
        id: name of the case.
        volumes: by modality, in the order of ``MODALITIES``, float32 [X, Y, Z] on the grid of the file.
        label: uint8 [X, Y, Z] in memory values (labels.py), or None if there is none or it was not asked for.
        affine: float64 [4, 4], voxel index -> mm to the right, front and top (RAS+), also where the file has metres.
        layout: key in ``LAYOUTS``; it says what the label's values mean in memory and are on disk.
        sources: the files that were read, by modality and "label"; empty for a case made in memory.
        header: of the NIfTI file that the affine comes from, whose transforms and codes are kept in what is written for
            the case; None for other formats and a case made in memory.
    """

    id: str
    volumes: dict[str, np.ndarray]
    label: np.ndarray | None
    affine: np.ndarray
    layout: str
    sources: dict[str, Path] = field(default_factory=dict)
    header: nib.Nifti1Header | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return next(iter(self.volumes.values())).shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Size of a voxel along each axis in mm."""
        return tuple(nib.affines.voxel_sizes(self.affine).tolist())

    @property
    def orientation(self) -> tuple[str, str, str]:
        """Direction that each axis points to, such as ("L", "P", "S")."""
        return nib.aff2axcodes(self.affine)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that were read, in the project's order."""
        return tuple(self.volumes)

    @cached_property
    def brains(self) -> dict[str, Brain]:
        """Where the brain of each modality is, on the grid of the files."""
        return {name: find_brain(volume) for name, volume in self.volumes.items()}

    @property
    def brain(self) -> np.ndarray:
        """Where any of the modalities has brain, bool [X, Y, Z]."""
        return np.logical_or.reduce([brain.mask for brain in self.brains.values()])

    @property
    def scheme(self) -> LabelScheme:
        """Label values of the layout."""
        return layout_named(self.layout).scheme
