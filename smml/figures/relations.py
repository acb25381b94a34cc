"""How tokens relate: similarity matrices side by side, and tokens of both branches as points."""

from collections.abc import Mapping, Sequence

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


def token_figure(
    panels: Mapping[str, np.ndarray],
    groups: Sequence[str],
    colours: Mapping[str, str],
    *,
    columns: int | None = None,
    title: str = "",
    size: int = 250,
) -> go.Figure:
    """Tokens as points, one panel a set of features, coloured by what each token covers.

    Args:
        panels: by title, [N, 2], such as two principal components.
        groups: [N], which group each token is of; the same in every panel.
        colours: of the groups, in the order of the legend; those drawn last lie on top.
        columns: panels in a row; None puts all in one.
        title: of the figure.
        size: width of a panel on screen, pixels.
    """
    names, of = list(panels), np.asarray(groups)
    columns = min(columns or len(names), len(names))
    rows = -(-len(names) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=names, horizontal_spacing=0.06, vertical_spacing=0.2 / rows
    )  # fmt: skip
    for number, points in enumerate(panels.values()):
        row, column = divmod(number, columns)
        for group, colour in colours.items():
            x, y = np.asarray(points)[of == group].T
            marker = {"color": colour, "size": 7, "line": {"color": "white", "width": 0.5}}
            trace = go.Scatter(
                x=x, y=y, mode="markers", marker=marker, name=group, legendgroup=group, showlegend=number == 0
            )
            figure.add_trace(trace, row=row + 1, col=column + 1)
    figure.update_xaxes(showticklabels=False)
    # One unit across and up, so that distances and angles in a panel can be compared.
    figure.update_yaxes(showticklabels=False)
    for number in range(len(names)):
        figure.update_yaxes(
            scaleanchor=f"x{number + 1 if number else ''}", row=number // columns + 1, col=number % columns + 1
        )
    figure.update_layout(
        title=title,
        width=size * columns + 60,
        height=size * rows + 60 * rows + (90 if title else 50),
        margin={"l": 20, "r": 20, "t": 90 if title else 50, "b": 60},
        legend={"orientation": "h", "y": -0.06, "yanchor": "top", "x": 0.5, "xanchor": "center"},
    )
    return figure
