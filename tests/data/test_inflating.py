"""Unpacking no more than a header needs: the memory that a small file can take is bounded."""

import gzip
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest

from smml.data import inflating
from smml.data.inflating import inflated_size
from smml.data.reading import check_mha, read_image
from smml.errors import InputError

SHAPE = (6, 5, 4)


def header(shape) -> bytes:
    """Of a NIfTI image of bytes, with the four bytes that say that no extension follows."""
    made = nib.Nifti1Header()
    made.set_data_dtype(np.uint8)
    made.set_data_shape(shape)
    made["vox_offset"], made["magic"] = 352, b"n+1"
    return made.binaryblock + bytes(4)


def mha(shape, packed: bytes) -> bytes:
    size = " ".join(map(str, shape))
    lines = ["ObjectType = Image", "NDims = 3", f"DimSize = {size}", "ElementType = MET_UCHAR", "CompressedData = True"]
    lines += [f"CompressedDataSize = {len(packed)}", "ElementDataFile = LOCAL", ""]
    return "\n".join(lines).encode() + packed


def refused_within(path, most: int, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


ZEROS = bytes(32 * 2**20)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha"])
def test_a_small_file_with_a_huge_header_takes_no_memory(tmp_path, suffix):
    path, shape = tmp_path / f"t1{suffix}", (30000, 30000, 30000)
    content = {".nii": header(shape) + bytes(999), ".mha": mha(shape, zlib.compress(ZEROS))}
    path.write_bytes(content.get(suffix) or gzip.compress(header(shape) + ZEROS))
    refused_within(path, 4 * 2**20, "expected a complete .* image, found .* the file is damaged")


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_stream_is_not_unpacked_beyond_what_its_header_needs(tmp_path, suffix):
    path = tmp_path / f"t1{suffix}"
    image = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE, order="F")
    whole = image.tobytes(order="F") + ZEROS
    content = mha(SHAPE, zlib.compress(whole)) if suffix == ".mha" else gzip.compress(header(SHAPE) + whole)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        if suffix == ".mha":
            check_mha(path)
        else:
            np.testing.assert_array_equal(read_image(path)[0], image)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_an_image_that_is_nearly_empty_is_read_below_the_bound_and_refused_above(tmp_path, monkeypatch):
    """A label without a lesion is packed to a thousandth."""
    shape, path = (100, 100, 100), tmp_path / "t1.nii.gz"
    path.write_bytes(gzip.compress(header(shape) + bytes(10**6)))
    assert read_image(path)[0].shape == shape
    monkeypatch.setattr(inflating, "_ALWAYS", 10**5)
    refused_within(path, 10**6, "its header asks for an image of 1000352 bytes")


@pytest.mark.parametrize("size", [0, 1, 1000, 2**20, 2**20 + 1, 5 * 2**20])
@pytest.mark.parametrize("level", [0, 9])
def test_the_size_of_a_stream_is_counted_whatever_its_length(size, level):
    packed = zlib.compress(bytes(size), level)
    assert inflated_size(memoryview(packed), size) == size
    assert inflated_size(memoryview(gzip.compress(bytes(size))), size) == size
    with pytest.raises(zlib.error):
        inflated_size(memoryview(packed)[:-1], size)
