"""A folder that one process writes at a time.

The lock is the operating system's, on a hidden file in the folder: it ends with the process, however that ends, so that
nothing has to be tidied up after a kill.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from smml.errors import InputError

LOCK = ".lock"
# What this process holds, by device and inode: the system lets a process take its own locks again.
_held: set[tuple[int, int]] = set()


@contextlib.contextmanager
def claimed(folder: str | os.PathLike, *, wait: bool = False) -> Iterator[None]:
    """Write a folder alone, for as long as the context lasts.

    The folder is made if it is missing, and goes again if nothing was written into it. Where the file system knows no
    locks, nothing keeps others away.

    Args:
        folder: of a run.
        wait: until it is free, instead of refusing.

    Raises:
        InputError: another process writes it, it is a file, or it cannot be made or written to.
    """
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"{folder}: is a file, expected a folder; choose another name") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose another place") from error
    try:
        with _locked(folder, wait):
            yield
    finally:
        for place in missing:
            try:
                place.rmdir()
            except OSError:  # it holds what was written
                break


@contextlib.contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[None]:
    path = folder / LOCK
    # Asked before it is opened: whoever closes a file gives up the locks that its process has on it.
    if path.exists() and _key(path) in _held:
        raise _taken(folder)
    handle = _lock(path, wait)
    if handle is None:  # a file system without locks
        yield
        return
    key = _key(handle)
    _held.add(key)
    try:
        yield
    finally:
        # Before the lock goes, so that nobody locks a file that is about to go.
        path.unlink(missing_ok=True)
        _held.discard(key)
        os.close(handle)


def _lock(path: Path, wait: bool) -> int | None:
    """The locked file, open; None where there are no locks."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be written ({error.strerror}); choose another place") from error
        try:
            # Of the two locks of POSIX the one that belongs to the process: a loader's process inherits what is open,
            # and must not keep the lock of a run that was killed.
            fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            os.close(handle)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise _taken(path.parent) from error
            return None
        # Whoever held it before may have taken the file away in between.
        if path.exists() and _key(handle) == _key(path):
            return handle
        os.close(handle)


def _taken(folder: Path) -> InputError:
    return InputError(
        f"{folder}: another run is writing it right now; wait until that has ended, or choose another folder"
    )


def _key(file: int | Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino
