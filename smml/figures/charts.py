"""Charts of scores over the 15 subsets."""

import pandas as pd
import plotly.graph_objects as go

from smml.data.labels import REGIONS
from smml.evaluation.tables import MEAN
from smml.figures.theme import REGION_COLOURS


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
