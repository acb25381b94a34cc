"""A look at every case before the work begins: labels whole, and of images what their headers and lengths tell.

A training draws its cases by chance and an evaluation takes them in turn: without this, whoever has one bad case
among a thousand learns of it after hours. Voxels of images are not read, which would take as long as the first epoch;
wherever the quick look sees something odd, the case is read as :func:`smml.data.read_case` reads it, which then says
what is wrong, or that nothing is.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from nibabel.arrayproxy import ArrayProxy
from tqdm.auto import tqdm

from smml.data.case import Case
from smml.data.labels import not_learnt
from smml.data.layouts import CaseFiles, layout_named, split_suffix
from smml.data.nifti import open_nifti
from smml.data.reading import read_case, read_label
from smml.errors import InputError
from smml.ranks import Ranks


def check_cases(cases: Sequence[CaseFiles], *, ranks: Ranks | None = None, progress: bool = True) -> None:
    """Make sure that all cases can be used, as far as a quick look tells.

    Args:
        cases: from ``find_cases``.
        ranks: the processes that share out the cases; all of them must call, and each raises alike.
        progress: show a progress bar.

    Raises:
        InputError: what is wrong with the first bad case, and how many more there are.
    """
    problems = find_problems(cases, ranks=ranks, progress=progress)
    if problems:
        more = len(problems) - 1
        raise InputError(
            next(iter(problems.values()))
            + (f" ({more} more of {len(cases)} cases are bad: `smml info --check` lists them all)" if more else "")
        )


def what_is_not_learnt(cases: Iterable[CaseFiles | Case]) -> list[str]:
    """A sentence for each data set among the cases that tells more than a network learns.

    Args:
        cases: from ``find_cases``, or in memory.
    """
    schemes = {case.layout: case.scheme for case in cases}
    return [said for layout, scheme in schemes.items() if (said := not_learnt(layout, scheme))]


def warn_of_not_learnt(cases: Iterable[CaseFiles | Case]) -> None:
    """Say :func:`what_is_not_learnt` as warnings, which are shown once, whoever of the package asks again.

    Args:
        cases: as there.
    """
    for said in what_is_not_learnt(cases):
        # Of one line of code, however it came here: Python shows the same words of one place once.
        warnings.warn(said, stacklevel=1)


def find_problems(cases: Sequence[CaseFiles], *, ranks: Ranks | None = None, progress: bool = True) -> dict[str, str]:
    """What a quick look finds wrong.

    Args:
        cases: from ``find_cases``.
        ranks: the processes that share out the cases; all of them must call, and each gets all problems.
        progress: show a progress bar.

    Returns:
        By the id of each bad case, in the order of the cases, a sentence that names the file, what was expected and
        found, and what to do.
    """
    ranks = ranks or Ranks()
    found: dict[int, str] = {}
    for number in tqdm(ranks.deal(len(cases)), desc="checking cases", unit="case", disable=not progress):
        try:
            _look_at(cases[number])
        except InputError as error:
            found[number] = str(error)
    everyone = {number: said for part in ranks.gather(found) for number, said in part.items()}
    return {cases[number].id: everyone[number] for number in sorted(everyone)}


def _look_at(files: CaseFiles) -> None:
    """Raise InputError where a case cannot be used, as far as a quick look tells."""
    if files.label is None:
        reference = read_case(files, files.modalities[:1])
        shape, affine = reference.shape, reference.affine
    else:
        label, affine = read_label(files)
        shape = label.shape
    channels = layout_named(files.layout).channels
    for source in dict.fromkeys(files.images.values()):
        in_4d = () if source.channel is None or channels is None else (len(channels),)
        if not _is_sound(source.path, (*shape, *in_4d), affine):
            read_case(files)
            return


def _is_sound(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> bool:
    """Whether header and length of a file are those of a whole image on this grid; False where that is not plain."""
    _, suffix = split_suffix(path)
    if suffix not in (".nii", ".nii.gz"):
        return False
    try:
        image = open_nifti(path)
        proxy = cast(ArrayProxy, image.dataobj)
        needed = proxy.offset + int(np.prod(proxy.shape, dtype=object)) * proxy.dtype.itemsize
        return (
            proxy.shape == shape
            and proxy.dtype.kind in "iuf"
            and int(image.header["xyzt_units"]) % 8 in (0, 2)
            and np.allclose(image.affine, affine, rtol=0, atol=1e-5)
            and _length(path, suffix) == needed
        )
    # What a damaged header provokes is not enumerable; reading the case will say what it is.
    except Exception:
        return False


def _length(path: Path, suffix: str) -> int:
    """Bytes of the image file, for gzip as its last bytes say: in one that was cut short they say something else."""
    size = path.stat().st_size
    if suffix == ".nii":
        return size
    with open(path, "rb") as stream:
        stream.seek(size - 4)
        return int.from_bytes(stream.read(4), "little")
