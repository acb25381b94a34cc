"""What PyTorch does around an operation: checkpointing, streams, graphs, waits, volumes past 2^31, several GPUs.

Most of it can go wrong on a GPU alone: those tests are skipped elsewhere.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from triton_checks import DEVICE, error, labels, needs_triton, randn

import smml_kernels
from smml_kernels.fusion.reference import check_fusion

pytestmark = needs_triton
needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="there is no NVIDIA GPU here")


def calls(device: str = DEVICE) -> dict[str, tuple[Callable, list[torch.Tensor]]]:
    """Of each operation a function of tensors that want a gradient, to one number; and such tensors."""
    word = {"implementation": "triton"}
    x1, x2 = (randn(1, 4, 6, 5, 4, seed=s).to(device) for s in (1, 2))
    y = labels(1, 6, 5, 4).to(device)
    maps = [randn(2, 2, 4, 3, 3, seed=s).to(device) for s in (3, 4)]
    mask = torch.tensor([[True, False], [True, True]], device=device)
    weight, bias = randn(3, 4, seed=5).to(device), randn(3, seed=6).to(device)
    f1, f2 = randn(20, 6, seed=7).to(device), randn(20, 6, seed=8).to(device)
    w = torch.linspace(0.1, 1, 20, device=device)

    def fusion(*leaves):
        return smml_kernels.masked_fusion(leaves[:2], mask, *leaves[2:], **word).square().sum()

    return {
        "relation_loss linear": (lambda a, b: smml_kernels.relation_loss(a, b, w, form="linear", **word), [f1, f2]),
        "relation_loss direct": (lambda a, b: smml_kernels.relation_loss(a, b, w, form="direct", **word), [f1, f2]),
        "masked_fusion": (fusion, [*maps, weight, bias]),
        "exchange_loss": (lambda a, b: sum(smml_kernels.exchange_loss(a, b, y, **word)), [x1, x2]),
        "dice_ce_loss": (lambda a: smml_kernels.dice_ce_loss(a, y, **word), [x1]),
    }


NAMES = ("relation_loss linear", "relation_loss direct", "masked_fusion", "exchange_loss", "dice_ce_loss")
each_operation = pytest.mark.parametrize("name", NAMES)


def gradients(function, leaves):
    """The number and its gradients."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    loss = function(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@each_operation
def test_activation_checkpointing_changes_nothing(name):
    function, leaves = calls()[name]
    again = functools.partial(checkpoint, function, use_reentrant=False)
    assert_equal(gradients(again, leaves), gradients(function, leaves))


def test_a_mask_on_a_gpu_is_not_looked_at_where_that_would_make_the_host_wait():
    """A tensor on "meta" holds nothing: whoever looks at it fails."""
    f, weight, bias = torch.zeros(1, 2, 2, 2, 2, device="meta"), torch.zeros(3, 4), torch.zeros(3)
    mask = torch.ones(1, 2, dtype=torch.bool, device="meta")
    assert check_fusion([f, None], mask, weight, bias) is f
    with pytest.raises(ValueError, match="the mask says that a sample has a modality whose map is None"):
        check_fusion([f, None], torch.ones(1, 2, dtype=torch.bool), weight, bias)


@needs_gpu
@each_operation
def test_the_host_never_waits_for_the_gpu(name):
    function, leaves = calls()[name]
    gradients(function, leaves)  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(function, leaves)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@needs_gpu
@each_operation
def test_a_captured_graph_computes_what_is_in_its_inputs_at_each_replay(name):
    function, leaves = calls()[name]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and lets PyTorch warm up as its manual asks
        torch.autograd.grad(function(*leaves), leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = function(*leaves)
        found = [loss, *torch.autograd.grad(loss, leaves)]
    for scale in (1.0, 0.5):
        new = [scale * leaf.detach() for leaf in leaves]
        with torch.no_grad():
            for leaf, values in zip(leaves, new, strict=True):
                leaf.copy_(values)
        graph.replay()
        torch.cuda.synchronize()
        assert_equal([one.detach() for one in found], gradients(function, new))


@needs_gpu
@each_operation
def test_kernels_run_on_the_current_stream(name):
    """The inputs are ready only after long work on that stream."""
    function, leaves = calls()[name]
    expected = gradients(function, leaves)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = [torch.full_like(leaf, float("nan")) for leaf in leaves]
        torch.cuda._sleep(200_000_000)
        for to, leaf in zip(late, leaves, strict=True):
            to.copy_(leaf)
        found = gradients(function, late)
    side.synchronize()
    assert_equal(found, expected)


@needs_gpu
def test_a_contiguous_volume_past_two_to_the_31_elements():
    """The last voxels of the gradient lie beyond what an int32 offset reaches."""
    need = 20e9
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"it takes {need / 1e9:.0f} GB of free memory")
    voxels = 2**30 + 4096  # of each of two classes
    x = torch.zeros(1, 2, 1, 1, voxels, dtype=torch.bfloat16, device="cuda").requires_grad_()
    y = torch.zeros(1, 1, 1, voxels, dtype=torch.uint8, device="cuda")
    y[..., -4096:] = 1
    loss = smml_kernels.dice_ce_loss(x, y, min_class_weight=0.05, implementation="triton")
    (gradient,) = torch.autograd.grad(1e6 * loss, x)
    assert loss.isfinite()
    first, last = gradient[0, :, 0, 0, :4096].float(), gradient[0, :, 0, 0, -4096:].float()
    # Every voxel of a class has the same logits: the same gradient, of opposite signs in the two classes.
    assert torch.equal(first, first[:, :1].expand_as(first))
    assert torch.equal(last, last[:, :1].expand_as(last))
    assert error(first[0], -first[1]) < 1e-2
    assert last[1, 0] < 0 < last[0, 0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs here")
@each_operation
def test_tensors_on_another_gpu_than_the_current_one(name):
    function, leaves = calls("cuda:1")[name]
    with torch.cuda.device(0):
        found = gradients(function, leaves)
    assert all(one.device.index == 1 for one in found)
    expected = gradients(*calls("cuda:0")[name])
    assert_equal([one.cpu() for one in found], [one.cpu() for one in expected])
