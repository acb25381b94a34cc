"""HD95 of several results alike: a mean over what all of them have a distance of, so that a miss gains nobody anything.

Exactly one of prediction and truth empty has no HD95. Files leave it out, or put in a penalty: the diagonal of BraTS's
volume (373.13), 373, 374 or another volume's. A result that misses the hard cases would otherwise have the better mean
where misses are left out, and any mean where others pay for theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS

# Longer than any brain: surfaces in one lie nearer to each other, so without overlap it is a penalty.
PENALTY_FROM_MM = 200.0


@dataclass(frozen=True)
class CommonDistances:
    """HD95 over what all results have.

    Attributes:
        means: in mm by result and region, over cases, then over subsets; NaN where there is none in common.
        missing: by result and region, of how many pairs of case and subset it has no distance; NaN where it has none at
            all, as a file without distances.
        left_out: by region, of how many pairs not all results have one.
        note: what was done about penalties; "" where nothing was.
    """

    means: dict[str, dict[str, float]]
    missing: dict[str, dict[str, float]]
    left_out: dict[str, int]
    note: str


def common_distances(tables: Mapping[str, pd.DataFrame]) -> CommonDistances:
    """HD95 of each result over the pairs of case and subset of which all results with distances have one.

    A penalty is no distance, whoever pays it: what it stands for, a miss or a false alarm, is counted instead.

    Args:
        tables: by result, rows by (case, subset, region) with ``dice`` and ``hd95``; the same pairs of case and subset
            in each, of the regions that it has.
    """
    distances = {name: table["hd95"] for name, table in tables.items() if table["hd95"].notna().any()}
    ways = []
    for name, distance in distances.items():
        penalised = (tables[name]["dice"] == 0) & (distance >= PENALTY_FROM_MM)
        distances[name] = distance.mask(penalised)
        ways += [f"{name} {way}" for way in _ways(distance, distance[penalised])]
    # Where all leave it out there is nothing to say.
    note = ""
    if any("counts" in way for way in ways):
        note = f"an HD95 where one region is empty is taken as none in every result ({'; '.join(ways)})"
    means: dict[str, dict[str, float]] = {name: dict.fromkeys(map(str, REGIONS), np.nan) for name in tables}
    missing: dict[str, dict[str, float]] = {name: dict.fromkeys(map(str, REGIONS), np.nan) for name in tables}
    left_out = dict.fromkeys(map(str, REGIONS), 0)
    for region in REGIONS:
        own = {name: _of(distance, region) for name, distance in distances.items()}
        own = {name: distance for name, distance in own.items() if len(distance)}
        if not own:
            continue
        together = pd.DataFrame(own)
        there = together.notna().all(axis=1)
        left_out[region] = int((~there).sum())
        averages = together[there].groupby("subset").mean().mean()
        for name in own:
            means[name][region] = float(averages[name])
            missing[name][region] = float(together[name].isna().sum())
    return CommonDistances(means, missing, left_out, note)


def _of(distance: pd.Series, region: str) -> pd.Series:
    """The distances of a region, by (case, subset)."""
    return distance[distance.index.get_level_values("region") == region].droplevel("region")


def _ways(distance: pd.Series, penalties: pd.Series) -> list[str]:
    """How a result counts what has no distance."""
    ways = ["leaves it out"] if distance.isna().any() else []
    if len(penalties):
        low, high = f"{penalties.min():.5g}", f"{penalties.max():.5g}"
        ways.append(f"counts {low} mm" if low == high else f"counts {low} to {high} mm")
    return ways
