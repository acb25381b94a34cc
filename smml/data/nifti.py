"""What a NIfTI header says of where its image lies: two transforms, each with a code, and a unit of length.

Readers choose between the transforms by rules of their own, and where both codes are 0 they disagree about the place
altogether. An answer lies where its image does for all of them only if it carries the same transforms and codes.
"""

import os
from collections.abc import Callable
from typing import cast

import nibabel as nib
import numpy as np

# NIfTI's codes for the unit of its affine, in mm (nibabel's names: meter, mm, micron). Unknown and undefined ones mean
# mm, as for every reader.
_UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}

# Fields of a header that place its image; the first of pixdim is the handedness of the qform.
_CODES = ("qform_code", "sform_code")
_QUATERNION = ("quatern_b", "quatern_c", "quatern_d")
_LENGTHS = ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")

# How far the length of a quaternion's three stored numbers may be above 1 and still be a rounding of 1.
_ROUNDING = 1e-3

# How far an affine may stand from a header, in mm, and still be the header's.
_SAME = 1e-3


class _Header1(nib.Nifti1Header):
    """A header whose qform may have lost digits (``_unit_quaternion``)."""

    def get_qform_quaternion(self) -> np.ndarray:
        """The unit quaternion [4]; a ValueError where the stored numbers are no rounded ones."""
        return _unit_quaternion(self, super().get_qform_quaternion)


class _Header2(nib.Nifti2Header):
    """The same of NIfTI-2."""

    def get_qform_quaternion(self) -> np.ndarray:
        """The unit quaternion [4]; a ValueError where the stored numbers are no rounded ones."""
        return _unit_quaternion(self, super().get_qform_quaternion)


def _unit_quaternion(header: nib.Nifti1Header, by_nibabel: Callable[[], np.ndarray]) -> np.ndarray:
    """Of a quaternion three numbers are stored, and the fourth makes its length 1.

    Where rounding left the three longer than 1, nibabel refuses; the reference library of NIfTI
    (``nifti_quatern_to_mat44``) divides by their length and takes 0 for the fourth, a turn by 180 degrees, and so do
    its readers, ITK among them.
    """
    stored = np.array([header[name] for name in _QUATERNION], np.float64)
    length = np.linalg.norm(stored)
    if 1 < length < 1 + _ROUNDING:
        return np.r_[0.0, stored / length]
    return by_nibabel()


class _Image1(nib.Nifti1Image):
    header_class = _Header1


class _Image2(nib.Nifti2Image):
    header_class = _Header2


# nibabel's NIfTI-2 and 1, to be tried in this order, that take a rounded quaternion.
KINDS: tuple[type[nib.Nifti1Image], ...] = (_Image2, _Image1)


def open_nifti(path: str | os.PathLike) -> nib.Nifti1Image:
    """A NIfTI file as nibabel opens it, its voxels unread; one with a rounded quaternion too.

    Args:
        path: ``.nii`` or ``.nii.gz``.

    Raises:
        OSError, ValueError: no such file, or none that nibabel takes.
    """
    start = None
    for kind in KINDS:
        taken, start = kind.path_maybe_image(path, start)  # the first bytes are read once
        if taken:
            return cast(nib.Nifti1Image, kind.from_filename(path))
    raise ValueError("no NIfTI header")


def affine_in_mm(header: nib.Nifti1Header) -> np.ndarray:
    """The affine that nibabel reads from a header, voxel index -> RAS+ mm, float64 [4, 4]."""
    affine = np.array(header.get_best_affine(), np.float64)
    affine[:3] *= _unit(header)
    return affine


def set_place(image: nib.Nifti1Image, affine: np.ndarray, header: nib.Nifti1Header | None = None) -> None:
    """Give an image that was made without an affine its place, in mm.

    Args:
        image: [X, Y, Z] or [X, Y, Z, K].
        affine: [4, 4], voxel index -> RAS+ mm.
        header: of an image on the same grid, whose codes and transforms are kept. One that says another place than
            ``affine``, and None, count for nothing: both transforms are then the affine, with code 1.
    """
    own = image.header
    if not is_placed_by(affine, header, image.shape[:3]):
        # The qform drops a shear, the sform keeps it.
        own.set_sform(affine, code=1)
        own.set_qform(affine, code=1)
    else:
        assert header is not None  # it says a place
        for name in (*_CODES, *_QUATERNION):
            own[name] = header[name]
        for name in _LENGTHS:
            own[name] = header[name] * _unit(header)
        own["pixdim"][0] = header["pixdim"][0]
        own["pixdim"][1:4] = header["pixdim"][1:4] * _unit(header)
    own.set_xyzt_units("mm")


def is_placed_by(affine: np.ndarray, header: nib.Nifti1Header | None, shape: tuple[int, ...]) -> bool:
    """Whether a header puts voxels [X, Y, Z] of a shape where an affine to RAS+ mm does."""
    if header is None or tuple(header.get_data_shape()[:3]) != tuple(shape):
        return False
    return bool(np.allclose(affine_in_mm(header), affine, rtol=0, atol=_SAME))


def _unit(header: nib.Nifti1Header) -> float:
    return _UNITS.get(int(header["xyzt_units"]) % 8, 1.0)
