"""Options of a training of the tiny SAM: each is checked against its range and the others before anything is built."""

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smml.errors import InputError
from smml.sam.training.config import SAMTraining

NUMBERS = [option.name for option in fields(SAMTraining) if option.type == "int" or option.type is int]
NONSENSE = [-1, math.nan, math.inf, -math.inf, 1e9, 2.0, True, None, "many", [1], 2**70]
anything = st.one_of(
    st.sampled_from(NONSENSE), st.integers(), st.floats(), st.text(max_size=5), st.none(), st.booleans()
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", NONSENSE, ids=str)
def test_a_number_outside_its_range_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"SAM training: {name} must be a whole number from [01] to \d+, found"):
        SAMTraining(**{name: value})


@pytest.mark.parametrize("name", sorted(set(NUMBERS) - {"seed", "data_seed"}))
def test_there_is_no_training_of_nothing(name):
    with pytest.raises(InputError, match=rf"SAM training: {name} must be a whole number from 1 to \d+, found 0"):
        SAMTraining(**{name: 0})


@pytest.mark.parametrize("value", [0, 0.0, -1e-3, math.nan, math.inf, 1e9, "fast", None, True], ids=str)
def test_a_rate_outside_its_range_is_refused(value):
    with pytest.raises(InputError, match=r"learning_rate must be a number above 0 and at most 1, found"):
        SAMTraining(learning_rate=value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "half"}, "precision must be float32 or bf16, found 'half'"),
        ({"precision": None}, "precision must be float32 or bf16, found None"),
        ({"device": ""}, "device must be a name, found ''"),
        ({"device": None}, "device must be a name, found None"),
        ({"weights": ""}, "weights must be a name, found ''"),
        ({"weights": 3}, "weights must be a name, found 3"),
        ({"subjects": 10_000, "slices": 10_000}, r"make \d+ scenes, which are all kept in memory; lower one of them"),
    ],
)
def test_words_and_combinations_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(InputError, match=f"SAM training: .*{message}"):
        SAMTraining(**wrong)


@given(st.dictionaries(st.sampled_from([option.name for option in fields(SAMTraining)]), anything))
def test_any_values_are_taken_or_refused_in_one_sentence(values):
    try:
        taken = SAMTraining.from_dict(values)
    except InputError as error:
        taken, sentence = None, str(error)
    if taken is None:
        assert sentence.startswith("SAM training: ")
        assert "\n" not in sentence
    else:
        assert SAMTraining.from_dict(taken.to_dict()) == taken


def test_unknown_options_are_refused_by_name():
    assert SAMTraining.from_dict({"steps": 7}) == SAMTraining(steps=7)
    with pytest.raises(InputError, match="SAM training: unknown option batch, wings; known are batch_size, "):
        SAMTraining.from_dict({"wings": 2, "batch": 8, "steps": 7})


def test_every_option_says_in_a_line_what_it_is():
    for option in fields(SAMTraining):
        text = option.metadata["help"]
        assert text.endswith(".")
        assert "\n" not in text
