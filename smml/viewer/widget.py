"""``ModalityViewer``: a brain on screen, four checks for what the model is given, and the answer at once.

Three threads of events meet here: controls and planes (the kernel's thread) and the worker that segments. One lock
orders them, and one rule keeps the picture honest: a result is shown only if its subset is what the checks say.
"""

import threading
import weakref
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from smml.data.case import Case
from smml.errors import InputError
from smml.inference import Predictor
from smml.modalities import parse_subset, subset_name, subsets_of
from smml.viewer.controls import Controls
from smml.viewer.gestures import Gestures
from smml.viewer.mesh import mesh_figure
from smml.viewer.picture import compose, layers_of, small_png, write_picture
from smml.viewer.screen import Screen
from smml.viewer.state import (
    NORMAL,
    PLANES,
    PRESETS,
    SOURCES,
    Display,
    ViewState,
    checked,
    default_window,
    first_state,
)
from smml.viewer.worker import CACHE_BYTES, Event, Result, Segmenter


class ModalityViewer:
    """A case in three linked planes, segmented live from the modalities that are checked.

    Display it as the last line of a cell. It is tested in JupyterLab 4; Notebook 7, VS Code and Colab have not been
    tried. ``viewer.picture()`` is what readers without a kernel can see.

    Args:
        case: with at least one modality.
        predictor: segments the case; None shows the images and the truth alone.
        subset: what the model is given at first; None is all that the case has.
        size: pixels of the longest edge among the planes.
        cache_bytes: memory for results of subsets seen before; the least recently used go first.
        interactive: False replaces the canvases by plain images, which need no anywidget and know no mouse.

    Raises:
        InputError: a case without modalities, an unknown subset or one that the case lacks, or a size out of range.
    """

    def __init__(
        self,
        case: Case,
        predictor: Predictor | None = None,
        *,
        subset: str | tuple[str, ...] | None = None,
        size: int = 370,
        cache_bytes: int = CACHE_BYTES,
        interactive: bool = True,
    ) -> None:
        if not 100 <= size <= 2000:
            raise InputError(f"size must lie between 100 and 2000 pixels, found {size}")
        self._display = Display.of(case)
        given = case.modalities if subset is None else parse_subset(subset)
        absent = [name for name in given if name not in case.volumes]
        if absent:
            raise InputError(
                f"case {case.id}: subset asks for {subset_name(absent, ', ')}, but only "
                f"{subset_name(case.modalities, ', ')} was read; choose a subset of these"
            )
        self.case = case
        # With refinement its word is the last, so that is what one wants to see first.
        source = "refined" if getattr(predictor, "prior", None) is not None else "mean"
        self._state = first_state(case, self._display, given, source)
        if predictor is None:
            overlay = "truth" if case.label is not None else "none"
            self._state = self._state.changed(overlay=overlay)
        self._result: Result | None = None
        self._predictor = predictor
        self._scheme = case.scheme if predictor is None else predictor.scheme
        self._lock = threading.RLock()
        self._closed = False
        self._message = self._working = ""
        self.controls = Controls(
            case, self._display, self._state, predicts=predictor is not None, interactive=interactive
        )
        self._screen = Screen(
            case, self._display, self.controls, self._scheme, size=size, predicts=predictor is not None
        )
        overlays = tuple(self.controls.overlay.options)
        self._gestures = Gestures(case, self._display, self._state.position, overlays, predicts=predictor is not None)
        self._connect()
        self._segmenter = None
        if predictor is not None:
            # Weak, so that the worker alone cannot keep a viewer's memory.
            hear = weakref.WeakMethod(self._hear)
            self._segmenter = Segmenter(
                case, predictor, lambda event: (heard := hear()) and heard(event), cache_bytes=cache_bytes
            )
        with self._lock:
            self._refresh()
            self._wish()

    # What a notebook calls

    @property
    def widget(self) -> widgets.VBox:
        """The widget, to be placed into a layout of one's own."""
        return self.controls.root

    @property
    def state(self) -> ViewState:
        """What is shown at present."""
        return self._state

    @property
    def result(self) -> Result | None:
        """The segmentation on screen, None before the first."""
        return self._result

    def show(self, **fields) -> None:
        """Change what is shown, as the controls would.

        Args:
            **fields: of :class:`smml.viewer.state.ViewState`, for example ``given="flair+t2"`` or ``overlay="truth"``.

        Raises:
            InputError: a field is unknown, or its value is not among the control's choices; what is shown then stays as
                it was.
        """
        choices = {"shown": tuple(self.case.volumes)}
        # The worker offers other predictions as soon as it has them, and must not do so in between.
        with self._lock:
            try:
                state = self._state.changed(**fields)
            except TypeError as error:
                raise InputError(f"show: {error}; fields are {', '.join(vars(self._state))}") from error
            choices |= {name: getattr(self.controls, name).options for name in ("overlay", "source", "compared")}
            try:
                state = checked(state, self._display, choices)
            except InputError as error:
                early = "source" in fields and self._result is None and self._segmenter is not None
                hint = "; other predictions can be chosen once there is one: call wait() first" if early else ""
                raise InputError(f"show: {error}{hint}") from error
            self._set(state)

    def wait(self, timeout: float | None = 60.0) -> bool:
        """Wait until the segmentation is on screen; False if the time was not enough.

        Args:
            timeout: in seconds; None waits for ever.
        """
        return self._segmenter is None or self._segmenter.wait(timeout)

    def compute_rest(self) -> None:
        """Segment and score the subsets not seen yet, one after the other, behind whatever is asked for."""
        if self._segmenter is not None:
            scored = {subset for subset, _ in self._segmenter.scores}
            self._segmenter.request_rest(s for s in subsets_of(self.case.modalities) if s not in scored)

    def picture(self, path: str | Path | None = None, *, size: int | None = None) -> np.ndarray:
        """The present view as one picture, uint8 [rows, columns, 3].

        Args:
            path: also write it there as PNG.
            size: pixels of the longest edge among the planes; None draws them as on screen.

        Raises:
            InputError: the path does not end in .png, or cannot be written.
        """
        with self._lock:
            state, result = self._state, self._result
            scores = self._scores()
            layers = layers_of(self.case, self._display, state, result, self._scheme)
        size = size or self._screen.largest
        of = None if result is None else result.subset
        picture = compose(self.case, self._display, state, layers, size=size, scores=scores, of=of)
        if path is not None:
            write_picture(picture, path)
        return picture

    def mesh(self) -> go.Figure:
        """The present prediction, or the truth, as a 3D figure.

        Raises:
            InputError: there is neither.
        """
        with self._lock:
            state, result = self._state, self._result
        if state.overlay == "truth" or result is None:
            return mesh_figure(self.case, regions=state.regions, title=f"{self.case.id}, truth")
        title = f"{self.case.id}, from {subset_name(result.subset)}"
        return mesh_figure(self.case, result.labels[state.source], self._scheme, regions=state.regions, title=title)

    def close(self) -> None:
        """Stop the worker, take the viewer off the screen and let go of its memory. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        # Without the lock: the worker may be waiting for it.
        if self._segmenter is not None:
            self._segmenter.close()
        for widget in self.controls.descendants():
            widget.unobserve_all()
            widget.close()
        self._result = self._segmenter = self._predictor = self._screen = self.case = None

    def _repr_mimebundle_(self, **_) -> dict:
        bundle = dict(self.widget._repr_mimebundle_() or {})
        # Readers of a saved notebook, GitHub among them, have no kernel and see this.
        bundle["image/png"] = small_png(self.picture())
        bundle["text/plain"] = f"ModalityViewer of {self.case.id}"
        return bundle

    # Controls and planes

    def _connect(self) -> None:
        c = self.controls
        for name, box in c.given.items():
            box.observe(lambda _, name=name: self._apply(lambda s: s.toggled(name)), "value")
        for name, button in c.presets.items():
            button.on_click(lambda _, name=name: self._preset(name))
        for field in ("shown", "overlay", "source", "compared", "opacity", "outline", "crosshair"):
            getattr(c, field).observe(lambda change, field=field: self._change(field, change["new"]), "value")
        for region, box in c.regions.items():
            box.observe(
                lambda change, region=region: self._apply(lambda s: s.with_region(region, change["new"])), "value"
            )
        c.window.observe(lambda change: self._apply(lambda s: s.with_window(*change["new"])), "value")
        c.auto.on_click(lambda _: self._apply(lambda s: s.with_window(*default_window(self.case.volumes[s.shown]))))
        for plane, slider in c.slices.items():
            slider.observe(lambda change, plane=plane: self._slide(plane, change["new"]), "value")
        for plane, canvas in c.planes.items():
            canvas.listen(lambda event, plane=plane: self._on_plane(plane, event))
        c.cancel.on_click(lambda _: self._cancel())
        c.rest.on_click(lambda _: self.compute_rest())
        c.snapshot.on_click(lambda _: self._snapshot())
        c.mesh.on_click(lambda _: self._show_mesh())

    def _apply(self, change) -> None:
        """Put ``change(state)`` in force, unless a control only follows the state; say why if it is refused."""
        if self._closed or self._screen.follows:
            return
        try:
            self._set(change(self._state))
        except InputError as error:
            with self._lock:
                self._message = str(error)
                self._refresh()

    def _change(self, field: str, value) -> None:
        self._apply(lambda state: state.changed(**{field: value}))

    def _slide(self, plane: str, index: int) -> None:
        def slid(state: ViewState) -> ViewState:
            position = list(state.position)
            position[NORMAL[plane]] = index
            return state.changed(position=tuple(position))

        self._apply(slid)

    def _preset(self, name: str) -> None:
        given = self.case.modalities if name == "all" else PRESETS[name]
        self._apply(lambda state: state.changed(given=given))

    def _on_plane(self, plane: str, event: dict) -> None:
        self._apply(lambda state: self._gestures.after(state, plane, event))

    def _snapshot(self) -> None:
        shown = "" if self._result is None else "_" + subset_name(self._result.subset)
        name = f"{self.case.id}{shown}_{self._state.overlay}.png"
        canvas = self.controls.planes[PLANES[0]]
        with self._lock:
            if hasattr(canvas, "download"):
                canvas.download(name, small_png(self.picture()))
                self._message = f"{name} was given to the browser"
            else:
                self.picture(name)
                self._message = f"written: {Path(name).resolve()}"
            self._refresh()

    def _show_mesh(self) -> None:
        try:
            figure = go.FigureWidget(self.mesh())
        # Without anywidget plotly has no widget to offer.
        except (InputError, ImportError) as error:
            with self._lock:
                self._message = f"3D: {error}"
                self._refresh()
            return
        for old in self.controls.below.children:
            old.close()
        self.controls.below.children = (figure,)

    # State, worker and screen

    def _set(self, state: ViewState) -> None:
        with self._lock:
            if self._closed:
                return
            before, self._state = self._state, state
            self._message = ""
            if state.given != before.given:
                self._wish()
            elif state.source != before.source and self._result is not None:
                self._segmenter.request_scores(self._result.subset, state.source)
            self._refresh()

    def _wish(self) -> None:
        """Ask for what the checks say; a subset seen before is there at once."""
        if self._segmenter is None:
            return
        seen = self._segmenter.request(self._state.given)
        if seen is None:
            self._busy(f"segmenting from {subset_name(self._state.given, ' + ')}", 0.0)
        else:
            self._take(seen)

    def _take(self, result: Result) -> None:
        self._result = result
        names = [name for name in SOURCES if name in result.labels]
        self._screen.offer_sources(names)
        if self._state.source not in names:
            self._state = self._state.changed(source=names[0])
        self._segmenter.request_scores(result.subset, self._state.source)
        self._busy("", None)

    def _hear(self, event: Event) -> None:
        """The worker's word; runs on its thread."""
        with self._lock:
            if self._closed:
                return
            if event.kind == "done" and event.subset == self._state.given and event.result is not self._result:
                self._take(event.result)
                self._refresh()
            elif event.kind == "busy":
                if event.wished and event.subset == self._state.given:
                    self._busy(event.message, event.share)
                elif not event.wished:
                    self._busy(f"in the background: {event.message}", event.share)
            elif event.kind == "failed":
                self._message = f"from {subset_name(event.subset)}: {event.message}"
                self._busy("", None)
                self._refresh()
            elif event.kind in ("scored", "idle"):
                if event.kind == "idle":
                    self._busy("", None)
                self._refresh_words()

    def _cancel(self) -> None:
        with self._lock:
            if self._closed or self._segmenter is None:
                return
            self._segmenter.cancel()
            if self._result is not None:
                # Back to what is on screen, so that checks and picture agree.
                self._state = self._state.changed(given=self._result.subset)
            self._busy("", None)
            self._message = "cancelled" + ("" if self._result else "; change a check to try again")
            self._refresh()

    def _busy(self, text: str, share: float | None) -> None:
        self._working = text
        self._screen.progress((share or 0.0) if text else None)
        self._refresh_status()

    def _refresh(self) -> None:
        """Bring planes, controls and words in line with the state; called with the lock held."""
        self._screen.draw(self._state, self._result)
        self._refresh_words()

    def _refresh_words(self) -> None:
        scored = {} if self._segmenter is None else dict(self._segmenter.scores)
        self._screen.words(self._state, self._result, scored)
        self._refresh_status()

    def _refresh_status(self) -> None:
        self._screen.status(self._message, self._working, self._result)

    def _scores(self):
        if self._result is None or self._segmenter is None:
            return None
        return self._segmenter.scores.get((self._result.subset, self._state.source))
