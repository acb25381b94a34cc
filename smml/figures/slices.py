"""Axial slices as pictures: radiological convention, letters at the sides, fixed colours with a legend."""

import base64
import io
from collections.abc import Mapping

import nibabel as nib
import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from smml.data.brain import find_brain
from smml.data.case import Case
from smml.data.labels import BRATS_2023, LabelScheme
from smml.errors import InputError
from smml.figures.pixels import intensity_window
from smml.figures.theme import CLASS_COLOURS, rgb
from smml.modalities import DISPLAY_NAMES, MODALITIES


def to_canonical(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn a volume to RAS+ axes (nibabel's closest canonical).

    Args:
        volume: [X, Y, Z] along the axes of its file.
        affine: voxel index -> mm, [4, 4].
    """
    return nib.apply_orientation(volume, nib.io_orientation(affine))


def axial_pixel(affine: np.ndarray) -> tuple[float, float]:
    """Height and width in mm of a voxel in a picture of an axial slice.

    Args:
        affine: voxel index -> mm of the case's own grid, [4, 4].
    """
    edges, order = nib.affines.voxel_sizes(affine), np.argsort(nib.io_orientation(affine)[:, 0])
    return float(edges[order[1]]), float(edges[order[0]])


def widest_slice(labels: np.ndarray, scheme: LabelScheme | None = None) -> int:
    """Index along Z of the axial slice with most tumour, in which a voxel of the core counts eleven times; else the
    middle.

    Args:
        labels: memory values in RAS+, [X, Y, Z].
        scheme: names the label values; None takes that of 2021 and 2023.
    """
    scheme = scheme or BRATS_2023
    # Not all that has a label is tumour: a resection cavity is none.
    whole, core = (scheme.region(labels, region).sum(axis=(0, 1)) for region in ("WT", "TC"))
    score = core * 10 + whole
    return int(score.argmax()) if score.any() else labels.shape[2] // 2


def axial_picture(
    volume: np.ndarray,
    z: int,
    labels: np.ndarray | None = None,
    scheme: LabelScheme | None = None,
    opacity: float = 0.45,
    window: tuple[float, float] | None = None,
) -> np.ndarray:
    """One axial slice as uint8 [rows, columns, 3], patient's right on the left of the picture, front at the top.

    Args:
        volume: RAS+ [X, Y, Z].
        z: slice.
        labels: RAS+ [X, Y, Z], painted over the image.
        scheme: names the label values; needed with ``labels``.
        opacity: of the paint.
        window: intensities shown black and white; None takes :func:`smml.figures.intensity_window`.

    Raises:
        InputError: labels without their scheme.
    """
    low, high = intensity_window(volume) if window is None else window
    brain = find_brain(volume).mask[:, :, z]
    grey = np.clip((volume[:, :, z] - low) / max(high - low, 1e-6), 0, 1) * brain
    picture = np.repeat((255 * grey)[..., None], 3, axis=-1)
    if labels is not None:
        if scheme is None:
            raise InputError("labels were given without a scheme that names their values; give case.scheme too")
        for value, name in enumerate(scheme.classes):
            if value:
                inside = labels[:, :, z] == value
                picture[inside] = (1 - opacity) * picture[inside] + opacity * np.asarray(rgb(CLASS_COLOURS[name]))
    # X runs to the patient's left as the column grows, Y to the back as the row grows.
    return np.ascontiguousarray(picture.transpose(1, 0, 2)[::-1, ::-1].round().astype(np.uint8))


def panels(
    pictures: Mapping[str, np.ndarray],
    columns: int | None = None,
    title: str = "",
    size: int = 165,
    pixel: tuple[float, float] = (1.0, 1.0),
) -> go.Figure:
    """Pictures side by side, each under its name.

    Args:
        pictures: by title, uint8 [rows, columns, 3].
        columns: how many in a row; None puts all in one.
        title: of the figure.
        size: width of a picture on screen, pixels.
        pixel: height and width of their pixels, in mm; of a case's slices those of :func:`axial_pixel`.
    """
    names = list(pictures)
    columns = min(columns or len(names), len(names))
    rows = -(-len(names) // columns)
    figure = make_subplots(rows, columns, subplot_titles=names, horizontal_spacing=0.01, vertical_spacing=0.16 / rows)
    ratio = 1.0
    for number, picture in enumerate(pictures.values()):
        row, column = divmod(number, columns)
        figure.add_trace(go.Image(source=_data_uri(picture, pixel), hoverinfo="skip"), row=row + 1, col=column + 1)
        ratio = picture.shape[0] * pixel[0] / (picture.shape[1] * pixel[1])
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(
        title=title,
        width=size * columns + 30,
        height=round(size * ratio * rows + 50 * rows + (50 if title else 10)),
        margin={"l": 10, "r": 10, "t": 80 if title else 40, "b": 25},
    )
    return figure


def modality_figure(case: Case, *, z: int | None = None, title: str | None = None) -> go.Figure:
    """The case's sequences side by side and, if it has a label, the truth on the first of them.

    Args:
        case: to show.
        z: index of the axial slice in RAS+; None takes :func:`widest_slice`.
        title: above the pictures; None names the case and the slice.
    """
    labels = None if case.label is None else to_canonical(case.label, case.affine)
    volumes = {name: to_canonical(volume, case.affine) for name, volume in case.volumes.items()}
    first = next(iter(volumes.values()))
    if z is None:
        z = widest_slice(labels if labels is not None else np.zeros(first.shape, np.uint8), case.scheme)
    pictures = {DISPLAY_NAMES[name]: axial_picture(volume, z) for name, volume in volumes.items()}
    if labels is not None:
        pictures["truth"] = axial_picture(first, z, labels, case.scheme)
    title = f"{case.id}, axial slice {z}" if title is None else title
    figure = panels(pictures, title=title, pixel=axial_pixel(case.affine))
    return add_class_legend(add_sides(figure), case.scheme) if labels is not None else add_sides(figure)


def segmentation_figure(
    case: Case,
    segmentations: Mapping[str, np.ndarray],
    *,
    background: str | None = None,
    z: int | None = None,
    columns: int | None = None,
    title: str = "",
) -> go.Figure:
    """Segmentations of one case beside its truth.

    Args:
        case: with a label.
        segmentations: by title, uint8 [X, Y, Z] on the case's own grid.
        background: modality under the paint; None takes the first that the case has.
        z: axial slice in RAS+; None takes :func:`widest_slice` of the truth.
        columns: pictures in a row.
        title: of the figure.

    Raises:
        InputError: the case has no label.
    """
    if case.label is None:
        raise InputError(f"case {case.id} has no label to show beside the segmentations; use axial_picture and panels")
    shown = background or next(name for name in MODALITIES if name in case.volumes)
    volume = to_canonical(case.volumes[shown], case.affine)
    truth = to_canonical(case.label, case.affine)
    z = widest_slice(truth, case.scheme) if z is None else z
    pictures = {"truth": axial_picture(volume, z, truth, case.scheme)}
    for name, labels in segmentations.items():
        pictures[name] = axial_picture(volume, z, to_canonical(labels, case.affine), case.scheme)
    figure = panels(pictures, columns=columns, title=title, pixel=axial_pixel(case.affine))
    return add_class_legend(add_sides(figure), case.scheme)


def add_sides(figure: go.Figure) -> go.Figure:
    """Mark the patient's right and left on the first picture (radiological convention)."""
    for letter, x in (("R", 0.03), ("L", 0.97)):
        figure.add_annotation(
            text=letter, x=x, y=0.5, xref="x domain", yref="y domain", showarrow=False, font={"color": "#bbbbbb"}
        )
    return figure


def add_class_legend(figure: go.Figure, scheme: LabelScheme) -> go.Figure:
    """A legend of the tumour classes below the pictures.

    Args:
        figure: of :func:`panels`; changed and returned.
        scheme: names the classes.
    """
    for name in scheme.classes[1:]:
        marker = {"color": CLASS_COLOURS[name], "symbol": "square", "size": 12}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name))
    figure.update_layout(legend={"orientation": "h", "y": 0, "yanchor": "top", "x": 0.5, "xanchor": "center"})
    return figure


def heat_picture(volume: np.ndarray, z: int, values: np.ndarray, colour: str, opacity: float = 0.8) -> np.ndarray:
    """An axial slice with a map painted over it in one colour, uint8 [rows, columns, 3].

    Args:
        volume: intensities in RAS+, [X, Y, Z].
        z: index of the slice.
        values: the map in [0, 1], [X, Y, Z]: 0 is transparent.
        colour: "#RRGGBB".
        opacity: where the map is 1.
    """
    picture = axial_picture(volume, z).astype(float)
    strength = opacity * np.clip(values[:, :, z], 0, 1).T[::-1, ::-1, None]
    return ((1 - strength) * picture + strength * np.asarray(rgb(colour))).round().astype(np.uint8)


def _data_uri(picture: np.ndarray, pixel: tuple[float, float]) -> str:
    """A picture three times as large, and in its true shape, as an address."""
    stream = io.BytesIO()
    tall, wide = (round(3 * length * edge / min(pixel)) for length, edge in zip(picture.shape[:2], pixel, strict=True))
    Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
