"""Cells of a CSV file as text and as numbers: whatever is wrong is told with file, row, value and what was expected."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from smml.errors import InputError
from smml.modalities import parse_subset, subset_name

# What files write where there is no number.
_ABSENT = ("", "nan", "na", "n/a", "none")


def read_cells(path: str | os.PathLike) -> pd.DataFrame:
    """Every cell as text.

    What pandas takes for missing ("NA", a blank) may be a name, or must be told with its row.

    Args:
        path: a CSV file with a line of heads.

    Raises:
        InputError: no such file, or no CSV file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such result; give a file of scores or the folder of `smml evaluate --output`")
    # A row that ends early lacks its last cells, which is as if they were blank.
    return _read(path).fillna("")


def read_heads(path: str | os.PathLike) -> list[str]:
    """The names of the columns alone; raises what :func:`read_cells` raises."""
    return list(_read(Path(path), rows=0).columns)


def _read(path: Path, rows: int | None = None) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, nrows=rows)
    except (OSError, ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        # pandas ends some of its reasons with a line break.
        raise InputError(f"{path}: not a CSV file ({' '.join(str(error).split())})") from error


def check_columns(path: Path, table: pd.DataFrame, wanted: list[str], expected: str) -> None:
    """Make sure that a table has rows and these columns.

    Args:
        path: the file, for the message.
        table: of :func:`read_cells`.
        wanted: names of columns.
        expected: how such a file looks, for the message.

    Raises:
        InputError: it has not.
    """
    missing = [column for column in wanted if column not in table]
    if missing or table.empty:
        what = f"lacks the columns {', '.join(missing)}" if missing else "holds no rows"
        raise InputError(f"{path}: {what}; expected {expected}")


def check_named(path: Path, cases: pd.Series) -> None:
    """Make sure that every row names its case; raises InputError with the row otherwise."""
    blank = np.flatnonzero(cases.str.strip() == "")
    if blank.size:
        raise InputError(
            f"{path}: row {blank[0] + 2}: names no case; expected its identifier; fill in the column {cases.name}"
        )


def numbers(path: Path, column: pd.Series, meaning: str, *, infinite: bool = False) -> pd.Series:
    """A column as numbers from 0, NaN where the file says that there is none, infinity where that may be.

    Raises InputError with row and value.
    """
    values = pd.to_numeric(column, errors="coerce")
    absent = column.str.strip().str.lower().isin(_ABSENT)
    wrong = np.flatnonzero(~(absent | ((values >= 0) & (infinite | np.isfinite(values)))))
    if wrong.size:
        raise InputError(
            f"{path}: row {wrong[0] + 2}: {column.name} must be {meaning}, found {column.iloc[wrong[0]]!r}; leave the "
            "cell empty where there is none"
        )
    return values


def truths(path: Path, column: pd.Series) -> pd.Series:
    """A column of true or false as 1 and 0, NaN where a cell is empty. Raises InputError with row and value."""
    words = column.str.strip().str.lower()
    values = words.map({"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0})
    wrong = np.flatnonzero(values.isna() & ~words.isin(_ABSENT))
    if wrong.size:
        raise InputError(
            f"{path}: row {wrong[0] + 2}: {column.name} must be true or false, found {column.iloc[wrong[0]]!r}; leave "
            "the cell empty where it is not known"
        )
    return values


def dice_numbers(path: Path, column: pd.Series, *, blank: bool = False) -> pd.Series:
    """A column as Dice from 0 to 1; with ``blank`` NaN where a cell is empty. Raises InputError with row and value."""
    values = pd.to_numeric(column, errors="coerce")
    fine = (values >= 0) & (values <= 1 + 1e-6)
    if blank:
        fine |= column.str.strip().str.lower().isin(_ABSENT)
    wrong = np.flatnonzero(~fine)
    if wrong.size:
        raise InputError(
            f"{path}: row {wrong[0] + 2}: Dice must lie in [0, 1], found {column.iloc[wrong[0]]!r} in column "
            f"{column.name}; per cent / 100"
        )
    return values


def subset_cells(path: Path, column: pd.Series) -> list[str]:
    """A column of subsets in the project's spelling; raises InputError with the row of one that is none."""
    read: dict[str, str] = {}
    for row, text in enumerate(column, start=2):
        if text not in read:
            try:
                read[text] = subset_name(parse_subset(str(text).lower()))
            except InputError as error:
                raise InputError(f"{path}: row {row}: {error}") from error
    return [read[text] for text in column]


def check_once(path: Path, table: pd.DataFrame, keys: list[str]) -> None:
    """Make sure that nothing is scored twice; raises InputError with what is."""
    twice = table[table.duplicated(keys)]
    if len(twice):
        raise InputError(f"{path}: {', '.join(map(str, twice[keys].iloc[0]))} stands there twice; one row each")
