"""How a case lies on screen: planes, the display grid, and where a picture's pixels lie in the patient.

Positions are voxels of the *display grid*: the case's axes turned to the nearest of right, front and top (RAS+). Every
plane is drawn with the highest index first in both directions, so the patient's right is on the left of the axial and
the coronal picture (radiological convention), and the front on the left of the sagittal one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from smml.data.case import Case
from smml.errors import InputError
from smml.modalities import MODALITIES

ANATOMICAL_PLANES: tuple[str, ...] = ("axial", "coronal", "sagittal")
# Axis of the display grid that a plane is cut across, and those along its columns and rows.
NORMAL: dict[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
COLUMN: dict[str, int] = {"axial": 0, "coronal": 0, "sagittal": 1}
ROW: dict[str, int] = {"axial": 1, "coronal": 2, "sagittal": 2}

Voxel = tuple[int, int, int]

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


@dataclass(frozen=True)
class Display:
    """How a case's own grid lies on screen.

    Attributes:
        turn: nibabel orientation transform [3, 2] from the case's axes to those of the display grid.
        native_shape: voxels on the case's own grid.
        shape: voxels of the display grid.
        affine: float64 [4, 4], display voxel -> mm to the right, front and top.
        spacing: voxel edges of the display grid in mm.
        box: per axis the (first, last + 1) index that is drawn: the brain and a margin.
        home: voxel that is looked at first: on the tumour's widest slices, without a truth in the middle of the box.
    """

    turn: np.ndarray
    native_shape: Voxel
    shape: Voxel
    affine: np.ndarray
    spacing: tuple[float, float, float]
    box: tuple[tuple[int, int], ...]
    home: Voxel

    @classmethod
    def of(cls, case: Case, margin: float = 8.0) -> "Display":
        """Work out the display grid of a case.

        Args:
            case: with at least one modality.
            margin: mm that are drawn round the brain, as far as the volume reaches.

        Raises:
            InputError: the case has no modality.
        """
        if not case.volumes:
            raise InputError(f"case {case.id}: no modality was read; name at least one of {', '.join(MODALITIES)}")
        turn = nib.io_orientation(case.affine)
        affine = case.affine @ nib.orientations.inv_ornt_aff(turn, case.shape)
        brain = nib.apply_orientation(case.brain, turn)
        spacing = nib.affines.voxel_sizes(affine).tolist()
        box = []
        for axis, edge in enumerate(spacing):
            hit = np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))
            wide = int(np.ceil(margin / edge))
            first, last = (hit[0], hit[-1]) if hit.size else (0, brain.shape[axis] - 1)
            box.append((max(0, int(first) - wide), min(brain.shape[axis], int(last) + 1 + wide)))
        home: list[float] = [(first + end) / 2 for first, end in box]
        # Not all that has a label is tumour: a resection cavity is none.
        tumour = np.zeros(0, bool) if case.label is None else case.scheme.region(case.label, "WT")
        if tumour.any():
            tumour = nib.apply_orientation(tumour, turn)
            for axis in range(3):
                area = tumour.sum(axis=tuple(a for a in range(3) if a != axis))
                # The middle of the widest slices, where several are equal.
                home[axis] = int(np.median(np.flatnonzero(area == area.max())))
        return cls(
            turn, _voxel(case.shape), _voxel(brain.shape), affine, tuple(spacing), tuple(box), _nearest(home, box)
        )

    def turned(self, volume: np.ndarray) -> np.ndarray:
        """[X, Y, Z] on the case's own grid -> the display grid; a view, not a copy."""
        return nib.apply_orientation(volume, self.turn)

    def file_voxel(self, position: Voxel) -> Voxel:
        """Display voxel -> index into the arrays of the case."""
        places = (
            self.native_shape[axis] - 1 - position[int(target)] if flip < 0 else position[int(target)]
            for axis, (target, flip) in enumerate(self.turn)
        )
        return _voxel(places)

    def shown_voxel(self, index: Voxel) -> Voxel:
        """Index into the arrays of the case -> display voxel (inverse of :meth:`file_voxel`)."""
        position = [0, 0, 0]
        for axis, (target, flip) in enumerate(self.turn):
            position[int(target)] = self.native_shape[axis] - 1 - index[axis] if flip < 0 else index[axis]
        return _voxel(position)

    def millimetres(self, position: Voxel) -> np.ndarray:
        """Display voxel -> float64 [3], mm to the right, front and top."""
        return nib.affines.apply_affine(self.affine, np.asarray(position, float))

    def sides(self, plane: str) -> dict[str, str]:
        """Letters (R, L, A, P, S, I) at the ``left``, ``right``, ``top`` and ``bottom`` of a plane's picture."""
        codes = nib.aff2axcodes(self.affine)
        left, top = codes[COLUMN[plane]], codes[ROW[plane]]
        return {"left": left, "right": _OPPOSITE[left], "top": top, "bottom": _OPPOSITE[top]}

    @property
    def tilt(self) -> float:
        """Largest angle in degrees between a display axis and the patient axis that its letters name."""
        cosines = np.abs(np.diag(self.affine[:3, :3] / np.asarray(self.spacing)))
        return float(np.degrees(np.arccos(np.clip(cosines.min(), 0, 1))))

    def plane_shape(self, plane: str) -> tuple[int, int]:
        """Voxels of a plane's picture, (rows, columns)."""
        rows, columns = (self.box[axis][1] - self.box[axis][0] for axis in (ROW[plane], COLUMN[plane]))
        return rows, columns

    def cut(self, volume: np.ndarray, plane: str, index: int) -> np.ndarray:
        """One slice of a volume on the display grid, as drawn: [rows, columns], a view."""
        region: list[slice | int] = [slice(*ends) for ends in self.box]
        region[NORMAL[plane]] = index
        # Both planes' axes are left in ascending order, columns first, by the indexing.
        return volume[tuple(region)].T[::-1, ::-1]

    def point(self, plane: str, position: Voxel, across: float, down: float) -> Voxel:
        """The voxel under a point of a plane's picture.

        Args:
            plane: which picture.
            position: crosshair; its slice of this plane is kept.
            across: share of the width, 0 at the left edge, 1 at the right.
            down: share of the height, 0 at the top.
        """
        result = list(position)
        for axis, share in ((COLUMN[plane], across), (ROW[plane], down)):
            first, end = self.box[axis]
            result[axis] = end - 1 - int(np.clip(np.floor(share * (end - first)), 0, end - first - 1))
        return _voxel(result)

    def share(self, plane: str, position: Voxel) -> tuple[float, float]:
        """(across, down) of the middle of the crosshair's voxel; inverse of :meth:`point`."""
        across, down = (
            (self.box[axis][1] - 1 - position[axis] + 0.5) / (self.box[axis][1] - self.box[axis][0])
            for axis in (COLUMN[plane], ROW[plane])
        )
        return across, down

    def clipped(self, position: Iterable[float]) -> Voxel:
        """The nearest voxel inside the box that is drawn."""
        return _nearest(position, self.box)


def _nearest(position: Iterable[float], box: Iterable[tuple[int, int]]) -> Voxel:
    return _voxel(min(max(round(place), first), end - 1) for place, (first, end) in zip(position, box, strict=True))


def _voxel(places: Iterable[int]) -> Voxel:
    x, y, z = map(int, places)
    return x, y, z
