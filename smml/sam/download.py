"""Fetch Meta's SAM checkpoints once: resumed when interrupted, checked by SHA-256, moved into place in one step.

A download grows as ``NAME.partial`` in the cache folder, under a lock, so that several processes (the ranks of a
training, notebooks side by side) fetch a file once and never write into each other's. Only a file of the right size
and hash gets its name.
"""

import contextlib
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from smml.errors import InputError
from smml.files import sync

ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything/"
CACHE_VARIABLE = "SMML_CACHE"

_BLOCK = 1 << 20
_TIMEOUT = 30.0
# A connection may drop more often than this in 2.6 GB, but hardly without a byte in between.
_FRUITLESS_ATTEMPTS = 3
_PAUSE = 1.0


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web: its name, its size in bytes and its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


OFFICIAL: dict[str, RemoteFile] = {
    "vit_b": RemoteFile(
        "sam_vit_b_01ec64.pth", 375042383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": RemoteFile(
        "sam_vit_l_0b3195.pth", 1249524607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": RemoteFile(
        "sam_vit_h_4b8939.pth", 2564550879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}


def cache_folder(cache: str | os.PathLike | None = None) -> Path:
    """Where downloaded files live: ``cache``, else $SMML_CACHE, else ``smml`` in the user's usual cache folder."""
    if cache is not None:
        return Path(cache).expanduser()
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "smml"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "smml"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smml"


def fetch(name: str, *, cache: str | os.PathLike | None = None, progress: bool = True) -> Path:
    """The checkpoint ``name`` of :data:`OFFICIAL`, from the cache or from the web; its hash is checked each time.

    Args:
        name: "vit_b", "vit_l" or "vit_h".
        cache: see :func:`cache_folder`.
        progress: show a bar on stderr while downloading.

    Returns:
        The path of a file whose size and SHA-256 are right.

    Raises:
        InputError: not cached and no network; the server sends something else; a cached file is damaged or tampered
            with; the folder cannot be written or the disk is full.
    """
    remote = OFFICIAL[name]
    path = cache_folder(cache) / remote.name
    # Without the lock first: a finished file may lie in a folder that cannot be written.
    if not path.exists():
        with _locked(path, progress):
            # Another process may have finished while this one waited.
            if not path.exists():
                _download(remote, path, progress)
                return path
    _check_cached(remote, path)
    return path


@contextlib.contextmanager
def _locked(path: Path, progress: bool) -> Iterator[None]:
    """Hold the lock of a file to be made; says so once where another process has it."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                print(f"waiting for another process that downloads {path.name}", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _download(remote: RemoteFile, path: Path, progress: bool) -> None:
    """Fetch into ``.partial``, check, and rename; the lock is held."""
    partial = path.with_name(f"{path.name}.partial")
    # What is longer than the file can be nothing of it.
    if partial.exists() and partial.stat().st_size > remote.size:
        _remove(partial)
    have = partial.stat().st_size if partial.exists() else 0
    bar = tqdm(
        total=remote.size, initial=have, unit="B", unit_scale=True, desc=remote.name, disable=not progress, leave=False
    )
    most, fruitless = have, 0
    with bar:
        while have < remote.size:
            reason = _receive(remote, partial, have, bar.update)
            now = partial.stat().st_size if partial.exists() else 0
            if now >= remote.size:
                break
            # Against the most there ever was: a server whose file is too short sends the same bytes again and again.
            fruitless = 0 if now > most else fruitless + 1
            have, most = now, max(most, now)
            if fruitless == _FRUITLESS_ATTEMPTS:
                raise _unreachable(remote, path, reason, have)
            time.sleep(_PAUSE * fruitless)
            bar.n = have
            bar.refresh()
    found = _sha256(partial, "checking " + remote.name, progress)
    if partial.stat().st_size != remote.size or found != remote.sha256:
        size = partial.stat().st_size
        _remove(partial)
        raise InputError(
            f"{ADDRESS}{remote.name}: what was downloaded is not the official checkpoint (expected {remote.size} bytes "
            f"with SHA-256 {remote.sha256}, found {size} bytes with {found}) and was deleted; try again, and if it "
            f"happens again, get the file elsewhere and place it at {path}"
        )
    try:
        os.replace(partial, path)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _receive(remote: RemoteFile, partial: Path, have: int, advance: Callable[[int], object]) -> str:
    """One connection: append to ``partial`` what the server sends after ``have`` bytes.

    Returns:
        Why it ended before the file was complete, in words.
    """
    request = urllib.request.Request(ADDRESS + remote.name, headers={"User-Agent": "smml"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            # A server that ignores the range sends the file from its start.
            resumed = response.status == 206 and _starts_at(response.headers.get("Content-Range"), have)
            try:
                stream = open(partial, "ab" if resumed else "wb")  # noqa: SIM115 (closed below)
            except OSError as error:
                raise _cannot_write(partial, error) from error
            with stream:
                total = have if resumed else 0
                while total <= remote.size:
                    block = response.read(_BLOCK)
                    if not block:
                        break
                    try:
                        stream.write(block)
                    except OSError as error:
                        raise _cannot_write(partial, error) from error
                    total += len(block)
                    advance(len(block))
                stream.flush()
                sync(stream.fileno())
        return "the connection ended early"
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the server's file is shorter than what is here
            _remove(partial)
        return f"the server answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


def _starts_at(content_range: str | None, start: int) -> bool:
    """Whether a ``Content-Range`` such as "bytes 100-199/200" begins where it was asked to."""
    return content_range is not None and content_range.replace(" ", "").startswith(f"bytes{start}-")


def _check_cached(remote: RemoteFile, path: Path) -> None:
    try:
        size = path.stat().st_size
        found = _sha256(path) if size == remote.size else "not computed"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); see to its permissions") from error
    if found != remote.sha256:
        raise InputError(
            f"{path}: damaged or not the official file (expected {remote.size} bytes with SHA-256 {remote.sha256}, "
            f"found {size} bytes with SHA-256 {found}); delete it and try again, it is then downloaded from "
            f"{ADDRESS}{remote.name}"
        )


def _sha256(path: Path, description: str = "", progress: bool = False) -> str:
    digest = hashlib.sha256()
    with (
        open(path, "rb") as stream,
        tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc=description, disable=not progress, leave=False
        ) as bar,
    ):
        while block := stream.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: the cache cannot be written ({error.strerror or error}); free some space, or choose another folder "
        f"with load_sam(..., cache=FOLDER) or the environment variable {CACHE_VARIABLE}"
    )


def _unreachable(remote: RemoteFile, path: Path, reason: str, have: int) -> InputError:
    kept = f" The first {have} bytes are kept; the next try goes on from there." if have else ""
    return InputError(
        f"{ADDRESS}{remote.name} cannot be downloaded ({reason}): connect to the network, or get the file "
        f"({remote.size / 1e6:.0f} MB) elsewhere and place it at {path}.{kept}"
    )
