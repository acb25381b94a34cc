"""What a step minimises: the sum that docs/METHOD.md writes down, switched on in time, and teaching both branches."""

import copy
import dataclasses

import pytest
import torch

from smml.errors import InputError
from smml.losses import pixel_consistency, refinement_loss, segmentation_loss
from smml.modalities import subset_mask
from smml.models import SMML, StudentConfig
from smml.training import TrainingConfig
from smml.training.config import consistency_ramp, learning_rate
from smml.training.objective import TERMS, Objective, objective, term_weights
from smml_kernels import dice_ce_loss

EDGE = 32
AVAILABLE = torch.ones(2, 4, dtype=torch.bool)
MASKS = torch.stack(
    [
        torch.stack([subset_mask("flair+t1ce"), subset_mask("t1")]),
        torch.stack([subset_mask("t2"), subset_mask("flair+t1ce+t1+t2")]),
    ]
)
CONFIG = TrainingConfig(steps=100, consistency_start=0.1, consistency_ramp=0.2)
# The presets' architecture with few channels, where many steps are taken.
NARROW = StudentConfig((2, 2, 4, 4, 8), token_width=12, heads=3, mlp_width=24, token_grid=2)
LATE, EARLY = 99, 5  # steps with all terms on, and with L_pc off


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """An image in which the labels can be seen, and the labels."""
    random = torch.Generator().manual_seed(0)
    target = torch.zeros(2, EDGE, EDGE, EDGE, dtype=torch.uint8)
    target[0, 8:24, 8:24, 8:24], target[0, 12:20, 12:20, 12:20] = 2, 1
    target[1, 4:14, 10:26, 6:20], target[1, 6:10, 12:20, 8:16] = 2, 3
    gain = torch.tensor([[0.0, 1, 2, 3], [0, 1, 0.5, 3], [0, -1, -2, 0.5], [0, 2, 2, 1]])
    image = torch.stack([row[target.long()] for row in gain], dim=1)
    return image + 0.3 * torch.randn(image.shape, generator=random), target


@pytest.fixture(scope="module")
def model() -> SMML:
    torch.manual_seed(0)
    return SMML("tiny").train()


@pytest.fixture(scope="module")
def narrow() -> SMML:
    torch.manual_seed(0)
    return SMML(NARROW).train()


@pytest.fixture(scope="module")
def output(model, batch):
    with torch.no_grad():
        return model(batch[0], MASKS, AVAILABLE)


def evaluate(output, batch, step: int = LATE, **options) -> Objective:
    return objective(output, batch[1], dataclasses.replace(CONFIG, **options), step)


def weighted_sum(loss: Objective, ramp: float = 1.0, pixel: float = 1.0, feature: float = 1.0, classes: float = 1.0):
    """docs/METHOD.md, "Total", from the logged terms."""
    terms = {name: float(value) for name, value in loss.terms.items()}
    segmentation = sum(terms[f"{part}_{branch}"] for branch in (1, 2) for part in ("fuse", "separate", "deep"))
    teaching = terms["teach_12"] + terms["teach_21"]
    return segmentation + ramp * pixel * teaching + feature * (terms["relation"] + classes * terms["classes"])


def test_the_total_is_the_sum_of_its_terms(output, batch):
    loss = evaluate(output, batch)
    assert tuple(loss.terms) == TERMS
    # Those of the refinement are 0 where nothing was refined.
    assert all((float(value) > 0) is not name.startswith("refine") for name, value in loss.terms.items())
    assert all(not value.requires_grad for value in loss.terms.values())
    assert float(loss.total) == pytest.approx(weighted_sum(loss), rel=1e-5)


@pytest.mark.parametrize("step", [EARLY, 15, LATE])
def test_the_total_is_the_sum_of_the_terms_times_their_weights(output, batch, step):
    """Refined logits are made up: only the sum is looked at."""
    refined = dataclasses.replace(output, refined=tuple(branch.logits.flip(0) for branch in output.branches))
    options = {"pixel_weight": 0.3, "feature_weight": 0.7, "class_weight": 2.5, "refinement_weight": 0.9}
    loss = evaluate(refined, batch, step, **options)
    weights = term_weights(dataclasses.replace(CONFIG, **options), step)
    assert weights.keys() == loss.terms.keys()
    added = sum(weights[name] * float(value) for name, value in loss.terms.items())
    assert added == pytest.approx(float(loss.total), rel=1e-6)


@pytest.mark.parametrize("step", [EARLY, LATE])
def test_what_was_refined_adds_its_losses_and_the_ramp_scales_the_divergence_only(output, batch, step):
    refined = dataclasses.replace(output, refined=tuple(0.5 * branch.logits for branch in output.branches))
    plain, loss = evaluate(output, batch, step), evaluate(refined, batch, step, refinement_weight=0.25)
    terms = {name: float(value) for name, value in loss.terms.items()}
    assert min(terms[f"{part}_{branch}"] for part in ("refine", "refine_kl") for branch in (1, 2)) > 0
    divergence = consistency_ramp(CONFIG, step) * 0.25 * (terms["refine_kl_1"] + terms["refine_kl_2"])
    added = terms["refine_1"] + terms["refine_2"] + divergence
    assert float(loss.total) == pytest.approx(float(plain.total) + added, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"pixel_weight": 0.3}, {"pixel": 0.3}),
        ({"feature_weight": 2.5}, {"feature": 2.5}),
        ({"class_weight": 4.0}, {"classes": 4.0}),
        ({"pixel_weight": 2.0, "feature_weight": 0.5, "class_weight": 3.0}, {"pixel": 2, "feature": 0.5, "classes": 3}),
    ],
)
def test_weights_scale_their_terms_and_not_what_is_logged(output, batch, options, weights):
    plain, loss = evaluate(output, batch), evaluate(output, batch, **options)
    assert float(loss.total) == pytest.approx(weighted_sum(loss, **weights), rel=1e-5)
    assert {n: float(v) for n, v in loss.terms.items()} == pytest.approx({n: float(v) for n, v in plain.terms.items()})


def test_the_gates_have_class_weights_of_their_own(output, batch):
    logits = [branch.logits for branch in output.branches]
    found = []
    for weight in (0.05, 1.0):
        terms = evaluate(output, batch, gate_min_class_weight=weight).terms
        found.append([float(terms["teach_12"]), float(terms["teach_21"])])
        expected = pixel_consistency(*logits, batch[1], min_class_weight=weight)
        assert found[-1] == pytest.approx([float(value) for value in expected], rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=1e-2), "or this test could not tell them apart"


def test_the_refinement_has_class_weights_of_its_own(output, batch):
    refined = tuple(branch.logits + 0.5 for branch in output.branches)
    output = dataclasses.replace(output, refined=(refined[0].flip(1), refined[1]))
    found = []
    for weight in (0.05, 1.0):
        terms = evaluate(output, batch, refinement="tiny", refinement_min_class_weight=weight).terms
        found.append([float(terms["refine_1"]), float(terms["refine_2"])])
        expected = [dice_ce_loss(logits, batch[1], min_class_weight=weight) for logits in output.refined]
        assert found[-1] == pytest.approx([float(value) for value in expected], rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=1e-2), "or this test could not tell them apart"


def test_a_loss_without_options_is_the_one_of_the_training(output, batch):
    output = dataclasses.replace(output, refined=tuple(branch.logits.flip(1) for branch in output.branches))
    terms = evaluate(output, batch, refinement="tiny").terms
    (first, second), target = output.branches, batch[1]
    teaching = pixel_consistency(first.logits, second.logits, target)
    assert [float(terms["teach_12"]), float(terms["teach_21"])] == [float(value) for value in teaching]
    assert float(terms["fuse_1"]) == float(segmentation_loss(first, target).fuse)
    assert float(terms["refine_1"]) == float(refinement_loss(output.refined[0], first.logits, target).segmentation)


@pytest.mark.parametrize("option", ["min_class_weight", "gate_min_class_weight", "refinement_min_class_weight"])
def test_a_class_weight_is_a_share(option):
    with pytest.raises(InputError, match=f"{option} must lie between 0 and 1"):
        TrainingConfig(**{option: 1.5})


def test_the_ramp_scales_the_pixel_level_only(output, batch):
    step = 20  # half-way up
    loss = evaluate(output, batch, step)
    assert consistency_ramp(CONFIG, step) == pytest.approx(0.5)
    assert float(loss.total) == pytest.approx(weighted_sum(loss, ramp=0.5), rel=1e-5)


def test_before_its_start_the_pixel_level_is_off(output, batch):
    loss = evaluate(output, batch, EARLY)
    assert float(loss.terms["teach_12"]) == float(loss.terms["teach_21"]) == 0
    assert float(loss.terms["relation"]) > 0
    assert float(loss.total) == pytest.approx(weighted_sum(loss), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "off"),
    [({"pixel_weight": 0}, ("teach_12", "teach_21")), ({"feature_weight": 0}, ("relation", "classes"))],
)
def test_a_weight_of_0_switches_its_terms_off(output, batch, options, off):
    loss = evaluate(output, batch, **options)
    assert [name for name, value in loss.terms.items() if float(value) == 0 and "refine" not in name] == list(off)


def test_the_ramp_is_0_then_linear_then_1():
    ramp = [consistency_ramp(CONFIG, step) for step in range(100)]
    assert ramp[:10] == [0.0] * 10
    assert ramp[10:31] == pytest.approx([i / 20 for i in range(21)])
    assert ramp[30:] == pytest.approx([1.0] * 70)


def test_a_ramp_of_no_length_is_a_switch():
    config = dataclasses.replace(CONFIG, consistency_ramp=0.0)
    assert [consistency_ramp(config, step) for step in (9, 10, 11)] == [0.0, 1.0, 1.0]
    always = dataclasses.replace(config, consistency_start=0.0)
    assert consistency_ramp(always, 0) == 1.0


def test_the_learning_rate_decays_with_power_0_9():
    config = TrainingConfig(steps=10, learning_rate=2e-4)
    assert learning_rate(config, 0) == 2e-4
    assert learning_rate(config, 5) == pytest.approx(2e-4 * 0.5**0.9)
    assert 0 < learning_rate(config, 9) < learning_rate(config, 8)


def gradients(model: SMML, batch, masks: torch.Tensor = MASKS, **options) -> list[dict[str, torch.Tensor]]:
    """By branch, the gradient of each parameter that got one."""
    model.zero_grad()
    evaluate(model(batch[0], masks, AVAILABLE), batch, LATE, **options).total.backward()
    return [{name: p.grad for name, p in branch.named_parameters()} for branch in model.branches]


def test_one_backward_teaches_every_parameter_of_both_branches(model, batch):
    for branch in gradients(model, batch, torch.ones_like(MASKS)):
        idle = [name for name, gradient in branch.items() if gradient is None or not bool(gradient.any())]
        assert idle == []
        assert all(bool(gradient.isfinite().all()) for gradient in branch.values())


def test_a_branch_learns_nothing_of_what_it_did_not_see(narrow, batch):
    """Branch 1 never sees T2 here, branch 2 sees it; the sep heads, which see everything, are in neither's trunk."""
    first, second = gradients(narrow, batch)
    untouched = {name for name, gradient in first.items() if gradient is None or not bool(gradient.any())}
    assert {name for name in first if name.startswith("intra.3.")} <= untouched
    assert not any(name.startswith(("encoders.", "separate_decoder.")) for name in untouched)
    assert all(gradient is not None and bool(gradient.any()) for gradient in second.values())


def test_each_branch_teaches_the_other(narrow, batch):
    """With the constraints off, what the other branch thinks does not matter; with them on, it does."""
    alone = {"pixel_weight": 0, "feature_weight": 0}
    masks = torch.ones_like(MASKS)
    model, other = narrow, copy.deepcopy(narrow)
    with torch.no_grad():
        for p in other.branches[1].parameters():
            p.mul_(0.9)
    before, after = (gradients(network, batch, masks, **alone)[0] for network in (model, other))
    assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = (gradients(network, batch, masks)[0] for network in (model, other))
    for name in ("fusion_decoder.head.weight", "inter.decode.weight"):
        assert not torch.allclose(before[name], after[name], rtol=1e-3)


def test_separate_heads_masked_are_judged_on_what_the_branch_saw(batch):
    torch.manual_seed(0)
    model = SMML(NARROW, separate_heads="masked").train()
    with torch.no_grad():
        output = model(batch[0], MASKS, AVAILABLE)
        loss = evaluate(output, batch, separate_heads="masked")
        everything = MASKS.clone().fill_(True)
        full = evaluate(model(batch[0], everything, AVAILABLE), batch, separate_heads="masked")
    assert bool(loss.total.isfinite())
    # Branch 1 sees three of the eight pairs of sample and modality, in three heads; all four heads with everything.
    assert float(loss.terms["separate_1"]) < float(full.terms["separate_1"])
    assert float(loss.total) == pytest.approx(weighted_sum(loss), rel=1e-5)


def test_a_case_that_lacks_a_sequence_is_not_judged_by_it(narrow, batch):
    available = torch.tensor([[True, True, False, True], [True, True, False, True]])
    masks = torch.stack([torch.stack([subset_mask("flair")] * 2), torch.stack([subset_mask("t1ce+t2")] * 2)])
    with torch.no_grad():
        image = batch[0].clone()
        image[:, 2] = torch.nan
        loss = evaluate(narrow(image, masks, available), batch)
    assert all(bool(value.isfinite()) for value in loss.terms.values())


def test_a_few_steps_on_one_batch_lower_the_fused_loss_of_both_branches(batch):
    torch.manual_seed(0)
    model = SMML("tiny").train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3, amsgrad=True)
    history = []
    for step in range(6):
        loss = evaluate(model(batch[0], MASKS, AVAILABLE), batch, step, steps=6)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        history.append((float(loss.terms["fuse_1"]), float(loss.terms["fuse_2"])))
    for branch in (0, 1):
        assert history[-1][branch] < 0.9 * history[0][branch]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "huge"}, "tiny, tiny-wide, small, paper"),
        ({"steps": 0}, "steps must be positive"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"learning_rate": -1e-3}, "learning_rate must be positive"),
        ({"checkpoint_every": 0}, "checkpoint_every must be positive"),
        ({"patch": 40}, "divisible by 16"),
        ({"spacing": 0.0}, "between 0.2 and 10 mm"),
        ({"gate": "best"}, "lower_ce, correct, entropy, none"),
        ({"separate_heads": "none"}, "available, masked"),
    ],
)
def test_an_option_out_of_range_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        TrainingConfig(**options)


def test_a_configuration_survives_a_round_trip_and_unknown_options_are_named():
    config = TrainingConfig(preset="small", spacing=1.5, gate="entropy")
    assert TrainingConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match="unknown training option momentum"):
        TrainingConfig.from_dict(config.to_dict() | {"momentum": 0.9})
