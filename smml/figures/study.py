"""The ablation study in one picture: what each part of the method is worth, with its interval."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

if TYPE_CHECKING:
    import pandas as pd

    from smml.study import Study

_COLOURS = {"WT": "#B8A800", "TC": "#0072B2", "ET": "#D55E00", "mean": "#333333"}


def study_figure(
    study: "Study", title: str = "What each part is worth", *, changes: "pd.DataFrame | None" = None
) -> go.Figure:
    """Differences in Dice between arms and their parents, a panel for each of WT, TC, ET and their mean.

    Args:
        study: of :func:`smml.study.read_study`.
        title: of the figure; say what data it comes from.
        changes: of :func:`smml.study.compare_arms`, if it is at hand.

    Returns:
        Points are means over seeds and cases in Dice points, bars the 95 % intervals of the paired bootstrap; an
        interval that crosses the line at 0 has not shown a difference.
    """
    # Here, as a study brings in all of training, which no other figure needs.
    from smml.study import ARMS, READINGS, compare_arms
    from smml.study.report import MEASURES

    changes = compare_arms(study) if changes is None else changes
    names = ARMS | READINGS
    # "(a)", and for those that came later what they change: "(e) both-even".
    letters = {name: arm.title.split(" ")[0] + ("" if name in ARMS else f" {name}") for name, arm in names.items()}
    rows = [f"{letters[row.arm]} − {letters[row.parent]}" for row in changes.itertuples()]
    figure = make_subplots(1, len(MEASURES), shared_yaxes=True, subplot_titles=MEASURES, horizontal_spacing=0.02)
    for place, measure in enumerate(MEASURES, start=1):
        intervals = list(changes[measure])
        means = [100 * interval.mean for interval in intervals]
        error = {
            "type": "data",
            "symmetric": False,
            "array": [100 * (interval.high - interval.mean) for interval in intervals],
            "arrayminus": [100 * (interval.mean - interval.low) for interval in intervals],
        }
        figure.add_trace(
            go.Scatter(
                x=means, y=rows, error_x=error, mode="markers", name=measure, showlegend=False,
                marker={"color": _COLOURS[measure], "size": 9},
                hovertemplate="%{y}: %{x:+.1f} points<extra></extra>",
            ),
            row=1,
            col=place,
        )  # fmt: skip
        figure.add_vline(x=0, line={"color": "#999999", "dash": "dash"}, row=1, col=place)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="Dice points", ticksuffix="")
    figure.update_layout(title=title, height=150 + 42 * len(rows), width=900, margin={"l": 90})
    return figure
