"""What mouse and keys on a plane do to the state."""

from smml.data.case import Case
from smml.modalities import MODALITIES
from smml.viewer.state import Display, ViewState


class Gestures:
    """The gestures on the planes of one case.

    Args:
        case: which modalities there are.
        display: where its voxels lie.
        home: crosshair that the key Home goes back to.
        overlays: that the key t goes through.
        predicts: whether the keys 1 to 4 may change what the model is given.
    """

    def __init__(
        self, case: Case, display: Display, home: tuple[int, int, int], overlays: tuple[str, ...], *, predicts: bool
    ) -> None:
        self._names, self._display, self._home = tuple(case.volumes), display, home
        self._overlays, self._predicts = overlays, predicts
        # The overlay that the space bar hid.
        self._hidden: str | None = None

    def after(self, state: ViewState, plane: str, event: dict) -> ViewState:
        """The state after an event of a plane; an unknown one changes nothing.

        Args:
            state: before.
            plane: where it happened.
            event: of :mod:`smml.viewer.plane`: ``kind`` is "point" or "drag" (``x``, ``y`` in shares of the picture),
                "wheel" (``steps``) or "key" (``key``, ``fast``).

        Raises:
            InputError: it would take the last modality from the model.
        """
        kind = event.get("kind")
        if kind == "point":
            position = self._display.point(plane, state.position, float(event["x"]), float(event["y"]))
            return state.changed(position=position)
        if kind == "wheel":
            return state.moved(self._display, plane, slices=int(event["steps"]))
        if kind == "drag":
            return state.dragged(float(event["x"]), float(event["y"]))
        if kind == "key":
            return self._after_key(state, plane, str(event["key"]), 5 if event.get("fast") else 1)
        return state

    def _after_key(self, state: ViewState, plane: str, key: str, step: int) -> ViewState:
        moves = {
            "ArrowLeft": {"across": -step},
            "ArrowRight": {"across": step},
            "ArrowUp": {"down": -step},
            "ArrowDown": {"down": step},
            "PageUp": {"slices": step},
            "PageDown": {"slices": -step},
            ".": {"slices": 1},
            ",": {"slices": -1},
        }
        if key in moves:
            return state.moved(self._display, plane, **moves[key])
        if key == "Home":
            return state.changed(position=self._home)
        if key in "1234":
            name = MODALITIES[int(key) - 1]
            return state.toggled(name) if self._predicts and name in self._names else state
        if key == "b":
            return state.changed(shown=self._names[(self._names.index(state.shown) + 1) % len(self._names)])
        if key == "t":
            names = [name for name in self._overlays if name != "none"] or ["none"]
            place = names.index(state.overlay) + 1 if state.overlay in names else 0
            return state.changed(overlay=names[place % len(names)])
        if key == " ":
            back = self._hidden or self._overlays[0]
            self._hidden = None if state.overlay == "none" else state.overlay
            return state.changed(overlay=back if state.overlay == "none" else "none")
        if key in "oc":
            field = {"o": "outline", "c": "crosshair"}[key]
            return state.changed(**{field: not getattr(state, field)})
        if key in "[]":
            change = 0.1 if key == "]" else -0.1
            return state.changed(opacity=round(min(1.0, max(0.0, state.opacity + change)), 2))
        return state
