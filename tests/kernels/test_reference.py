"""The four operations against formulas written another way: numpy loops in float64, one voxel or token at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from triton_checks import WEIGHTS

from smml_kernels import reference
from smml_kernels.relation import reference as relation

BRANCH_GATES = ("lower_ce", "correct", "entropy", "none")
seeds = st.integers(0, 2**31)


def randn(*shape, seed=0, dtype=torch.float64, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)


def labels(*shape, classes=4, seed=0, dtype=torch.int64):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def orthogonal(size, seed=0):
    return torch.linalg.qr(randn(size, size, seed=seed))[0]


def grads(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


# ---------------------------------------------------------------------------------------------------- relation_loss


def naive_relation(f1, f2, weight=None):
    """Token by token, similarity by similarity."""
    f1, f2 = (f.detach().double().numpy() for f in (f1, f2))
    n = len(f1)
    total = 0.0
    for i in range(n):
        rows = []
        for f in (f1, f2):
            row = np.array([sum(f[i] * f[j]) for j in range(n)])
            norm = math.sqrt(sum(row**2))
            rows.append(row / norm if norm > 0 else row)
        total += (1 / n if weight is None else float(weight[i])) * sum((rows[0] - rows[1]) ** 2)
    return total


def n_by_n(f1, f2, weight):
    """The definition in float64 with gradients, by torch's own normalisation (no zero rows)."""
    g1, g2 = (torch.nn.functional.normalize(f @ f.T, dim=1, eps=0) for f in (f1.double(), f2.double()))
    return (weight.double() * (g1 - g2).square().sum(1)).sum()


@pytest.mark.parametrize("form", ["direct", "linear", "auto"])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (7, 3), (12, 20), (40, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_relation_is_its_definition(form, n, c, weighted):
    f1, f2 = randn(n, c, seed=1), randn(n, c, seed=2)
    weight = torch.rand(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64) if weighted else None
    loss = reference.relation_loss(f1, f2, weight, form=form)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(naive_relation(f1, f2, weight), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("form", ["direct", "linear"])
def test_relation_gradient_is_that_of_finite_differences(form):
    weight = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert gradcheck(
        lambda a, b: reference.relation_loss(a, b, weight, form=form),
        (randn(9, 4, seed=1, requires_grad=True), randn(9, 4, seed=2, requires_grad=True)),
    )


def test_relation_forms_agree_with_zero_rows_and_gradients():
    f1, f2 = randn(30, 6, seed=1), randn(30, 6, seed=2)
    f1[[2, 5]] = 0
    f2[[5, 9]] = 0
    f1.requires_grad_()
    f2.requires_grad_()
    losses = {form: reference.relation_loss(f1, f2, form=form) for form in ("direct", "linear")}
    gradients = {form: grads(loss, f1, f2) for form, loss in losses.items()}
    assert losses["linear"].item() == pytest.approx(losses["direct"].item(), abs=1e-10)
    assert losses["linear"].item() == pytest.approx(naive_relation(f1, f2), abs=1e-12)
    for one, other in zip(gradients["direct"], gradients["linear"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    for form in gradients:
        assert torch.equal(gradients[form][0][[2, 5]], torch.zeros(2, 6, dtype=torch.float64))
        assert torch.equal(gradients[form][1][[5, 9]], torch.zeros(2, 6, dtype=torch.float64))
        assert (gradients[form][0][9] != 0).any(), "a row that is zero in the other branch alone still learns"


@pytest.mark.parametrize("form", ["direct", "linear"])
def test_relation_of_sparse_features_has_the_full_gradient(form):
    """After a ReLU a row has zeros without being zero."""
    f1, f2 = (randn(20, 6, seed=s).relu().index_fill(1, torch.tensor([5]), 0.1).requires_grad_() for s in (1, 2))
    assert ((f1 == 0).any(1) & ~(f1 == 0).all(1)).sum() > 10
    weight = torch.full((20,), 1 / 20)
    ours, exact = grads(reference.relation_loss(f1, f2, form=form), f1, f2), grads(n_by_n(f1, f2, weight), f1, f2)
    torch.testing.assert_close(ours, exact, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("form", ["direct", "linear"])
@pytest.mark.parametrize(("zero1", "zero2", "expected"), [(True, False, 1.0), (True, True, 0.0), (False, True, 1.0)])
def test_relation_of_nothing_counts_the_rows_that_are_there(form, zero1, zero2, expected):
    f1, f2 = randn(5, 3, seed=1), randn(5, 3, seed=2)
    f1 = (f1 * (not zero1)).requires_grad_()
    f2 = (f2 * (not zero2)).requires_grad_()
    loss = reference.relation_loss(f1, f2, form=form)
    assert loss.item() == expected
    assert all(torch.isfinite(g).all() for g in grads(loss, f1, f2))


@pytest.mark.parametrize("form", ["direct", "linear"])
@pytest.mark.parametrize("copy", ["plain", "rotated", "scaled", "rotated and scaled"])
@pytest.mark.parametrize("magnitude", [1e-2, 1e-5, 1e-8])
def test_relation_near_agreement_keeps_its_digits(form, copy, magnitude):
    """float32 features, judged by the definition in float64 on the very same numbers."""
    n, c = 64, 16
    f1 = randn(n, c, seed=1)
    f2 = f1 + math.sqrt(magnitude) * 0.7 * randn(n, c, seed=2)
    if "rotated" in copy:
        f2 = f2 @ orthogonal(c, seed=3)
    if "scaled" in copy:
        f2 = 37.0 * f2
    f1, f2 = f1.float().requires_grad_(), f2.float().requires_grad_()
    weight = torch.rand(n, generator=torch.Generator().manual_seed(4)) / n
    loss, exact = reference.relation_loss(f1, f2, weight, form=form), n_by_n(f1, f2, weight)
    assert loss.dtype == torch.float32
    assert 0.01 * magnitude < exact.item() < 10 * magnitude
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    for ours, theirs in zip(grads(loss, f1, f2), grads(exact, f1, f2), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_relation_auto_takes_the_cheaper_form(monkeypatch):
    cheaper = relation._direct_is_cheaper
    assert cheaper(1024, 512)  # the published bottleneck
    assert not cheaper(1024, 128)
    assert not cheaper(262144, 16)
    assert not cheaper(16384, 8192), "few tokens per channel, but N x N would not fit"
    taken = []
    for form in ("_direct", "_linear"):
        compute = getattr(relation, form)
        monkeypatch.setattr(relation, form, lambda *f, n=form, c=compute: taken.append(n) or c(*f))
    reference.relation_loss(randn(8, 4), randn(8, 4))
    reference.relation_loss(randn(16, 4), randn(16, 4))
    assert taken == ["_direct", "_linear"]


def test_relation_treats_the_weight_as_a_constant():
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    loss = reference.relation_loss(randn(4, 3, seed=1, requires_grad=True), randn(4, 3, seed=2), weight)
    loss.backward()
    assert weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_relation_of_half_precision_features_is_float32(dtype):
    f1, f2 = randn(20, 8, seed=1, dtype=dtype, requires_grad=True), randn(20, 8, seed=2, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = reference.relation_loss(f1, f2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_relation(f1, f2), rel=1e-6)
    assert grads(loss, f1)[0].dtype == dtype


@pytest.mark.parametrize("form", ["direct", "linear"])
@pytest.mark.parametrize("scale", [1e-41, 1e-35, 1e30, 1e38])
def test_relation_of_huge_and_tiny_float32_features_is_finite(form, scale):
    """Up to the ends of float32; a_i b_i, of the eighth power, would leave even float64."""
    f1 = (scale * randn(10, 4, seed=1).clamp(-3, 3)).float().requires_grad_()
    f2 = f1.detach().flip(0)
    loss = reference.relation_loss(f1, f2, form=form)
    assert loss.item() == pytest.approx(naive_relation(f1, f2), rel=1e-6)
    if scale > 1e-38:  # below, the true gradient (about 1 / scale) is beyond float32
        assert torch.isfinite(grads(loss, f1)[0]).all()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.integers(1, 12), c=st.integers(1, 6), scale=st.floats(1e-3, 1e3))
def test_relation_sees_neither_rotation_nor_scale_nor_branch_order(seed, n, c, scale):
    f1, f2 = randn(n, c, seed=seed), randn(n, c, seed=seed + 1)
    loss = reference.relation_loss(f1, f2).item()
    assert -1e-12 <= loss <= 4
    assert reference.relation_loss(f2, f1).item() == pytest.approx(loss, abs=1e-12)
    assert reference.relation_loss(scale * f1 @ orthogonal(c, seed), f2).item() == pytest.approx(loss, abs=1e-9)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert reference.relation_loss(f1[order], f2[order]).item() == pytest.approx(loss, abs=1e-12)
    assert reference.relation_loss(f1, scale * f1).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("f1", "f2", "weight", "form", "message"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), None, "auto", "one shape"),
        (torch.ones(3), torch.ones(3), None, "auto", r"\[N, C\]"),
        (torch.ones(0, 2), torch.ones(0, 2), None, "auto", "empty"),
        (torch.ones(3, 2), torch.ones(3, 2), torch.ones(2), "auto", "weight"),
        (torch.ones(3, 2), torch.ones(3, 2), None, "quadratic", "unknown form"),
        (torch.ones(3, 2, dtype=torch.int64), torch.ones(3, 2), None, "auto", "floating"),
    ],
)
def test_relation_refuses_what_does_not_fit(f1, f2, weight, form, message):
    with pytest.raises(ValueError, match=message):
        reference.relation_loss(f1, f2, weight, form=form)


# ---------------------------------------------------------------------------------------------------- masked_fusion


def naive_fusion(features, mask, weight, bias, negative_slope=0.2, eps=1e-5):
    """Sample by sample, map by map, output channel by output channel."""
    shape = next(f for f in features if f is not None).shape
    batch, channels = shape[:2]
    weight, bias = weight.detach().double().numpy(), bias.detach().double().numpy()
    out = np.zeros((batch, len(bias), *shape[2:]))
    for b in range(batch):
        for o in range(len(bias)):
            out[b, o] = bias[o]
            for m, f in enumerate(features):
                for c in range(channels):
                    if mask[b, m]:
                        x = f[b, c].detach().double().numpy()
                        x = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + eps)
                        out[b, o] += weight[o, m * channels + c] * np.where(x > 0, x, negative_slope * x)
    return torch.from_numpy(out)


MASK = torch.tensor([[True, False, True, False], [False, False, True, False], [False, False, False, False]])


def fusion_inputs(dtype=torch.float64, space=(2, 3, 2), outputs=5):
    features = [randn(3, 2, *space, seed=m, dtype=dtype, requires_grad=True) for m in range(4)]
    weight = randn(outputs, 8, seed=10, dtype=dtype, requires_grad=True)
    return features, weight, randn(outputs, seed=11, dtype=dtype, requires_grad=True)


def test_fusion_is_its_definition_and_an_empty_sample_gets_the_bias():
    features, weight, bias = fusion_inputs()
    out = reference.masked_fusion(features, MASK, weight, bias, negative_slope=0.1, eps=1e-3)
    torch.testing.assert_close(out, naive_fusion(features, MASK, weight, bias, 0.1, 1e-3), rtol=1e-12, atol=1e-12)
    assert torch.equal(out[2], bias[:, None, None, None].expand(5, 2, 3, 2))


def test_fusion_gradient_is_that_of_finite_differences():
    features, weight, bias = fusion_inputs(space=(1, 3, 2), outputs=2)
    assert gradcheck(lambda w, b, *maps: reference.masked_fusion(maps, MASK, w, b), (weight, bias, *features))


def test_fusion_of_all_modalities_is_the_plain_layer():
    features, weight, bias = fusion_inputs(torch.float32)
    everything = torch.ones(3, 4, dtype=torch.bool)
    x = torch.nn.functional.leaky_relu(torch.nn.functional.instance_norm(torch.cat(features, 1)), 0.2)
    plain = torch.nn.functional.conv3d(x, weight[:, :, None, None, None], bias)
    torch.testing.assert_close(reference.masked_fusion(features, everything, weight, bias), plain)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nothing_of_a_missing_map_reaches_the_output_or_a_gradient(poison):
    clean, weight, bias = fusion_inputs(torch.float32)
    dirty = []
    for m, f in enumerate(clean):
        hidden = ~MASK[:, m, None, None, None, None]
        dirty.append(f.detach().masked_fill(hidden, poison).requires_grad_())
    cotangent = randn(3, 5, 2, 3, 2, seed=20, dtype=torch.float32)
    results = []
    for features in (clean, dirty):
        out = reference.masked_fusion(features, MASK, weight, bias)
        results.append((out, *torch.autograd.grad(out, (weight, bias, *features), cotangent)))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)
    for m, gradient in enumerate(results[1][3:]):
        assert torch.equal(gradient[~MASK[:, m]], torch.zeros_like(gradient[~MASK[:, m]]))
        assert (gradient[MASK[:, m]] != 0).any() or not MASK[:, m].any()


def test_fusion_takes_none_for_a_modality_that_nobody_has():
    features, weight, bias = fusion_inputs()
    full = reference.masked_fusion(features, MASK, weight, bias)
    features[1] = features[3] = None
    assert torch.equal(reference.masked_fusion(features, MASK, weight, bias), full)


def test_fusion_of_one_spatial_element_is_the_bias():
    features = [randn(2, 3, 1, 1, 1, seed=m, requires_grad=True) for m in range(2)]
    weight, bias = randn(4, 6, seed=3), randn(4, seed=4)
    out = reference.masked_fusion(features, torch.ones(2, 2, dtype=torch.bool), weight, bias)
    assert torch.equal(out[..., 0, 0, 0], bias.expand(2, 4))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads(out.sum(), *features))


def test_fusion_statistics_survive_a_large_mean():
    features = [1e4 + randn(1, 2, 12, 12, 12, seed=5, dtype=torch.float32)]
    weight, bias, mask = torch.eye(2), torch.zeros(2), torch.ones(1, 1, dtype=torch.bool)
    exact = naive_fusion(features, mask, weight, bias)
    found = reference.masked_fusion(features, mask, weight, bias).double()
    assert (found - exact).abs().max() < 1e-3  # E[x^2] - E[x]^2 in float32 is off by several units here


def test_fusion_under_autocast_keeps_its_statistics_in_float32():
    features = [100 + randn(1, 2, 6, 6, 6, seed=6, dtype=torch.float32, requires_grad=True)]
    weight, bias, mask = torch.eye(2), torch.zeros(2), torch.ones(1, 1, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = reference.masked_fusion(features, mask, weight, bias)
    assert out.dtype == torch.bfloat16
    assert (out.double() - naive_fusion(features, mask, weight, bias)).abs().max() < 0.02
    halves = [f.detach().bfloat16() for f in features]
    out = reference.masked_fusion(halves, mask, weight.bfloat16(), bias.bfloat16())
    assert out.dtype == torch.bfloat16
    assert (out.double() - naive_fusion(halves, mask, weight, bias)).abs().max() < 0.02


@settings(max_examples=20, deadline=None)
@given(seed=seeds, bits=st.integers(0, 255), scale=st.floats(0.5, 100), shift=st.floats(-100, 100))
def test_fusion_sees_neither_offset_nor_gain_of_a_map(seed, bits, scale, shift):
    mask = torch.tensor([[bool(bits >> (4 * b + m) & 1) for m in range(4)] for b in range(2)])
    features = [randn(2, 2, 3, 3, 3, seed=seed + m) for m in range(4)]
    weight, bias = randn(3, 8, seed=seed), randn(3, seed=seed)
    out = reference.masked_fusion(features, mask, weight, bias, eps=1e-12)
    changed = [scale * f + shift for f in features]
    torch.testing.assert_close(reference.masked_fusion(changed, mask, weight, bias, eps=1e-12), out)


def test_fusion_refuses_what_does_not_fit():
    features, weight, bias = fusion_inputs()
    with pytest.raises(ValueError, match="every feature map is None"):
        reference.masked_fusion([None] * 4, MASK, weight, bias)
    with pytest.raises(ValueError, match="map is None"):
        reference.masked_fusion([None, *features[1:]], MASK, weight, bias)
    with pytest.raises(ValueError, match="mask must be bool"):
        reference.masked_fusion(features, MASK.float(), weight, bias)
    with pytest.raises(ValueError, match="mask must be bool"):
        reference.masked_fusion(features, MASK[:2], weight, bias)
    with pytest.raises(ValueError, match="weight must be"):
        reference.masked_fusion(features, MASK, weight[:, :6], bias)
    with pytest.raises(ValueError, match="bias must be"):
        reference.masked_fusion(features, MASK, weight, bias[:2])
    with pytest.raises(ValueError, match="one shape"):
        reference.masked_fusion([features[0][:, :1], *features[1:]], MASK, weight, bias)


# -------------------------------------------------------------------------------------- per-voxel losses, naively


def softmax(values):
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def voxels(x, target):
    """(sample, values over the classes, label) of every voxel, as Python numbers."""
    for b in range(x.shape[0]):
        for values, y in zip(x[b].flatten(1).T.tolist(), target[b].flatten().tolist(), strict=True):
            yield b, values, y


def naive_class_weight(target, b, y, minimum):
    sample = target[b].flatten().tolist()
    return max(minimum, 1 - sample.count(y) / len(sample))


def naive_exchange(teacher, learner, target, gate, minimum):
    total = normaliser = 0.0
    for (b, t, y), (_, s, _) in zip(voxels(teacher, target), voxels(learner, target), strict=True):
        p, q = softmax(t), softmax(s)
        weight = naive_class_weight(target, b, y, minimum)
        if gate == "lower_ce":
            g = weight if -math.log(p[y]) < -math.log(q[y]) else 0.0
        elif gate == "correct":
            g = weight if p.index(max(p)) == y else 0.0
        elif gate == "entropy":
            g = max(0.0, sum(v * math.log(v) for v in p) - sum(v * math.log(v) for v in q))
        else:
            g = weight
        total += g * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        normaliser += g
    return total / normaliser if normaliser > 0 else 0.0


def naive_dice_ce(x, target, from_logits, minimum):
    classes = x.shape[1]
    ce, count = 0.0, 0
    overlap, sum_p, sum_y = ([0.0] * classes for _ in range(3))
    for b, values, y in voxels(x, target):
        p = softmax(values) if from_logits else values
        ce -= naive_class_weight(target, b, y, minimum) * math.log(min(1.0, max(0.005, p[y])))
        count += 1
        overlap[y] += p[y]
        sum_y[y] += 1
        sum_p = [a + b for a, b in zip(sum_p, p, strict=True)]
    dice = [2 * i / (a + b + 1e-7) for i, a, b in zip(overlap, sum_p, sum_y, strict=True)]
    return ce / count + 1 - sum(dice) / classes


# ---------------------------------------------------------------------------------------------------- exchange_loss


@pytest.mark.parametrize("gate", BRANCH_GATES)
@pytest.mark.parametrize("minimum", [0.0, 0.8])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_exchange_is_its_definition_in_the_order_one_to_two_then_two_to_one(gate, minimum, dtype):
    logits1, logits2 = 2 * randn(2, 4, 3, 2, 4, seed=1), randn(2, 4, 3, 2, 4, seed=2)
    target = labels(2, 3, 2, 4, dtype=dtype)
    to2, to1 = reference.exchange_loss(logits1, logits2, target, gate=gate, min_class_weight=minimum)
    assert to2.item() == pytest.approx(naive_exchange(logits1, logits2, target, gate, minimum), rel=1e-12)
    assert to1.item() == pytest.approx(naive_exchange(logits2, logits1, target, gate, minimum), rel=1e-12)
    assert to1.item() != pytest.approx(to2.item(), rel=1e-3)


@pytest.mark.parametrize("gate", BRANCH_GATES)
def test_exchange_gradient_is_that_of_finite_differences(gate):
    """Teacher and gate are constants: each direction is checked as a function of its learner alone."""
    fixed, target = 2 * randn(1, 3, 2, 2, 2, seed=1), labels(1, 2, 2, 2, classes=3, seed=4)
    learner = randn(1, 3, 2, 2, 2, seed=2, requires_grad=True)
    start = learner.detach().clone()  # gradcheck moves the learner in place

    def with_constant_gate(x, direction):
        """Only the entropy gate varies smoothly with the learner, which finite differences would see."""
        pair = (fixed, x) if direction == 0 else (x, fixed)
        if gate != "entropy":
            return reference.exchange_loss(*pair, target, gate=gate)[direction]
        h = [torch.special.entr(z.softmax(1)).sum(1) for z in (fixed, start)]
        g = (h[1] - h[0]).relu()
        kl = (fixed.softmax(1) * (fixed.log_softmax(1) - x.log_softmax(1))).sum(1)
        return (g * kl).sum() / g.sum()

    for direction in (0, 1):
        assert gradcheck(lambda x, d=direction: with_constant_gate(x, d), (learner,))
    ours = reference.exchange_loss(fixed, learner, target, gate=gate)[0]
    assert ours.item() > 0
    torch.testing.assert_close(grads(ours, learner), grads(with_constant_gate(learner, 0), learner))


@pytest.mark.parametrize("gate", BRANCH_GATES)
def test_exchange_sends_nothing_to_the_teacher(gate):
    logits1 = randn(2, 4, 3, 3, 3, seed=1, requires_grad=True)
    logits2 = randn(2, 4, 3, 3, 3, seed=2, requires_grad=True)
    losses = reference.exchange_loss(logits1, logits2, labels(2, 3, 3, 3), gate=gate)
    for loss, teacher, learner in ((losses[0], logits1, logits2), (losses[1], logits2, logits1)):
        to_teacher, to_learner = torch.autograd.grad(loss, (teacher, learner), allow_unused=True, retain_graph=True)
        assert to_teacher is None
        assert to_learner.abs().max() > 0


@pytest.mark.parametrize("gate", ["lower_ce", "entropy"])
def test_a_tie_teaches_nobody(gate):
    logits1, logits2 = randn(1, 3, 2, 2, 2, seed=1), randn(1, 3, 2, 2, 2, seed=2)
    target = labels(1, 2, 2, 2, classes=3)
    logits2[:, :, 0] = logits1[:, :, 0]
    half = reference.exchange_loss(logits1, logits2, target, gate=gate)
    for direction, pair in enumerate([(logits1, logits2), (logits2, logits1)]):
        assert half[direction].item() == pytest.approx(naive_exchange(*pair, target, gate, 0.0), rel=1e-12)
    logits1.requires_grad_()
    same = reference.exchange_loss(logits1, logits1, target, gate=gate)
    assert [loss.item() for loss in same] == [0.0, 0.0]
    assert torch.equal(grads(sum(same), logits1)[0], torch.zeros_like(logits1))


def test_lower_ce_ties_where_the_true_class_is_equally_likely_though_the_rest_differs():
    # exp(-100) vanishes beside 1, so the true class is equally likely to the last bit.
    logits1, logits2 = (torch.tensor(z).view(1, 3, 1, 1, 1) for z in ([0.0, 0.0, -100.0], [0.0, -100.0, 0.0]))
    target = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    assert min(reference.exchange_loss(logits1, logits2, target, gate="none", min_class_weight=0.5)).item() > 1
    losses = reference.exchange_loss(logits1, logits2, target, min_class_weight=0.5)
    assert [loss.item() for loss in losses] == [0.0, 0.0]


@pytest.mark.parametrize("gate", ["lower_ce", "correct", "none"])
def test_exchange_of_a_patch_of_one_class_is_zero_unless_a_least_weight_is_set(gate):
    logits1 = randn(2, 4, 2, 2, 2, seed=1, requires_grad=True)
    logits2 = randn(2, 4, 2, 2, 2, seed=2, requires_grad=True)
    target = torch.zeros(2, 2, 2, 2, dtype=torch.uint8)
    losses = reference.exchange_loss(logits1, logits2, target, gate=gate)
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads(sum(losses), logits1, logits2))
    losses = reference.exchange_loss(logits1, logits2, target, gate=gate, min_class_weight=0.05)
    assert min(loss.item() for loss in losses) > 0


def test_exchange_in_one_direction_only():
    """Branch 1 is right everywhere, branch 2 wrong everywhere: only 1 -> 2 teaches, whatever the numbers."""
    target = labels(1, 2, 2, 2, classes=3)
    one_hot = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    to2, to1 = reference.exchange_loss(4 * one_hot, -4 * one_hot, target)
    assert to2.item() > 1
    assert to1.item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exchange_of_half_precision_logits_is_float32(dtype):
    logits1, logits2 = (randn(1, 4, 3, 3, 3, seed=s, dtype=dtype, requires_grad=True) for s in (1, 2))
    target = labels(1, 3, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = reference.exchange_loss(logits1, logits2, target)
    assert losses[0].dtype == torch.float32
    assert losses[0].item() == pytest.approx(naive_exchange(logits1, logits2, target, "lower_ce", 0.0), rel=1e-4)


def test_extreme_logits_stay_finite():
    logits1 = 1e4 * randn(1, 4, 2, 2, 2, seed=1, dtype=torch.float32).requires_grad_()
    logits2 = 1e4 * randn(1, 4, 2, 2, 2, seed=2, dtype=torch.float32).requires_grad_()
    for gate in BRANCH_GATES:
        losses = reference.exchange_loss(logits1, logits2, labels(1, 2, 2, 2), gate=gate)
        assert all(torch.isfinite(loss) for loss in losses)
        assert all(torch.isfinite(g).all() for g in grads(sum(losses), logits1, logits2))
    loss = reference.dice_ce_loss(logits1, labels(1, 2, 2, 2))
    assert torch.isfinite(loss)
    assert torch.isfinite(grads(loss, logits1)[0]).all()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, gate=st.sampled_from(BRANCH_GATES), minimum=WEIGHTS)
def test_exchange_swaps_with_the_branches_and_ignores_what_the_classes_are_called(seed, gate, minimum):
    logits1, logits2 = randn(2, 4, 2, 3, 2, seed=seed), randn(2, 4, 2, 3, 2, seed=seed + 1)
    target = labels(2, 2, 3, 2, seed=seed)
    losses = reference.exchange_loss(logits1, logits2, target, gate=gate, min_class_weight=minimum)
    assert min(losses).item() >= 0
    swapped = reference.exchange_loss(logits2, logits1, target, gate=gate, min_class_weight=minimum)
    assert (swapped[1].item(), swapped[0].item()) == (losses[0].item(), losses[1].item())
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    renamed = reference.exchange_loss(
        logits1[:, order], logits2[:, order], order.argsort()[target], gate=gate, min_class_weight=minimum
    )
    torch.testing.assert_close(torch.stack(renamed), torch.stack(losses))


# ----------------------------------------------------------------------------------------------------- dice_ce_loss


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("minimum", [0.0, 0.05, 0.9])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_dice_ce_is_its_definition(from_logits, minimum, dtype):
    x = 4 * randn(3, 4, 3, 4, 2, seed=1)
    x = x if from_logits else x.softmax(1)
    target = labels(3, 3, 4, 2, dtype=dtype)
    loss = reference.dice_ce_loss(x, target, from_logits=from_logits, min_class_weight=minimum)
    assert loss.item() == pytest.approx(naive_dice_ce(x, target, from_logits, minimum), rel=1e-12)


@pytest.mark.parametrize("from_logits", [True, False])
def test_dice_ce_gradient_is_that_of_finite_differences(from_logits):
    x = randn(2, 4, 1, 3, 2, seed=1)
    x = (x if from_logits else x.softmax(1)).requires_grad_()
    target = labels(2, 1, 3, 2)
    assert gradcheck(lambda z: reference.dice_ce_loss(z, target, from_logits=from_logits, min_class_weight=0.1), (x,))


def test_dice_ce_of_a_patch_of_one_class_has_no_cross_entropy_unless_a_least_weight_is_set():
    x, target = randn(2, 4, 2, 2, 2, seed=1), torch.zeros(2, 2, 2, 2, dtype=torch.uint8)
    published = reference.dice_ce_loss(x, target).item()
    assert published == pytest.approx(naive_dice_ce(x, target, True, 0.0), rel=1e-12)
    p = x.softmax(1)[:, 0]
    assert published == pytest.approx(1 - 0.25 * (2 * p.sum() / (p.sum() + 16)).item(), rel=1e-6)  # Dice alone
    floor = reference.dice_ce_loss(x, target, min_class_weight=0.05).item()
    assert floor - published == pytest.approx(-0.05 * p.clamp_min(0.005).log().mean().item(), rel=1e-9)


def test_dice_ce_of_a_perfect_prediction_and_of_a_class_that_nobody_has():
    target = labels(2, 3, 3, 3, classes=3)  # class 3 absent
    p = torch.nn.functional.one_hot(target, 4).movedim(-1, 1).double()
    assert reference.dice_ce_loss(p[:, :3], target, from_logits=False).item() == pytest.approx(0, abs=1e-8)
    # The absent class scores 0 / 1e-7 = 0 even when it is rightly absent: the published reading.
    assert reference.dice_ce_loss(p, target, from_logits=False).item() == pytest.approx(0.25, abs=1e-8)


def test_dice_ce_clamp_bounds_the_loss_and_stops_the_gradient():
    p = torch.tensor([[1e-6, 1 - 1e-6], [0.3, 0.7]], dtype=torch.float64).T[None, :, :, None, None]  # [1, 2, 2, 1, 1]
    p = p.clone().requires_grad_()
    target = torch.tensor([0, 1]).view(1, 2, 1, 1)
    loss = reference.dice_ce_loss(p, target, from_logits=False)
    assert loss.item() == pytest.approx(naive_dice_ce(p, target, False, 0.0), rel=1e-12)
    gradient = grads(loss, p)[0]
    assert abs(gradient[0, 0, 0].item()) < 1, "an unclamped CE would pull with 0.25 / 1e-6"


def test_dice_sums_over_the_batch_not_over_samples():
    x, target = randn(2, 3, 2, 2, 2, seed=1), labels(2, 2, 2, 2, classes=3)
    together = reference.dice_ce_loss(x, target).item()
    apart = sum(reference.dice_ce_loss(x[b : b + 1], target[b : b + 1]).item() for b in range(2)) / 2
    assert together != pytest.approx(apart, rel=1e-4)


def test_dice_ce_sums_a_large_volume_without_losing_digits():
    x = torch.zeros(1, 2, 128, 128, 129)
    x[:, 0] = 4.0
    target = torch.zeros(1, 128, 128, 129, dtype=torch.uint8)
    p = math.exp(4) / (1 + math.exp(4))
    assert reference.dice_ce_loss(x, target).item() == pytest.approx(1 - 0.5 * 2 * p / (p + 1), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dice_ce_of_half_precision_is_float32(dtype):
    x, target = randn(2, 4, 3, 3, 3, seed=1, dtype=dtype, requires_grad=True), labels(2, 3, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = reference.dice_ce_loss(x, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_dice_ce(x, target, True, 0.0), rel=1e-5)
    assert grads(loss, x)[0].dtype == dtype


@settings(max_examples=25, deadline=None)
@given(seed=seeds, classes=st.integers(2, 5), minimum=WEIGHTS, spread=st.floats(0, 20))
def test_dice_ce_ignores_what_classes_are_called_and_where_voxels_are(seed, classes, minimum, spread):
    x, target = spread * randn(2, classes, 2, 3, 2, seed=seed), labels(2, 2, 3, 2, classes=classes, seed=seed)
    loss = reference.dice_ce_loss(x, target, min_class_weight=minimum)
    assert 0 <= loss.item() <= 1 - math.log(0.005)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    renamed = reference.dice_ce_loss(x[:, order], order.argsort()[target], min_class_weight=minimum)
    torch.testing.assert_close(renamed, loss)
    moved = reference.dice_ce_loss(x.flip(0, 2).mT, target.flip(0, 1).mT, min_class_weight=minimum)
    torch.testing.assert_close(moved, loss)


@pytest.mark.parametrize("loss", [reference.dice_ce_loss, lambda x, t: reference.exchange_loss(x, x, t)])
def test_per_voxel_losses_refuse_what_does_not_fit(loss):
    x, target = torch.zeros(2, 4, 2, 2, 2), torch.zeros(2, 2, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="target must be"):
        loss(x, target[:1])
    with pytest.raises(ValueError, match="target must be"):
        loss(x, target[:, None])
    with pytest.raises(ValueError, match="uint8 or int64"):
        loss(x, target.float())
    with pytest.raises(ValueError, match="labels from 0 to 4"):
        loss(x, target.index_fill(0, torch.tensor([1]), 4))
    with pytest.raises(ValueError, match="labels from -1 to 0"):
        loss(x, target.index_fill(0, torch.tensor([1]), -1))
    with pytest.raises(ValueError, match="empty"):
        loss(x[:0], target[:0])
    with pytest.raises(ValueError, match=r"\[B, K, X, Y, Z\]"):
        loss(x[0, 0, 0], target)


def test_options_out_of_range_are_refused():
    x, target = torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="unknown gate"):
        reference.exchange_loss(x, x, target, gate="loudest")
    with pytest.raises(ValueError, match="needs a target"):
        reference.exchange_loss(x, x, None)
    with pytest.raises(ValueError, match="one shape"):
        reference.exchange_loss(x, x[:, :1], target)
    with pytest.raises(ValueError, match="min_class_weight"):
        reference.dice_ce_loss(x, target, min_class_weight=-0.1)
    assert reference.exchange_loss(x, x, None, gate="entropy")[0].item() == 0
