"""A viewer's picture for readers without a kernel: the three planes, legend and scores as one PNG."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from smml.data.case import Case
from smml.data.labels import REGIONS, Region
from smml.errors import InputError
from smml.figures.theme import rgb
from smml.files import replacing
from smml.inference import Contributions, Segmentation
from smml.modalities import DISPLAY_NAMES, MODALITIES, Subset
from smml.viewer.display import ANATOMICAL_PLANES, Display
from smml.viewer.panel import contribution_sums, legend_entries, legend_title
from smml.viewer.render import Layers, encode_png, font, layers_of, plane_sizes, render_plane
from smml.viewer.state import OVERLAYS, ViewState, first_state
from smml.viewer.worker import RegionScores, Result, score

_GAP, _PAPER, _INK, _FAINT = 10, (255, 255, 255), (25, 25, 25), (120, 120, 120)


def viewer_picture(
    case: Case,
    segmentation: Segmentation | None = None,
    *,
    overlay: str | None = None,
    position: tuple[int, int, int] | None = None,
    shown: str | None = None,
    contributions: Contributions | None = None,
    contributor: str | None = None,
    region: Region = "WT",
    size: int = 300,
) -> np.ndarray:
    """What the viewer would show of a case, without a kernel or a browser.

    Args:
        case: with at least one modality.
        segmentation: to paint; None paints the truth, if there is one.
        overlay: "prediction", "truth", "difference", "uncertainty", "contribution" or "none"; by default the
            prediction, without one the truth, without both none.
        position: crosshair, index into the case's arrays; None takes the tumour's widest slices.
        shown: modality under the paint; None takes the first that was given to the model.
        contributions: of the case, for the overlay "contribution" (:func:`smml.inference.contributions`).
        contributor: sequence whose contribution is painted; None takes the one shown.
        region: whose difference is painted, or to whose probability the contribution is.
        size: pixels of the longest edge among the planes.

    Returns:
        uint8 [rows, columns, 3].

    Raises:
        InputError: no modality, an unknown overlay, modality or region, a position outside the case, or an overlay of
            what is not there: a truth, a segmentation, contributions.
    """
    there = "truth" if case.label is not None else "none"
    overlay = overlay or ("prediction" if segmentation is not None else there)
    if overlay not in OVERLAYS:
        raise InputError(f"overlay must be one of {', '.join(OVERLAYS)}, found {overlay!r}")
    if overlay in ("truth", "difference") and case.label is None:
        raise InputError(f"overlay {overlay!r} needs a truth, but case {case.id} has none; take another overlay")
    if overlay in ("prediction", "difference", "uncertainty") and segmentation is None:
        raise InputError(f"overlay {overlay!r} needs a segmentation, found None; pass one of a predictor")
    if shown is not None and shown not in case.volumes:
        raise InputError(f"shown must be one of {', '.join(case.volumes)} that case {case.id} has, found {shown!r}")
    if region not in REGIONS:
        raise InputError(f"region must be one of {', '.join(REGIONS)}, found {region!r}")
    if overlay == "contribution" and contributions is None:
        raise InputError(
            'overlay "contribution" needs contributions, found None; pass what '
            "smml.inference.contributions(predictor, encoding) gives"
        )
    display = Display.of(case)
    result = None if segmentation is None else Result.of(segmentation)
    given = case.modalities if result is None else result.subset
    state = first_state(case, display, given, "mean" if result is None else next(iter(result.labels)))
    shown = shown or state.shown
    changes: dict[str, Any] = {
        "overlay": overlay, "shown": shown, "compared": region, "contributor": contributor or shown
    }  # fmt: skip
    if position is not None:
        if len(position) != 3 or any(not 0 <= p < n for p, n in zip(position, case.shape, strict=True)):
            raise InputError(f"position must lie inside {case.shape}, found {tuple(position)}")
        changes["position"] = display.clipped(display.shown_voxel(position))
    state = state.changed(**changes)
    painted = contributions.map(state.contributor, region) if overlay == "contribution" and contributions else None
    layers = layers_of(case, display, state, result, painted)
    scores = None
    if result is not None and case.label is not None:
        scores = score(result, state.source, case)
    return compose(case, display, state, layers, size=size, scores=scores, result=result, contributions=contributions)


def compose(
    case: Case,
    display: Display,
    state: ViewState,
    layers: Layers,
    *,
    size: int,
    scores: RegionScores | None = None,
    result: Result | None = None,
    contributions: Contributions | None = None,
) -> np.ndarray:
    """The three planes side by side under a line of words, legend and scores below.

    Args:
        case: named in the heading.
        display: where voxels lie.
        state: what is shown.
        layers: the volumes.
        size: pixels of the longest edge among the planes.
        scores: of the prediction shown.
        result: the prediction; None if there is none.
        contributions: of the case; told where the overlay is theirs.

    Returns:
        uint8 [rows, columns, 3].
    """
    sizes = plane_sizes(display, size)
    panes = {plane: render_plane(state, display, layers, plane, sizes[plane]) for plane in ANATOMICAL_PLANES}
    wide = sum(width for _, width in sizes.values()) + _GAP * (len(panes) + 1)
    wide, tall = max(wide, 560), max(height for height, _ in sizes.values())
    lines = [
        _given_line(None if result is None else result.subset, case.modalities),
        [("shown: ", _INK), (DISPLAY_NAMES[state.shown], _INK), (f"   {legend_title(state)}", _INK)],
        [part for colour, meaning in legend_entries(state) for part in (("■ ", rgb(colour)), (f"{meaning}   ", _INK))],
    ]
    if scores is not None:
        text = "     ".join(
            f"{region}  {score.words or f'Dice {score.dice:.3f}, HD95 {_hd95(score.hd95)}'}"
            for region, score in scores.items()
        )
        lines.append([(text, _INK)])
    if result is not None:
        volumes = result.volumes[state.source]
        lines.append([("     ".join(f"{region}  {volumes[region]}" for region in REGIONS), _INK)])
    if state.overlay == "contribution" and contributions is not None:
        sums = (f"{name} {row[state.compared]}" for name, row in contribution_sums(contributions).items())
        lines.append([(f"{state.compared} in ml:  {'   '.join(sums)}", _INK)])
    lines.append([("radiological convention: the patient's right is on the left; research only", _FAINT)])
    head, line = 30, 20
    page = Image.new("RGB", (wide, head + tall + _GAP + line * len(lines) + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, 6), case.id, font=font(16), fill=_INK)
    x = _GAP
    for picture in panes.values():
        page.paste(Image.fromarray(picture), (x, head))
        x += picture.shape[1] + _GAP
    y = head + tall + _GAP
    for parts in lines:
        left = float(_GAP)
        for text, colour in parts:
            # Pillow's own font lacks the square.
            if text == "■ ":
                draw.rectangle((left, y + 2, left + 11, y + 13), fill=colour, outline=(85, 85, 85))
                left += 17
            else:
                draw.text((left, y), text, font=font(13), fill=colour)
                left += draw.textlength(text, font=font(13))
        y += line
    return np.asarray(page)


def _hd95(value: float) -> str:
    """An HD95 in mm for people; NaN means that one of the two is empty."""
    return "– (one empty)" if np.isnan(value) else f"{value:.1f} mm"


def write_picture(picture: np.ndarray, path: str | os.PathLike) -> None:
    """Write uint8 [rows, columns, 3] as PNG; the file appears whole or not at all.

    Raises:
        InputError: the path does not end in .png, or cannot be written.
    """
    if not str(path).lower().endswith(".png"):
        raise InputError(f"path must end in .png, found {path}; a snapshot is written as PNG")
    with replacing(path) as temporary:
        temporary.write_bytes(encode_png(picture, small=True))


def _given_line(of: Subset | None, available: Iterable[str]) -> list[tuple[str, tuple[int, int, int]]]:
    if of is None:
        return [("no prediction", _FAINT)]
    line = [("the model was given: ", _INK)]
    for name in MODALITIES:
        absent = "" if name in available else " (not in this case)"
        line.append(
            (f"{DISPLAY_NAMES[name]}{absent}   ", _INK)
            if name in of
            else (f"no {DISPLAY_NAMES[name]}{absent}   ", (170, 170, 170))
        )
    return line
