"""The words and charts beside the planes: legend, scores, read-out and the bars of the subsets, as small HTML."""

import math
from collections.abc import Mapping
from html import escape

import nibabel as nib
import numpy as np

from smml.data.case import Case
from smml.data.labels import REGIONS, LabelScheme, Region
from smml.figures.theme import REGION_COLOURS
from smml.inference import Contributions
from smml.modalities import DISPLAY_NAMES, MODALITIES, SUBSETS, Subset, subset_name
from smml.models.intervals import Volume
from smml.viewer.display import NORMAL, Display
from smml.viewer.render import CONTRIBUTION_COLOURS, CONTRIBUTION_LIMIT, DIFFERENCE_COLOURS, UNCERTAINTY_COLOURS
from smml.viewer.state import ViewState
from smml.viewer.worker import RegionScore, RegionScores, Result

# Names of the parts that are seen when all three nested regions are painted.
_PARTS = {
    "WT": "oedema (WT outside TC)",
    "TC": "core that does not enhance (TC outside ET)",
    "ET": "enhancing tumour (ET)",
}
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
    if state.overlay == "contribution":
        full, half = f"{CONTRIBUTION_LIMIT:g}", f"{CONTRIBUTION_LIMIT / 2:g}"
        meanings = (f"less likely, by {full} or more", f"by {half}", "no change: not painted", f"by {half}")
        return list(zip(CONTRIBUTION_COLOURS, (*meanings, f"more likely, by {full} or more"), strict=True))
    return []


def legend_title(state: ViewState) -> str:
    """What the overlay is, in words."""
    return {
        "prediction": f"prediction, {state.source}",
        "truth": "truth",
        "difference": "prediction against truth" + ("" if state.outline else "; false ones hatched"),
        "uncertainty": "disagreement of the two branches",
        "contribution": f"{DISPLAY_NAMES[state.contributor]} makes {state.compared} here",
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


def scores_html(
    scores: RegionScores | None,
    subset: Subset,
    source: str,
    *,
    truth: bool,
    volumes: Mapping[Region, Volume] | None = None,
    fitted_on: int | None = None,
) -> str:
    """Dice, HD95 and volume of the shown prediction, one row per region; words where the truth lacks the region.

    Args:
        scores: against the truth; None if they are not computed yet, or there is no truth.
        subset: the sequences that the prediction was made from.
        source: whose prediction it is.
        truth: whether the case has a truth.
        volumes: of the prediction, with their intervals if it has some; None if there is no prediction yet.
        fitted_on: how many cases the intervals were fitted on.
    """
    with_intervals = volumes is not None and not any(math.isnan(volume.low) for volume in volumes.values())
    heads = (["Dice", "HD95 mm"] if truth else []) + ["ml"] + (["90 % interval, ml"] if with_intervals else [])
    rows = []
    for region in REGIONS:
        score = None if scores is None else scores[region]
        cells = []
        if score is not None and score.words:
            cells = [f"<td colspan='2' style='{_RIGHT}'>{score.words}</td>"]
        elif truth:
            cells = [_cell("…")] * 2 if score is None else [_cell(f"{score.dice:.3f}"), _cell(_millimetres(score.hd95))]
        volume = None if volumes is None else volumes[region]
        cells.append(_cell("…" if volume is None else f"{volume.ml:.1f}"))
        if with_intervals and volume is not None:
            cells.append(_cell(f"{volume.low:.1f} to {volume.high:.1f}"))
        rows.append(f"<tr><td>{_region_html(region)}</td>{''.join(cells)}</tr>")
    notes = [] if truth else ["This case has no truth to score against."]
    if with_intervals:
        notes.append(
            f"The intervals hold the true volumes of 90 % of cases like the {fitted_on} that they were fitted on. "
            "Fitted on simulated cases, they promise nothing of patients."
        )
    return (
        f"<div style='line-height:1.35'><b>from {escape(subset_name(subset, ' + '))}</b>, {escape(source)}"
        f"{_table(heads, rows)}{''.join(f'<div style={_NOTE!r}>{note}</div>' for note in notes)}</div>"
    )


def contributions_html(found: Contributions | None, state: ViewState) -> str:
    """What each sequence brought to the volumes, in ml; "" unless the overlay is that of contributions.

    Args:
        found: of the case; None if they are not computed yet.
        state: what is shown.
    """
    if state.overlay != "contribution":
        return ""
    if found is None:
        return f"<div style='{_NOTE}'>Not computed yet: it takes as long as the segmentations from all subsets.</div>"
    rows = []
    for name, sums in contribution_sums(found).items():
        cells = []
        for region in REGIONS:
            painted = name == DISPLAY_NAMES[state.contributor] and region == state.compared
            cells.append(_cell(sums[region], "font-weight:bold;background:rgba(0,114,178,.25)" if painted else ""))
        rows.append(f"<tr><td>{name}</td>{''.join(cells)}</tr>")
    note = (
        f"Shapley values of the {len(found.modalities)} sequences that the case has, whatever is checked above: what a "
        "sequence adds to the probability when it joins the others, averaged over all orders in which they can join, "
        "and summed over the brain. Before any sequence a voxel has the share that such voxels had in training. This "
        "says what moved the network's answer, not whether it moved it to the truth."
    )
    heads = [f"{_region_html(region)}, ml" for region in REGIONS]
    return f"<div style='line-height:1.35'>{_table(heads, rows)}<div style='{_NOTE}'>{note}</div></div>"


def contribution_sums(found: Contributions) -> dict[str, dict[Region, str]]:
    """Volumes in ml for people, from what is expected without any sequence to what is expected with all."""
    rows = {"before any sequence": {region: f"{found.prevalence[region] * found.brain_ml:.1f}" for region in REGIONS}}
    for name in found.modalities:
        rows[DISPLAY_NAMES[name]] = {region: f"{found.ml[name][region]:+.1f}" for region in REGIONS}
    rows["expected volume"] = {region: f"{found.expected_ml[region]:.1f}" for region in REGIONS}
    return rows


# Styles of cells and of what stands below a table.
_RIGHT = "text-align:right;padding-left:18px"
# Opacity, not a grey: a notebook's theme may be dark.
_NOTE = "max-width:62em;opacity:.8;font-size:90%"


def _cell(text: str, style: str = "") -> str:
    return f"<td style='{_RIGHT};{style}'>{text}</td>"


def _region_html(region: Region) -> str:
    return f"<span style='color:{REGION_COLOURS[region]};-webkit-text-stroke:.4px #555'>■</span> {region}"


def _table(heads: list[str], rows: list[str]) -> str:
    """A table whose first column has no head."""
    cells = "".join(f"<th style='{_RIGHT}'>{head}</th>" for head in heads)
    return (
        "<table style='border-collapse:collapse;font-variant-numeric:tabular-nums'>"
        f"<tr><th></th>{cells}</tr>{''.join(rows)}</table>"
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


def class_html(scheme: LabelScheme, value: int) -> str:
    """The name of a class, and before it the colour in which the planes show it: that of its innermost region.

    Args:
        scheme: names the label values.
        value: in memory; the background and what is in no region has no colour.
    """
    inside = [region for region in REGIONS if value in scheme.regions[region]]
    square = (
        f"<span style='color:{REGION_COLOURS[inside[-1]]};-webkit-text-stroke:.4px #555'>■</span> " if inside else ""
    )
    return square + escape(scheme.classes[value])


def heading_html(case: Case, display: Display) -> str:
    """Name, grid and convention of the case."""
    spacing = " × ".join(f"{edge:.3g}" for edge in case.spacing)
    tilt = f"; tilted by {display.tilt:.0f}° against the scanner's axes" if display.tilt > 1 else ""
    return (
        f"<b>{escape(case.id)}</b> &nbsp; {' × '.join(map(str, case.shape))} voxels of {spacing} mm, stored "
        f"{''.join(nib.aff2axcodes(case.affine))}{tilt}. Radiological convention: the patient's right is on the left. "
        "<i>For research and teaching only.</i>"
    )


def readout_html(
    case: Case, display: Display, state: ViewState, result: Result | None, contribution: np.ndarray | None = None
) -> str:
    """What lies under the crosshair: voxel of the file, mm, intensities, labels; and the window.

    Args:
        case: with at least one modality.
        display: where its voxels lie.
        state: what is shown.
        result: the segmentation; None if there is none.
        contribution: floating [X, Y, Z] on the case's grid, of the sequence to the region that the state names.
    """
    voxel = display.file_voxel(state.position)
    places = zip(("RL", "AP", "SI"), display.millimetres(state.position), strict=True)
    low, high = state.window()
    words = [
        f"voxel {voxel[0]}, {voxel[1]}, {voxel[2]}",
        " &nbsp;".join(f"{letters[int(value < 0)]} {abs(value):.1f}" for letters, value in places) + " mm",
        " &nbsp;".join(f"{DISPLAY_NAMES[name]} {volume[voxel]:.4g}" for name, volume in case.volumes.items()),
    ]
    if case.label is not None:
        words.append(f"truth {class_html(case.scheme, int(case.label[voxel]))}")
    if result is not None:
        words.append(f"predicted {class_html(result.scheme, int(result.labels[state.source][voxel]))}")
        if result.uncertainty is not None:
            words.append(f"uncertainty {float(result.uncertainty[voxel]):.2f}")
    if state.overlay == "contribution" and contribution is not None:
        share = float(contribution[voxel])
        words.append(f"{DISPLAY_NAMES[state.contributor]} to the probability of {state.compared} {share:+.2f}")
    words.append(f"window {high - low:.4g}, level {(low + high) / 2:.4g}")
    separator = " <span style='color:#bbb'>|</span> "
    return f"<div style='font-variant-numeric:tabular-nums;line-height:1.5'>{separator.join(words)}</div>"


def spoken(case: Case, display: Display, state: ViewState, plane: str, result: Result | None = None) -> str:
    """What a screen reader says of a plane: its slice, what lies under the crosshair, and its sides.

    Args:
        case: with at least one modality.
        display: where its voxels lie.
        state: what is shown.
        plane: "axial", "coronal" or "sagittal".
        result: the segmentation; None if there is none.
    """
    axis = NORMAL[plane]
    first, end = display.box[axis]
    sides, voxel = display.sides(plane), display.file_voxel(state.position)
    words = [f"{plane} plane of {case.id}, slice {state.position[axis]} of {first} to {end - 1}"]
    if case.label is not None:
        words.append(f"truth {case.scheme.classes[int(case.label[voxel])]}")
    if result is not None:
        words.append(f"predicted {result.scheme.classes[int(result.labels[state.source][voxel])]}")
    return ", ".join([*words, f"{sides['left']} on the left", f"{sides['top']} at the top"])
