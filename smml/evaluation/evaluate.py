"""Scores of a model over cases and modality subsets."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from smml.data.case import Case, read_case
from smml.data.labels import REGIONS
from smml.data.layouts import CaseFiles
from smml.errors import InputError
from smml.evaluation.scores import dice, hd95
from smml.inference import Predictor, Segmentation
from smml.modalities import SUBSETS, Subset, parse_subset, subset_name, subsets_of
from smml.ranks import Ranks

# A predicted ET below this volume becomes NCR in the post-processed score (500 voxels at 1 mm; docs/CONVENTIONS.md).
SMALL_ET_MM3 = 500.0


def evaluate(
    predictor: Predictor,
    cases: Sequence[CaseFiles | Case],
    subsets: Iterable[str | Subset] = SUBSETS,
    *,
    one_empty: float = math.nan,
    distances: bool = True,
    branches: bool = False,
    ranks: Ranks | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Segment every case from every subset and score the three regions on the grid of the ground truth.

    Args:
        predictor: a trained model.
        cases: from ``find_cases``, or cases in memory; each with a label. A case that lacks sequences is scored on the
            subsets of what it has.
        subsets: which subsets; by default all 15 in table order.
        one_empty: HD95 where exactly one of prediction and truth is empty: NaN (left out of means and counted) or
            ``scores.CHALLENGE_PENALTY``.
        distances: compute HD95, which takes longer than Dice; without it the column is NaN.
        branches: also score each student by itself, as outputs "branch 1" and "branch 2".
        ranks: the processes that share out the cases; all of them must call, and each gets all rows.
        progress: show a progress bar.

    Returns:
        A row per case, subset, output and region: ``case``, ``subset`` ("T1ce+T2"), ``modalities`` (how many),
        ``output`` ("student": the mean of both; with refinement also "refined"; see ``branches``), ``region``,
        ``dice``, ``hd95`` (mm), ``dice_post`` (ET below 500 mm3 relabelled NCR), ``truth_ml``, ``predicted_ml``.
        ``attrs["protocol"]`` says how the numbers came about.

    Raises:
        InputError: no case, a case without a label, or a case whose classes are not the model's; told before the first
            case is segmented.
    """
    if not len(cases):
        raise InputError("no cases to evaluate: name a folder that holds some")
    # All before the first, because one that cannot be scored must not cost the hours spent on those before it.
    for item in cases:
        _check(item, predictor)
    wanted = [parse_subset(subset) for subset in subsets]
    ranks = ranks or Ranks()
    by_case: dict[int, list[dict]] = {}
    own = ranks.deal(len(cases))
    with tqdm(total=len(own) * len(wanted), desc="evaluating", unit="subset", disable=not progress) as bar:
        for number in own:
            item, rows = cases[number], by_case.setdefault(number, [])
            case = item if isinstance(item, Case) else read_case(item)
            possible = set(subsets_of(case.modalities))
            chosen = [subset for subset in wanted if subset in possible]
            for result in predictor.segment_all(predictor.encode(case), chosen):
                for output, segmentation in _outputs(result, branches):
                    rows += _score(case, output, segmentation, one_empty, distances)
                bar.update()
            bar.update(len(wanted) - len(chosen))
    everyone = {number: rows for part in ranks.gather(by_case) for number, rows in part.items()}
    frame = pd.DataFrame([row for number in range(len(cases)) for row in everyone[number]])
    frame.attrs["protocol"] = protocol(len(cases), one_empty)
    return frame


def protocol(cases: int, one_empty: float = math.nan) -> str:
    """One sentence on how the scores are counted, to stand beside every table."""
    missing = "left out" if math.isnan(one_empty) else f"counted as {one_empty:g} mm"
    return (
        f"{cases} cases; Dice per case and region, then the mean over cases, then over subsets; both empty counts 1, a "
        f"false alarm 0; HD95 in mm, both empty 0, one empty {missing}; mean of both branches' probabilities; no "
        "post-processing unless named"
    )


def _check(case: CaseFiles | Case, predictor: Predictor) -> None:
    if case.label is None:
        raise InputError(f"case {case.id}: has no segmentation to compare with; evaluate on labelled cases")
    if case.scheme.num_classes != predictor.scheme.num_classes:
        raise InputError(
            f"case {case.id}: its data set has {case.scheme.num_classes} classes, the model has "
            f"{predictor.scheme.num_classes}; use a model trained on that data set"
        )


def _outputs(result: Segmentation, branches: bool) -> list[tuple[str, Segmentation]]:
    """What is scored of a segmentation, by name."""
    student = result.student or result
    found = [("student", student)]
    if branches:
        found += [
            (f"branch {number}", replace(student, labels=labels))
            for number, labels in enumerate(student.branch_labels, start=1)
        ]
    return [*found, ("refined", result)] if result.refined else found


def _score(case: Case, output: str, result: Segmentation, one_empty: float, distances: bool) -> list[dict]:
    scheme, voxel = case.scheme, float(np.prod(case.spacing))
    post = relabel_small_et(result.labels, voxel, et=scheme.regions["ET"][0])
    rows = []
    for region in REGIONS:
        truth = scheme.region(case.label, region)
        predicted = scheme.region(result.labels, region)
        rows.append(
            {
                "case": case.id,
                "subset": subset_name(result.subset),
                "modalities": len(result.subset),
                "output": output,
                "region": region,
                "dice": dice(predicted, truth),
                "hd95": hd95(predicted, truth, case.spacing, one_empty=one_empty) if distances else math.nan,
                "dice_post": dice(scheme.region(post, region), truth),
                "truth_ml": float(truth.sum()) * voxel / 1000,
                "predicted_ml": float(predicted.sum()) * voxel / 1000,
            }
        )
    return rows


def relabel_small_et(labels: np.ndarray, voxel_mm3: float, et: int) -> np.ndarray:
    """ET -> NCR where the whole predicted ET is smaller than 500 mm3; same shape and dtype as ``labels``."""
    small = 0 < int((labels == et).sum()) * voxel_mm3 < SMALL_ET_MM3
    return np.where(labels == et, np.uint8(1), labels) if small else labels
