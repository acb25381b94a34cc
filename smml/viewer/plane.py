"""One plane in the browser: a canvas that draws what Python rendered and sends back click, drag, wheel and keys.

The canvas keeps its last frame until the next one is decoded, so it is never blank. Without anywidget a plain image
widget takes its place: everything but the mouse still works, through the sliders.
"""

from pathlib import Path

import ipywidgets as widgets
import traitlets

try:
    import anywidget
except ImportError:
    anywidget = None  # type: ignore[assignment]

_HERE = Path(__file__).parent

if anywidget is not None:

    class PlaneCanvas(anywidget.AnyWidget):
        """A focusable canvas. Its messages are the events that :meth:`smml.viewer.ModalityViewer.handle` takes.

        Attributes:
            png: the frame.
            label: what a screen reader says.
            still: class of the picture that stands in for the canvases where they cannot be; they hide it.
            handles: what a screen reader calls the handles of sliders, by a class of the slider; one canvas has those
                of the whole viewer.
        """

        # Their text, not their paths: anywidget would watch a path, and by that keep every canvas for ever.
        _esm = (_HERE / "plane.js").read_text(encoding="utf-8")
        _css = (_HERE / "plane.css").read_text(encoding="utf-8")
        png = traitlets.Bytes(b"").tag(sync=True)
        label = traitlets.Unicode("").tag(sync=True)
        still = traitlets.Unicode("").tag(sync=True)
        handles = traitlets.Dict().tag(sync=True)

        def download(self, name: str, content: bytes) -> None:
            """Have the browser save a file."""
            self.send({"kind": "download", "name": name}, buffers=[content])


class PlaneImage(widgets.Image):
    """The fallback without anywidget: the same frames, no mouse."""

    png = traitlets.Bytes(b"")
    label = traitlets.Unicode("")
    handles = traitlets.Dict()

    @traitlets.observe("png")
    def _on_png(self, change) -> None:
        self.value = change["new"]


def make_plane(*, interactive: bool = True) -> widgets.DOMWidget:
    """A canvas, or an image where anywidget is missing or not wanted."""
    if interactive and anywidget is not None:
        return PlaneCanvas()
    return PlaneImage(format="png")
