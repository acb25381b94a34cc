"""The refinement network: it starts as the student, cannot see a truth, and reads nothing of a missing modality."""

import inspect
import json

import pytest
import torch

from smml.data.labels import scheme_for_classes
from smml.errors import InputError
from smml.modalities import SUBSETS, subset_mask, subset_name
from smml.models.presets import PRESETS, StudentConfig
from smml.models.refinement import PriorGate, RefinementNetwork, RefinementOutput, UNet

WIDTHS = (4, 6, 8)
SIZE = (16, 24, 16)
ALL = torch.ones(2, 4, dtype=torch.bool)


def inputs(batch=2, classes=4, size=SIZE, seed=0):
    """Logits [B, K, ...] and priors [B, 4, 3, ...]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, *size, generator=generator)
    return logits, torch.rand(batch, 4, 3, *size, generator=generator)


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return RefinementNetwork(widths=WIDTHS)


@pytest.fixture(scope="module")
def network():
    """A network that corrects something: as if it had been trained."""
    torch.manual_seed(0)
    network = RefinementNetwork(widths=WIDTHS)
    torch.nn.init.normal_(network.head.weight)
    return network


def same(first: RefinementOutput, second: RefinementOutput) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("logits", "gate", "prior"))


# ------------------------------------------------------------------------------------------------------- start, shape


@pytest.mark.parametrize("classes", [4, 5])
@pytest.mark.parametrize("training", [False, True])
def test_an_untrained_refinement_is_the_student_to_the_bit(classes, training):
    torch.manual_seed(1)
    network = RefinementNetwork(classes, widths=WIDTHS).train(training)
    logits, priors = inputs(classes=classes)
    assert torch.equal(network(logits, priors, ALL).logits, logits)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(16, 16, 16), (24, 16, 40)])
def test_every_preset_takes_any_patch_of_at_least_16_that_8_divides(name, size):
    network = RefinementNetwork(widths=PRESETS[name].refinement_widths).eval()
    logits, priors = inputs(1, size=size)
    with torch.no_grad():
        output = network(logits, priors, ALL[:1])
    assert output.logits.shape == logits.shape
    assert output.gate.shape == priors.shape
    assert output.prior.shape == (1, 3, *size)


def test_the_paper_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = RefinementNetwork(widths=PRESETS["paper"].refinement_widths)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2.7e6, rel=0.02)


def test_half_precision_logits_are_refined_in_float32(untrained):
    logits, priors = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        output = untrained(logits.bfloat16(), priors.bfloat16(), ALL)
    assert output.logits.dtype == torch.float32
    assert torch.equal(output.logits, logits.bfloat16().float())
    assert bool(output.gate.isfinite().all())


def test_the_outputs_are_frozen(untrained):
    output = untrained(*inputs(), ALL)
    with pytest.raises(AttributeError):
        output.logits = None


# ------------------------------------------------------------------------------------------------ no truth, no missing


@pytest.mark.parametrize("part", [RefinementNetwork, PriorGate, UNet])
def test_there_is_no_way_to_hand_a_truth_in(part):
    expected = {
        RefinementNetwork: ["self", "logits", "priors", "mask"],
        PriorGate: ["self", "region", "entropy", "priors", "mask"],
        UNet: ["self", "x"],
    }
    assert list(inspect.signature(part.forward).parameters) == expected[part]


@pytest.mark.parametrize("subset", SUBSETS, ids=subset_name)
def test_priors_of_missing_modalities_change_no_bit(network, subset):
    logits, priors = inputs()
    mask = torch.stack([subset_mask(subset), subset_mask("t1+t2")])
    absent = ~mask[:, :, None, None, None, None]
    clean = network(logits, priors, mask)
    for value in (torch.nan, torch.inf, 0.0, 1e30):
        assert same(clean, network(logits, torch.where(absent, torch.tensor(value), priors), mask))
    assert bool((clean.gate[~mask] == 0).all())
    assert bool(clean.logits.isfinite().all())


def test_priors_of_present_modalities_do_matter(network):
    logits, priors = inputs()
    for m in range(4):
        other = priors.clone()
        other[:, m] = 1 - other[:, m]
        assert not torch.equal(network(logits, priors, ALL).logits, network(logits, other, ALL).logits)


def test_no_prior_at_all_is_fine(network):
    logits, priors = inputs()
    output = network(logits, torch.zeros_like(priors), ALL)
    assert bool(output.logits.isfinite().all())
    assert bool((output.prior == 0).all())


def test_samples_do_not_see_each_other(network):
    logits, priors = inputs()
    together = network(logits, priors, ALL)
    alone = network(logits[1:], priors[1:], ALL[1:])
    assert torch.allclose(together.logits[1:], alone.logits, atol=1e-4)
    assert torch.allclose(together.gate[1:], alone.gate, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- gate


def test_the_gate_lies_between_0_and_1_whatever_its_weights(network):
    logits, priors = inputs()
    torch.manual_seed(3)
    wild = RefinementNetwork(widths=WIDTHS)
    for parameter in wild.gate.parameters():
        torch.nn.init.normal_(parameter, std=50)
    for some in (network, wild):
        with torch.no_grad():
            output = some(logits, priors, ALL)
        assert 0 <= float(output.gate.min()) <= float(output.gate.max()) <= 1
        assert 0 <= float(output.prior.min()) <= float(output.prior.max()) <= 1
    assert float(output.gate.max()) > 0.9 > 0.1 > float(output.gate.min())


def test_the_gate_depends_on_the_prediction_and_on_its_own_prior_alone(network):
    logits, priors = inputs()
    gate = network(logits, priors, ALL).gate
    assert not torch.equal(gate, network(logits.flip(0), priors, ALL).gate)
    other = priors.clone()
    other[:, 2, 1] = 0
    changed = (network(logits, other, ALL).gate != gate).flatten(3).any(dim=3)
    assert changed.all(dim=0).nonzero().tolist() == [[2, 1]]
    assert not bool(changed.any(dim=0).flatten()[[i for i in range(12) if i != 7]].any())


def test_the_gate_gets_the_evidence_in_the_order_it_documents():
    gate = PriorGate(2, 1)
    seen = []
    gate.enter.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    region = torch.full((1, 1, 4, 4, 4), 0.25)
    entropy = torch.full((1, 1, 4, 4, 4), 0.5)
    priors = torch.stack([torch.full((1, 1, 4, 4, 4), 0.75), torch.zeros(1, 1, 4, 4, 4)], dim=1)
    gate(region, entropy, priors, torch.ones(1, 2, dtype=torch.bool))
    rows = seen[0][0, :, 0, 0, 0].tolist()
    assert rows[:5] == pytest.approx([0.25, 0.75, 0.5, 0.5, 2 * 0.25 * 0.75])
    assert rows[5:] == pytest.approx([0.25, 0.0, 0.75, 0.5, 0.0])


@pytest.mark.parametrize("classes", [4, 5])
def test_the_regions_are_those_of_the_labels(classes):
    network = RefinementNetwork(classes, widths=WIDTHS)
    labels = torch.arange(classes)
    for r, region in enumerate(network.regions):
        assert network.members[r].bool().tolist() == scheme_for_classes(classes).region(labels, region).tolist()


# ---------------------------------------------------------------------------------------------------------- gradients


def test_the_student_gets_no_gradient_and_the_refinement_does(network):
    logits, priors = inputs()
    logits.requires_grad_()
    priors.requires_grad_()
    network.zero_grad()
    network(logits, priors, ALL).logits.square().mean().backward()
    assert logits.grad is None
    assert priors.grad is None
    without = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    # A normalisation follows these convolutions, and it takes a constant away again.
    assert all(name.endswith("conv.bias") or name == "trunk.downs.0.bias" for name in without), without
    network.zero_grad()


def test_an_untrained_head_learns_from_the_first_step(untrained):
    logits, priors = inputs()
    untrained(logits, priors, ALL).logits.square().mean().backward()
    assert float(untrained.head.weight.grad.abs().max()) > 0
    untrained.zero_grad()


def test_nan_in_a_missing_prior_poisons_no_gradient(network):
    logits, priors = inputs()
    priors[:, 1] = torch.nan
    mask = ALL.clone()
    mask[:, 1] = False
    network.zero_grad()
    network(logits, priors, mask).logits.square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())
    network.zero_grad()


def test_it_learns_to_trust_the_modality_that_tells_the_truth():
    """The student is blind, one modality's SAM map is right and the others are noise: the refinement finds out."""
    torch.manual_seed(0)
    network = RefinementNetwork(widths=WIDTHS)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    grid = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    losses = []
    for _ in range(25):
        centre = torch.randint(5, 11, (3, 1, 1, 1)).float()
        tumour = ((grid - centre).square().sum(dim=0) < 16).float()
        priors = torch.rand(1, 4, 3, 16, 16, 16)
        priors[0, 1] = tumour
        refined = network(torch.zeros(1, 4, 16, 16, 16), priors, ALL[:1]).logits
        losses.append(torch.nn.functional.cross_entropy(refined, (2 * tumour[None]).long()))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1].item() < 0.3 * losses[0].item()


# ------------------------------------------------------------------------------------------- configuration, errors


def test_a_configuration_without_refinement_widths_gets_those_of_its_preset():
    for config in PRESETS.values():
        old = {name: value for name, value in config.to_dict().items() if name != "refinement_widths"}
        assert StudentConfig.from_dict(old) == config
        assert StudentConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert StudentConfig((2, 2, 2, 2, 2), 4, 1, 4).refinement_widths == (8, 16, 24)


@pytest.mark.parametrize("widths", [(8,), (8, 0), (8, 8, 8, 8, 8), (8, 1.5)])
def test_unusable_refinement_widths_are_refused(widths):
    with pytest.raises(InputError, match="refinement_widths"):
        StudentConfig((2, 2, 2, 2, 2), 4, 1, 4, refinement_widths=widths)


@pytest.mark.parametrize("edge", [8, 20])
def test_an_edge_that_does_not_fit_is_named(network, edge):
    logits, priors = inputs(size=(16, 16, edge))
    with pytest.raises(InputError, match=rf"divisible by 4, found \[16, 16, {edge}\]" if edge == 8 else None) as error:
        RefinementNetwork(widths=(4, 4, 4) if edge == 8 else (4, 4, 4, 4))(logits, priors, ALL)
    assert str(edge) in str(error.value)


def test_shapes_that_do_not_fit_are_named(network):
    logits, priors = inputs()
    for bad, match in (
        ((logits[:, :3], priors, ALL), "logits must be"),
        ((logits, priors[:, :3], ALL), "priors must be"),
        ((logits, priors[:, :, :2], ALL), "WT, TC, ET"),
        ((logits, priors, ALL.float()), "mask must be bool"),
        ((logits, priors, ALL[:1]), "mask must be bool"),
    ):
        with pytest.raises(InputError, match=match):
            network(*bad)
    with pytest.raises(InputError, match="regions"):
        RefinementNetwork(regions=("WT", "oedema"))
    with pytest.raises(InputError, match="num_classes"):
        RefinementNetwork(3)
