"""scripts/ship_weights.py: what of weights stays when they ship, and what goes with another rule for labels."""

import json
import sys
from dataclasses import replace

import pytest
import ship_weights
import torch

from smml.models.checkpoint import load_checkpoint, save_checkpoint
from smml.models.decision import ExpectedDice

LEAST = {"WT": 1.0, "TC": 0.5, "ET": 0.2}


@pytest.fixture
def ship(tmp_path, monkeypatch):
    """Ship into a folder of the test's, with arguments of the command line."""

    def run(*arguments: str):
        monkeypatch.setattr(ship_weights, "SHIPPED", tmp_path)
        monkeypatch.setattr(sys, "argv", ["ship_weights.py", *arguments])
        ship_weights.main()
        return load_checkpoint(tmp_path / f"{arguments[1]}.safetensors")

    return run


def report(folder, **facts) -> str:
    path = folder / "decision.json"
    path.write_text(json.dumps({"chosen": LEAST, **facts}), encoding="utf-8")
    return str(path)


def test_another_rule_leaves_out_what_was_fitted_with_the_former_one_and_nothing_else(ship, tmp_path):
    before = load_checkpoint("small")
    assert before.intervals is not None
    assert before.gains is not None
    chosen = report(tmp_path, may_be_absent=["TC", "ET"], shown_on=["t1ce"])
    after = ship("small", "other", "--decision", chosen)
    assert after.decision == ExpectedDice(LEAST, ("TC", "ET"), ("t1ce",))
    assert (after.intervals, after.gains) == (None, None)
    assert after.facts() == replace(before, decision=after.decision, intervals=None, gains=None).facts()
    assert all(torch.equal(after.weights[name], tensor) for name, tensor in before.weights.items())


def test_what_was_fitted_with_the_rule_that_ships_stays(ship):
    assert ship("small", "other").facts() == load_checkpoint("small").facts()


def test_the_folder_that_a_run_started_from_does_not_ship(ship, tmp_path):
    run = replace(load_checkpoint("tiny"), config={"weights": "/home/me/runs/1", "seed": 3})
    save_checkpoint(run, tmp_path / "run.safetensors")
    facts = ("--commit", "abc", "--hardware", "a laptop", "--data", "a cohort")
    assert ship(str(tmp_path / "run.safetensors"), "other", *facts).config["weights"] is None
    given = ship(str(tmp_path / "run.safetensors"), "other", *facts, "--weights", "small")
    assert (given.config["weights"], given.config["seed"], given.config["commit"]) == ("small", 3, "abc")


def test_weights_that_do_not_say_how_they_were_made_are_refused(ship, tmp_path, capsys):
    unsaid = replace(load_checkpoint("tiny"), config={"commit": "abc"})
    save_checkpoint(unsaid, tmp_path / "unsaid.safetensors")
    with pytest.raises(SystemExit):
        ship(str(tmp_path / "unsaid.safetensors"), "other", "--data", "a cohort")
    assert "give --hardware\n" in capsys.readouterr().err
    assert not (tmp_path / "other.safetensors").exists()
