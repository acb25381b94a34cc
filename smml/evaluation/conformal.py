"""Conformal intervals of volumes, from the scores of cases that the model was not trained on.

The error of a volume is the difference of a power of the true volume and of the predicted one
(:mod:`smml.models.intervals` says why). For each subset and region the errors of n cases are ranked, those upwards and
those downwards each by themselves, and the interval reaches as far as the ``ceil((n + 1) (1 - a / 2))``-th of them on
either side, a share ``a`` of the cases being left outside. The added 1 is the new case, whose error is as likely to
have any rank as any other's: so the promise holds for few cases as for many, and fewer than 39 are refused, because
none of them has the rank that 95 % would need.

The promise is kept on average over draws of the n cases. On one draw of 200, coverage is within 4 points of it in most
draws, and on one of 50 within 8.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.data.releases import patient_of
from smml.errors import InputError
from smml.evaluation.scores import Scores
from smml.evaluation.sheets import Sheet, number
from smml.modalities import MODALITIES, SUBSETS, subset_name
from smml.models.intervals import LEVELS, POWER, VolumeIntervals

# As scores are written: with six digits.
_ROUNDING = 1e-5


def conformal_quantile(errors: Sequence[float] | np.ndarray, share: float) -> float:
    """The error that a new one does not exceed with a probability of at least ``share``.

    Args:
        errors: of n cases, exchangeable with the new one, floating [n].
        share: in (0, 1).

    Returns:
        The ``ceil((n + 1) share)``-th smallest error; infinite where there are too few of them.
    """
    rank = math.ceil((len(errors) + 1) * share - 1e-9)  # 0.9 of 10 is 9, whatever its last bit says
    return float(np.sort(errors)[rank - 1]) if rank <= len(errors) else math.inf


def fit_intervals(scores: Scores) -> VolumeIntervals:
    """Fit intervals of the volumes of WT, TC and ET, for each subset by itself.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, over cases that the model was not trained on. Of several outputs
            the refined one counts, and of several visits of a patient the first by name: their errors are alike, and
            a further one says little of another patient.

    Raises:
        InputError: the scores hold no volumes, or fewer than 39 patients with all sequences.
    """
    frame, output = _volumes(scores)
    first = {patient_of(case): case for case in sorted(frame["case"].unique(), reverse=True)}
    frame = frame[frame["case"].isin(set(first.values()))]
    fewest = math.ceil(2 / (1 - max(LEVELS)) - 1e-9) - 1
    reach = {}
    for subset in SUBSETS:
        some = frame[frame["subset"] == subset_name(subset)]
        cases = some["case"].nunique()
        if cases < fewest:
            if len(subset) == len(MODALITIES):
                raise InputError(
                    f"intervals at {100 * max(LEVELS):g} % need cases of at least {fewest} patients with all "
                    f"sequences, found {cases}; score more of them"
                )
            continue
        errors = {
            region: part["truth_ml"].to_numpy() ** POWER - part["predicted_ml"].to_numpy() ** POWER
            for region, part in some.groupby("region")
        }
        reach[subset] = {
            region: tuple(
                (
                    max(0.0, conformal_quantile(-errors[region], (1 + level) / 2)),
                    max(0.0, conformal_quantile(errors[region], (1 + level) / 2)),
                )
                for level in LEVELS
            )
            for region in REGIONS
        }
    return VolumeIntervals(int(frame["case"].nunique()), output, reach)


def measure_intervals(scores: Scores, intervals: VolumeIntervals, level: float = LEVELS[0]) -> pd.DataFrame:
    """Whether intervals hold the true volumes of other cases, and how long they are.

    Args:
        scores: of :func:`smml.evaluation.evaluate`, over cases on which neither the model nor the intervals were
            fitted.
        intervals: of :func:`fit_intervals`.
        level: one of ``smml.models.intervals.LEVELS``.

    Returns:
        A row per case, subset and region of which there is an interval: ``case``, ``subset``, ``region``, ``truth_ml``,
        ``predicted_ml``, ``modalities`` (how many), ``low``, ``high`` (ml) and ``covered``.

    Raises:
        InputError: the scores hold no volumes, or another output than the intervals are of.
    """
    frame, output = _volumes(scores)
    if output != intervals.output:
        raise InputError(
            f"the intervals are of the output {intervals.output!r}, and the scores of {output!r}; score the model that "
            "they were fitted for"
        )
    by_name = {subset_name(subset): subset for subset in intervals.reach}
    measured = frame.loc[frame["subset"].isin(by_name), ["case", "subset", "region", "truth_ml", "predicted_ml"]]
    volumes = [
        intervals.volume(by_name[subset], region, ml, level)
        for _, subset, region, _, ml in measured.itertuples(index=False)
    ]
    measured["modalities"] = [len(by_name[subset]) for subset in measured["subset"]]
    measured["low"], measured["high"] = [volume.low for volume in volumes], [volume.high for volume in volumes]
    slack = _ROUNDING * measured["truth_ml"]
    measured["covered"] = measured["truth_ml"].between(measured["low"] - slack, measured["high"] + slack)
    return measured.reset_index(drop=True)


def _volumes(scores: Scores) -> tuple[pd.DataFrame, str]:
    """The rows of the last output, and its name."""
    frame = scores.output().frame
    name = "refined" if "refined" in scores.outputs() else "student"
    volumes = frame.reindex(columns=["truth_ml", "predicted_ml"])
    if volumes.isna().any(axis=None):
        raise InputError("the scores hold no volumes (truth_ml, predicted_ml); take those of smml evaluate")
    if lacking := [region for region in REGIONS if region not in set(frame["region"])]:
        raise InputError(
            f"intervals are of the volumes of {', '.join(REGIONS)}, found none of {', '.join(lacking)}; score these too"
        )
    return frame, name


def format_intervals(measured: pd.DataFrame) -> str:
    """A Markdown table by number of sequences and region: per cent of the volumes covered, and the median length in ml.

    Args:
        measured: of :func:`measure_intervals`.
    """
    heads = ["sequences", *(head for region in REGIONS for head in (f"{region} covered, %", f"{region} length, ml"))]
    rows = []
    for sequences, some in measured.groupby("modalities"):
        cells = [f"{sequences}"]
        for region in REGIONS:
            part = some[some["region"] == region]
            cells += [number(100 * part["covered"].mean()), number((part["high"] - part["low"]).median())]
        rows.append(tuple(cells))
    return Sheet(tuple((head, "number") for head in heads), tuple(rows)).markdown()
