"""The roofline: how close each formulation comes to what the machine can do."""

import math
from pathlib import Path

import plotly.graph_objects as go

from smml_kernels.benchmarks.contestants import COMPILED, EAGER, MULTIPLIED, OURS, PUBLIC
from smml_kernels.benchmarks.runner import best_time

# Okabe and Ito's palette: told apart by colour-blind readers.
_COLOURS = {PUBLIC: "#D55E00", MULTIPLIED: "#E69F00", EAGER: "#56B4E9", COMPILED: "#CC79A7", OURS: "#0072B2"}
_SYMBOLS = {
    "relation_loss": "circle", "masked_fusion": "square", "exchange_loss": "diamond", "dice_ce_loss": "triangle-up"
}  # fmt: skip
_ROOF = "#444444"
_WIDTH, _HEIGHT = 1000, 560
_MARGIN = {"l": 80, "r": 200, "t": 80, "b": 60}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "plot_bgcolor": "white",
        "xaxis": {"gridcolor": "#e5e5e5", "zeroline": False},
        "yaxis": {"gridcolor": "#e5e5e5", "zeroline": False},
    }
)


def roofline(run: dict) -> go.Figure:
    """Least operations over time (up) against least operations over least bytes (right), forward and backward.

    All formulations of a case stand in one column, whatever they really do: the column is what the definition needs,
    so that wasted bytes and wasted operations both show as distance from the roof.

    Args:
        run: {"provenance", "ceilings", "rows", ...}.
    """
    machine = run["provenance"]["hardware"]
    rates = {name: rate for name, rate in run["ceilings"].items() if name != "copy_bytes_per_s"}
    rows = sorted((row for row in run["rows"] if best_time(row)), key=lambda row: row["contestant"] == OURS)
    spots = [_spot(row) for row in rows]
    across = (min((x for x, _ in spots), default=1) / 2, max((x for x, _ in spots), default=10) * 8)
    up = (min((y for _, y in spots), default=min(rates.values()) / 10) / 2, max(rates.values()) * 2)
    figure = go.Figure()
    _draw_roofs(figure, run["ceilings"]["copy_bytes_per_s"], rates, across, up)
    for row, (x, y) in zip(rows, spots, strict=True):
        name = row["contestant"]
        figure.add_scatter(
            x=[x], y=[y], mode="markers", showlegend=False, hovertemplate=_hover(row),
            marker=_marker(name) | {"symbol": _SYMBOLS[row["operation"]] + ("-open" if name == OURS else "")},
        )  # fmt: skip
    for name in _COLOURS:
        if any(row["contestant"] == name for row in rows):
            symbol = "circle-open" if name == OURS else "circle"
            _legend(figure, name, _marker(name) | {"symbol": symbol})
    for operation, symbol in _SYMBOLS.items():
        if any(row["operation"] == operation for row in rows):
            _legend(figure, operation, {"color": "#777777", "size": 10, "symbol": symbol})
    on_cpu = machine["device"] == "cpu"
    threads = f", threads: {machine['threads']}" if on_cpu else ""
    figure.update_layout(
        template=_TEMPLATE,
        title={
            "text": "Forward and backward against the measured roof"
            f"<br><sup>{machine['cpu'] if on_cpu else machine['device']}{threads}</sup>"
        },
        width=_WIDTH, height=_HEIGHT, margin=_MARGIN,
        legend={"x": 1.02, "y": 1, "itemclick": False, "itemdoubleclick": False},
    )  # fmt: skip
    figure.update_xaxes(type="log", title="least operations a byte (FLOP/B)", dtick=1, range=_logs(across))
    figure.update_yaxes(
        type="log", title="least operations over time (FLOP/s)", dtick=1, exponentformat="power", range=_logs(up)
    )
    return figure


def _spot(row: dict) -> tuple[float, float]:
    flops = row["floor_flops"]["both"]
    return flops / row["floor_bytes"]["both"], flops / best_time(row)


def _logs(values: tuple[float, float]) -> list[float]:
    return [math.log10(value) for value in values]


def _marker(name: str) -> dict:
    """Ours is a ring, so that what lies under it stays visible."""
    if name == OURS:
        return {"color": _COLOURS[OURS], "size": 12, "line": {"color": _COLOURS[OURS], "width": 2.5}}
    return {"color": _COLOURS.get(name, "#999999"), "size": 8, "line": {"color": "white", "width": 0.5}}


def _legend(figure: go.Figure, name: str, marker: dict) -> None:
    figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=marker)


def _draw_roofs(
    figure: go.Figure, bandwidth: float, rates: dict[str, float], across: tuple[float, float], up: tuple[float, float]
) -> None:
    """The slope of the copy bandwidth, a level for each matrix rate, and beside each what it is."""
    low, high = across
    line = {"color": _ROOF, "width": 1.5}
    previous = math.inf
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        corner = rate / bandwidth
        x = [low, corner, high] if low < corner < high else [low, high]
        words = f"{name} products, {_rate(rate)}"
        figure.add_scatter(
            x=x, y=[min(bandwidth * v, rate) for v in x], mode="lines", line=line, showlegend=False,
            hovertemplate=f"{words}<extra></extra>",
        )  # fmt: skip
        # Below its level where the next one above is too near for two texts.
        figure.add_annotation(
            x=math.log10(high), y=math.log10(rate), text=words, showarrow=False, font={"color": _ROOF},
            xanchor="right", yanchor="top" if previous < 2 * rate else "bottom",
        )  # fmt: skip
        previous = rate
    # Plotly takes positions on a log axis as logarithms, and angles in pixels.
    height = (_HEIGHT - _MARGIN["t"] - _MARGIN["b"]) / math.log10(up[1] / up[0])
    width = (_WIDTH - _MARGIN["l"] - _MARGIN["r"]) / math.log10(high / low)
    place = low * 10 ** (90 / width)
    figure.add_annotation(
        x=math.log10(place), y=math.log10(bandwidth * place), text=f"copy, {bandwidth / 1e9:.4g} GB/s",
        showarrow=False, textangle=-math.degrees(math.atan2(height, width)), yshift=13, xshift=-8,
        font={"color": _ROOF},
    )  # fmt: skip


def _rate(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def _hover(row: dict) -> str:
    kind = "graph" if row["graph"] else "eager launch"
    share = f", {100 * row['share_of_ceiling']:.3g} % of the ceiling" if row["share_of_ceiling"] else ""
    seconds = best_time(row)
    assert seconds is not None  # only rows that were timed are drawn
    return f"{row['case']}<br>{row['contestant']}: {1e3 * seconds:.4g} ms ({kind}){share}<extra></extra>"


def write_figure(figure: go.Figure, stem: Path, notes: list[str]) -> list[Path]:
    """STEM.html, which needs no network, and STEM.png if kaleido finds a browser; otherwise a sentence in ``notes``."""
    page = stem.with_name(stem.name + ".html")
    figure.write_html(page, include_plotlyjs=True)
    picture = stem.with_name(stem.name + ".png")
    try:
        figure.write_image(picture, scale=1.5)
    except Exception as error:  # kaleido raises its own kinds, and RuntimeError without a browser
        notes.append(f"No PNG of the roofline: {(str(error).splitlines() or [type(error).__name__])[0]}")
        return [page]
    return [page, picture]
