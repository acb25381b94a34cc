"""One result file of any tool: its columns tell who wrote it."""

import os
from pathlib import Path

from smml.errors import InputError
from smml.evaluation.cells import read_heads
from smml.evaluation.formats import brats, mimose, nnunet
from smml.evaluation.scores import Scores
from smml.modalities import parse_subset, subset_name

# What is looked for in a folder, ours first.
_IN_FOLDERS = ("scores.csv", "summary.json")


def read_result(path: str | os.PathLike, subset: str | None = None) -> Scores:
    """Read scores that this package, MiMoSe, nnU-Net or brats-evaluation wrote.

    Args:
        path: ``scores.csv`` or any table in its form, MiMoSe's ``*_per_subject.csv``, nnU-Net's ``summary.json``,
            brats-evaluation's CSV, or a folder with the first or third of them.
        subset: which sequences the network was given, where the file does not say: for nnU-Net and brats-evaluation.

    Returns:
        Scores of each case, subset and region, with what is particular about them as their protocol.

    Raises:
        InputError: no such file, none of these forms, a cell that is not as its form wants it, or a subset that is
            missing or too much.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), path / _IN_FOLDERS[0])
    if not path.is_file():
        return Scores.read(path)  # which says so
    if path.suffix.lower() == ".json":
        return nnunet.read(path, _given(path, subset, nnunet.NAME))
    heads = read_heads(path)
    if brats.knows(heads):
        return brats.read(path, _given(path, subset, brats.NAME))
    ours = {"case", "subset", "region", "dice"} & set(heads)
    if not ours and not mimose.knows(heads):
        raise InputError(
            f"{path}: the columns {', '.join(heads[:4]) or '(none)'} are of no known result; expected "
            f"case,subset,region,dice (ours), {mimose.HEADS} ({mimose.NAME}), {brats.HEADS} ({brats.NAME}), or a "
            f"summary.json ({nnunet.NAME})"
        )
    if subset is not None:
        raise InputError(f"{path}: says of every row which sequences were given; leave @{subset} out")
    return mimose.read(path) if mimose.knows(heads) else Scores.read(path)


def _given(path: Path, subset: str | None, tool: str) -> str:
    """The subset in the project's spelling."""
    if subset is None:
        raise InputError(
            f"{path}: {tool} does not write which sequences its network was given; add them, as in {path.name}@all or "
            f"{path.name}@flair+t2"
        )
    try:
        return subset_name(parse_subset(subset))
    except InputError as error:
        raise InputError(f"{path}@{subset}: {error}") from error
