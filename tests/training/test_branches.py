"""Both branches of a step in two threads: what one thread would have computed."""

import threading

import pytest
import torch

from smml.models import SMML
from smml.ranks import Ranks
from smml.training import TrainingConfig
from smml.training.branches import side_by_side
from smml.training.step import take_step

EDGE = 32


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def batch(refinement):
    generator = torch.Generator().manual_seed(0)
    volume = (EDGE, EDGE, EDGE)
    made = {
        "image": torch.randn(1, 4, *volume, generator=generator),
        "label": torch.randint(0, 4, (1, *volume), generator=generator, dtype=torch.uint8),
        "masks": torch.tensor([[[1, 1, 0, 1], [0, 0, 1, 0]]], dtype=torch.bool),
        "available": torch.tensor([[1, 1, 1, 0]], dtype=torch.bool),
    }
    if refinement:
        made["priors"] = torch.rand(1, 2, 4, 3, *volume, generator=generator)
    return made


def row_and_gradients(config, refinement):
    torch.manual_seed(0)
    model = SMML("tiny", refine=refinement).train()
    optimiser = torch.optim.SGD(model.parameters())
    row = take_step(model, optimiser, [batch(refinement)] * config.accumulate, config, 500, Ranks())
    return row, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("refinement", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_two_threads_compute_what_one_does(two_threads, monkeypatch, refinement, precision):
    config = TrainingConfig("tiny", steps=1000, patch=EDGE, batch_size=2, accumulate=2, precision=precision)
    seen = set()
    branch = SMML.branch
    monkeypatch.setattr(SMML, "branch", lambda *a, **k: (seen.add(threading.current_thread().name), branch(*a, **k))[1])
    row, gradients = row_and_gradients(config, refinement)
    assert len(seen) == 2
    torch.set_num_threads(1)
    expected_row, expected = row_and_gradients(config, refinement)
    assert len(seen) == 3, "one thread alone is this one"
    for name, value in expected_row.items():
        assert row[name] == pytest.approx(value, rel=1e-5) or name == "seconds"
    for name, gradient in expected.items():
        if gradient is None:
            assert gradients[name] is None
        else:
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_a_failure_in_one_branch_is_the_steps_failure(two_threads, monkeypatch):
    def broken(self, number, *inputs):
        if number == 1:
            raise RuntimeError("branch 2 fails")
        return branch(self, number, *inputs)

    branch = SMML.branch
    monkeypatch.setattr(SMML, "branch", broken)
    with pytest.raises(RuntimeError, match="branch 2 fails"):
        row_and_gradients(TrainingConfig("tiny", steps=1000, patch=EDGE, batch_size=1), False)


def test_the_threads_are_for_a_cpu_with_cores_to_spare_and_nothing_left_to_chance(two_threads):
    config, cpu = TrainingConfig("tiny", steps=10, patch=EDGE), torch.device("cpu")
    assert side_by_side(SMML("tiny"), config, cpu)
    assert not side_by_side(SMML("tiny"), config, torch.device("cuda"))
    assert not side_by_side(SMML("paper"), config, cpu), "its dropout draws from one generator"
    torch.set_num_threads(1)
    assert not side_by_side(SMML("tiny"), config, cpu)
