"""The viewer's controls and their arrangement; what they do is told in widget.py."""

import ipywidgets as widgets

from smml.data.case import Case
from smml.data.labels import REGIONS
from smml.modalities import DISPLAY_NAMES, MODALITIES
from smml.viewer.display import ANATOMICAL_PLANES, NORMAL, Display
from smml.viewer.plane import make_plane
from smml.viewer.state import NAMED_SUBSETS, OVERLAYS, ViewState

HELP = """<details><summary>Mouse and keys</summary>
<table style='line-height:1.4'>
<tr><td>click or drag</td><td>move the crosshair; the other planes follow</td></tr>
<tr><td>wheel, Page Up / Down, <kbd>,</kbd> <kbd>.</kbd></td><td>next slice (with Shift: five)</td></tr>
<tr><td>arrows</td><td>crosshair by a voxel (with Shift: five)</td></tr>
<tr><td>right or Shift drag</td><td>window (across) and level (down)</td></tr>
<tr><td><kbd>1</kbd> <kbd>2</kbd> <kbd>3</kbd> <kbd>4</kbd></td>
<td>give the model FLAIR, T1ce, T1, T2, or take it away</td></tr>
<tr><td><kbd>b</kbd></td><td>next sequence under the paint</td></tr>
<tr><td><kbd>t</kbd></td><td>next overlay: prediction, truth, difference, uncertainty</td></tr>
<tr><td>space</td><td>hide and show the overlay</td></tr>
<tr><td><kbd>o</kbd> <kbd>c</kbd> <kbd>[</kbd> <kbd>]</kbd></td><td>outline, crosshair, less and more opaque</td></tr>
<tr><td>Home</td><td>back to the tumour</td></tr>
</table>The keys act where a plane has the focus (blue frame): click it or reach it with Tab.</details>"""

# Controls whose value is that of the state's field of the same name.
NAMESAKES = ("shown", "overlay", "source", "compared", "contributor", "opacity", "outline", "crosshair")


class Controls:
    """All widgets of one viewer.

    Args:
        case: which modalities and whether there is a truth.
        display: ranges of the slice sliders.
        state: what they say at first.
        predicts: whether there is a predictor.
        interactive: canvases rather than plain images.
    """

    def __init__(
        self, case: Case, display: Display, state: ViewState, *, predicts: bool, interactive: bool = True
    ) -> None:
        short = widgets.Layout(width="auto")
        self.given = {
            name: widgets.Checkbox(
                value=name in state.given and predicts,
                description=DISPLAY_NAMES[name],
                indent=False,
                disabled=not predicts or name not in case.volumes,
                tooltip="give it to the model" if name in case.volumes else "not in this case",
                layout=widgets.Layout(width="74px"),
            )
            for name in MODALITIES
        }
        self.named_subsets = {
            name: widgets.Button(
                description=name,
                disabled=not predicts or (name != "all" and not set(subset) <= set(case.volumes)),
                layout=widgets.Layout(width="auto", height="26px"),
            )
            for name, subset in NAMED_SUBSETS.items()
        }
        self.status = widgets.HTML()
        self.progress = widgets.FloatProgress(min=0, max=1, layout=widgets.Layout(width="110px", visibility="hidden"))
        self.cancel = widgets.Button(
            description="Cancel", layout=widgets.Layout(width="70px", height="26px", visibility="hidden")
        )

        self.shown = widgets.ToggleButtons(
            options=[(DISPLAY_NAMES[name], name) for name in case.volumes],
            value=state.shown,
            style={"button_width": "62px"},
            layout=short,
        )
        self.overlay = widgets.ToggleButtons(
            options=self._overlays(case, predicts),
            value=state.overlay,
            style={"button_width": "auto"},
            layout=short,
        )
        self.source = widgets.Dropdown(
            options=[state.source],
            value=state.source,
            disabled=not predicts,
            tooltip="whose prediction",
            layout=widgets.Layout(width="105px"),
        )
        self.regions = {
            region: widgets.Checkbox(
                value=region in state.regions, description=region, indent=False, layout=widgets.Layout(width="56px")
            )
            for region in REGIONS
        }
        self.compared = widgets.Dropdown(
            options=REGIONS, value=state.compared, tooltip="region", layout=widgets.Layout(width="62px")
        )
        self.contributor = widgets.Dropdown(
            options=[(DISPLAY_NAMES[name], name) for name in case.modalities],
            value=state.contributor,
            tooltip="sequence",
            layout=widgets.Layout(width="76px"),
        )
        self.opacity = widgets.FloatSlider(
            value=state.opacity, min=0, max=1, step=0.05, readout=False, layout=widgets.Layout(width="110px")
        )
        self.outline = widgets.Checkbox(
            value=state.outline, description="outline", indent=False, layout=widgets.Layout(width="76px")
        )
        self.crosshair = widgets.Checkbox(
            value=state.crosshair, description="crosshair", indent=False, layout=widgets.Layout(width="90px")
        )
        # Once, because they are asked for with every frame.
        self._ends = {name: (float(volume.min()), float(volume.max())) for name, volume in case.volumes.items()}
        low, high = state.window()
        self.window = widgets.FloatRangeSlider(
            value=(low, high), readout=False, layout=widgets.Layout(width="190px"), **self.window_range(state)
        )
        self.auto = widgets.Button(
            description="auto", tooltip="1st to 99.5th percentile", layout=widgets.Layout(width="52px", height="26px")
        )

        self.planes = {plane: make_plane(interactive=interactive) for plane in ANATOMICAL_PLANES}
        self.slices = {
            plane: widgets.IntSlider(
                value=state.position[axis],
                min=display.box[axis][0],
                max=display.box[axis][1] - 1,
                description=plane,
                readout=False,
                style={"description_width": "58px"},
                layout=widgets.Layout(width="96%"),
            )
            for plane, axis in ((plane, NORMAL[plane]) for plane in ANATOMICAL_PLANES)
        }
        self._name_handles()
        self.readout, self.legend, self.scores, self.chart = (widgets.HTML() for _ in range(4))
        self.contributions = widgets.HTML()
        self.rest = widgets.Button(
            description="compute the other subsets",
            disabled=not predicts,
            layout=widgets.Layout(width="auto", height="26px"),
        )
        self.snapshot = widgets.Button(description="snapshot", icon="camera", layout=short)
        self.mesh = widgets.Button(description="3D", icon="cube", layout=widgets.Layout(width="70px"))
        self.below = widgets.VBox()
        self.heading = widgets.HTML()
        self.root = self._arranged(predicts)

    @staticmethod
    def _overlays(case: Case, predicts: bool) -> list[str]:
        truth = case.label is not None
        possible = {
            "prediction": predicts,
            "truth": truth,
            "difference": predicts and truth,
            "uncertainty": predicts,
            "contribution": predicts,
            "none": True,
        }
        return [name for name in OVERLAYS if possible[name]]

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The words to choose from at present, by field of the state."""
        named = {name: tuple(value for _, value in getattr(self, name).options) for name in ("shown", "contributor")}
        return named | {name: tuple(getattr(self, name).options) for name in ("overlay", "source", "compared")}

    def _name_handles(self) -> None:
        """Have a screen reader call the handles of the sliders by what they set."""
        names = {f"smml-{plane}-slice": (slider, [f"{plane} slice"]) for plane, slider in self.slices.items()}
        names |= {"smml-opacity": (self.opacity, ["opacity"]), "smml-window": (self.window, ["black", "white"])}
        for name, (slider, _) in names.items():
            slider.add_class(name)
        next(iter(self.planes.values())).handles = {name: words for name, (_, words) in names.items()}

    def window_range(self, state: ViewState) -> dict[str, float]:
        """Ends and step of the window slider for the shown modality."""
        low, high = state.window()
        first, last = min(self._ends[state.shown][0], low), max(self._ends[state.shown][1], high)
        return {"min": first, "max": last, "step": max((last - first) / 500, 1e-6)}

    def _arranged(self, predicts: bool) -> widgets.VBox:
        def row(*children: widgets.Widget, **layout) -> widgets.HBox:
            settings = {"flex_flow": "row wrap", "align_items": "center", "overflow": "visible", **layout}
            return widgets.HBox(children, layout=widgets.Layout(**settings))

        def word(text: str, width: str = "auto") -> widgets.HTML:
            return widgets.HTML(text, layout=widgets.Layout(width=width, margin="0 4px 0 6px"))

        panel = {"border": "1px solid #c8c8c8", "padding": "2px 4px", "margin": "2px 0"}
        given = row(
            word("<b>The model is given</b>", "154px"),
            *self.given.values(),
            *self.named_subsets.values(),
            row(self.status, self.progress, self.cancel, min_height="32px", width="100%"),
            **panel,
        )
        shown = row(
            word("<b>Shown</b>", "48px"),
            self.shown,
            word("with"),
            self.overlay,
            word("of"),
            self.source,
            row(word("regions"), *self.regions.values()),
            row(word("difference or contribution: region"), self.compared, word("from"), self.contributor),
            row(word("opacity"), self.opacity, self.outline, self.crosshair),
            row(word("black – white"), self.window, self.auto),
            **panel,
        )
        panes = [
            widgets.VBox(
                [self.planes[plane], self.slices[plane]],
                # All three stay in one row: in a narrow cell they shrink.
                layout=widgets.Layout(margin="2px 8px 2px 0", flex="0 1 auto", min_width="0", overflow="hidden"),
            )
            for plane in ANATOMICAL_PLANES
        ]
        chart = widgets.VBox([self.chart, self.rest], layout=widgets.Layout(margin="0 0 0 24px"))
        scores = row(self.scores, chart, align_items="flex-start")
        # What stays off the screen lives on in ipywidgets all the same.
        self._left_out = [] if predicts else [given, scores]
        return widgets.VBox(
            [
                self.heading,
                *([given] if predicts else []),
                shown,
                row(*panes, align_items="flex-start", flex_flow="row nowrap"),
                self.readout,
                self.legend,
                self.contributions,
                *([scores] if predicts else []),
                row(self.snapshot, self.mesh, widgets.HTML(HELP), align_items="flex-start"),
                self.below,
            ]
        )

    def descendants(self) -> list[widgets.Widget]:
        """Every widget of the viewer with its layout and style, for closing."""
        found, waiting = [], [self.root, *self._left_out]
        while waiting:
            widget = waiting.pop()
            found.append(widget)
            waiting += list(getattr(widget, "children", ()))
            parts = [getattr(widget, name, None) for name in ("layout", "style")]
            # plotly's figures have a layout that is no widget.
            waiting += [part for part in parts if isinstance(part, widgets.Widget)]
        return found
