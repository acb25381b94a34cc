"""Charts: loss curves of a run, and scores over the 15 subsets."""

import os

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from smml.data.labels import REGIONS
from smml.evaluation.tables import MEAN
from smml.figures.theme import BRANCH_COLOURS, REGION_COLOURS


def loss_figure(log: str | os.PathLike | pd.DataFrame, smooth: int | None = None) -> go.Figure:
    """Loss terms of a training run over its steps.

    Args:
        log: ``log.csv`` of a run, or its frame.
        smooth: steps of the running mean; None takes a twentieth of the run.
    """
    frame = log if isinstance(log, pd.DataFrame) else pd.read_csv(log)
    smooth = smooth or max(1, len(frame) // 20)
    smoothed = frame.rolling(smooth, min_periods=1).mean()
    figure = make_subplots(1, 2, subplot_titles=("segmentation, fused head", "what the branches exchange"))

    def add(column: str, name: str, colour: str, place: int, dash: str = "solid") -> None:
        line = {"color": colour, "dash": dash}
        figure.add_trace(go.Scatter(x=frame["step"], y=smoothed[column], name=name, line=line), row=1, col=place)

    add("fuse_1", "branch 1", BRANCH_COLOURS[0], 1)
    add("fuse_2", "branch 2", BRANCH_COLOURS[1], 1)
    add("teach_12", "L(1→2)", BRANCH_COLOURS[0], 2)
    add("teach_21", "L(2→1)", BRANCH_COLOURS[1], 2)
    add("relation", "L_rel", "#009E73", 2, "dash")
    add("classes", "L_cls", "#CC79A7", 2, "dot")
    figure.update_xaxes(title="step")
    figure.update_layout(
        title=f"Training losses (running mean of {smooth} steps)",
        height=380,
        width=860,
        legend={"orientation": "h", "y": -0.2},
    )
    return figure


def subset_figure(table: pd.DataFrame, title: str = "Mean Dice over the 15 subsets") -> go.Figure:
    """Mean Dice of WT, TC and ET for each subset, as a heat map that reads like the field's table.

    Args:
        table: of :func:`smml.evaluation.summary_table`.
        title: of the figure; say what data the numbers come from.
    """
    values = table[[f"Dice {region}" for region in REGIONS]].astype(float)
    figure = go.Figure(
        go.Heatmap(
            z=values.to_numpy().T,
            x=list(table.index),
            y=list(REGIONS),
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            text=[[f"{100 * v:.0f}" for v in column] for column in values.to_numpy().T],
            texttemplate="%{text}",
            colorbar={"title": "Dice"},
        )
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickangle=-40)
    figure.update_layout(title=title, height=330, width=860, margin={"b": 120})
    return figure


def drop_figure(table: pd.DataFrame, title: str = "Best subset without a sequence") -> go.Figure:
    """Dice of all four sequences against the best that is left when one is taken away.

    Args:
        table: of :func:`smml.evaluation.summary_table`.
        title: above the chart.
    """
    sequences = ["FLAIR", "T1ce", "T1", "T2"]
    rows = table.drop(index=MEAN, errors="ignore")
    figure = go.Figure()
    for region in REGIONS:
        column = f"Dice {region}"
        full = float(rows.loc["+".join(sequences), column])
        best = [
            float(rows[[name not in subset.split("+") for subset in rows.index]][column].max()) for name in sequences
        ]
        figure.add_trace(
            go.Bar(
                x=["all four", *[f"without {name}" for name in sequences]],
                y=[full, *best],
                name=region,
                marker={"color": REGION_COLOURS[region], "line": {"color": "#555555", "width": 1}},
            )
        )
    figure.update_yaxes(range=[0, 1], title="mean Dice")
    figure.update_layout(title=title, barmode="group", height=340, width=860)
    return figure
