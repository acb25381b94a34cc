"""The order of threads: branches that part and meet, loops of different lengths, barriers, and the grid."""

import numpy as np
import pytest
from ptx_checks import execute, module

from smml_kernels.emulator import machine
from smml_kernels.emulator.faults import Fault
from smml_kernels.emulator.memory import Allocation
from smml_kernels.emulator.program import compile_kernel
from smml_kernels.emulator.ptx import parse

START = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mad.lo.s32 %r3, %r1, %r2, %r0;
    ld.param.b64 %d1, [y];
    mad.wide.s32 %d2, %r3, 4, %d1;
"""


def test_threads_that_a_branch_parts_meet_behind_it():
    y = np.zeros(32, np.uint32)
    body = (
        START
        + """
        setp.lt.u32 %p1, %r0, 10;
        @%p1 bra $few;
        mov.b32 %r5, 2;
        bra.uni $met;
    $few:
        mov.b32 %r5, 1;
    $met:
        shfl.sync.bfly.b32 %r6, %r5, 16, 31, -1;
        st.global.b32 [%d2], %r6;
    """
    )
    execute(body, y=y)
    np.testing.assert_array_equal(y, np.where((np.arange(32) ^ 16) < 10, 1, 2))


def test_a_loop_that_each_thread_leaves_at_its_own_time():
    y = np.zeros(192, np.uint32)
    body = (
        START
        + """
        mov.b32 %r5, 0;
        mov.b32 %r6, 0;
    $again:
        add.s32 %r6, %r6, %r5;
        add.s32 %r5, %r5, 1;
        setp.le.u32 %p1, %r5, %r3;
        @%p1 bra $again;
        st.global.b32 [%d2], %r6;
    """
    )
    execute(body, 64, (3, 1, 1), y=y)
    np.testing.assert_array_equal(y, [sum(range(n + 1)) for n in range(192)])


def test_barriers_in_a_loop_that_programs_leave_at_different_times():
    """Each program sums its threads' numbers in shared memory, as many times as its number says."""
    y = np.zeros(256, np.uint32)
    body = (
        START
        + """
        shl.b32 %r4, %r0, 2;
        mov.b32 %r5, 0;
        mov.b32 %r8, 1;
    $again:
        st.shared.b32 [%r4], %r8;
        bar.sync 0;
        xor.b32 %r6, %r4, 128;
        ld.shared.b32 %r7, [%r6];
        bar.sync 0;
        add.s32 %r8, %r8, %r7;
        add.s32 %r5, %r5, 1;
        setp.le.u32 %p1, %r5, %r1;
        @%p1 bra $again;
        st.global.b32 [%d2], %r8;
    """
    )
    execute(body, 64, (4, 1, 1), shared=256, y=y)
    np.testing.assert_array_equal(y, np.repeat([2, 4, 8, 16], 64))


def test_programs_beyond_one_wave_and_in_three_dimensions(monkeypatch):
    monkeypatch.setattr(machine, "_LANES", 96)
    y = np.zeros((2, 5, 3, 32), np.uint32)
    body = """
        mov.u32 %r0, %tid.x;
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %ctaid.z;
        mov.u32 %r4, %nctaid.x; mov.u32 %r5, %nctaid.y; mov.u32 %r6, %nctaid.z;
        mad.lo.s32 %r7, %r3, %r5, %r2;
        mad.lo.s32 %r7, %r7, %r4, %r1;
        mad.lo.s32 %r7, %r7, 32, %r0;
        mad.lo.s32 %r8, %r1, 10, %r2;
        mad.lo.s32 %r8, %r8, 10, %r3;
        mad.lo.s32 %r8, %r8, 10, %r6;
        ld.param.b64 %d1, [y];
        mad.wide.s32 %d2, %r7, 4, %d1;
        st.global.b32 [%d2], %r8;
    """
    counts = execute(body, 32, (3, 5, 2), y=y)
    assert counts.programs == 30
    for (z, y_, x), number in np.ndenumerate(y[..., 0]):
        assert number == 1000 * x + 100 * y_ + 10 * z + 2
    assert (y == y[..., :1]).all()


def test_lane_and_warp():
    y = np.zeros((64, 2), np.uint32)
    body = (
        START
        + """
        add.s64 %d2, %d2, 0;
        mad.wide.s32 %d2, %r0, 8, %d1;
        mov.u32 %r5, %laneid; mov.u32 %r6, %warpid;
        st.global.v2.b32 [%d2], {%r5, %r6};
    """
    )
    execute(body, 64, y=y)
    np.testing.assert_array_equal(y, [(n % 32, n // 32) for n in range(64)])


def test_a_thread_that_returns_leaves_the_others():
    y = np.zeros(32, np.uint32)
    body = START + "setp.lt.u32 %p1, %r0, 10; @%p1 ret; mov.b32 %r5, 3; st.global.b32 [%d2], %r5;"
    execute(body, y=y)
    np.testing.assert_array_equal(y, np.where(np.arange(32) < 10, 0, 3))


def test_a_kernel_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(machine, "_ENDLESS", 1000)
    with pytest.raises(Fault, match="endless: small"):
        execute("$again: bra $again;", y=np.zeros(1, np.uint32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": (1, 65536, 1)}, "65536 programs in y, where 1 to 65535 can be"),
        ({"grid": (1, 1, 70000)}, "70000 programs in z"),
        ({"grid": (2**31, 1, 1)}, "programs in x, where 1 to 2147483647"),
        ({"grid": (0, 1, 1)}, "0 programs in x"),
        ({"threads": 64}, "64 threads for a kernel compiled for 32"),
        ({"threads": 1056}, "1056 threads, where 32 to 1024"),
        ({"threads": 40}, "in whole warps"),
        ({"shared": 232449}, "232449 bytes of shared memory; sm_90 has 232448"),
        ({"parameters": b""}, "0 bytes of parameters of 8"),
    ],
)
def test_what_a_gpu_does_not_take_is_refused_before_anything_runs(changes, words):
    y = np.zeros(32, np.uint32)
    program = compile_kernel(
        parse(module("ld.param.b64 %d1, [y]; mov.b32 %r1, 1; st.global.b32 [%d1], %r1;", ["y"], 32))
    )
    launch = {
        "grid": (1, 1, 1), "threads": 32, "parameters": np.uint64(y.ctypes.data).tobytes(),
        "allocations": [Allocation("y", y.ctypes.data, y.nbytes)],
    }  # fmt: skip
    with pytest.raises(Fault, match=words) as error:
        machine.run(program, machine.Launch(**launch | changes))
    assert error.value.kind == "launch"
    assert not y.any()
