"""The import of segment_anything beside a CPU build of PyTorch, and nothing of it before it is needed."""

import subprocess
import sys
import types

import pytest

from smml.errors import InputError
from smml.sam import torchvision_gap


def run(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def test_segment_anything_imports_whatever_the_build_of_torchvision():
    """And not before it is asked for: it takes seconds that `smml info` should not."""
    code = (
        "import sys, smml.sam; print([m for m in ('torchvision', 'segment_anything', 'pandas') if m in sys.modules])\n"
        "from smml.sam.torchvision_gap import bridge, import_segment_anything as load\n"
        "package = load(); assert load() is package\n"
        "import torch, torchvision; torch.ops.torchvision.nms; first = bridge()\n"
        "assert bridge() == first; print(package.__name__, torchvision.__name__)"
    )
    assert run(code).split("\n") == ["[]", "segment_anything torchvision"]


def test_nothing_is_declared_where_torchvision_is_whole(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setattr(torchvision_gap, "_declared", None)
    assert torchvision_gap.bridge() is False
    assert torchvision_gap._declared is None


def test_other_failures_of_the_import_are_not_hidden(monkeypatch):
    def fail(name):
        raise RuntimeError("another trouble")

    monkeypatch.setattr(torchvision_gap.importlib, "import_module", fail)
    monkeypatch.setattr(torchvision_gap, "_declared", None)
    with pytest.raises(RuntimeError, match="another trouble"):
        torchvision_gap.bridge()
    assert torchvision_gap._declared is None


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(InputError, match=r"'segment_anything' is not installed; run: pip install"):
        torchvision_gap.import_segment_anything()
