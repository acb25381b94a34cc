"""The checks of the exercises: a hint for the unsolved, a word for the solved, and never a traceback."""

import numpy as np
import pytest
import torch

from smml import course


def unfinished():
    return ...


def to_do():
    raise NotImplementedError


def test_a_solved_exercise_is_called_solved(capsys):
    with course.check("0.1"):
        assert 1 + 1 == 2
    assert capsys.readouterr().out == "Exercise 0.1: solved\n"
    assert course.outcomes["0.1"] is None


def test_a_failed_assertion_gives_its_hint_in_one_line(capsys):
    with course.check("0.1"):
        raise AssertionError("add the\n  two")
    assert capsys.readouterr().out == "Exercise 0.1: not solved yet (add the two)\n"
    assert course.outcomes["0.1"] == "add the two"


def test_an_assertion_without_a_hint_still_says_something():
    with course.check("0.1"):
        raise AssertionError
    assert course.outcomes["0.1"] == "an assertion of the check does not hold"


@pytest.mark.parametrize(
    "use",
    [
        to_do,
        lambda: unfinished() + 1,
        lambda: torch.allclose(unfinished(), torch.zeros(1)),
        lambda: float(unfinished()),
        lambda: unfinished()[0],
        lambda: len(unfinished()),
    ],
)
def test_an_unfinished_function_is_told_from_a_wrong_one(use):
    with course.check("0.1"):
        use()
    assert course.outcomes["0.1"] == "the function is still to be written"


def test_the_readers_own_error_keeps_its_name():
    with course.check("0.1"):
        np.zeros(3) + np.zeros(4)
    assert course.outcomes["0.1"].startswith("ValueError: operands could not be broadcast")


def test_a_later_check_replaces_the_outcome():
    for solved in (False, True):
        with course.check("0.1"):
            assert solved, "no"
    assert course.outcomes["0.1"] is None


def test_an_interrupt_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt), course.check("0.1"):
        raise KeyboardInterrupt


def lower_ce(log_p1, log_p2, y):
    one, two = (log_p.gather(0, y[None])[0] for log_p in (log_p1, log_p2))
    return (one > two).float(), (two > one).float()


def test_two_readers_learn_by_a_gate_of_ones_own_as_by_its_name():
    by_name = course.train_two_readers("lower_ce", steps=20)
    assert course.train_two_readers(lower_ce, steps=20) == pytest.approx(by_name, abs=0.01)
    assert course.train_two_readers(lambda one, two, y: (0 * one[0], 0 * one[0]), steps=20) == pytest.approx(
        course.train_two_readers(None, steps=20), abs=0.01
    )
