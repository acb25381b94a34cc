"""What is known of the device: what it computes fastest in, and that freed memory is kept."""

import platform
import subprocess
import sys

import pytest
import torch

from smml import devices
from smml.devices import fastest_precision, keep_freed_memory


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
