"""What several results have in common, and a word wherever they are not of one kind.

Scores are paired by the identifier of the case and the subset. That two results hold the same identifier does not make
them of the same images: where they say how large a region is, the truths are compared.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from smml.data.layouts import LAYOUTS
from smml.errors import InputError
from smml.modalities import SUBSETS, subset_name

# Volumes on grids that are rounded alike differ by less; in ml.
_SAME_SHARE, _SAME_ML = 0.01, 0.01


def common_pairs(tables: Mapping[str, pd.DataFrame]) -> tuple[list[tuple[str, str]], int, list[str]]:
    """(case, subset) that are compared, in order; how many more these cases and subsets would make; and notes.

    Args:
        tables: by result, rows by (case, subset, region).

    Raises:
        InputError: nothing in common, or some results have a pair of these cases and subsets that others lack: leaving
            it out would let a result choose what it is measured on.
    """
    have = {name: set(table.index.droplevel("region")) for name, table in tables.items()}
    own_cases = {name: {case for case, _ in pairs} for name, pairs in have.items()}
    own_subsets = {name: {subset for _, subset in pairs} for name, pairs in have.items()}
    cases = set.intersection(*own_cases.values())
    subsets = set.intersection(*own_subsets.values())
    order = [name for name in map(subset_name, SUBSETS) if name in subsets]
    grid = [(case, subset) for case in sorted(cases) for subset in order]
    pairs = [pair for pair in grid if any(pair in own for own in have.values())]
    if not pairs:
        what, held = ("case", own_cases) if not cases else ("subset", own_subsets)
        found = "; ".join(f"{name} has {_some(items)}" for name, items in held.items())
        raise InputError(
            f"the results {', '.join(have)} share no {what} ({found}); compare them on the same data, under the same "
            "identifiers"
        )
    for name, own in have.items():
        gap = next((pair for pair in pairs if pair not in own), None)
        if gap:
            other = next(other for other in have if gap in have[other])
            raise InputError(
                f"{name}: has no score of {', '.join(gap)}, which {other} has; score it too, or remove its rows from "
                "the other results"
            )
    left = {case for case, _ in pairs}
    kept = {subset for _, subset in pairs}
    notes = [
        f"not all results have them, so they are left out: {'; '.join(more)}"
        for more in [_more(own_cases, left, "case") + _more(own_subsets, kept, "subset")]
        if more
    ]
    sets = Counter(filter(None, map(data_set, left)))
    if len(sets) > 1:
        each = ", ".join(f"{name} ({count})" for name, count in sets.most_common())
        notes.append(f"the cases are of several data sets: {each}")
    return pairs, len(left) * len(kept) - len(pairs), notes


def data_set(case: str) -> str | None:
    """The data set whose cases are called so, a key of ``LAYOUTS``; None where none is.

    Args:
        case: its identifier.
    """
    for layout in LAYOUTS.values():
        # ``find_cases`` puts the grade in front.
        grade = "((HGG|LGG)_)?" if layout.name == "brats2015" else ""
        if layout.names(case, grade + layout.case_pattern):
            return layout.name
    return None


def presence(tables: Mapping[str, pd.DataFrame]) -> tuple[dict[str, pd.Series | None], list[str]]:
    """By result, whether each row's region is there, from its own truth or another result's of the same cases; notes.

    Args:
        tables: by result, rows by (case, subset, region), with ``truth_ml`` or ``present`` where the file has them.

    Returns:
        Bool by (case, subset, region), None where no result tells it of every row; and a note for each result whose
        truth is not that of the first that has one.
    """
    known: dict[tuple[str, str], tuple[str, float, float]] = {}
    differ: dict[tuple[str, str], list[str]] = {}
    for name, table in tables.items():
        for key, there, volume in _truths(table):
            first, other, other_volume = known.setdefault(key, (name, there, volume))
            near = abs(volume - other_volume) <= max(_SAME_ML, _SAME_SHARE * other_volume)
            if there != other or not (near or np.isnan(volume) or np.isnan(other_volume)):
                differ.setdefault((first, name), []).append(
                    f"{key[0]}, {key[1]}: {_amount(other, other_volume)} in {first}, {_amount(there, volume)} in {name}"
                )
            elif np.isnan(other_volume):
                known[key] = (name, there, volume)
    told: dict[str, pd.Series | None] = {}
    for name, table in tables.items():
        keys = list(zip(table.index.get_level_values("case"), table.index.get_level_values("region"), strict=True))
        # Its own truth first: its Dice was counted against that.
        own = {key: there for key, there, _ in _truths(table)}
        values = [own.get(key, known.get(key, ("", np.nan, np.nan))[1]) for key in keys]
        told[name] = None if np.isnan(values).any() else pd.Series(np.array(values) > 0, table.index)
    notes = [
        f"{name} and {first} were not scored against the same truth: {len(places)} regions of cases differ, such as "
        f"{places[0]}"
        for (first, name), places in differ.items()
    ]
    return told, notes


def _truths(table: pd.DataFrame) -> list[tuple[tuple[str, str], float, float]]:
    """((case, region), 1 or 0 for there or not, ml) of a result, as far as it says so; ml NaN where it does not."""
    columns = table.reindex(columns=["truth_ml", "present"]).astype(float)
    there = (columns["truth_ml"] > 0).astype(float).where(columns["truth_ml"].notna(), columns["present"])
    volumes = columns["truth_ml"].groupby(level=["case", "region"]).first()
    known = there.groupby(level=["case", "region"]).first().dropna()
    return [(key, value, volumes[key]) for key, value in known.items()]


def _amount(there: float, volume: float) -> str:
    return f"{volume:.4g} ml" if not np.isnan(volume) else "there" if there else "not there"


def _more(own: Mapping[str, set[str]], kept: set[str], what: str) -> list[str]:
    counts = {name: len(items - kept) for name, items in own.items()}
    return [f"{count} {what}{'s' if count > 1 else ''} of {name}" for name, count in counts.items() if count]


def _some(items: set[str]) -> str:
    first = min(items)
    name = data_set(first)
    return f"{first}{f' of {name}' if name else ''}" + (f" and {len(items) - 1} more" if len(items) > 1 else "")
