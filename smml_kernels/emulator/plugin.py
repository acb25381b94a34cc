"""A plug-in of pytest: the kernels run as PTX.

    python -m pytest -p smml_kernels.emulator.plugin tests/kernels/test_dice_ce.py

``SMML_PTX_CACHE`` names the folder for what Triton compiles; without it, ``build/ptx`` of the project.
"""

import importlib.util
import os
from pathlib import Path

import pytest

# Before anything imports Triton or looks for a GPU, and before tests/conftest.py would have it interpret.
os.environ["TRITON_INTERPRET"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests take a GPU where there is one

_RECORDS: list[dict] = []


def pytest_configure(config) -> None:
    """Put the emulator in the place of a GPU, in the process that runs tests."""
    if getattr(config.option, "numprocesses", None):
        return  # pytest-xdist starts others for them
    if importlib.util.find_spec("triton") is None:
        raise pytest.UsageError(
            "the kernels are compiled by Triton, which is not installed (it exists for Linux on x86-64)"
        )
    from smml_kernels.emulator.launches import install

    cache = Path(os.environ.get("SMML_PTX_CACHE") or config.rootpath / "build" / "ptx")
    try:
        _RECORDS.append(vars(install(cache)))
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_sessionfinish(session) -> None:
    """A process that pytest-xdist started hands its record over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ptx"] = _RECORDS[0]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """Receive such a record."""
    if "ptx" in getattr(node, "workeroutput", {}):
        _RECORDS.append(node.workeroutput["ptx"])


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what ran as PTX: a run in which no kernel did would prove nothing."""
    terminalreporter.section("kernels as PTX")
    total = {key: sum(record[key] for record in _RECORDS) for key in ("kernels", "programs", "instructions")}
    seconds = {key: sum(record[key] for record in _RECORDS) for key in ("compiling", "running")}
    launches: dict[str, int] = {}
    for record in _RECORDS:
        for name, number in record["launches"].items():
            launches[name] = launches.get(name, 0) + number
    for name, number in sorted(launches.items()):
        terminalreporter.write_line(f"{number:6d} launches of {name}")
    terminalreporter.write_line(
        f"{sum(launches.values()):6d} launches of {total['kernels']} kernels, {total['programs']} programs, "
        f"{total['instructions']} instructions; processor seconds: {seconds['compiling']:.0f} compiling, "
        f"{seconds['running']:.0f} running"
    )
