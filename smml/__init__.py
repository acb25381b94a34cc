"""Brain-tumour segmentation from whatever MRI sequences a patient has (SMML, AAAI 2025), taught and usable."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smml.data import align_case, find_cases, read_case, simulate_cohort
    from smml.evaluation.evaluate import evaluate
    from smml.inference import Predictor
    from smml.training import train
    from smml.viewer import ModalityViewer

__all__ = [
    "ModalityViewer",
    "Predictor",
    "align_case",
    "evaluate",
    "find_cases",
    "read_case",
    "simulate_cohort",
    "train",
]

__version__ = "0.1.0"

# Where each name lives. It is imported when it is asked for: torch and MONAI take seconds, which a program that only
# wants the version, or one part, should not wait for.
_HOMES = {
    "ModalityViewer": "smml.viewer",
    "Predictor": "smml.inference",
    "align_case": "smml.data",
    "evaluate": "smml.evaluation",
    "find_cases": "smml.data",
    "read_case": "smml.data",
    "simulate_cohort": "smml.data",
    "train": "smml.training",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
