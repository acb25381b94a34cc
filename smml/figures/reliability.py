"""Reliability: what the model says against what is there."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from smml.data.labels import REGIONS
from smml.evaluation.calibration import Calibration

# By number of sequences: from Okabe and Ito's palette, and marks for readers without colours.
_COLOURS = ("#D55E00", "#CC79A7", "#009E73", "#0072B2")
_MARKS = ("circle", "square", "diamond", "triangle-up")


def reliability_figure(
    calibration: Calibration, title: str = "Does the model know how sure it may be?", *, fewest: int = 100
) -> go.Figure:
    """The share of voxels that belong to a region against the probability that the model gives them.

    Args:
        calibration: sums over voxels, as of :func:`smml.evaluation.measure_calibration`.
        title: of the figure; say what data it comes from, and whether its probabilities are tempered.
        fewest: bins of fewer voxels are left out, because their share is chance.

    Returns:
        A panel for each of WT, TC and ET, in it a curve for each number of sequences that has voxels, a point for each
        bin. On the diagonal a model says what is true; below it, it says too much.
    """
    figure = make_subplots(1, len(REGIONS), subplot_titles=REGIONS, shared_yaxes=True, horizontal_spacing=0.03)
    for place, _ in enumerate(REGIONS):
        line = {"color": "#999999", "dash": "dash"}
        figure.add_trace(
            go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, name="as it should be", showlegend=not place),
            row=1,
            col=place + 1,
        )
        for row, voxels in enumerate(calibration.voxels[:, place]):
            shown = voxels >= max(1, fewest)
            if not shown.any():
                continue
            one = "" if row == 0 else "s"
            figure.add_trace(
                go.Scatter(
                    x=calibration.probability[row, place][shown] / voxels[shown],
                    y=calibration.inside[row, place][shown] / voxels[shown],
                    customdata=voxels[shown],
                    mode="lines+markers", name=f"{row + 1} sequence{one}",
                    legendgroup=str(row), showlegend=not place,
                    line={"color": _COLOURS[row]}, marker={"symbol": _MARKS[row], "size": 7},
                    hovertemplate="said %{x:.2f}, true %{y:.2f} (%{customdata:,} voxels)<extra></extra>",
                ),
                row=1,
                col=place + 1,
            )  # fmt: skip
    figure.update_xaxes(range=[0, 1], title="probability that the model gives", constrain="domain")
    figure.update_yaxes(range=[0, 1], constrain="domain")
    figure.update_yaxes(title="share in the region", col=1)
    figure.update_layout(title=title, height=400, width=980, legend={"orientation": "h", "y": -0.2})
    return figure
