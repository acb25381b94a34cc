"""The options of a training: whatever a file or a line gives for one, it is a run's option or refused in a sentence."""

import dataclasses
import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from smml.errors import InputError
from smml.training import TrainingConfig
from smml.training.config import RUN_FACTS, consistency_ramp, learning_rate

NAMES = [each.name for each in dataclasses.fields(TrainingConfig)]

# What a JSON file or a caller may hold in the place of any option.
VALUES = (
    st.sampled_from([0, -1, 1e9, 10**9, 10**400, math.nan, math.inf, -math.inf, 0.0, 0.5, 1.0, 2.5, 1e-9, True, None])
    | st.sampled_from(["", "tiny", "7", "none", "masked", "bf16", "a\0b", [], [1], {}, (), {"a": 1}])
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
)


def accepted(values: dict) -> TrainingConfig | str:
    """The configuration, or the one sentence that refuses it."""
    try:
        return TrainingConfig.from_dict(values)
    except InputError as error:
        said = str(error)
    assert said.splitlines() == [said]
    return said


@given(name=st.sampled_from(NAMES), value=VALUES)
def test_any_value_of_any_option_trains_or_is_refused_in_a_sentence(name, value):
    config = accepted({name: value})
    if isinstance(config, str):
        assert name in config
        return
    # What is built from it, before the first step and within the schedule.
    kept = getattr(config, name)
    assert type(kept) in {int, float, str, bool, type(None)}
    assert isinstance(kept, bool) == isinstance(getattr(TrainingConfig(), name), bool)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
    assert config.patch % 16 == 0 < config.accumulate <= config.batch_size <= 10_000
    for step in (0, config.steps // 2, config.steps - 1):
        assert 0 <= learning_rate(config, step) <= config.learning_rate
        assert 0 <= consistency_ramp(config, step) <= 1


@given(values=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_several_values_at_once_are_refused_in_a_sentence_too(values):
    config = accepted(values)
    assert isinstance(config, str) or config.refinement_step is None or 0 <= config.refinement_step < config.steps


def test_a_refinement_that_no_step_would_train_is_refused():
    with pytest.raises(InputError, match=r"refinement_start of 0\.9 leaves none of the 4 steps"):
        TrainingConfig(refinement="tiny", refinement_start=0.9, steps=4)
    assert TrainingConfig(refinement="tiny", refinement_start=0.5, steps=1).refinement_step == 0


def test_an_unknown_option_of_a_file_is_refused_by_name():
    with pytest.raises(InputError, match=r"unknown training option learning_rat; known are .*learning_rate"):
        TrainingConfig.from_dict({"learning_rat": 1e-3})


def test_a_device_may_be_one_of_torch():
    config = TrainingConfig(device=torch.device("cuda", 1))
    assert config.device == "cuda:1"
    assert json.loads(json.dumps(config.to_dict()))["device"] == "cuda:1"


def test_every_option_has_help_and_none_shares_its_name_with_a_fact_of_the_run():
    for each in dataclasses.fields(TrainingConfig):
        assert each.metadata["help"].endswith("."), each.name
    assert not RUN_FACTS & set(NAMES)
