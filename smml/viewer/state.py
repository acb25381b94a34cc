"""What a viewer shows, as plain values, and what mouse and keys on a plane make of it. No widget, no pixel."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from smml.data.case import Case
from smml.data.labels import REGIONS, Region
from smml.errors import InputError
from smml.figures.pixels import intensity_window
from smml.modalities import DISPLAY_NAMES, MODALITIES, Subset, parse_subset
from smml.viewer.display import COLUMN, NORMAL, ROW, Display, Voxel

OVERLAYS: tuple[str, ...] = ("prediction", "truth", "difference", "uncertainty", "contribution", "none")
SOURCES: tuple[str, ...] = ("refined", "mean", "branch 1", "branch 2")

# Subsets that a reader reaches with one click, under their names.
NAMED_SUBSETS: dict[str, Subset] = {
    "all": MODALITIES,
    "FLAIR only": ("flair",),
    "T1ce only": ("t1ce",),
    "T1 pair": ("t1ce", "t1"),
    "FLAIR + T1ce": ("flair", "t1ce"),
    "no contrast agent": ("flair", "t1", "t2"),
}

# What a key does to the crosshair, in voxels of the picture or in slices.
_MOVES: dict[str, dict[str, int]] = {
    "ArrowLeft": {"across": -1},
    "ArrowRight": {"across": 1},
    "ArrowUp": {"down": -1},
    "ArrowDown": {"down": 1},
    "PageUp": {"slices": 1},
    "PageDown": {"slices": -1},
    ".": {"slices": 1},
    ",": {"slices": -1},
}


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
        compared: region whose difference to the truth, or to whose probability a contribution, is painted.
        contributor: sequence whose contribution is painted.
        opacity: of the paint, 0 to 1.
        outline: paint outlines instead of areas.
        crosshair: draw it.
        windows: by modality, intensities shown black and white.
        hidden: overlay that the space bar hid and brings back; None if it hid none.
    """

    given: Subset
    shown: str
    position: Voxel
    overlay: str = "prediction"
    source: str = "mean"
    regions: tuple[Region, ...] = REGIONS
    compared: Region = "WT"
    contributor: str = MODALITIES[0]
    opacity: float = 0.45
    outline: bool = False
    crosshair: bool = True
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    hidden: str | None = None

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

    def with_region(self, region: Region, on: bool) -> "ViewState":
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

    def at_slice(self, plane: str, index: int) -> "ViewState":
        """With the crosshair in another slice of a plane, index on the display grid."""
        x, y, z = (index if axis == NORMAL[plane] else place for axis, place in enumerate(self.position))
        return replace(self, position=(x, y, z))

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

    def after(
        self, plane: str, event: Mapping[str, Any], display: Display, choices: Mapping[str, tuple[str, ...]]
    ) -> "ViewState":
        """What is shown after an event of a plane; an unknown event changes nothing.

        Args:
            plane: where it happened.
            event: of the mouse or of a key, as :meth:`smml.viewer.ModalityViewer.handle` describes it.
            display: where the case's voxels lie.
            choices: words to choose from, by field: ``shown`` and ``overlay``.

        Raises:
            InputError: it would take the last modality from the model.
        """
        match event:
            case {"kind": "point", "x": x, "y": y}:
                return replace(self, position=display.point(plane, self.position, float(x), float(y)))
            case {"kind": "wheel", "steps": steps}:
                return self.moved(display, plane, slices=int(steps))
            case {"kind": "drag", "x": x, "y": y}:
                return self.dragged(float(x), float(y))
            case {"kind": "key", "key": str(key)} if key in _MOVES:
                step = 5 if event.get("fast") else 1
                return self.moved(display, plane, **{way: step * by for way, by in _MOVES[key].items()})
            case {"kind": "key", "key": "Home"}:
                return replace(self, position=display.home)
            case {"kind": "key", "key": str(key)}:
                # Caps Lock changes no meaning.
                return self._after_letter(key.lower(), choices)
        return self

    def _after_letter(self, key: str, choices: Mapping[str, tuple[str, ...]]) -> "ViewState":
        overlays, volumes = choices["overlay"], choices["shown"]
        match key:
            case "1" | "2" | "3" | "4":
                name = MODALITIES[int(key) - 1]
                # Without a predictor the model is given nothing.
                return self.toggled(name) if "prediction" in overlays and name in volumes else self
            case "b":
                return replace(self, shown=volumes[(volumes.index(self.shown) + 1) % len(volumes)])
            case "t":
                # Contributions take as long as all subsets: not by a key that passes over them.
                names = [name for name in overlays if name not in ("contribution", "none")] or ["none"]
                place = names.index(self.overlay) + 1 if self.overlay in names else 0
                return replace(self, overlay=names[place % len(names)])
            case " " if self.overlay == "none":
                return replace(self, overlay=self.hidden or overlays[0], hidden=None)
            case " ":
                return replace(self, overlay="none", hidden=self.overlay)
            case "o":
                return replace(self, outline=not self.outline)
            case "c":
                return replace(self, crosshair=not self.crosshair)
            case "[":
                return replace(self, opacity=round(max(0.0, self.opacity - 0.1), 2))
            case "]":
                return replace(self, opacity=round(min(1.0, self.opacity + 0.1), 2))
        return self


def first_state(case: Case, display: Display, given: Subset, source: str) -> ViewState:
    """What a new viewer shows of a case: the crosshair at home, every modality in its own window.

    Args:
        case: with at least one modality.
        display: where its voxels lie.
        given: modalities that the model is given; the first that the case has is shown.
        source: one of ``SOURCES``.
    """
    shown = next(name for name in (*given, *MODALITIES) if name in case.volumes)
    windows = {name: intensity_window(volume) for name, volume in case.volumes.items()}
    return ViewState(given, shown, display.home, source=source, contributor=case.modalities[0], windows=windows)


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
    if state.hidden is not None and state.hidden not in tuple(choices["overlay"]):
        raise InputError(f"hidden must be None or one of {', '.join(choices['overlay'])}, found {state.hidden!r}")
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
    ends = {}
    for name, pair in given.items():
        numbers = _numbers(pair, 2)
        if numbers is None or numbers[0] > numbers[1]:
            raise InputError(
                f"windows: that of {name} must be two numbers, black and then the higher white, found {pair!r}"
            )
        ends[name] = (numbers[0], numbers[1])
    return ends


def _numbers(values, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, None if they are something else."""
    try:
        numbers = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        return None
    return tuple(numbers.tolist()) if numbers.shape == (count,) and np.isfinite(numbers).all() else None
