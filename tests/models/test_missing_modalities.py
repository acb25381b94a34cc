"""Nothing of a missing modality reaches the network: not one bit of an output, no gradient, no wasted encoder."""

import pytest
import torch

from smml.errors import InputError
from smml.losses import segmentation_loss
from smml.modalities import SUBSETS, subset_mask, subset_name
from smml.models import SMML, Student, StudentConfig

EDGE = 32
# The architecture of the presets with few channels: these tests run it some two hundred times.
NARROW = StudentConfig((2, 2, 4, 4, 8), token_width=12, heads=3, mlp_width=24, token_grid=2)
MASKS = torch.stack([subset_mask(subset) for subset in SUBSETS])  # [15, M]
each_subset = pytest.mark.parametrize("subset", SUBSETS, ids=subset_name)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SMML(NARROW)


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 4, EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(1))


def poisoned(image: torch.Tensor, mask: torch.Tensor, value: float) -> torch.Tensor:
    """The image [B, M, ...] with ``value`` in every voxel of the modalities that the mask [B, M] leaves out."""
    return torch.where(mask[:, :, None, None, None], image, torch.tensor(value))


def run(model: SMML, image: torch.Tensor, mask: torch.Tensor, **options):
    """Both branches under the same mask [B, M]."""
    with torch.no_grad():
        return model(image, torch.stack([mask, mask]), **options).branches


def assert_same_bits(clean, dirty) -> None:
    for first, second in zip(clean, dirty, strict=True):
        assert torch.equal(first.logits, second.logits)
        assert torch.equal(first.bottleneck, second.bottleneck)
        assert len(first.deep) == len(second.deep)
        assert all(map(torch.equal, first.deep, second.deep))
        assert bool(second.logits.isfinite().all())


@each_subset
def test_nan_in_missing_modalities_changes_no_bit_at_inference(model, image, subset):
    model.eval()
    mask = subset_mask(subset)[None]
    assert_same_bits(run(model, image, mask), run(model, poisoned(image, mask, torch.nan), mask))


@each_subset
def test_nan_in_missing_modalities_changes_no_bit_of_fused_deep_and_bottleneck_in_training(model, image, subset):
    model.train()
    mask = subset_mask(subset)[None]
    clean, dirty = run(model, image, mask), run(model, poisoned(image, mask, torch.nan), mask)
    assert all(len(branch.deep) == 4 for branch in clean)
    assert_same_bits(clean, dirty)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_other_garbage_in_missing_modalities_changes_no_bit_either(model, image, value, training):
    model.train(training)
    mask = subset_mask("t1+t2")[None]
    assert_same_bits(run(model, image, mask), run(model, poisoned(image, mask, value), mask))


def test_each_branch_is_blind_to_what_only_the_other_may_see(model, image):
    model.train()
    masks = torch.stack([subset_mask("flair")[None], subset_mask("t1ce+t2")[None]])
    with torch.no_grad():
        clean = model(image, masks).branches
        for branch, mask in enumerate(masks):
            dirty = model(poisoned(image, mask, torch.nan), masks).branches
            assert_same_bits([clean[branch]], [dirty[branch]])
            assert bool(dirty[1 - branch].logits.isnan().any())  # the poison is real: the other one does read it


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_a_batch_in_which_each_sample_lacks_something_else_is_clean_too(model, training):
    model.train(training)
    image = torch.randn(5, 4, EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(2))
    mask = MASKS[[0, 3, 5, 11, 14]]
    assert_same_bits(run(model, image, mask), run(model, poisoned(image, mask, torch.nan), mask))


def test_a_sequence_that_the_case_lacks_is_not_read_in_training_either(model, image):
    model.train()
    available = subset_mask("flair+t1")[None]
    mask = subset_mask("t1")[None]
    clean = run(model, image, mask, available=available)
    dirty = run(model, poisoned(image, available, torch.nan), mask, available=available)
    assert_same_bits(clean, dirty)
    for first, second in zip(clean, dirty, strict=True):
        assert [head is None for head in second.separate] == [False, True, False, True]
        assert all(torch.equal(first.separate[m], second.separate[m]) for m in (0, 2))


@pytest.fixture(scope="module")
def masked_student():
    torch.manual_seed(0)
    return Student(NARROW, separate_heads="masked").train()


@pytest.mark.parametrize("subset", ["t2", "flair+t1ce", "t1ce+t1+t2"])
def test_separate_heads_masked_see_only_the_branch_s_own_modalities(masked_student, image, subset):
    mask = subset_mask(subset)[None]
    with torch.no_grad():
        clean, dirty = masked_student(image, mask), masked_student(poisoned(image, mask, torch.nan), mask)
    assert_same_bits([clean], [dirty])
    assert [head is not None for head in dirty.separate] == mask[0].tolist()
    assert all(torch.equal(a, b) for a, b in zip(clean.separate, dirty.separate, strict=True) if a is not None)


def test_nan_in_missing_modalities_leaves_every_gradient_finite(masked_student):
    image = torch.randn(2, 4, EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(3))
    mask = torch.stack([subset_mask("flair+t2"), subset_mask("t1ce")])
    target = torch.randint(0, 4, (2, EDGE, EDGE, EDGE), generator=torch.Generator().manual_seed(4))
    gradients = []
    for volume in (image, poisoned(image, mask, torch.nan)):
        masked_student.zero_grad()
        segmentation_loss(masked_student(volume, mask), target, min_class_weight=0.05).total.backward()
        gradients.append({name: p.grad for name, p in masked_student.named_parameters() if p.grad is not None})
    clean, dirty = gradients
    assert clean.keys() == dirty.keys()
    assert all(bool(gradient.isfinite().all()) for gradient in dirty.values())
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)


def count_encoder_calls(student: Student) -> tuple[list[list[int]], list]:
    """Per modality, the batch size of each call of its encoder; and the hooks, to be removed."""
    calls = [[] for _ in student.encoders]
    hooks = [
        encoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        for encoder, seen in zip(student.encoders, calls, strict=True)
    ]
    return calls, hooks


@each_subset
def test_the_encoder_of_a_missing_modality_is_not_called_at_inference(model, image, subset):
    model.eval()
    mask = subset_mask(subset)[None]
    counted = [count_encoder_calls(student) for student in model.branches]
    run(model, image, mask)
    for calls, hooks in counted:
        assert calls == [[1] if flag else [] for flag in mask[0].tolist()]
        for hook in hooks:
            hook.remove()


def test_in_a_mixed_batch_an_encoder_gets_only_the_samples_that_have_its_modality(model):
    model.eval()
    student = model.branches[0]
    mask = torch.stack([subset_mask(subset) for subset in ("flair+t1ce", "flair", "flair+t1")])
    calls, hooks = count_encoder_calls(student)
    with torch.no_grad():
        student(torch.randn(3, 4, EDGE, EDGE, EDGE), mask)
    for hook in hooks:
        hook.remove()
    assert calls == [[3], [1], [1], []]


def test_a_batch_of_mixed_masks_equals_its_samples_one_by_one(model):
    model.eval()
    image = torch.randn(15, 4, EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(5))
    together = run(model, image, MASKS)
    for i, mask in enumerate(MASKS):
        for batch, alone in zip(together, run(model, image[i : i + 1], mask[None]), strict=True):
            # Norms over 2 x 2 x 2 voxels amplify the rounding of a convolution of another batch size.
            torch.testing.assert_close(batch.logits[i], alone.logits[0], atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(batch.bottleneck[i], alone.bottleneck[0], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("branch", [0, 1])
def test_one_encoding_serves_all_15_subsets(model, image, branch):
    student = model.eval().branches[branch]
    with torch.no_grad():
        encoding = student.encode(image, torch.ones(1, 4, dtype=torch.bool))
        for mask in MASKS:
            direct, fused = student(image, mask[None]), student.fuse(encoding, mask[None])
            torch.testing.assert_close(fused.logits, direct.logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(fused.bottleneck, direct.bottleneck, atol=1e-5, rtol=1e-5)


def test_fusing_what_was_not_encoded_is_refused(model, image):
    student = model.eval().branches[0]
    with torch.no_grad():
        encoding = student.encode(image, subset_mask("t1+t2")[None])
        with pytest.raises(InputError, match="not encoded"):
            student.fuse(encoding, subset_mask("flair+t1")[None])


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_a_modality_that_is_present_does_matter(model, image, training):
    """Guards the tests above: they would pass for a network that ignores its input."""
    model.train(training)
    mask = torch.ones(1, 4, dtype=torch.bool)
    clean = run(model, image, mask)
    for m in range(4):
        changed = image.clone()
        changed[:, m] += 1 + changed[:, m].roll(1, dims=-1)
        for first, second in zip(clean, run(model, changed, mask), strict=True):
            assert not torch.allclose(first.logits, second.logits)
            assert not torch.allclose(first.bottleneck, second.bottleneck)
