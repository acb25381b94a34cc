"""Finding the device that the user named, and what it computes fastest in."""

import ctypes
import functools
import os
import platform

import torch

from smml.errors import InputError


def find_device(device: str | torch.device) -> torch.device:
    """The torch device, after it has computed something small in float32 and in float64.

    Args:
        device: itself, or its name, such as "cpu" or "cuda:1".

    Raises:
        InputError: it is unknown or not usable on this machine, nothing runs on it, or it knows no float64, in which
            the losses add up.
    """
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise InputError("device 'meta' cannot be used here (it holds no numbers); try 'cpu'")
        # Memory alone says little: a card that this PyTorch has no code for gives it out, and then runs nothing.
        _compute(found, torch.float32)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device {str(device)!r} cannot be used here ({_first_line(error)}); try 'cpu'") from error
    try:
        _compute(found, torch.float64)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device {str(device)!r} cannot be used here: it does not compute in float64, in which the losses add up "
            f"({_first_line(error)}); try 'cpu'"
        ) from error
    return found


def _compute(device: torch.device, dtype: torch.dtype) -> None:
    """Run something and wait for what comes of it."""
    found = torch.ones(8, device=device, dtype=dtype).mul(2).sum().item()
    if found != 16:
        raise RuntimeError(f"it makes {found:g} of 16 ones")


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


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
