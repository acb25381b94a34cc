"""Results as a user names them on a command line: ``NAME=FILE``, the path alone, or with ``@SUBSET`` behind it."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from smml.errors import InputError
from smml.evaluation.formats.read import read_result
from smml.evaluation.scores import Scores


def read_named_results(arguments: Iterable[str]) -> dict[str, Scores]:
    """Read results by name, one output each.

    Files under one name that were given other sequences, such as fifteen nnU-Nets, are one result.

    Args:
        arguments: ``NAME=FILE``, ``NAME=FILE@flair+t2`` where the file does not say what was given
            (:func:`smml.evaluation.read_result`), or the path alone, after which the result is then called. What exists
            under its whole name is a path, whatever it holds.

    Returns:
        Scores by name; a file with outputs "student" and "refined" makes two, "NAME, student" and "NAME, refined".

    Raises:
        InputError: a file that cannot be read, or two results of one name that hold the same.
    """
    results: dict[str, Scores] = {}
    for argument in arguments:
        name, path, subset = _split(argument)
        outputs = read_result(path, subset).outputs()
        for kind, scores in outputs.items():
            title = f"{name}, {kind}" if len(outputs) > 1 and kind else name
            before = results.get(title)
            if before is None:
                results[title] = scores
            elif subset is None or set(before.frame["subset"]) & set(scores.frame["subset"]):
                raise InputError(f"two results are called {title!r}; name them, as in NAME={path}")
            else:
                frame = pd.concat([before.frame, scores.frame], ignore_index=True)
                results[title] = Scores(frame, f"{before.protocol}. {scores.protocol}")
    return results


def _split(argument: str) -> tuple[str, str, str | None]:
    """Name, path and subset. Folders of a search are called lr=0.1, and some have an @ in their names."""
    rest, subset = _without_subset(argument)
    name, separator, path = rest.partition("=")
    if Path(argument).exists():
        path, subset = argument, None
    elif Path(rest).exists() or not separator:
        path = rest
    else:
        whole = argument.partition("=")[2]
        if Path(whole).exists():
            path, subset = whole, None
        return name, path, subset
    whole_path = Path(path).absolute()
    return whole_path.name if whole_path.is_dir() else whole_path.stem, path, subset


def _without_subset(argument: str) -> tuple[str, str | None]:
    path, separator, subset = argument.rpartition("@")
    # A slash behind it: the @ is of a folder.
    return (path, subset) if separator and path and "/" not in subset else (argument, None)
