"""The hand-written linear form of L_rel in PyTorch against the reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from smml_kernels import reference, relation_loss
from smml_kernels.relation import torch_linear


def tokens(n, c, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator, dtype=torch.float64).to(dtype)


def measure(compute, f1, f2, weight, upstream=1.0):
    leaves = [f.clone().requires_grad_() for f in (f1, f2)]
    loss = compute(*leaves, weight, form="linear")
    return loss.detach(), torch.autograd.grad(upstream * loss, leaves)


def compare(f1, f2, weight=None, upstream=1.0, tolerance=1e-10):
    loss, gradients = measure(torch_linear.torch_relation_loss, f1, f2, weight, upstream)
    exact, expected = measure(reference.relation_loss, f1, f2, weight, upstream)
    assert loss.dtype == exact.dtype
    assert abs(loss.item() - exact.item()) <= tolerance * max(1.0, abs(exact.item()))
    for found, wanted in zip(gradients, expected, strict=True):
        assert found.dtype == wanted.dtype
        assert (found - wanted).norm() <= tolerance * wanted.norm() + 1e-13  # one token has no gradient but rounding


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 40), c=st.integers(1, 9), block=st.integers(1, 50))
def test_it_is_the_reference_whatever_the_blocks(seed, n, c, block):
    before, torch_linear._BLOCK = torch_linear._BLOCK, block
    try:
        weight = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        compare(tokens(n, c, seed), tokens(n, c, seed + 1), weight, upstream=-1.7)
    finally:
        torch_linear._BLOCK = before


def test_more_tokens_than_a_block_holds_without_weights():
    compare(tokens(2500, 6), tokens(2500, 6, seed=2), tolerance=1e-9)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("magnitude", [1e-2, 1e-4, 1e-6])
def test_digits_stay_where_the_branches_nearly_agree(rotated, magnitude):
    f1 = tokens(300, 8)
    f2 = f1 + math.sqrt(magnitude) * tokens(300, 8, seed=2)
    if rotated:
        f2 = 11 * f2 @ torch.linalg.qr(tokens(8, 8, seed=3))[0]
    compare(f1.float(), f2.float(), tolerance=1e-6)


def test_zero_rows_count_and_get_no_gradient():
    f1, f2 = tokens(30, 6), tokens(30, 6, seed=2)
    f1[[2, 5]] = 0
    f2[[5, 9]] = 0
    compare(f1, f2)
    gradients = measure(torch_linear.torch_relation_loss, f1, f2, None)[1]
    assert torch.equal(gradients[0][[2, 5]], torch.zeros(2, 6, dtype=torch.float64))
    assert torch.equal(gradients[1][[5, 9]], torch.zeros(2, 6, dtype=torch.float64))
    compare(torch.zeros(4, 3), torch.zeros(4, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_give_a_float32_loss(dtype):
    compare(tokens(40, 5, dtype=dtype), tokens(40, 5, seed=2, dtype=dtype), tolerance=1e-6)
    compare(tokens(40, 5, dtype=dtype), tokens(40, 5, seed=2), tolerance=1e-6)


def test_gradcheck_and_one_branch_alone():
    f1, f2 = tokens(9, 4).requires_grad_(), tokens(9, 4, seed=2).requires_grad_()
    assert gradcheck(lambda a, b: torch_linear.torch_relation_loss(a, b, form="linear"), (f1, f2))
    alone = torch.autograd.grad(torch_linear.torch_relation_loss(f1, f2.detach(), form="linear"), f1)[0]
    both = torch.autograd.grad(torch_linear.torch_relation_loss(f1, f2, form="linear"), f1)[0]
    assert torch.equal(alone, both)


def test_nan_stays_visible():
    f1 = tokens(20, 4)
    f1[3, 2] = float("nan")
    assert torch_linear.torch_relation_loss(f1, tokens(20, 4, seed=2), form="linear").isnan()


def test_memory_grows_with_the_tokens_not_with_their_square():
    """The largest tensor that is made while the loss and its gradient are computed."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    Largest.elements = max(Largest.elements, tensor.numel())
            return result

    with Largest():
        measure(relation_loss, tokens(4000, 8), tokens(4000, 8, seed=2), None)
    assert Largest.elements <= 3 * 4000 * 8
