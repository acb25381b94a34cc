"""The losses of a branch and between branches, against loops that follow the equations one number at a time."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from smml.losses import feature_consistency, pixel_consistency, segmentation_loss
from smml.losses.feature import token_weights
from smml.losses.segmentation import MIN_CLASS_WEIGHT
from smml_kernels import dice_ce_loss

BATCH, CLASSES, MODALITIES, SIDE = 2, 4, 4, 4


def randn(*shape, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)


def labels(*shape, classes=CLASSES, seed=0):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def grads(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


# ------------------------------------------------------------------------------------------------ segmentation_loss


def naive_dice_ce(x, target, minimum, from_logits=True):
    """One-hot volumes and einsum, sample by sample."""
    p = (torch.softmax(x, 1) if from_logits else x).detach().double().numpy()
    y = np.eye(CLASSES)[target.numpy()].transpose(0, 4, 1, 2, 3)
    ce = 0.0
    for b in range(len(y)):
        for k in range(CLASSES):
            weight = max(minimum, 1 - y[b, k].sum() / y[b, k].size)
            ce -= (weight * y[b, k] * np.log(np.clip(p[b, k], 0.005, 1))).sum()
    ce /= target.numel()
    dice = 2 * np.einsum("bkxyz,bkxyz->k", p, y) / (p.sum((0, 2, 3, 4)) + y.sum((0, 2, 3, 4)) + 1e-7)
    return ce + 1 - dice.mean()


def student_output(requires_grad=False):
    shape = (BATCH, CLASSES, SIDE, SIDE, SIDE)
    return SimpleNamespace(
        logits=randn(*shape, seed=1, requires_grad=requires_grad),
        separate=tuple(randn(*shape, seed=10 + m, requires_grad=requires_grad) for m in range(MODALITIES)),
        seen=None,
        deep=tuple(randn(*shape, seed=20 + level).softmax(1).requires_grad_(requires_grad) for level in range(2, 6)),
        bottleneck=None,
    )


@pytest.mark.parametrize("minimum", [0.0, 0.05])
def test_segmentation_loss_sums_every_head_with_weight_one(minimum):
    output, target = student_output(), labels(BATCH, SIDE, SIDE, SIDE)
    terms = segmentation_loss(output, target, min_class_weight=minimum)
    fuse = naive_dice_ce(output.logits, target, minimum)
    separate = sum(naive_dice_ce(x, target, minimum) for x in output.separate)
    deep = sum(naive_dice_ce(p, target, minimum, from_logits=False) for p in output.deep)
    assert terms.fuse.item() == pytest.approx(fuse, rel=1e-12)
    assert terms.separate.item() == pytest.approx(separate, rel=1e-12)
    assert terms.deep.item() == pytest.approx(deep, rel=1e-12)
    assert terms.total.item() == pytest.approx(fuse + separate + deep, rel=1e-12)


def test_a_separate_head_is_judged_on_the_samples_that_have_its_modality():
    output, target = student_output(requires_grad=True), labels(BATCH, SIDE, SIDE, SIDE)
    output.separate = (*output.separate[:3], None)
    output.seen = torch.tensor([[True, False, False, False], [True, True, False, False]])
    terms = segmentation_loss(output, target, min_class_weight=0.0)
    expected = naive_dice_ce(output.separate[0], target, 0.0) + naive_dice_ce(output.separate[1][1:], target[1:], 0.0)
    assert terms.separate.item() == pytest.approx(expected, rel=1e-12)
    terms.total.backward()
    assert torch.equal(output.separate[1].grad[0], torch.zeros_like(output.separate[1].grad[0]))
    assert output.separate[1].grad[1].abs().max() > 0
    assert output.separate[2].grad is None


def test_nan_of_a_sample_without_the_modality_does_not_reach_the_loss():
    output, target = student_output(), labels(BATCH, SIDE, SIDE, SIDE)
    output.separate[1][1] = math.nan
    output.seen = torch.tensor([[True] * 4, [True, False, True, True]])
    assert segmentation_loss(output, target).total.isfinite()


@pytest.mark.parametrize("nothing", [(), None])
def test_at_inference_only_the_fused_head_is_there(nothing):
    output, target = student_output(), labels(BATCH, SIDE, SIDE, SIDE)
    output.separate = output.deep = nothing
    output.seen = torch.zeros(BATCH, MODALITIES, dtype=torch.bool)
    terms = segmentation_loss(output, target)
    assert (terms.separate.item(), terms.deep.item()) == (0.0, 0.0)
    assert terms.total.item() == dice_ce_loss(output.logits, target, min_class_weight=MIN_CLASS_WEIGHT).item()


def test_heads_that_nobody_has_are_left_out():
    output, target = student_output(), labels(BATCH, SIDE, SIDE, SIDE)
    whole = segmentation_loss(output, target)
    output.separate = (output.separate[0], None, None, None)
    terms = segmentation_loss(output, target)
    assert terms.separate.item() == pytest.approx(
        naive_dice_ce(output.separate[0], target, MIN_CLASS_WEIGHT), rel=1e-12
    )
    assert terms.fuse == whole.fuse
    output.seen = torch.ones(BATCH, MODALITIES, dtype=torch.bool)
    with pytest.raises(ValueError, match="separate head 1 is None"):
        segmentation_loss(output, target)
    output.seen = torch.ones(BATCH, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="seen must be bool"):
        segmentation_loss(output, target)


def test_segmentation_gradient_is_that_of_finite_differences():
    target = labels(1, 2, 2, 2)
    seen = torch.tensor([[True, False]])

    def loss(fused, separate, deep):
        output = SimpleNamespace(logits=fused, separate=(separate, None), seen=seen, deep=(deep,))
        return segmentation_loss(output, target, min_class_weight=0.05).total

    heads = [randn(1, CLASSES, 2, 2, 2, seed=s) for s in range(3)]
    heads[2] = heads[2].softmax(1)
    assert gradcheck(loss, [h.requires_grad_() for h in heads])


# ------------------------------------------------------------------------------------------------ pixel_consistency


def naive_pixel(teacher, learner, target, minimum):
    p, q = (x.detach().double().numpy() for x in (teacher.softmax(1), learner.softmax(1)))
    top = bottom = 0.0
    for b, x, y, z in np.ndindex(*target.shape):
        k = int(target[b, x, y, z])
        weight = max(minimum, 1 - float((target[b] == k).double().mean()))
        if p[b, k, x, y, z] > q[b, k, x, y, z]:
            top += weight * float(np.sum(p[b, :, x, y, z] * np.log(p[b, :, x, y, z] / q[b, :, x, y, z])))
            bottom += weight
    return top / bottom if bottom else 0.0


def test_pixel_consistency_is_its_definition_in_both_directions():
    logits1, logits2 = randn(2, CLASSES, 3, 3, 3, seed=1), 2 * randn(2, CLASSES, 3, 3, 3, seed=2)
    target = labels(2, 3, 3, 3)
    to2, to1 = pixel_consistency(logits1, logits2, target, min_class_weight=0.77)
    assert to2.item() == pytest.approx(naive_pixel(logits1, logits2, target, 0.77), rel=1e-12)
    assert to1.item() == pytest.approx(naive_pixel(logits2, logits1, target, 0.77), rel=1e-12)
    open_gate = pixel_consistency(logits1, logits2, target, gate="none", min_class_weight=0.0)
    kl = torch.nn.functional.kl_div(logits2.log_softmax(1), logits1.softmax(1), reduction="none").sum(1)
    weights = 1 - torch.stack([(t[None] == t[..., None, None, None]).double().mean((-3, -2, -1)) for t in target])
    assert open_gate[0].item() == pytest.approx(((weights * kl).sum() / weights.sum()).item(), rel=1e-12)


def test_without_options_every_voxel_that_is_gated_counts_alike():
    logits1, logits2 = randn(2, CLASSES, 3, 3, 3, seed=1), 2 * randn(2, CLASSES, 3, 3, 3, seed=2)
    target = labels(2, 3, 3, 3)
    default = pixel_consistency(logits1, logits2, target)
    assert default[0].item() == pytest.approx(naive_pixel(logits1, logits2, target, 1.0), rel=1e-12)
    assert default[0].item() != pytest.approx(naive_pixel(logits1, logits2, target, 0.0), rel=1e-3)


def test_pixel_consistency_teaches_the_learner_alone():
    logits1 = randn(1, CLASSES, 3, 3, 3, seed=1, requires_grad=True)
    logits2 = randn(1, CLASSES, 3, 3, 3, seed=2, requires_grad=True)
    to2, _ = pixel_consistency(logits1, logits2, labels(1, 3, 3, 3))
    to2.backward()
    assert logits1.grad is None
    assert logits2.grad.abs().max() > 0


def test_a_step_down_the_gradient_brings_the_learner_closer():
    logits1 = randn(1, CLASSES, 3, 3, 3, seed=1)
    logits2 = randn(1, CLASSES, 3, 3, 3, seed=2, requires_grad=True)
    target = labels(1, 3, 3, 3)
    before = pixel_consistency(logits1, logits2, target, gate="none")[0]
    nearer = (logits2 - 0.5 * grads(before, logits2)[0]).detach()
    assert pixel_consistency(logits1, nearer, target, gate="none")[0] < before


# ---------------------------------------------------------------------------------------------- feature_consistency


def naive_token_weights(logits1, logits2, grid):
    """Entropy by entropy, window by window; the grid divides the volume."""
    size = logits1.shape[2] // grid
    weights = []
    for b in range(len(logits1)):
        for x, y, z in np.ndindex(grid, grid, grid):
            window = tuple(slice(i * size, (i + 1) * size) for i in (x, y, z))
            entropies = []
            for logits in (logits1, logits2):
                p = logits.softmax(1)[b][(slice(None), *window)].flatten(1)
                entropies += [-sum(v * math.log(v) for v in voxel if v > 0) for voxel in p.T.tolist()]
            weights.append(sum(entropies) / len(entropies))
    return [w / sum(weights) for w in weights] if sum(weights) > 0 else [1 / len(weights)] * len(weights)


def naive_feature(bottleneck1, bottleneck2, logits1, logits2, target):
    """(L_rel, L_cls) by loops over tokens, samples and classes."""
    grid = bottleneck1.shape[2]
    size = target.shape[1] // grid
    weights = naive_token_weights(logits1, logits2, grid)
    cells = list(np.ndindex(len(target), grid, grid, grid))
    similarity, relations = [], []
    for f in (bottleneck1, bottleneck2):
        f = f.detach().numpy()
        tokens = [f[b, :, x, y, z] for b, x, y, z in cells]
        g = np.array([[float(s @ t) for t in tokens] for s in tokens])
        similarity.append(g / np.linalg.norm(g, axis=1, keepdims=True))
        prototypes = []
        for sample in range(len(target)):
            for k in range(logits1.shape[1]):
                fills = []
                for b, x, y, z in cells:
                    block = target[b, x * size : (x + 1) * size, y * size : (y + 1) * size, z * size : (z + 1) * size]
                    fills.append(float((block == k).double().mean()) if b == sample else 0.0)
                if sum(fills) > 0:
                    prototypes.append(sum(o * t for o, t in zip(fills, tokens, strict=True)) / sum(fills))
        relations.append(
            [
                float(p @ q) / (np.linalg.norm(p) * np.linalg.norm(q))
                for i, p in enumerate(prototypes)
                for q in prototypes[:i]
            ]
        )
    relation = sum(w * float(sum((r - s) ** 2)) for w, r, s in zip(weights, *similarity, strict=True))
    pairs = [(r - s) ** 2 for r, s in zip(*relations, strict=True)]
    return relation, sum(pairs) / len(pairs) if pairs else 0.0


def feature_inputs(classes_present=CLASSES, channels=5, seed=0):
    bottlenecks = [randn(2, channels, 2, 2, 2, seed=seed + s) for s in (1, 2)]
    logits = [2 * randn(2, CLASSES, 4, 4, 4, seed=seed + s) for s in (3, 4)]
    return *bottlenecks, *logits, labels(2, 4, 4, 4, classes=classes_present, seed=seed)


@pytest.mark.parametrize("classes_present", [4, 3, 2, 1])
def test_feature_consistency_is_its_definition_also_with_absent_classes(classes_present):
    inputs = feature_inputs(classes_present)
    relation, classes = naive_feature(*inputs)
    terms = feature_consistency(*inputs, class_weight=0.3)
    assert terms.relation.item() == pytest.approx(relation, rel=1e-12)
    assert terms.classes.item() == pytest.approx(classes, rel=1e-12)
    assert terms.total.item() == pytest.approx(relation + 0.3 * classes, rel=1e-12)


def test_a_class_may_be_absent_from_one_sample_only():
    bottleneck1, bottleneck2, logits1, logits2, target = feature_inputs()
    target[0][target[0] == 3] = 0
    target[1][:] = 3
    terms = feature_consistency(bottleneck1, bottleneck2, logits1, logits2, target)
    expected = naive_feature(bottleneck1, bottleneck2, logits1, logits2, target)[1]
    assert terms.classes.item() == pytest.approx(expected, rel=1e-12)


def test_feature_gradient_is_that_of_finite_differences():
    bottleneck1, bottleneck2, logits1, logits2, target = feature_inputs(channels=3)
    assert gradcheck(
        lambda f1, f2: feature_consistency(f1, f2, logits1, logits2, target, class_weight=2.0).total,
        (bottleneck1.requires_grad_(), bottleneck2.requires_grad_()),
    )


def test_feature_consistency_teaches_both_branches_but_not_through_the_logits():
    inputs = [x.requires_grad_() for x in feature_inputs()[:4]]
    feature_consistency(*inputs, feature_inputs()[4]).total.backward()
    assert all(bottleneck.grad.abs().max() > 0 for bottleneck in inputs[:2])
    assert all(logits.grad is None for logits in inputs[2:])


def test_fewer_than_two_prototypes_relate_nothing():
    bottleneck1, bottleneck2, logits1, logits2, _ = feature_inputs()
    one = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    bottleneck1 = bottleneck1[:1].requires_grad_()
    terms = feature_consistency(bottleneck1, bottleneck2[:1], logits1[:1], logits2[:1], one)
    assert terms.classes.item() == 0
    assert torch.equal(grads(terms.classes, bottleneck1)[0], torch.zeros_like(bottleneck1))
    assert terms.relation.item() > 0


def test_token_weights_follow_the_uncertainty():
    _, _, logits1, logits2, _ = feature_inputs()
    weights = token_weights(logits1.requires_grad_(), logits2, (2, 2, 2))
    assert weights.tolist() == pytest.approx(naive_token_weights(logits1.detach(), logits2, 2), rel=1e-12)
    assert weights.sum().item() == pytest.approx(1)
    assert not weights.requires_grad


def test_token_weights_of_certain_predictions_are_uniform_and_finite():
    certain = torch.zeros(2, CLASSES, 4, 4, 4)
    certain[:, 1] = 1e4  # the other probabilities underflow to exactly 0
    weights = token_weights(certain, certain, (2, 2, 2))
    assert torch.equal(weights, torch.full((16,), 1 / 16))
    unsure = certain.clone()
    unsure[0, :, :2, :2, :2] = 0
    weights = token_weights(certain, unsure, (2, 2, 2))
    assert weights.tolist() == pytest.approx([1.0] + [0.0] * 15)


def test_the_grid_need_not_divide_the_volume():
    bottleneck1, bottleneck2 = (randn(1, 4, 3, 2, 2, seed=s) for s in (1, 2))
    logits1, logits2 = (randn(1, CLASSES, 7, 5, 4, seed=s) for s in (3, 4))
    terms = feature_consistency(bottleneck1, bottleneck2, logits1, logits2, labels(1, 7, 5, 4))
    assert terms.total.isfinite()
    assert token_weights(logits1, logits2, (3, 2, 2)).sum().item() == pytest.approx(1)


def test_features_of_zero_have_no_nan():
    bottleneck1, bottleneck2, logits1, logits2, target = feature_inputs()
    bottleneck1 = torch.zeros_like(bottleneck1).requires_grad_()
    terms = feature_consistency(bottleneck1, bottleneck2.requires_grad_(), logits1, logits2, target)
    assert terms.relation.item() == pytest.approx(1)
    assert all(torch.isfinite(g).all() for g in grads(terms.total, bottleneck1, bottleneck2))


def test_losses_are_float32_under_autocast():
    inputs = [x.float() for x in feature_inputs()[:4]]
    target = feature_inputs()[4]
    exact = feature_consistency(*inputs, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = feature_consistency(*inputs, target)
        pixel = pixel_consistency(inputs[2], inputs[3], target)
    assert (terms.relation.dtype, terms.classes.dtype, pixel[0].dtype) == (torch.float32,) * 3
    assert terms.classes.item() == pytest.approx(exact.classes.item(), rel=1e-6)
    assert terms.relation.item() == pytest.approx(exact.relation.item(), rel=1e-6)
    assert pixel[0].item() == pixel_consistency(inputs[2], inputs[3], target)[0].item()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-2, 1e2))
def test_feature_consistency_sees_neither_branch_order_nor_rotation_nor_scale(seed, scale):
    bottleneck1, bottleneck2, logits1, logits2, target = feature_inputs(seed=seed)
    terms = feature_consistency(bottleneck1, bottleneck2, logits1, logits2, target)
    swapped = feature_consistency(bottleneck2, bottleneck1, logits2, logits1, target)
    rotation = torch.linalg.qr(randn(5, 5, seed=seed))[0]
    turned = scale * torch.einsum("bcxyz,cd->bdxyz", bottleneck1, rotation)
    rotated = feature_consistency(turned, bottleneck2, logits1, logits2, target)
    for other in (swapped, rotated):
        assert other.relation.item() == pytest.approx(terms.relation.item(), abs=1e-10)
        assert other.classes.item() == pytest.approx(terms.classes.item(), abs=1e-10)
    same = feature_consistency(bottleneck1, turned, logits1, logits2, target)
    assert same.total.item() == pytest.approx(0, abs=1e-10)


def test_feature_consistency_refuses_what_does_not_fit():
    bottleneck1, bottleneck2, logits1, logits2, target = feature_inputs()
    with pytest.raises(ValueError, match="bottlenecks must be"):
        feature_consistency(bottleneck1, bottleneck2[:, :3], logits1, logits2, target)
    with pytest.raises(ValueError, match="logits must be"):
        feature_consistency(bottleneck1, bottleneck2, logits1, logits2[..., :2], target)
    with pytest.raises(ValueError, match="hold 2 samples"):
        feature_consistency(bottleneck1, bottleneck2, logits1[:1], logits2[:1], target)
    with pytest.raises(ValueError, match="target must be"):
        feature_consistency(bottleneck1, bottleneck2, logits1, logits2, target[..., :2])
