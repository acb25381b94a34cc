"""The Triton kernels of dice_ce_loss against the float64 reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from triton_checks import (
    ATOL,
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

from smml_kernels import dice_ce_loss, reference

pytestmark = needs_triton

SHAPES = [(1, 2, 1, 1, 1), (2, 4, 9, 7, 5), (3, 5, 4, 3, 2), (1, 3, 11, 13, 9), (2, 1, 3, 3, 3)]


def ours(x, target, **options):
    return dice_ce_loss(x, target, implementation="triton", **options)


def prediction(*shape, from_logits=True, dtype=torch.float32, seed=1, spread=3.0):
    x = spread * randn(*shape, seed=seed, dtype=torch.float64)
    return (x if from_logits else x.softmax(dim=1)).to(dtype)


def compare(x, target, upstream=1.0, **options):
    """Value and gradient against eager PyTorch in the same dtype and in float64."""
    results = []
    for compute, dtype in ((ours, x.dtype), (reference.dice_ce_loss, x.dtype), (reference.dice_ce_loss, torch.float64)):
        leaf = x.detach().to(dtype).requires_grad_()
        loss = compute(leaf, target, **options)
        results.append((loss, *torch.autograd.grad(upstream * loss, leaf)))
    (loss, gradient), (eager_loss, eager_gradient), (exact_loss, exact_gradient) = results
    assert_as_good_as_eager(loss, eager_loss, exact_loss)
    assert_as_good_as_eager(gradient, eager_gradient, exact_gradient)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("minimum", [0.0, 0.05])
def test_value_and_gradient_over_odd_sizes(poisoned_memory, shape, from_logits, minimum):
    x = prediction(*shape, from_logits=from_logits)
    target = labels(shape[0], *shape[2:], classes=shape[1], seed=2)
    compare(x, target, from_logits=from_logits, min_class_weight=minimum)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("from_logits", [True, False])
def test_dtypes(poisoned_memory, dtype, target_dtype, from_logits):
    x = prediction(2, 4, 6, 5, 4, from_logits=from_logits, dtype=dtype)
    target = labels(2, 6, 5, 4, dtype=target_dtype)
    assert ours(x, target, from_logits=from_logits).dtype == torch.promote_types(dtype, torch.float32)
    compare(x, target, from_logits=from_logits, min_class_weight=0.05)


@when_compiled
def test_another_least_class_weight_compiles_nothing():
    from smml_kernels.dice_ce import op

    x, target = prediction(2, 4, 8, 8, 10), labels(2, 8, 8, 10)
    compare(x, target, min_class_weight=0.3)
    before = compilations(op._finish_kernel)
    assert before > 0
    compare(x, target, min_class_weight=0.7)
    assert compilations(op._finish_kernel) == before


def test_a_volume_of_many_tiles_and_programs(poisoned_memory):
    """More voxels than a tile holds, and a last tile that is not full."""
    x = prediction(2, 4, 17, 16, 9)
    compare(x, labels(2, 17, 16, 9, seed=3), min_class_weight=0.05)


def test_programs_that_walk_over_several_tiles(poisoned_memory, monkeypatch):
    monkeypatch.setattr("smml_kernels.common.tiles._PROGRAMS", 4)
    compare(prediction(2, 4, 17, 16, 11), labels(2, 17, 16, 11, seed=3))


@pytest.mark.parametrize("layout", ["channels last", "transposed", "every other", "offset", "expanded", "one channel"])
def test_strides(layout):
    x, target = prediction(2, 4, 6, 8, 4), labels(2, 6, 8, 4, dtype=torch.int64)
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last_3d)
    elif layout == "transposed":
        x, target = x.transpose(2, 4), target.transpose(1, 3)
    elif layout == "every other":
        x, target = x[:, :, ::2, :, 1::2], target[:, ::2, :, 1::2]
    elif layout == "offset":
        x = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
        target = torch.cat([target.new_zeros(1), target.flatten()])[1:].view(target.shape)
    elif layout == "expanded":
        x, target = x[:1].expand(2, -1, -1, -1, -1), target[:1].expand(2, -1, -1, -1)
    elif layout == "one channel":
        x = prediction(2, 8, 6, 8, 4)[:, 1::2]
    compare(x, target, min_class_weight=0.05)


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
    compare(prediction(2, 4, 4, 3, 5), y, min_class_weight=minimum)


def test_hopeless_and_certain_voxels_meet_the_clamp_as_the_reference_does():
    x = torch.zeros(1, 2, 2, 2, 2, device=DEVICE)
    x[:, 1] = torch.tensor([-40.0, -5.29, -5.3, 0, 5.3, 40, 100, -100], device=DEVICE).view(2, 2, 2)
    compare(x, torch.zeros(1, 2, 2, 2, dtype=torch.uint8, device=DEVICE), min_class_weight=0.5)
    p = torch.tensor([0.0, 0.005, 0.00499, 1.0, 0.5, 0.2, 1e-30, 0.9], device=DEVICE).view(1, 1, 2, 2, 2)
    y = torch.tensor([0, 1], device=DEVICE, dtype=torch.uint8).repeat(4).view(1, 2, 2, 2)
    compare(torch.cat([p, 1 - p], dim=1), y, from_logits=False)


def test_large_logits_do_not_overflow():
    compare(1e4 * prediction(1, 4, 3, 3, 3), labels(1, 3, 3, 3))


@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0])
def test_upstream_gradients(upstream):
    compare(prediction(2, 4, 5, 4, 3), labels(2, 5, 4, 3), upstream=upstream)


def test_an_expanded_upstream_gradient_and_a_graph_round_the_loss():
    x, target = prediction(2, 4, 5, 4, 3).requires_grad_(), labels(2, 5, 4, 3)
    both = torch.stack([ours(x, target), ours(2 * x, target)])
    gradient = torch.autograd.grad(both, x, torch.ones(1, device=DEVICE).expand(2))[0]
    expected = torch.autograd.grad(reference.dice_ce_loss(x, target) + reference.dice_ce_loss(2 * x, target), x)[0]
    assert error(gradient, expected) < 1e-6


def test_the_same_twice_and_after_a_first_backward(poisoned_memory):
    x, target = prediction(2, 4, 9, 7, 5).requires_grad_(), labels(2, 9, 7, 5)
    before = x.detach().clone()
    loss = ours(x, target)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    second = torch.autograd.grad(loss, x)[0]
    assert torch.equal(first, second)
    assert torch.equal(loss, ours(x, target))
    assert torch.equal(x, before), "the gradient must not be written into the input"
    assert first.data_ptr() != x.data_ptr()


def test_no_gradient_is_computed_where_none_is_needed():
    x, target = prediction(1, 4, 3, 3, 3), labels(1, 3, 3, 3)
    assert not ours(x, target).requires_grad
    with torch.no_grad():
        assert not ours(x.requires_grad_(), target).requires_grad


def test_differentiating_twice_is_a_clear_error():
    x, target = prediction(1, 4, 3, 3, 3).requires_grad_(), labels(1, 3, 3, 3)
    gradient = torch.autograd.grad(ours(x, target), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"dice_ce_loss by Triton .* implementation='torch'"):
        gradient.sum().backward()


def test_nan_stays_visible():
    x, target = prediction(1, 4, 3, 3, 3), labels(1, 3, 3, 3)
    x[0, 2, 1, 1, 1] = float("nan")
    assert ours(x, target).isnan()


@pytest.mark.parametrize(("classes", "label"), [(4, 4), (3, 3), (5, 6)])  # with 3 and 5 a tile has rows of padding
def test_a_label_without_a_class_is_nan(classes, label):
    x, target = prediction(1, classes, 3, 3, 3), labels(1, 3, 3, 3, classes=classes)
    target[0, 0, 0, 0] = label
    assert ours(x, target).isnan()


def test_it_refuses_what_the_reference_refuses():
    x, target = torch.zeros(2, 4, 2, 2, 2, device=DEVICE), torch.zeros(2, 2, 2, 2, dtype=torch.int64, device=DEVICE)
    for x_, target_, options, message in (
        (x, target[:1], {}, "target must be"),
        (x, target.float(), {}, "uint8 or int64"),
        (x[:0], target[:0], {}, "empty"),
        (x.long(), target, {}, "floating-point"),
        (x, target, {"min_class_weight": -0.1}, "min_class_weight"),
    ):
        with pytest.raises(ValueError, match=message):
            ours(x_, target_, **options)


@pytest.mark.parametrize("from_logits", [True, False])
def test_gradcheck(from_logits):
    x = prediction(2, 3, 3, 2, 2, from_logits=from_logits, dtype=torch.float64).requires_grad_()
    target = labels(2, 3, 2, 2, classes=3)
    assert gradcheck(lambda x: ours(x, target, from_logits=from_logits, min_class_weight=0.1), x, fast_mode=True)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    classes=st.integers(1, 6),
    size=st.tuples(*[st.integers(1, 7)] * 3),
    minimum=WEIGHTS,
    spread=st.floats(0, 30),
)
def test_any_size_and_spread(seed, batch, classes, size, minimum, spread):
    x = prediction(batch, classes, *size, seed=seed, spread=spread)
    compare(x, labels(batch, *size, classes=classes, seed=seed), min_class_weight=minimum)


@pytest.mark.parametrize(("dtype", "from_logits"), [(torch.float32, True), (torch.bfloat16, False)])
def test_opcheck(dtype, from_logits):
    x = prediction(2, 3, 4, 3, 2, from_logits=from_logits, dtype=dtype)
    target = labels(2, 4, 3, 2, classes=3)
    op, backward = torch.ops.smml_kernels.dice_ce.default, torch.ops.smml_kernels.dice_ce_backward.default
    ours(x, target)  # registers
    torch.library.opcheck(op, (x.clone().requires_grad_(), target, from_logits, 0.05, ""))
    turned = (x.transpose(2, 4), target.transpose(1, 3), from_logits, 0.05, "")
    torch.library.opcheck(op, turned, test_utils=OF_STRIDES)
    _, coefficients = op(x, target, from_logits, 0.05, "")
    torch.library.opcheck(backward, (torch.ones((), device=DEVICE), x, target, coefficients, from_logits))


def test_compiled_without_a_graph_break():
    target = labels(2, 5, 4, 3)

    def step(x):
        return ours(x.sin(), target, min_class_weight=0.05).square()

    x = prediction(2, 4, 5, 4, 3)
    results = []
    for compute in (step, torch.compile(step, fullgraph=True, backend=COMPILER)):
        leaf = x.clone().requires_grad_()
        loss = compute(leaf)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for compiled, eager in zip(*reversed(results), strict=True):
        assert error(compiled, eager) <= ATOL[torch.float32]


def test_autocast_does_not_lower_the_precision():
    x, target = prediction(2, 4, 5, 4, 3), labels(2, 5, 4, 3)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.equal(ours(x, target), ours(x, target))
        inside = ours(x, target)
    assert torch.equal(inside, ours(x, target))


def test_offsets_beyond_32_bits():
    """A class stride of more than 2^31 elements: an int32 offset would wrap."""
    far = 2**31 + 8
    memory = torch.empty(far + 64, dtype=torch.bfloat16, device=DEVICE)  # lazily mapped on the CPU
    x = memory.as_strided((1, 2, 2, 2, 2), (0, far, 4, 2, 1))
    x.copy_(prediction(1, 2, 2, 2, 2, dtype=torch.bfloat16))
    compare(x, labels(1, 2, 2, 2, classes=2))
