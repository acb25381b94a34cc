"""Calibration: known models have their known errors, sums add up, and a planted temperature is found."""

import functools
import operator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import CalibrationErrorMetric

from smml.data import Case
from smml.data.labels import BRATS_2023, REGIONS
from smml.errors import InputError
from smml.evaluation import (
    Calibration,
    OutputCalibration,
    fit_temperature,
    fit_temperatures,
    format_calibration,
    measure_calibration,
)
from smml.evaluation.calibration import BINS
from smml.figures import reliability_figure
from smml.inference import Segmentation
from smml.modalities import MODALITIES, SUBSETS
from smml.models.temperature import temper_


def softmax(logits):
    return torch.from_numpy(logits).softmax(dim=0).numpy()


def drawn(probabilities, seed=0):
    """Labels [N] drawn by the probabilities [K, N]."""
    chance = np.random.default_rng(seed).random(probabilities.shape[1])
    return (chance > probabilities.cumsum(axis=0)).sum(axis=0).clip(max=len(probabilities) - 1).astype(np.uint8)


def made(count, seed=0, scale=2.0):
    """Probabilities float32 [4, N] and labels that are drawn by them."""
    logits = scale * np.random.default_rng(seed).standard_normal((4, count))
    probabilities = softmax(logits).astype(np.float32)
    return probabilities, drawn(probabilities, seed + 1)


def of(probabilities, labels, sequences=2):
    return Calibration.of(probabilities, labels, sequences, BRATS_2023)


def test_a_model_whose_probabilities_are_true_has_next_to_no_error():
    errors = of(*made(200_000)).errors()
    assert errors.loc[2].max() < 0.005
    assert list(errors.columns) == list(REGIONS)
    assert errors.drop(index=2).isna().all(axis=None), "no voxel with another number of sequences"


def test_the_error_of_a_model_that_is_too_sure_is_how_much_too_sure_it_is():
    # Says 90 % of every voxel for ET, and is right of 60 %: 30 % too much. The rest it gives to the background, so that
    # WT and TC are the same region.
    labels = np.repeat(np.uint8([3, 0]), [600, 400])
    said = np.zeros((4, 1000), np.float32)
    said[3], said[0] = 0.9, 0.1
    np.testing.assert_allclose(of(said, labels).errors().loc[2], 0.3, atol=1e-6)
    # Where it says nothing of half of the voxels, and rightly so, the mean is over all of them.
    half = np.concatenate([said, np.eye(4, dtype=np.float32)[:, [0] * 1000]], axis=1)
    errors = of(half, np.concatenate([labels, np.zeros(1000, np.uint8)])).errors()
    np.testing.assert_allclose(errors.loc[2], 0.15, atol=1e-6)


def test_too_much_in_one_bin_does_not_make_up_for_too_little_in_another():
    said = np.zeros((4, 200), np.float32)
    said[3] = np.repeat([0.2, 0.8], 100)
    said[0] = 1 - said[3]
    labels = np.tile(np.uint8([3, 0]), 100)  # half of either hundred
    np.testing.assert_allclose(of(said, labels).errors().loc[2], 0.3, atol=1e-6)


def test_the_regions_are_sums_of_classes():
    said = np.float32([0.1, 0.2, 0.3, 0.4])[:, None]
    sums = of(said, np.uint8([2]))
    np.testing.assert_allclose(sums.probability[1].sum(axis=-1), [0.9, 0.6, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(sums.inside[1].sum(axis=-1), [1, 0, 0])


def test_a_certain_voxel_lies_in_the_last_bin():
    said = np.float32([[0], [0], [0], [1 + 1e-6]])  # as a sum of classes rounds
    np.testing.assert_array_equal(np.flatnonzero(of(said, np.uint8([3])).voxels[1, 2]), [BINS - 1])


def test_the_error_is_that_of_monai():
    probabilities, labels = made(5000, scale=1.0)
    wrong = labels[::-1].copy()  # drawn for other voxels: a large error
    said = np.stack([sum(probabilities[k] for k in BRATS_2023.regions[region]) for region in REGIONS])
    truth = np.stack([BRATS_2023.region(wrong, region) for region in REGIONS])
    metric = CalibrationErrorMetric(num_bins=BINS, metric_reduction="none")
    metric(y_pred=torch.from_numpy(said)[None], y=torch.from_numpy(truth)[None].float())
    ours = of(probabilities, wrong).errors().loc[2].to_numpy()
    assert ours.min() > 0.05
    np.testing.assert_allclose(ours, metric.aggregate()[0].numpy(), rtol=1e-4)


def test_sums_of_parts_are_the_sums_of_the_whole():
    probabilities, labels = made(3000)
    parts = [of(probabilities[:, i : i + 700], labels[i : i + 700]) for i in range(0, 3000, 700)]
    total, whole = functools.reduce(operator.add, parts, Calibration.empty()), of(probabilities, labels)
    np.testing.assert_array_equal(total.voxels, whole.voxels)
    np.testing.assert_array_equal(total.inside, whole.inside)
    np.testing.assert_allclose(total.probability, whole.probability, rtol=1e-12)


@pytest.mark.parametrize("planted", [0.5, 1.0, 2.0])
def test_a_planted_temperature_is_found(planted):
    logits = 2 * np.random.default_rng(0).standard_normal((4, 50_000))
    labels = drawn(softmax(logits))
    assert fit_temperature(softmax(planted * logits).astype(np.float32), labels) == pytest.approx(planted, rel=0.02)


def test_a_class_that_was_ruled_out_and_is_there_does_not_end_the_fit():
    probabilities, labels = made(2000)
    probabilities[:, 0], labels[0] = [1, 0, 0, 0], 3
    assert 1 < fit_temperature(probabilities, labels) < 2


class TooSure:
    """Stands in for a predictor: draws the truth by probabilities of its own, and reports them sharpened.

    Outside the brain, where nothing may be looked at, it is as wrong as can be.
    """

    scheme = BRATS_2023
    temperatures = (3.0, 3.0, 3.0, 3.0)  # which the fit and the measure must not see
    prior = object()  # nor the refinement
    planted = (2.0, 1.5, 1.0, 0.8)

    def encode(self, case):
        assert self.prior is None
        return case

    def segment_all(self, case, subsets, *, branches=False):
        assert self.temperatures is None
        inside = case.volumes["flair"] != 0
        for subset in subsets:
            said = np.zeros((4, *inside.shape), np.float32)
            said[(case.label + 1) % 4, *np.indices(inside.shape)] = 1
            true = self.true(case)
            said[:, inside] = temper_(torch.from_numpy(true), 1 / self.planted[len(subset) - 1]).numpy()
            yield Segmentation(case.label, said, case.affine, subset, case.layout)

    @staticmethod
    def true(case):
        return made(int((case.volumes["flair"] != 0).sum()), seed=int(case.id))[0]


def cohort(count=2, modalities=MODALITIES, edge=20):
    for number in range(count):
        volume = np.zeros((edge, edge, edge), np.float32)
        volume[2:-2, 2:-2, 2:-2] = 5
        label = np.zeros(volume.shape, np.uint8)
        label[volume != 0] = made(int((volume != 0).sum()), seed=number)[1]
        yield Case(str(number), dict.fromkeys(modalities, volume), label, np.eye(4), "brats2021")


def test_a_temperature_for_each_number_of_sequences_is_fitted_in_the_brain_alone_and_lowers_the_error():
    fitted = fit_temperatures(TooSure(), list(cohort()), progress=False)
    np.testing.assert_allclose(fitted.temperatures, TooSure.planted, rtol=0.06)
    before, after = fitted.before.errors(), fitted.after.errors()
    assert (after.loc[[1, 2]] < before.loc[[1, 2]] / 2).all(axis=None)
    assert after.max(axis=None) < 0.03
    runs = [sum(len(subset) == size for subset in SUBSETS) for size in (1, 2, 3, 4)]
    np.testing.assert_array_equal(fitted.before.voxels.sum(axis=-1)[:, 0], [2 * 16**3 * run for run in runs])


def test_a_fit_takes_no_more_voxels_than_it_is_told_and_the_same_ones_again():
    cases = list(cohort())
    one, two = (fit_temperatures(TooSure(), cases, sampled=800, progress=False) for _ in range(2))
    assert one.temperatures == two.temperatures
    np.testing.assert_array_equal(one.before.probability, two.before.probability)
    assert (one.before.voxels.sum(axis=-1) <= 800 + len(SUBSETS) * len(cases)).all()


def test_what_is_measured_is_every_voxel_of_the_brain_without_and_with_the_temperatures():
    before, after = measure_calibration(TooSure(), list(cohort()), TooSure.planted, progress=False)
    assert before.voxels[3, 0].sum() == after.voxels[3, 0].sum() == 2 * 16**3
    assert before.errors().loc[1].min() > 0.05
    assert after.errors().max(axis=None) < 0.03
    own_before, own_after = measure_calibration(TooSure(), list(cohort(1)), progress=False)
    assert not np.array_equal(own_before.probability, own_after.probability), "by the predictor's own temperatures"
    plain = TooSure()
    plain.temperatures = None
    same = measure_calibration(plain, list(cohort(1)), progress=False)
    assert same[0] is same[1]


def test_each_output_of_an_evaluation_is_measured_as_it_goes():
    """Over the same voxels as by itself; branches and what was refined stand apart."""
    watched, cases = OutputCalibration(), list(cohort())
    plain = TooSure()
    plain.temperatures = plain.prior = None
    for case in cases:
        for student in plain.segment_all(plain.encode(case), SUBSETS):
            turned = student.probabilities[::-1]
            student = replace(student, branches=np.stack([student.probabilities, turned]))
            watched(case, replace(student, probabilities=turned, student=student))
    alone, _ = measure_calibration(plain, cases, progress=False)
    assert set(watched.sums) == {"student", "branch 1", "branch 2", "refined"}
    for output in ("student", "branch 1"):
        np.testing.assert_array_equal(watched.sums[output].probability, alone.probability)
        np.testing.assert_array_equal(watched.sums[output].inside, alone.inside)
    np.testing.assert_array_equal(watched.sums["refined"].probability, watched.sums["branch 2"].probability)
    frame = watched.frame()
    assert frame.groupby("output").size().to_dict() == dict.fromkeys(watched.sums, 12)
    found = frame[frame["output"] == "student"].pivot(index="sequences", columns="region", values="ece")
    pd.testing.assert_frame_equal(found[list(REGIONS)], alone.errors(), check_names=False)
    assert frame[frame["output"] == "refined"]["ece"].min() > 0.1, "classes in the wrong order"
    assert OutputCalibration().frame().empty


def test_a_cohort_without_a_complete_case_is_measured_and_not_fitted_on():
    cases = list(cohort(1, modalities=("flair", "t2")))
    before, _ = measure_calibration(TooSure(), cases, progress=False)
    assert before.errors().loc[[3, 4]].isna().all(axis=None)
    assert "| 4 | 1.000 | – | – |" in format_calibration(before, before, (1.0, 1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="none of the 1 cases has all 4 sequences"):
        fit_temperatures(TooSure(), cases, progress=False)


@pytest.mark.parametrize("wrong", [(1.0, 1.0), (1.0, 1.0, 1.0, -1.0)])
def test_temperatures_out_of_range_are_refused_before_the_first_case(wrong):
    with pytest.raises(InputError, match="temperatures must be 4 numbers"):
        measure_calibration(TooSure(), [None], wrong, progress=False)


def test_the_figure_has_a_curve_for_each_number_of_sequences_and_leaves_out_bins_of_few_voxels():
    probabilities, labels = made(2000)
    sums = of(probabilities, labels, 1) + of(probabilities, labels, 4)
    figure = reliability_figure(sums, fewest=60)
    curves = [trace for trace in figure.data if trace.name != "as it should be"]
    assert [(trace.name, trace.xaxis) for trace in curves] == [
        (name, axis) for axis in ("x", "x2", "x3") for name in ("1 sequence", "4 sequences")
    ]
    assert len(curves[0].x) == int((sums.voxels[0, 0] >= 60).sum()) < BINS
    assert min(curves[0].customdata) >= 60
    assert np.abs(np.subtract(curves[0].x, curves[0].y)).max() < 0.15, "labels were drawn by the probabilities"
