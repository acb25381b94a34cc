"""Which implementation runs: the words, the environment, and that every public name keeps its meaning."""

import os
import subprocess
import sys

import pytest
import torch
from triton_checks import DEVICE, labels, needs_triton, randn

import smml_kernels
from smml_kernels import dispatch, reference

OPERATIONS = {"relation_loss", "masked_fusion", "exchange_loss", "dice_ce_loss"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("SMML_KERNELS", raising=False)


def call_each(implementation: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """One call of each public function, as one number each."""
    x, y = randn(1, 3, 3, 3, 2).to(device), labels(1, 3, 3, 2, classes=3).to(device)
    f, g = randn(9, 4, seed=1).to(device), randn(9, 4, seed=2).to(device)
    maps = [randn(1, 2, 3, 3, 2, seed=s).to(device) for s in (3, 4)]
    mask = torch.tensor([[True, False]])
    weight, bias = randn(3, 4, seed=5).to(device), randn(3, seed=6).to(device)
    word = {"implementation": implementation}
    return {
        "relation_loss": smml_kernels.relation_loss(f, g, **word),
        "masked_fusion": smml_kernels.masked_fusion(maps, mask, weight, bias, **word).double().square().sum(),
        "exchange_loss": sum(smml_kernels.exchange_loss(x, -x, y, **word)),
        "dice_ce_loss": smml_kernels.dice_ce_loss(x, y, **word),
    }


def test_auto_on_the_cpu_is_the_pytorch_form_to_the_bit():
    assert call_each("auto") == call_each("torch")
    x, y = randn(1, 3, 3, 3, 2).cpu(), labels(1, 3, 3, 2, classes=3).cpu()
    assert smml_kernels.dice_ce_loss(x, y) == reference.dice_ce_loss(x, y)


@needs_triton
def test_triton_and_pytorch_mean_the_same():
    ours, theirs = call_each("triton", DEVICE), call_each("torch", DEVICE)
    for name in OPERATIONS:
        assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-5), name


@needs_triton
def test_the_environment_decides_where_a_call_says_auto(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "smml_kernels.dice_ce.op.dice_ce_loss", lambda *a, **k: calls.append("triton") or torch.tensor(0.0)
    )
    x, y = randn(1, 2, 2, 2, 2), labels(1, 2, 2, 2, classes=2)
    monkeypatch.setenv("SMML_KERNELS", "triton")
    smml_kernels.dice_ce_loss(x, y)
    assert calls == ["triton"]
    smml_kernels.dice_ce_loss(x, y, implementation="torch")  # the call has the last word
    monkeypatch.setenv("SMML_KERNELS", "torch")
    smml_kernels.dice_ce_loss(x, y)
    assert calls == ["triton"]
    monkeypatch.setenv("SMML_KERNELS", "auto")
    smml_kernels.dice_ce_loss(x.cpu(), y.cpu())
    assert calls == ["triton"]


def test_unknown_words_are_refused_by_name(monkeypatch):
    f = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"implementation='cuda' is unknown: choose from auto, torch, triton"):
        smml_kernels.relation_loss(f, f, implementation="cuda")
    monkeypatch.setenv("SMML_KERNELS", "fast")
    with pytest.raises(ValueError, match="SMML_KERNELS=fast is unknown"):
        smml_kernels.relation_loss(f, f)
    assert all(line.startswith("none: SMML_KERNELS=fast") for line in smml_kernels.report().values())


def test_report_names_every_operation_and_the_reason(monkeypatch):
    report = smml_kernels.report()
    assert set(report) == OPERATIONS
    if DEVICE == "cpu":
        assert all(line.startswith("torch: ") and "GPU" in line for line in report.values())
    else:
        assert all(line.startswith("triton: version ") for line in report.values())
    monkeypatch.setenv("SMML_KERNELS", "torch")
    assert all(line == "torch: SMML_KERNELS=torch" for line in smml_kernels.report().values())


def in_a_process(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )
    return result.stdout.strip()


def test_triton_on_a_cpu_that_does_not_interpret_is_a_clear_error():
    code = (
        "import torch, smml_kernels\n"
        "f = torch.ones(3, 2)\n"
        "try: smml_kernels.relation_loss(f, f)\n"
        "except RuntimeError as error: print(error)"
    )
    said = in_a_process(code, SMML_KERNELS="triton", TRITON_INTERPRET="0")
    assert said.startswith("SMML_KERNELS=triton was asked for relation_loss, but Triton")
    assert said.endswith("use 'auto' or 'torch'")


def test_everything_but_the_kernels_works_where_triton_is_missing():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "import torch, smml_kernels\n"
        "f = torch.ones(3, 2)\n"
        "print(smml_kernels.relation_loss(f, f).item(), smml_kernels.report()['relation_loss'])"
    )
    assert in_a_process(code) == "0.0 torch: Triton is not installed"


def test_a_gpu_that_is_too_old_runs_pytorch_and_says_so(monkeypatch):
    monkeypatch.setattr(dispatch, "interprets", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "an older GPU")
    monkeypatch.setattr(torch.version, "hip", None)
    dispatch._obstacle.cache_clear()
    try:
        assert not dispatch.use_triton("relation_loss", "auto", torch.device("cuda", 0))
        with pytest.raises(RuntimeError, match=r"compute capability 8\.0, and an older GPU has 7\.5"):
            dispatch.use_triton("relation_loss", "triton", torch.device("cuda", 0))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        dispatch._obstacle.cache_clear()
        assert dispatch.use_triton("relation_loss", "auto", torch.device("cuda", 0)) == bool(dispatch_has_triton())
    finally:
        dispatch._obstacle.cache_clear()


def dispatch_has_triton() -> bool:
    import importlib.util

    return importlib.util.find_spec("triton") is not None
