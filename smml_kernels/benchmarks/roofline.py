"""The roofline: how close each formulation comes to what the machine can do."""

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
    ceilings, machine = run["ceilings"], run["provenance"]["hardware"]
    rows = [row for row in run["rows"] if best_time(row)]
    figure = go.Figure()
    spots = [_spot(row) for row in rows]
    low = min((x for x, _ in spots), default=1) / 2
    high = max((x for x, _ in spots), default=10) * 2.5
    bandwidth = ceilings["copy_bytes_per_s"]
    rates = {name: rate for name, rate in ceilings.items() if name != "copy_bytes_per_s"}
    for name, rate in rates.items():
        corner = rate / bandwidth
        x = [low, corner, high] if low < corner < high else [low, high]
        # A line a roof, the slope shared by all of them.
        figure.add_scatter(
            x=x, y=[min(bandwidth * v, rate) for v in x], mode="lines", line={"color": _ROOF, "width": 1.5},
            showlegend=False, hovertemplate=f"{name} products: {rate / 1e12:.3g} TFLOP/s<extra></extra>",
        )  # fmt: skip
    _label_roofs(figure, bandwidth, rates, low, high)
    shown = set()
    for row, (x, y) in zip(rows, spots, strict=True):
        group = row["contestant"]
        figure.add_scatter(
            x=[x], y=[y], mode="markers", name=group, legendgroup=group, showlegend=group not in shown,
            marker={
                "color": _COLOURS.get(group, "#999999"), "size": 11 if group == OURS else 9,
                "symbol": _SYMBOLS.get(row["operation"], "x"), "line": {"color": "white", "width": 1},
            },
            hovertemplate=_hover(row),
        )  # fmt: skip
        shown.add(group)
    for operation, symbol in _SYMBOLS.items():
        if any(row["operation"] == operation for row in rows):
            figure.add_scatter(
                x=[None], y=[None], mode="markers", name=operation,
                marker={"color": "#777777", "size": 10, "symbol": symbol},
            )  # fmt: skip
    device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else ""
    figure.update_layout(
        template=_TEMPLATE,
        title={"text": f"Forward and backward against the measured roof<br><sup>{device}{threads}</sup>"},
        width=960, height=620, margin={"l": 80, "r": 30, "t": 80, "b": 130},
        legend={"orientation": "h", "y": -0.16, "x": 0},
    )  # fmt: skip
    figure.update_xaxes(type="log", title="least operations a byte (FLOP/B)", dtick=1)
    figure.update_yaxes(type="log", title="least operations over time (FLOP/s)", dtick=1, exponentformat="power")
    return figure


def _spot(row: dict) -> tuple[float, float]:
    flops = row["floor_flops"]["both"]
    return flops / row["floor_bytes"]["both"], flops / best_time(row)


def _label_roofs(figure: go.Figure, bandwidth: float, rates: dict[str, float], low: float, high: float) -> None:
    """Say beside each roof what it is. Plotly wants positions on a log axis as logarithms."""
    from math import log10

    for name, rate in rates.items():
        figure.add_annotation(
            x=log10(high), y=log10(rate), text=f"{name} {rate / 1e12:.3g} TFLOP/s", showarrow=False,
            xanchor="right", yanchor="bottom" if rate == max(rates.values()) else "top", font={"color": _ROOF},
        )  # fmt: skip
    figure.add_annotation(
        x=log10(low * 1.15), y=log10(bandwidth * low * 1.6), text=f"copy {bandwidth / 1e9:.4g} GB/s", showarrow=False,
        xanchor="left", yanchor="bottom", font={"color": _ROOF},
    )  # fmt: skip


def _hover(row: dict) -> str:
    kind = "graph" if row["graph"] else "eager launch"
    share = f", {100 * row['share_of_ceiling']:.3g} % of the ceiling" if row["share_of_ceiling"] else ""
    return f"{row['case']}<br>{row['contestant']}: {1e3 * best_time(row):.4g} ms ({kind}){share}<extra></extra>"


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
