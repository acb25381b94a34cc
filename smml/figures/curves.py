"""Learning curves of a run: what it minimised, how, and what validation said of it."""

import os
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.figures.theme import BRANCH_COLOURS, REGION_LINES

_TITLES = ("total and fused heads", "constraints between the branches", "gradient norm and learning rate", "validation")


def curves_figure(run: str | os.PathLike, smooth: int | None = None) -> go.Figure:
    """Learning curves of a training run: losses, constraints, gradient and rate, and validation if the run has any.

    Args:
        run: the run's folder, or its ``log.csv``; ``validation.csv`` is looked for beside it.
        smooth: steps of the running mean of the losses; None takes a twentieth of the run.

    Returns:
        A figure whose axes share the steps. Gradient norm and rate are drawn in logarithms.

    Raises:
        InputError: there is no log, or it has no row yet.
    """
    run = Path(run)
    path = run / "log.csv" if run.is_dir() else run
    if not path.is_file():
        raise InputError(f"{path}: no such log; name the folder of a training run or its log.csv")
    frame = pd.read_csv(path)
    if frame.empty:
        raise InputError(f"{path}: the log has no row yet; wait for the first step")
    smooth = smooth or max(1, len(frame) // 20)
    smoothed = frame.rolling(smooth, min_periods=1).mean()
    scores = path.with_name("validation.csv")
    validated = scores.is_file()
    # An empty panel would look like a validation that found nothing.
    specs = [[{}, {}], [{}, {} if validated else None]]
    titles = _TITLES if validated else _TITLES[:-1]
    figure = make_subplots(2, 2, specs=specs, subplot_titles=titles, shared_xaxes="all", vertical_spacing=0.12)

    def add(column: str, name: str, colour: str, row: int, place: int, dash: str = "solid") -> None:
        line = {"color": colour, "dash": dash}
        figure.add_trace(go.Scatter(x=frame["step"], y=smoothed[column], name=name, line=line), row=row, col=place)

    add("total", "total", "#333333", 1, 1)
    for branch, colour in zip((1, 2), BRANCH_COLOURS, strict=True):
        add(f"fuse_{branch}", f"fused, branch {branch}", colour, 1, 1)
    add("teach_12", "L(1→2)", BRANCH_COLOURS[0], 1, 2)
    add("teach_21", "L(2→1)", BRANCH_COLOURS[1], 1, 2)
    add("relation", "L_rel", "#009E73", 1, 2, "dash")
    add("classes", "L_cls", "#CC79A7", 1, 2, "dot")
    add("gradient_norm", "gradient norm", "#333333", 2, 1)
    add("learning_rate", "learning rate", "#009E73", 2, 1, "dash")
    if validated:
        _add_validation(figure, pd.read_csv(scores))
        figure.update_yaxes(range=[0, 1], title="Dice", row=2, col=2)
    else:
        # The lowest panel of its column then.
        figure.update_xaxes(title="step", showticklabels=True, row=1, col=2)
    for place in (1, 2):
        figure.update_yaxes(title="loss", row=1, col=place)
    figure.update_yaxes(type="log", title="norm, rate", row=2, col=1)
    figure.update_xaxes(title="step", row=2)
    figure.update_layout(
        title=f"Learning curves (losses: running mean of {smooth} steps)",
        height=640,
        width=980,
        legend={"orientation": "h", "y": -0.12},
    )
    return figure


def _add_validation(figure: go.Figure, scores: pd.DataFrame) -> None:
    """The score by region, their mean, and a mark at the best one."""
    for region in REGIONS:
        colour, dash = REGION_LINES[region]
        line = {"color": colour, "dash": dash}
        trace = go.Scatter(x=scores["step"], y=scores[f"dice_{region}"], name=f"Dice {region}", line=line)
        figure.add_trace(trace, row=2, col=2)
    mean = {"color": "#333333", "width": 3}
    figure.add_trace(go.Scatter(x=scores["step"], y=scores["dice"], name="mean Dice", line=mean), row=2, col=2)
    if scores.empty:
        return
    best = scores.loc[scores["dice"].idxmax()]
    marker = {"symbol": "star", "size": 14, "color": "#D55E00"}
    figure.add_trace(
        go.Scatter(x=[best["step"]], y=[best["dice"]], mode="markers", name="best.pt", marker=marker), row=2, col=2
    )
