"""How tokens relate: similarity matrices side by side."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots


def matrix_figure(matrices: Mapping[str, np.ndarray], *, title: str = "", size: int = 250) -> go.Figure:
    """Square matrices side by side in one colour scale that is white at 0.

    Args:
        matrices: by title, [N, N]; N of 12 or less prints the numbers.
        title: of the figure.
        size: width of a matrix on screen, pixels.
    """
    arrays = [np.asarray(matrix, float) for matrix in matrices.values()]
    largest = max((float(np.nanmax(np.abs(array))) for array in arrays), default=1.0) or 1.0
    figure = make_subplots(1, len(arrays), subplot_titles=list(matrices), horizontal_spacing=0.04)
    for column, array in enumerate(arrays, start=1):
        numbers = [[f"{value:.2f}" for value in row] for row in array] if len(array) <= 12 else None
        trace = go.Heatmap(z=array, coloraxis="coloraxis", text=numbers, texttemplate="%{text}" if numbers else None)
        figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x", constrain="domain")
    for column in range(2, len(arrays) + 1):
        figure.update_yaxes(scaleanchor=f"x{column}", row=1, col=column)
    figure.update_layout(
        title=title,
        coloraxis={"colorscale": "RdBu", "cmin": -largest, "cmax": largest},
        width=size * len(arrays) + 120,
        height=size + (110 if title else 70),
        margin={"l": 10, "r": 10, "t": 90 if title else 50, "b": 10},
    )
    return figure
