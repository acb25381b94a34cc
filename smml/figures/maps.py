"""Signed maps of a slice in one colour scale, with the truth as outlines: who teaches, and how much."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from smml.figures.theme import BRANCH_COLOURS


def map_figure(
    maps: Mapping[str, np.ndarray],
    labels: np.ndarray,
    brain: np.ndarray,
    *,
    z: int,
    limit: float,
    unit: str,
    title: str = "",
    size: int = 250,
    pixel: tuple[float, float] = (1.0, 1.0),
) -> go.Figure:
    """Axial slices of signed maps, blue above 0 and orange below, in one scale; nothing is drawn outside the brain.

    Lines go round the whole tumour (solid) and the enhancing tumour (dotted). As in other slices the patient's right is
    on the left and the front at the top.

    Args:
        maps: by title, RAS+ [X, Y, Z].
        labels: memory values in RAS+, [X, Y, Z].
        brain: bool [X, Y, Z].
        z: index of the slice.
        limit: value of the full colours; what is beyond has them too.
        unit: beside the scale.
        title: of the figure.
        size: width of a picture on screen, pixels.
        pixel: height and width of a voxel in the picture, in mm (:func:`smml.figures.axial_pixel`).
    """
    figure = make_subplots(1, len(maps), subplot_titles=list(maps), horizontal_spacing=0.01)
    inside_brain = _turned(brain, z)
    rows, columns = (np.flatnonzero(inside_brain.any(axis=axis)) for axis in (1, 0))
    height, width, ratio = np.ptp(rows) + 3, np.ptp(columns) + 3, pixel[0] / pixel[1]
    for column, values in enumerate(maps.values(), start=1):
        picture = np.where(inside_brain, _turned(values, z), np.nan)
        heat = go.Heatmap(z=np.round(picture, 4), coloraxis="coloraxis", hoverinfo="z")
        figure.add_trace(heat, row=1, col=column)
        for inside, dash in ((labels > 0, "solid"), (labels == 3, "dot")):
            figure.add_trace(_outline(_turned(inside, z), dash), row=1, col=column)
        figure.update_yaxes(scaleanchor=f"x{column}" if column > 1 else "x", scaleratio=ratio, row=1, col=column)
    figure.update_xaxes(visible=False, constrain="domain", range=[columns[0] - 1.5, columns[-1] + 1.5])
    figure.update_yaxes(visible=False, constrain="domain", range=[rows[-1] + 1.5, rows[0] - 1.5])
    blue, orange = BRANCH_COLOURS
    figure.update_layout(
        title=title,
        plot_bgcolor="#d9d9d9",
        coloraxis={
            "colorscale": [[0, orange], [0.5, "white"], [1, blue]],
            "cmin": -limit,
            "cmax": limit,
            "colorbar": {"title": {"text": unit, "side": "right"}, "thickness": 14},
        },
        width=size * len(maps) + 120,
        height=round(size * ratio * height / width) + (100 if title else 60),
        margin={"l": 10, "r": 10, "t": 80 if title else 40, "b": 10},
    )
    return figure


def _turned(volume: np.ndarray, z: int) -> np.ndarray:
    """A slice [X, Y, Z] -> [rows, columns]: X runs to the patient's left as the column grows, Y to the back."""
    return np.asarray(volume)[:, :, z].T[::-1, ::-1]


def _outline(inside: np.ndarray, dash: str) -> go.Contour:
    """The edge of an area, as a line."""
    return go.Contour(
        z=inside.astype(float),
        contours={"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
        line={"color": "black", "width": 1.5, "dash": dash},
        showscale=False,
        showlegend=False,
        hoverinfo="skip",
    )
