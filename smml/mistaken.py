"""Files that are not what their names say: pointers in place of content, web pages, archives, other formats.

"Damaged, download it again" is the wrong remedy for them. Who fails to read a file asks here for the true reason.
"""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

_WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")


class _Kind(NamedTuple):
    """What a file can be taken for: what tells it by its first bytes, and what to do about it."""

    name: str
    tells: Callable[[bytes], bool]
    remedy: str


def _starts(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.startswith(magic)


_KINDS = (
    _Kind(
        "a pointer of git-LFS",
        _starts(b"version https://git-lfs", b"version http://git-media"),
        "its content was not fetched: run `git lfs pull` in its repository",
    ),
    _Kind(
        "a pointer of git-annex",
        lambda start: start.startswith(b"/annex/objects/") or b".git/annex/objects/" in start,
        "its content was not fetched: run `git annex get` (or `datalad get`) on it",
    ),
    _Kind(
        "a web page",
        lambda start: start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_WEB_PAGE),
        "the server answered with a page, such as a login or an error: open it in a browser to see which, then "
        "download the file itself",
    ),
    _Kind("a zip archive", _starts(b"PK\x03\x04", b"PK\x05\x06"), "unpack it, and name the file inside"),
    _Kind("a 7z, rar, xz, bzip2 or zstd archive",
          _starts(b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd"),
          "unpack it, and name the file inside"),
    _Kind("a tar archive", lambda start: start[257:262] == b"ustar", "unpack it, and name the file inside"),
    _Kind("a gzip file", _starts(b"\x1f\x8b"), "unpack it with gunzip, and name what comes out"),
    _Kind("a NIfTI image", lambda start: start[344:348] in (b"n+1\0", b"ni1\0") or start[4:7] in (b"n+2", b"ni2"),
          "rename it to end in .nii"),
    _Kind("a MetaImage", _starts(b"ObjectType", b"NDims"), "rename it to end in .mha"),
    _Kind("a DICOM file", lambda start: start[128:132] == b"DICM",
          "convert its series to NIfTI, such as with dcm2niix"),
    _Kind("an NRRD image", _starts(b"NRRD"), "convert it to NIfTI"),
    _Kind("an HDF5 file (MINC, or MATLAB's)", _starts(b"\x89HDF\r\n"), "convert it to NIfTI"),
)  # fmt: skip


def true_kind(start: bytes, *, but: Collection[str] = ()) -> str:
    """What a file is, told by its first bytes, with the remedy; empty if it is nothing that is known.

    Args:
        start: the first 512 bytes.
        but: kinds that the file may well be, such as "a zip archive" for what PyTorch saves.

    Returns:
        A clause such as "a pointer of git-LFS; its content was not fetched: ...".
    """
    for kind in _KINDS:
        if kind.name not in but and kind.tells(start):
            return f"{kind.name}; {kind.remedy}"
    return ""


def true_kind_of(path: Path, *, but: Collection[str] = ()) -> str:
    """As :func:`true_kind`, of a file; also of a link whose target git-annex has not fetched. Never raises."""
    try:
        if path.is_symlink() and not path.exists():
            return true_kind(os.readlink(path).replace(os.sep, "/").encode(errors="replace"), but=but)
        with open(path, "rb") as file:
            return true_kind(file.read(512), but=but)
    except OSError:
        return ""
