"""What a further sequence brought to cases that the model was not trained on, and whether it could have been told.

For each subset and each sequence that it lacks, the Dice with that sequence less the Dice without it is taken case by
case, and its mean over the cases is the expected gain: both Dice are of the same case, so the standard error is that of
the differences. A gain of the mean Dice mixes what the literature's mean mixes: an empty region that is found empty
counts 1, and a false alarm 0 (docs/CONVENTIONS.md).
"""

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.bootstrap import standard_error
from smml.evaluation.scores import Scores
from smml.evaluation.sheets import GIVEN, NOT_GIVEN, Kind, Sheet, number, signed
from smml.modalities import DISPLAY_NAMES, MODALITIES, SUBSETS, subset_name
from smml.models.gains import Gain, Gains

# Fewer have no standard error.
_FEWEST = 2


def fit_gains(scores: Scores) -> Gains:
    """Learn what each absent sequence is worth.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, over cases that the model was not trained on. Of several outputs
            the refined one counts.

    Raises:
        InputError: fewer than two cases have all subsets of all four sequences.
    """
    table = _dice(scores)
    by_subset = {}
    for subset in SUBSETS[:-1]:
        before = table.loc[subset_name(subset)]
        gains = []
        for modality in (name for name in MODALITIES if name not in subset):
            rise = table.loc[subset_name((*subset, modality))] - before
            mean, error = rise.mean(), standard_error(rise)
            regions = {region: (float(mean[region]), float(error[region])) for region in REGIONS}
            gains.append(Gain(modality, float(mean["mean"]), float(error["mean"]), regions))
        by_subset[subset] = tuple(gains)
    return Gains(table.index.get_level_values("case").nunique(), by_subset)


def measure_next_scan(scores: Scores, gains: Gains) -> pd.DataFrame:
    """How often the sequence that the table names is the one that raises a case's mean Dice most.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, over cases on which neither the model nor the table was fitted.
        gains: of :func:`fit_gains`.

    Returns:
        A row for each case and each subset that lacks at least two sequences, as there is nothing to choose from with
        one: ``case``, ``subset``, ``modalities`` (how many), ``named`` (the sequence), ``best`` (one of those that
        raise the mean Dice most), ``right`` (whether the named one raises it as much as ``best``), ``always_t1ce``
        (whether T1ce does; NaN where it is at hand), and the rise of the mean Dice by each: ``rise``, ``rise_best``,
        ``rise_t1ce``.

    Raises:
        InputError: fewer than two cases have all subsets of all four sequences.
    """
    table = _dice(scores)["mean"]
    rows = []
    for subset in (subset for subset in SUBSETS if len(subset) <= len(MODALITIES) - 2):
        before = table.loc[subset_name(subset)]
        absent = [name for name in MODALITIES if name not in subset]
        rise = pd.DataFrame({name: table.loc[subset_name((*subset, name))] - before for name in absent})
        named, most = gains.next_scan(subset).modality, rise.max(axis=1)
        # Equal to the bit where both ask for regions that are found alike; scores have six digits.
        right = {name: (rise[name] >= most - 1e-6).astype(float) for name in absent}
        rows.append(
            pd.DataFrame(
                {
                    "case": rise.index,
                    "subset": subset_name(subset),
                    "modalities": len(subset),
                    "named": named,
                    "best": rise.idxmax(axis=1),
                    "right": right[named],
                    "always_t1ce": right.get("t1ce", np.nan),
                    "rise": rise[named],
                    "rise_best": most,
                    "rise_t1ce": rise.get("t1ce", np.nan),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def _dice(scores: Scores) -> pd.DataFrame:
    """Dice by subset and case, with a column for each region and "mean"; of the cases that have all subsets."""
    table = scores.output().frame.pivot(index=["subset", "case"], columns="region", values="dice")
    if lacking := [region for region in REGIONS if region not in table]:
        raise InputError(
            f"what a sequence is worth is learnt from Dice of {', '.join(REGIONS)}, found none of "
            f"{', '.join(lacking)}; score these too"
        )
    counts = table.groupby("case").size()
    whole = counts.index[counts == len(SUBSETS)]
    if len(whole) < _FEWEST:
        raise InputError(
            f"what a sequence is worth is learnt on cases with all {len(MODALITIES)}, scored from all {len(SUBSETS)} "
            f"subsets: expected at least {_FEWEST} of them, found {len(whole)}; score more cases"
        )
    table = table[table.index.get_level_values("case").isin(whole)][list(REGIONS)]
    return table.assign(mean=table.mean(axis=1))


def format_gains(gains: Gains) -> str:
    """A Markdown table: the sequences at hand, and for each absent one the rise of the mean Dice in points.

    Args:
        gains: of :func:`fit_gains`.
    """
    columns: list[tuple[str, Kind]] = [(DISPLAY_NAMES[name], "mark") for name in MODALITIES]
    columns += [("a further", "word")]
    columns += [(head, "number") for head in ("Dice, points", "standard error", *REGIONS)]
    rows = []
    for subset in gains.by_subset:
        at_hand = [GIVEN if name in subset else NOT_GIVEN for name in MODALITIES]
        for gain in gains.expected(subset):
            regions = [signed(100 * gain.regions[region][0]) for region in REGIONS]
            rows.append(
                (*at_hand, DISPLAY_NAMES[gain.modality], signed(100 * gain.dice), number(100 * gain.error), *regions)
            )
    return Sheet(tuple(columns), tuple(rows)).markdown()


def format_next_scan(measured: pd.DataFrame) -> str:
    """A Markdown table by what is at hand: how often the named sequence was the best, and what it brought in points.

    Args:
        measured: of :func:`measure_next_scan`.
    """
    heads = ("choices", "named best, %", "T1ce best, %", "Dice by named", "by T1ce", "by the best")
    columns: list[tuple[str, Kind]] = [("at hand", "word")]
    columns += [(head, "number") for head in heads]
    parts = {"no T1ce": measured[measured["rise_t1ce"].notna()], "T1ce": measured[measured["rise_t1ce"].isna()]}
    rows = [
        (
            name,
            f"{len(part)}",
            *(number(100 * part[column].mean()) for column in ("right", "always_t1ce")),
            *(signed(100 * part[column].mean()) for column in ("rise", "rise_t1ce", "rise_best")),
        )
        for name, part in parts.items()
        if len(part)
    ]
    return Sheet(tuple(columns), tuple(rows)).markdown()
