"""Limits of a machine as sentences: memory, space on disk, file handles, loader processes.

The libraries tell these in words of their own, and often as a bare ``RuntimeError``. Here is the one place that knows
the words. What it does not know is a fault of the program, whose traceback must be kept.
"""

import contextlib
import errno
import os
import pickle
import re
from collections.abc import Iterator

from smml.errors import InputError, one_line

_MEMORY = (
    "take less at once (train: lower --batch-size, --patch, --cache or --workers; predict and evaluate: lower "
    "--window, or name fewer sequences), or close other programs"
)
_HANDLES = "allow more with `ulimit -n 8192`, or use fewer --workers (0 needs none)"
_SHARED = "use fewer --workers (0 needs none), or give the machine more of /dev/shm (docker run --shm-size=8g)"
_SPACE = "free some space, or choose another place; what was finished before is whole"

# torch's writer keeps the reason to itself: it says that it is not as far in the file as it should be.
_FULL = r"unexpected pos \d+|No space left on device|StorageFull"

_OUT_OF_GPU_MEMORY = (
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|MPS backend out of memory"
)
_OUT_OF_MEMORY = (
    r"can't allocate memory|not enough memory|[Cc]annot allocate memory|[Ff]ailed to allocate memory"
    r"|std::bad_alloc|bad allocation"
)

# What the libraries say, and what it means; the first that is found counts.
_WORDS: tuple[tuple[str, str, str], ...] = (
    (r"Too many open files|received \d+ items of ancdata", "too many open files", _HANDLES),
    (
        r"out of shared memory|shared memory\(shm\)|unable to (?:open|mmap|resize|write to)\b.*</torch_",
        "too little shared memory for the loader processes",
        _SHARED,
    ),
    (_OUT_OF_GPU_MEMORY, "too little memory on the GPU", _MEMORY),
    (_OUT_OF_MEMORY, "too little memory", _MEMORY),
    (
        r"DataLoader worker .*(?:killed by signal: Killed|exited unexpectedly)"
        r"|worker process .*unexpectedly terminated",
        "a process beside this one was ended by the system, most often because the memory was full",
        _MEMORY,
    ),
    (r"can't start new thread", "no more threads are allowed", "allow more with `ulimit -u`, or use fewer --workers"),
    (_FULL, "no space left on the disk", _SPACE),
)

_NUMBERS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space left on the disk", _SPACE),
    errno.EDQUOT: ("no space left within the quota", _SPACE),
    errno.EFBIG: ("the file is larger than is allowed here", "raise the limit (`ulimit -f`), or choose another place"),
    errno.EMFILE: ("too many open files", _HANDLES),
    errno.ENFILE: ("too many open files on the whole machine", _HANDLES),
    errno.ENOMEM: ("too little memory", _MEMORY),
    errno.EAGAIN: (
        "no more processes or threads are allowed",
        "allow more with `ulimit -u`, or use fewer --workers",
    ),
    errno.EACCES: ("permission denied", "ask for the permission, or choose another place"),
    errno.EPERM: ("not permitted", "ask for the permission, or choose another place"),
    errno.EROFS: ("a read-only file system", "choose another place"),
}


def explain(error: BaseException) -> str | None:
    """One sentence for the user, if the error is theirs or the machine's.

    Args:
        error: any; what it was raised from is looked at too.

    Returns:
        What happened and what to do, or None: the error is a fault of the program.
    """
    seen: BaseException | None = error
    while seen is not None:
        said = _explain(seen)
        if said is not None:
            return one_line(said)
        seen = seen.__cause__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, on the machine or on a GPU.

    Args:
        error: any; an :class:`InputError` has said what it has to say.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    words = f"{_OUT_OF_GPU_MEMORY}|{_OUT_OF_MEMORY}"
    return not isinstance(error, InputError) and re.search(words, str(error)) is not None


@contextlib.contextmanager
def telling_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn an error about too little memory into an :class:`InputError`; others pass.

    Args:
        what: the file or work that needs it.
        remedy: what to do.

    Raises:
        InputError: there was too little memory.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise InputError(f"{what}: too little memory; {remedy}") from error
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether a library says, in any words, that there is no space left."""
    return getattr(error, "errno", None) == errno.ENOSPC or re.search(_FULL, str(error)) is not None


def _explain(error: BaseException) -> str | None:
    if isinstance(error, InputError):
        return str(error)
    text = str(error)
    if isinstance(error, MemoryError):
        return _sentence("too little memory", _line(text), _MEMORY)
    if isinstance(error, OSError) and error.errno is not None:
        what, remedy = _NUMBERS.get(error.errno, (error.strerror or os.strerror(error.errno), "check the place"))
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{place}{what}; {remedy}"
    if isinstance(error, RuntimeError | OSError):
        for words, what, remedy in _WORDS:
            if found := re.search(words, text):
                start = text.rfind("\n", 0, found.start()) + 1
                return _sentence(what, _line(text[start:]), remedy)
    return None


def _sentence(what: str, detail: str, remedy: str) -> str:
    return f"{what} ({detail}): {remedy}" if detail else f"{what}: {remedy}"


def _line(text: str) -> str:
    """The first line of a library's text, cut to what a sentence bears."""
    first = text.strip().partition("\n")[0].rstrip(".")
    return first if len(first) <= 200 else f"{first[:200]}..."


def portable(error: BaseException) -> BaseException:
    """The error as it can be sent to another process: itself, or its words where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    # Whatever a class with its own constructor makes of being built again.
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
