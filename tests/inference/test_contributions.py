"""Contributions: Shapley values equal to their definition over all orders, which add up, and 0 for what is ignored."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from smml.data import Case
from smml.data.labels import BRATS_2023, REGIONS
from smml.data.prevalence import PREVALENCE, check_prevalence, measure_prevalence
from smml.errors import InputError
from smml.inference import ContributionSums, Predictor, contributions
from smml.modalities import MODALITIES, subsets_of
from smml.models import SMML

SHAPE = (6, 5, 4)
BASE = {"WT": 0.2, "TC": 0.1, "ET": 0.05}


def made_case(modalities=MODALITIES) -> Case:
    """A brain of 4 x 3 x 2 voxels of 2 x 2 x 2.5 mm, which is 0.01 ml each."""
    volume = np.zeros(SHAPE, np.float32)
    volume[1:-1, 1:-1, 1:-1] = np.arange(24).reshape(4, 3, 2) + 5
    return Case("made", dict.fromkeys(modalities, volume), None, np.diag([2.0, 2.0, 2.5, 1.0]), "brats2023")


def made_answers(modalities, seed=0) -> dict[tuple[str, ...], np.ndarray]:
    """Probabilities float32 [4, X, Y, Z] for each subset, of which no two are alike."""
    random = np.random.default_rng(seed)
    answers = {subset: random.dirichlet(np.ones(4), SHAPE) for subset in subsets_of(modalities)}
    return {subset: np.moveaxis(said, -1, 0).astype(np.float32) for subset, said in answers.items()}


def of(case, answers, base=BASE):
    sums = ContributionSums(case, base)
    for subset, said in answers.items():
        sums.add(subset, said, BRATS_2023)
    return sums.result()


def value(answers, joined, region):
    """What is said of a region, float64, once these sequences have joined in whatever order."""
    if not joined:
        return np.full(SHAPE, BASE[region])
    said = answers[tuple(name for name in MODALITIES if name in joined)].astype(np.float64)
    return sum(said[k] for k in BRATS_2023.regions[region])


@pytest.mark.parametrize("modalities", [MODALITIES[:n] for n in (1, 2, 3, 4)] + [("t1ce", "t2")], ids="+".join)
def test_the_values_are_the_means_over_all_orders_of_joining_and_add_up(modalities):
    case, answers = made_case(modalities), made_answers(modalities)
    found = of(case, answers)
    brain = case.volumes[modalities[0]] != 0
    orders = list(itertools.permutations(modalities))
    for region in REGIONS:
        for name in modalities:
            joined = [order[: order.index(name)] for order in orders]
            steps = [value(answers, (*some, name), region) - value(answers, some, region) for some in joined]
            by_hand = np.mean(steps, axis=0) * brain
            np.testing.assert_allclose(found.map(name, region), by_hand, atol=1e-6)
            assert found.ml[name][region] == pytest.approx(0.01 * by_hand.sum(), abs=1e-6)
        total = sum(found.map(name, region) for name in modalities)
        everything = value(answers, modalities, region)
        np.testing.assert_allclose(total[brain], everything[brain] - BASE[region], atol=1e-5)
        assert not total[~brain].any()
        assert found.expected_ml[region] == pytest.approx(0.01 * everything[brain].sum(), rel=1e-5)
        in_ml = sum(found.ml[name][region] for name in modalities)
        assert in_ml == pytest.approx(found.expected_ml[region] - BASE[region] * found.brain_ml, abs=1e-5)
    assert found.brain_ml == pytest.approx(0.24)


def test_a_sequence_that_changes_nothing_contributes_nothing():
    answers = made_answers(MODALITIES)
    nothing = np.zeros((4, *SHAPE), np.float32)
    for region, k in (("ET", 3), ("TC", 1), ("WT", 2)):  # what T1 says alone is what nobody says
        nothing[k] = BASE[region] - nothing[1:].sum(0)
    nothing[0] = 1 - nothing[1:].sum(0)
    for subset in answers:
        rest = tuple(name for name in subset if name != "t1")
        answers[subset] = answers[rest] if rest else nothing
    found = of(made_case(), answers)
    for region in REGIONS:
        assert np.abs(found.map("t1", region)).max() < 1e-6
        assert abs(found.ml["t1"][region]) < 1e-6
        assert np.abs(found.map("t2", region)).max() > 0.1


def test_subsets_come_in_any_order_once_each_and_none_is_missing():
    case, answers = made_case(("flair", "t2")), made_answers(("flair", "t2"))
    forward, backward = of(case, answers), of(case, dict(reversed(answers.items())))
    np.testing.assert_allclose(forward.map("t2", "WT"), backward.map("t2", "WT"), atol=1e-6)
    sums = ContributionSums(case, BASE)
    with pytest.raises(InputError, match="3 subsets are missing"):
        sums.result()
    sums.add("t2", answers[("t2",)], BRATS_2023)
    for subset in ("t2", "t1+t2"):
        with pytest.raises(InputError, match="was added before, or is none of FLAIR, T2"):
            sums.add(subset, answers[("t2",)], BRATS_2023)
    for wrong in (("t1", "WT"), ("t2", "ED")):
        with pytest.raises(InputError, match="choose"):
            forward.map(*wrong)


@pytest.fixture(scope="module")
def predictor():
    return Predictor(SMML("tiny"), None, window=32, temperatures=(2.0, 1.5, 1.0, 0.5), prevalence=BASE)


@pytest.fixture(scope="module")
def encoding(predictor):
    volume = np.zeros((32, 32, 32), np.float32)
    volume[3:-3, 3:-3, 3:-3] = np.random.default_rng(0).integers(50, 500, (26, 26, 26))
    return predictor.encode(replace(made_case(), volumes={"t1": volume, "t2": volume[::-1].copy()}))


def test_they_are_of_the_networks_own_probabilities_whatever_the_temperatures(predictor, encoding):
    calls = []
    found = contributions(predictor, encoding, progress=lambda done, of: calls.append(done))
    assert calls
    plain = Predictor(predictor.model, None, window=32)
    said = plain.segment(encoding).probabilities[3]
    total = sum(found.map(name, "ET") for name in ("t1", "t2"))
    brain = encoding.case.volumes["t1"] != 0
    np.testing.assert_allclose(total[brain], said[brain] - BASE["ET"], atol=1e-5)
    assert predictor.temperatures == (2.0, 1.5, 1.0, 0.5)


def test_a_network_that_ignores_a_sequence_beside_another_gives_it_half_of_what_it_says_alone(
    predictor, encoding, monkeypatch
):
    """Of two sequences each joins first in one order and second in the other, where this one changes nothing."""
    blend = Predictor.blend

    def deaf(self, encoding, masks, *others):
        masks = masks.clone()
        masks[masks.any(1), MODALITIES.index("t2")] &= ~masks[:, : MODALITIES.index("t2")].any(1)
        return blend(self, encoding, masks, *others)

    monkeypatch.setattr(Predictor, "blend", deaf)
    alone = Predictor(predictor.model, None, window=32).segment(encoding, "t2").probabilities[3]
    found = contributions(predictor, encoding).map("t2", "ET")
    brain = encoding.case.volumes["t2"] != 0
    np.testing.assert_allclose(found[brain], (alone[brain] - BASE["ET"]) / 2, atol=1e-6)


def test_the_prevalence_is_the_share_of_the_brains_voxels_by_volume():
    case = made_case(("flair",))
    label = np.zeros(SHAPE, np.uint8)
    label[1, 1, 1], label[2, 1, 1], label[0, 0, 0] = 2, 3, 3  # the last lies outside the brain
    small = replace(case, label=label)
    big = replace(case, label=np.zeros_like(label), affine=np.diag([4.0, 2.0, 2.5, 1.0]))
    found = measure_prevalence([small, big], progress=False)
    assert found == pytest.approx({"WT": 2 / 72, "TC": 1 / 72, "ET": 1 / 72})
    with pytest.raises(InputError, match="has no segmentation"):
        measure_prevalence([case], progress=False)
    with pytest.raises(InputError, match="no cases"):
        measure_prevalence([], progress=False)


def test_a_prevalence_that_is_none_is_refused_and_the_known_one_is_nested():
    assert check_prevalence(None) is None
    assert PREVALENCE["WT"] > PREVALENCE["TC"] > PREVALENCE["ET"] > 0
    for wrong in (0.1, {"WT": 0.1}, dict.fromkeys(REGIONS, math.nan), dict.fromkeys(REGIONS, True)):
        with pytest.raises(InputError, match="prevalence must be a share"):
            check_prevalence(wrong)
