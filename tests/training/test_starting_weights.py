"""Training that starts from given weights: for example from simulated data, before real ones."""

import dataclasses
import json

import pytest
import torch

from smml.errors import InputError
from smml.models import SMML, StudentConfig, presets
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


NARROW = StudentConfig((4, 4, 4, 4, 4), token_width=8, heads=1, mlp_width=16, token_grid=2, refinement_widths=(4, 4))


def test_a_run_that_names_no_preset_takes_that_of_its_weights_and_keeps_it(small_cohort, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "small", NARROW)
    save_model(tmp_path / "given.pt", preset="small")
    run, weights = tmp_path / "run", tmp_path / "given.pt"
    path = train(small_cohort, run, TrainingConfig(steps=1), weights=weights, progress=False).checkpoint
    assert load_checkpoint(path).student == NARROW
    assert load_checkpoint(path).config["preset"] == json.loads((run / "config.json").read_text())["preset"] == "small"
    again = train(small_cohort, run, TrainingConfig(steps=1), weights=weights, resume=True, progress=False)
    assert load_checkpoint(again.checkpoint).config["preset"] == "small"
    with pytest.raises(InputError, match="preset='small' instead of 'tiny'"):
        train(small_cohort, run, TrainingConfig("tiny", steps=1), weights=weights, resume=True, progress=False)


def test_without_weights_a_run_that_names_no_preset_is_tiny(small_cohort, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", NARROW)
    path = train(small_cohort, tmp_path / "run", TrainingConfig(steps=1), progress=False).checkpoint
    assert load_checkpoint(path).config["preset"] == "tiny"


def test_weights_of_no_preset_are_refused(small_cohort, tmp_path):
    save_model(tmp_path / "own.pt", preset=NARROW)
    with pytest.raises(InputError, match=r"own\.pt: its students have sizes of their own"):
        train(small_cohort, tmp_path / "run", TrainingConfig(steps=1), weights=tmp_path / "own.pt", progress=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_preset_is_told_by_its_sizes_whatever_its_classes():
    for name, sizes in presets.PRESETS.items():
        assert presets.preset_name(dataclasses.replace(sizes, num_classes=5)) == name
    assert presets.preset_name(NARROW) is None


def test_weights_that_do_not_fit_are_refused_by_name(small_cohort, tmp_path):
    save_model(tmp_path / "five.pt", num_classes=5)
    save_model(tmp_path / "small.pt", preset="small")
    for name, words in (("five.pt", "5 classes"), ("small.pt", "preset 'small'"), ("none.pt", "no such checkpoint")):
        with pytest.raises(InputError, match=words) as error:
            train(small_cohort, tmp_path / "run", TrainingConfig("tiny", steps=1), weights=tmp_path / name)
        assert name in str(error.value)
