"""Reading one case: the volumes of the asked modalities on their own grid, checked, with their geometry.

Everything that can be wrong with a file is told here, as one sentence, before a model sees a voxel.
"""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from smml.data.case import Case
from smml.data.inflating import inflate_gzip, inflated_size
from smml.data.layouts import IMAGE_SUFFIXES, CaseFiles, find_case, layout_named, split_suffix
from smml.data.nifti import KINDS, affine_in_mm
from smml.errors import InputError, MissingPackage
from smml.failures import is_out_of_memory, telling_memory
from smml.mistaken import true_kind, true_kind_of
from smml.modalities import parse_subset, subset_name

# Furthest that two files of a case may put the same voxel apart: a part of the shortest voxel edge, and in mm. Headers
# round to single precision. In a qform nearly 180 degrees from the axes, as those of BraTS are, the quaternion's fourth
# number is found from the other three, and a corner of a head moves by some hundredths of a mm.
GRID_TOLERANCE, GRID_TOLERANCE_MM = 0.1, 0.2

# Voxel edges of an image of a head, in mm: outside them, the header is wrong or in another unit than it says.
VOXEL_EDGES = (0.05, 50.0)

# MetaImage's element types and their bytes per value.
_MHA_TYPES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG", "MET_ULONG"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}

# Bytes of the longer header, that of NIfTI-2.
_HEADER = 540

# ITK counts patient axes to the left and to the back, NIfTI to the right and to the front.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# What brings the sequences of a case to one grid.
_REMEDY = "smml predict --align SEQUENCE does that for its own use; in Python: align_case"

_MEMORY = "close other programs, read fewer sequences (--modalities), or take a machine with more"


class _Stored(NamedTuple):
    """What a file holds: values [X, Y, Z], the affine in mm, the header of a NIfTI, and its slope and intercept."""

    values: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | None = None
    scale: tuple[float, float] | None = None


def read_case(
    case: CaseFiles | str | os.PathLike | Iterable[str | os.PathLike],
    modalities: str | Iterable[str] | None = None,
    *,
    label: bool = True,
) -> Case:
    """Read one case; only the files of the asked modalities are opened.

    Args:
        case: from ``find_cases``, or what ``find_case`` takes: a case folder, or a list of files.
        modalities: names or a subset such as "flair+t2"; None reads all that the case has.
        label: read the segmentation if there is one; its absence is no error.

    Raises:
        InputError: a modality is not there, a file is missing, damaged or not a 3D image, holds NaN, infinite or only
            zero values, a label value is foreign to the layout, or the files disagree about the grid.
    """
    files = case if isinstance(case, CaseFiles) else find_case(case, label=label)
    wanted = files.modalities if modalities is None else parse_subset(modalities)
    absent = [name for name in wanted if name not in files.images]
    if absent:
        raise InputError(
            f"case {files.id}: {subset_name(absent, ', ')} was asked for, but the case has only "
            f"{subset_name(files.modalities, ', ')} on disk; ask for these, or add the missing file"
        )
    channels = layout_named(files.layout).channels
    volumes, sources, first, header = {}, {}, None, None
    for name in wanted:
        source = files.images[name]
        in_4d = len(channels) if channels and source.channel is not None else None
        with telling_memory(os.fspath(source.path), _MEMORY), np.errstate(over="ignore", invalid="ignore"):
            stored = _read(source.path, source.channel, in_4d)
            volume = stored.values.astype(np.float32)
        if first is None:
            first, header = (source.path, stored.values.shape, stored.affine), stored.header
        _check_grid(source.path, stored.values.shape, stored.affine, *first)
        if bad := volume.size - int(np.isfinite(volume).sum()):
            raise InputError(
                f"{source.path}: expected finite intensities, found NaN or infinity in {bad} of {volume.size} voxels; "
                "repair or export the image again"
            )
        if not volume.any():
            raise InputError(
                f"{source.path}: expected an image, found only zeros; export it again, or leave {subset_name([name])} "
                "out"
            )
        volumes[name], sources[name] = volume, source.path
    assert first is not None  # a case has an image
    segmentation = None
    if label and files.label is not None:
        segmentation, affine = read_label(files)
        _check_grid(files.label, segmentation.shape, affine, *first)
        sources["label"] = files.label
    return Case(files.id, volumes, segmentation, first[2], files.layout, sources, header)


def read_label(files: CaseFiles) -> tuple[np.ndarray, np.ndarray]:
    """The segmentation of a case, without its images.

    Args:
        files: a case that has one.

    Returns:
        Memory values, uint8 [X, Y, Z], and the affine, float64 [4, 4], voxel index -> RAS+ mm.

    Raises:
        InputError: as :func:`read_image`, or values that are not the layout's.
    """
    assert files.label is not None  # asked for only then
    with telling_memory(os.fspath(files.label), _MEMORY):
        stored = _read(files.label)
        return files.decode(stored.values, stored.scale), stored.affine


def read_image(
    path: str | os.PathLike, channel: int | None = None, channels: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read a .nii, .nii.gz or .mha file, without looking at its values.

    Args:
        path: the file.
        channel: position along the last axis of a 4D NIfTI; only this one is taken from the file.
        channels: length that the last axis must have.

    Returns:
        Values [X, Y, Z] in the type of the file (floating if it carries a scale), and the affine, float64 [4, 4],
        voxel index -> RAS+ mm, whatever unit of length a NIfTI header uses.

    Raises:
        InputError: the file is missing, a folder, damaged, not an image of that many dimensions, or has voxels of an
            impossible size; or there is too little memory for it.
    """
    with telling_memory(os.fspath(path), _MEMORY):
        stored = _read(Path(path), channel, channels)
    return stored.values, stored.affine


def _read(path: Path, channel: int | None = None, channels: int | None = None) -> _Stored:
    """As :func:`read_image`, with the header."""
    _, suffix = split_suffix(path)
    if path.is_dir():
        raise InputError(f"{path}: expected an image file, found a folder; name the file inside it")
    try:
        size = path.stat().st_size
    except OSError as error:
        if kind := true_kind_of(path):
            raise InputError(f"{path}: expected an image, found {kind}") from error
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
    if not suffix:
        raise InputError(f"{path}: expected a file ending in {', '.join(IMAGE_SUFFIXES)}; convert it to one of these")
    try:
        stored = _read_mha(path) if suffix == ".mha" else _read_nifti(path, channel, channels)
    except InputError:
        raise
    # What a damaged file provokes in the libraries is not enumerable: overflow, lookup and codec errors.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        own = ("a MetaImage",) if suffix == ".mha" else ("a NIfTI image", "a gzip file")
        if kind := true_kind_of(path, but=own):
            raise InputError(f"{path}: expected a {suffix} image, found {kind}") from error
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: expected a complete {suffix} image, found {size} bytes that cannot be read ({reason}); "
            "the file is damaged or cut short: copy or download it again"
        ) from error
    dtype = stored.values.dtype
    if not np.issubdtype(dtype, np.number) or np.issubdtype(dtype, np.complexfloating):
        raise InputError(f"{path}: expected one real number per voxel, found {dtype}; convert it to grey values")
    linear = stored.affine[:3, :3]
    lengths = np.linalg.norm(linear, axis=0)
    if not np.isfinite(stored.affine).all() or lengths.min() == 0 or abs(np.linalg.det(linear / lengths)) < 1e-6:
        raise InputError(
            f"{path}: expected an invertible voxel-to-mm matrix, found {linear.tolist()}; repair its header"
        )
    shortest, longest = VOXEL_EDGES
    # Headers hold single precision, so an edge of exactly the limit may come out just beyond it.
    if lengths.min() < shortest * (1 - 1e-5) or lengths.max() > longest * (1 + 1e-5):
        raise InputError(
            f"{path}: expected voxel edges of {shortest:g} to {longest:g} mm, found "
            f"{' x '.join(f'{length:.4g}' for length in lengths)} mm; repair the voxel size or its unit in the header"
        )
    return stored


def _read_nifti(path: Path, channel: int | None, channels: int | None) -> _Stored:
    with open(path, "rb") as file:
        # Told by content: whoever unpacks or packs a file often forgets the name.
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream: io.IOBase = inflate_gzip(file, _HEADER, lambda start: _needed(path, start)) if packed else file
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        kind = _nifti_kind(path, stream.read(_HEADER))
        stream.seek(0)
        image = kind.from_stream(stream)
        shape = image.shape
        proxy = cast(ArrayProxy, image.dataobj)  # of an image that comes from a stream
        own = kind.header_class
        if image.header["magic"] == own.single_magic and proxy.offset < own.single_vox_offset:
            raise InputError(
                f"{path}: expected the image behind its header, found vox_offset {proxy.offset}, which lies inside it; "
                f"set vox_offset to {own.single_vox_offset}, if the voxels begin there"
            )
        needed = proxy.offset + int(np.prod(shape, dtype=object)) * proxy.dtype.itemsize
        if size < needed:
            raise ValueError(f"the image ends after {size} of {needed} bytes")
        axes = 3 if channel is None else 4
        _check_dimensions(path, shape, axes, channels)
        index = (slice(None),) * 3 + (0,) * (len(shape) - 3)
        if channel is not None:
            index = (*index[:3], channel, *index[4:])
        # Slicing the proxy reads the asked channel alone.
        values = np.asarray(proxy[index] if len(shape) > 3 else proxy)
        scale = (float(proxy.slope), float(proxy.inter))
        return _Stored(values, affine_in_mm(image.header), image.header, None if scale == (1, 0) else scale)


def _nifti_kind(path: Path, start: bytes) -> type[nib.Nifti1Image]:
    """NIfTI-1 or 2, told by the first bytes."""
    for kind in KINDS:
        if kind.header_class.may_contain_header(start):
            return kind
    if found := true_kind(start):
        raise InputError(f"{path}: expected a NIfTI image, found {found}")
    raise ValueError("no NIfTI header")


def _needed(path: Path, start: bytes) -> int:
    """Bytes of a whole image, told by its first ones."""
    kind = _nifti_kind(path, start).header_class
    header = kind(start[: kind.sizeof_hdr])
    values = int(np.prod(header.get_data_shape(), dtype=object))
    return max(len(start), header.get_data_offset() + values * header.get_data_dtype().itemsize)


def _check_dimensions(path: Path, shape: tuple[int, ...], axes: int, channels: int | None) -> None:
    """``axes`` dimensions, further ones of length 1 allowed."""
    if len(shape) < axes or any(length != 1 for length in shape[axes:]) or min(shape) < 1:
        raise InputError(
            f"{path}: expected an image of {axes} dimensions, found shape {tuple(map(int, shape))}; "
            + ("give one sequence per file" if axes == 3 else "give the 4D file with the four sequences")
        )
    if channels is not None and shape[3] != channels:
        raise InputError(
            f"{path}: expected {channels} channels along the fourth axis, found {shape[3]}; give the four sequences"
        )


def _read_mha(path: Path) -> _Stored:
    sitk = import_simpleitk(f"{path}: a .mha file")
    check_mha(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    # By its name ITK knows it in small letters alone.
    image = sitk.ReadImage(os.fspath(path), imageIO="MetaImageIO")
    _check_dimensions(path, image.GetSize(), 3, None)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path}: expected one value per voxel, found {image.GetNumberOfComponentsPerPixel()}")
    dimensions = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (dimensions, dimensions))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    # ITK's arrays run [Z, Y, X], with further axes of length 1 in front.
    stored = sitk.GetArrayFromImage(image).T
    return _Stored(np.ascontiguousarray(stored.reshape(stored.shape[:3])), LPS_TO_RAS @ affine)


def import_simpleitk(what: str, extra: str = "mha"):
    """The SimpleITK module, which only BraTS 2015 and registration need.

    Args:
        what: needs it.
        extra: the extra of smml that brings it.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise MissingPackage(f"{what} needs SimpleITK, which is not installed", extra=extra) from error
    return SimpleITK


def check_mha(path: Path) -> None:
    """Check that a .mha file holds all the bytes that its header announces.

    ITK prints to the terminal when they are short, and returns noise when a compressed image is damaged, so this runs
    first.

    Raises:
        ValueError: the header is incomplete, or the image is short or damaged.
        InputError: the image lies in another file.
    """
    content = path.read_bytes()
    header, position = {}, 0
    while "ElementDataFile" not in header:
        end = content.find(b"\n", position)
        key, separator, value = content[position:end].decode("latin-1").partition("=")
        if end < 0 or not separator:
            raise ValueError("its MetaImage header is incomplete")
        header[key.strip()] = value.strip()
        position = end + 1
    if header["ElementDataFile"] != "LOCAL":
        raise InputError(
            f"{path}: expected an image inside the file, found a reference to {header['ElementDataFile']}; "
            "convert it to a single .mha file"
        )
    lengths = [int(length) for length in header.get("DimSize", "").split()]
    if header.get("ElementType") not in _MHA_TYPES or not lengths or header.get("NDims") != str(len(lengths)):
        raise ValueError("its MetaImage header lacks a known ElementType or as many DimSize as NDims")
    values = int(np.prod(lengths, dtype=object)) * int(header.get("ElementNumberOfChannels", 1))
    needed = values * _MHA_TYPES[header["ElementType"]]
    size = len(content) - position
    if header.get("CompressedData", "False").lower() == "true":
        # ITK needs this entry, and without it returns noise.
        if "CompressedDataSize" not in header:
            raise ValueError("its MetaImage header lacks CompressedDataSize")
        end = position + int(header["CompressedDataSize"])
        if end > len(content):
            raise ValueError(f"the compressed image ends {end - len(content)} bytes early")
        size = inflated_size(memoryview(content)[position:end], needed)
    if size < needed:
        raise ValueError(f"the image ends after {size} of {needed} bytes")


def on_same_grid(shape: tuple, affine: np.ndarray, first_shape: tuple, first_affine: np.ndarray) -> bool:
    """Whether two images of a case share their grid, as far as headers can tell.

    Args:
        shape: voxels of the one along each axis.
        affine: its voxel index -> RAS+ mm, [4, 4].
        first_shape: voxels of the other.
        first_affine: likewise.
    """
    return shape == first_shape and _apart(shape, affine, first_affine) <= _tolerance(first_affine)


def _apart(shape: tuple, affine: np.ndarray, first_affine: np.ndarray) -> float:
    """Furthest in mm that two affines put a voxel apart; that is at a corner."""
    corners = np.stack(np.meshgrid(*[(0, length - 1) for length in shape], [1], indexing="ij"), -1).reshape(-1, 4)
    return float(np.linalg.norm((corners @ (affine - first_affine).T)[:, :3], axis=1).max())


def _tolerance(first_affine: np.ndarray) -> float:
    return min(GRID_TOLERANCE * float(np.linalg.norm(first_affine[:3, :3], axis=0).min()), GRID_TOLERANCE_MM)


def _check_grid(
    path: Path, shape: tuple, affine: np.ndarray, first: Path, first_shape: tuple, first_affine: np.ndarray
) -> None:
    """Same shape, and no corner of the volume further apart than a small part of a voxel."""
    if on_same_grid(shape, affine, first_shape, first_affine):
        return
    if shape != first_shape:
        raise InputError(
            f"{path}: expected the shape {first_shape} of {first}, found {shape}; resample the files of a case to one "
            f"grid ({_REMEDY})"
        )
    raise InputError(
        f"{path}: expected the same place as {first}, found voxels up to {_apart(shape, affine, first_affine):.4g} mm "
        f"away from it (shapes agree, affines differ by more than {_tolerance(first_affine):.4g} mm); register or "
        f"resample the files of a case to one grid ({_REMEDY})"
    )
