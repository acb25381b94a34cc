"""Unpacking compressed images: no more than their headers need, so that no small file fills the memory."""

import gzip
import io
import zlib
from collections.abc import Callable
from typing import BinaryIO

_BLOCK = 2**20

# What a file may unpack to, in bytes, however small it is, and from there on how many times its own size. Images are
# packed to a half or a tenth; only what is nearly empty goes beyond a hundredth, and that much emptiness is no head.
_ALWAYS = 2**30
_RATIO = 100


def inflate_gzip(file: BinaryIO, start: int, needed_by: Callable[[bytes], int]) -> io.BytesIO:
    """The bytes of a gzip file that its header needs; fewer if there are no more.

    Args:
        file: at its beginning.
        start: how many bytes hold the header.
        needed_by: how many bytes are needed in all, told from the first ``start`` of them.

    Raises:
        ValueError: the header needs more than such a file holds.
        OSError, EOFError, zlib.error: the file is damaged. The checksum is compared unless much follows the image.
    """
    packed = file.seek(0, io.SEEK_END)
    file.seek(0)
    stream = gzip.GzipFile(fileobj=file)
    content = io.BytesIO()
    content.write(stream.read(start))
    needed = needed_by(content.getvalue())
    check_ratio(packed, needed)
    while content.tell() < needed:
        block = stream.read(min(_BLOCK, needed - content.tell()))
        if not block:
            break
        content.write(block)
    # Only at the end of the stream gzip's checksum tells a damaged file from a good one.
    stream.read(_BLOCK)
    content.seek(0)
    return content


def inflated_size(packed: memoryview, needed: int) -> int:
    """How many bytes a zlib or gzip stream unpacks to, counted up to ``needed`` and not kept.

    Raises:
        ValueError: ``needed`` is more than such a file holds.
        zlib.error: the stream is damaged.
    """
    check_ratio(len(packed), needed)
    # 47: either wrapper.
    stream, size = zlib.decompressobj(47), 0
    for begin in range(0, len(packed), _BLOCK):
        block = packed[begin : begin + _BLOCK]
        while len(block) and not stream.eof:
            size += len(stream.decompress(block, _BLOCK))
            block = memoryview(stream.unconsumed_tail)
            if size > needed + _BLOCK:
                return size
    # What is packed well may still be inside when all input is in.
    while block_size := len(stream.decompress(b"", _BLOCK)):
        size += block_size
        if size > needed + _BLOCK:
            return size
    if not stream.eof:
        raise zlib.error("incomplete or truncated stream")
    return size


def check_ratio(packed: int, needed: int) -> None:
    """Refuse a header that asks for more than a file of ``packed`` bytes can hold.

    Raises:
        ValueError: it does.
    """
    if needed > max(_ALWAYS, _RATIO * packed):
        raise ValueError(f"its header asks for an image of {needed} bytes")
