"""Norm, activation and convolution with the channels side by side, against PyTorch's own in float64."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from smml_kernels import masked_fusion, reference
from smml_kernels.channels_last import FORMAT, convolution, is_channels_last, pre_norm_convolution, rows

# The function of the same name stands before it in the package.
MODULE = importlib.import_module("smml_kernels.channels_last.convolution")

# Of the largest number of each result. A weight's gradient adds up thousands of voxels.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 1.5e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def definition(maps, weight, bias, stride=1):
    """InstanceNorm -> LeakyReLU -> reflected border -> convolution, as PyTorch has them."""
    normal = maps - maps.mean((2, 3, 4), keepdim=True)
    normal = normal / (normal.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()
    border = (weight.shape[2] // 2,) * 6
    return F.conv3d(F.pad(F.leaky_relu(normal, 0.2), border, mode="reflect"), weight, bias, stride)


def inputs(batch, channels, space, out_channels, kernel, dtype, seed=0):
    maps = (2 * randn(batch, channels, *space, seed=seed) + 3).to(dtype).contiguous(memory_format=FORMAT)
    weight = randn(out_channels, channels, *[kernel] * 3, seed=seed + 1, dtype=dtype)
    return maps, weight, randn(out_channels, seed=seed + 2, dtype=dtype)


def result_and_gradients(function, tensors, dtype, upstream=None, **options):
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    result = function(*leaves, **options)
    upstream = randn(*result.shape, seed=9) if upstream is None else upstream
    return [result.detach(), *torch.autograd.grad(result, leaves, upstream.to(result.dtype), materialize_grads=True)]


def assert_close(found, expected, dtype):
    for name, ours, exact in zip(("result", "maps", "weight", "bias"), found, expected, strict=False):
        assert ours.shape == exact.shape
        assert ours.dtype == dtype
        error = (ours.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-300)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


@DTYPES
@pytest.mark.parametrize(
    ("batch", "channels", "space", "out_channels", "kernel", "stride"),
    [
        (2, 8, (6, 8, 10), 8, 3, 1),  # two neighbours along z as one
        (1, 4, (5, 7, 9), 8, 3, 1),  # an odd number of them
        (2, 16, (8, 6, 4), 24, 3, 2),
        (3, 5, (3, 4, 2), 20, 3, 1),  # an edge of two is its own mirror image, one of three has one in common
        (1, 8, (6, 5, 4), 4, 1, 1),
    ],
)
def test_a_layer_is_its_definition(dtype, batch, channels, space, out_channels, kernel, stride):
    tensors = inputs(batch, channels, space, out_channels, kernel, dtype)
    found = result_and_gradients(pre_norm_convolution, tensors, dtype, stride=stride)
    assert_close(found, result_and_gradients(definition, tensors, torch.float64, stride=stride), dtype)


@pytest.mark.parametrize("block", [1, 40, 200])
def test_a_large_map_in_blocks_is_one_map(monkeypatch, block):
    tensors = inputs(3, 4, (5, 4, 6), 4, 3, torch.float64)
    whole = result_and_gradients(pre_norm_convolution, tensors, torch.float64)
    monkeypatch.setattr(rows, "_BLOCK", block)
    assert len(rows.blocks(rows.as_rows(tensors[0]))) > 1
    assert_close(result_and_gradients(pre_norm_convolution, tensors, torch.float64), whole, torch.float64)


@settings(max_examples=40)
@given(
    st.integers(1, 3), st.integers(2, 9), st.tuples(*[st.integers(2, 7)] * 3), st.integers(1, 17),
    st.sampled_from([1, 3]), st.sampled_from([1, 2]), st.integers(0, 99),
)  # fmt: skip
def test_a_layer_of_any_size_is_its_definition(batch, channels, space, out_channels, kernel, stride, seed):
    tensors = inputs(batch, channels, space, out_channels, kernel, torch.float64, seed)
    found = result_and_gradients(pre_norm_convolution, tensors, torch.float64, stride=stride)
    exact = result_and_gradients(definition, tensors, torch.float64, stride=stride)
    # Of a map of a few voxels that hardly differ, the norm blows up what float64 rounds.
    for ours, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


@DTYPES
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_without_a_norm_is_pytorchs(dtype, kernel):
    maps, weight, bias = inputs(2, 5, (6, 6, 6), 8, kernel, dtype)
    found = result_and_gradients(convolution, (maps, weight, bias), dtype)
    assert_close(found, result_and_gradients(F.conv3d, (maps, weight, bias), torch.float64), dtype)


@settings(max_examples=40)
@given(
    st.integers(2, 9), st.tuples(*[st.integers(3, 12)] * 3), st.integers(1, 17), st.sampled_from([1, 3]),
    st.sampled_from([1, 2]), st.integers(0, 99),
)  # fmt: skip
def test_the_gradients_of_a_single_sample_are_pytorchs(channels, space, out_channels, kernel, stride, seed):
    tensors = inputs(1, channels, space, out_channels, kernel, torch.float32, seed)
    found = result_and_gradients(convolution, tensors, torch.float32, stride=stride)
    exact = result_and_gradients(F.conv3d, tensors, torch.float64, stride=stride)
    assert_close(found, exact, torch.float32)
    assert is_channels_last(found[1]), "the gradient of the maps"


def test_a_single_sample_that_needs_no_gradient_leaves_the_others_theirs():
    maps, weight, bias = (tensor.requires_grad_() for tensor in inputs(1, 3, (5, 4, 3), 2, 3, torch.float32))
    convolution(maps.detach(), weight, bias).sum().backward()
    found = weight.grad.clone(), bias.grad.clone()
    weight.grad = bias.grad = None
    convolution(maps, weight, bias).sum().backward()
    assert torch.equal(found[0], weight.grad)
    assert torch.equal(found[1], bias.grad)


class SeenByConvolutions(TorchDispatchMode):
    """What the convolutions and their gradients are computed in, and for how many samples."""

    def __init__(self):
        super().__init__()
        self.dtypes, self.samples = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func):
            self.dtypes.add(args[0].dtype)
            self.samples.add(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN everything is PyTorch's own")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_cpu_that_only_stores_bfloat16_computes_in_float32_and_rounds(monkeypatch, kernel, stride):
    monkeypatch.setattr(MODULE, "_takes_bfloat16", lambda: False)
    tensors = inputs(2, 6, (8, 6, 5), 8, kernel, torch.bfloat16)
    with SeenByConvolutions() as seen:
        found = result_and_gradients(convolution, tensors, torch.bfloat16, stride=stride)
    exact = result_and_gradients(F.conv3d, tensors, torch.float64, stride=stride)
    assert_close(found, exact, torch.bfloat16)
    assert seen.dtypes == {torch.float32}


def test_no_gradient_of_a_small_single_sample_is_left_to_the_slow_routine():
    maps, weight, bias = inputs(1, 8, (6, 6, 6), 16, 3, torch.float32)
    out = convolution(maps, weight.requires_grad_(), bias.requires_grad_())
    with SeenByConvolutions() as seen:
        out.sum().backward()
    assert seen.samples == {2}


def test_the_gradients_are_those_of_finite_differences():
    tensors = [t.requires_grad_() for t in inputs(2, 3, (3, 2, 4), 2, 3, torch.float64)]
    assert gradcheck(pre_norm_convolution, tensors)


@DTYPES
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_channels_stay_side_by_side_there_and_back(dtype, kernel):
    maps, weight, bias = inputs(2, 8, (6, 6, 6), 8, kernel, dtype)
    out, of_maps, *_ = result_and_gradients(pre_norm_convolution, (maps, weight, bias), dtype)
    assert is_channels_last(out)
    assert is_channels_last(of_maps)
    assert torch.equal(pre_norm_convolution(maps.contiguous(), weight, bias), out), "whatever the maps came in"


def test_a_large_mean_does_not_cancel():
    maps, weight, bias = inputs(1, 8, (8, 8, 8), 8, 3, torch.float64)
    maps = (maps + 1000).float()
    exact = definition(maps.double(), weight, bias)
    ours = pre_norm_convolution(maps.contiguous(memory_format=FORMAT), weight.float(), bias.float())
    plain = definition(maps, weight.float(), bias.float())
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_nan_in_a_sample_changes_no_bit_of_another():
    maps, weight, bias = inputs(2, 8, (4, 4, 4), 8, 3, torch.float32)
    clean = result_and_gradients(pre_norm_convolution, (maps, weight, bias), torch.float32)
    broken = maps.clone(memory_format=torch.preserve_format)
    broken[1] = torch.nan
    found = result_and_gradients(pre_norm_convolution, (broken, weight, bias), torch.float32)
    assert torch.equal(found[0][0], clean[0][0])
    assert torch.equal(found[1][0], clean[1][0])
    assert found[0][1].isnan().all()


def test_bfloat16_takes_the_norm_in_float32():
    # Around 300 bfloat16 has steps of 2: a mean that were rounded to it would be seen.
    maps = (randn(1, 8, 8, 8, 8) + 301).bfloat16().contiguous(memory_format=FORMAT)
    weight = torch.eye(8, dtype=torch.bfloat16)[:, :, None, None, None]
    exact = definition(maps.double(), weight.double(), None)
    ours = pre_norm_convolution(maps, weight, None)
    # One rounding of the normalised map, and one of the result.
    assert ((ours.double() - exact).abs() <= exact.abs() / 128 + 1e-12).all()


FUSIONS = {
    "everyone has all": [[1, 1, 1], [1, 1, 1]],
    "one lacks one": [[1, 0, 1], [1, 1, 1]],
    "nobody has one": [[1, 0, 0], [0, 0, 1]],
    "a sample has none": [[0, 0, 0], [1, 0, 1]],
    "nobody has any": [[0, 0, 0], [0, 0, 0]],
}


@pytest.mark.parametrize("mask", FUSIONS.values(), ids=FUSIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_masked_fusion_of_such_maps_is_its_definition(mask, dtype):
    mask = torch.tensor(mask, dtype=torch.bool)
    maps = [randn(2, 4, 4, 3, 6, seed=m, dtype=dtype).contiguous(memory_format=FORMAT) for m in range(3)]
    for m, rows_with_it in enumerate(mask.T):
        maps[m][~rows_with_it] = torch.nan
    weight, bias = randn(4, 12, seed=5, dtype=dtype), randn(4, seed=6, dtype=dtype)

    def fuse(how):
        return lambda *tensors: how(tensors[:3], mask, *tensors[3:])

    found = result_and_gradients(fuse(masked_fusion), [*maps, weight, bias], dtype)
    assert found[0].stride(1) == 1, "and the result's channels lie side by side"
    exact = result_and_gradients(fuse(reference.masked_fusion), [*maps, weight, bias], torch.float64)
    for ours, expected in zip(found, exact, strict=True):
        tolerance = TOLERANCE[dtype] * max(1, expected.abs().max())
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=tolerance)
    for m, rows_with_it in enumerate(mask.T):
        assert (found[1 + m][~rows_with_it] == 0).all(), "a map that is missing gets no gradient"


def test_masked_fusion_of_such_maps_refuses_what_its_definition_refuses():
    maps = [randn(2, 4, 4, 4, 4).contiguous(memory_format=FORMAT), None]
    with pytest.raises(ValueError, match="has a modality whose map is None"):
        masked_fusion(maps, torch.ones(2, 2, dtype=torch.bool), randn(4, 8), randn(4))


def test_masked_fusion_of_such_maps_follows_autocast():
    maps = [randn(1, 8, 4, 4, 4, dtype=torch.float32).contiguous(memory_format=FORMAT)]
    mask, weight, bias = torch.ones(1, 1, dtype=torch.bool), randn(8, 8).float(), randn(8).float()
    with torch.autocast("cpu", torch.bfloat16):
        ours, exact = masked_fusion(maps, mask, weight, bias), reference.masked_fusion(maps, mask, weight, bias)
    assert ours.dtype == exact.dtype == torch.bfloat16
    torch.testing.assert_close(ours, exact, rtol=1e-2, atol=1e-2)
