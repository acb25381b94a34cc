"""Labelled patients on whom every training of a study is scored too: they choose nothing, they may contradict."""

import pandas as pd

from smml.data.labels import REGIONS
from smml.evaluation.sheets import Kind, Sheet, number
from smml.study.presets import EVERY_ARM
from smml.study.variance import signs

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


def differences_by_seed(patients: pd.DataFrame, arm: str, parent: str) -> pd.Series:
    """Dice of an arm less that of another, for each seed that both have: the mean over :data:`SUBSETS` and regions.

    Args:
        patients: of :func:`summarise`.
        arm: its name.
        parent: the other's name.

    Returns:
        Differences (-1 to 1) by seed; empty where no seed has both.
    """
    own = patients[patients["subset"].isin(SUBSETS)].pivot_table(
        index="seed", columns=["arm", "subset", "region"], values="dice"
    )
    if not {arm, parent} <= set(own.columns.get_level_values("arm")):
        return pd.Series(dtype=float)
    return (own[arm] - own[parent]).mean(axis=1, skipna=False).dropna()


def differences_sheet(patients: pd.DataFrame, compared: pd.DataFrame) -> tuple[Sheet, list[tuple[str, str]]]:
    """A row per pair of arms: the difference on the patients beside that on the simulated subjects.

    Args:
        patients: of :func:`summarise`.
        compared: of :func:`smml.study.compare_arms` over the cases that have the region, as patients' Dice counts.

    Returns:
        The table, in Dice points, and the pairs whose two differences have opposite signs.
    """
    columns: tuple[tuple[str, Kind], ...] = (
        ("arm", "word"), ("against", "word"), ("patients, mean", "number"), ("least seed", "number"),
        ("largest seed", "number"), ("sign by seed", "word"), ("simulated, mean", "number"),
    )  # fmt: skip
    rows, apart = [], []
    for row in compared.to_dict("records"):
        found = 100 * differences_by_seed(patients, row["arm"], row["parent"])
        if found.empty:
            continue
        simulated = 100 * row["mean"]
        titles = (EVERY_ARM[row["arm"]].title, EVERY_ARM[row["parent"]].title)
        cells = [f"{value:+.1f}" for value in (found.mean(), found.min(), found.max())]
        rows.append((*titles, *cells, signs(found).replace("-", "−"), f"{simulated:+.1f}"))
        if found.mean() * simulated < 0:
            apart.append((row["arm"], row["parent"]))
    return Sheet(columns, tuple(rows)), apart


def cases_of(patients: pd.DataFrame) -> str:
    """How many patients have each region, over :data:`SUBSETS`, as words.

    Args:
        patients: of :func:`summarise`.
    """
    own = patients[patients["subset"].isin(SUBSETS)]
    counts = own.groupby(["region", "subset"])["cases"].max().groupby("region").max()
    return ", ".join(f"{region} in {counts.get(region, 0)}" for region in REGIONS)
