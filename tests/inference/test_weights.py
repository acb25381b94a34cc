"""Weights that come with the package: each loads by its name, is small enough for a checkout, and has a card."""

import re

import pytest

from smml.data import REGIONS
from smml.models.checkpoint import SHIPPED, load_checkpoint

NAMES = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def test_weights_ship():
    assert {"small", "tiny", "tiny-refined"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_load_by_name_and_say_how_they_were_made(name):
    checkpoint = load_checkpoint(name)
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint.weights.values())
    assert (checkpoint.training, checkpoint.ema) == (None, None), "the model alone"
    for fact in ("commit", "hardware", "data", "seed", "steps"):
        assert str(checkpoint.config[fact]), fact
    assert (SHIPPED / f"{name}.safetensors").stat().st_size < 15e6


@pytest.mark.parametrize("name", NAMES)
def test_a_card_stands_beside_shipped_weights(name):
    card = (SHIPPED / f"{name}.md").read_text(encoding="utf-8")
    assert card.startswith(f"# Model card: `{name}`")
    for said in ("simulated", "Not for clinical use|not for clinical use", "Limits", "commit", "results/"):
        assert re.search(said, card), said
    spacing = load_checkpoint(name).spacing[0]
    assert f"{spacing:g} mm" in card


@pytest.mark.parametrize("name", ["small", "tiny"])
def test_a_card_and_method_name_the_volumes_of_the_rule_for_labels(name):
    rule = load_checkpoint(name).decision
    assert rule is not None
    volumes = [f"{rule.least_ml[region]:g}" for region in REGIONS]
    card = " ".join((SHIPPED / f"{name}.md").read_text(encoding="utf-8").split())
    assert "less than {} ml (WT), {} ml (TC) or {} ml (ET) is expected".format(*volumes) in card
    method = " ".join((SHIPPED.parents[1] / "docs" / "METHOD.md").read_text(encoding="utf-8").split())
    said = {"small": "than {} ml (WT), {} ml (TC) or {} ml (ET)", "tiny": "in `tiny` {}, {} and {} ml"}
    assert said[name].format(*volumes) in method


def test_both_outputs_of_the_refined_weights_are_labelled_by_the_rule_of_their_students():
    assert load_checkpoint("tiny-refined").decision == load_checkpoint("tiny").decision
