"""A cohort to look at: the table as one HTML file, and a slice of each case with the outlines of the regions."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from smml.cohort.places import PAGE, SLICES
from smml.cohort.rows import CohortRow, volume_of
from smml.cohort.visits import Change
from smml.data.case import Case
from smml.data.labels import REGIONS
from smml.evaluation.page import page
from smml.evaluation.sheets import GIVEN, NOT_GIVEN, Kind, Section, Sheet, number
from smml.figures.pixels import edge
from smml.figures.slices import axial_picture, axial_pixel, to_canonical, widest_slice
from smml.figures.theme import REGION_COLOURS, rgb
from smml.files import replacing, write_text
from smml.inference import Segmentation
from smml.modalities import DISPLAY_NAMES, MODALITIES, subset_name
from smml.models.intervals import Volume

# Pixels along the longer side of a slice, and grey values that are kept of it: files stay small.
SIDE, _GREYS = 240, 61

_OUTLINES = {"WT": "yellow", "TC": "blue", "ET": "orange"}
_SEEN = (
    "The axial slice with most tumour, a voxel of its core counted eleven times, of the first sequence used; without "
    "tumour the middle one. The patient's right is on the left. Outlines: "
    f"{', '.join(f'{region} {said}' for region, said in _OUTLINES.items())}."
)
# Of volumes too: an interval of 90 % in the columns "from" and "to".
_CHANGES = (
    "By how much each volume changed from one visit of a patient to the next. From and to hold the true change of 90 % "
    "of the pairs, if both visits are like the cases on which the model's intervals were fitted; without intervals, no "
    "one knows how much of a change is the model's error."
)


def write_slice(path: Path, case: Case, segmentation: Segmentation) -> None:
    """Write a PNG of one axial slice of a case with the outlines of its regions.

    Args:
        path: of the file.
        case: that was segmented; its first sequence (FLAIR if there is one) lies under the outlines.
        segmentation: of it.
    """
    volume = to_canonical(next(iter(case.volumes.values())), case.affine)
    labels = to_canonical(segmentation.labels, case.affine)
    z, (tall, wide) = widest_slice(labels, segmentation.scheme), axial_pixel(case.affine)
    millimetres = volume.shape[0] * wide, volume.shape[1] * tall
    width, height = (max(1, round(SIDE * length / max(millimetres))) for length in millimetres)
    size = width, height
    grey = Image.fromarray(axial_picture(volume, z)).convert("L").resize(size, Image.Resampling.BICUBIC)
    # Greys first and the colours of the outlines behind them, in a palette: a third of the bytes of full colour.
    pixels = np.round(np.asarray(grey) * ((_GREYS - 1) / 255)).astype(np.uint8)
    palette = [round(255 * level / (_GREYS - 1)) for level in range(_GREYS) for _ in range(3)]
    for place, region in enumerate(REGIONS):
        inside = segmentation.scheme.region(labels[:, :, z], region).T[::-1, ::-1]
        large = Image.fromarray(inside.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        pixels[edge(np.asarray(large) > 0)] = _GREYS + place
        palette += rgb(REGION_COLOURS[region])
    picture = Image.fromarray(pixels)
    picture.putpalette(palette)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    with replacing(path) as temporary:
        temporary.write_bytes(stream.getvalue())


def write_page(folder: Path, rows: Mapping[str, CohortRow], title: str, changes: Sequence[Change] = ()) -> Path:
    """Write the page of a cohort, and give its path.

    Args:
        folder: of the answers.
        rows: by case.
        title: the heading.
        changes: between visits.
    """
    ordered = [rows[case] for case in sorted(rows)]
    done, failed = [row for row in ordered if not row.reason], [row for row in ordered if row.reason]
    sections = []
    if failed:
        cells = tuple((row.case, row.reason) for row in failed)
        sections.append(Section("Not segmented", Sheet((("case", "word"), ("reason", "word")), cells)))
    if done:
        sections.append(Section("Segmented", _sheet(done), after=_SEEN))
    if changes:
        sections.append(Section("Between visits", _changes(changes), _CHANGES))
    gallery = [
        (_caption(row), picture.read_bytes())
        for row in done
        if (picture := folder / SLICES / f"{row.case}.png").exists()
    ]
    said = [
        f"{len(done)} of {len(ordered)} cases segmented; volumes in ml.",
        "For research and teaching; not a medical device.",
    ]
    write_text(folder / PAGE, page(title, said, sections, gallery=gallery))
    return folder / PAGE


def _sheet(rows: list[CohortRow]) -> Sheet:
    heads: list[tuple[str, Kind]] = [("case", "word"), *((DISPLAY_NAMES[name], "mark") for name in MODALITIES)]
    ends = any(not math.isnan(volume.low) for row in rows for volume in _volumes(row))
    for region in REGIONS:
        heads.append((f"{region}, ml", "number"))
        heads += [(f"{region} {end}", "number") for end in ("from", "to") if ends]
    heads += [("seconds", "number"), ("warnings", "word"), ("labels", "word")]
    return Sheet(tuple(heads), tuple(_cells(row, ends) for row in rows))


def _volumes(row: CohortRow) -> list[Volume]:
    """Those of WT, TC and ET; NaN where the row has none."""
    return [volume_of(row, region) or Volume(math.nan) for region in REGIONS]


def _cells(row: CohortRow, ends: bool) -> tuple[str, ...]:
    volumes = _volumes(row)
    return (
        row.case,
        *(GIVEN if name in row.sequences else NOT_GIVEN for name in MODALITIES),
        *(number(ml) for each in volumes for ml in ((each.ml, each.low, each.high) if ends else (each.ml,))),
        number(row.seconds),
        "; ".join(row.warnings),
        row.output,
    )


def _changes(changes: Sequence[Change]) -> Sheet:
    heads: tuple[tuple[str, Kind], ...] = (
        ("patient", "word"), ("before", "word"), ("after", "word"), ("region", "word"),
        ("change, ml", "number"), ("from", "number"), ("to", "number"),
    )  # fmt: skip
    cells = tuple(
        (
            each.patient, each.before, each.after, each.region,
            *(number(ml) for ml in (each.volume.ml, each.volume.low, each.volume.high)),
        )
        for each in changes
    )  # fmt: skip
    return Sheet(heads, cells)


def _caption(row: CohortRow) -> str:
    found = {region: volume for region in REGIONS if (volume := volume_of(row, region))}
    volumes = ", ".join(f"{region} {volume.ml:.1f}" for region, volume in found.items())
    warned = "; with a warning" if row.warnings else ""
    return f"{row.case}: {subset_name(row.sequences)}; {volumes} ml{warned}"
