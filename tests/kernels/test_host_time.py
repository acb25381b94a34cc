"""What a call costs before its kernels run: launches that are remembered, plans that are kept, modules not imported."""

import os
import subprocess
import sys

import pytest
import torch
from triton_checks import COMPILED, DEVICE, error, needs_triton, randn

from smml_kernels import host_time, reference
from smml_kernels.benchmarks import machine

pytestmark = needs_triton

# A process of its own: there kernels are compiled, for a stand-in whose launches do nothing.
BEGINNING = """
import sys
from pathlib import Path

from smml_kernels import host_time

silent = host_time.install(Path(sys.argv[1]))
"""

REMEMBERED = """
import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from smml_kernels.common import launch


@triton.jit
def _kernel(x, other, pair, n, factor, A: tl.constexpr, B: tl.constexpr):
    i = tl.arange(0, A)
    value = tl.load(x + i * n) * factor + B
    if other is not None:
        value += tl.load(other)
    tl.store(pair[0] + i, tl.load(pair[1] + i) + value)


def aligned(shift=0, dtype=torch.float32):
    return torch.zeros(80, dtype=dtype)[shift : shift + 64]


x, pair = aligned(), (aligned(), aligned())
constants = {"A": 32, "B": 1, "num_warps": 1}
variants = {
    "first": ((2,), constants, x, x, pair, 3, 0.5),
    "another dtype": ((2,), constants, aligned(dtype=torch.bfloat16), x, pair, 3, 0.5),
    "a pointer off 16 bytes": ((2,), constants, aligned(1), x, pair, 3, 0.5),
    "a pointer in a tuple off 16 bytes": ((2,), constants, x, x, (pair[0], aligned(1)), 3, 0.5),
    "no pointer": ((2,), constants, x, None, pair, 3, 0.5),
    "a stride of one": ((2,), constants, x, x, pair, 1, 0.5),
    "a stride that 16 divides": ((2,), constants, x, x, pair, 16, 0.5),
    "a stride past 32 bits": ((2,), constants, x, x, pair, 2**31 + 1, 0.5),
    "another number": ((2,), constants, x, x, pair, 3, 1.0),
    "a whole number": ((2,), constants, x, x, pair, 3, 1),
    "a truth": ((2,), constants, x, x, pair, 3, True),
    "another grid": ((2, 3), constants, x, x, pair, 3, 0.5),
    "another tile": ((2,), constants | {"A": 64}, x, x, pair, 3, 0.5),
    "more warps": ((2,), constants | {"num_warps": 2}, x, x, pair, 3, 0.5),
}
devices = {name: 90 for name in variants} | {"another device": 7}
variants["another device"] = variants["first"]


def launched(name, run):
    silent.get_current_device = lambda: devices[name]
    run(_kernel, *variants[name])
    return silent.last


def plain(kernel, grid, constants, *arguments):
    kernel[grid](*arguments, **constants)


asked = 0


def count(frame, event, argument):
    global asked
    asked += event == "call" and frame.f_code is JITFunction.run.__code__


def same(one, other):
    (*of_one, ones), (*of_other, others) = one, other
    pairs = zip(ones, others, strict=True)
    return of_one == of_other and all(a is b or (type(a) is type(b) and a == b) for a, b in pairs)


expected = {name: launched(name, plain) for name in variants}
for name in variants:
    assert same(launched(name, launch.run), expected[name]), name
assert len(launch._LAUNCHES) == len(variants), len(launch._LAUNCHES)
sys.setprofile(count)
again = {name: launched(name, launch.run) for name in reversed(variants)}
sys.setprofile(None)
for name in variants:
    assert same(again[name], expected[name]), name
assert asked == 0, f"Triton looked for {asked} launches that were remembered"
assert len(launch._LAUNCHES) == len(variants)

# Whoever stands in the place of Triton's launches sees all of them.
from unittest import mock

with mock.patch.object(JITFunction, "run", lambda self, *arguments, grid, warmup, **options: seen.append(grid)):
    seen = []
    launched("first", launch.run)
    assert seen == [(2,)]
print("done")
"""

FIRST_CALL = """
call = host_time.calls()[sys.argv[2]]
call()
before, launches = set(sys.modules), silent.launches
call()
later = {name for name in set(sys.modules) - before if not name.startswith("encodings")}
assert not later, f"a second call imports {sorted(later)}"
assert silent.launches - launches == int(sys.argv[3]), silent.launches - launches
late = [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules]
assert not late, f"a first call imports {late}"
print(host_time.functions_called(call))
"""


def run_program(text, folder, *words):
    program = folder / "program.py"  # Triton reads the source of its kernels
    program.write_text(BEGINNING + text)
    environment = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(machine.ROOT)
    command = [sys.executable, str(program), str(folder / "cache"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_launch_that_is_remembered_is_the_one_that_triton_would_make(tmp_path):
    assert run_program(REMEMBERED, tmp_path)[-1] == "done"


# Launches, and functions of Python that may run. What they were with torch.library.custom_op and Triton's own launches
# stands in smml_kernels/benchmarks/results/host.md.
BUDGETS = {"masked_fusion": (6, 280), "exchange_loss": (3, 240), "dice_ce_loss": (3, 220)}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_call_imports_no_compiler_and_runs_few_functions_of_python(tmp_path, name):
    launches, most = BUDGETS[name]
    functions = int(run_program(FIRST_CALL, tmp_path, name, str(launches))[-1])
    assert functions <= most


def plans():
    from smml_kernels.fusion import backward, maps, op

    return op._plan, backward._plan, maps.strides_of_voxels


def fuse(maps, mask, weight, bias):
    """Output and gradients of the kernels, checked against the reference in float64."""
    from smml_kernels.fusion import op

    def run(compute, *leaves):
        leaves = [x.detach().requires_grad_() for x in leaves]
        out = compute(leaves[2:], mask, *leaves[:2], negative_slope=0.2, eps=1e-5)
        return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    found = run(op.masked_fusion, weight, bias, *maps)
    exact = run(reference.masked_fusion, weight.double(), bias.double(), *(f.double() for f in maps))
    for one, other in zip(found, exact, strict=True):
        assert error(one, other) < (1e-2 if maps[0].dtype == torch.bfloat16 else 1e-5)


def test_a_second_call_plans_nothing_and_a_different_one_plans_anew():
    """Calls of different shapes, dtypes and strides by turns: each is right, whatever was planned for the others."""
    mask = torch.tensor([[True, False], [True, True]], device=DEVICE)

    def inputs(channels=2, space=(5, 4, 3), outputs=3, dtype=torch.float32, turn=lambda f: f):
        maps = [turn(randn(2, channels, *space, seed=m, dtype=dtype)) for m in range(2)]
        return maps, mask, randn(outputs, 2 * channels, seed=7), randn(outputs, seed=8)

    different = {
        "first": inputs(),
        "voxels": inputs(space=(7, 4, 3)),
        "channels": inputs(channels=3),
        "outputs": inputs(outputs=9),
        "dtype": inputs(dtype=torch.float64),
        "strides": inputs(turn=lambda f: f.to(memory_format=torch.channels_last_3d)),
    }
    for cache in plans():
        cache.cache_clear()
    fresh = {}
    for name, words in different.items():
        before = sum(cache.cache_info().misses for cache in plans())
        fuse(*words)
        fresh[name] = sum(cache.cache_info().misses for cache in plans()) - before
    assert all(fresh.values()), f"planned anew: {fresh}"
    before = [cache.cache_info().misses for cache in plans()]
    for words in reversed(different.values()):
        fuse(*words)
    assert [cache.cache_info().misses for cache in plans()] == before
    # bfloat16 has float32's plan, and kernels of its own.
    fuse(*inputs(dtype=torch.bfloat16))
    assert [cache.cache_info().misses for cache in plans()] == before


@pytest.mark.skipif(COMPILED, reason="on a GPU the mask lies there")
def test_the_mask_is_read_where_it_lies(monkeypatch):
    """No copy of it is made: the kernels get its memory."""
    from smml_kernels.fusion import op

    mask = torch.tensor([[True, False]])
    given = []
    monkeypatch.setattr(op, "_op", lambda maps, slots, mask, *words: given.append(mask) or (maps[0],))
    op.masked_fusion([randn(1, 1, 2, 2, 2)] * 2, mask, randn(1, 2), randn(1), negative_slope=0.2, eps=1e-5)
    assert given[0].dtype == torch.uint8
    assert given[0].data_ptr() == mask.data_ptr()


def test_a_mask_on_the_cpu_is_copied_once_for_all_calls_with_its_values():
    """ "meta" stands in for a GPU: a mask is copied there, and cannot be looked at."""
    from smml_kernels.fusion import op

    there, mask = torch.device("meta"), torch.tensor([[True, False], [True, True]])
    op._mask_on.cache_clear()
    with torch.inference_mode():
        first = op._bytes_of(mask.clone(), there)
    assert (first.device, first.dtype, first.shape) == (there, torch.uint8, (2, 2))
    assert not first.is_inference(), "a later call may have to keep it for its backward pass"
    assert op._bytes_of(mask, there) is first
    mask[0, 1] = True
    assert op._bytes_of(mask, there) is not first, "other values, another copy"
    assert op._bytes_of(mask[:1], there).shape == (1, 2)
    assert op._mask_on.cache_info().misses == 3


def test_the_page_gives_the_ratio_of_two_checkouts():
    row = {"us": 300.0, "launches": 6, "calls": 200}
    text = host_time.page({"masked_fusion": row}, {"masked_fusion": row | {"us": 900.0}}, "words", "abc")
    assert "| `masked_fusion` | 6 | 200 | 300 | 200 | 900 | 0.33 |" in text
