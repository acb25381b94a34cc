"""Writing files so that a reader never sees half of one.

Every output of the package goes through :func:`replacing`: the bytes are written to a hidden file in the same folder,
flushed to disk, and renamed over the target in one step. A full disk or a kill leaves the old file as it was.

Nobody is left to tidy up behind a process that was killed. The hidden file's name says which process writes it, and the
next writer of the same target removes what no living process writes.
"""

import contextlib
import errno
import functools
import os
import platform
import re
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from smml.errors import InputError

# How a file system says that it has no such call, or does not grant it: CIFS, exFAT and FUSE do. Anything else that
# fsync answers, such as a full disk, is about the data.
_NOT_GRANTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EROFS}

# After so many seconds without a change a hidden file of another machine, whose processes cannot be asked, is nobody's.
_ABANDONED = 24 * 3600.0


@contextlib.contextmanager
def replacing(path: str | os.PathLike, suffix: str | None = None) -> Iterator[Path]:
    """Give a temporary path to write to; on success it takes the place of ``path`` atomically.

    On any error the temporary file is removed and the target is untouched. Temporary files of the same target whose
    writers were killed are removed first.

    Args:
        path: of the file.
        suffix: how the temporary name ends, because writers choose the format by it; None takes the target's, in small
            letters (``.nii.gz`` stays ``.nii.gz``).

    Raises:
        InputError: the folder cannot be made or written to, or the disk is full.
    """
    target = Path(path)
    if suffix is None:
        # A writer that does not know ".MHA" would write a file of another name, and leave this one empty.
        parts = [part.lower() for part in target.suffixes[-2:]]
        suffix = "".join(parts if parts[-1:] == [".gz"] else parts[-1:])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target, suffix)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name[:40]}.{_machine()}-{os.getpid()}-", suffix=suffix, dir=target.parent
        )
        os.close(handle)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); choose another place") from error
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            sync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        # The content is what matters: some file systems have no permissions.
        with contextlib.suppress(OSError):
            temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    except OSError as error:
        # An error about some other file (one that was being read) is not ours to explain.
        if error.filename not in (None, name, str(target)):
            raise
        raise InputError(
            f"{target}: writing failed ({error.strerror or error}); free some space or choose another place. "
            "What was there before is unchanged"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path: str | os.PathLike) -> None:
    """Make sure that a file can be written when the work for it is done; nothing is left behind, not even its folder.

    Args:
        path: of the file, which may be there already.

    Raises:
        InputError: it is a folder, or its folder cannot be made or written to.
    """
    target = Path(path)
    # What is to be made later lies in the nearest folder that is there already; a broken link counts as there.
    place = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({place}: {error.strerror}); choose another place") from error
    if target.is_dir():
        raise InputError(f"{target}: expected a file to write or replace, found a folder; choose another name")


def sync(descriptor: int) -> None:
    """Flush an open file to disk, where its file system can.

    Args:
        descriptor: as of ``fileno()``.

    Raises:
        OSError: the data could not be written, such as on a full disk.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_GRANTED:
            raise


@functools.cache
def _machine() -> str:
    """A short name for those processes that know each other by their numbers: of one host, and of one container."""
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        namespace = ""
    return f"{zlib.crc32(f'{platform.node()}/{namespace}'.encode()):08x}"


def _sweep(target: Path, suffix: str) -> None:
    """Remove temporary files of a target that no living process writes."""
    left = re.compile(
        rf"\.{re.escape(target.name[:40])}\.(?P<machine>[0-9a-f]{{8}})-(?P<process>\d+)-\w{{8}}{re.escape(suffix)}"
    )
    # What cannot be listed or removed is in nobody's way.
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            found = left.fullmatch(entry.name)
            if found is None:
                continue
            if found["machine"] == _machine():
                abandoned = not _is_alive(int(found["process"]))
            else:
                abandoned = time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED
            if abandoned:
                Path(entry.path).unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Whether there is such a process. On Windows nobody can be asked without harm, and everyone counts as alive."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically; see :func:`replacing`.

    What UTF-8 cannot hold, as a file name of another encoding has it, is written as its number.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
