"""The words and charts beside the planes: legend, scores, read-out and the bars of the subsets, as small HTML."""

import math
from collections.abc import Mapping
from html import escape

import nibabel as nib

from smml.data.case import Case
from smml.data.labels import REGIONS, Region
from smml.figures.theme import CLASS_COLOURS, REGION_COLOURS
from smml.modalities import DISPLAY_NAMES, MODALITIES, SUBSETS, Subset, subset_name
from smml.viewer.display import NORMAL, Display
from smml.viewer.render import DIFFERENCE_COLOURS, UNCERTAINTY_COLOURS
from smml.viewer.state import ViewState
from smml.viewer.worker import RegionScore, RegionScores, Result

# Names of the parts that are seen when all three nested regions are painted.
_PARTS = {"WT": "oedema (WT outside TC)", "TC": "necrotic core (TC outside ET)", "ET": "enhancing tumour (ET)"}
_WHOLE = {"WT": "whole tumour (WT)", "TC": "tumour core (TC)", "ET": "enhancing tumour (ET)"}


def legend_entries(state: ViewState) -> list[tuple[str, str]]:
    """(colour, meaning) of everything that the present overlay can paint, in reading order."""
    if state.overlay in ("prediction", "truth"):
        inner = {region: any(REGIONS.index(r) > REGIONS.index(region) for r in state.regions) for region in REGIONS}
        whole = state.outline or len(state.regions) < len(REGIONS)
        names = _WHOLE if whole else _PARTS
        return [
            (REGION_COLOURS[r], names[r] + (", outer part" if whole and inner[r] and not state.outline else ""))
            for r in state.regions
        ]
    if state.overlay == "difference":
        if state.outline:
            return [
                (DIFFERENCE_COLOURS["prediction only"], f"{state.compared} as predicted"),
                (DIFFERENCE_COLOURS["truth only"], f"{state.compared} in truth"),
            ]
        return [(colour, f"{state.compared} {meaning}") for meaning, colour in DIFFERENCE_COLOURS.items()]
    if state.overlay == "uncertainty":
        steps = len(UNCERTAINTY_COLOURS) - 1
        return [(colour, f"{place / steps:.2g}") for place, colour in enumerate(UNCERTAINTY_COLOURS)]
    return []


def legend_title(state: ViewState) -> str:
    """What the overlay is, in words."""
    return {
        "prediction": f"prediction, {state.source}",
        "truth": "truth",
        "difference": "prediction against truth" + ("" if state.outline else "; false ones hatched"),
        "uncertainty": "disagreement of the two branches",
        "none": "no overlay",
    }[state.overlay]


def legend_html(state: ViewState) -> str:
    """The legend of the present overlay."""
    entries = "".join(
        f"<span style='white-space:nowrap;margin-right:14px'><span style='display:inline-block;width:12px;height:12px;"
        f"background:{colour};border:1px solid #555;vertical-align:-1px'></span> {escape(meaning)}</span>"
        for colour, meaning in legend_entries(state)
    )
    return f"<div style='line-height:1.6'><b>{escape(legend_title(state))}</b> &nbsp; {entries}</div>"


def scores_html(scores: RegionScores | None, subset: Subset, source: str, *, truth: bool) -> str:
    """Dice, HD95 and volume of the shown prediction, one row per region; words where the truth lacks the region."""
    if not truth:
        return "<i>This case has no truth to score against.</i>"
    rows = ""
    for region in REGIONS:
        score = None if scores is None else scores[region]
        if score is not None and score.words:
            cells = f"<td colspan='3' style='text-align:right;padding-left:18px'>{score.words}</td>"
        else:
            values = ("…",) * 3
            if score is not None:
                values = (f"{score.dice:.3f}", _millimetres(score.hd95), f"{score.called_ml:.1f}")
            cells = "".join(f"<td style='text-align:right;padding-left:18px'>{value}</td>" for value in values)
        rows += (
            f"<tr><td><span style='color:{REGION_COLOURS[region]};-webkit-text-stroke:.4px #555'>■</span> {region}</td>"
            f"{cells}</tr>"
        )
    return (
        f"<div style='line-height:1.35'><b>from {escape(subset_name(subset, ' + '))}</b>, {escape(source)}"
        "<table style='border-collapse:collapse;font-variant-numeric:tabular-nums'><tr><th></th>"
        "<th style='text-align:right;padding-left:18px'>Dice</th>"
        "<th style='text-align:right;padding-left:18px'>HD95 mm</th>"
        "<th style='text-align:right;padding-left:18px'>ml</th></tr>" + rows + "</table></div>"
    )


def _millimetres(value: float) -> str:
    return "one empty" if math.isnan(value) else f"{value:.1f}"


def chart_svg(
    scores: Mapping[Subset, RegionScores], given: Subset, available: Subset, *, width: int = 520, height: int = 190
) -> str:
    """Dice of WT, TC and ET for each of the 15 subsets, with dots for the modalities given; the present one framed.

    A region that the truth lacks has no bar; "!" stands in its place where some of it is called.

    Args:
        scores: by subset, those that were computed; the others stay blank.
        given: the present subset.
        available: modalities that the case has; subsets that need others are struck out.
        width: pixels.
        height: pixels.

    Returns:
        An ``<svg>`` element with a text alternative.
    """
    left, top, dots = 44, 14, 62
    step, floor = (width - left - 4) / len(SUBSETS), height - dots
    parts = []
    for share in (0, 0.5, 1):
        y = floor - share * (floor - top)
        parts.append(f"<line x1='{left}' x2='{width - 4}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ccc'/>")
        parts.append(f"<text x='{left - 5}' y='{y + 4:.1f}' text-anchor='end'>{share:g}</text>")
    for row, name in enumerate(MODALITIES):
        y = floor + 13 + row * 14
        parts.append(f"<text x='{left - 5}' y='{y + 4:.1f}' text-anchor='end'>{DISPLAY_NAMES[name]}</text>")
    spoken = []
    for column, subset in enumerate(SUBSETS):
        x = left + column * step
        possible = set(subset) <= set(available)
        label = subset_name(subset)
        if subset in scores:
            values = ", ".join(
                f"{region} {scores[subset][region].words or f'{scores[subset][region].dice:.2f}'}" for region in REGIONS
            )
            label += f": Dice {values}"
            spoken.append(label)
        parts.append(f"<g><title>{label if possible else label + ': not in this case'}</title>")
        frame = "#0072B2" if subset == given else "none"
        parts.append(
            f"<rect x='{x + 1:.1f}' y='{top - 8}' width='{step - 2:.1f}' height='{height - top + 4}' rx='3' "
            f"fill='{'#0072B2' if subset == given else '#fff'}' fill-opacity='{0.1 if subset == given else 0}' "
            f"stroke='{frame}'/>"
        )
        if subset in scores:
            bar = (step - 8) / len(REGIONS)
            for place, region in enumerate(REGIONS):
                parts.append(_bar(scores[subset][region], x + 4 + place * bar, floor, bar, floor - top, region))
        elif not possible:
            parts.append(f"<text x='{x + step / 2:.1f}' y='{floor - 6:.1f}' text-anchor='middle' fill='#999'>×</text>")
        for row, name in enumerate(MODALITIES):
            on = name in subset
            parts.append(
                f"<circle cx='{x + step / 2:.1f}' cy='{floor + 13 + row * 14}' r='4' "
                f"fill='{'#333' if on else '#e4e4e4'}'/>"
            )
        parts.append("</g>")
    alternative = "Dice by subset. " + ("; ".join(spoken) if spoken else "Nothing computed yet.")
    return (
        f"<svg role='img' aria-label='{escape(alternative, quote=True)}' width='{width}' height='{height}' "
        f"viewBox='0 0 {width} {height}' style='max-width:100%;background:#fff' font-size='11' "
        f"font-family='system-ui,sans-serif' fill='#333'>" + "".join(parts) + "</svg>"
    )


def _bar(score: RegionScore, x: float, floor: float, width: float, full: float, region: Region) -> str:
    """A Dice as a bar, or what stands in its place where the truth lacks the region."""
    colour = REGION_COLOURS[region]
    if score.present:
        tall = score.dice * full
        return (
            f"<rect x='{x:.1f}' y='{floor - tall:.1f}' width='{width:.1f}' height='{tall:.1f}' fill='{colour}' "
            "stroke='#555' stroke-width='.5'/>"
        )
    if not score.called_ml:
        return ""
    return (
        f"<text x='{x + width / 2:.1f}' y='{floor - 2:.1f}' text-anchor='middle' font-weight='bold' fill='{colour}' "
        "stroke='#555' stroke-width='.4'>!</text>"
    )


def class_html(name: str) -> str:
    """A class name with its colour before it."""
    colour = CLASS_COLOURS.get(name)
    square = f"<span style='color:{colour};-webkit-text-stroke:.4px #555'>■</span> " if colour else ""
    return square + escape(name)


def heading_html(case: Case, display: Display) -> str:
    """Name, grid and convention of the case."""
    spacing = " × ".join(f"{edge:.3g}" for edge in case.spacing)
    tilt = f"; tilted by {display.tilt:.0f}° against the scanner's axes" if display.tilt > 1 else ""
    return (
        f"<b>{escape(case.id)}</b> &nbsp; {' × '.join(map(str, case.shape))} voxels of {spacing} mm, stored "
        f"{''.join(nib.aff2axcodes(case.affine))}{tilt}. Radiological convention: the patient's right is on the left. "
        "<i>For research and teaching only.</i>"
    )


def readout_html(case: Case, display: Display, state: ViewState, result: Result | None) -> str:
    """What lies under the crosshair: voxel of the file, mm, intensities, labels; and the window."""
    voxel = display.file_voxel(state.position)
    places = zip(("RL", "AP", "SI"), display.millimetres(state.position), strict=True)
    low, high = state.window()
    words = [
        f"voxel {voxel[0]}, {voxel[1]}, {voxel[2]}",
        " &nbsp;".join(f"{letters[int(value < 0)]} {abs(value):.1f}" for letters, value in places) + " mm",
        " &nbsp;".join(f"{DISPLAY_NAMES[name]} {volume[voxel]:.4g}" for name, volume in case.volumes.items()),
    ]
    if case.label is not None:
        words.append(f"truth {class_html(case.scheme.classes[int(case.label[voxel])])}")
    if result is not None:
        words.append(f"predicted {class_html(result.scheme.classes[int(result.labels[state.source][voxel])])}")
        if result.uncertainty is not None:
            words.append(f"uncertainty {float(result.uncertainty[voxel]):.2f}")
    words.append(f"window {high - low:.4g}, level {(low + high) / 2:.4g}")
    separator = " <span style='color:#bbb'>|</span> "
    return f"<div style='font-variant-numeric:tabular-nums;line-height:1.5'>{separator.join(words)}</div>"


def spoken(case: Case, display: Display, state: ViewState, plane: str) -> str:
    """What a screen reader says of a plane."""
    axis = NORMAL[plane]
    first, end = display.box[axis]
    sides = display.sides(plane)
    return (
        f"{plane} plane of {case.id}, slice {state.position[axis]} of {first} to {end - 1}, {sides['left']} on the "
        f"left, {sides['top']} at the top"
    )
