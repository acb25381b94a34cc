"""Files that are not what their names say: the true reason, wherever a file is read."""

import gzip
import io
import re
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch

from smml.data.reading import read_image
from smml.errors import InputError
from smml.mistaken import true_kind, true_kind_of
from smml.models.checkpoint import load_checkpoint
from smml.sam import load_sam

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a1" * 32 + b"\nsize 1234567\n"
ANNEX = b"/annex/objects/SHA256E-s2034--0123456789abcdef.nii.gz\n"
LINK = "../.git/annex/objects/Xk/9z/SHA256E-s2034--0123.nii.gz/SHA256E-s2034--0123.nii.gz"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b"x" * 900 + b"</body></html>"
POINTERS = {
    "LFS": (LFS, "a pointer of git-LFS; .*git lfs pull"),
    "annex": (ANNEX, "a pointer of git-annex; .*git annex get"),
    "annex on a file system without links": (LINK.encode(), "a pointer of git-annex; .*git annex get"),
    "page": (PAGE, "a web page; .*login"),
}


def read(path) -> None:
    """Read a file as what its ending says: an image, a checkpoint or a SAM."""
    if path.name.startswith("sam"):
        load_sam(path)
    elif path.suffix in (".pt", ".safetensors"):
        load_checkpoint(path)
    else:
        read_image(path)


def refused(path, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: expected .*, found {message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert "again" not in str(caught.value), "downloading it again would bring the same"


NAMES = ["t1.nii", "t1.nii.gz", "t1.mha", "model.pt", "model.safetensors", "sam.pth", "sam.safetensors"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", POINTERS)
def test_a_pointer_or_a_page_in_place_of_a_file_is_told_as_what_it_is(tmp_path, name, kind):
    content, message = POINTERS[kind]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


@pytest.mark.parametrize("name", NAMES)
def test_a_link_to_content_that_git_annex_has_not_fetched_is_told(tmp_path, name):
    (tmp_path / name).symlink_to(LINK)
    refused(tmp_path / name, "a pointer of git-annex; .*git annex get")


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("t1.nii", b"x" * 1000)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t1.nii", archive(), "a zip archive; unpack it"),
        ("t1.nii.gz", bytes(257) + b"ustar" + bytes(800), "a tar archive; unpack it"),
        ("t1.nii.gz", gzip.compress(bytes(257) + b"ustar" + bytes(800)), "a tar archive; unpack it"),
        ("t1.nii.gz", gzip.compress(gzip.compress(bytes(1000))), "a gzip file; unpack it"),
        ("t1.nii.gz", gzip.compress(PAGE), "a web page"),
        ("t1.nii", bytes(128) + b"DICM" + bytes(800), "a DICOM file; .*dcm2niix"),
        ("t1.nii", b"NRRD0004\n" + bytes(800), "an NRRD image; convert"),
        ("t1.nii", b"ObjectType = Image\nNDims = 3\n" + bytes(800), r"a MetaImage; rename it to end in \.mha"),
        ("t1.mha", nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)).to_bytes(), r"a NIfTI image; .*\.nii"),
        ("t1.mha", gzip.compress(bytes(800)), "a gzip file; unpack it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_another_format_under_the_name_of_an_image_is_told_with_the_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


def test_what_is_not_known_or_not_there_has_no_kind(tmp_path):
    assert true_kind(b"") == true_kind(b"modality,file\n") == true_kind(bytes(512)) == ""
    assert true_kind_of(tmp_path / "nothing") == true_kind_of(tmp_path) == ""
    torch.save({}, tmp_path / "a.pt")
    assert true_kind_of(tmp_path / "a.pt", but=("a zip archive",)) == ""
