"""Files as accidents, editors and other programs leave them, for the property tests; and bounds for who reads them."""

import contextlib
import gzip
import io
import math
import resource
import signal
import struct
import sys
from collections.abc import Iterator

import nibabel as nib
import numpy as np
from hypothesis import strategies as st

from smml.errors import InputError

SECONDS, BYTES = 30, 2**30

# In place of a number in a header or a table.
NUMBERS = st.one_of(
    st.sampled_from([0.0, -1.0, 1.0, 0.5, 1e-30, 1e30, math.nan, math.inf, -math.inf, 1.0000001, 255.0, 1e9]),
    st.floats(width=32),
)
WHOLE = st.one_of(st.sampled_from([-32768, -1, 0, 1, 2, 3, 7, 8, 255, 300, 4096, 30000, 32767]), st.integers(-9, 9))

_SHORTS = (
    "dim",
    "datatype",
    "bitpix",
    "qform_code",
    "sform_code",
    "intent_code",
    "slice_code",
    "xyzt_units",
    "dim_info",
)
_FLOATS = (
    "pixdim", "vox_offset", "scl_slope", "scl_inter", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "cal_max", "toffset",
)  # fmt: skip
_KINDS = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64, np.int64, np.complex64)

_MHA_WORDS = (
    "", "0", "1", "-1", "3", "4", "3 3", "4 4 4", "4 4 4 4", "30000 30000 30000", "0 0 0", "nan nan nan", "1e30 1 1",
    "x", "True", "False", "MET_SHORT", "MET_DOUBLE", "MET_OTHER", "LOCAL", "LIST", "other.raw", "99999999999999999999",
    "1 0 0 0 1 0 0 0 1", "0 0 0 0 0 0 0 0 0", "RAI", "???",
)  # fmt: skip
_MHA_NAMES = (
    "ObjectType", "NDims", "DimSize", "ElementType", "ElementSpacing", "TransformMatrix", "Offset", "CompressedData",
    "CompressedDataSize", "BinaryData", "BinaryDataByteOrderMSB", "ElementNumberOfChannels", "HeaderSize",
    "ElementDataFile", "AnatomicalOrientation",
)  # fmt: skip


@contextlib.contextmanager
def bounded() -> Iterator[list[str]]:
    """A result, or one sentence, which is put into the list: soon, and in little memory."""
    said: list[str] = []

    def late(*_) -> None:
        raise AssertionError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    used = peak()
    try:
        yield said
    except InputError as error:
        said.append(str(error))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert peak() - used < BYTES, "more than a small file can need"
    for sentence in said:
        assert "\n" not in sentence.strip(), sentence
        assert "Traceback" not in sentence, sentence


def peak() -> int:
    """Most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@st.composite
def damaged(draw, content: bytes, most: int = 6) -> bytes:
    """Cut short, with other bytes, a piece left out or doubled, or something else altogether."""
    how = draw(st.sampled_from(["cut", "bytes", "bytes", "gap", "twice", "tail", "other"]))
    place = draw(st.integers(0, len(content)))
    if how == "cut":
        return content[:place]
    if how == "gap":
        return content[:place] + content[place + draw(st.integers(1, 64)) :]
    if how == "twice":
        return content[:place] + content[max(0, place - draw(st.integers(1, 64))) :]
    if how == "tail":
        return content + draw(st.binary(min_size=1, max_size=64))
    if how == "other":
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
        page, mark = b"<!DOCTYPE html><html><body>Sign in</body></html>", b"\xef\xbb\xbf"
        return draw(st.sampled_from([b"", b"\0" * len(content), pointer, page, gzip.compress(content), mark]))
    changed = bytearray(content)
    # The structure of most files is in their first part.
    places = st.one_of(st.integers(0, min(400, len(content)) - 1), st.integers(0, len(content) - 1))
    for at in draw(st.lists(places, min_size=1, max_size=most)):
        changed[at] = draw(st.integers(0, 255))
    return bytes(changed)


@st.composite
def nifti_files(draw) -> bytes:
    """NIfTI-1 or -2, of any type and byte order, with up to four fields of the header as nobody wrote them."""
    kind = draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
    shape = draw(st.sampled_from([(4, 4, 4), (4, 4, 4, 1), (4, 4), (4, 4, 4, 4), (1, 4, 4), (4, 4, 4, 1, 3)]))
    values = np.arange(np.prod(shape)).reshape(shape) % draw(st.sampled_from([2, 5, 100]))
    dtype = draw(st.sampled_from(_KINDS))
    image = kind(values.astype(dtype), np.diag([2.0, 2.0, 3.0, 1.0]), dtype=dtype)
    stored = bytearray(image.to_bytes())
    kinds, size = image.header.template_dtype, image.header.template_dtype.itemsize
    header = np.frombuffer(bytes(stored[:size]), kinds).copy()
    for name in draw(st.lists(st.sampled_from(_SHORTS + _FLOATS), max_size=4)):
        field = header[name]
        with np.errstate(all="ignore"), contextlib.suppress(OverflowError, ValueError):
            value = draw(NUMBERS if field.dtype.kind == "f" else WHOLE)
            field = field[0] if field.ndim > 1 else field
            field[draw(st.integers(0, len(field) - 1))] = value
    stored[:size] = header.tobytes()
    if draw(st.booleans()):
        return draw(damaged(bytes(stored)))
    return bytes(stored)


@st.composite
def mha_files(draw) -> bytes:
    """MetaImage with lines of its header as nobody wrote them, left out, doubled or added."""
    lines = [
        "ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        "CompressedData = False", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 0 0 0", "ElementSpacing = 1 1 1",
        "DimSize = 4 4 4", "ElementType = MET_SHORT",
    ]  # fmt: skip
    for _ in range(draw(st.integers(0, 3))):
        line = f"{draw(st.sampled_from(_MHA_NAMES))} = {draw(st.sampled_from(_MHA_WORDS))}"
        place = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(["instead", "too", "out"]))
        lines[place : place + (how != "too")] = [] if how == "out" else [line]
    content = "\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode() + struct.pack("<64h", *range(64))
    return draw(damaged(content)) if draw(st.booleans()) else content


@st.composite
def score_tables(draw) -> bytes:
    """CSV of scores with cells, columns, separators and line ends of other programs."""
    columns = ["case", "subset", "region", "dice", "hd95", "output"]
    cells = st.one_of(
        st.sampled_from(
            ["", " ", "nan", "NA", "1", "0.5", "1,5", "95", "-1", "inf", "1e999", "x", "flair+t2", "WT", "ET"]
        ),
        st.text(max_size=8),
    )
    rows = [
        [case, subset, region, "0.5", "3.2", "student"]
        for case in ("a", "b", "c")
        for subset in ("flair", "t1+t2")
        for region in ("WT", "TC", "ET")
    ]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(cells)
    left_out = draw(st.integers(0, len(columns)))
    table = [
        [cell for number, cell in enumerate(row) if number != left_out]
        for row in [columns, *draw(st.one_of(st.just(rows), st.permutations(rows)))]
    ]
    separator, end = draw(st.sampled_from([",", ",", ";", "\t"])), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(separator.join(row) for row in table[: draw(st.integers(0, len(table)))] + table[:0])
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])), "replace")
    return draw(damaged(content)) if content and draw(st.booleans()) else content


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def zipped(content: bytes) -> bytes:
    """As .nii.gz."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as file:
        file.write(content)
    return stream.getvalue()
