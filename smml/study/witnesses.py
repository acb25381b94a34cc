"""Labelled patients on whom every training of a study is scored too: they choose nothing, they may contradict."""

import pandas as pd

from smml.data.labels import REGIONS
from smml.evaluation.sheets import Kind, Sheet, number
from smml.study.presets import EVERY_ARM

# The subsets that nearly every patient has.
SUBSETS = ("FLAIR", "T1ce", "FLAIR+T1ce")


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over patients; no case's name is kept.

    Args:
        scores: rows of ``arm``, ``seed``, ``case``, ``subset``, ``region``, ``dice``, ``truth_ml``, ``predicted_ml``.

    Returns:
        A row per ``arm``, ``seed``, ``subset`` and ``region``: the mean ``dice`` (0 to 1) over the ``cases`` patients
        that have the region, NaN and 0 where there is none, and ``false_ml``, the most that is called in a patient
        without it, NaN where all have it.
    """
    keys = ["arm", "seed", "subset", "region"]
    there = scores["truth_ml"] > 0
    groups = scores.assign(
        dice=scores["dice"].where(there), false_ml=scores["predicted_ml"].mask(there), cases=there.astype(int)
    ).groupby(keys, sort=False)
    return groups.agg(dice=("dice", "mean"), cases=("cases", "sum"), false_ml=("false_ml", "max")).reset_index()


def witnesses_sheet(patients: pd.DataFrame) -> Sheet:
    """A row per arm: Dice of each region from each of :data:`SUBSETS`, and the most ET that is called without any.

    Args:
        patients: of :func:`summarise`; means are taken over its seeds.
    """
    columns: list[tuple[str, Kind]] = [("arm", "word"), ("seeds", "number")]
    columns += [(f"{subset} {region}, %", "share") for subset in SUBSETS for region in REGIONS]
    columns += [("most false ET, ml", "number")]
    rows = []
    for arm in (name for name in EVERY_ARM if name in set(patients["arm"])):
        own = patients[patients["arm"] == arm]
        means = own.groupby(["subset", "region"])["dice"].mean()
        cells = [
            number(100 * float(means.get((subset, region), float("nan")))) for subset in SUBSETS for region in REGIONS
        ]
        false = own[(own["region"] == "ET") & own["subset"].isin(SUBSETS)]["false_ml"].max()
        rows.append((EVERY_ARM[arm].title, str(own["seed"].nunique()), *cells, number(float(false))))
    return Sheet(tuple(columns), tuple(rows))


def cases_of(patients: pd.DataFrame) -> str:
    """How many patients have each region, over :data:`SUBSETS`, as words.

    Args:
        patients: of :func:`summarise`.
    """
    own = patients[patients["subset"].isin(SUBSETS)]
    counts = own.groupby(["region", "subset"])["cases"].max().groupby("region").max()
    return ", ".join(f"{region} in {counts.get(region, 0)}" for region in REGIONS)
