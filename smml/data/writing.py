"""Writing cases, segmentations and probabilities: the names, label values and formats of the data sets.

Same input, same bytes; and each file appears whole or not at all (files.py).
"""

import errno
import os
import re
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from smml.data.case import Case
from smml.data.labels import LabelScheme
from smml.data.layouts import CaseFiles, ImageSource, Layout, layout_named, split_suffix
from smml.data.nifti import affine_in_mm, is_placed_by, set_place
from smml.data.nnunet import write_dataset
from smml.data.reading import LPS_TO_RAS, import_simpleitk
from smml.errors import InputError
from smml.files import replacing
from smml.modalities import MODALITIES, parse_subset


def write_case(case: Case, root: str | os.PathLike) -> CaseFiles:
    """Write a case below ``root`` in the names and label values of its layout.

    Args:
        case: its ``id`` is a number such as "00002", which takes the layout's form ("BraTS2021_00002"), or a name that
            has it. Volumes [X, Y, Z] are stored as int16 where that loses nothing, else as float32.
        root: folder of the data set, made if needed.

    Returns:
        The files, as ``find_cases(root)`` lists them.

    Raises:
        InputError: unknown layout or modality, an id that the layout cannot spell, shapes that differ, a modality
            missing from the 4D file of "msd", label values out of range, or a disk that is full.
    """
    style = layout_named(case.layout)
    given = {str(name).strip().lower(): volume for name, volume in case.volumes.items()}
    volumes = {name: np.asarray(given[name]) for name in parse_subset(given)}
    if style.channels and set(volumes) != set(MODALITIES):
        raise InputError(
            f"case {case.id}: the layout {case.layout} keeps all of {', '.join(style.channels)} in one file, "
            f"found only {', '.join(volumes)}; add the others or choose another layout"
        )
    shapes = {name: volume.shape for name, volume in volumes.items()}
    if case.label is not None:
        shapes["label"] = np.shape(case.label)
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 3:
        raise InputError(f"case {case.id}: expected 3D arrays of one shape, found {shapes}")
    # Encoded first: a label that cannot be written must not leave half a case behind.
    encoded = None if case.label is None else _encode(case.label, style.scheme, f"case {case.id}")
    paths = case_paths(Path(root), case.id, style)
    if not style.by_names:
        write_dataset(Path(root), style.name)
    if style.channels:
        images = {name: ImageSource(paths["4d"], style.channels.index(name)) for name in MODALITIES}
        stack = _compact(np.stack([volumes[name] for name in style.channels], axis=-1))
        _write_array(stack, paths["4d"], case.affine, case.header)
    else:
        images = {name: ImageSource(paths[name]) for name in volumes}
        for name, volume in volumes.items():
            _write_array(_compact(volume), paths[name], case.affine, case.header)
    if encoded is not None:
        _write_array(encoded, paths["label"], case.affine, case.header)
        if not style.by_names:
            write_dataset(Path(root), style.name)
    return CaseFiles(paths["case"].name, case.layout, images, None if encoded is None else paths["label"])


def write_segmentation(
    labels: np.ndarray,
    path: str | os.PathLike,
    affine: np.ndarray,
    layout: str,
    *,
    header: nib.Nifti1Header | None = None,
) -> None:
    """Write a segmentation in the label values of its data set.

    The header is in mm, also where that of the case is in metres or micrometres: every reader that heeds the unit finds
    both at one place.

    Args:
        labels: integers [X, Y, Z] in memory values.
        path: ends in .nii, .nii.gz or .mha.
        affine: [4, 4], voxel index -> RAS+ mm.
        layout: of the case that was segmented (``case.layout``), a key in ``LAYOUTS``.
        header: of the case (``case.header``). Its codes and both of its transforms are kept, so that every reader finds
            labels and images at one place, whichever transform it heeds. Without it, and where it says another place
            than ``affine``, both transforms are the affine, with code 1.

    Raises:
        InputError: another ending, an unknown layout, values outside its scheme, not 3D, or a disk that is full.
    """
    labels = np.asarray(labels)
    if labels.ndim != 3:
        raise InputError(f"{path}: a segmentation has 3 dimensions, found shape {labels.shape}")
    _write_array(_encode(labels, layout_named(layout).scheme, os.fspath(path)), Path(path), affine, header)


def write_probabilities(
    probabilities: np.ndarray,
    path: str | os.PathLike,
    affine: np.ndarray,
    *,
    header: nib.Nifti1Header | None = None,
    layout: str | None = None,
) -> None:
    """Write class probabilities as a 4D NIfTI, float32 [X, Y, Z, K], with its header in mm.

    Args:
        probabilities: [K, X, Y, Z], background first, in the order of the classes in memory.
        path: ends in .nii or .nii.gz.
        affine: [4, 4], voxel index -> RAS+ mm.
        header: as for :func:`write_segmentation`.
        layout: of the labels beside them, a key in ``LAYOUTS``: the header's ``descrip`` then says which class each
            volume is of, in their order, and by which value the labels call it.

    Raises:
        InputError: another ending, not 4D, or a disk that is full.
    """
    probabilities = np.asarray(probabilities, np.float32)
    if probabilities.ndim != 4 or split_suffix(path)[1] == ".mha":
        raise InputError(
            f"{path}: probabilities are written as [K, X, Y, Z] to a .nii or .nii.gz file, "
            f"found shape {probabilities.shape} and this name"
        )
    said = "" if layout is None else describe_classes(layout_named(layout).scheme)
    _write_array(np.moveaxis(probabilities, 0, -1), Path(path), affine, header, said)


def describe_classes(scheme: LabelScheme) -> str:
    """Which class each volume of probabilities is of, in their order, each behind its value in a file of labels.

    Args:
        scheme: of the labels; classes that no network learns have no volume.
    """
    names = scheme.learnt_classes
    values = (scheme.on_disk or range(scheme.num_classes))[: len(names)]
    return "volumes: " + ", ".join(f"{value} {name}" for value, name in zip(values, names, strict=True))


def label_path(root: str | os.PathLike, files: CaseFiles) -> Path:
    """Where the label of a case lies below a folder, in the names of its layout.

    Args:
        root: folder of labels.
        files: the case. One whose name is not the layout's has a folder of its name.
    """
    style = layout_named(files.layout)
    # As it is called, and not as a new case of that number would be: labels must be found beside their images.
    grade, case = _grade_and_name(files.id, style)
    if style.by_names and not re.fullmatch(style.named or style.case_pattern, case, re.IGNORECASE):
        return Path(root) / files.id / f"{files.id}_seg.nii.gz"
    inside = _paths(Path(), grade, case, style)["label"]
    if style.file.startswith("HGG/"):
        # The id does not tell the grade, the folder of the case does if it lies in one.
        grade = next(iter(files.paths)).absolute().parents[1].name.upper()
        inside = Path(*([grade] if grade in ("HGG", "LGG") else []), *inside.parts[1:])
    return Path(root) / inside


def case_paths(root: Path, case_id: str, style: Layout) -> dict[str, Path]:
    """The path of each modality (or "4d") and of the label in a layout, and as "case" the case's id.

    Args:
        root: folder of the data set.
        case_id: as for :func:`write_case`.
        style: the layout.

    Raises:
        InputError: an id that the layout cannot spell.
    """
    grade, case = _grade_and_name(str(case_id), style)
    if not re.fullmatch(style.named or style.case_pattern, case):
        if not (case.isascii() and case.isdigit()) and ("number" in style.case_name or not re.fullmatch(r"\w+", case)):
            raise InputError(
                f"case id {case_id!r}: expected a number such as '00002' or a name like "
                f"{style.case_name.format(id='00002', number=2)!r} for the layout {style.name}"
            )
        case = style.case_name.format(id=case, number=int(case) if case.isdigit() else 0)
    return _paths(root, grade, case, style)


def _grade_and_name(case_id: str, style: Layout) -> tuple[str, str]:
    """In 2015 an id starts with the grade."""
    if style.name == "brats2015" and case_id[:4] in ("HGG_", "LGG_"):
        return case_id[:3], case_id[4:]
    return "HGG", case_id


def _paths(root: Path, grade: str, case: str, style: Layout) -> dict[str, Path]:
    """As :func:`case_paths`, for a name that the layout has."""
    # In 2015 every image has a number of its own; this one is fixed by the case and the sequence.
    digits = "".join(character for character in case if character.isdigit())
    numbers = {role: 5 * int(digits[-9:] or 0) + index for index, role in enumerate((*MODALITIES, "label"))}
    fill = {"grade": grade, "case": case, "patient": case.partition("_")[0]}
    paths = {
        "label": root
        / (style.label_file or style.file).format(token=style.tokens.get("label"), number=numbers["label"], **fill)
    }
    paths["case"] = Path(f"{grade}_{case}" if style.name == "brats2015" else case)
    if style.channels:
        return paths | {"4d": root / style.file.format(**fill)}
    for role in MODALITIES:
        paths[role] = root / style.file.format(token=style.tokens[role], number=numbers[role], **fill)
    return paths


def _compact(volume: np.ndarray) -> np.ndarray:
    """Int16 if every value survives it, else float32."""
    limits = np.iinfo(np.int16)
    # NaN fails the first comparison, so it stays floating.
    if volume.min() >= limits.min and volume.max() <= limits.max and (volume == np.rint(volume)).all():
        return volume.astype(np.int16)
    return volume.astype(np.float32)


def _encode(labels: np.ndarray, scheme: LabelScheme, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    whole = np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool
    if not whole or (labels.size and (labels.min() < 0 or labels.max() >= scheme.num_classes)):
        raise InputError(
            f"{name}: expected integer labels from 0 to {scheme.num_classes - 1}, found {labels.dtype} from "
            f"{labels.min()} to {labels.max()}; give the values in memory of the scheme"
        )
    return scheme.encode(labels.astype(np.uint8))


def _write_array(
    array: np.ndarray, path: Path, affine: np.ndarray, header: nib.Nifti1Header | None, said: str = ""
) -> None:
    """Write [X, Y, Z] or [X, Y, Z, K] in the format of the suffix, atomically; a NIfTI can say something of itself."""
    _, suffix = split_suffix(path)
    if not suffix:
        raise InputError(f"{path}: expected a name ending in .nii.gz, .nii or .mha; rename the output")
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise InputError(f"{path}: expected an invertible 4 x 4 matrix from voxels to mm, found {affine.tolist()}")
    if suffix == ".mha":
        image = _mha_image(array, path, affine, header)
        with replacing(path, suffix) as temporary:
            try:
                import_simpleitk(f"{path}: a .mha file").WriteImage(image, os.fspath(temporary), useCompression=True)
            except RuntimeError as error:
                # ITK wraps the reason of the system in a paragraph of its own.
                reason = str(error).partition("Reason:")[2].strip() or "ITK could not write it"
                raise OSError(errno.EIO, reason) from error
        return
    image = nib.Nifti1Image(array, None)
    set_place(image, affine, header)
    image.header["descrip"] = said.encode()[:79]
    with replacing(path, suffix) as temporary:
        nib.save(image, temporary)


def _mha_image(array: np.ndarray, path: Path, affine: np.ndarray, header: nib.Nifti1Header | None):
    """A SimpleITK image of [X, Y, Z] with an affine to RAS+ mm, where ITK puts images with that NIfTI header."""
    sitk = import_simpleitk(f"{path}: a .mha file")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if is_placed_by(affine, header, array.shape):
        assert header is not None  # it says a place
        affine = _affine_of_itk(sitk, header, affine)
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def _affine_of_itk(sitk, header: nib.Nifti1Header, affine: np.ndarray) -> np.ndarray:
    """The affine to RAS+ mm that ITK reads from a NIfTI header: another than nibabel's where the transforms differ."""
    voxel = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), None)
    one = header.copy()
    one.set_data_shape((1, 1, 1))
    set_place(voxel, affine_in_mm(one), one)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "voxel.nii"
        nib.save(voxel, path)
        reader = sitk.ImageFileReader()
        reader.SetFileName(os.fspath(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError:  # a shear, which ITK does not take
            return affine
    found = np.eye(4)
    found[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * np.array(reader.GetSpacing())
    found[:3, 3] = reader.GetOrigin()
    return LPS_TO_RAS @ found
