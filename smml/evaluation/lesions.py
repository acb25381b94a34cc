"""Lesion-wise scores of one region of one case, by the rules of the challenge of a named year.

A region is a mask; its lesions are what hangs together in it. Scores of a whole region hardly notice that a small lesion
was missed beside a large one; these do.

| | "2023" | "2026" |
|---|---|---|
| source | the challenge's code, github.com/rachitsaluja/BraTS-2023-Metrics, settings of BraTS-GLI | the challenge's package, brats-evaluation 0.0.10 on PyPI, its ``config_gli.yaml``, which runs panoptica 2.1 |
| a lesion | voxels that touch (26 neighbours); in the truth those too that touch after dilation by 3 voxels (of 18 neighbours each) | voxels that touch (26 neighbours) |
| a match | every predicted lesion that meets the dilated true one; they are scored together, and one may match several | one to one, by the highest sum of Dice; a pair needs a Dice of 1e-6 |
| left out | true lesions of 50 mm³ or less, with what they match | nothing |
| mean over | true lesions and false alarms | matched pairs |
| a missed lesion | Dice 0, HD95 374 mm | only counted |
| a false alarm | Dice 0, HD95 374 mm | only counted |
| nothing matched | as above | Dice 0, HD95 infinite, NSD 0 |
| no lesion in either | Dice 1, HD95 0 | NaN |
| HD95 | percentile weighted by area, the larger of both directions | percentile of both directions' distances together |
| NSD | no rule: weighted by area, 1 mm, and the mean taken as that of Dice | mean of both directions' shares; tolerance the smallest voxel edge |
| the whole region (:func:`region_scores`) | HD95 374 mm if one is empty, 0 if both are | HD95 373 mm and NSD 0 without a common voxel, NaN if both are empty; tolerance 0.5 mm |

Both codes assume the challenge's grid of 1 mm; where a rule counts voxels, voxels are counted here too. On another grid
the package of 2026 measures distances between whole regions in voxels; here they are in mm.
"""  # noqa: E501 (a table)

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from smml.errors import InputError
from smml.evaluation.metrics import NSD_TOLERANCE, SurfaceScores, bounding_box, surface_distances

Spacing = tuple[float, float, float]

# Voxels that share a face, an edge or a corner touch.
_TOUCHING = np.ones((3, 3, 3), bool)
# 2023: true lesions that touch after so many dilations, each to the neighbours by face and edge, are one.
_DILATIONS = 3
_DILATION = ndimage.generate_binary_structure(3, 2)
# 2023: true lesions up to this volume are not scored.
_SMALLEST_MM3 = 50.0
_PENALTY_2023 = 374.0
_PENALTY_2026 = 373.0
# 2026: the Dice from which a pair may match, and what a pair costs that may not.
_LEAST_DICE = 1e-6
_NO_MATCH = 1 + 1e-6
_WHOLE_TOLERANCE_2026 = 0.5


@dataclass(frozen=True)
class LesionScores:
    """Lesion-wise scores of one region of one case.

    Attributes:
        rules: the year whose rules were followed.
        lesions: true lesions that count.
        found: of these, how many a predicted lesion matches.
        missed: the others.
        false_alarms: predicted lesions that match no true one.
        dice: mean Dice.
        hd95: mean HD95 in mm; infinite under the rules of 2026 if nothing matched.
        nsd: mean NSD.

        What the means are taken over, and their values without a lesion, are rules of the year.
    """

    rules: str
    lesions: int
    found: int
    missed: int
    false_alarms: int
    dice: float
    hd95: float
    nsd: float


def lesion_scores(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing, rules: str) -> LesionScores:
    """Compare the lesions of a predicted region with those of the true one.

    Args:
        prediction: boolean [X, Y, Z].
        truth: boolean [X, Y, Z].
        spacing: voxel edges in mm.
        rules: the year whose rules count, "2023" or "2026" (see the module's table).

    Raises:
        InputError: rules of another year.
    """
    score, _ = RULES[check_rules(rules)]
    both = prediction | truth
    if both.any():
        # Room for the dilation, so that nothing changes by the cut.
        box = bounding_box(both, margin=_DILATIONS)
        prediction, truth = prediction[box], truth[box]
    return score(prediction, truth, spacing)


def region_scores(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing, rules: str) -> SurfaceScores:
    """HD95 and NSD of a whole region as the code of a year counts them, to stand beside its lesion-wise scores.

    They are not those of :func:`smml.evaluation.hd95` and :func:`smml.evaluation.nsd`: the codes of both years take
    percentiles and shares in other ways (see the module's table).

    Args:
        prediction: boolean [X, Y, Z].
        truth: boolean [X, Y, Z].
        spacing: voxel edges in mm.
        rules: the year, "2023" or "2026".

    Raises:
        InputError: rules of another year.
    """
    _, score = RULES[check_rules(rules)]
    return score(prediction, truth, spacing)


def _lesions_2023(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> LesionScores:
    # A zone is a dilated lesion, and what is true in it one lesion.
    zones, count = ndimage.label(ndimage.binary_dilation(truth, _DILATION, iterations=_DILATIONS), _TOUCHING)
    predicted, candidates = ndimage.label(prediction, _TOUCHING)
    meets = np.zeros((count + 1, candidates + 1), bool)
    meets[zones[prediction], predicted[prediction]] = True
    false_alarms = candidates - int(meets[1:].any(axis=0).sum())
    volumes = np.bincount(zones[truth], minlength=count + 1) * math.prod(spacing)
    counted = [zone for zone in range(1, count + 1) if volumes[zone] > _SMALLEST_MM3]
    dice, hd95, nsd = [], [], []
    for zone in counted:
        lesion, match = truth & (zones == zone), prediction & meets[zone][predicted]
        surface = _region_2023(match, lesion, spacing)
        dice.append(2 * int((match & lesion).sum()) / (int(match.sum()) + int(lesion.sum())))
        hd95.append(surface.hd95)
        nsd.append(surface.nsd)
    found = sum(bool(meets[zone].any()) for zone in counted)
    over = len(counted) + false_alarms
    return LesionScores(
        rules="2023",
        lesions=len(counted),
        found=found,
        missed=len(counted) - found,
        false_alarms=false_alarms,
        dice=sum(dice) / over if over else 1.0,
        hd95=(sum(hd95) + false_alarms * _PENALTY_2023) / over if over else 0.0,
        nsd=sum(nsd) / over if over else 1.0,
    )


def _region_2023(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> SurfaceScores:
    empty = (not prediction.any(), not truth.any())
    if any(empty):
        return SurfaceScores(0.0, 1.0) if all(empty) else SurfaceScores(_PENALTY_2023, 0.0)
    distances, areas = surface_distances(prediction, truth, spacing, areas=True)
    assert areas is not None  # they were asked for
    percentiles, near, whole = [], 0.0, 0.0
    for one_way, area in zip((d.numpy() for d in distances), (a.double().numpy() for a in areas), strict=True):
        order = one_way.argsort()
        share = area[order].cumsum() / area.sum()
        percentiles.append(float(one_way[order][min(int(share.searchsorted(0.95)), len(order) - 1)]))
        near += float(area[one_way <= NSD_TOLERANCE].sum())
        whole += float(area.sum())
    return SurfaceScores(max(percentiles), near / whole)


def _lesions_2026(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> LesionScores:
    lesions, count = ndimage.label(truth, _TOUCHING)
    predicted, candidates = ndimage.label(prediction, _TOUCHING)
    common = prediction & truth
    shared = np.zeros((count, candidates))
    np.add.at(shared, (lesions[common] - 1, predicted[common] - 1), 1)
    sizes = np.bincount(lesions[truth] - 1, minlength=count)[:, None] + np.bincount(predicted[prediction] - 1)
    dice = 2 * shared / sizes
    may_match = dice >= _LEAST_DICE
    chosen = zip(*linear_sum_assignment(np.where(may_match, 1 - dice, _NO_MATCH)), strict=True)
    pairs = [(i, j) for i, j in chosen if may_match[i, j]]
    surfaces = [_pair_2026(predicted == j + 1, lesions == i + 1, spacing, min(spacing)) for i, j in pairs]
    without = (math.nan, math.nan, math.nan) if not (count or candidates) else (0.0, math.inf, 0.0)
    means = (
        float(np.mean([dice[pair] for pair in pairs])),
        float(np.mean([surface.hd95 for surface in surfaces])),
        float(np.mean([surface.nsd for surface in surfaces])),
    ) if pairs else without  # fmt: skip
    return LesionScores("2026", count, len(pairs), count - len(pairs), candidates - len(pairs), *means)


def _region_2026(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> SurfaceScores:
    if not (prediction | truth).any():
        return SurfaceScores(math.nan, math.nan)
    if not (prediction & truth).any():
        return SurfaceScores(_PENALTY_2026, 0.0)
    return _pair_2026(prediction, truth, spacing, _WHOLE_TOLERANCE_2026)


def _pair_2026(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing, tolerance: float) -> SurfaceScores:
    distances = [one_way.double().numpy() for one_way in surface_distances(prediction, truth, spacing)[0]]
    # Rounding to float32 must not put a distance of exactly one voxel edge beyond it.
    shares = [float((one_way <= tolerance * (1 + 1e-6)).mean()) for one_way in distances]
    return SurfaceScores(float(np.percentile(np.concatenate(distances), 95)), sum(shares) / 2)


_Scores = tuple[
    Callable[[np.ndarray, np.ndarray, Spacing], LesionScores],
    Callable[[np.ndarray, np.ndarray, Spacing], SurfaceScores],
]
# What readers of a mean must know of it.
RULE_WORDS = {
    "2023": "a missed lesion and a false one count Dice 0 and 374 mm, and true ones up to 50 mm³ are left out",
    "2026": "a case's means are over matched pairs alone; where nothing matches Dice is 0 and HD95 left out",
}
RULES: dict[str, _Scores] = {"2023": (_lesions_2023, _region_2023), "2026": (_lesions_2026, _region_2026)}


def check_rules(year: str) -> str:
    """The year itself, if it is one whose rules are known; InputError otherwise."""
    if year not in RULES:
        raise InputError(
            f"lesion-wise rules: expected {' or '.join(RULES)}, found {year!r}; name the year whose rules are to count"
        )
    return year
