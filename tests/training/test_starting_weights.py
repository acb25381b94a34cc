"""Training that starts from given weights: for example from simulated data, before real ones."""

import pytest
import torch

from smml.errors import InputError
from smml.models import SMML
from smml.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from smml.training import TrainingConfig, train


def save_model(path, num_classes=4, preset="tiny"):
    torch.manual_seed(5)
    model = SMML(preset, num_classes=num_classes)
    save_checkpoint(Checkpoint(model.config, model.state_dict(), (6.0, 6.0, 6.0), patch=32), path)
    return model.state_dict()


def test_a_run_starts_from_the_given_weights(small_cohort, tmp_path):
    given = save_model(tmp_path / "given.pt")
    config = TrainingConfig(steps=1, learning_rate=1e-9, weight_decay=0)
    path = train(small_cohort, tmp_path / "run", config, weights=tmp_path / "given.pt", progress=False).checkpoint
    trained = load_checkpoint(path).weights
    for name, tensor in given.items():
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-7)
    path = train(small_cohort, tmp_path / "random", config, progress=False).checkpoint
    random = load_checkpoint(path).weights
    assert not torch.allclose(
        random["branches.0.fusion_decoder.head.weight"], given["branches.0.fusion_decoder.head.weight"]
    )


def test_weights_that_do_not_fit_are_refused_by_name(small_cohort, tmp_path):
    save_model(tmp_path / "five.pt", num_classes=5)
    save_model(tmp_path / "small.pt", preset="small")
    for name, words in (("five.pt", "5 classes"), ("small.pt", "preset 'small'"), ("none.pt", "no such checkpoint")):
        with pytest.raises(InputError, match=words) as error:
            train(small_cohort, tmp_path / "run", TrainingConfig(steps=1), weights=tmp_path / name, progress=False)
        assert name in str(error.value)
