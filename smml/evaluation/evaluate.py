"""Scores of a model over cases and modality subsets."""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import smml
from smml.data.case import Case
from smml.data.checking import check_cases, warn_of_not_learnt
from smml.data.labels import REGIONS
from smml.data.layouts import CaseFiles
from smml.data.reading import read_case
from smml.errors import InputError
from smml.evaluation.kept import LESION_COLUMNS, KeptRows
from smml.evaluation.lesions import check_rules, lesion_scores
from smml.evaluation.metrics import SurfaceScores, dice, surface_scores
from smml.evaluation.scores import Scores
from smml.inference import Predictor, Segmentation
from smml.locks import claimed
from smml.modalities import SUBSETS, Subset, parse_subset, subset_name, subsets_of
from smml.models.decision import ExpectedDice
from smml.ranks import Ranks
from smml.runs import files_digest

# Told of each segmentation of each case.
Observe = Callable[[Case, Segmentation], None]

# A predicted ET below this volume becomes NCR in the post-processed score (500 voxels at 1 mm; docs/CONVENTIONS.md).
SMALL_ET_MM3 = 500.0


@dataclass(frozen=True)
class Scored:
    """What is scored of each case; see :func:`evaluate`."""

    subsets: tuple[Subset, ...] = SUBSETS
    one_empty: float = math.nan
    distances: bool = True
    branches: bool = False
    lesion_wise: str | None = None


def evaluate(
    predictor: Predictor,
    cases: Sequence[CaseFiles | Case],
    subsets: Iterable[str | Subset] = SUBSETS,
    *,
    one_empty: float = math.nan,
    distances: bool = True,
    branches: bool = False,
    lesion_wise: str | None = None,
    keep: str | os.PathLike | None = None,
    observe: Observe | None = None,
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
        distances: compute HD95 and NSD, which take longer than Dice; without them the columns are NaN.
        branches: also score each student by itself, as outputs "branch 1" and "branch 2".
        lesion_wise: also score lesion by lesion, by the rules of this year, "2023" or "2026"
            (:mod:`smml.evaluation.lesions`); None leaves it out.
        keep: a folder for the rows of each case as soon as it is done (:mod:`smml.evaluation.kept`). The same
            evaluation called again goes on behind them, and ends with the rows of one that was never interrupted,
            which have six digits. None keeps them in memory alone.
        observe: called with each case and each of its segmentations, in the process that made them; not with those of
            a case that was scored before. With ``branches`` the segmentations hold each branch's own probabilities.
        ranks: the processes that share out the cases; all of them must call, and each gets all rows.
        progress: show a progress bar.

    Returns:
        A row per case, subset, output and region: ``case``, ``subset`` ("T1ce+T2"), ``modalities`` (how many),
        ``output`` ("student": the mean of both; with refinement also "refined"; see ``branches``), ``region``,
        ``dice``, ``hd95`` (mm), ``nsd`` (0 to 1), ``dice_post`` (ET below 500 mm3 relabelled NCR), ``truth_ml``,
        ``predicted_ml``; with ``lesion_wise`` also ``lesion_rules`` (the year), ``lesions`` (true ones that count),
        ``lesions_found``, ``false_lesions``, ``lesion_dice``, ``lesion_hd95`` (mm) and ``lesion_nsd``; and the
        protocol, which says how the numbers came about.

    Raises:
        InputError: no case, a case without a label, one whose files cannot be used or whose classes are not the
            model's, told before the first case is segmented
            (:func:`smml.data.checking.check_cases`); rules of another year; or ``keep`` holds the scores of another
            evaluation, or another process writes it right now.
    """
    if lesion_wise is not None:
        check_rules(lesion_wise)
    if not len(cases):
        raise InputError("no cases to evaluate: name a folder that holds some")
    # All before the first, because one that cannot be scored must not cost the hours spent on those before it.
    check_labelled(cases, predictor)
    ranks = ranks or Ranks()
    if ranks.first:
        warn_of_not_learnt(cases)
    what = Scored(tuple(map(parse_subset, subsets)), one_empty, distances, branches, lesion_wise)
    if keep is None:
        check_cases([case for case in cases if isinstance(case, CaseFiles)], ranks=ranks, progress=progress)
        return score_cases(predictor, cases, what, observe=observe, ranks=ranks, progress=progress)
    with claimed(keep) if ranks.first else contextlib.nullcontext():
        names = [_names_of_rows(predictor, item, what) for item in cases]
        lesions = lesion_wise is not None
        kept = KeptRows(keep, _identity(predictor, cases, what), names, lesions=lesions, writes=ranks.first)
        ranks.agree({"cases scored before": kept.done})
        unseen = [case for case in cases[kept.done :] if isinstance(case, CaseFiles)]
        check_cases(unseen, ranks=ranks, progress=progress)
        kept.begin()
        return score_cases(predictor, cases, what, kept=kept, observe=observe, ranks=ranks, progress=progress)


def score_cases(
    predictor: Predictor,
    cases: Sequence[CaseFiles | Case],
    what: Scored,
    *,
    kept: KeptRows | None = None,
    observe: Observe | None = None,
    ranks: Ranks,
    progress: bool = False,
) -> Scores:
    """:func:`evaluate` for cases that were looked at before.

    Args:
        predictor: a trained model.
        cases: all of them, labelled.
        what: is scored of each.
        kept: the rows of the first cases, to which those of the others are added as they come; None keeps them in
            memory alone.
        observe: as in :func:`evaluate`.
        ranks: the processes that share out the cases; all of them must call, and each gets all rows.
        progress: show a progress bar.

    Returns:
        As :func:`evaluate`.

    Raises:
        InputError: a case that cannot be read, has no label, or has other classes than the model.
    """
    check_labelled(cases, predictor)
    rows: list[dict] = []
    left = range(kept.done if kept is not None else 0, len(cases))
    # In rounds of a case for each rank, so that what is done is on disk; where nothing is kept no rank waits meanwhile.
    size = max(1, len(left)) if kept is None else ranks.count
    rounds = [left[start : start + size] for start in range(0, len(left), size)]
    total = sum(len(ranks.deal(len(some))) for some in rounds) * len(what.subsets)
    desc = f"evaluating, {kept.done} cases done before" if kept is not None and kept.done else "evaluating"
    with tqdm(total=total, desc=desc, unit="subset", disable=not progress) as bar:
        for some in rounds:
            by_case: dict[int, list[dict]] = {}
            for place in ranks.deal(len(some)):
                goal = bar.n + len(what.subsets)
                by_case[some[place]] = []
                for scored in _score_case(predictor, cases[some[place]], what, observe):
                    by_case[some[place]] += scored
                    bar.update()
                # The subsets that the case lacks count as done.
                bar.update(goal - bar.n)
            everyone = {number: scored for part in ranks.gather(by_case) for number, scored in part.items()}
            for number in some:
                rows += everyone[number]
                if kept is not None:
                    kept.add(everyone[number])
    return Scores(
        pd.DataFrame(rows if kept is None else kept.rows),
        protocol(len(cases), what.one_empty, what.lesion_wise, predictor.decision),
    )


def _names_of_rows(predictor: Predictor, case: CaseFiles | Case, what: Scored) -> list[tuple[str, ...]]:
    """What the rows of :func:`_score_case` are called, in their order."""
    outputs = ["student", *(["branch 1", "branch 2"] if what.branches else [])]
    outputs += ["refined"] if predictor.prior is not None else []
    possible = set(subsets_of(case.modalities))
    return [
        (case.id, subset_name(subset), output, region)
        for subset in what.subsets
        if subset in possible
        for output in outputs
        for region in REGIONS
    ]


def _identity(predictor: Predictor, cases: Sequence[CaseFiles | Case], what: Scored) -> dict:
    """What the scores depend on, as plain values; where it runs and in how many processes is not part of it."""
    return {
        "smml": smml.__version__,
        **predictor.facts(),
        "subsets": [subset_name(subset) for subset in what.subsets],
        "one_empty": None if math.isnan(what.one_empty) else what.one_empty,
        "distances": what.distances,
        "branches": what.branches,
        "lesion_wise": what.lesion_wise,
        # The layout says what the values of a label mean.
        "cases": [[case.id, case.layout, _fingerprint(case)] for case in cases],
    }


def _fingerprint(case: CaseFiles | Case) -> str:
    """A digest that tells cases of one name apart."""
    if isinstance(case, CaseFiles):
        return files_digest(case.paths, whole=[case.label])
    sizes = [volume.nbytes for volume in case.volumes.values()]
    return hashlib.sha256(np.ascontiguousarray(case.label).tobytes() + str(sizes).encode()).hexdigest()[:12]


def protocol(
    cases: int, one_empty: float = math.nan, lesion_wise: str | None = None, decision: ExpectedDice | None = None
) -> str:
    """One sentence on how the scores are counted, to stand beside every table."""
    missing = "left out" if math.isnan(one_empty) else f"counted as {one_empty:g} mm"
    lesions = "" if lesion_wise is None else f"; lesion by lesion by the rules of {lesion_wise}"
    return (
        f"{cases} cases; Dice per case and region, then the mean over cases, then over subsets; both empty counts 1, a "
        f"false alarm 0; HD95 in mm, both empty 0, one empty {missing}; mean of both branches' probabilities; "
        f"{'' if decision is None else f'{decision}; '}no post-processing unless named{lesions}"
    )


def check_labelled(cases: Sequence[CaseFiles | Case], predictor: Predictor) -> None:
    """Make sure that cases have labels of the model's classes; raises InputError with the first that has not."""
    for case in cases:
        if case.label is None:
            raise InputError(f"case {case.id}: has no segmentation to compare with; evaluate on labelled cases")
        needed = case.scheme.learnt_classes
        if len(needed) != predictor.scheme.num_classes:
            raise InputError(
                f"case {case.id}: its data set {case.layout} has {len(needed)} classes ({', '.join(needed)}), the "
                f"model has {predictor.scheme.num_classes}; use a model trained on that data set"
            )


def _score_case(
    predictor: Predictor, item: CaseFiles | Case, what: Scored, observe: Observe | None
) -> Iterator[list[dict]]:
    """The rows of a case, from one after the other of the subsets of what it has."""
    case = item if isinstance(item, Case) else read_case(item)
    scheme, voxel, possible = case.scheme, float(np.prod(case.spacing)), set(subsets_of(case.modalities))
    truth = {region: scheme.region(case.label, region) for region in REGIONS}
    asked = [subset for subset in what.subsets if subset in possible]
    watched = observe is not None and what.branches
    for result in predictor.segment_all(predictor.encode(case), asked, branches=watched):
        if observe is not None:
            observe(case, result)
        student = result.student or result
        outputs = {"student": student.labels}
        if what.branches:
            assert student.branch_labels is not None  # a predictor always gives them
            outputs |= {f"branch {number}": labels for number, labels in enumerate(student.branch_labels, start=1)}
        if result.refined:
            outputs["refined"] = result.labels
        rows = []
        for output, labels in outputs.items():
            post = relabel_small_et(labels, voxel, et=scheme.regions["ET"][0])
            for region in REGIONS:
                found = scheme.region(labels, region)
                surface = SurfaceScores(math.nan, math.nan)
                if what.distances:
                    surface = surface_scores(found, truth[region], case.spacing, one_empty=what.one_empty)
                overlap = dice(found, truth[region])
                rows.append(
                    {
                        "case": case.id,
                        "subset": subset_name(result.subset),
                        "modalities": len(result.subset),
                        "output": output,
                        "region": region,
                        "dice": overlap,
                        "hd95": surface.hd95,
                        "nsd": surface.nsd,
                        "dice_post": overlap if post is labels else dice(scheme.region(post, region), truth[region]),
                        "truth_ml": float(truth[region].sum()) * voxel / 1000,
                        "predicted_ml": float(found.sum()) * voxel / 1000,
                    }
                )
                if what.lesion_wise is not None:
                    rows[-1] |= _lesion_row(found, truth[region], case.spacing, what.lesion_wise)
        yield rows


def _lesion_row(found: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float], rules: str) -> dict:
    scores = lesion_scores(found, truth, spacing, rules)
    numbers = (scores.rules, scores.lesions, scores.found, scores.false_alarms, scores.dice, scores.hd95, scores.nsd)
    return dict(zip(LESION_COLUMNS, numbers, strict=True))


def relabel_small_et(labels: np.ndarray, voxel_mm3: float, et: int) -> np.ndarray:
    """ET -> NCR where the whole predicted ET is smaller than 500 mm3; same shape and dtype as ``labels``."""
    small = 0 < int((labels == et).sum()) * voxel_mm3 < SMALL_ET_MM3
    return np.where(labels == et, np.uint8(1), labels) if small else labels
