"""From probabilities to labels: the rule of the greatest expected Dice, and what a checkpoint says of it."""

import itertools
import json

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smml.data.labels import REGIONS, scheme_for_classes
from smml.errors import InputError
from smml.models.decision import (
    SURELY_BACKGROUND,
    ExpectedDice,
    best_threshold,
    check_decision,
    labelling,
    rather_nothing,
)

KEEP_ALL = ExpectedDice(dict.fromkeys(REGIONS, 0.0))


def labels_of(probabilities, rule, voxel_ml=0.001):
    """Labels of [K, X, Y, Z], shown class by class from a tensor that is used again, as the predictor does."""
    making = labelling(rule, scheme_for_classes(len(probabilities)), probabilities.shape[1:], voxel_ml)
    shown = torch.empty(probabilities.shape[1:])
    for k, probability in enumerate(probabilities):
        shown.copy_(torch.as_tensor(probability))
        making.see(k, shown)
    return making.labels()


def drawn(seed, classes=4, shape=(7, 6, 5), sharpness=2.0):
    """Probabilities of a model that is now sure and now not."""
    logits = sharpness * np.random.default_rng(seed).normal(size=(classes, *shape))
    shares = np.exp(logits)
    return (shares / shares.sum(axis=0)).astype(np.float32)


@given(st.lists(st.floats(2**-7, 1, width=32), min_size=1, max_size=9))
def test_no_other_set_of_voxels_has_a_greater_expected_dice(probability):
    values = np.array(probability, np.float32)
    called = values >= best_threshold(values)

    def expected(chosen):
        return 2 * values[chosen].astype(np.float64).sum() / (len(chosen) + values.astype(np.float64).sum())

    others = (
        list(chosen)
        for count in range(1, len(values) + 1)
        for chosen in itertools.combinations(range(len(values)), count)
    )
    assert expected(np.flatnonzero(called)) >= max(map(expected, others)) - 1e-9


@given(st.lists(st.floats(2**-7, 1, width=32), min_size=1, max_size=40))
def test_the_threshold_is_half_of_the_greatest_expected_dice(probability):
    values = np.array(probability, np.float64)
    called = values >= best_threshold(values)
    half = values[called].sum() / (called.sum() + values.sum())
    # Equal ones are called together, so the threshold lies between the last that is called and the first that is not.
    assert values[called].min() >= half - 1e-9
    assert values[~called].max(initial=0) <= half + 1e-9


@pytest.mark.parametrize("voxels", [0, 3])
def test_where_there_is_no_probability_at_all_no_voxel_is_called(voxels):
    assert best_threshold(np.zeros(voxels, np.float32)) > 1


@pytest.mark.parametrize("classes", [4, 5])
def test_of_a_sure_model_both_rules_make_the_same_labels(classes):
    truth = np.random.default_rng(3).integers(0, classes, (6, 5, 4))
    sure = np.where(np.arange(classes)[:, None, None, None] == truth, 1.0, 0.0).astype(np.float32)
    for rule in (None, KEEP_ALL, ExpectedDice(dict.fromkeys(REGIONS, 0.001))):
        assert np.array_equal(labels_of(sure, rule), truth)


@pytest.mark.parametrize("classes", [4, 5])
def test_the_argmax_is_the_argmax_and_the_first_of_equals_wins(classes):
    probabilities = drawn(1, classes)
    probabilities[:, 0] = 1 / classes
    assert np.array_equal(labels_of(probabilities, None), probabilities.argmax(axis=0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [4, 5])
def test_each_region_is_called_within_the_one_around_it_for_the_greatest_expected_dice(seed, classes):
    probabilities, scheme = drawn(seed, classes), scheme_for_classes(classes)
    labels = labels_of(probabilities, KEEP_ALL)
    around = probabilities[0] <= SURELY_BACKGROUND
    for region in REGIONS:
        probability = probabilities[list(scheme.regions[region])].sum(axis=0)
        wanted = around & (probability >= best_threshold(probability[around]))
        assert wanted.any()
        assert np.array_equal(scheme.region(labels, region), wanted)
        around = wanted


@pytest.mark.parametrize("classes", [4, 5])
def test_within_a_region_a_voxel_has_the_likeliest_class_that_the_next_region_leaves(classes):
    probabilities, scheme = drawn(7, classes), scheme_for_classes(classes)
    labels = labels_of(probabilities, KEEP_ALL)
    for region, inner in (("WT", "TC"), ("TC", "ET")):
        left = [k for k in scheme.regions[region] if k not in scheme.regions[inner]]
        shell = scheme.region(labels, region) & ~scheme.region(labels, inner)
        assert shell.any()
        assert np.array_equal(labels[shell], np.array(left)[probabilities[left][:, shell].argmax(axis=0)])


def test_where_the_model_hesitates_a_tumour_is_called_that_the_argmax_leaves_out():
    probabilities = np.zeros((4, 9, 9, 9), np.float32)
    probabilities[2, 2:6, 2:6, 2:6] = 0.4
    probabilities[0] = 1 - probabilities.sum(axis=0)
    assert not labels_of(probabilities, None).any()
    assert np.array_equal(labels_of(probabilities, KEEP_ALL) == 2, probabilities[2] > 0)


def two_parts(region_class=2, touching=False):
    """A faint part of 64 voxels, of which 32 are expected, and a sure one of 8, of which 7.2 are."""
    probabilities = np.zeros((4, 14, 10, 10), np.float32)
    probabilities[region_class, 1:5, 1:5, 1:5] = 0.5
    start = 5 if touching else 8
    probabilities[region_class, start : start + 2, 5:7, 5:7] = 0.9
    probabilities[0] = 1 - probabilities.sum(axis=0)
    return probabilities


def least(whole=0.0, core=0.0, enhancing=0.0):
    return ExpectedDice({"WT": whole, "TC": core, "ET": enhancing})


FAINT, SURE = (slice(1, 5),) * 3, (slice(8, 10), slice(5, 7), slice(5, 7))


@pytest.mark.parametrize("voxel_ml", [0.001, 0.027])
def test_a_part_of_which_too_little_is_expected_is_left_out_and_the_other_stays(voxel_ml):
    labels = labels_of(two_parts(), least(whole=7.3 * voxel_ml), voxel_ml)
    assert (labels[FAINT] == 2).all()
    assert not labels[SURE].any()
    assert (labels_of(two_parts(), least(whole=7.1 * voxel_ml), voxel_ml)[SURE] == 2).all()
    assert not labels_of(two_parts(), least(whole=32.1 * voxel_ml), voxel_ml).any()


def test_parts_that_share_a_corner_are_one():
    labels = labels_of(two_parts(touching=True), least(whole=0.035))
    assert (labels[FAINT] == 2).all(), "39.2 voxels are expected of both together"


def test_each_region_has_a_least_volume_of_its_own():
    # All of it is ET: a part may be large enough for the whole tumour and not for what enhances.
    labels = labels_of(two_parts(region_class=3), least(enhancing=0.008))
    assert (labels[FAINT] == 3).all()
    assert (labels[SURE] == 1).all()
    labels = labels_of(two_parts(region_class=3), least(core=0.008))
    assert (labels[SURE] == 2).all()


def absent(*regions, shown_on=()):
    return ExpectedDice(KEEP_ALL.least_ml, regions, shown_on)


@given(st.floats(0.01, 1), st.integers(1, 50))
def test_where_all_or_nothing_is_there_it_is_called_if_that_is_likelier(chance, voxels):
    """Every voxel has the same probability, and no other has any: calling all scores ``chance``, nothing 1 - chance."""
    hypothesis.assume(abs(chance - 0.5) > 1e-6)
    called = np.full(voxels, chance)
    assert rather_nothing(called, called.sum()) == (chance < 0.5)


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=20), st.floats(0, 10), st.floats(0, 10))
def test_the_more_is_expected_elsewhere_the_rather_nothing_is_called(probability, elsewhere, more):
    called = np.array(probability)
    some, much = (rather_nothing(called, called.sum() + rest) for rest in (elsewhere, elsewhere + more))
    assert much or not some


def test_nothing_at_all_is_called_where_there_is_no_voxel_to_call():
    assert rather_nothing(np.zeros(0), 0.0)


def test_a_region_that_may_be_absent_is_left_out_where_it_is_faint_and_the_one_around_it_stays():
    probabilities = np.zeros((4, 9, 9, 9), np.float32)
    probabilities[1, 2:6, 2:6, 2:6] = 0.55
    probabilities[3, 2:6, 2:6, 2:6] = 0.4
    probabilities[0] = 1 - probabilities.sum(axis=0)
    inside = probabilities[3] > 0
    assert (labels_of(probabilities, KEEP_ALL)[inside] == 3).all()
    assert (labels_of(probabilities, absent("WT", "TC"))[inside] == 3).all(), "of ET it was not said"
    assert (labels_of(probabilities, absent("TC", "ET"))[inside] == 1).all()
    probabilities[[1, 3]] = probabilities[[3, 1]]
    assert (labels_of(probabilities, absent("ET"))[inside] == 3).all(), "it is sure enough"


def test_nothing_is_called_within_a_region_that_is_left_out():
    probabilities = np.zeros((4, 9, 9, 9), np.float32)
    probabilities[3, 2:6, 2:6, 2:6] = 0.4
    probabilities[0] = 1 - probabilities.sum(axis=0)
    assert (labels_of(probabilities, KEEP_ALL) == 3).any()
    assert not labels_of(probabilities, absent("WT")).any()


def test_absence_is_weighed_only_if_the_sequences_that_show_a_region_are_given():
    rule = absent("ET", shown_on=("flair", "t1ce"))
    assert rule.from_subset(("flair", "t1ce", "t2")) == rule
    assert rule.from_subset(("flair", "t2")) == KEEP_ALL
    assert absent("ET").from_subset(("t2",)) == absent("ET"), "it was not said where"


def test_where_nothing_is_expected_nothing_is_called():
    assert not labels_of(drawn(2), least(whole=1.0)).any(), "a head of 0.2 ml"
    sure = np.zeros((4, 5, 5, 5), np.float32)
    sure[0] = 1
    assert not labels_of(sure, KEEP_ALL).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_head_has_mirrored_labels(axis):
    rule = least(whole=0.01, core=0.004, enhancing=0.002)
    probabilities = drawn(5)
    mirrored = labels_of(np.flip(probabilities, axis + 1).copy(), rule)
    assert np.array_equal(mirrored, np.flip(labels_of(probabilities, rule), axis))


def test_a_rule_comes_back_as_it_was_stored():
    rule = least(whole=2.0, core=0.5, enhancing=0.0)
    assert check_decision(rule.to_dict()) == rule
    assert check_decision(rule) is rule
    assert check_decision(json.loads(json.dumps(absent("TC", "ET").to_dict()))) == absent("TC", "ET")
    shown = absent("ET", shown_on=("t1ce",))
    assert check_decision(json.loads(json.dumps(shown.to_dict()))) == shown
    assert set(rule.to_dict()) == {"rule", "least_ml"}, "files that are older than the others"
    assert check_decision(None) is None


LEAST = {"WT": 0.5, "TC": 0.5, "ET": 0.5}


@pytest.mark.parametrize(
    "found",
    [
        "argmax",
        {"rule": "another", "least_ml": LEAST},
        {"rule": "expected Dice"},
        {"rule": "expected Dice", "least_ml": {"WT": 0.5, "TC": 0.5}},
        {"rule": "expected Dice", "least_ml": {"WT": 0.5, "TC": 0.5, "ET": 100.0}},
        {"rule": "expected Dice", "least_ml": {"WT": 0.5, "TC": 0.5, "ET": float("nan")}},
        {"rule": "expected Dice", "least_ml": {"WT": 0.5, "TC": True, "ET": 0.5}},
        {"rule": "expected Dice", "least_ml": {"WT": 0.5, "TC": 0.5, "ET": 0.5, "NCR": 0.5}},
        {"rule": "expected Dice", "least_ml": LEAST, "may_be_absent": "ET"},
        {"rule": "expected Dice", "least_ml": LEAST, "may_be_absent": ["NCR"]},
        {"rule": "expected Dice", "least_ml": LEAST, "may_be_absent": ["ET", "ET"]},
        {"rule": "expected Dice", "least_ml": LEAST, "may_be_absent": ["ET"], "shown_on": ["t1c"]},
        {"rule": "expected Dice", "least_ml": LEAST, "shown_on": ["t1ce"]},
    ],
)
def test_a_rule_that_is_none_is_refused(found):
    with pytest.raises(InputError, match="decision"):
        check_decision(found)


@pytest.mark.parametrize("shown_on", [("T1CE",), ("t1ce", "flair"), ["t1ce"], "t1ce"])
def test_a_rule_whose_sequences_are_misnamed_or_out_of_order_is_refused_where_it_is_written(shown_on):
    with pytest.raises(InputError, match="the sequences that show them, of flair, t1ce, t1, t2, in that order"):
        absent("ET", shown_on=shown_on)


def test_a_rule_says_its_volumes_in_the_order_of_the_regions_whatever_a_file_s_order_is():
    written = ExpectedDice({"ET": 3.0, "WT": 1.0, "TC": 2.0}, ("ET",), ("t1ce",))
    assert str(written).endswith("(ml) WT 1, TC 2, ET 3")
    assert ", of ET none where that is expected to score more and t1ce is given," in str(written)
