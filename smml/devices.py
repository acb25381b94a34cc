"""Finding the device that the user named, and what it computes fastest in."""

import ctypes
import functools
import os
import platform

import torch

from smml.errors import InputError


def find_device(device: str | torch.device) -> torch.device:
    """The torch device, tried once.

    Args:
        device: itself, or its name, such as "cpu" or "cuda:1".

    Raises:
        InputError: it is unknown or not usable on this machine.
    """
    try:
        torch.empty(0, device=device)
        found = torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu'") from error
    if found.type == "meta":
        raise InputError("device 'meta' cannot be used here (it holds no numbers); try 'cpu'")
    return found


def fastest_precision(device: torch.device) -> str:
    """The word "bf16" where it has been measured to train faster than "float32", else that.

    These are the CPUs that multiply bfloat16 by themselves (AVX512-BF16): results/speed has the ratios.
    """
    multiplies = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if device.type == "cpu" and multiplies() else "float32"


# Numbers of mallopt's parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory of large tensors that it frees, instead of giving it back and asking again.

    glibc gives every block above 32 MB back to the system at once. What comes again is cleared page by page, which
    doubles the time of an inference with large maps. Kept blocks are used again by the next layer. They do not
    always fit what comes: the most that the process needed at a time grew by a tenth (1.45 to 1.6 GB for a student of
    `paper` at 128^3).

    Returns:
        Whether it was arranged: not by another C library, nor against the user's own ``MALLOC_`` variables.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, -1))
