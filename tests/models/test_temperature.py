"""A temperature changes how sure probabilities are, and never which class is the likeliest."""

import math

import pytest
import torch

from smml.errors import InputError
from smml.models.temperature import check_temperatures, temper_


def some(dtype=torch.float32):
    return (4 * torch.randn(4, 500, dtype=dtype)).softmax(dim=0)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.5, 10.0])
def test_tempering_divides_the_logits(temperature):
    logits = 4 * torch.randn(4, 500, dtype=torch.float64)
    tempered = temper_(logits.softmax(dim=0), temperature)
    torch.testing.assert_close(tempered, (logits / temperature).softmax(dim=0))


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.5, 10.0])
def test_the_likeliest_class_stays_and_a_zero_stays_zero(temperature):
    before = some()
    before[1, ::7] = 0
    before /= before.sum(dim=0)
    after = temper_(before.clone(), temperature)
    assert torch.equal(after.argmax(dim=0), before.argmax(dim=0))
    assert bool((after[1, ::7] == 0).all())
    torch.testing.assert_close(after.sum(dim=0), torch.ones(500))


def test_a_temperature_of_1_changes_no_bit():
    before = some()
    assert torch.equal(temper_(before.clone(), 1.0), before)


def test_classes_may_lie_along_any_dimension():
    both = torch.stack([some(), some()])
    torch.testing.assert_close(temper_(both.clone(), 2.0, dim=1)[1], temper_(both[1].clone(), 2.0))


@pytest.mark.parametrize(
    "wrong", [[1, 1, 1], [1.0] * 5, [1, 1, 1, 0], [1, 1, 1, -2], [1, 1, 1, math.nan], [1, 1, 1, math.inf],
              [1, 1, 1, True], [1, 1, 1, "2"], "1111", 1.0, {"1": 1.0}]
)  # fmt: skip
def test_what_is_no_temperature_is_refused(wrong):
    with pytest.raises(InputError, match=r"temperatures must be 4 numbers from 0\.1 to 10, one for each number of"):
        check_temperatures(wrong, 4)


def test_numbers_are_taken_as_floats_and_none_as_none():
    assert check_temperatures([1, 2, 0.5, 10], 4) == (1.0, 2.0, 0.5, 10.0)
    assert check_temperatures(None, 4) is None
