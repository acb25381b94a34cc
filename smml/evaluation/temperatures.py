"""Temperatures of a model, one for each number of sequences given, fitted on labelled cases it was not trained on.

A temperature is the one of the least mean negative log-likelihood of the true classes, -log p(truth), over voxels of
the brain, of the mean of both branches as :class:`smml.inference.Predictor` reports it, on the case's own grid. All
subsets of one size share a temperature. One pass over the cases keeps a sample of voxels, whose size does not grow with
them; the sample follows from the order of cases and subsets alone, so the same cases give the same temperatures.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from tqdm.auto import tqdm

from smml.data.case import Case
from smml.data.checking import check_cases
from smml.data.layouts import CaseFiles
from smml.data.reading import read_case
from smml.errors import InputError
from smml.evaluation.calibration import BrainVoxels, Calibration
from smml.evaluation.evaluate import check_labelled
from smml.inference import Predictor
from smml.modalities import MODALITIES, SUBSETS, subsets_of
from smml.models.temperature import TEMPERATURES, check_temperatures, temper_

# Voxels for each number of sequences, from all cases and subsets together: some 20 bytes each.
SAMPLED = 1_000_000


@dataclass(frozen=True)
class Fitted:
    """What :func:`fit_temperatures` found.

    Attributes:
        temperatures: for one sequence, for two and so on.
        before: calibration of the probabilities as the model gives them, over the sampled voxels.
        after: of the same voxels, tempered. They are those on which the temperatures were fitted.
    """

    temperatures: tuple[float, ...]
    before: Calibration
    after: Calibration


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature under which the truth is likeliest.

    Args:
        probabilities: of the classes, floating [K, N].
        labels: memory values of the truth, integer [N].

    Returns:
        A number within ``smml.models.temperature.TEMPERATURES``; at one of its ends, where a model knows nothing or
        everything.
    """
    # In logarithms, where a likelihood of 0 is a very small one: no single voxel may decide alone.
    logits = torch.from_numpy(probabilities).clamp_min(torch.finfo(torch.float32).tiny).log()
    of_truth = logits.gather(0, torch.from_numpy(labels).long()[None])[0]

    def loss(exponent: float) -> float:
        sharpness = float(np.exp(-exponent))
        likelihoods = sharpness * of_truth - torch.logsumexp(sharpness * logits, dim=0)
        return -float(likelihoods.mean(dtype=torch.float64))

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(np.clip(np.exp(found.x), *TEMPERATURES))


def fit_temperatures(
    predictor: Predictor, cases: Sequence[CaseFiles | Case], *, sampled: int = SAMPLED, progress: bool = True
) -> Fitted:
    """Fit a temperature for each number of sequences.

    Args:
        predictor: a trained model. Temperatures that it has, and its refinement, have no say.
        cases: labelled ones that it was not trained on, at least one of them with all four sequences.
        sampled: voxels for each number of sequences, shared out evenly over cases and subsets.
        progress: show a progress bar.

    Raises:
        InputError: no case has all four sequences, or as :func:`smml.evaluation.evaluate`.
    """
    if not any(len(case.modalities) == len(MODALITIES) for case in cases):
        raise InputError(
            f"none of the {len(cases)} cases has all {len(MODALITIES)} sequences, and there is a temperature for each "
            "number of sequences; add a case that has them"
        )
    parts: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    runs = [sum(len(subset) == size for subset in SUBSETS) * len(cases) for size in range(1, len(MODALITIES) + 1)]
    for number, (sequences, probabilities, labels) in enumerate(_voxels(predictor, cases, progress)):
        share = -(-sampled // runs[sequences - 1])
        if len(labels) > share:
            chosen = np.random.default_rng([0, number]).choice(len(labels), share, replace=False, shuffle=False)
            probabilities, labels = probabilities[:, chosen], labels[chosen]
        parts.setdefault(sequences, []).append((probabilities, labels))
    temperatures, before, after = [], Calibration.empty(), Calibration.empty()
    for sequences in sorted(parts):
        probabilities = np.concatenate([part for part, _ in parts[sequences]], axis=1)
        labels = np.concatenate([part for _, part in parts.pop(sequences)])
        temperatures.append(fit_temperature(probabilities, labels))
        before += Calibration.of(probabilities, labels, sequences, predictor.scheme)
        temper_(torch.from_numpy(probabilities), temperatures[-1])
        after += Calibration.of(probabilities, labels, sequences, predictor.scheme)
    return Fitted(tuple(temperatures), before, after)


def measure_calibration(
    predictor: Predictor,
    cases: Sequence[CaseFiles | Case],
    temperatures: Sequence[float] | None = None,
    *,
    progress: bool = True,
) -> tuple[Calibration, Calibration]:
    """Calibration over every voxel of the brains, of all subsets of each case.

    Args:
        predictor: a trained model; with refinement, the students alone are measured.
        cases: labelled ones on which neither the model nor the temperatures were fitted.
        temperatures: for one sequence, for two and so on; None takes those of the predictor.
        progress: show a progress bar.

    Returns:
        Of the probabilities as the model gives them, and of the tempered ones; the same twice without temperatures.

    Raises:
        InputError: temperatures out of their range, or as :func:`smml.evaluation.evaluate`.
    """
    given = check_temperatures(predictor.temperatures if temperatures is None else temperatures, len(MODALITIES))
    before, after = Calibration.empty(), Calibration.empty()
    for sequences, probabilities, labels in _voxels(predictor, cases, progress):
        before += Calibration.of(probabilities, labels, sequences, predictor.scheme)
        if given is not None:
            temper_(torch.from_numpy(probabilities), given[sequences - 1])
            after += Calibration.of(probabilities, labels, sequences, predictor.scheme)
    return before, before if given is None else after


def _voxels(
    predictor: Predictor, cases: Sequence[CaseFiles | Case], progress: bool
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Of each case and each subset of what it has: how many sequences, and the brain's voxels.

    These are the probabilities of the students as they give them, float32 [K, N], and the labels, uint8 [N]. The brain
    is that of all sequences of the case together, so every subset has the same voxels.
    """
    if not len(cases):
        raise InputError("no cases to calibrate on: name a folder that holds some")
    check_labelled(cases, predictor)
    check_cases([case for case in cases if isinstance(case, CaseFiles)], progress=progress)
    students = copy.copy(predictor)
    students.temperatures = students.prior = None
    total = sum(len(subsets_of(case.modalities)) for case in cases)
    with tqdm(total=total, desc="calibrating", unit="subset", disable=not progress) as bar:
        for item in cases:
            case = item if isinstance(item, Case) else read_case(item)
            inside = BrainVoxels(case)
            for result in students.segment_all(students.encode(case), subsets_of(case.modalities)):
                yield len(result.subset), inside.of(result.probabilities), inside.labels
                bar.update()
