"""From a state and volumes to the pixels of a plane: the same with and without a browser.

Areas are interpolated for display like the image under them, so their edges are smooth; a voxel's middle always has
the voxel's own colour.
"""

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from smml.data.case import Case
from smml.data.labels import REGIONS, LabelScheme, Region
from smml.figures.pixels import edge
from smml.figures.theme import REGION_COLOURS, rgb
from smml.modalities import subset_name
from smml.viewer.display import COLUMN, NORMAL, ROW, Display
from smml.viewer.state import ViewState
from smml.viewer.worker import Result

# What an overlay of the difference is painted in; apart for colour-blind readers, and false ones are hatched.
DIFFERENCE_COLOURS: dict[str, str] = {
    "in both": "#009E73",
    "prediction only": "#E69F00",
    "truth only": "#56B4E9",
}
# Uncertainty from 0 to 1: a ramp whose lightness alone tells the order.
UNCERTAINTY_COLOURS: tuple[str, ...] = ("#1A0A3C", "#7A1F6E", "#D24A55", "#FCA50A", "#FCFFA4")
# A contribution below 0 and above it, as in the figures of signed maps; in the middle nothing is painted.
CONTRIBUTION_COLOURS: tuple[str, ...] = ("#E66100", "#F0B27A", "#C8C8C8", "#7DBBF0", "#1E88E5")
# Probability at which a contribution has its full colour; beyond it nothing changes.
CONTRIBUTION_LIMIT = 0.5
_OUTLINE = 2  # pixels


@dataclass(frozen=True, eq=False)
class Layers:
    """The volumes of a picture, all [X, Y, Z] on the display grid; None where there is none.

    Attributes:
        image: the shown modality, float32.
        brain: where its brain is, bool.
        truth: uint8, in-memory label values.
        prediction: uint8, in-memory label values.
        uncertainty: floating, 0 to 1.
        scheme: names the label values of the truth.
        predicted_scheme: names those of the prediction.
        caption: what the overlay was made from, drawn in the picture.
        contribution: floating, -1 to 1: of the sequence to the region that the state names.
    """

    image: np.ndarray
    brain: np.ndarray
    truth: np.ndarray | None
    prediction: np.ndarray | None
    uncertainty: np.ndarray | None
    scheme: LabelScheme
    predicted_scheme: LabelScheme
    caption: str = ""
    contribution: np.ndarray | None = None


def layers_of(
    case: Case, display: Display, state: ViewState, result: Result | None, contribution: np.ndarray | None = None
) -> Layers:
    """The volumes that a state shows, turned to the display grid (views, nothing is copied).

    Args:
        case: with at least one modality.
        display: where its voxels lie.
        state: what is shown.
        result: the segmentation; None if there is none.
        contribution: floating [X, Y, Z] on the case's grid, of the sequence to the region that the state names.
    """

    def turned(volume: np.ndarray | None) -> np.ndarray | None:
        return None if volume is None else display.turned(volume)

    caption = ""
    if result is not None and state.overlay in ("prediction", "difference", "uncertainty"):
        caption = f"from {subset_name(result.subset, '+')}"
    elif state.overlay == "truth" and case.label is not None:
        caption = "truth"
    elif state.overlay == "contribution" and contribution is not None:
        caption = f"{subset_name((state.contributor,))} for {state.compared}"
    return Layers(
        image=display.turned(case.volumes[state.shown]),
        brain=display.turned(case.brains[state.shown].mask),
        truth=turned(case.label),
        prediction=turned(None if result is None else result.labels.get(state.source)),
        uncertainty=turned(None if result is None else result.uncertainty),
        scheme=case.scheme,
        predicted_scheme=case.scheme if result is None else result.scheme,
        caption=caption,
        contribution=turned(contribution),
    )


def plane_sizes(display: Display, size: int) -> dict[str, tuple[int, int]]:
    """Pixels (height, width) of every plane at one common scale; the longest edge among them has ``size`` pixels."""
    extents = [(end - first) * edge for (first, end), edge in zip(display.box, display.spacing, strict=True)]
    scale = size / max(extents)
    pixels = [max(16, round(extent * scale)) for extent in extents]
    return {plane: (pixels[ROW[plane]], pixels[COLUMN[plane]]) for plane in NORMAL}


def render_plane(state: ViewState, display: Display, layers: Layers, plane: str, shape: tuple[int, int]) -> np.ndarray:
    """One plane as drawn, with overlay, crosshair and letters.

    Args:
        state: what is shown.
        display: where voxels lie.
        layers: the volumes.
        plane: "axial", "coronal" or "sagittal".
        shape: pixels, (height, width).

    Returns:
        uint8 [height, width, 3].
    """
    picture = render_tissue(state, display, layers, plane, shape)
    image = Image.fromarray(picture)
    _draw_marks(ImageDraw.Draw(image), state, display, layers.caption, plane, shape)
    return np.asarray(image)


def render_tissue(state: ViewState, display: Display, layers: Layers, plane: str, shape: tuple[int, int]) -> np.ndarray:
    """The plane without crosshair and letters, uint8 [height, width, 3]."""
    index = state.position[NORMAL[plane]]
    low, high = state.window()
    cut = display.cut(layers.image, plane, index)
    # Without the test, a window that begins below 0 would lift the empty background to grey.
    grey = np.clip((cut - low) * (255 / (high - low)), 0, 255) * display.cut(layers.brain, plane, index)
    base = _resized(grey.astype(np.float32), shape, Image.Resampling.BICUBIC)
    picture = np.repeat(np.clip(base, 0, 255)[..., None], 3, axis=-1)

    def area(labels: np.ndarray, scheme: LabelScheme, region: Region) -> np.ndarray:
        return _resized_mask(scheme.region(display.cut(labels, plane, index), region), shape)

    def smooth(values: np.ndarray) -> np.ndarray:
        return _resized(display.cut(values, plane, index).astype(np.float32), shape, Image.Resampling.BILINEAR)

    found, wanted = layers.prediction, layers.truth
    if state.overlay in ("prediction", "truth"):
        predicted = state.overlay == "prediction"
        labels, scheme = (found, layers.predicted_scheme) if predicted else (wanted, layers.scheme)
        if labels is not None:
            # Regions are nested, so painting the larger first shows ED, NCR and ET where all three are on.
            areas = {region: area(labels, scheme, region) for region in REGIONS if region in state.regions}
            _paint_regions(picture, areas, state)
    elif state.overlay == "difference":
        if found is not None and wanted is not None:
            found_area = area(found, layers.predicted_scheme, state.compared)
            _paint_difference(picture, found_area, area(wanted, layers.scheme, state.compared), state)
    elif state.overlay == "uncertainty" and layers.uncertainty is not None:
        share = np.clip(smooth(layers.uncertainty), 0, 1)
        _paint_map(picture, uncertainty_ramp()[(share * 255).astype(np.uint8)], share, state)
    elif state.overlay == "contribution" and layers.contribution is not None:
        share = np.clip(smooth(layers.contribution) / CONTRIBUTION_LIMIT, -1, 1)
        _paint_map(picture, contribution_ramp()[np.rint((share + 1) * 127.5).astype(np.uint8)], np.abs(share), state)
    return picture.round().astype(np.uint8)


def uncertainty_ramp() -> np.ndarray:
    """Colours of uncertainty 0 to 1, float [256, 3]."""
    return _ramp(UNCERTAINTY_COLOURS)


def contribution_ramp() -> np.ndarray:
    """Colours of contributions from -``CONTRIBUTION_LIMIT`` to ``CONTRIBUTION_LIMIT``, float [256, 3]."""
    return _ramp(CONTRIBUTION_COLOURS)


def _ramp(colours: tuple[str, ...]) -> np.ndarray:
    stops = np.array([rgb(colour) for colour in colours], float)
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(np.linspace(0, 1, 256), places, stops[:, channel]) for channel in range(3)], axis=-1)


def encode_png(picture: np.ndarray, *, small: bool = False) -> bytes:
    """A picture as PNG.

    Args:
        picture: uint8 [height, width, 3].
        small: pack for size, for what is kept; a frame on screen is packed for speed.
    """
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", **({"optimize": True} if small else {"compress_level": 1}))
    return stream.getvalue()


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that pictures look the same on every machine."""
    return ImageFont.load_default(size=size)


def _paint_regions(picture: np.ndarray, areas: dict[Region, np.ndarray], state: ViewState) -> None:
    covered: dict[Region, np.ndarray] = {}
    for region, inside in areas.items():
        if state.outline:
            covered[region] = edge(inside, _OUTLINE)
            continue
        inner = [area for name, area in areas.items() if REGIONS.index(name) > REGIONS.index(region)]
        covered[region] = inside & ~np.logical_or.reduce([np.zeros_like(inside), *inner])
    for region, inside in covered.items():
        _blend(picture, inside, REGION_COLOURS[region], state)


def _paint_difference(picture: np.ndarray, found: np.ndarray, wanted: np.ndarray, state: ViewState) -> None:
    if state.outline:
        _blend(picture, edge(wanted, _OUTLINE), DIFFERENCE_COLOURS["truth only"], state)
        _blend(picture, edge(found, _OUTLINE), DIFFERENCE_COLOURS["prediction only"], state)
        return
    rows, columns = np.ogrid[: picture.shape[0], : picture.shape[1]]
    # Hatched in opposite directions: the difference can be read without any colour.
    stripes = {"prediction only": (rows + columns) % 8 < 5, "truth only": (rows - columns) % 8 < 5}
    _blend(picture, found & wanted, DIFFERENCE_COLOURS["in both"], state)
    for name, inside in (("prediction only", found & ~wanted), ("truth only", wanted & ~found)):
        _blend(picture, inside & stripes[name], DIFFERENCE_COLOURS[name], state, strength=min(1.0, 1.6 * state.opacity))
        _blend(picture, inside & ~stripes[name], DIFFERENCE_COLOURS[name], state, strength=0.5 * state.opacity)


def _paint_map(picture: np.ndarray, colours: np.ndarray, share: np.ndarray, state: ViewState) -> None:
    """Paint colours [height, width, 3] the stronger the larger their share, 0 to 1, is."""
    picture += min(1.0, 2 * state.opacity) * np.sqrt(share)[..., None] * (colours - picture)


def _blend(
    picture: np.ndarray, inside: np.ndarray, colour: str, state: ViewState, strength: float | None = None
) -> None:
    # An outline covers little, so it is painted stronger than an area.
    strength = strength if strength is not None else min(1.0, 2 * state.opacity) if state.outline else state.opacity
    picture[inside] += strength * (np.asarray(rgb(colour), float) - picture[inside])


def _resized(values: np.ndarray, shape: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    if values.shape == shape:
        return np.ascontiguousarray(values)
    image = Image.fromarray(np.ascontiguousarray(values))
    return np.array(image.resize((shape[1], shape[0]), how))


def _resized_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if not mask.any():
        return np.zeros(shape, bool)
    return _resized(mask.astype(np.uint8) * 255, shape, Image.Resampling.BILINEAR) > 127


def _draw_marks(
    draw: ImageDraw.ImageDraw, state: ViewState, display: Display, caption: str, plane: str, shape: tuple[int, int]
) -> None:
    height, width = shape
    if state.crosshair:
        across, down = display.share(plane, state.position)
        x, y, gap = across * width, down * height, 9
        for line in ((0, y, x - gap, y), (x + gap, y, width, y), (x, 0, x, y - gap), (x, y + gap, x, height)):
            if line[2] >= line[0] and line[3] >= line[1]:
                draw.line(line, fill=(120, 190, 230), width=1)
    halo: dict[str, Any] = {"stroke_width": 2, "stroke_fill": (0, 0, 0)}
    sides = display.sides(plane)
    places = {
        "left": (6, height / 2, "lm"),
        "right": (width - 6, height / 2, "rm"),
        "top": (width / 2, 5, "ma"),
        "bottom": (width / 2, height - 5, "md"),
    }
    for side, (x, y, anchor) in places.items():
        draw.text((x, y), sides[side], font=font(15), fill=(255, 255, 255), anchor=anchor, **halo)
    # Both at the top: at the bottom a long caption would run into the letter.
    words = f"{plane} {state.position[NORMAL[plane]]}" + (f"\n{caption}" if caption else "")
    draw.multiline_text(
        (6, 5), words, font=font(12), fill=(190, 190, 190), spacing=3, stroke_width=1, stroke_fill=(0, 0, 0)
    )
