"""One look for all figures: colours that colour-blind readers can tell apart, and rendering that needs no network."""

import plotly.graph_objects as go
import plotly.io as pio

# Okabe and Ito's palette, by class name; the background has none.
CLASS_COLOURS: dict[str, str] = {
    "NCR/NET": "#0072B2",
    "NCR": "#0072B2",
    "ED": "#F0E442",
    "NET": "#CC79A7",
    "ET": "#D55E00",
    "RC": "#56B4E9",
    "CC": "#009E73",
}
REGION_COLOURS: dict[str, str] = {"WT": "#F0E442", "TC": "#0072B2", "ET": "#D55E00"}
# On white, where yellow is lost: of the same hues, at least 3 to 1 against it; and dashes beside them.
REGION_LINES: dict[str, tuple[str, str]] = {
    "WT": ("#8A7D00", "dash"),
    "TC": ("#0072B2", "solid"),
    "ET": ("#D55E00", "dot"),
}
BRANCH_COLOURS: tuple[str, str] = ("#0072B2", "#D55E00")
# Of the same palette, for drawings of the network and the losses.
PART_COLOURS: dict[str, str] = {
    "encoder": "#56B4E9",
    "transformer": "#E69F00",
    "fusion": "#009E73",
    "decoder": "#CC79A7",
    "relation": "#009E73",
    "classes": "#CC79A7",
}


def use_theme() -> None:
    """Make the project's template the default and embed plotly's script in the notebook.

    JupyterLab and VS Code read the figure's own format; an exported HTML page finds plotly's script inside itself, so
    it works without a kernel and without a network.
    """
    pio.templates["smml"] = go.layout.Template(
        layout={
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "margin": {"l": 50, "r": 20, "t": 60, "b": 40},
            "plot_bgcolor": "white",
            "xaxis": {"gridcolor": "#e5e5e5", "zeroline": False},
            "yaxis": {"gridcolor": "#e5e5e5", "zeroline": False},
        }
    )
    pio.templates.default = "plotly_white+smml"
    pio.renderers.default = "plotly_mimetype+notebook"


def rgb(colour: str) -> tuple[int, int, int]:
    """ "#RRGGBB" -> three integers 0 to 255."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue
