"""``ModalityViewer``: a brain on screen, four checks for what the model is given, and the answer at once.

Three threads of events meet here: controls and planes (the kernel's thread) and the worker that segments. One lock
orders them, and one rule keeps the picture honest: a result is shown only if its subset is what the checks say.

A viewer is closed with the last name that it has, and, once it is on screen, by running its cell again: ipywidgets and
the notebook's ``Out`` would keep it, its case and its thread for ever.
"""

import base64
import html
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from IPython import get_ipython
from IPython.display import DisplayHandle, display

from smml.data.case import Case
from smml.errors import InputError
from smml.figures.pixels import intensity_window
from smml.inference import Contributions, Predictor
from smml.modalities import Subset, parse_subset, subset_name, subsets_of
from smml.viewer.controls import NAMESAKES, Controls
from smml.viewer.display import ANATOMICAL_PLANES, Display
from smml.viewer.mesh import mesh_figure
from smml.viewer.picture import compose, write_picture
from smml.viewer.render import encode_png, layers_of
from smml.viewer.screen import Screen
from smml.viewer.state import NAMED_SUBSETS, SOURCES, ViewState, checked, first_state
from smml.viewer.worker import CACHE_BYTES, Event, RegionScores, Result, Worker

# Those that a reader may see: nothing else need keep them, so this does.
_SHOWN: "set[ModalityViewer]" = set()
_OPEN: "weakref.WeakSet[ModalityViewer]" = weakref.WeakSet()


class ModalityViewer:
    """A case in three linked planes, segmented live from the modalities that are checked.

    Display it as the last line of a cell. It is tested in JupyterLab 4; Notebook 7, VS Code and Colab have not been
    tried. ``viewer.picture()`` is what readers without a kernel can see.

    The overlay "contribution" shows what each of the case's sequences contributed
    (:func:`smml.inference.contributions`). It is computed when it is first asked for, takes as long as the
    segmentations from all subsets, and is kept beside the cache: 12 bytes for each voxel of the brain and sequence.

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
        self._map: tuple[tuple[str, str], np.ndarray] | None = None
        self._lock = threading.RLock()
        self._closed = False
        self._message = self._working = ""
        self._still: DisplayHandle | None = None
        self.controls = Controls(
            case, self._display, self._state, predicts=predictor is not None, interactive=interactive
        )
        self._screen = Screen(case, self._display, self.controls, size=size, predicts=predictor is not None)
        self._connect()
        self._cell = _running_cell()
        # Before the worker, whose memory is the largest part.
        for other in list(_OPEN):
            if self._cell is not None and other._was_made_before(self._cell):
                other.close()
        self._worker = None
        if predictor is not None:
            # Weak, so that the worker alone cannot keep a viewer's memory.
            hear = weakref.WeakMethod(self._hear)
            self._worker = Worker(
                case, predictor, lambda event: (heard := hear()) and heard(event), cache_bytes=cache_bytes
            )
        # Not at the end of the process, which ends all of it in any case.
        self._let_go = weakref.finalize(self, _let_go, self.controls, self._worker)
        self._let_go.atexit = False
        _OPEN.add(self)
        with self._lock:
            self._set(self._state)
            self._wish()

    # What a notebook calls

    @property
    def widget(self) -> widgets.VBox:
        """The widget, to be placed into a layout of one's own, which then keeps the viewer until it is closed."""
        if not self._closed:
            _SHOWN.add(self)
        return self.controls.root

    @property
    def state(self) -> ViewState:
        """What is shown at present."""
        return self._state

    @property
    def result(self) -> Result | None:
        """The segmentation on screen, None before the first."""
        return self._result

    @property
    def scores(self) -> dict[tuple[Subset, str], RegionScores]:
        """WT, TC and ET against the truth, by (subset, source), as far as they are computed."""
        return {} if self._worker is None else dict(self._worker.scores)

    @property
    def contributions(self) -> Contributions | None:
        """What each sequence of the case contributed; None until the overlay "contribution" was asked for."""
        return None if self._worker is None else self._worker.contributions

    def show(self, **fields) -> None:
        """Change what is shown, as the controls would.

        Args:
            **fields: of :class:`smml.viewer.state.ViewState`, for example ``given="flair+t2"`` or ``overlay="truth"``.

        Raises:
            InputError: a field is unknown, or its value is not among the control's choices; what is shown then stays as
                it was.
        """
        # The worker offers other predictions as soon as it has them, and must not do so in between.
        with self._lock:
            try:
                state = self._state.changed(**fields)
            except TypeError as error:
                raise InputError(f"show: {error}; fields are {', '.join(vars(self._state))}") from error
            try:
                state = checked(state, self._display, self.controls.choices)
            except InputError as error:
                early = "source" in fields and self._result is None and self._worker is not None
                hint = "; other predictions can be chosen once there is one: call wait() first" if early else ""
                raise InputError(f"show: {error}{hint}") from error
            self._set(state, again="given" in fields)

    def wait(self, timeout: float | None = 60.0) -> bool:
        """Wait until the segmentation is on screen; False if the time was not enough.

        Args:
            timeout: in seconds; None waits for ever.
        """
        return self._worker is None or self._worker.wait(timeout)

    def compute_rest(self) -> None:
        """Segment and score the subsets not seen yet, one after the other, behind whatever is asked for."""
        if self._worker is not None:
            scored = {subset for subset, _ in self._worker.scores}
            self._worker.request_rest(s for s in subsets_of(self.case.modalities) if s not in scored)

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
            scores = None if result is None else self.scores.get((result.subset, state.source))
            layers = layers_of(self.case, self._display, state, result, self._contribution())
            found = self.contributions
        size = size or self._screen.largest
        picture = compose(
            self.case, self._display, state, layers, size=size, scores=scores, result=result, contributions=found
        )
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
        return mesh_figure(self.case, result.labels[state.source], result.scheme, regions=state.regions, title=title)

    def close(self) -> None:
        """Stop the worker, take the viewer off the screen and let go of its memory. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        _OPEN.discard(self)
        _SHOWN.discard(self)
        # Without the lock: the worker may be waiting for it.
        self._let_go()
        # A viewer that is closed asks for none of them.
        self._result = self._map = self._worker = self._screen = self.case = None  # type: ignore[assignment]

    def _repr_mimebundle_(self, **_) -> dict:
        self._stays()
        # Readers of a saved notebook, GitHub among them, have no kernel and see this.
        return self._live_bundle() | {"image/png": encode_png(self.picture(), small=True)}

    def _live_bundle(self) -> dict:
        """The widget, for a front with a kernel."""
        return dict(self.controls.root._repr_mimebundle_() or {}) | {"text/plain": f"ModalityViewer of {self.case.id}"}

    def _ipython_display_(self, **_) -> None:
        # A notebook that is opened without its kernel says that the widget's model is missing, and looks no further
        # into the same output. So the picture is an output of its own, which the canvases hide where they are drawn.
        canvas = next(iter(self.controls.planes.values()))
        if self._closed or not canvas.has_trait("still"):
            display(self._repr_mimebundle_(), raw=True)
            return
        self._stays()
        with self._lock:
            canvas.still = canvas.still or f"smml-still-{uuid.uuid4().hex}"
            handle = display(self._still_bundle(), raw=True, display_id=True)
            # Drawn once more with the first segmentation: what is saved must not say that there is none.
            self._still = handle if self._result is None and self._worker is not None else None
        display(self._live_bundle(), raw=True)

    def _stays(self) -> None:
        """A viewer on screen is kept, whatever becomes of its name."""
        if self._cell is not None and not self._closed:
            _SHOWN.add(self)

    def _still_bundle(self) -> dict[str, str]:
        """The view as a picture that the canvases hide, for a front that shows no widget."""
        name = next(iter(self.controls.planes.values())).still
        png = base64.b64encode(encode_png(self.picture(), small=True)).decode()
        text = f"ModalityViewer of {self.case.id}, a picture"
        image = f'<img alt="{html.escape(text)}" src="data:image/png;base64,{png}">'
        return {"text/html": f'<div class="{name}">{image}</div>', "text/plain": text}

    # What a browser calls

    def handle(self, plane: str, event: Mapping[str, Any]) -> None:
        """Do what a mouse or a key on a plane asks for, as a browser reports it.

        What cannot be done, such as taking the last modality from the model, is said beside the checks. An unknown
        event changes nothing, and neither does any event of a viewer that is closed.

        Args:
            plane: "axial", "coronal" or "sagittal".
            event: by its ``kind``:

                - ``{"kind": "point", "x": 0.3, "y": 0.6}``: the crosshair goes there, in shares of the picture from its
                  left and upper edge;
                - ``{"kind": "drag", "x": 0.1, "y": -0.2}``: window and level change by a drag over these shares;
                - ``{"kind": "wheel", "steps": 1}``: the crosshair moves over slices;
                - ``{"kind": "key", "key": "ArrowLeft", "fast": False}``: a key by its name in JavaScript; fast is with
                  Shift. The keys are listed under the planes.

        Raises:
            InputError: there is no such plane.
        """
        if plane not in ANATOMICAL_PLANES:
            raise InputError(f"plane must be one of {', '.join(ANATOMICAL_PLANES)}, found {plane!r}")
        with self._refusals_said():
            self._set(self._state.after(plane, event, self._display, self.controls.choices))

    def _connect(self) -> None:
        """Have controls and planes heard; weakly, because ipywidgets keeps every widget until it is closed."""
        c, apply, handle = self.controls, _weakly(self._apply), _weakly(self.handle)
        show = _weakly(self.show)
        for plane, canvas in c.planes.items():
            canvas.on_msg(lambda _, event, __, plane=plane: handle(plane, event))
        for plane, slider in c.slices.items():
            slider.observe(lambda change, plane=plane: apply(ViewState.at_slice, plane, change["new"]), "value")
        for name, box in c.given.items():
            box.observe(lambda _, name=name: apply(ViewState.toggled, name), "value")
        for name, button in c.named_subsets.items():
            given = self.case.modalities if name == "all" else NAMED_SUBSETS[name]
            button.on_click(lambda _, given=given: show(given=given))
        for field in NAMESAKES:
            control = getattr(c, field)
            control.observe(lambda change, field=field: apply(ViewState.changed, **{field: change["new"]}), "value")
        for region, box in c.regions.items():
            box.observe(lambda change, region=region: apply(ViewState.with_region, region, change["new"]), "value")
        c.window.observe(lambda change: apply(ViewState.with_window, *change["new"]), "value")
        for button, press in (
            (c.auto, self._set_auto_window),
            (c.cancel, self._cancel),
            (c.rest, self.compute_rest),
            (c.snapshot, self._snapshot),
            (c.mesh, self._show_mesh),
        ):
            weak = _weakly(press)
            button.on_click(lambda _, weak=weak: weak())

    @contextmanager
    def _refusals_said(self) -> Iterator[None]:
        """Hold the lock; what is refused inside changes nothing and is said beside the checks."""
        with self._lock:
            try:
                yield
            except InputError as error:
                self._set(self._state, str(error))

    def _apply(self, change: Callable[..., ViewState], *arguments, **fields) -> None:
        """Put ``change(state, ...)`` in force, unless a control only follows the state."""
        with self._refusals_said():
            if not self._closed and not self._screen.follows:
                self._set(change(self._state, *arguments, **fields))

    def _set_auto_window(self) -> None:
        self._apply(lambda state: state.with_window(*intensity_window(self.case.volumes[state.shown])))

    def _was_made_before(self, cell: tuple[str, str]) -> bool:
        """Whether the same cell made it, in an earlier run."""
        return self._cell is not None and self._cell[0] == cell[0] and self._cell[1] != cell[1]

    def _cancel(self) -> None:
        with self._lock:
            if self._closed or self._worker is None:
                return
            self._worker.cancel()
            self._busy("", None)
            self._give_up("cancelled")
            if self._result is not None:
                self._worker.request_scores(self._result, self._state.source)

    def _snapshot(self) -> None:
        shown = "" if self._result is None else "_" + subset_name(self._result.subset)
        name = f"{self.case.id}{shown}_{self._state.overlay}.png"
        canvas = next(iter(self.controls.planes.values()))
        with self._refusals_said():
            if hasattr(canvas, "download"):
                canvas.download(name, encode_png(self.picture(), small=True))
                self._set(self._state, f"{name} was given to the browser")
            else:
                self.picture(name)
                self._set(self._state, f"written: {Path(name).resolve()}")

    def _show_mesh(self) -> None:
        try:
            figure = go.FigureWidget(self.mesh())
        # Without anywidget plotly has no widget to offer.
        except (InputError, ImportError) as error:
            with self._lock:
                self._set(self._state, f"3D: {error}")
            return
        for old in self.controls.below.children:
            old.close()
        self.controls.below.children = (figure,)

    # What the worker calls

    def _hear(self, event: Event) -> None:
        """The worker's word; runs on its thread."""
        with self._lock:
            if self._closed:
                return
            match event.kind:
                case "busy":
                    self._on_busy(event)
                case "done":
                    self._on_done(event)
                case "scored":
                    self._tell()
                    self._complete_still()
                case "contributed":
                    self._set(self._state, self._message)
                case "failed":
                    self._on_failed(event)
                case "idle":
                    self._busy("", None)
                    self._tell()

    def _on_busy(self, event: Event) -> None:
        if not event.wished:
            self._busy(f"in the background: {event.message}", event.share)
        elif event.subset == self._state.given:
            self._busy(event.message, event.share)

    def _on_done(self, event: Event) -> None:
        # Another subset may have been wished for since the worker decided to say so.
        wanted = event.subset == self._state.given
        if wanted and event.result is not None and event.result is not self._result:
            self._take(event.result)
            self._set(self._state, self._message)
        self._complete_still()

    def _complete_still(self) -> None:
        """Draw the picture that stands in for the widget once more, as soon as it has segmentation and scores."""
        if self._still is None or self._result is None:
            return
        if self.case.label is None or (self._result.subset, self._state.source) in self.scores:
            still, self._still = self._still, None
            still.update(self._still_bundle(), raw=True)

    def _on_failed(self, event: Event) -> None:
        self._busy("", None)
        message = f"from {subset_name(event.subset)}: {event.message}"
        if event.wished:
            self._give_up(message)
        else:
            self._set(self._state, message)

    # State, worker and screen; each is called with the lock held

    def _give_up(self, message: str) -> None:
        """The last wish brings nothing: back to what is on screen, so that checks and picture agree."""
        if self._result is None:
            self._set(self._state, f"{message}; press a subset to try again")
            return
        # In force before it is set, which then sees no other wish in it.
        self._state = self._state.changed(given=self._result.subset)
        self._set(self._state, message)

    def _set(self, state: ViewState, message: str = "", *, again: bool = False) -> None:
        """Put a state in force, ask the worker for what it lacks, and bring the screen in line.

        Args:
            state: to show.
            message: to the reader, beside the checks.
            again: ask for the subset even if it was asked for before, as long as its result is not there.
        """
        if self._closed:
            return
        before, self._state, self._message = self._state, state, message
        missing = self._result is None or self._result.subset != state.given
        if state.given != before.given or (again and missing):
            self._wish()
        elif state.source != before.source and self._result is not None and self._worker is not None:
            self._worker.request_scores(self._result, state.source)
        if state.overlay == "contribution" != before.overlay and self._worker is not None:
            self._worker.request_contributions()
        self._screen.draw(self._state, self._result, self._contribution())
        self._tell()

    def _wish(self) -> None:
        """Ask for what the checks say; a subset seen before is there at once."""
        if self._worker is None:
            return
        seen = self._worker.request(self._state.given)
        if seen is None:
            self._busy(f"segmenting from {subset_name(self._state.given, ' + ')}", 0.0)
        else:
            self._take(seen)

    def _take(self, result: Result) -> None:
        """Keep a result, for the next drawing of the screen."""
        self._result = result
        names = [name for name in SOURCES if name in result.labels]
        self._screen.offer_sources(names)
        if self._state.source not in names:
            self._state = self._state.changed(source=names[0])
        if self._worker is not None:
            self._worker.request_scores(result, self._state.source)
        self._busy("", None)

    def _busy(self, text: str, share: float | None) -> None:
        """Say what is being done and how far it is; "" takes the progress away."""
        self._working = text
        self._screen.progress((share or 0.0) if text else None)
        self._screen.status(self._message, self._working, self._result)

    def _contribution(self) -> np.ndarray | None:
        """The map that the state names, float32 [X, Y, Z]; None where it is not shown or not computed yet."""
        found, key = self.contributions, (self._state.contributor, self._state.compared)
        if found is None or self._state.overlay != "contribution":
            return None
        # Once, because it is asked for with every frame.
        if self._map is None or self._map[0] != key:
            self._map = (key, found.map(*key))
        return self._map[1]

    def _tell(self) -> None:
        """Write read-out, legend, scores and status anew."""
        self._screen.words(self._state, self._result, self.scores, self.contributions, self._contribution())
        self._screen.status(self._message, self._working, self._result)


def _weakly(method: Callable) -> Callable:
    """A bound method that does not keep its object; without it, nothing is done."""
    kept = weakref.WeakMethod(method)
    return lambda *arguments, **fields: (call := kept()) and call(*arguments, **fields)


def _let_go(controls: Controls, worker: Worker | None) -> None:
    """Stop the worker and take the widgets off the screen."""
    if worker is not None:
        worker.close()
    for widget in controls.descendants():
        widget.unobserve_all()
        widget.close()


def _running_cell() -> tuple[str, str] | None:
    """Which cell of a notebook is running, and in which run; None outside one.

    A front that does not name its cells is told by the code.
    """
    shell = get_ipython()
    request = shell.get_parent() if hasattr(shell, "get_parent") else None
    if not request:
        return None
    named = request.get("metadata", {}).get("cellId") or request.get("content", {}).get("code", "")
    return str(named), str(request.get("header", {}).get("msg_id", ""))
