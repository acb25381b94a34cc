"""What is known of the device: what it computes fastest in, and that freed memory is kept."""

import platform
import subprocess
import sys

import pytest
import torch

from smml import devices
from smml.devices import fastest_precision, find_device, keep_freed_memory
from smml.errors import InputError


@pytest.fixture
def card(monkeypatch):
    """A made-up card by the name of "cuda": ``card(dtypes)`` gives out memory and computes in these alone."""

    def plug_in(computes):
        real, empty = torch.ones, torch.empty

        def ones(*shape, device=None, dtype=None, **options):
            if dtype not in computes:
                raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with")
            return real(*shape, dtype=dtype, **options)

        monkeypatch.setattr(torch, "ones", ones)
        monkeypatch.setattr(torch, "empty", lambda *shape, device=None, **options: empty(*shape, **options))

    return plug_in


def test_a_card_on_which_nothing_runs_is_refused_before_the_work(card):
    card([])
    with pytest.raises(InputError, match=r"^device 'cuda:1' cannot be used here \(CUDA .* on the device\); try 'cpu'$"):
        find_device("cuda:1")


def test_a_device_without_float64_is_refused_before_the_work(card):
    """As Apple's GPUs, in the middle of whose first step a loss would fail."""
    card([torch.float32])
    with pytest.raises(InputError, match=r"^device 'cuda' .*: it does not compute in float64.*; try 'cpu'$"):
        find_device("cuda")


def test_a_device_that_computes_is_taken(card):
    card([torch.float32, torch.float64])
    assert find_device("cuda:0") == torch.device("cuda:0")
    assert find_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["warp", "", "cuda:-1", "cpu:x", "meta", "mps", "vulkan"])
def test_a_device_that_is_none_here_is_one_sentence(name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("a machine of Apple's")
    with pytest.raises(InputError, match=rf"^device '{name}' cannot be used here .*; try 'cpu'$"):
        find_device(name)


def test_bfloat16_is_taken_where_a_cpu_multiplies_it(monkeypatch):
    for multiplies, word in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=multiplies: answer, raising=False)
        assert fastest_precision(torch.device("cpu")) == word
        assert fastest_precision(torch.device("cuda")) == "float32", "nothing was measured there"
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert fastest_precision(torch.device("cpu")) == "float32", "a PyTorch that cannot be asked"


FAULTS = """
import resource, sys, torch
from smml.devices import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
without = faults()
assert keep_freed_memory()
for _ in range(6):
    faults()  # until the blocks have found their places
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such switch")
def test_memory_that_is_kept_is_not_cleared_page_by_page_again():
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    without, kept = map(int, run.stdout.split())
    # With pages of 4 KB each block is 16,384 of them; huge pages would be fewer.
    assert kept * 3 < without


def test_the_users_own_settings_of_the_allocator_stand(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not devices.keep_freed_memory.__wrapped__()
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setattr(devices.platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory.__wrapped__()
