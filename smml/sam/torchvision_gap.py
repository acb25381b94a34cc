"""Make ``import segment_anything`` work where PyTorch is a CPU build and torchvision comes from PyPI.

segment-anything imports torchvision. PyPI's torchvision for Linux is compiled for CUDA; next to a CPU build of PyTorch
its compiled part cannot be loaded, the two operators ``torchvision::nms`` and ``torchvision::qnms`` do not exist, and
the import stops at the line that describes them ("operator torchvision::nms does not exist"). Nothing of SAM that this
project uses calls them, so it is enough to declare them; a call would still fail and say that there is no kernel.
"""

import importlib
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smml.errors import InputError

# A ``segment_anything.modeling.Sam``, whose package states no types: a type checker lets pass what is asked of it,
# because of the parts of an nn.Module it knows only that they are tensors or modules.
if TYPE_CHECKING:
    Sam = Any
else:
    Sam = nn.Module

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# The declarations last as long as this object.
_declared: torch.library.Library | None = None
_lock = threading.Lock()


def import_segment_anything() -> ModuleType:
    """The package ``segment_anything``, after making sure that it can be imported.

    Nothing is declared where torchvision is whole.

    Raises:
        InputError: segment-anything or torchvision is not installed.
    """
    try:
        with _lock:
            bridge()
            # MONAI tries this import too, before anything is declared, and leaves half of the package behind.
            if "segment_anything" not in sys.modules:
                _forget("segment_anything")
            return importlib.import_module("segment_anything")
    except ModuleNotFoundError as error:
        raise InputError(
            f"SAM needs the packages segment-anything and torchvision, but {error.name!r} is not installed; "
            "run: pip install segment-anything torchvision"
        ) from error


def bridge() -> bool:
    """Import torchvision, declaring its missing operators if that is what stops it.

    Returns:
        True where something had to be declared, False where torchvision is whole.
    """
    global _declared
    try:
        importlib.import_module("torchvision")
        return _declared is not None
    except RuntimeError as error:
        if _declared is not None or "torchvision::nms" not in str(error):
            raise
    # The failed import leaves half of the package behind.
    _forget("torchvision")
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _declared.define(schema)
    importlib.import_module("torchvision")
    return True


def _forget(package: str) -> None:
    """Drop what is imported of a package."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
