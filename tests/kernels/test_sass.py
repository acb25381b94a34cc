"""Machine code as nvdisasm lists it: what is counted, and where the main loop is."""

from smml_kernels import aot, sass

# Two nested loops and one beside them; the inner one moves 16 + 4 bytes a thread, the other 8.
LISTING = """
.text.small:
.L_x_0:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   MOV R2, RZ ;
.L_x_1:
        /*0020*/                   LDG.E.128 R4, desc[UR14][R2.64] ;
        /*0030*/                   FADD R8, R4, R5 ;
        /*0040*/                   FADD R8, R8, R6 ;
        /*0050*/                   DMMA.8x8x4 R8, R4, R6, R8 ;
        /*0060*/              @!P0 STG.E desc[UR14][R2.64], R8 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0090*/               @P2 BRA `(.L_x_0) ;
.L_x_2:
        /*00a0*/                   LDG.E.64 R4, desc[UR14][R2.64] ;
        /*00b0*/                   FADD R8, R4, R5 ;
        /*00c0*/                   FADD R8, R8, R5 ;
        /*00d0*/                   FADD R8, R8, R5 ;
        /*00e0*/               @P1 BRA `(.L_x_2) ;
        /*00f0*/                   STG.E.U16 desc[UR14][R2.64], R8 ;
        /*0100*/                   EXIT ;
.L_x_3:
        /*0110*/                   BRA `(.L_x_3);
        /*0120*/                   NOP;
"""


def test_the_main_loop_is_the_innermost_that_moves_most():
    assert sass.count(LISTING) == sass.Counts(
        load=16, store=4, tensor="DMMA.8x8x4", instructions=6, bytes=20, looped=True
    )


def test_without_a_loop_that_moves_something_the_whole_kernel_counts():
    straight = "\n".join(line for line in LISTING.splitlines() if "BRA" not in line or "L_x_3" in line)
    assert sass.count(straight) == sass.Counts(16, 4, "DMMA.8x8x4", 14, 16 + 4 + 8 + 2, False)


def test_programs_are_limited_by_registers_shared_memory_and_warps():
    assert aot.programs_at_once(90, warps=4, registers=63, shared=64) == 8
    assert aot.programs_at_once(90, warps=4, registers=255, shared=0) == 2
    assert aot.programs_at_once(86, warps=4, registers=32, shared=49152) == 2
    assert aot.programs_at_once(86, warps=8, registers=32, shared=0) == 6
    assert aot.programs_at_once(86, warps=4, registers=32, shared=106496) == 0, "more than there is"
    assert aot.programs_at_once(103, 4, 63, 64) == aot.programs_at_once(100, 4, 63, 64), "as the nearest older one"
