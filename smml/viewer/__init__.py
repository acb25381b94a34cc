"""Looking at a case: switch sequences off for the model and see what it makes of the rest.

``ModalityViewer`` needs the extra ``notebooks``; pictures and meshes need nothing but the package itself, so the front
is loaded only when it is asked for.
"""

from smml.errors import MissingPackage
from smml.viewer.mesh import mesh_figure
from smml.viewer.picture import viewer_picture

__all__ = ["ModalityViewer", "mesh_figure", "viewer_picture"]


def __getattr__(name: str):
    if name != "ModalityViewer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from smml.viewer.widget import ModalityViewer
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "smml":
            raise
        raise MissingPackage(f"ModalityViewer needs {error.name}, which is not installed", extra="notebooks") from error
    return ModalityViewer
