"""The ablation study in one picture: what each part of the method is worth, with its interval."""

from statistics import median
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from smml.figures.theme import REGION_LINES

if TYPE_CHECKING:
    import pandas as pd

    from smml.study import Study

_COLOURS = {region: colour for region, (colour, _) in REGION_LINES.items()} | {"mean": "#333333"}


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
        interval that crosses the line at 0 has not shown a difference. All panels have one scale. A mean far beyond
        the others stands as a triangle at the edge, with its value.
    """
    # Here, as a study brings in all of training, which no other figure needs.
    from smml.study import arm_label, compare_arms
    from smml.study.report import MEASURES

    changes = compare_arms(study) if changes is None else changes
    rows = [f"{arm_label(row.arm)} − {arm_label(row.parent)}" for row in changes.itertuples()]
    reach = _reach(changes, MEASURES)
    figure = make_subplots(1, len(MEASURES), shared_yaxes=True, subplot_titles=MEASURES, horizontal_spacing=0.02)
    for place, measure in enumerate(MEASURES, start=1):
        means, low, high = ((100 * changes[f"{measure}{part}"]).tolist() for part in ("", " low", " high"))
        beyond = [abs(mean) > reach for mean in means]
        error = {
            "type": "data",
            "symmetric": False,
            # A triangle at the edge has no bar: it would start from the wrong place.
            "array": [0 if far else end - mean for end, mean, far in zip(high, means, beyond, strict=True)],
            "arrayminus": [0 if far else mean - end for end, mean, far in zip(low, means, beyond, strict=True)],
        }
        figure.add_trace(
            go.Scatter(
                x=[min(max(mean, -reach), reach) for mean in means], y=rows, error_x=error, showlegend=False,
                mode="markers+text", name=measure, cliponaxis=False, customdata=means,
                text=[f" {mean:+.1f} " if far else "" for mean, far in zip(means, beyond, strict=True)],
                textposition=["middle right" if mean < 0 else "middle left" for mean in means],
                marker={
                    "color": _COLOURS[measure],
                    "size": [11 if far else 9 for far in beyond],
                    "opacity": 1,
                    "line": {"width": 0},
                    "symbol": [
                        ("triangle-left" if mean < 0 else "triangle-right") if far else "circle"
                        for mean, far in zip(means, beyond, strict=True)
                    ],
                },
                hovertemplate="%{y}: %{customdata:+.1f} points<extra></extra>",
            ),
            row=1,
            col=place,
        )  # fmt: skip
        figure.add_vline(x=0, line={"color": "#999999", "dash": "dash"}, row=1, col=place)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="Dice points", range=[-1.05 * reach, 1.05 * reach])
    figure.update_layout(title=title, height=150 + 42 * len(rows), width=900, margin={"l": 90})
    return figure


def _reach(changes: "pd.DataFrame", measures: tuple[str, ...]) -> float:
    """Dice points from 0 to the edge: of the widest interval, unless one arm would make the others' unreadable."""
    ends = [
        max(abs(100 * low), abs(100 * high))
        for measure in measures
        for low, high in zip(changes[f"{measure} low"], changes[f"{measure} high"], strict=True)
    ]
    return max(1.0, min(max(ends, default=1.0), 4 * median(ends or [1.0])))
