"""Each rule of each year on lesions made by hand, and the codes of the challenges as witnesses (results/witness)."""

import json
import math
from pathlib import Path

import measure_witness
import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice

from smml.errors import InputError
from smml.evaluation import SurfaceScores, dice, hd95, lesion_scores, region_scores
from smml.evaluation.lesions import RULES
from smml.evaluation.metrics import surface_distances

WITNESS = Path(__file__).resolve().parents[2] / "results" / "witness"
MM = (1.0, 1.0, 1.0)
SHAPE = (24, 24, 24)


def cubes(*places: tuple[int, int, int, int]) -> np.ndarray:
    """A mask of cubes, each given by its first corner and its edge."""
    mask = np.zeros(SHAPE, bool)
    for x, y, z, edge in places:
        mask[x : x + edge, y : y + edge, z : z + edge] = True
    return mask


LARGE, OTHER = (2, 2, 2, 5), (15, 15, 15, 4)


def counts(scores) -> tuple[int, int, int, int]:
    return scores.lesions, scores.found, scores.missed, scores.false_alarms


@pytest.mark.parametrize("rules", RULES)
def test_of_two_lesions_one_is_missed(rules):
    scores = lesion_scores(cubes(LARGE), cubes(LARGE, OTHER), MM, rules)
    assert counts(scores) == (2, 1, 1, 0)
    means = (0.5, 374 / 2, 0.5) if rules == "2023" else (1, 0, 1)
    assert (scores.dice, scores.hd95, scores.nsd) == pytest.approx(means)
    assert scores.rules == rules


@pytest.mark.parametrize("rules", RULES)
def test_a_false_alarm(rules):
    scores = lesion_scores(cubes(LARGE, OTHER), cubes(LARGE), MM, rules)
    assert counts(scores) == (1, 1, 0, 1)
    means = (0.5, 374 / 2, 0.5) if rules == "2023" else (1, 0, 1)
    assert (scores.dice, scores.hd95, scores.nsd) == pytest.approx(means)


@pytest.mark.parametrize("rules", RULES)
def test_nothing_matches(rules):
    scores = lesion_scores(cubes(LARGE), cubes(OTHER), MM, rules)
    assert counts(scores) == (1, 0, 1, 1)
    assert (scores.dice, scores.hd95, scores.nsd) == (0, 374 if rules == "2023" else math.inf, 0)


@pytest.mark.parametrize("rules", RULES)
def test_both_empty(rules):
    scores = lesion_scores(cubes(), cubes(), MM, rules)
    assert counts(scores) == (0, 0, 0, 0)
    means = (1, 0, 1) if rules == "2023" else (math.nan,) * 3
    assert (scores.dice, scores.hd95, scores.nsd) == pytest.approx(means, nan_ok=True)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("missing", ["prediction", "truth"])
def test_one_empty(rules, missing):
    pair = (cubes(), cubes(LARGE, OTHER)) if missing == "prediction" else (cubes(LARGE, OTHER), cubes())
    scores = lesion_scores(*pair, MM, rules)
    assert counts(scores) == ((2, 0, 2, 0) if missing == "prediction" else (0, 0, 0, 2))
    assert (scores.dice, scores.hd95, scores.nsd) == (0, 374 if rules == "2023" else math.inf, 0)


def small(voxels: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[15:20, 15:20, 15:18].flat[:voxels] = True
    return mask


@pytest.mark.parametrize(("voxels", "lesions"), [(50, 1), (51, 2)])
def test_2023_leaves_out_true_lesions_of_50_mm3(voxels, lesions):
    """Whether they are found, so that what matches them is no false alarm, or missed."""
    truth = cubes(LARGE) | small(voxels)
    found, missed = (lesion_scores(prediction, truth, MM, "2023") for prediction in (truth, cubes(LARGE)))
    assert counts(found) == (lesions, lesions, 0, 0)
    assert counts(missed) == (lesions, 1, lesions - 1, 0)
    assert missed.dice == 1 / lesions
    assert lesion_scores(truth, truth, MM, "2026").lesions == 2


def test_the_limit_of_2023_is_a_volume_and_not_a_number_of_voxels():
    assert lesion_scores(small(50), small(50), (1.0, 1.0, 1.1), "2023").lesions == 1


def test_2023_counts_small_false_alarms():
    assert lesion_scores(cubes(LARGE) | small(1), cubes(LARGE), MM, "2023").false_alarms == 1


@pytest.mark.parametrize(("gap", "lesions"), [(7, 1), (8, 2)])
def test_2023_joins_true_lesions_that_touch_after_dilation_by_three(gap, lesions):
    """Each grows by 3 voxels, so those 6 apart are 26-neighbours; along an axis, a gap of 6 voxels is a step of 7."""
    truth = cubes((2, 8, 8, 4), (5 + gap, 8, 8, 4))
    scores = lesion_scores(cubes((2, 8, 8, 4)), truth, MM, "2023")
    assert counts(scores) == (lesions, 1, lesions - 1, 0)
    assert scores.dice == pytest.approx(2 / 3 if lesions == 1 else 1 / 2)
    assert lesion_scores(truth, truth, MM, "2026").lesions == 2


def test_2023_dilates_across_edges_and_not_across_corners():
    """Three steps lead 3 voxels along two axes, but only 2 along all three. The corners are 6 apart along each axis."""
    apart = cubes((2, 2, 2, 4), (11, 11, 11, 4))
    assert lesion_scores(apart, apart, MM, "2023").lesions == 2
    beside = cubes((2, 2, 2, 4), (11, 11, 5, 4))
    assert lesion_scores(beside, beside, MM, "2023").lesions == 1


def test_2023_scores_all_predicted_lesions_that_meet_the_dilated_one_together():
    """Two pieces beside the lesion, one of which only its dilation meets."""
    lesion, far = cubes((8, 8, 8, 4)), cubes((8, 8, 14, 2))
    prediction = cubes((8, 8, 7, 2)) | far  # the gap from lesion to the far piece is two voxels
    scores = lesion_scores(prediction, lesion, MM, "2023")
    assert counts(scores) == (1, 1, 0, 0)
    assert scores.dice == pytest.approx(dice(prediction, lesion))
    assert lesion_scores(far, lesion, MM, "2023").found == 1
    assert lesion_scores(far, lesion, MM, "2023").dice == 0
    assert counts(lesion_scores(cubes((8, 8, 15, 2)), lesion, MM, "2023")) == (1, 0, 1, 1)


def test_one_prediction_over_two_true_lesions():
    """It matches both in 2023 and is compared whole with each; in 2026 only the one that it overlaps more."""
    truth = cubes((2, 8, 8, 6), (17, 8, 8, 4))
    bridge = truth.copy()
    bridge[2:21, 9, 9] = True
    whole, parts = int(bridge.sum()), (216, 64)
    scores = lesion_scores(bridge, truth, MM, "2023")
    assert counts(scores) == (2, 2, 0, 0)
    assert scores.dice == pytest.approx(np.mean([2 * part / (whole + part) for part in parts]))
    scores = lesion_scores(bridge, truth, MM, "2026")
    assert counts(scores) == (2, 1, 1, 0)
    assert scores.dice == pytest.approx(2 * 216 / (whole + 216))


def test_2026_matches_for_the_highest_sum_and_not_each_lesion_by_itself():
    """The first predicted lesion fits the first true one best, but only it overlaps the second one."""
    truth, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    truth[0:6, 5, 5] = truth[7:12, 5, 5] = True
    prediction[2:11, 5, 5] = True  # 4 of 6, and 4 of 5
    prediction[0, 5, 5] = True  # 1 of 6
    scores = lesion_scores(prediction, truth, MM, "2026")
    assert counts(scores) == (2, 2, 0, 0)
    assert scores.dice == pytest.approx(np.mean([2 / 7, 8 / 14]))


def test_2026_matches_by_dice_and_not_by_the_voxels_in_common():
    truth, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    truth[0:10, 5, 5] = True
    prediction[0:5, 2:6, 5] = True  # 5 in common, of 10 and 20
    prediction[6:10, 5, 5] = True  # 4 in common, of 10 and 4
    assert lesion_scores(prediction, truth, MM, "2026").dice == pytest.approx(8 / 14)


@pytest.mark.parametrize("rules", RULES)
def test_voxels_that_share_a_corner_are_one_lesion(rules):
    chain = cubes((2, 2, 2, 4), (6, 6, 6, 4))
    assert counts(lesion_scores(chain, chain, MM, rules)) == (1, 1, 0, 0)
    assert lesion_scores(chain, cubes(), MM, rules).false_alarms == 1


def bars() -> tuple[np.ndarray, np.ndarray]:
    """A bar moved by 2 voxels and with a long thin end, which is 9 % of its surface and 5 % of both; and the bar."""
    prediction, truth = np.zeros((2, *SHAPE), bool)
    truth[2:12, 5:8, 5:8] = True
    prediction[4:14, 5:8, 5:8] = True
    prediction[14:22, 6, 6] = True
    return prediction, truth


def test_distances_of_2026_are_pooled_and_shares_averaged():
    edges = (2.0, 1.25, 1.5)
    distances = [d.double().numpy() for d in surface_distances(*bars(), edges)[0]]
    scores = lesion_scores(*bars(), edges, "2026")
    assert scores.hd95 == pytest.approx(np.percentile(np.concatenate(distances), 95))
    assert scores.nsd == pytest.approx(np.mean([(d <= 1.25).mean() for d in distances]))  # the smallest edge
    assert scores.hd95 < hd95(*bars(), edges)
    whole = region_scores(*bars(), edges, "2026")
    assert whole.hd95 == scores.hd95
    assert whole.nsd == pytest.approx(np.mean([(d == 0).mean() for d in distances]))  # within 0.5 mm


def test_a_distance_of_one_voxel_edge_is_near_in_2026_in_spite_of_rounding():
    prediction, truth = cubes(LARGE), cubes(LARGE)
    prediction[7, 2:7, 2:7] = True
    assert lesion_scores(prediction, truth, (0.7, 0.7, 0.7), "2026").nsd == 1


def test_distances_of_2023_are_weighted_by_area():
    scores = lesion_scores(*bars(), MM, "2023")
    distances, areas = surface_distances(*bars(), MM, areas=True)
    ways = []
    for one_way, area in zip(distances, areas, strict=True):
        # Repeated by its area, in units that all areas are nearly multiples of.
        repeated = np.repeat(one_way.numpy(), np.rint(area.double().numpy() * 1000).astype(int))
        ways.append(np.percentile(repeated, 95, method="inverted_cdf"))
    assert scores.hd95 == pytest.approx(max(ways))
    both = torch.from_numpy(np.stack(bars()))[:, None, None].float()
    share = compute_surface_dice(both[0], both[1], [1.0], include_background=True, spacing=list(MM), use_subvoxels=True)
    assert scores.nsd == pytest.approx(float(share))


def test_the_whole_region_of_2026_without_a_common_voxel_has_the_penalty():
    assert region_scores(cubes(LARGE), cubes(OTHER), MM, "2026") == SurfaceScores(373, 0)
    assert region_scores(cubes(LARGE), cubes(), MM, "2026") == SurfaceScores(373, 0)
    empty = region_scores(cubes(), cubes(), MM, "2026")
    assert math.isnan(empty.hd95)
    assert math.isnan(empty.nsd)


def test_the_whole_region_of_2023_has_the_penalty_only_if_one_is_empty():
    assert region_scores(cubes(), cubes(LARGE), MM, "2023") == SurfaceScores(374, 0)
    assert region_scores(cubes(), cubes(), MM, "2023") == SurfaceScores(0, 1)
    assert region_scores(cubes(LARGE), cubes(OTHER), MM, "2023").hd95 < 30


def test_a_dilation_that_the_border_cuts_changes_nothing():
    """Lesions far from all borders and the same in a tight array, whose border cuts their dilation."""
    prediction, truth = cubes((6, 6, 6, 4), (15, 7, 6, 3)), cubes((7, 6, 6, 4), (15, 6, 6, 4))
    tight = (slice(6, 19), slice(6, 10), slice(6, 10))
    for rules in RULES:
        assert lesion_scores(prediction[tight], truth[tight], MM, rules) == lesion_scores(prediction, truth, MM, rules)


@pytest.mark.parametrize("score", [lesion_scores, region_scores])
def test_rules_of_another_year_are_refused(score):
    with pytest.raises(InputError, match="rules: expected 2023 or 2026, found '2024'"):
        score(cubes(LARGE), cubes(LARGE), MM, "2024")


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads((WITNESS / "brats-evaluation.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("rules", RULES)
def test_the_codes_of_the_challenges_find_the_same(report, rules):
    """Distances are float32 in ours and float64 in theirs. In one cell a surface's area up to one of two neighbouring
    distances is exactly 95 % of it, so that the last bit of a sum decides between them.
    """
    mine = measure_witness.ours(measure_witness.read_pairs(WITNESS / "pairs.npz"), rules)
    apart = measure_witness.differences(mine, measure_witness.numbers(report, rules))
    if rules == "2023":
        assert apart.at["8 WT", "lesion hd95"] < 1
        apart.at["8 WT", "lesion hd95"] = 0
    assert apart.max().max() < 1e-5
    assert len(apart) == 60


def test_the_page_of_the_witness_is_made_again_to_the_byte(report):
    assert measure_witness.as_markdown(report) == (WITNESS / "brats-evaluation.md").read_text(encoding="utf-8")
    assert (WITNESS / "brats-evaluation.json").stat().st_size < 100_000
