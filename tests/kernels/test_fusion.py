"""The Triton kernels of masked_fusion against the float64 reference."""

import itertools
import subprocess
import sys

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
    assert_as_good_as_eager,
    error,
    needs_triton,
    randn,
)

from smml_kernels import reference

pytestmark = needs_triton

MASK = [[1, 0, 1], [0, 0, 1]]
SMALL = (5, 4, 3)


def ours(features, mask, weight, bias, *, negative_slope=0.2, eps=1e-5):
    from smml_kernels.fusion import op

    return op.masked_fusion(features, mask, weight, bias, negative_slope=negative_slope, eps=eps)


def present(rows):
    return torch.tensor(rows, device=DEVICE, dtype=torch.bool)


def inputs(batch=2, channels=2, outputs=3, space=SMALL, modalities=3, dtype=torch.float32, seed=0):
    """Maps, weight and bias."""
    maps = [randn(batch, channels, *space, seed=seed + m, dtype=dtype) for m in range(modalities)]
    weight = randn(outputs, modalities * channels, seed=seed + 10, dtype=dtype)
    return maps, weight, randn(outputs, seed=seed + 11, dtype=dtype)


def leaf(x, dtype=None):
    """A leaf of the same strides, or None."""
    return None if x is None else x.detach().to(dtype or x.dtype).requires_grad_()


def run(compute, maps, mask, weight, bias, upstream=None, dtype=None, **options):
    """Output and gradients of weight, bias and the maps that are given."""
    maps, weight, bias = [leaf(f, dtype) for f in maps], leaf(weight, dtype), leaf(bias, dtype)
    out = compute(maps, mask, weight, bias, **options)
    upstream = randn(*out.shape, seed=77) if upstream is None else upstream
    wrt = (weight, bias, *(f for f in maps if f is not None))
    return [out.detach(), *torch.autograd.grad(out, wrt, upstream.to(out.dtype), materialize_grads=True)]


def compare(maps, mask, weight, bias, upstream=None, dtype=None, **options):
    """Output and every gradient against eager PyTorch in the same dtypes and in float64."""
    found = run(ours, maps, mask, weight, bias, upstream, **options)
    eager = run(reference.masked_fusion, maps, mask, weight, bias, upstream, **options)
    # The upstream gradient that both got was rounded to the dtype of the output.
    upstream = (randn(*found[0].shape, seed=77) if upstream is None else upstream).to(found[0].dtype).double()
    with torch.autocast(DEVICE, enabled=False):
        exact = run(reference.masked_fusion, maps, mask, weight, bias, upstream, dtype=torch.float64, **options)
    for ours_, eager_, exact_ in zip(found, eager, exact, strict=True):
        assert_as_good_as_eager(ours_, eager_, exact_, dtype=dtype)
    return found, exact


@pytest.mark.parametrize(
    ("batch", "channels", "outputs", "space", "modalities"),
    [
        (2, 3, 2, (5, 4, 3), 2),
        (1, 2, 5, (9, 7, 5), 2),
        (3, 1, 1, (2, 3, 1), 2),
        (1, 9, 17, (3, 2, 2), 1),
        (1, 17, 3, (2, 2, 2), 1),
        (1, 1, 4, (8, 4, 4), 5),
    ],
)
def test_output_and_gradients_over_odd_sizes(poisoned_memory, batch, channels, outputs, space, modalities):
    maps, weight, bias = inputs(batch, channels, outputs, space, modalities)
    mask = torch.ones(batch, modalities, dtype=torch.bool, device=DEVICE)
    mask[0, 1:2] = False
    compare(maps, mask, weight, bias, negative_slope=0.1, eps=1e-3)


@pytest.mark.parametrize("maps_dtype", FLOATS)
@pytest.mark.parametrize("weight_dtype", FLOATS)
def test_dtypes_of_maps_and_weight(poisoned_memory, maps_dtype, weight_dtype):
    maps, weight, bias = inputs(channels=1, outputs=2, space=(4, 3, 3), modalities=2, dtype=maps_dtype)
    mask = present([[1, 1], [0, 1]])
    weight, bias = weight.to(weight_dtype), bias.to(weight_dtype)
    found, _ = compare(maps, mask, weight, bias, dtype=coarsest(maps_dtype, weight_dtype))
    assert found[0].dtype == torch.promote_types(maps_dtype, weight_dtype)
    assert [g.dtype for g in found[1:]] == [weight_dtype, weight_dtype, maps_dtype, maps_dtype]


def coarsest(*dtypes):
    """The coarsest of the dtypes: its rounding bounds what can be asked of gradients in any."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def test_maps_of_different_dtypes():
    maps, weight, bias = inputs(modalities=3)
    maps[1], maps[2] = maps[1].bfloat16(), maps[2].double()
    mask = present([[1, 1, 1], [1, 0, 1]])
    found, _ = compare(maps, mask, weight, bias, dtype=torch.bfloat16)
    assert found[0].dtype == torch.float32
    assert [g.dtype for g in found[3:]] == [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("bits", range(8))
def test_every_subset_of_modalities_in_each_sample(poisoned_memory, bits):
    other = 8 + 5 * bits % 8
    mask = present([[bool(b >> m & 1) for m in range(4)] for b in (bits, other)])
    maps, weight, bias = inputs(channels=1, outputs=2, space=(3, 2, 2), modalities=4)
    found, _ = compare(maps, mask, weight, bias)
    for m, gradient in enumerate(found[3:]):
        assert torch.equal(gradient[~mask[:, m]], torch.zeros_like(gradient[~mask[:, m]]))
        assert (gradient[mask[:, m]] != 0).all()
    for sample in range(2):
        if not mask[sample].any():
            assert torch.equal(found[0][sample], bias.view(-1, 1, 1, 1).expand(-1, 3, 2, 2))


@pytest.mark.parametrize("absent", [(0,), (0, 1), (1,)])
def test_none_is_a_map_that_is_missing_everywhere(poisoned_memory, absent):
    maps, weight, bias = inputs(outputs=2, space=(3, 2, 2))
    mask = present([[1, 1, 1], [0, 0, 1]])
    mask[:, absent] = False
    with_maps = run(ours, maps, mask, weight, bias)
    some = [None if m in absent else f for m, f in enumerate(maps)]
    without = run(ours, some, mask, weight, bias)
    kept = [m for m in range(3) if m not in absent]
    for found, expected in zip(without, with_maps[:3] + [with_maps[3 + m] for m in kept], strict=True):
        assert torch.equal(found, expected)
    compare(some, mask, weight, bias)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_nothing_of_a_missing_map_reaches_the_output_or_a_gradient(poisoned_memory, poison):
    clean, weight, bias = inputs(outputs=1, space=(3, 2, 2))
    mask = present(MASK)
    expected = run(ours, clean, mask, weight, bias)
    dirty = [f.masked_fill(~mask[:, m, None, None, None, None], poison) for m, f in enumerate(clean)]
    found = run(ours, dirty, mask, weight, bias)
    for f, e in zip(found, expected, strict=True):
        assert f.isfinite().all()
        assert torch.equal(f, e)
    for m, gradient in enumerate(found[3:]):
        assert torch.equal(gradient[~mask[:, m]], torch.zeros_like(gradient[~mask[:, m]]))


def test_nan_in_a_map_that_is_there_stays_visible():
    maps, weight, bias = inputs()
    maps[2][0, 1, 2, 2, 2] = float("nan")
    out = ours(maps, present(MASK), weight, bias)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


def test_a_large_mean_costs_no_digits():
    maps, weight, bias = inputs(1, 1, 2, (11, 11, 9), 2)
    maps = [1e4 + f for f in maps]
    found, exact = compare(maps, present([[1, 1]]), weight, bias)
    for f, e in zip(found, exact, strict=True):
        assert error(f, e) < 1e-5  # eager is 1e-3 off, where it computes in float32


def test_a_first_voxel_far_from_all_others():
    """The pivot is the first voxel: one far off must cost no more than a large mean does."""
    maps, weight, bias = inputs(1, 2, 2, (9, 7, 5), 1)
    maps[0][:, :, 0, 0, 0] = 1e3
    found, exact = compare(maps, present([[1]]), weight, bias, dtype=torch.float16)
    assert error(found[0], exact[0]) < 1e-5


@pytest.mark.parametrize("value", [0.0, 1000.5, -3e4])
def test_constant_maps(value):
    maps, weight, bias = inputs(1, 2, 2, SMALL, 2)
    maps[0].fill_(value)
    found, exact = compare(maps, present([[1, 1]]), weight, bias)
    for f, e in zip(found, exact, strict=True):
        assert error(f, e) < 1e-6
    out = ours(maps, present([[1, 0]]), weight, bias)
    assert torch.equal(out, bias.view(1, -1, 1, 1, 1).expand_as(out))


def test_one_voxel_is_normalised_to_zero():
    maps, weight, bias = inputs(2, 3, 4, (1, 1, 1), 2)
    out, d_weight, d_bias, *d_maps = run(ours, maps, present([[1, 1], [1, 0]]), weight, bias)
    assert torch.equal(out[..., 0, 0, 0], bias.expand(2, -1))
    assert not d_weight.any()
    assert error(d_bias, randn(2, 4, seed=77).sum(0)) < 1e-6
    assert not any(d.any() for d in d_maps)


@pytest.mark.parametrize(
    "layout", ["channels last", "transposed", "every other voxel", "every other channel", "expanded", "chunks", "mixed"]
)
def test_strides_of_the_maps(layout):
    maps, weight, bias = inputs(channels=2)
    if layout == "channels last":
        maps = [f.to(memory_format=torch.channels_last_3d) for f in maps]
    elif layout == "transposed":
        maps = [f.transpose(2, 4) for f in maps]
    elif layout == "every other voxel":
        maps = [f[:, :, ::2, :, 1::2] for f in maps]
    elif layout == "every other channel":
        maps = [randn(2, 4, *SMALL, seed=m)[:, 1::2] for m in range(3)]
    elif layout == "expanded":
        maps = [f[:1].expand(2, -1, -1, -1, -1) for f in maps]
    elif layout == "chunks":
        maps = list(torch.cat(maps, dim=1).chunk(3, dim=1))
    elif layout == "mixed":
        maps[1], maps[2] = maps[1].to(memory_format=torch.channels_last_3d), maps[2][:1].expand(2, -1, -1, -1, -1)
    compare(maps, present(MASK), weight, bias)


def test_strides_of_weight_and_bias():
    maps, _, _ = inputs()
    compare(maps, present(MASK), randn(6, 6)[:, ::2].t(), randn(1).expand(3))


@pytest.mark.parametrize("layout", ["scaled", "channels last", "one number", "every other", "zero"])
def test_upstream_gradients(layout):
    maps, weight, bias = inputs()
    g = randn(2, 3, *SMALL, seed=5)
    upstream = {
        "scaled": -2.5 * g,
        "channels last": g.to(memory_format=torch.channels_last_3d),
        "one number": randn(1, seed=5).expand_as(g),
        "every other": randn(2, 6, 10, 4, 3, seed=5)[:, ::2, ::2],
        "zero": torch.zeros_like(g),
    }[layout]
    compare(maps, present(MASK), weight, bias, upstream)


def test_large_volumes_and_full_tiles(poisoned_memory, monkeypatch):
    """Tiles as large as on a volume that fills a GPU, programs that walk over many, and sums of several programs."""
    for name in ("op.ENOUGH", "backward.ENOUGH"):
        monkeypatch.setattr(f"smml_kernels.fusion.{name}", 1)
    monkeypatch.setattr("smml_kernels.fusion.op._PROGRAMS", 4)
    monkeypatch.setattr("smml_kernels.fusion.backward._PROGRAMS", 4)
    maps, weight, bias = inputs(1, 1, 3, (17, 16, 13), 2)
    compare(maps, present([[1, 1]]), weight, bias)


def test_more_programs_than_samples_and_channels(poisoned_memory):
    maps, weight, bias = inputs(1, 1, 1, (17, 16, 9), 1)
    compare(maps, present([[1]]), weight, bias)


def test_the_same_to_the_bit_and_after_a_first_backward(poisoned_memory):
    (maps, weight, bias), mask = inputs(2, 1, 2, (7, 6, 4), 2), present([[1, 0], [1, 1]])
    leaves = [leaf(x) for x in (weight, bias, *maps)]
    before = [x.detach().clone() for x in leaves]
    out = ours(leaves[2:], mask, *leaves[:2])
    upstream = randn(*out.shape, seed=9)
    first = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    second = torch.autograd.grad(out, leaves, upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(out, ours(maps, mask, weight, bias))
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True)), "inputs must not be written"
    assert not {g.data_ptr() for g in first} & {x.data_ptr() for x in (*leaves, upstream, out)}
    assert torch.equal(upstream, randn(*out.shape, seed=9))
    assert torch.equal(mask, present([[1, 0], [1, 1]]))


def test_each_subset_of_gradients(poisoned_memory):
    """weight, bias and two maps, of which the second is missing somewhere: every combination gives the same numbers."""
    maps, weight, bias = inputs(2, 1, 1, (3, 2, 2), 2)
    mask = present([[1, 0], [1, 1]])
    expected = run(ours, maps, mask, weight, bias)[1:]
    for needs in itertools.product([False, True], repeat=4):
        leaves = [x.clone().requires_grad_(need) for x, need in zip((weight, bias, *maps), needs, strict=True)]
        out = ours(leaves[2:], mask, *leaves[:2])
        assert out.requires_grad == any(needs)
        if any(needs):
            out.backward(randn(*out.shape, seed=77))
        for x, need, e in zip(leaves, needs, expected, strict=True):
            assert torch.equal(x.grad, e) if need else x.grad is None


def test_the_mask_may_lie_on_the_cpu():
    (maps, weight, bias), mask = inputs(space=(3, 2, 2), outputs=1), present(MASK)
    found = run(ours, maps, mask.cpu(), weight, bias)
    for f, e in zip(found, run(ours, maps, mask, weight, bias), strict=True):
        assert torch.equal(f, e)
    assert torch.equal(ours(maps, torch.stack([mask, ~mask], dim=2)[:, :, 0], weight, bias), found[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("maps_dtype", [torch.float32, torch.bfloat16])
def test_autocast_rounds_the_output_only(dtype, maps_dtype):
    maps, weight, bias = inputs(dtype=maps_dtype)
    weight, bias = weight.float(), bias.float()
    with torch.autocast(DEVICE, dtype=dtype):
        found, exact = compare(maps, present(MASK), weight, bias, dtype=coarsest(dtype, maps_dtype))
        assert found[0].dtype == dtype
    # Triton's interpreter truncates where a GPU rounds.
    assert error(found[0], ours(maps, present(MASK), weight, bias).to(dtype)) <= ATOL[dtype]
    assert [g.dtype for g in found[1:4]] == [torch.float32, torch.float32, maps_dtype]
    assert error(found[1], exact[1]) < 1e-6


def test_differentiating_twice_is_a_clear_error():
    maps, weight, bias = inputs(1, 1, 1, (2, 2, 2), 1)
    weight.requires_grad_()
    gradient = torch.autograd.grad(ours(maps, present([[1]]), weight, bias).sum(), weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"masked_fusion by Triton .* implementation='torch'"):
        gradient.sum().backward()


def test_it_refuses_what_the_reference_refuses():
    (maps, weight, bias), mask = inputs(), present(MASK)
    for features, mask_, weight_, bias_, message in (
        ([None] * 3, mask, weight, bias, "every feature map is None"),
        (maps, mask.float(), weight, bias, "mask must be bool"),
        (maps, mask[:, :2], weight, bias, "mask must be bool"),
        (maps, mask, weight[:, :4], bias, "weight must be"),
        (maps, mask, weight, bias[:1], "bias must be"),
        ([maps[0][:, :1], *maps[1:]], mask, weight, bias, "one shape"),
        ([f[:0] for f in maps], mask[:0], weight, bias, "non-empty"),
    ):
        with pytest.raises(ValueError, match=message):
            ours(features, mask_, weight_, bias_)


_MISSING_MAP = """
import torch
from smml_kernels import masked_fusion
f, mask = torch.ones(1, 2, 3, 3, 3, device={device!r}), torch.ones(1, 2, dtype=torch.bool, device={device!r})
masked_fusion([f, None], mask, f.new_ones(3, 4), f.new_ones(3), negative_slope=0.2, implementation="triton")
torch.cuda.synchronize()
"""


def test_a_mask_that_asks_for_a_map_that_is_none_is_refused():
    (maps, weight, bias), mask = inputs(), present(MASK)
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="map is None"):
            ours([None, *maps[1:]], mask, weight, bias)
        return
    # There the device looks, and after its assertion nothing runs on it: in a process of its own.
    ended = subprocess.run(
        [sys.executable, "-c", _MISSING_MAP.format(device=DEVICE)], capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert "has a modality whose map is None (None: positions [1])" in ended.stderr


def test_gradcheck():
    maps, weight, bias = inputs(2, 1, 2, (3, 2, 2), 2, dtype=torch.float64)
    mask = present([[1, 1], [0, 1]])
    leaves = [leaf(x) for x in (weight, bias, *maps)]
    assert gradcheck(lambda w, b, *maps: ours(maps, mask, w, b), leaves, fast_mode=True)


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    batch=st.integers(1, 2),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 3),
    size=st.tuples(*[st.integers(1, 6)] * 3),
    bits=st.integers(0, 15),
)
def test_any_size_and_mask(seed, batch, channels, outputs, size, bits):
    maps, weight, bias = inputs(batch, channels, outputs, size, 2, dtype=torch.float64, seed=seed)
    mask = present([[bool(bits >> (2 * b + m) & 1) for m in range(2)] for b in range(batch)])
    found = run(ours, maps, mask, weight, bias)
    for f, e in zip(found, run(reference.masked_fusion, maps, mask, weight, bias), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-9)


def test_opcheck():
    (maps, weight, bias), mask = inputs(1, 1, 2, (3, 2, 2)), present(MASK[:1])
    ours(maps, mask, weight, bias)  # registers
    op, backward = torch.ops.smml_kernels.masked_fusion.default, torch.ops.smml_kernels.masked_fusion_backward.default
    there = mask.to(torch.uint8)
    two, slots = [maps[0], maps[2]], [0, 2]
    x, y, w, b = (leaf(x) for x in (*two, weight, bias))
    torch.library.opcheck(op, ([x, y], slots, there, w, b, 0.2, 1e-5, torch.float32))
    transposed = [f.transpose(2, 4) for f in two]
    arguments = (transposed, slots, there, weight, bias, 0.2, 1e-5, torch.bfloat16)
    torch.library.opcheck(op, arguments, test_utils=OF_STRIDES)
    out, statistics = op(two, slots, there, weight, bias, 0.2, 1e-5, torch.float32)
    for wanted in ([True] * 4, [False, True, False, True]):
        arguments = (torch.ones_like(out), two, slots, there, weight, statistics, 0.2, wanted, torch.float32)
        torch.library.opcheck(backward, arguments)


def test_compiled_without_a_graph_break():
    (maps, weight, bias), mask = inputs(space=(3, 2, 2)), present(MASK)

    def step(w, b, *features):
        return ours([f.sin() for f in features], mask, w, b).square().mean()

    results = []
    for compute in (step, torch.compile(step, fullgraph=True, backend=COMPILER)):
        leaves = [leaf(x) for x in (weight, bias, *maps)]
        loss = compute(*leaves)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for compiled, eager in zip(*reversed(results), strict=True):
        assert error(compiled, eager) <= ATOL[torch.float32]


@pytest.mark.parametrize("far_axis", [0, 1, 4])
def test_offsets_beyond_32_bits(far_axis):
    """A stride of more than 2^31 elements, in maps and upstream gradient: an int32 offset would wrap."""
    shape = [2, 2, 1, 1, 2]
    far = 2**31 + 8
    strides = [far if axis == far_axis else 2**axis for axis in range(5)]
    views = []
    for seed in range(2):
        memory = torch.empty(far + 64, dtype=torch.bfloat16, device=DEVICE)  # lazily mapped on the CPU
        views.append(memory.as_strided(shape, strides).copy_(randn(*shape, seed=seed)))
    _, weight, bias = inputs(outputs=2, modalities=1, dtype=torch.bfloat16)  # a float32 output would copy upstream
    near = [view.clone(memory_format=torch.contiguous_format) for view in views]
    results = []
    for x, upstream in (views, near):
        leaves = [x.requires_grad_(), leaf(weight), leaf(bias)]
        out = ours(leaves[:1], present([[1], [1]]), *leaves[1:])
        assert out.dtype == upstream.dtype
        results.append((out, *torch.autograd.grad(out, leaves, upstream)))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
