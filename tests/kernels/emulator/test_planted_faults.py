"""Errors planted in small kernels, each caught with its instruction, line and place; and the kernels without them."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from ptx_checks import execute

from smml_kernels.emulator import machine
from smml_kernels.emulator.faults import KINDS, Fault

# Lines 8 to 11 of the PTX; a fault's own lines begin at 12.
START = """    mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; shl.b32 %r2, %r0, 2; mad.lo.s32 %r3, %r1, 64, %r0;
    ld.param.b64 %d1, [x]; ld.param.b64 %d2, [y]; mul.wide.s32 %d3, %r3, 4; cvt.u64.u32 %d4, %r0;
    add.s64 %d5, %d1, %d3; add.s64 %d6, %d2, %d3; xor.b32 %r4, %r2, 128;
    mov.b32 %r5, 7; setp.lt.u32 %p1, %r0, 20; setp.lt.u32 %p2, %r0, 32; setp.ge.u32 %p4, %r0, 0;
"""


@dataclass(frozen=True)
class Planted:
    """A kernel of 64 threads and two programs on x [128] and y [128], uint32, with 512 bytes of shared memory.

    Attributes:
        kind: of the fault.
        body: the lines, in which ``{}`` is where the fault is planted.
        wrong: what is planted there.
        right: what belongs there.
        said: what the message names besides: a pattern, in which X and Y stand for the addresses of the arrays.
    """

    kind: str
    body: str
    wrong: str
    right: str
    said: str


def address(array: str, offset: int) -> str:
    return f"<{array}+{offset}>"


PLANTED = {
    "a load one element behind the end": Planted(
        "out of bounds",
        "{}\nld.global.b32 %r6, [%d5];\nst.global.b32 [%d6], %r6;",
        "add.s64 %d5, %d5, 4;",
        "add.s64 %d5, %d5, 0;",
        r"`ld.global.b32 %r6, \[%d5\]` \(line 13 .*thread 63 of program \(1, 0, 0\) reads 4 bytes at <x\+512>: "
        r"byte 512 of `x` \(512 bytes",
    ),
    "a mask that lets one thread too many store": Planted(
        "out of bounds",
        "add.s64 %d6, %d6, 4;\n{}\n@%p3 st.global.b32 [%d6], %r5;",
        "setp.le.u32 %p3, %r3, 127;",
        "setp.lt.u32 %p3, %r3, 127;",
        r"`@%p3 st.global.b32 \[%d6\], %r5` \(line 14 .*thread 63 of program \(1, 0, 0\) writes 4 bytes at <y\+512>",
    ),
    "a load before the beginning": Planted(
        "out of bounds",
        "ld.global.b32 %r6, [%d5 + {}];\nst.global.b32 [%d6], %r6;",
        "-4",
        "0",
        r"line 12 .*thread 0 of program \(0, 0, 0\) reads 4 bytes at <x\+-4>",
    ),
    "shared memory beyond what the kernel has": Planted(
        "out of bounds",
        "st.shared.b32 [%r2 + {}], %r5;",
        "260",
        "256",
        r"`st.shared.b32 \[%r2 \+ 260\], %r5` \(line 12 .*thread 63 .*writes 4 bytes at 0x200 of shared memory, "
        "which has 512 bytes",
    ),
    "four bytes at an odd address": Planted(
        "misaligned",
        "setp.lt.u32 %p3, %r3, 127;\n@%p3 ld.global.b32 %r6, [%d5 + {}];",
        "2",
        "4",
        r"line 13 .*thread 0 of program \(0, 0, 0\) reads 4 bytes at <x\+2>, not a multiple of 4",
    ),
    "a vector at half of its size": Planted(
        "misaligned",
        "shl.b32 %r6, %r0, 3;\n{}\nst.shared.v2.b32 [%r6], {{%r5, %r5}};",
        "and.b32 %r6, %r6, 248; add.s32 %r6, %r6, 4; and.b32 %r6, %r6, 255;",
        "and.b32 %r6, %r6, 504;",
        r"line 14 .*thread 0 .*writes 8 bytes at 0x4 of shared memory, not a multiple of 8",
    ),
    "a register that nothing has written, stored": Planted(
        "uninitialised",
        "{}\nadd.s32 %r7, %r6, 1;\nst.global.b32 [%d6], %r7;",
        "@%p1 mov.b32 %r6, 3;",
        "mov.b32 %r6, 3;",
        r"`st.global.b32 \[%d6\], %r7` \(line 14 .*thread 20 of program \(0, 0, 0\) writes to global memory %r7, "
        "which nothing has written",
    ),
    "a masked load without another value": Planted(
        "uninitialised",
        "{}\n@%p1 ld.global.b32 %r6, [%d5];\nshl.b32 %r6, %r6, 2;\nst.global.b32 [%d6], %r6;",
        "// mov.b32 %r6, 0;",
        "mov.b32 %r6, 0;",
        r"line 15 .*thread 20 .*writes to global memory %r6",
    ),
    "an address that nothing has computed": Planted(
        "uninitialised",
        "{}\nld.global.b32 %r6, [%d7];",
        "@%p1 mov.b64 %d7, %d5;",
        "mov.b64 %d7, %d5;",
        r"`ld.global.b32 %r6, \[%d7\]` \(line 13 .*thread 20 .*reads at %d7, which nothing",
    ),
    "a branch on a predicate that nothing has set": Planted(
        "uninitialised",
        "{}\n@%p3 bra $end;\n$end:",
        "// setp.eq.u32 %p3, %r0, 0;",
        "setp.eq.u32 %p3, %r0, 0;",
        r"`@%p3 bra \$end` \(line 13 .*is sent by %p3, which nothing",
    ),
    "shared memory that nothing has written": Planted(
        "uninitialised",
        "{} st.shared.b32 [%r2], %r5;\nbar.sync 0;\nld.shared.b32 %r6, [%r4];\nst.global.b32 [%d6], %r6;",
        "@%p2",
        "@%p4",
        r"`st.global.b32 \[%d6\], %r6` \(line 15 .*thread 0 .*%r6, which nothing has written",
    ),
    "shared memory read before a barrier": Planted(
        "race",
        "st.shared.b32 [%r2], %r0;\n{}\nld.shared.b32 %r6, [%r4];\nst.global.b32 [%d6], %r6;",
        "// bar.sync 0;",
        "bar.sync 0;",
        r"`ld.shared.b32 %r6, \[%r4\]` \(line 14 .*thread 0 of program \(0, 0, 0\) \(warp 0\) reads 4 bytes at 0x80 of "
        r"shared memory, which warp 1 wrote in `st.shared.b32 \[%r2\], %r0` \(line 12 .*no barrier between",
    ),
    "shared memory written again while others read": Planted(
        "race",
        "st.shared.b32 [%r2], %r0;\nbar.sync 0;\nld.shared.b32 %r6, [%r4];\n{}\nst.shared.b32 [%r2], %r5;",
        "// bar.sync 0;",
        "bar.sync 0;",
        r"`st.shared.b32 \[%r2\], %r5` \(line 16 .*writes 4 bytes at 0x0 of shared memory, which warp 1 read in "
        r"`ld.shared.b32 %r6, \[%r4\]` \(line 14",
    ),
    "two warps that write different values to one place": Planted(
        "race",
        "shr.u32 %r6, %r0, {};\nand.b32 %r7, %r2, 124;\nst.shared.b32 [%r7], %r6;",
        "5",
        "6",
        r"`st.shared.b32 \[%r7\], %r6` \(line 14 .*another thread writes a different value in the same step",
    ),
    "two threads of a warp that write different values to one place": Planted(
        "race",
        "and.b32 %r7, %r2, 252;\n{}\nst.shared.b32 [%r7], %r0;",
        "and.b32 %r7, %r7, 248;",
        "and.b32 %r7, %r7, 252;",
        r"line 14 .*writes where another thread writes a different value in the same step",
    ),
    "global memory read before a barrier": Planted(
        "race",
        "st.global.b32 [%d6], %r0;\n{}\nxor.b64 %d7, %d3, 128;\nadd.s64 %d7, %d7, %d2;\nld.global.b32 %r6, [%d7];",
        "// bar.sync 0;",
        "bar.sync 0;",
        r"`ld.global.b32 %r6, \[%d7\]` \(line 16 .*thread 0 .*reads 4 bytes at <y\+128>, .*which warp 1 wrote in "
        r"`st.global.b32 \[%d6\], %r0` \(line 12",
    ),
    "two programs that write one place": Planted(
        "two programs",
        "mul.wide.s32 %d7, {}, 4;\nadd.s64 %d7, %d7, %d2;\nst.global.b32 [%d7], %r5;",
        "%r0",
        "%r3",
        r"`st.global.b32 \[%d7\], %r5` \(line 14 .*writes 4 bytes at <y\+0>, .*which program \(1, 0, 0\) wrote",
    ),
    "a program that reads what another writes": Planted(
        "two programs",
        "st.global.b32 [%d6], %r5;\nbar.sync 0;\n{}\nadd.s64 %d7, %d7, %d2;\nld.global.b32 %r6, [%d7];",
        "xor.b64 %d7, %d3, 256;",
        "xor.b64 %d7, %d3, 128;",
        r"line 16 .*thread 0 of program \(0, 0, 0\) reads 4 bytes at <y\+256>, .*which program \(1, 0, 0\) wrote in "
        r"`st.global.b32 \[%d6\], %r5` \(line 12",
    ),
    "a program that writes what another has read": Planted(
        "two programs",
        "mul.wide.s32 %d7, {}, 4;\nadd.s64 %d7, %d7, %d2;\nld.global.b32 %r6, [%d7];\nst.global.b32 [%d6], %r6;",
        "%r0",
        "%r3",
        r"`st.global.b32 \[%d6\], %r6` \(line 15 .*thread 0 of program \(0, 0, 0\) writes 4 bytes at <y\+0>, .*"
        r"which program \(1, 0, 0\) read in `ld.global.b32 %r6, \[%d7\]` \(line 14",
    ),
    "a copy that is not waited for": Planted(
        "not waited for",
        "cp.async.ca.shared.global [%r2], [%d5], 4;\ncp.async.commit_group;\n{}\nld.shared.b32 %r6, [%r2];",
        "cp.async.wait_group 1;",
        "cp.async.wait_group 0;",
        r"`ld.shared.b32 %r6, \[%r2\]` \(line 15 .*thread 0 .*reads shared memory at 0x0, to which "
        r"`cp.async.ca.shared.global \[%r2\], \[%d5\], 4` \(line 12 .*still under way",
    ),
    "a copy that only its own thread has waited for": Planted(
        "race",
        "cp.async.ca.shared.global [%r2], [%d5], 4;\ncp.async.wait_all;\n{}\nld.shared.b32 %r6, [%r4];",
        "// bar.sync 0;",
        "bar.sync 0;",
        r"`ld.shared.b32 %r6, \[%r4\]` \(line 15 .*reads 4 bytes at 0x80 of shared memory, which warp 1 wrote in "
        r"`cp.async.wait_all` \(line 13",
    ),
    "a copy into what others still read": Planted(
        "race",
        "st.shared.b32 [%r2], %r5;\nbar.sync 0;\nld.shared.b32 %r6, [%r4];\n{}\n"
        "cp.async.ca.shared.global [%r2], [%d5], 4;",
        "// bar.sync 0;",
        "bar.sync 0;",
        r"line 16 .*copies to 4 bytes at 0x0 of shared memory, which warp 1 read in `ld.shared.b32 %r6, \[%r4\]`",
    ),
    "a shuffle by a part of a warp": Planted(
        "divergence",
        "{} bra $end;\nshfl.sync.bfly.b32 %r6, %r0, 1, 31, -1;\n$end:",
        "@%p1",
        "@%p2",
        r"`shfl.sync.bfly.b32 %r6, %r0, 1, 31, -1` \(line 13 .*thread 20 .*is one of 12 of its warp",
    ),
    "a barrier that a part of the program has left": Planted(
        "deadlock",
        "{} ret;\nbar.sync 0;",
        "@%p2",
        "@!%p4",
        r"`bar.sync 0` \(line 13 .*thread 32 of program \(0, 0, 0\) waits for 32 threads that have returned",
    ),
    "two barriers for two halves of a program": Planted(
        "deadlock",
        "@%p2 bra $first;\nbar.sync {};\nbra $end;\n$first:\nbar.sync 0;\n$end:",
        "1",
        "0",
        "waits at one barrier, other threads of its program at another",
    ),
}


def attempt(planted: Planted, what: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.arange(128, dtype=np.uint32), np.zeros(128, np.uint32)
    body = START + planted.body.format(what)
    try:
        execute(body, 64, (2, 1, 1), shared=512, x=x, y=y)
    except Fault as fault:
        text = re.sub(r"0x[0-9a-f]{6,}", lambda match: _place(int(match[0], 16), x=x, y=y), str(fault))
        raise Fault(fault.kind, text.partition(": ")[2]) from fault
    return x, y


def _place(number: int, **arrays: np.ndarray) -> str:
    name = min(arrays, key=lambda name: abs(number - arrays[name].ctypes.data - arrays[name].nbytes // 2))
    return f"<{name}+{number - arrays[name].ctypes.data}>"


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught_and_its_place_named(name):
    planted = PLANTED[name]
    with pytest.raises(Fault, match=planted.said) as error:
        attempt(planted, planted.wrong)
    assert error.value.kind == planted.kind


@pytest.mark.parametrize("name", PLANTED)
def test_the_kernel_without_the_fault_runs(name):
    attempt(PLANTED[name], PLANTED[name].right)


@pytest.mark.parametrize("name", [name for name, planted in PLANTED.items() if planted.kind == "two programs"])
def test_programs_that_do_not_run_at_once_meet_as_well(name, monkeypatch):
    monkeypatch.setattr(machine, "_LANES", 64)
    with pytest.raises(Fault) as error:
        attempt(PLANTED[name], PLANTED[name].wrong)
    assert error.value.kind == "two programs"
    attempt(PLANTED[name], PLANTED[name].right)


def test_every_kind_of_fault_was_planted():
    elsewhere = {"endless", "launch"}  # test_machine.py
    assert {planted.kind for planted in PLANTED.values()} == set(KINDS) - elsewhere


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind of fault: typo"):
        Fault("typo", "")


PRODUCT = """
    mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 4; mov.b32 %r2, 0; mov.pred %p1, 0;
    st.shared.v4.b32 [%r1], {{%r2, %r2, %r2, %r2}};
    bar.sync 0;
    mov.b64 %d5, {descriptor};
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {{%r8, %r9, %r10, %r11}}, {{%r2, %r2, %r2, %r2}}, %d5, %p1, 1, 1;
    wgmma.commit_group.sync.aligned;
    {early}
    wgmma.wait_group.sync.aligned 0;
    {late}
"""


@pytest.mark.parametrize(
    ("instruction", "said"),
    [
        (
            "add.f32 %r12, %r8, %r9;",
            r"`add.f32 %r12, %r8, %r9` .*reads %r8, which `wgmma.mma_async.*has still to write",
        ),
        ("st.shared.b32 [%r1], %r2;", r"writes shared memory at 0x0, which `wgmma.mma_async.*still reads"),
    ],
)
def test_a_product_that_is_not_waited_for(instruction, said):
    # 128 bytes a row, swizzled: eight rows are 1024 bytes.
    descriptor = 1024 >> 4 << 32 | 1 << 62
    y = np.zeros(1, np.uint32)
    with pytest.raises(Fault, match=said) as error:
        execute(PRODUCT.format(descriptor=descriptor, early=instruction, late=""), 128, shared=2048, y=y)
    assert error.value.kind == "not waited for"
    execute(PRODUCT.format(descriptor=descriptor, early="", late="bar.sync 0; " + instruction), 128, shared=2048, y=y)


def test_warps_that_write_the_same_value_do_no_harm():
    body = "st.shared.b32 [{}], %r5;\nbar.sync 0;\nld.shared.b32 %r6, [0];\nst.global.b32 [%d6], %r6;"
    _, y = attempt(Planted("race", body, "", "", ""), "0")
    assert (y == 7).all()


def test_two_kinds_of_nan_are_the_same_value():
    """A GPU computes one NaN, numpy several. Numbers that differ are still caught."""
    body = (
        "and.b32 %r6, %r0, 1;\nsetp.eq.s32 %p1, %r6, 0;\nselp.b32 %r6, {}, 4290772992, %p1;\nand.b32 %r7, %r2, 248;\n"
        "st.shared.b32 [%r7], %r6;\nbar.sync 0;\nld.shared.b32 %r6, [%r7];\nst.global.b32 [%d6], %r6;"
    )
    _, y = attempt(Planted("race", body, "", "", ""), "2147483647")
    assert np.isnan(y.view(np.float32)).all()
    with pytest.raises(Fault, match=r"different value in the same step"):
        attempt(Planted("race", body, "", "", ""), "2139095040")  # infinity


def test_values_that_nothing_has_written_may_be_carried_about():
    """As where a few threads hold a sum and all of them shuffle: what decides nothing is no fault."""
    body = """{}
        @%p1 ld.global.b32 %r6, [%d5];
        shfl.sync.idx.b32 %r7, %r6, 3, 31, -1;
        add.s32 %r8, %r6, %r6;
        selp.b32 %r8, %r8, %r5, %p1;
        st.shared.b32 [%r2], %r6;
        bar.sync 0;
        ld.shared.b32 %r9, [8];
        @%p2 st.global.b32 [%d6], %r7;
        @%p2 st.global.b32 [%d6], %r8;
        @%p2 st.global.b32 [%d6], %r9;
    """
    _, y = attempt(Planted("uninitialised", body, "", "", ""), "")
    assert (y[:32] == 2).all()


# %r6 has never been written; the second byte of %r7 comes from it.
BYTES = {
    "prmt.b32 %r7, %r0, %r6, 0x3040; prmt.b32 %r8, %r7, 0, {}; mov.b32 %r9, %r8;": ("0x7770", "0x7771"),
    "prmt.b32 %r7, %r0, %r6, 0x3040; selp.b32 %r8, %r7, %r5, %p4; prmt.b32 %r9, %r8, %r6, {};": ("0x2220", "0x2420"),
    "prmt.b32 %r7, %r0, %r6, 0x3040; shfl.sync.bfly.b32 %r8, %r7, 1, 31, -1; prmt.b32 %r9, %r8, 0, {};": (
        "0x7732", "0x7721",
    ),
    "prmt.b32 %r7, %r0, %r6, 0x3040; mov.b32 {{%h1, %h2}}, %r7; cvt.u32.u16 %r9, {};": ("%h2", "%h1"),
    "mov.b64 %d8, {{%r6, %r5}}; mov.b64 {{%r7, %r8}}, %d8; mov.b32 %r9, {};": ("%r8", "%r7"),
    "prmt.b32 %r9, %r0, %r0, {};": ("%r5", "%r6"),
}  # fmt: skip


@pytest.mark.parametrize("body", BYTES)
def test_a_number_that_is_written_in_part_may_be_used_in_part(body):
    """LLVM packs bytes that way: four small labels are loaded as far as there are four."""
    right, wrong = BYTES[body]
    planted = Planted("uninitialised", body + "\nst.global.b32 [%d6], %r9;", wrong, right, "")
    attempt(planted, right)
    with pytest.raises(Fault, match=r"st.global.b32 .*writes to global memory %r9, which nothing has written") as error:
        attempt(planted, wrong)
    assert error.value.kind == "uninitialised"
