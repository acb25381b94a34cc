"""Timing the ways to all subsets: that each does the work that it stands for, never how long it takes."""

import dataclasses

import numpy as np
import pytest
import torch

from smml.data import Case
from smml.errors import InputError
from smml.evaluation.profile import Profile, format_profile, profile
from smml.inference import Predictor
from smml.modalities import MODALITIES
from smml.models import SMML


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return Predictor(SMML("tiny"), None, window=32)


def made_case(modalities):
    random = np.random.default_rng(0)
    volumes = {name: random.random((32, 32, 32), np.float32) + 1 for name in modalities}
    return Case("made", volumes, None, np.eye(4), "brats2021")


def test_each_way_calls_the_encoders_that_it_stands_for(predictor, monkeypatch):
    calls = []
    for student in predictor.model.branches:
        for m, encoder in enumerate(student.encoders):
            encoder.register_forward_hook(lambda _, inputs, __, m=m: calls.append((m, bool(inputs[0].any()))))
    seen = {}

    def clock(self, work):
        calls.clear()
        result = work()
        # What is run first, from one subset and without looking at the clock, is overwritten.
        seen[getattr(work, "__name__", "")] = list(calls)
        return 1.0, result

    monkeypatch.setattr("smml.evaluation.profile._Work.clock", clock)
    profile(predictor, made_case(("flair", "t2")))
    flair, t2 = MODALITIES.index("flair"), MODALITIES.index("t2")
    both = 2
    assert seen["once"] == both * [(flair, True), (t2, True)], "each encoder once a branch"
    # The subsets of two modalities: each alone, and both.
    assert sorted(seen["skipping"]) == sorted(both * [(flair, True), (t2, True), (flair, True), (t2, True)])
    assert len(seen["whole"]) == both * 3 * len(MODALITIES), "every encoder for every subset"
    assert sum(full for _, full in seen["whole"]) == both * 4, "on zeros where the modality is missing"


def test_the_table_shows_parts_that_add_up_and_both_ratios():
    one = Profile("a", (32, 32, 32), 1, 15, encoders=2.0, fusion=3.0, decoder=4.0, once=10.0, skipping=15.0, whole=25.0)
    text = format_profile([one, dataclasses.replace(one, case="b", whole=35.0)])
    assert "mean of 2 cases, the first being a: 32 x 32 x 32 voxels, 1 windows, 15 subsets" in text
    assert "| encoders | 2.00 | 20 |" in text
    assert "| blending | 1.00 | 10 |" in text
    assert "| 15.00 | 1.50 |" in text
    assert "| 30.00 | 3.00 |" in text


def test_a_case_without_modalities_is_refused(predictor):
    with pytest.raises(InputError, match="case made: no modality"):
        profile(predictor, dataclasses.replace(made_case(("t1",)), volumes={}))
