"""Writing files so that a reader never sees half of one.

Every output of the package goes through :func:`replacing`: the bytes are written to a hidden file in the same folder,
flushed to disk, and renamed over the target in one step. A full disk or a kill leaves the old file as it was.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from smml.errors import InputError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to; on success it takes the place of ``path`` atomically.

    The temporary name ends like the target (``.nii.gz`` stays ``.nii.gz``), because writers choose the format by it.
    On any error the temporary file is removed and the target is untouched.

    Raises:
        InputError: the folder cannot be made or written to, or the disk is full.
    """
    target = Path(path)
    suffix = "".join(target.suffixes[-2:]) if target.suffix == ".gz" else target.suffix
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=suffix, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); choose another place") from error
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
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


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
