"""The Triton kernels of relation_loss against the float64 reference and against the N x N definition in float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from triton_checks import (
    ATOL,
    COMPILED,
    COMPILER,
    DEVICE,
    FLOATS,
    HAS_TRITON,
    OF_STRIDES,
    assert_as_good_as_eager,
    error,
    needs_triton,
    randn,
)

from smml_kernels import reference

if HAS_TRITON:
    from smml_kernels.relation import difference, direct, linear, op, rows

pytestmark = needs_triton
both_forms = pytest.mark.parametrize("form", ["linear", "direct"])


@pytest.fixture(autouse=True)
def _wide_slices(request, monkeypatch):
    """Interpreted, a loop costs by its iterations: half as many, but for the test of odd sizes."""
    if not COMPILED and "odd_sizes" not in request.node.name:
        monkeypatch.setattr(linear, "_SLICE", 32)


def ours(f1, f2, weight=None, form="linear", group=""):
    return op.relation_loss(f1, f2, weight, form=form, group=group)


def features(n, c, seed=1, dtype=torch.float32):
    return randn(n, c, seed=seed, dtype=dtype), randn(n, c, seed=seed + 1000, dtype=dtype)


def weights(n, dtype=torch.float32):
    return torch.rand(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(DEVICE, dtype)


def n_by_n(f1, f2, weight=None):
    """The definition as PyTorch would compute it, in the dtype of the features (float32 for half precision)."""
    f1, f2 = (f.to(torch.promote_types(f.dtype, torch.float32)) for f in (f1, f2))
    unit1, unit2 = (torch.nn.functional.normalize(f @ f.T, dim=1) for f in (f1, f2))
    per_token = (unit1 - unit2).square().sum(1)
    return per_token.mean() if weight is None else (weight.to(f1.dtype) * per_token).sum()


def with_gradients(compute, f1, f2, *rest, upstream=1.0, **options):
    leaves = [f.detach().requires_grad_() for f in (f1, f2)]
    loss = compute(*leaves, *rest, **options)
    return loss.detach(), *torch.autograd.grad(upstream * loss, leaves)


def compare(f1, f2, weight=None, form="linear", eager=reference.relation_loss, upstream=1.0, rounded=False):
    """Value and gradients against eager PyTorch in the same dtype and in float64.

    With ``rounded`` an error that rounding G and its sums explains is enough: where eager PyTorch happens to do better,
    and whether it does depends on the machine's matrix product.
    """
    found = with_gradients(ours, f1, f2, weight, form=form, upstream=upstream)
    eager = with_gradients(eager, f1, f2, weight, upstream=upstream)
    exact = with_gradients(reference.relation_loss, f1.double(), f2.double(), weight, upstream=upstream)
    atol = rounding(found[0], exact[0], weight, len(f1) if form == "direct" else 0) if rounded else 0.0
    for one, other, truth in zip(found, eager, exact, strict=True):
        assert_as_good_as_eager(one, other, truth, atol=max(ATOL[one.dtype], atol))
    return found


def rounding(found, exact, weight, summed):
    """What one rounding of G, and those of a sum of so many float32 numbers, may cost.

    L sums squares of differences, so the relative error that G brings grows with 1 / sqrt(L). Of the odd sizes, two
    tokens with many channels nearly agree (L = 0.008), and 65 tokens make the gradient a sum of 65.
    """
    total = 1.0 if weight is None else weight.double().sum().item()
    return torch.finfo(found.dtype).eps * (2 * (total / max(exact.item(), 1e-12)) ** 0.5 + summed**0.5)


@both_forms
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "c"), [(33, 5), (2, 33), (70, 20), (65, 1)])
def test_value_and_gradients_over_odd_sizes(poisoned_memory, form, n, c, weighted):
    compare(*features(n, c), weights(n) if weighted else None, form, rounded=True)


@both_forms
@pytest.mark.parametrize("c", [1, 3])
def test_one_token_agrees_with_itself(poisoned_memory, form, c):
    loss, *gradients = with_gradients(ours, *features(1, c), form=form)
    assert abs(loss.item()) < 1e-6
    assert all(g.abs().max() < 1e-5 for g in gradients)


def test_more_channels_than_a_tile(poisoned_memory):
    compare(*features(20, 70), weights(20))
    compare(*features(20, 130), weights(20), "direct")


def test_many_programs_share_the_sum_over_tokens(poisoned_memory, monkeypatch):
    monkeypatch.setattr(linear, "_SHARE", 32)
    compare(*features(100, 5), weights(100))
    monkeypatch.setattr(linear, "_TILE", 16)  # tiles below the diagonal are copies
    compare(*features(40, 33), weights(40))
    monkeypatch.setattr(direct, "_PROGRAMS", 4)  # a program walks over several tiles
    compare(*features(140, 3), weights(140), "direct")


@both_forms
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes(poisoned_memory, form, dtype):
    f1, f2 = features(30, 6, dtype=dtype)
    loss, *gradients = compare(f1, f2, weights(30, torch.float64), form)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert all(g.dtype == dtype and g.is_contiguous() for g in gradients)


@both_forms
def test_branches_of_different_dtypes(form):
    f1, f2 = features(20, 6)
    found = with_gradients(ours, f1, f2.bfloat16(), form=form)
    exact = with_gradients(reference.relation_loss, f1, f2.bfloat16())
    assert [t.dtype for t in found] == [torch.float32, torch.float32, torch.bfloat16]
    for one, truth in zip(found, exact, strict=True):
        assert error(one, truth) <= ATOL[one.dtype]


@both_forms
@pytest.mark.parametrize("layout", ["transposed", "every other", "one of each", "expanded", "offset", "other order"])
def test_strides(form, layout):
    f1, f2 = features(34, 6)
    if layout == "transposed":
        f1, f2 = (f.T.contiguous().T for f in (f1, f2))
    elif layout == "every other":
        f1, f2 = features(68, 12)[0][::2, 1::2], features(68, 12)[1][1::2, ::2]
    elif layout == "one of each":
        f2 = f2.T.contiguous().T
    elif layout == "expanded":
        f1 = f1[:1].expand(34, -1)
    elif layout == "offset":
        f1 = torch.cat([f1.new_zeros(1), f1.flatten()])[1:].view(f1.shape)
    elif layout == "other order":
        f1, f2 = (f.unflatten(0, (2, 17)).permute(1, 0, 2).flatten(0, 1) for f in (f1, f2))
    compare(f1, f2, weights(34), form)


@both_forms
@pytest.mark.parametrize("kind", ["float64", "bfloat16", "stride 0", "every other", "zero", "wants a gradient"])
def test_weights(form, kind):
    w = weights(30)
    w = {
        "float64": w.double(),
        "bfloat16": w.bfloat16(),
        "stride 0": w[:1].expand(30),
        "every other": weights(60)[::2],
        "zero": torch.zeros_like(w),
        "wants a gradient": w.clone().requires_grad_(),
    }[kind]
    compare(*features(30, 5), w, form)
    assert w.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_see_weights_of_half_precision_as_float32(dtype):
    """Triton 3.6 cannot compile float64 products of what such weights have scaled."""
    w, stride = rows.weight_arguments(weights(60, dtype)[::2], torch.empty(0))
    assert w.dtype == torch.float32
    assert w.stride(0) == stride
    assert torch.equal(w, weights(60, dtype)[::2].float())


@both_forms
def test_zero_rows_count_what_is_there_and_get_no_gradient(poisoned_memory, form):
    f1, f2 = features(30, 6)
    f1[[2, 5]] = 0
    f2[[5, 9]] = 0
    _, gradient1, gradient2 = compare(f1, f2, weights(30), form)
    assert (gradient1[[2, 5]] == 0).all()
    assert (gradient2[[5, 9]] == 0).all()
    assert (gradient1[9] != 0).any(), "a row that is zero in the other branch alone still learns"


@both_forms
@pytest.mark.parametrize(("zero1", "zero2", "expected"), [(True, False, 1.0), (True, True, 0.0), (False, True, 1.0)])
def test_branches_of_nothing(poisoned_memory, form, zero1, zero2, expected):
    f1, f2 = features(5, 3)
    loss, *gradients = with_gradients(ours, f1 * (not zero1), f2 * (not zero2), form=form)
    assert loss.item() == expected
    assert all((g == 0).all() for g in gradients)


@both_forms
@pytest.mark.parametrize("scale", [1e-41, 1e-35, 1e-12, 1e12, 1e38])
def test_huge_and_tiny_features(form, scale):
    f1 = (scale * randn(20, 4).clamp(-3, 3).double()).float()
    found = with_gradients(ours, f1, f1.flip(0) * 0.25, form=form)
    exact = with_gradients(reference.relation_loss, f1, f1.flip(0) * 0.25)
    assert error(found[0], exact[0]) < 1e-6
    if scale > 1e-38:  # below, the true gradient (about 1 / scale) is beyond float32
        for one, truth in zip(found[1:], exact[1:], strict=True):
            assert error(one / truth.abs().max(), truth / truth.abs().max()) < 1e-6


@both_forms
def test_a_large_mean(form):
    """All similarities are nearly equal: what differs is 1e-6 of them."""
    f1, f2 = features(30, 6)
    compare(f1 + 1000, f2 + 1000, weights(30), form, eager=n_by_n, rounded=form == "direct")


@both_forms
@pytest.mark.parametrize("copy", ["plain", "rotated", "scaled", "rotated and scaled"])
@pytest.mark.parametrize("magnitude", [1e-2, 1e-6])
def test_near_agreement_keeps_the_digits_of_the_definition(form, copy, magnitude):
    f1 = randn(48, 8, seed=1)
    f2 = f1 + magnitude**0.5 * 0.7 * randn(48, 8, seed=2)
    if "rotated" in copy:
        f2 = f2 @ torch.linalg.qr(randn(8, 8, seed=3))[0]
    if "scaled" in copy:
        f2 = 37 * f2
    # The linear form is as good as float64. On a GPU the eager form's matrix product is another one, and happens to be
    # four times nearer (an H200).
    eager = n_by_n if form == "direct" else reference.relation_loss
    loss, *_ = compare(f1, f2, weights(48) / 48, form, eager, rounded=form == "direct" and DEVICE == "cuda")
    assert 0.01 * magnitude < loss < 10 * magnitude


@both_forms
def test_branches_that_agree_exactly(form):
    f1, _ = features(30, 6)
    loss, *gradients = with_gradients(ours, f1, f1.clone(), form=form)
    assert abs(loss.item()) < 1e-12
    assert all(g.norm() < 1e-6 for g in gradients)


@both_forms
@pytest.mark.parametrize("upstream", [-2.5, 0.0])
def test_upstream_gradients(form, upstream):
    compare(*features(30, 5), weights(30), form, upstream=upstream)


@both_forms
def test_an_expanded_upstream_gradient_and_a_graph_round_the_loss(form):
    f1, f2 = features(20, 5)
    f1.requires_grad_()
    both = torch.stack([ours(f1, f2, form=form), ours(f2, f1 * f1, form=form)])
    gradient = torch.autograd.grad(both, f1, torch.ones(1, device=DEVICE).expand(2))[0]
    expected = reference.relation_loss(f1, f2) + reference.relation_loss(f2, f1 * f1)
    assert error(gradient, torch.autograd.grad(expected, f1)[0]) < 1e-6


@both_forms
def test_the_same_twice_and_after_a_first_backward(poisoned_memory, form):
    f1, f2 = (f.requires_grad_() for f in features(70, 5))
    before = f1.detach().clone()
    loss = ours(f1, f2, form=form)
    first = torch.autograd.grad(loss, (f1, f2), retain_graph=True)
    second = torch.autograd.grad(loss, (f1, f2))
    again = with_gradients(ours, f1, f2, form=form)
    assert torch.equal(loss, again[0])
    for one, two, three in zip(first, second, again[1:], strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert torch.equal(f1, before), "the gradient must not be written into the input"


@both_forms
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_gradients_of_some_inputs(form, wanted):
    f1, f2 = (f.requires_grad_(w) for f, w in zip(features(20, 5), wanted, strict=True))
    loss = ours(f1, f2, form=form)
    assert loss.requires_grad == any(wanted)
    if not any(wanted):
        return
    loss.backward()
    expected = with_gradients(reference.relation_loss, f1, f2)[1:]
    for f, w, truth in zip((f1, f2), wanted, expected, strict=True):
        assert (f.grad is not None) == w
        assert not w or error(f.grad, truth) < 1e-6


@both_forms
def test_one_tensor_for_both_branches(form):
    f1, _ = features(20, 5)
    f1.requires_grad_()
    gradient = torch.autograd.grad(ours(f1, f1.flip(0), form=form) + ours(f1, f1, form=form), f1)[0]
    expected = torch.autograd.grad(reference.relation_loss(f1, f1.flip(0)), f1)[0]
    assert error(gradient, expected) < 1e-6


@both_forms
def test_differentiating_twice_is_a_clear_error(form):
    f1, f2 = features(6, 3)
    gradient = torch.autograd.grad(ours(f1.requires_grad_(), f2, form=form), f1, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"relation_loss by Triton .* implementation='torch'"):
        gradient.sum().backward()


@both_forms
def test_nan_stays_visible(form):
    f1, f2 = features(20, 5)
    f1[3, 2] = float("nan")
    assert ours(f1, f2, form=form).isnan()


def test_it_refuses_what_the_reference_refuses():
    f = torch.ones(3, 2, device=DEVICE)
    for arguments, form, message in (
        ((f, torch.ones(4, 2, device=DEVICE)), "auto", "one shape"),
        ((f[0], f[0]), "auto", r"\[N, C\]"),
        ((f[:0], f[:0]), "auto", "empty"),
        ((f, f, torch.ones(2, device=DEVICE)), "auto", "weight"),
        ((f, f), "quadratic", "unknown form"),
        ((f.long(), f), "auto", "floating"),
    ):
        with pytest.raises(ValueError, match=message):
            ours(*arguments, form=form)


def test_auto_takes_the_faster_form(monkeypatch):
    taken = []
    for name, module in (("linear", linear), ("direct", direct)):
        forward = module.forward
        monkeypatch.setattr(module, "forward", lambda *a, n=name, f=forward, **o: taken.append(n) or f(*a, **o))
    ours(*features(2, 16), form="auto")
    ours(*features(16, 4), form="auto")
    # Two tokens per channel, as the method's own bottleneck (1024, 512) has: the direct form would be less exact.
    compare(*features(48, 24), weights(48), "auto")
    assert taken == ["direct", "linear", "linear"]


@both_forms
def test_gradcheck(form):
    f1, f2 = (f.requires_grad_() for f in features(9, 4, dtype=torch.float64))
    w = weights(9, torch.float64)
    assert gradcheck(lambda a, b: ours(a, b, w, form=form), (f1, f2), fast_mode=True)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(3, 40), c=st.integers(2, 20), spread=st.floats(1e-3, 1e3))
def test_any_size_and_spread(seed, n, c, spread):
    f1, f2 = features(n, c, seed=seed)
    compare(spread * f1, f2, form="direct" if seed % 2 else "linear", eager=n_by_n)


@both_forms
def test_opcheck(form):
    f1, f2 = features(9, 4)
    op, backward = torch.ops.smml_kernels.relation.default, torch.ops.smml_kernels.relation_backward.default
    torch.library.opcheck(op, (f1.clone().requires_grad_(), f2.clone().requires_grad_(), weights(9), form, ""))
    f1 = f1.bfloat16().T.contiguous().T
    torch.library.opcheck(op, (f1, f2.bfloat16(), None, form, ""), test_utils=OF_STRIDES)
    _, rows, moments = op(f1, f2.bfloat16(), None, form, "")
    upstream = torch.ones((), device=DEVICE)
    torch.library.opcheck(backward, (upstream, f1, f2.bfloat16(), None, rows, moments, form, ""))


@both_forms
def test_compiled_without_a_graph_break(form):
    w = weights(20)

    def step(f1, f2):
        return ours(f1.sin(), f2.exp(), w, form=form).square()

    compiled = with_gradients(torch.compile(step, fullgraph=True, backend=COMPILER), *features(20, 5))
    for one, eager in zip(compiled, with_gradients(step, *features(20, 5)), strict=True):
        assert error(one, eager) <= ATOL[torch.float32]


@both_forms
def test_autocast_does_not_lower_the_precision(form):
    f1, f2 = features(20, 5)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        inside = ours(f1, f2, form=form)
    assert torch.equal(inside, ours(f1, f2, form=form))


@both_forms
@pytest.mark.parametrize("axis", [0, 1])
def test_offsets_beyond_32_bits(form, axis):
    """A stride of more than 2^31 elements: an int32 offset would wrap."""
    far = 2**31 + 8
    memory = torch.empty(far + 64, dtype=torch.bfloat16, device=DEVICE)  # lazily mapped on the CPU
    f1 = memory.as_strided((2, 3), (far, 1)) if axis == 0 else memory.as_strided((3, 2), (1, far))
    f1.copy_(randn(*f1.shape, dtype=torch.bfloat16))
    f2 = randn(*f1.shape, seed=2, dtype=torch.bfloat16)
    compare(f1, f2, form=form)
    compare(f2, f1, form=form)


class _Allocations(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor that an operation returned."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return out


@both_forms
def test_nothing_n_by_n_is_allocated(form):
    n = 200
    f1, f2 = features(n, 3)
    upstream = torch.ones((), device=DEVICE)
    launchers, options = op.launchers_of(form)
    with _Allocations() as allocations:
        _, rows, moments = launchers.forward(f1, f2, None, "", **options)
        launchers.backward(upstream, f1, f2, None, rows, moments, "", **options)
    assert 0 < allocations.bytes < n * n, "a quarter of N x N float32 numbers"


# ----------------------------------------------------------------------------------------------------- TensorFloat-32


@pytest.fixture
def tf32(monkeypatch):
    """Float32 products may be TensorFloat-32."""
    if not COMPILED:
        from triton.runtime import interpreter

        def fma(builder, x, y, z):
            a, b, c = (factor.data.astype("float64") for factor in (x, y, z))
            return interpreter.TensorHandle((a * b + c).astype(z.data.dtype), z.dtype.scalar)

        # That of Triton 3.6 rounds the product of two float32 before it adds, as no GPU does.
        if not hasattr(interpreter._interpreter, "fma_fp32"):
            monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def rounded(tf32, monkeypatch):
    """The same, and the interpreter, which multiplies in float32, rounds the factors to TensorFloat-32 first."""
    if COMPILED:
        yield  # tensor cores round by themselves
        return
    from triton.runtime import interpreter

    def round_to_tf32(x):
        bits = (x.data.view("int32") + 0x1000) & ~0x1FFF
        return interpreter.TensorHandle(bits.view("float32"), x.dtype.scalar)

    def dot(builder, a, b, *rest):
        assert a.data.dtype == b.data.dtype == "float32", "float64 products should not run here"
        dots.append(1)
        return multiply(builder, round_to_tf32(a), round_to_tf32(b), *rest)

    dots = []
    multiply = interpreter.InterpreterBuilder.create_dot
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    yield
    assert dots


# In the interpreter the products of the next tests are float32: they see errors of the formulas, not of rounding.
# Float32 moments and rows: a few more last digits than the float64 form.
_TF32_ATOL = 5e-3 if COMPILED else 2e-6


def compare_tf32(f1, f2, weight=None, eager=reference.relation_loss):
    found, *others = (
        with_gradients(compute, a, b, weight)
        for compute, a, b in (
            (ours, f1, f2),
            (eager, f1, f2),
            (reference.relation_loss, f1.double(), f2.double()),
        )
    )
    for one, other, truth in zip(found, *others, strict=True):
        assert_as_good_as_eager(one, other, truth, atol=max(_TF32_ATOL, ATOL[one.dtype]))
    return found


@pytest.mark.parametrize(
    ("n", "c", "dtype", "weighted"),
    [
        (33, 5, torch.float32, True),
        (70, 3, torch.float32, False),
        (30, 5, torch.bfloat16, False),
        (30, 5, torch.float16, True),
    ],
)
def test_tf32_value_and_gradients(poisoned_memory, tf32, n, c, dtype, weighted):
    compare_tf32(*features(n, c, dtype=dtype), weights(n) if weighted else None)


def test_tf32_tiles_and_shares(poisoned_memory, tf32, monkeypatch):
    compare_tf32(*features(20, 70), weights(20))
    monkeypatch.setattr(linear, "_SHARE", 32)
    f1, f2 = features(12, 100)
    compare_tf32(f1.T, f2.T, weights(100))


@pytest.mark.parametrize("scale", [1.0, 37.0, 1e-20])
@pytest.mark.parametrize("magnitude", [1e-2, 1e-6])
def test_tf32_near_agreement(tf32, scale, magnitude):
    f1 = randn(30, 8, seed=1)
    f2 = scale * (f1 + magnitude**0.5 * 0.7 * randn(30, 8, seed=2))
    compare_tf32(f1, f2, weights(30) / 30, eager=n_by_n if scale >= 1 else reference.relation_loss)


@pytest.mark.parametrize("magnitude", [1e-2, 1e-4, 1e-6])
def test_tf32_rounding_costs_digits_of_the_difference_only(rounded, magnitude):
    f1 = randn(64, 8, seed=1)
    f2 = 3 * (f1 + magnitude**0.5 * 0.7 * randn(64, 8, seed=2))
    found = with_gradients(ours, f1, f2)
    exact = with_gradients(reference.relation_loss, f1.double(), f2.double())
    assert error(found[0], exact[0]) < 5e-4
    assert max(error(one, truth) for one, truth in zip(found[1:], exact[1:], strict=True)) < 2e-3


def test_tf32_of_the_direct_form(rounded):
    found = with_gradients(ours, *features(20, 10), form="direct")
    exact = with_gradients(reference.relation_loss, *features(20, 10))
    assert error(found[0], exact[0]) < 5e-4
    assert max(error(one, truth) for one, truth in zip(found[1:], exact[1:], strict=True)) < 2e-3


def test_tf32_of_tokens_whose_size_differs_between_the_branches(tf32):
    f1, f2 = features(40, 6)
    f1 *= torch.logspace(-2, 1, 40, device=DEVICE)[:, None]
    loss = ours(f1, f2)
    assert error(loss, reference.relation_loss(f1, f2)) < 10 * _TF32_ATOL


def test_tf32_zero_rows(poisoned_memory, tf32):
    f1, f2 = features(30, 6)
    f1[[2, 5]] = 0
    f2[[5, 9]] = 0
    _, gradient1, gradient2 = compare_tf32(f1, f2, weights(30))
    assert (gradient1[[2, 5]] == 0).all()
    assert (gradient2[[5, 9]] == 0).all()
    assert (gradient1[9] != 0).any()
    for zero1, zero2, expected in ((True, False, 1.0), (True, True, 0.0), (False, True, 1.0)):
        loss, *gradients = with_gradients(ours, f1[6:9] * (not zero1), f2[6:9] * (not zero2))
        assert loss.item() == expected
        assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("scale", [1e-41, 1e-35, 1e12, 1e38])
def test_tf32_of_huge_and_tiny_features(tf32, scale):
    f1 = (scale * randn(20, 4).clamp(-3, 3).double()).float()
    found = with_gradients(ours, f1, f1.flip(0) * 0.25)
    exact = with_gradients(reference.relation_loss, f1, f1.flip(0) * 0.25)
    assert error(found[0], exact[0]) < _TF32_ATOL
    if scale > 1e-38:
        for one, truth in zip(found[1:], exact[1:], strict=True):
            assert error(one / truth.abs().max(), truth / truth.abs().max()) < 2 * _TF32_ATOL


def test_tf32_never_touches_float64_and_sees_nan(tf32):
    compare(*features(20, 5, dtype=torch.float64))
    f1, f2 = features(20, 5)
    f1[3, 2] = float("nan")
    assert ours(f1, f2).isnan()


def test_tf32_is_an_op_like_the_others(tf32):
    f1, f2 = features(9, 4)
    op = torch.ops.smml_kernels.relation.default
    torch.library.opcheck(op, (f1.clone().requires_grad_(), f2, weights(9), "linear tf32", ""))


def test_compiled_code_follows_the_precision():
    taken = []
    step = torch.compile(lambda a, b: ours(a, b), fullgraph=True, backend=COMPILER)
    forwards = {module: module.forward for module in (linear, difference)}
    before = torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch:
        for module, forward in forwards.items():
            patch.setattr(module, "forward", lambda *a, m=module, f=forward: taken.append(m) or f(*a))
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            step(*features(20, 5))
    torch.set_float32_matmul_precision(before)
    assert taken == [linear, difference]
