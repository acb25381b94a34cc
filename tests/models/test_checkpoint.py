"""Checkpoints: what was saved is read back to the bit, and a file that is not one never runs, loads or overwrites."""

import dataclasses
import errno
import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from smml.data.labels import REGIONS
from smml.data.prevalence import PREVALENCE
from smml.errors import InputError
from smml.inference import Predictor
from smml.models import PRESETS, SMML, StudentConfig, checkpoint
from smml.models.checkpoint import FORMAT, Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from smml.models.decision import EXPECTED_DICE, ExpectedDice
from smml.models.gains import Gain, Gains
from smml.models.intervals import VolumeIntervals

# Some 300 kB: the file format does not care about the size.
SMALLEST = StudentConfig((2, 2, 2, 2, 2), token_width=4, heads=1, mlp_width=4, token_grid=1)
SUFFIXES = (".pt", ".safetensors")
each_format = pytest.mark.parametrize("suffix", SUFFIXES)


def make(student: StudentConfig = SMALLEST, seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    model = SMML(student)
    optimiser = torch.optim.Adam(model.parameters(), amsgrad=True)
    sum(p.sum() for p in model.parameters()).backward()
    optimiser.step()
    training = {"optimiser": optimiser.state_dict(), "random": {"cpu": torch.get_rng_state(), "cuda": []}}
    return Checkpoint(student, model.state_dict(), (3.0, 3.0, 2.5), 48, 17, {"steps": 20, "spacing": None}, training)


@pytest.fixture(scope="module")
def saved() -> Checkpoint:
    return make()


@pytest.fixture(scope="module", params=SUFFIXES)
def whole(request, saved, tmp_path_factory) -> Path:
    """A good file of either format; not to be changed."""
    path = tmp_path_factory.mktemp("checkpoints") / f"good{request.param}"
    save_checkpoint(saved, path)
    return path


def assert_refused(path: Path, match: str | None = None, **options) -> None:
    with pytest.raises(InputError, match=match) as error:
        load_checkpoint(path, **options)
    assert str(path) in str(error.value)


def assert_same_tensors(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_what_was_saved_is_read_back_bit_for_bit(whole, saved):
    loaded = load_checkpoint(whole)
    assert_same_tensors(loaded.weights, saved.weights)
    assert loaded.facts() == saved.facts()
    assert loaded.student == SMALLEST
    assert loaded.spacing == (3.0, 3.0, 2.5)


@each_format
def test_the_version_of_the_preprocessing_travels_and_decides_how_cases_are_prepared(tmp_path, saved, suffix):
    save_checkpoint(dataclasses.replace(saved, preprocessing=2), tmp_path / f"new{suffix}")
    assert load_checkpoint(tmp_path / f"new{suffix}").preprocessing == 2
    assert Predictor.from_checkpoint(tmp_path / f"new{suffix}").preprocessing == 2


@each_format
@pytest.mark.parametrize("named", [True, False])
def test_a_file_of_the_first_preprocessing_is_refused_also_where_it_names_none(
    tmp_path, saved, monkeypatch, suffix, named
):
    """None is named by the files that were written before there was a second one."""
    facts = saved.facts()
    del facts["preprocessing"]
    monkeypatch.setattr(Checkpoint, "facts", lambda self: facts | ({"preprocessing": 1} if named else {}))
    save_checkpoint(saved, tmp_path / f"old{suffix}")
    assert_refused(
        tmp_path / f"old{suffix}", "in version 1, and this smml prepares them as in 2, 3; train it anew, or use"
    )


@each_format
def test_a_version_of_the_preprocessing_that_is_not_here_is_refused_and_both_are_named(tmp_path, saved, suffix):
    path = tmp_path / f"later{suffix}"
    save_checkpoint(dataclasses.replace(saved, preprocessing=99), path)
    assert_refused(path, "prepared as in version 99, and this smml prepares them as in 2, 3; train it anew")


@each_format
def test_temperatures_travel_and_the_predictor_takes_them(tmp_path, saved, suffix):
    save_checkpoint(dataclasses.replace(saved, temperatures=(1.5, 1.25, 1.1, 1.0)), tmp_path / f"sure{suffix}")
    assert load_checkpoint(tmp_path / f"sure{suffix}").temperatures == (1.5, 1.25, 1.1, 1.0)
    assert Predictor.from_checkpoint(tmp_path / f"sure{suffix}").temperatures == (1.5, 1.25, 1.1, 1.0)


INTERVALS = VolumeIntervals(40, "student", {("flair", "t2"): dict.fromkeys(REGIONS, ((1.0, 0.5), (2.0, 1.5)))})
GAINS = Gains(40, {("t1ce", "t1", "t2"): (Gain("flair", 0.2, 0.01, dict.fromkeys(REGIONS, (0.2, 0.02))),)})


@each_format
def test_prevalence_intervals_and_gains_travel_and_the_predictor_takes_them(tmp_path, saved, suffix):
    prevalence = {"WT": 0.1, "TC": 0.05, "ET": 0.02}
    new = dataclasses.replace(saved, prevalence=prevalence, intervals=INTERVALS, gains=GAINS)
    save_checkpoint(new, tmp_path / f"new{suffix}")
    for holder in (load_checkpoint(tmp_path / f"new{suffix}"), Predictor.from_checkpoint(tmp_path / f"new{suffix}")):
        assert (holder.prevalence, holder.intervals, holder.gains) == (prevalence, INTERVALS, GAINS)


def test_a_file_without_them_takes_the_known_prevalence_and_has_no_others(tmp_path, saved):
    facts = saved.facts()
    for name in ("prevalence", "intervals", "gains"):
        del facts[name]
    write_with_facts(tmp_path / "old.safetensors", facts, saved.weights)
    predictor = Predictor.from_checkpoint(tmp_path / "old.safetensors")
    assert (predictor.prevalence, predictor.intervals, predictor.gains) == (PREVALENCE, None, None)
    with pytest.raises(InputError, match="has no table of what a further sequence brings; fit one with `smml inter"):
        predictor.next_scan("flair")


def test_a_file_without_temperatures_has_none(tmp_path, saved):
    """All files were that were written before there were any, the shipped weights among them."""
    facts = saved.facts()
    del facts["temperatures"]
    write_with_facts(tmp_path / "old.safetensors", facts, saved.weights)
    assert load_checkpoint(tmp_path / "old.safetensors").temperatures is None
    assert Predictor.from_checkpoint(tmp_path / "old.safetensors").temperatures is None


@each_format
def test_the_rule_for_labels_travels_and_a_caller_may_ask_for_another(tmp_path, saved, suffix):
    rule = ExpectedDice({"WT": 3.0, "TC": 1.0, "ET": 0.1})
    path = tmp_path / f"decided{suffix}"
    save_checkpoint(dataclasses.replace(saved, decision=rule), path)
    assert load_checkpoint(path).decision == rule
    asked = {"own": rule, "argmax": None, "expected-dice": rule}  # with the volumes that were chosen for it
    assert {name: Predictor.from_checkpoint(path, decision=name).decision for name in asked} == asked
    assert Predictor.from_checkpoint(path, decision=EXPECTED_DICE).decision == EXPECTED_DICE
    with pytest.raises(InputError, match="decision must be one of own, argmax, expected-dice, found 'most'"):
        Predictor.from_checkpoint(path, decision="most")


def test_a_file_without_a_rule_takes_the_argmax(tmp_path, saved):
    facts = saved.facts()
    del facts["decision"]
    write_with_facts(tmp_path / "old.safetensors", facts, saved.weights)
    assert Predictor.from_checkpoint(tmp_path / "old.safetensors").decision is None
    assert Predictor.from_checkpoint(tmp_path / "old.safetensors", decision="expected-dice").decision == EXPECTED_DICE


def test_with_another_rule_than_its_own_volumes_have_no_intervals_and_a_warning_says_so(tmp_path, saved):
    path = tmp_path / "intervals.safetensors"
    save_checkpoint(dataclasses.replace(saved, intervals=INTERVALS), path)
    assert Predictor.from_checkpoint(path, decision="argmax").intervals == INTERVALS
    with pytest.warns(UserWarning, match="its own rule for labels; with others volumes are given without intervals"):
        assert Predictor.from_checkpoint(path, decision="expected-dice").intervals is None


def test_training_state_travels_with_pt_and_not_with_shipped_weights(whole, saved):
    training = load_checkpoint(whole).training
    if whole.suffix == ".safetensors":
        assert training is None
        return
    assert torch.equal(training["random"]["cpu"], saved.training["random"]["cpu"])
    for index, state in saved.training["optimiser"]["state"].items():
        assert_same_tensors(training["optimiser"]["state"][index], state)


def test_the_model_is_built_with_these_weights_in_evaluation_mode(whole, saved):
    model = load_checkpoint(whole).build()
    assert not model.training
    assert_same_tensors(model.state_dict(), saved.weights)


@each_format
def test_special_values_survive(tmp_path, saved, suffix):
    weights = dict(saved.weights)
    name = next(iter(weights))
    odd = torch.tensor([0.0, -0.0, 1e-45, torch.inf]).repeat(weights[name].numel())
    weights[name] = odd[: weights[name].numel()].view_as(weights[name])
    save_checkpoint(dataclasses.replace(saved, weights=weights), tmp_path / f"odd{suffix}")
    found = load_checkpoint(tmp_path / f"odd{suffix}").weights[name]
    assert torch.equal(found.view(torch.int32), weights[name].view(torch.int32))


def test_five_classes_are_kept(tmp_path):
    save_checkpoint(make(dataclasses.replace(PRESETS["tiny"], num_classes=5)), tmp_path / "five.pt")
    assert load_checkpoint(tmp_path / "five.pt", preset="tiny").student.num_classes == 5


def test_a_run_s_folder_stands_for_its_checkpoint(tmp_path, saved):
    save_checkpoint(saved, tmp_path / "checkpoint.pt")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint.pt"
    assert load_checkpoint(str(tmp_path)).step == 17


def test_shipped_weights_are_found_by_name_and_an_unknown_name_lists_them(tmp_path, saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    with pytest.raises(InputError, match=r"nonsense.*none in this version"):
        load_checkpoint("nonsense")
    for name in ("small-3mm", "tiny-3mm"):
        save_checkpoint(saved, tmp_path / f"{name}.safetensors")
    assert load_checkpoint("tiny-3mm").step == 17
    with pytest.raises(InputError, match=r"nonsense.*\(small-3mm, tiny-3mm\)"):
        load_checkpoint("nonsense")


@pytest.fixture
def refined(saved, tmp_path, monkeypatch) -> Checkpoint:
    """Refinement networks behind the students of weights that ship as "lender"."""
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    save_checkpoint(saved, tmp_path / "shipped" / "lender.safetensors")
    torch.manual_seed(1)
    weights = SMML(SMALLEST, refine=True).state_dict() | saved.weights
    return dataclasses.replace(saved, weights=weights, training=None, refinement="tiny")


def test_students_that_ship_already_are_not_stored_again(tmp_path, refined):
    path = tmp_path / "shipped" / "borrower.safetensors"
    save_checkpoint(refined, path, students_of="lender")
    with safe_open(path, framework="pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"refinements"}  # noqa: SIM118 (not a dict)
    for name in ("borrower", path):
        loaded = load_checkpoint(name)
        assert_same_tensors(loaded.weights, refined.weights)
        assert loaded.facts() == refined.facts()
    save_checkpoint(loaded, tmp_path / "whole.safetensors")
    (tmp_path / "shipped" / "lender.safetensors").unlink()
    assert_same_tensors(load_checkpoint(tmp_path / "whole.safetensors").weights, refined.weights)


def test_students_that_are_others_by_now_or_gone_are_refused(tmp_path, refined):
    lender, path = tmp_path / "shipped" / "lender.safetensors", tmp_path / "borrower.safetensors"
    save_checkpoint(refined, path, students_of="lender")
    save_checkpoint(make(seed=1), lender)
    assert_refused(path, "was trained on other students than 'lender' has in this version")
    lender.unlink()
    assert_refused(path, "takes its students from 'lender', which does not ship")


@pytest.mark.parametrize(
    "lent", ["lender", 3, {}, {"weights": "lender"}, {"weights": "../shipped/lender"}, {"weights": 300 * "/x"}]
)
def test_a_file_that_says_nonsense_of_whose_students_it_takes_is_refused(tmp_path, refined, lent):
    if isinstance(lent, dict) and "/" in lent.get("weights", ""):
        lent = lent | {"fingerprint": checkpoint._fingerprint(checkpoint._students(refined.weights))}
    path = tmp_path / "edited.safetensors"
    own = {name: tensor for name, tensor in refined.weights.items() if name.startswith("refinements.")}
    save_file(own, path, metadata={"smml": json.dumps(refined.facts() | {"students_of": lent})})
    assert_refused(path, "students_of must name|which does not ship")


def test_only_what_can_borrow_the_same_students_is_saved_without_them(tmp_path, saved, refined, monkeypatch):
    path = tmp_path / "borrower.safetensors"
    for wrong, name, other in (
        (dataclasses.replace(refined, weights=refined.weights | make(seed=1).weights), path, "other students"),
        (saved, path, "a model with refinement"),
        (refined, path.with_suffix(".pt"), "the name of a .safetensors file"),
    ):
        with pytest.raises(InputError, match=other):
            save_checkpoint(wrong, name, students_of="lender")
    assert not path.exists()
    with pytest.raises(InputError, match="does not ship"):
        save_checkpoint(refined, path, students_of="nobody")
    monkeypatch.chdir(tmp_path / "shipped")
    for itself in (tmp_path / "shipped" / "lender.safetensors", "lender.safetensors"):
        with pytest.raises(InputError, match="does not ship"):
            save_checkpoint(refined, itself, students_of="lender")


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("place", ["weights", "config", "training", "everything", "plain pickle", "inside old format"])
def test_pickled_code_is_refused_and_never_runs(tmp_path, saved, place):
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    evil = Malicious(marker)
    content = {**saved.facts(), "weights": saved.weights, "training": None}
    if place == "plain pickle":
        path.write_bytes(pickle.dumps(content | {"config": evil}))
    elif place == "everything":
        torch.save(evil, path)
    elif place == "inside old format":
        torch.save(content | {"config": evil}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(content | {place: evil}, path)
    assert_refused(path, "refused, because it holds pickled code")
    assert not marker.exists()
    torch.load(path, weights_only=False) if place != "plain pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the file was dangerous indeed


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=repr)
def test_too_little_memory_for_a_checkpoint_is_no_damage(whole, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("smml.tensors.torch.load", fails)
    monkeypatch.setattr("smml.tensors.safe_open", fails)
    assert_refused(whole, "too little memory; close other programs")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(tmp_path, whole, share):
    content = whole.read_bytes()
    path = tmp_path / f"cut{whole.suffix}"
    path.write_bytes(content[: min(len(content) - 1, round(share * len(content)))])
    assert_refused(path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_file_is_refused_or_loads_but_never_ends_in_a_traceback(tmp_path, whole, data):
    content = bytearray(whole.read_bytes())
    # The first part holds the structure, the rest mostly numbers.
    places = st.one_of(st.integers(0, 20_000), st.integers(0, len(content) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged{whole.suffix}"
    path.write_bytes(content)
    try:
        load_checkpoint(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 (both outcomes are right)


@pytest.mark.parametrize(
    ("name", "text"),
    [("notes.pt", "just a text file\n"), ("notes.safetensors", "just a text file\n"), ("table.pt", "step,total\n0,1")],
)
def test_a_text_file_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert_refused(tmp_path / name)


OTHER = {"conv.weight": torch.zeros(3, 3)}


@pytest.mark.parametrize(
    "content",
    [
        OTHER,
        {"state_dict": OTHER, "epoch": 3},
        {"weights": OTHER},
        {"weights": OTHER, "format": "another-project-1"},
        [torch.zeros(2)],
        torch.zeros(2),
    ],
    ids=["state dict", "lightning", "weights alone", "another format", "list", "tensor"],
)
def test_a_file_of_another_project_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    assert_refused(tmp_path / "other.pt", "not a checkpoint")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"smml": "{}"}, {"smml": "[]"}, {"smml": "no json"}])
def test_weights_of_another_project_are_refused(tmp_path, metadata):
    save_file(OTHER, tmp_path / "other.safetensors", metadata=metadata)
    assert_refused(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"student": None},
        {"student": {"widths": [2, 2]}},
        {"student": SMALLEST.to_dict() | {"colour": "red"}},
        {"student": SMALLEST.to_dict() | {"heads": 3}},
        {"student": SMALLEST.to_dict() | {"widths": "wide"}},
        {"spacing": None},
        {"spacing": [3.0, "x", 3.0]},
        {"patch": "large"},
        {"step": None},
        {"config": 3},
        {"versions": None},
    ],
    ids=str,
)
@each_format
def test_an_incomplete_or_edited_checkpoint_is_refused(tmp_path, saved, suffix, change):
    facts = {**saved.facts(), **change}
    path = tmp_path / f"edited{suffix}"
    if suffix == ".pt":
        torch.save({**facts, "weights": saved.weights, "training": None}, path)
    else:
        save_file(saved.weights, path, metadata={"smml": json.dumps(facts)})
    assert_refused(path)


# What a damaged or forged file may hold in place of a value.
ODD_NUMBERS = [-1, 0, 1, 2, 3, 4, 5, 7, 16, 48, 1000, 10**9, 2**63, 10**400]
ODD_NUMBERS += [-0.5, 0.5, 1.0, 2.0, 1e9, math.nan, math.inf, -math.inf]
ODD = st.one_of(
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from([None, True, False, "", "tiny", [], {}, {"a": 1}]),
    st.lists(st.sampled_from([*ODD_NUMBERS, None, True, "2"]), max_size=6),
)
STUDENT_FIELDS = [field.name for field in dataclasses.fields(StudentConfig)]
FACTS = ["format", "student", "spacing", "patch", "step", "config", "versions", "refinement", "training", "ema"]


def write_with_facts(path: Path, facts: dict, weights: dict) -> None:
    if path.suffix == ".pt":
        torch.save({**facts, "weights": weights}, path)
    else:
        save_file(weights, path, metadata={"smml": json.dumps(facts)})


@each_format
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.dictionaries(st.sampled_from(STUDENT_FIELDS), ODD, max_size=3),
    changes=st.dictionaries(st.sampled_from(FACTS), ODD, max_size=2),
)
def test_any_value_of_any_fact_is_refused_or_loads_but_never_ends_in_a_traceback(
    tmp_path, saved, suffix, sizes, changes
):
    """What loads can predict: the network is built from it, and a predictor from that."""
    facts = {**saved.facts(), "student": SMALLEST.to_dict() | sizes, **changes}
    path = tmp_path / f"edited{suffix}"
    write_with_facts(path, facts, saved.weights)
    try:
        loaded = load_checkpoint(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 (both outcomes are right)
        return
    assert loaded.build().config == loaded.student
    Predictor.from_checkpoint(path, refine=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dropout": 2.0}, "dropout must be a number of at least 0 and below 1, found 2.0"),
        ({"dropout": math.nan}, "dropout must be .* found nan"),
        ({"dropout": -0.1}, "dropout must be"),
        ({"widths": (2, 2, 2, 2)}, "five widths"),
        ({"widths": (2, 2, 2, 2, 0)}, "widths must lie between 1 and"),
        ({"widths": (10**9,) * 5}, "widths must lie between 1 and"),
        ({"widths": (True,) * 5}, "widths must lie between 1 and"),
        ({"token_width": 6, "heads": 4}, "heads must divide token_width, found 4 and 6"),
        ({"heads": 0}, "heads must lie between 1"),
        ({"mlp_width": math.inf}, "mlp_width must lie between 1"),
        ({"depth": 10**9}, "depth must lie between 1"),
        ({"token_grid": 10**9}, "token_grid must lie between 1"),
        ({"num_classes": 3}, "num_classes must be 4, or 5"),
        ({"num_classes": 6}, "num_classes must lie"),
        ({"num_modalities": -1}, "num_modalities must lie"),
        ({"refinement_widths": (8,)}, "refinement_widths must be two to four"),
        ({"refinement_widths": (8, 2.0)}, "refinement_widths must lie"),
    ],
    ids=str,
)
def test_a_size_out_of_its_range_is_refused_by_name(change, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(SMALLEST, **change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spacing": [3.0, 3.0]}, "spacing must be three edges"),
        ({"spacing": [3.0, math.nan, 3.0]}, "spacing must be three edges"),
        ({"spacing": [0.0, 3.0, 3.0]}, "spacing must be three edges"),
        ({"spacing": [3.0, 3.0, 1e9]}, "spacing must be three edges"),
        ({"patch": 40}, "patch must be a whole number from 32 to 1024, divisible by 16, found 40"),
        ({"patch": 10**9}, "patch must be"),
        ({"patch": 48.0}, "patch must be"),
        ({"window": 40}, "window must be a whole number from 32 to 1024, divisible by 16, found 40"),
        ({"window": True}, "window must be"),
        ({"step": -1}, "step must be"),
        ({"step": math.inf}, "step must be"),
        ({"temperatures": [1.0, 1.0, 1.0]}, "temperatures must be 4 numbers from 0.1 to 10, one for each number of"),
        ({"temperatures": [1.0, 1.0, 1.0, 0.0]}, "temperatures must be"),
        ({"temperatures": [math.nan] * 4}, "temperatures must be"),
        ({"temperatures": 1.5}, "temperatures must be"),
        ({"prevalence": {"WT": 0.1, "TC": 0.1}}, "prevalence must be a share in .* for each of WT, TC, ET"),
        ({"prevalence": {"WT": 0.1, "TC": 0.1, "ET": 1.5}}, "prevalence must be"),
        ({"intervals": {"cases": 40}}, "intervals must be what `smml intervals` writes"),
        ({"intervals": INTERVALS.to_dict() | {"levels": [0.5]}}, "intervals must be"),
        ({"intervals": INTERVALS.to_dict() | {"reach": {"flair": {"WT": [[-1, 1], [1, 1]]}}}}, "intervals must be"),
        ({"gains": {"cases": 40, "gains": {"flair": {}}}}, "gains must be what `smml intervals` writes"),
        ({"gains": [1, 2]}, "gains must be"),
    ],
    ids=str,
)
@each_format
def test_a_fact_out_of_its_range_is_refused_with_file_and_value(tmp_path, saved, suffix, change, said):
    path = tmp_path / f"edited{suffix}"
    write_with_facts(path, {**saved.facts(), **change}, saved.weights)
    assert_refused(path, said)


@pytest.mark.parametrize("weights", [None, [], torch.zeros(1), {"a": 1}, {}], ids=str)
def test_weights_that_are_no_tensors_are_refused(tmp_path, saved, weights):
    torch.save({**saved.facts(), "weights": weights, "training": None}, tmp_path / "odd.pt")
    assert_refused(tmp_path / "odd.pt")


@each_format
def test_weights_that_do_not_match_their_configuration_are_refused_and_one_is_named(tmp_path, saved, suffix):
    path = tmp_path / f"odd{suffix}"
    save_checkpoint(dataclasses.replace(saved, student=dataclasses.replace(SMALLEST, mlp_width=8)), path)
    assert_refused(path, r"weights do not fit .*for example branches\.0")
    lacking = dict(list(saved.weights.items())[1:])
    save_checkpoint(dataclasses.replace(saved, weights=lacking), path)
    assert_refused(path, "1 weights do not fit")


def test_another_preset_is_refused_and_both_are_named(tmp_path):
    save_checkpoint(make(PRESETS["tiny"]), tmp_path / "tiny.safetensors")
    assert load_checkpoint(tmp_path / "tiny.safetensors", preset="tiny").student == PRESETS["tiny"]
    assert_refused(tmp_path / "tiny.safetensors", "preset 'tiny', expected 'small'", preset="small")


def test_a_preset_that_does_not_exist_is_refused(whole):
    with pytest.raises(InputError, match="tiny, tiny-wide, small, paper"):
        load_checkpoint(whole, preset="huge")


@each_format
def test_a_missing_file_or_an_empty_folder_is_refused(tmp_path, suffix):
    assert_refused(tmp_path / f"nothing{suffix}", "no such checkpoint")
    assert_refused(tmp_path, "no such checkpoint")


def test_the_format_says_its_version():
    assert FORMAT == "smml-checkpoint-1"


@pytest.mark.skipif(os.name != "posix", reason="limits of the process")
@each_format
def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path, saved, suffix):
    """The system itself refuses more bytes here, and the libraries report that in ways of their own."""
    import resource

    path = tmp_path / f"checkpoint{suffix}"
    save_checkpoint(saved, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(InputError, match="writing failed") as error:
            save_checkpoint(dataclasses.replace(saved, step=18), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    assert load_checkpoint(path).step == 17


@pytest.mark.parametrize(
    ("writer", "name", "error"),
    [
        (
            "torch.save",
            "run.pt",
            RuntimeError("[enforce fail at inline_container.cc:6] . unexpected pos 61760 vs 617"),
        ),
        (
            "smml.models.checkpoint.save_file",
            "w.safetensors",
            SafetensorError('I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }'),
        ),
    ],
)
def test_a_full_disk_is_called_that_whatever_the_library_says(tmp_path, monkeypatch, writer, name, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(writer, fails)
    model = SMML("tiny")
    with pytest.raises(InputError, match=rf"{name}: writing failed \(No space left on device\); free some space"):
        save_checkpoint(Checkpoint(model.config, model.state_dict(), (3.0, 3.0, 3.0), patch=32), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interruption_leaves_the_old_checkpoint(tmp_path, saved, monkeypatch, error):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(saved, path)

    def interrupted(content, target):
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises((InputError, KeyboardInterrupt)):
        save_checkpoint(dataclasses.replace(saved, step=18), path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    assert load_checkpoint(path).step == 17


@each_format
def test_weights_in_another_memory_order_are_saved_alike(tmp_path, saved, suffix):
    weights = {n: t.clone().mT.contiguous().mT if t.ndim > 1 else t for n, t in saved.weights.items()}
    save_checkpoint(dataclasses.replace(saved, weights=weights), tmp_path / f"view{suffix}")
    assert_same_tensors(load_checkpoint(tmp_path / f"view{suffix}").weights, saved.weights)
