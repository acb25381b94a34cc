"""Options of a training of the tiny SAM: each is checked against its range and the others before anything is built."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smml.errors import InputError
from smml.sam.training.config import SAMTraining

NAMES = [each.name for each in dataclasses.fields(SAMTraining)]
COUNTS = ["steps", "subjects", "slices", "shapes", "batch_size", "checkpoint_every"]
# What a JSON file or a caller may hold in the place of any option.
VALUES = (
    st.sampled_from([0, -1, 1e9, 10**400, math.nan, math.inf, -math.inf, 0.0, 2.5, True, None])
    | st.sampled_from(["", "tiny", "7", "bf16", "a\0b", [], {"a": 1}])
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
)


@pytest.mark.parametrize("name", [*COUNTS, "seed", "data_seed", "learning_rate"])
@pytest.mark.parametrize(
    "value", [-1, math.nan, math.inf, -math.inf, 1e9, 2.0, True, None, "many", [1], 2**70], ids=str
)
def test_a_number_that_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"^{name} must be .*, found"):
        SAMTraining(**{name: value})


@pytest.mark.parametrize("name", [*COUNTS, "learning_rate"])
def test_there_is_no_training_of_nothing(name):
    with pytest.raises(InputError, match=rf"^{name} must be positive and at most [\d,]+, found 0"):
        SAMTraining(**{name: 0})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "half"}, "precision must be one of float32, bf16, found 'half'"),
        ({"precision": None}, "precision must be one of float32, bf16, found None"),
        ({"device": ""}, "device must not be empty"),
        ({"device": None}, "device must be text of one line, found None"),
        ({"weights": ""}, "weights must not be empty"),
        ({"weights": 3}, "weights must be text of one line or nothing, found 3"),
        (
            {"subjects": 10_000, "slices": 10_000},
            r"make 141,662,000 scenes that are all kept in memory; lower one",
        ),
    ],
)
def test_words_and_combinations_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        SAMTraining(**wrong)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_any_values_are_taken_or_refused_in_one_sentence(values):
    try:
        taken = SAMTraining.from_dict(values)
    except InputError as error:
        taken, said = None, str(error)
    if taken is None:
        assert said.splitlines() == [said]
        assert any(name in said for name in values)
    else:
        assert SAMTraining.from_dict(json.loads(json.dumps(taken.to_dict(), allow_nan=False))) == taken


def test_unknown_options_are_refused_by_name():
    assert SAMTraining.from_dict({"steps": 7}) == SAMTraining(steps=7)
    with pytest.raises(InputError, match="unknown SAM training option batch, wings; known are batch_size, "):
        SAMTraining.from_dict({"wings": 2, "batch": 8, "steps": 7})


def test_a_device_may_be_one_of_torch():
    assert SAMTraining(device=torch.device("cuda", 1)).device == "cuda:1"


def test_every_option_says_in_a_line_what_it_is():
    for each in dataclasses.fields(SAMTraining):
        assert each.metadata["help"].endswith("."), each.name
        assert "\n" not in each.metadata["help"]
