"""What the emulator refuses: errors of a kernel, and what it has no model of."""


class NotModelled(NotImplementedError):
    """PTX that the emulator cannot run. It says nothing about whether the kernel is right."""


class Fault(RuntimeError):
    """An error of a kernel or of its launch that a GPU would have punished, or silently let pass.

    Attributes:
        kind: one of :data:`KINDS`.
    """

    def __init__(self, kind: str, message: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of fault: {kind}")
        super().__init__(f"{kind}: {message}")
        self.kind = kind


#: What is looked for, each with what it means.
KINDS = {
    "out of bounds": "an address outside of every allocation that the launch was given, or of its shared memory",
    "misaligned": "an address that is no multiple of the bytes accessed",
    "uninitialised": "a value that nothing has written decides an address, a branch or what goes to global memory",
    "race": "two warps of a program touch one place, one of them writes, and no barrier lies between",
    "two programs": "two programs of a launch touch one place of global memory, and one of them writes",
    "not waited for": "shared memory or a register is touched while an asynchronous copy or product still needs it",
    "divergence": "an instruction that a whole warp must execute together is reached by a part of it",
    "deadlock": "threads wait at a barrier that others cannot reach",
    "endless": "more instructions than any kernel of this project takes",
    "launch": "a grid, a number of threads or an amount of shared memory that the GPU does not take",
}
