"""The options of a training: whatever a file or a line gives for one, it is a run's option or refused in a sentence."""

import csv
import dataclasses
import json
import math
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import ranks_server
import torch
from hypothesis import given

from smml import cli
from smml.errors import InputError
from smml.models import presets
from smml.sam.training.train import SAMTraining
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
    with pytest.raises(InputError, match="name a SAM as refinement, and set refinement_start to 0"):
        TrainingConfig(refinement_only=True, refinement="tiny", refinement_start=0.5, steps=4)
    with pytest.raises(InputError, match="name a SAM as refinement"):
        TrainingConfig(refinement_only=True, refinement_start=0.0)


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


# ---------------------------------------------------------------- the command

# For every option a value that is not its default.
OTHERS = {
    "preset": "small", "steps": 7, "batch_size": 4, "patch": 48, "spacing": 2.5, "learning_rate": 0.002,
    "weight_decay": 0.01, "poly_power": 0.8, "min_class_weight": 0.1, "consistency_start": 0.2,
    "consistency_ramp": 0.3, "pixel_weight": 0.5, "feature_weight": 0.25, "class_weight": 0.75, "gate": "entropy",
    "gate_min_class_weight": 0.4, "separate_heads": "masked", "refinement": "vit_b", "refinement_start": 0.0,
    "refinement_weight": 0.6, "refinement_min_class_weight": 0.7, "refinement_only": True, "prior_masks": 3,
    "tumour_share": 0.9, "gradient_clip": 1.5, "accumulate": 2, "precision": "bf16", "ema": 0.99, "compile": True,
    "recompute": True,
    "validate_every": 5, "validation": "held", "holdout": 0.2, "patience": 3, "tensorboard": True, "augment": False,
    "appearance": 0.5, "preprocessing": 2, "seed": 11, "checkpoint_every": 9, "workers": 1, "cache": 1.5,
    "device": "cuda:1",
}  # fmt: skip


@pytest.fixture
def smml(monkeypatch, capsys):
    """Run the command in this process; returns exit status, stdout and stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["smml", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def given_config(monkeypatch) -> list[TrainingConfig]:
    """What the command would have trained with."""
    seen = []

    def train(data, output, config, **_):
        seen.append(config)
        raise InputError("seen")

    monkeypatch.setattr("smml.training.train", train)
    return seen


def words_of(values: dict) -> list[str]:
    words = []
    for name, value in values.items():
        option = name.replace("_", "-")
        words += [f"--{option}" if value else f"--no-{option}"] if isinstance(value, bool) else [f"--{option}", value]
    return words


def test_every_option_is_reached_from_the_command(smml, given_config, tmp_path):
    defaults = TrainingConfig().to_dict()
    assert OTHERS.keys() == defaults.keys()
    assert not [name for name, value in OTHERS.items() if value == defaults[name]]
    smml("train", "data", tmp_path, *words_of(OTHERS))
    smml("train", "data", tmp_path)
    assert given_config == [TrainingConfig(**OTHERS), TrainingConfig()]


def test_options_of_a_file_are_those_of_the_run_and_the_line_goes_before(smml, given_config, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TrainingConfig(**OTHERS).to_dict() | {"cases": "2 cases", "commit": "abc"}))
    smml("train", "data", tmp_path, "--config", path)
    line = {"augment": True, "steps": 9, "spacing": 0, "patience": 0}
    smml("train", "data", tmp_path, "--config", path, *words_of(line))
    assert given_config == [TrainingConfig(**OTHERS), TrainingConfig(**OTHERS | line | {"spacing": None})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"steps": 2, "stepz": 3}', "unknown option stepz; known are accumulate"),
        ('{"steps": "2"}', "steps must be a whole number, found '2'"),
        ("[1, 2]", "expected options by name, found a list"),
        ('{"steps": ', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_of_options_that_cannot_be_used_is_refused_in_a_sentence(smml, given_config, tmp_path, text, said):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    status, out, err = smml("train", "data", tmp_path, "--config", path)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert not given_config


def losses(run: Path) -> list[dict]:
    with open(run / "log.csv", newline="", encoding="utf-8") as stream:
        return [{name: value for name, value in row.items() if "seconds" not in name} for row in csv.DictReader(stream)]


def test_the_config_of_a_finished_run_repeats_it(smml, small_cohort, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", ranks_server.NARROW)
    given = {"steps": 2, "batch_size": 1, "seed": 3, "separate_heads": "masked", "augment": False, "ema": 0.9}
    given |= {"precision": "bf16"}
    assert smml("train", small_cohort, tmp_path / "start", "--steps", 1, "--batch-size", 1)[0] == 0
    words = [*words_of(given), "--weights", tmp_path / "start"]
    assert smml("train", small_cohort, tmp_path / "one", *words)[0] == 0
    written = json.loads((tmp_path / "one" / "config.json").read_text(encoding="utf-8"))
    assert written.keys() == set(NAMES) | RUN_FACTS - {"resumed"}
    assert {name: written[name] for name in NAMES} == TrainingConfig("tiny", **given).to_dict()
    assert smml("train", small_cohort, tmp_path / "two", "--config", tmp_path / "one" / "config.json")[0] == 0
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert len(losses(tmp_path / "one")) == 2


def test_the_help_names_every_option_with_its_words(smml, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    status, text, _ = smml("train", "--help")
    assert status == 0
    for each in dataclasses.fields(TrainingConfig):
        assert f"--{each.name.replace('_', '-')} " in text
    for words in ("available or masked", "lower_ce, correct, entropy or none", "--no-augment", "[default: 1000]"):
        assert words in text
    text = smml("train-sam", "--help")[1]
    for each in dataclasses.fields(SAMTraining):
        assert f"--{each.name.replace('_', '-')} " in text


def test_every_option_of_the_training_of_sam_is_reached_too(smml, monkeypatch, tmp_path):
    seen = []

    def train_sam(output, settings, **_):
        seen.append(settings)
        raise InputError("seen")

    monkeypatch.setattr("smml.sam.training.train.train_sam", train_sam)
    others = {"weights": "tiny", "precision": "bf16", "device": "cuda", "learning_rate": 0.5}
    for each in dataclasses.fields(SAMTraining):
        others[each.name] = others.get(each.name) or each.default + 1
    smml("train-sam", tmp_path, *words_of(others))
    smml("train-sam", tmp_path)
    assert seen == [SAMTraining(**others), SAMTraining()]
