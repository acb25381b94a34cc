"""What a viewer shows, as plain values, and where a picture's pixels lie in the patient. No widget, no pixel.

Positions are voxels of the *display grid*: the case's axes turned to the nearest of right, front and top (RAS+). Every
plane is drawn with the highest index first in both directions, so the patient's right is on the left of the axial and
the coronal picture (radiological convention), and the front on the left of the sagittal one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import nibabel as nib
import numpy as np

from smml.data.case import Case
from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.modalities import DISPLAY_NAMES, MODALITIES, Subset, parse_subset

PLANES: tuple[str, ...] = ("axial", "coronal", "sagittal")
# Axis of the display grid that a plane is cut across, and those along its columns and rows.
NORMAL: dict[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
COLUMN: dict[str, int] = {"axial": 0, "coronal": 0, "sagittal": 1}
ROW: dict[str, int] = {"axial": 1, "coronal": 2, "sagittal": 2}

OVERLAYS: tuple[str, ...] = ("prediction", "truth", "difference", "uncertainty", "none")
SOURCES: tuple[str, ...] = ("refined", "mean", "branch 1", "branch 2")

PRESETS: dict[str, Subset] = {
    "all": MODALITIES,
    "FLAIR only": ("flair",),
    "T1ce only": ("t1ce",),
    "T1 pair": ("t1ce", "t1"),
    "FLAIR + T1ce": ("flair", "t1ce"),
    "no contrast agent": ("flair", "t1", "t2"),
}

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
    """

    turn: np.ndarray
    native_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    affine: np.ndarray
    spacing: tuple[float, float, float]
    box: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, case: Case, margin: float = 8.0) -> "Display":
        """Work out the display grid of a case.

        Args:
            case: with at least one modality.
            margin: mm that are drawn round the non-zero voxels, as far as the volume reaches.

        Raises:
            InputError: the case has no modality.
        """
        if not case.volumes:
            raise InputError(f"case {case.id}: no modality was read; name at least one of {', '.join(MODALITIES)}")
        turn = nib.io_orientation(case.affine)
        affine = case.affine @ nib.orientations.inv_ornt_aff(turn, case.shape)
        brain = None
        for volume in case.volumes.values():
            brain = volume != 0 if brain is None else brain | (volume != 0)
        brain = nib.apply_orientation(brain, turn)
        spacing = tuple(float(edge) for edge in nib.affines.voxel_sizes(affine))
        box = []
        for axis, edge in enumerate(spacing):
            hit = np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))
            wide = int(np.ceil(margin / edge))
            first, last = (hit[0], hit[-1]) if hit.size else (0, brain.shape[axis] - 1)
            box.append((max(0, int(first) - wide), min(brain.shape[axis], int(last) + 1 + wide)))
        return cls(turn, tuple(case.shape), brain.shape, affine, spacing, tuple(box))

    def turned(self, volume: np.ndarray) -> np.ndarray:
        """[X, Y, Z] on the case's own grid -> the display grid; a view, not a copy."""
        return nib.apply_orientation(volume, self.turn)

    def file_voxel(self, position: tuple[int, int, int]) -> tuple[int, int, int]:
        """Display voxel -> index into the arrays of the case."""
        index = []
        for axis, (target, flip) in enumerate(self.turn):
            place = int(position[int(target)])
            index.append(self.native_shape[axis] - 1 - place if flip < 0 else place)
        return tuple(index)

    def shown_voxel(self, index: tuple[int, int, int]) -> tuple[int, int, int]:
        """Index into the arrays of the case -> display voxel (inverse of :meth:`file_voxel`)."""
        position = [0, 0, 0]
        for axis, (target, flip) in enumerate(self.turn):
            position[int(target)] = self.native_shape[axis] - 1 - index[axis] if flip < 0 else index[axis]
        return tuple(position)

    def millimetres(self, position: tuple[int, int, int]) -> np.ndarray:
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
        return tuple(self.box[axis][1] - self.box[axis][0] for axis in (ROW[plane], COLUMN[plane]))

    def cut(self, volume: np.ndarray, plane: str, index: int) -> np.ndarray:
        """One slice of a volume on the display grid, as drawn: [rows, columns], a view."""
        region = [slice(*ends) for ends in self.box]
        region[NORMAL[plane]] = index
        # Both planes' axes are left in ascending order, columns first, by the indexing.
        return volume[tuple(region)].T[::-1, ::-1]

    def point(self, plane: str, position: tuple[int, int, int], across: float, down: float) -> tuple[int, int, int]:
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
        return tuple(result)

    def share(self, plane: str, position: tuple[int, int, int]) -> tuple[float, float]:
        """(across, down) of the middle of the crosshair's voxel; inverse of :meth:`point`."""
        return tuple(
            (self.box[axis][1] - 1 - position[axis] + 0.5) / (self.box[axis][1] - self.box[axis][0])
            for axis in (COLUMN[plane], ROW[plane])
        )

    def clipped(self, position: Iterable[float]) -> tuple[int, int, int]:
        """The nearest voxel inside the box that is drawn."""
        return tuple(
            int(min(max(round(place), first), end - 1)) for place, (first, end) in zip(position, self.box, strict=True)
        )


@dataclass(frozen=True)
class ViewState:
    """Everything that a viewer's picture depends on besides the volumes.

    Attributes:
        given: modalities that the model is given.
        shown: modality under the paint.
        position: crosshair, voxel of the display grid.
        overlay: one of ``OVERLAYS``.
        source: whose prediction: one of ``SOURCES``.
        regions: which of WT, TC, ET are painted.
        compared: region whose difference to the truth is painted.
        opacity: of the paint, 0 to 1.
        outline: paint outlines instead of areas.
        crosshair: draw it.
        windows: by modality, intensities shown black and white.
    """

    given: Subset
    shown: str
    position: tuple[int, int, int]
    overlay: str = "prediction"
    source: str = "mean"
    regions: tuple[str, ...] = REGIONS
    compared: str = "WT"
    opacity: float = 0.45
    outline: bool = False
    crosshair: bool = True
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def changed(self, **fields) -> "ViewState":
        """With other values of some fields."""
        return replace(self, **fields)

    def toggled(self, modality: str) -> "ViewState":
        """With one modality more, or less, for the model.

        Raises:
            InputError: it was the only one; an empty set cannot be segmented.
        """
        names = set(self.given) ^ {modality}
        if not names:
            raise InputError(
                f"{DISPLAY_NAMES[modality]} is the only modality left; the model needs at least one: add another first"
            )
        return replace(self, given=parse_subset(names))

    def with_region(self, region: str, on: bool) -> "ViewState":
        """With a region painted or not."""
        keep = set(self.regions) | {region} if on else set(self.regions) - {region}
        return replace(self, regions=tuple(name for name in REGIONS if name in keep))

    def moved(self, display: Display, plane: str, across: int = 0, down: int = 0, slices: int = 0) -> "ViewState":
        """With the crosshair moved by voxels: ``across`` to the right and ``down`` in the picture, and over slices."""
        position = list(self.position)
        position[COLUMN[plane]] -= across
        position[ROW[plane]] -= down
        position[NORMAL[plane]] += slices
        return replace(self, position=display.clipped(position))

    def window(self) -> tuple[float, float]:
        """Intensities of the shown modality that are drawn black and white; the second is the higher."""
        low, high = self.windows[self.shown]
        return low, max(high, low + 1e-3 * max(1.0, abs(low)))

    def dragged(self, across: float, down: float) -> "ViewState":
        """With window and level changed as by dragging over shares of a picture: right widens, down darkens."""
        low, high = self.window()
        width, level = high - low, (low + high) / 2
        level += down * width
        width *= float(np.exp(1.5 * across))
        return self.with_window(level - width / 2, level + width / 2)

    def with_window(self, low: float, high: float) -> "ViewState":
        """With the shown modality's window set."""
        return replace(self, windows={**self.windows, self.shown: (float(low), float(high))})


def default_window(volume: np.ndarray) -> tuple[float, float]:
    """1st and 99.5th percentile of the non-zero voxels, (0, 1) if there is none."""
    # Every 8th voxel of a large volume: percentiles hardly change, opening a full-size case is much faster.
    inside = volume.ravel()[:: 8 if volume.size > 2e6 else 1]
    inside = inside[inside != 0]
    if not inside.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(inside, (1, 99.5)))
    return low, max(high, low + 1e-3 * max(1.0, abs(low)))


def first_state(case: Case, display: Display, given: Subset, source: str) -> ViewState:
    """What a new viewer shows: the tumour if there is a truth, else the middle of the brain."""
    position = [(first + end) / 2 for first, end in display.box]
    if case.label is not None and case.label.any():
        tumour = display.turned(case.label) > 0
        for axis in range(3):
            area = tumour.sum(axis=tuple(a for a in range(3) if a != axis))
            # The middle of the widest slices, where several are equal.
            position[axis] = int(np.median(np.flatnonzero(area == area.max())))
    shown = next(name for name in (*given, *MODALITIES) if name in case.volumes)
    windows = {name: default_window(volume) for name, volume in case.volumes.items()}
    return ViewState(given, shown, display.clipped(position), source=source, windows=windows)


def checked(state: ViewState, display: Display, choices: Mapping[str, Iterable[str]]) -> ViewState:
    """A state that somebody wrote, in the form that the viewer keeps it in.

    Args:
        state: any values.
        display: the crosshair is moved to the nearest voxel that it draws.
        choices: words to choose from, by field; those of ``shown`` are the modalities that the case has.

    Raises:
        InputError: a value is not among the choices, or not of the kind that its field wants.
    """
    for name, options in choices.items():
        if getattr(state, name) not in tuple(options):
            raise InputError(f"{name} must be one of {', '.join(options)}, found {getattr(state, name)!r}")
    names = tuple(choices["shown"])
    given = parse_subset(state.given)
    if not set(given) <= set(names):
        raise InputError(f"given must be among {', '.join(names)}, found {state.given!r}")
    regions = tuple(state.regions) if isinstance(state.regions, Iterable) else (state.regions,)
    if not all(region in REGIONS for region in regions):
        raise InputError(f"regions must be some of {', '.join(REGIONS)}, such as ('WT', 'ET'), found {state.regions!r}")
    opacity = _numbers([state.opacity], 1)
    if opacity is None or not 0 <= opacity[0] <= 1:
        raise InputError(f"opacity must be a number from 0 (invisible) to 1, found {state.opacity!r}")
    for name in ("outline", "crosshair"):
        if not isinstance(getattr(state, name), bool):
            raise InputError(f"{name} must be True or False, found {getattr(state, name)!r}")
    position = _numbers(state.position, 3)
    if position is None:
        raise InputError(f"position must be three numbers, a voxel of the display grid, found {state.position!r}")
    return state.changed(
        given=given,
        regions=tuple(name for name in REGIONS if name in regions),
        opacity=opacity[0],
        position=display.clipped(position),
        windows=_checked_windows(state.windows, names),
    )


def _checked_windows(windows: Mapping, names: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    given = dict(windows) if isinstance(windows, Mapping) else {}
    if set(given) != set(names):
        raise InputError(
            f"windows must give (black, white) for each of {', '.join(names)} and nothing else, found {windows!r}; to "
            f"change one, write windows={{**viewer.state.windows, {names[0]!r}: (0, 100)}}"
        )
    ends = {name: _numbers(pair, 2) for name, pair in given.items()}
    for name, pair in ends.items():
        if pair is None or pair[0] > pair[1]:
            raise InputError(
                f"windows: that of {name} must be two numbers, black and then the higher white, found {given[name]!r}"
            )
    return ends


def _numbers(values, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, None if they are something else."""
    try:
        numbers = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        return None
    return tuple(numbers.tolist()) if numbers.shape == (count,) and np.isfinite(numbers).all() else None
