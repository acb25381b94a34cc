"""Bringing planes, controls and words in line with the state."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from smml.data.case import Case
from smml.inference import Contributions
from smml.modalities import Subset, subset_name, subsets_of
from smml.viewer import panel
from smml.viewer.controls import NAMESAKES, Controls
from smml.viewer.display import NORMAL, Display
from smml.viewer.render import encode_png, layers_of, plane_sizes, render_plane
from smml.viewer.state import ViewState
from smml.viewer.worker import RegionScores, Result


class Screen:
    """What one viewer has on screen. It keeps no state but the widgets' own; not for several threads at a time.

    Args:
        case: what is shown.
        display: where its voxels lie.
        controls: the widgets.
        size: pixels of the longest edge among the planes.
        predicts: whether there is a predictor.

    Attributes:
        follows: True while controls are set to the state, so that their echo is not taken for a click.
    """

    def __init__(self, case: Case, display: Display, controls: Controls, *, size: int, predicts: bool) -> None:
        self.follows = False
        self._case, self._display, self._controls = case, display, controls
        self._sizes, self._predicts = plane_sizes(display, size), predicts
        controls.heading.value = panel.heading_html(case, display)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Set controls in this context without hearing their echo."""
        self.follows = True
        try:
            yield
        finally:
            self.follows = False

    @property
    def largest(self) -> int:
        """Pixels of the longest edge among the planes."""
        return max(max(shape) for shape in self._sizes.values())

    def draw(self, state: ViewState, result: Result | None, contribution: np.ndarray | None) -> None:
        """All three planes, and the controls."""
        layers = layers_of(self._case, self._display, state, result, contribution)
        for plane, canvas in self._controls.planes.items():
            frame = encode_png(render_plane(state, self._display, layers, plane, self._sizes[plane]))
            with canvas.hold_sync():
                canvas.png = frame
                canvas.label = panel.spoken(self._case, self._display, state, plane, result)
        with self.following():
            self._follow(state)

    def offer_sources(self, names: list[str]) -> None:
        """Let the reader choose among these predictions."""
        if tuple(self._controls.source.options) != tuple(names):
            with self.following():
                self._controls.source.options = names

    def words(
        self,
        state: ViewState,
        result: Result | None,
        scored: Mapping[tuple[Subset, str], RegionScores],
        found: Contributions | None,
        contribution: np.ndarray | None,
    ) -> None:
        """Read-out, legend, contributions, scores and the bars of the subsets."""
        c, case = self._controls, self._case
        c.readout.value = panel.readout_html(case, self._display, state, result, contribution)
        c.legend.value = panel.legend_html(state)
        c.contributions.value = panel.contributions_html(found, state)
        if not self._predicts:
            return
        subset = state.given if result is None else result.subset
        shown = None if result is None else scored.get((subset, state.source))
        c.scores.value = panel.scores_html(
            shown,
            subset,
            state.source,
            truth=case.label is not None,
            volumes=None if result is None else result.volumes[state.source],
            fitted_on=None if result is None else result.fitted_on,
        )
        final = {seen: scores for (seen, source), scores in scored.items() if source == c.source.options[0]}
        c.chart.value = panel.chart_svg(final, state.given, case.modalities)
        c.rest.disabled = case.label is None or len(final) == len(subsets_of(case.modalities))

    def progress(self, share: float | None) -> None:
        """Show progress bar and Cancel, or take them away (None)."""
        visibility = "hidden" if share is None else "visible"
        self._controls.progress.value = share or 0.0
        self._controls.progress.layout.visibility = self._controls.cancel.layout.visibility = visibility

    def status(self, message: str, working: str, result: Result | None) -> None:
        """The line beside the checks: a message to the reader first, then what is being done, then what is shown."""
        if message:
            text = f"{_sign('⚠', '#D55E00')} {panel.escape(message)}"
        elif working:
            text = f"{_sign('◌', '#0072B2')} {panel.escape(working)} …"
        elif result is not None:
            text = f"● segmented from {subset_name(result.subset, ' + ')}"
        else:
            text = "nothing segmented yet"
        self._controls.status.value = f"<span role='status' aria-live='polite'>{text}</span>"

    def _follow(self, state: ViewState) -> None:
        c = self._controls
        for name, box in c.given.items():
            box.value = name in state.given and self._predicts
        for field in NAMESAKES:
            getattr(c, field).value = getattr(state, field)
        for region, box in c.regions.items():
            box.value = region in state.regions
        for plane, slider in c.slices.items():
            slider.value = state.position[NORMAL[plane]]
        ends = c.window_range(state)
        if (c.window.min, c.window.max) != (ends["min"], ends["max"]):
            # The order keeps min below max at every step.
            c.window.min = min(ends["min"], c.window.min)
            c.window.max, c.window.min, c.window.step = ends["max"], ends["min"], ends["step"]
        c.window.value = state.window()
        c.compared.disabled = state.overlay not in ("difference", "contribution")
        c.contributor.disabled = state.overlay != "contribution"
        for box in c.regions.values():
            box.disabled = state.overlay not in ("prediction", "truth")


def _sign(text: str, colour: str) -> str:
    """A sign in a colour that stands on light and dark themes alike; words take the theme's own."""
    return f"<span style='color:{colour}' aria-hidden='true'>{text}</span>"
