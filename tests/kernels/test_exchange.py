"""The Triton kernels of exchange_loss against the float64 reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from triton_checks import (
    ATOL,
    COMPILED,
    COMPILER,
    DEVICE,
    FLOATS,
    OF_STRIDES,
    WEIGHTS,
    assert_as_good_as_eager,
    compilations,
    error,
    labels,
    needs_triton,
    randn,
    when_compiled,
)

from smml_kernels import GATES, exchange_loss, reference

pytestmark = needs_triton

SHAPES = [(1, 2, 1, 1, 1), (2, 4, 9, 7, 5), (3, 5, 4, 3, 2), (1, 3, 11, 13, 9), (2, 1, 3, 3, 3)]


def ours(x1, x2, target, **options):
    return exchange_loss(x1, x2, target, implementation="triton", **options)


def both_logits(*shape, dtype=torch.float32, seed=1, spread=2.0):
    return tuple(spread * randn(*shape, seed=s, dtype=torch.float64).to(dtype) for s in (seed, seed + 1))


def compare(x1, x2, target, upstream=(1.0, 1.0), rounding=0.0, **options):
    """Both values and both gradients against eager PyTorch in the same dtype and in float64.

    ``rounding`` is allowed on top in every number of a gradient, as a part of the largest that a voxel can have: it is
    a difference of probabilities, and where the branches agree on one voxel, eager can be exact by luck.
    """
    results = []
    for compute, double in ((ours, False), (reference.exchange_loss, False), (reference.exchange_loss, True)):
        leaves = [x.detach().to(torch.float64 if double else x.dtype).requires_grad_() for x in (x1, x2)]
        losses = compute(*leaves, target, **options)
        total = upstream[0] * losses[0] + upstream[1] * losses[1]
        results.append((*losses, *torch.autograd.grad(total, leaves)))
    for number, (found, eager, exact) in enumerate(zip(*results, strict=True)):
        size = float(exact.detach().norm())
        lost = rounding * exact.numel() ** 0.5 / (x1.numel() / x1.shape[1])
        atol = max(ATOL[found.dtype], lost / size) if number >= 2 and size > 0 else 0.0
        assert_as_good_as_eager(found, eager, exact, atol=atol)


@when_compiled
def test_another_least_class_weight_compiles_nothing():
    from smml_kernels.exchange import op

    x1, x2, target = *both_logits(2, 4, 8, 8, 10), labels(2, 8, 8, 10)
    compare(x1, x2, target, min_class_weight=0.3)
    before = compilations(op._finish_kernel)
    assert before > 0
    compare(x1, x2, target, min_class_weight=0.7)
    assert compilations(op._finish_kernel) == before


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gate", GATES)
def test_values_and_gradients_over_odd_sizes(poisoned_memory, shape, gate):
    target = labels(shape[0], *shape[2:], classes=shape[1], seed=2)
    # A GPU's powers of two may be off by 2^-22: of a single voxel no mean hides it.
    rounding = 2.0**-22 if COMPILED else 0.0
    compare(*both_logits(*shape), target, gate=gate, min_class_weight=0.05, rounding=rounding)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes(poisoned_memory, gate, dtype):
    # Each gate and each dtype meets both kinds of labels.
    target_dtype = (torch.uint8, torch.int64)[(GATES.index(gate) + FLOATS.index(dtype)) % 2]
    x1, x2 = both_logits(2, 4, 6, 5, 4, dtype=dtype)
    target = labels(2, 6, 5, 4, dtype=target_dtype)
    assert ours(x1, x2, target, gate=gate)[1].dtype == torch.promote_types(dtype, torch.float32)
    compare(x1, x2, target, gate=gate)


def test_branches_of_different_dtypes(poisoned_memory):
    x1, x2 = both_logits(2, 4, 5, 4, 3)
    compare(x1.bfloat16(), x2, labels(2, 5, 4, 3))


def test_programs_that_walk_over_several_tiles(poisoned_memory, monkeypatch):
    monkeypatch.setattr("smml_kernels.common.tiles._PROGRAMS", 4)
    compare(*both_logits(2, 4, 17, 16, 11), labels(2, 17, 16, 11, seed=3))


@pytest.mark.parametrize("layout", ["channels last", "transposed", "every other", "one of each", "expanded"])
def test_strides(layout):
    (x1, x2), target = both_logits(2, 4, 6, 8, 4), labels(2, 6, 8, 4, dtype=torch.int64)
    if layout == "channels last":
        x1, x2 = (x.to(memory_format=torch.channels_last_3d) for x in (x1, x2))
    elif layout == "transposed":
        x1, x2, target = x1.transpose(2, 4), x2.transpose(2, 4), target.transpose(1, 3)
    elif layout == "every other":
        x1, x2, target = x1[:, :, ::2], x2[:, :, ::2], target[:, ::2]
    elif layout == "one of each":
        x1 = x1.to(memory_format=torch.channels_last_3d)
    elif layout == "expanded":
        x1, target = x1[:1].expand(2, -1, -1, -1, -1), target[:1].expand(2, -1, -1, -1)
    compare(x1, x2, target)


@pytest.mark.parametrize("gate", GATES)
def test_equal_branches_teach_nothing(gate):
    """Every voxel is a tie: with "lower_ce" and "entropy" the sum of gates is 0, with the others the divergence is."""
    x = both_logits(2, 4, 5, 4, 3)[0]
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    losses = ours(*leaves, labels(2, 5, 4, 3), gate=gate)
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    assert all((g == 0).all() for g in torch.autograd.grad(sum(losses), leaves))


def test_the_first_of_two_equal_classes_is_the_argmax():
    x1 = torch.tensor([1.0, 1.0, 0.0], device=DEVICE).view(1, 3, 1, 1, 1).expand(1, 3, 2, 1, 1)
    x2 = torch.zeros(1, 3, 2, 1, 1, device=DEVICE)
    for label in (0, 1):
        target = torch.tensor([label, 2], dtype=torch.uint8, device=DEVICE).view(1, 2, 1, 1)
        compare(x1, x2, target, gate="correct", min_class_weight=0.5)
        assert (ours(x1, x2, target, gate="correct", min_class_weight=0.5)[0] > 0) == (label == 0)


@pytest.mark.parametrize("minimum", [0.0, 0.05])
@pytest.mark.parametrize("target", ["one class", "absent class", "one class in one sample"])
def test_classes_that_fill_a_patch_or_are_absent(target, minimum):
    y = labels(2, 4, 3, 5)
    if target == "one class":
        y.zero_()
    elif target == "absent class":
        y[y == 2] = 1
    else:
        y[1] = 3
    compare(*both_logits(2, 4, 4, 3, 5), y, min_class_weight=minimum)


@pytest.mark.parametrize("spread", [30.0, 1e4])
@pytest.mark.parametrize("gate", GATES)
def test_logits_far_apart(spread, gate):
    compare(*both_logits(1, 4, 5, 4, 3, spread=spread), labels(1, 5, 4, 3), gate=gate)


@pytest.mark.parametrize("gate", GATES)
def test_logits_that_nearly_agree(gate):
    """sum p (log p - log q) then cancels, in eager PyTorch too: the value is right to the rounding of log p alone."""
    x1, x2 = both_logits(1, 4, 5, 4, 3, dtype=torch.float64, spread=1e-3)
    target = labels(1, 5, 4, 3)
    found = ours(x1.float(), x2.float(), target, gate=gate)
    expected = reference.exchange_loss(x1.float().double(), x2.float().double(), target, gate=gate)
    for one, exact in zip(found, expected, strict=True):
        assert 0 < exact < 1e-5
        assert abs(one.item() - exact.item()) < torch.finfo(torch.float32).eps


@pytest.mark.parametrize("upstream", [(1.0, 0.0), (0.0, -2.5), (0.3, 7.0)])
def test_upstream_gradients_of_each_direction(upstream):
    compare(*both_logits(2, 4, 5, 4, 3), labels(2, 5, 4, 3), upstream=upstream)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_each_direction_teaches_the_learner_alone(needed):
    x1, x2 = both_logits(2, 4, 5, 4, 3)
    target = labels(2, 5, 4, 3)
    x1.requires_grad_(needed[0])
    x2.requires_grad_(needed[1])
    learner = x1 if needed[0] else x2
    found = torch.autograd.grad(sum(ours(x1, x2, target)), learner)[0]
    expected = torch.autograd.grad(sum(reference.exchange_loss(x1, x2, target)), learner)[0]
    assert error(found, expected) < 1e-6
    one_direction = torch.autograd.grad(ours(x1, x2, target)[1 if needed[0] else 0], learner)[0]
    assert torch.equal(found, one_direction)


def test_one_tensor_as_both_branches():
    x, target = both_logits(2, 4, 5, 4, 3)[0].requires_grad_(), labels(2, 5, 4, 3)
    found = torch.autograd.grad(sum(ours(x, x.flip(2), target)), x)[0]
    expected = torch.autograd.grad(sum(reference.exchange_loss(x, x.flip(2), target)), x)[0]
    assert error(found, expected) < 1e-6


def test_the_same_twice_and_after_a_first_backward(poisoned_memory):
    x1, x2 = (x.requires_grad_() for x in both_logits(2, 4, 9, 7, 5))
    target = labels(2, 9, 7, 5)
    before = x1.detach().clone(), x2.detach().clone()
    losses = ours(x1, x2, target)
    first = torch.autograd.grad(sum(losses), (x1, x2), retain_graph=True)
    second = torch.autograd.grad(sum(losses), (x1, x2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(losses, ours(x1, x2, target), strict=True))
    assert torch.equal(x1, before[0])
    assert torch.equal(x2, before[1])


def test_differentiating_twice_is_a_clear_error():
    x1, x2 = (x.requires_grad_() for x in both_logits(1, 4, 3, 3, 3))
    gradient = torch.autograd.grad(ours(x1, x2, labels(1, 3, 3, 3))[0], x2, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"exchange_loss by Triton .* implementation='torch'"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy, which interprets, says so
@pytest.mark.parametrize("gate", GATES)
def test_nan_stays_visible(gate):
    x1, x2 = both_logits(1, 4, 3, 3, 3)
    x1[0, 2, 1, 1, 1] = float("nan")
    target = labels(1, 3, 3, 3)
    found, expected = ours(x1, x2, target, gate=gate), reference.exchange_loss(x1, x2, target, gate=gate)
    assert [loss.isnan().item() for loss in found] == [loss.isnan().item() for loss in expected]
    assert any(loss.isnan() for loss in found)


@pytest.mark.parametrize(("classes", "label"), [(4, 4), (3, 3), (5, 6)])  # with 3 and 5 a tile has rows of padding
def test_a_label_without_a_class_is_nan(classes, label):
    x1, x2 = both_logits(1, classes, 3, 3, 3)
    target = labels(1, 3, 3, 3, classes=classes)
    target[0, 0, 0, 0] = label
    assert all(loss.isnan() for loss in ours(x1, x2, target))


def test_it_refuses_what_the_reference_refuses():
    x, target = torch.zeros(2, 4, 2, 2, 2, device=DEVICE), torch.zeros(2, 2, 2, 2, dtype=torch.int64, device=DEVICE)
    for arguments, options, message in (
        ((x, x, target[:1]), {}, "target must be"),
        ((x, x[:, :1], target), {}, "one shape"),
        ((x, x, None), {}, "needs a target"),
        ((x, x, target), {"gate": "loudest"}, "unknown gate"),
        ((x[:0], x[:0], target[:0]), {}, "empty"),
        ((x, x, target), {"min_class_weight": 1.1}, "min_class_weight"),
    ):
        with pytest.raises(ValueError, match=message):
            ours(*arguments, **options)
    assert ours(x, x, None, gate="entropy")[0].item() == 0


@pytest.mark.parametrize("gate", ["lower_ce", "none"])
def test_gradcheck(gate):
    """The gate's weights do not move with the logits, but the teacher does: each direction for its learner alone."""
    x1, x2 = both_logits(1, 3, 3, 2, 2, dtype=torch.float64)
    target = labels(1, 3, 2, 2, classes=3)
    options = {"gate": gate, "min_class_weight": 0.1}
    assert gradcheck(lambda x: ours(x1, x, target, **options)[0], x2.clone().requires_grad_(), fast_mode=True)
    assert gradcheck(lambda x: ours(x, x2, target, **options)[1], x1.clone().requires_grad_(), fast_mode=True)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    classes=st.integers(1, 6),
    size=st.tuples(*[st.integers(1, 7)] * 3),
    gate=st.sampled_from(GATES),
    minimum=WEIGHTS,
)
def test_any_size_and_gate(seed, batch, classes, size, gate, minimum):
    target = labels(batch, *size, classes=classes, seed=seed)
    compare(
        *both_logits(batch, classes, *size, seed=seed), target, gate=gate, min_class_weight=minimum, rounding=2**-22
    )


@pytest.mark.parametrize("gate", ["lower_ce", "entropy"])
def test_opcheck(gate):
    x1, x2 = both_logits(2, 3, 4, 3, 2)
    target = labels(2, 4, 3, 2, classes=3) if gate == "lower_ce" else None
    ours(x1, x2, target, gate=gate)  # registers
    op, backward = torch.ops.smml_kernels.exchange.default, torch.ops.smml_kernels.exchange_backward.default
    torch.library.opcheck(op, (x1.clone().requires_grad_(), x2.clone().requires_grad_(), target, gate, 0.05, ""))
    turned = None if target is None else target.transpose(1, 3)
    torch.library.opcheck(op, (x1.transpose(2, 4), x2.transpose(2, 4), turned, gate, 0.05, ""), test_utils=OF_STRIDES)
    coefficients = op(x1, x2, target, gate, 0.05, "")[2]
    one = torch.ones((), device=DEVICE)
    # Which gradients are asked for does not depend on the gate: each of the two tests takes a part.
    for needed in ((True, True), (True, False)) if gate == "lower_ce" else ((False, True),):
        arguments = (one, one, x1, x2, target, coefficients, gate, *needed)
        torch.library.opcheck(backward, arguments, test_utils=OF_STRIDES)


def test_compiled_without_a_graph_break():
    target = labels(2, 5, 4, 3)

    def step(x1, x2):
        one, two = ours(x1.sin(), x2, target)
        return one + 2 * two

    results = []
    for compute in (step, torch.compile(step, fullgraph=True, backend=COMPILER)):
        leaves = [x.requires_grad_() for x in both_logits(2, 4, 5, 4, 3)]
        loss = compute(*leaves)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for compiled, eager in zip(*reversed(results), strict=True):
        assert error(compiled, eager) <= ATOL[torch.float32]


def test_offsets_beyond_32_bits():
    """A class stride of more than 2^31 elements: an int32 offset would wrap."""
    far = 2**31 + 8
    memory = torch.empty(far + 64, dtype=torch.bfloat16, device=DEVICE)  # lazily mapped on the CPU
    x1 = memory.as_strided((1, 2, 2, 2, 2), (0, far, 4, 2, 1))
    first, x2 = both_logits(1, 2, 2, 2, 2, dtype=torch.bfloat16)
    x1.copy_(first)
    compare(x1, x2, labels(1, 2, 2, 2, classes=2))
    compare(x2, x1, labels(1, 2, 2, 2, classes=2))
