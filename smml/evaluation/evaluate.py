"""Scores of a model over cases and modality subsets."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from smml.data.case import Case
from smml.data.checking import check_cases
from smml.data.labels import REGIONS
from smml.data.layouts import CaseFiles
from smml.data.reading import read_case
from smml.errors import InputError
from smml.evaluation.metrics import dice, hd95
from smml.evaluation.scores import Scores
from smml.inference import Predictor
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
) -> Scores:
    """Segment every case from every subset and score the three regions on the grid of the ground truth.

    Args:
        predictor: a trained model.
        cases: from ``find_cases``, or cases in memory; each with a label. A case that lacks sequences is scored on the
            subsets of what it has.
        subsets: which subsets; by default all 15 in table order.
        one_empty: HD95 where exactly one of prediction and truth is empty: NaN (left out of means and counted) or
            ``metrics.CHALLENGE_PENALTY``.
        distances: compute HD95, which takes longer than Dice; without it the column is NaN.
        branches: also score each student by itself, as outputs "branch 1" and "branch 2".
        ranks: the processes that share out the cases; all of them must call, and each gets all rows.
        progress: show a progress bar.

    Returns:
        A row per case, subset, output and region: ``case``, ``subset`` ("T1ce+T2"), ``modalities`` (how many),
        ``output`` ("student": the mean of both; with refinement also "refined"; see ``branches``), ``region``,
        ``dice``, ``hd95`` (mm), ``dice_post`` (ET below 500 mm3 relabelled NCR), ``truth_ml``, ``predicted_ml``; and
        the protocol, which says how the numbers came about.

    Raises:
        InputError: no case, a case without a label, one whose classes are not the model's, or one whose files cannot
            be used (:func:`smml.data.checking.check_cases`); told before the first case is segmented.
    """
    if not len(cases):
        raise InputError("no cases to evaluate: name a folder that holds some")
    # All before the first, because one that cannot be scored must not cost the hours spent on those before it.
    for item in cases:
        _check(item, predictor)
    wanted = [parse_subset(subset) for subset in subsets]
    ranks = ranks or Ranks()
    check_cases([item for item in cases if isinstance(item, CaseFiles)], ranks=ranks, progress=progress)
    by_case: dict[int, list[dict]] = {}
    own = ranks.deal(len(cases))
    with tqdm(total=len(own) * len(wanted), desc="evaluating", unit="subset", disable=not progress) as bar:
        for number in own:
            rows = by_case[number] = []
            for some in _score_case(predictor, cases[number], wanted, one_empty, distances, branches):
                rows += some
                bar.update()
            # The subsets that the case lacks count as done.
            bar.update(len(by_case) * len(wanted) - bar.n)
    everyone = {number: rows for part in ranks.gather(by_case) for number, rows in part.items()}
    frame = pd.DataFrame([row for number in range(len(cases)) for row in everyone[number]])
    return Scores(frame, protocol(len(cases), one_empty))


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


def _score_case(
    predictor: Predictor,
    item: CaseFiles | Case,
    wanted: Sequence[Subset],
    one_empty: float,
    distances: bool,
    branches: bool,
) -> Iterator[list[dict]]:
    """The rows of a case, from one after the other of the subsets of what it has."""
    case = item if isinstance(item, Case) else read_case(item)
    scheme, voxel, possible = case.scheme, float(np.prod(case.spacing)), set(subsets_of(case.modalities))
    truth = {region: scheme.region(case.label, region) for region in REGIONS}
    for result in predictor.segment_all(predictor.encode(case), [subset for subset in wanted if subset in possible]):
        student = result.student or result
        outputs = {"student": student.labels}
        if branches:
            assert student.branch_labels is not None  # a predictor always gives them
            outputs |= {f"branch {number}": labels for number, labels in enumerate(student.branch_labels, start=1)}
        if result.refined:
            outputs["refined"] = result.labels
        rows = []
        for output, labels in outputs.items():
            post = relabel_small_et(labels, voxel, et=scheme.regions["ET"][0])
            for region in REGIONS:
                found = scheme.region(labels, region)
                rows.append(
                    {
                        "case": case.id,
                        "subset": subset_name(result.subset),
                        "modalities": len(result.subset),
                        "output": output,
                        "region": region,
                        "dice": dice(found, truth[region]),
                        "hd95": hd95(found, truth[region], case.spacing, one_empty=one_empty)
                        if distances
                        else math.nan,
                        "dice_post": dice(scheme.region(post, region), truth[region]),
                        "truth_ml": float(truth[region].sum()) * voxel / 1000,
                        "predicted_ml": float(found.sum()) * voxel / 1000,
                    }
                )
        yield rows


def relabel_small_et(labels: np.ndarray, voxel_mm3: float, et: int) -> np.ndarray:
    """ET -> NCR where the whole predicted ET is smaller than 500 mm3; same shape and dtype as ``labels``."""
    small = 0 < int((labels == et).sum()) * voxel_mm3 < SMALL_ET_MM3
    return np.where(labels == et, np.uint8(1), labels) if small else labels
