"""The student's outputs, heads and sizes, and what it refuses."""

import dataclasses

import pytest
import torch

from smml.errors import InputError
from smml.losses import segmentation_loss
from smml.models import PRESETS, SMML, Student, StudentConfig, preset

EDGE = 32
CLASSES = 4
# Published: 39.4 M parameters a branch, of which 36.7 M are the student and 2.7 M the refinement (docs/METHOD.md).
PUBLISHED_STUDENT = 36.7e6


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return Student("tiny")


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 4, EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(1))


MASK = torch.tensor([[True, False, True, False], [False, True, True, True]])


@pytest.fixture(scope="module")
def trained(student, image):
    """Output in training mode."""
    with torch.no_grad():
        return student.train()(image, MASK)


def test_outputs_have_the_documented_shapes(trained):
    full = (2, CLASSES, EDGE, EDGE, EDGE)
    assert trained.logits.shape == full
    assert [head.shape for head in trained.separate] == [full] * 4
    assert [head.shape for head in trained.deep] == [full] * 4
    assert trained.bottleneck.shape == (2, 4 * PRESETS["tiny"].widths[-1], 2, 2, 2)
    assert {trained.logits.dtype, trained.bottleneck.dtype} == {torch.float32}


def test_a_branch_has_ten_supervised_heads_less_the_refined_one(trained):
    """docs/METHOD.md: 1 fused + 4 sep + 4 prm + 1 refined; this version has no refinement network."""
    assert 1 + len(trained.separate) + len(trained.deep) == 10 - 1


def test_deep_heads_are_probabilities_and_the_others_are_logits(trained):
    for head in trained.deep:
        assert bool((head >= 0).all())
        torch.testing.assert_close(head.sum(dim=1), torch.ones(2, EDGE, EDGE, EDGE), atol=1e-5, rtol=0)
    for head in (trained.logits, *trained.separate):
        assert bool((head < 0).any())


def test_deep_heads_go_from_fine_to_coarse(trained):
    """Level 2 is upsampled by 2, level 5 by 16: the coarser, the smoother from voxel to voxel."""
    roughness = [float(head.diff(n=2, dim=-1).abs().mean() / head.std()) for head in trained.deep]
    assert roughness == sorted(roughness, reverse=True)


def test_inference_returns_nothing_but_logits_and_bottleneck(student, image):
    with torch.no_grad():
        output = student.eval()(image, MASK)
    assert output.separate == ()
    assert output.deep == ()
    assert output.logits.shape == (2, CLASSES, EDGE, EDGE, EDGE)


def test_training_and_inference_agree_on_the_fused_segmentation(student, image, trained):
    with torch.no_grad():
        output = student.eval()(image, MASK)
    torch.testing.assert_close(output.logits, trained.logits, atol=1e-3, rtol=1e-3)


def test_outputs_are_frozen(trained):
    with pytest.raises(dataclasses.FrozenInstanceError):
        trained.logits = None


def test_heads_of_modalities_that_a_case_lacks_are_zero_rows_or_none(student, image):
    available = torch.tensor([[True, False, True, False], [False, False, True, True]])
    mask = torch.tensor([[True, False, False, False], [False, False, True, True]])
    with torch.no_grad():
        output = student.train()(image, mask, available)
    assert output.separate[1] is None  # nobody has T1ce
    for m in (0, 2, 3):
        for row in range(2):
            assert bool(output.separate[m][row].any()) == bool(available[row, m])


def test_an_output_says_which_samples_each_separate_head_saw(image):
    available = torch.tensor([[True, False, True, True], [True, True, True, True]])
    mask = torch.tensor([[True, False, False, False], [False, False, True, True]])
    with torch.no_grad():
        for heads, seen in (("available", available), ("masked", mask)):
            student = Student("tiny", separate_heads=heads)
            output = student.train()(image, mask, available)
            assert torch.equal(output.seen, seen)
            assert [head is not None for head in output.separate] == seen.any(dim=0).tolist()
            assert not bool(student.eval()(image, mask).seen.any()), "no head sees anything at inference"


def test_separate_heads_see_each_modality_alone(student, image):
    with torch.no_grad():
        before = student.train()(image, MASK).separate
        changed = image.clone()
        changed[:, 2] = torch.randn_like(changed[:, 2])
        after = student(changed, MASK).separate
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_every_parameter_learns(student, image):
    student.train().zero_grad()
    target = torch.randint(0, CLASSES, (2, EDGE, EDGE, EDGE), generator=torch.Generator().manual_seed(2))
    segmentation_loss(student(image, torch.ones_like(MASK)), target, min_class_weight=0.05).total.backward()
    idle = [name for name, p in student.named_parameters() if p.grad is None or not bool(p.grad.any())]
    student.zero_grad()
    assert idle == []


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 4, 40, 40, 40), "divisible by 16"),
        ((1, 4, 32, 32, 16), "at least 32"),
        ((1, 3, 32, 32, 32), r"\[B, 4, X, Y, Z\]"),
        ((1, 5, 32, 32, 32), r"\[B, 4, X, Y, Z\]"),
        ((4, 32, 32, 32), r"\[B, 4, X, Y, Z\]"),
    ],
)
def test_an_unusable_shape_is_refused_with_what_is_wanted_and_what_was_found(student, shape, said):
    with pytest.raises(InputError, match=said) as error:
        student(torch.zeros(shape), torch.ones(1, 4, dtype=torch.bool))
    assert str(list(shape)) in str(error.value) or str(list(shape[2:])) in str(error.value)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(1, 4), torch.ones(1, 4, dtype=torch.uint8), torch.ones(4, dtype=torch.bool), torch.ones(2, 4) > 0],
    ids=["float", "uint8", "no batch", "another batch"],
)
def test_a_mask_of_another_type_or_shape_is_refused(student, mask):
    with pytest.raises(InputError, match=r"mask must be bool \[1, 4\]"):
        student(torch.zeros(1, 4, EDGE, EDGE, EDGE), mask)


def test_a_sample_without_any_modality_is_refused(student, image):
    mask = MASK.clone()
    mask[1] = False
    with pytest.raises(InputError, match="row of the mask is empty"):
        student(image, mask)


@pytest.mark.parametrize("shape", [(1, 4), (3, 1, 4), (1, 1, 4)])
def test_the_two_branches_want_two_masks(shape):
    with pytest.raises(InputError, match=r"\[2, B, M\]"):
        SMML("tiny")(torch.zeros(1, 4, EDGE, EDGE, EDGE), torch.ones(shape, dtype=torch.bool))


def test_an_unknown_choice_of_separate_heads_is_refused():
    with pytest.raises(InputError, match="'available' or 'masked'"):
        Student("tiny", separate_heads="all")


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(InputError, match="tiny, tiny-wide, small, paper"):
        preset("huge")


@pytest.mark.parametrize("classes", [4, 5])
def test_five_classes_for_brats_2015(classes):
    torch.manual_seed(0)
    model = SMML("tiny", num_classes=classes).train()
    assert model.config.num_classes == classes
    with torch.no_grad():
        output = model(torch.randn(1, 4, EDGE, EDGE, EDGE), torch.ones(2, 1, 4, dtype=torch.bool))
    for branch in output.branches:
        assert {head.shape[1] for head in (branch.logits, *branch.separate, *branch.deep)} == {classes}
    assert output.refined is None


def test_the_two_students_are_alike_in_form_and_different_in_weights():
    torch.manual_seed(0)
    model = SMML("tiny")
    first, second = (student.state_dict() for student in model.branches)
    assert {n: t.shape for n, t in first.items()} == {n: t.shape for n, t in second.items()}
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(first.values(), second.values(), strict=True))
    random = [name for name in first if "encoders" in name and name.endswith("weight")]
    assert not any(torch.equal(first[name], second[name]) for name in random)


def count(config: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Student(config).parameters())


def test_the_paper_preset_has_the_published_size():
    """37.97 M found, 36.7 M published: 3.5 % more, which position embeddings and biases may account for."""
    found = count("paper")
    assert abs(found / PUBLISHED_STUDENT - 1) < 0.05, f"{found / 1e6:.2f} M"
    assert found == 37_967_184  # any change of the architecture invalidates checkpoints


@pytest.mark.parametrize(("name", "size"), [("tiny", 1_046_896), ("small", 2_270_584)])
def test_the_sizes_of_the_small_presets_are_stable(name, size):
    assert count(name) == size


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_a_round_trip_through_plain_values(name):
    config = PRESETS[name]
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in config.to_dict().items()}
    assert StudentConfig.from_dict(plain) == config


def test_dropout_is_in_the_transformers_of_the_paper_preset_only():
    rates = {}
    for name, config in PRESETS.items():
        with torch.device("meta"):
            rates[name] = {module.p for module in Student(config).modules() if isinstance(module, torch.nn.Dropout)}
    assert {name for name, found in rates.items() if found != {0.0}} == {"paper"}
    assert rates["paper"] == {0.1}
