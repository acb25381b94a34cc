"""The order of maps in memory, and interpolation: one network, the same numbers in either order."""

import platform

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from smml.models import Student, StudentConfig, convolution
from smml.models.convolution import PreNormConv, ReflectConv
from smml.models.upsampling import double, enlarge
from smml_kernels.channels_last import is_channels_last

EDGE = 32
MASK = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 1]], dtype=torch.bool)
# The presets' architecture with few channels.
NARROW = StudentConfig((3, 4, 4, 4, 8), token_width=16, heads=2, mlp_width=32, token_grid=2)

on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="elsewhere maps lie as PyTorch has them",
)


def image(dtype=torch.float32):
    return torch.randn(2, 4, EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(1), dtype=dtype)


def logits_and_gradients(student, x):
    output = student(x, MASK)
    heads = (output.logits, *(head for head in output.separate if head is not None), *output.deep)
    total = sum(head.square().mean() for head in heads)
    parameters = list(student.parameters())
    return [*heads, *torch.autograd.grad(total, parameters, materialize_grads=True)]


@on_x86
def test_both_orders_give_the_same_logits_and_gradients(monkeypatch):
    torch.manual_seed(0)
    student = Student(NARROW, separate_heads="masked").double().train()
    found = logits_and_gradients(student, image(torch.float64))
    monkeypatch.setattr(convolution, "_has_onednn", lambda maps: False)
    plain = logits_and_gradients(student, image(torch.float64))
    # A bias in front of a norm has no gradient but for rounding.
    largest = max(expected.abs().max().item() for expected in plain)
    for ours, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12 * largest)


@on_x86
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_large_maps_keep_their_order_from_the_image_to_the_logits(precision):
    torch.manual_seed(0)
    student = Student(NARROW, separate_heads="masked").train()
    turned, kept = [], []

    def look(name):
        def hook(module, arguments):
            # Two small maps make a larger one, which is turned round once.
            if arguments[0].numel() >= 4 * convolution._SMALL and arguments[0].shape[1] > 1:
                (kept if is_channels_last(arguments[0]) else turned).append(name)

        return hook

    for name, module in student.named_modules():
        if isinstance(module, PreNormConv | ReflectConv):
            module.register_forward_pre_hook(look(name))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = student(image(), MASK)
    assert turned == []
    assert len(kept) >= 8
    assert is_channels_last(output.logits)


@on_x86
def test_the_convolution_of_an_image_is_computed_in_float32():
    conv = ReflectConv(1, 8)
    x = image()[:, :1]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = conv(x)
    exact = F.conv3d(F.pad(x, (1,) * 6, mode="reflect"), conv.weight, conv.bias)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact.detach().bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("space", [(2, 3, 5), (1, 2, 4), (6, 4, 2)])
def test_interpolation_is_pytorchs(space, monkeypatch):
    monkeypatch.setattr(convolution, "_SMALL", 0)
    maps = torch.randn(2, 3, *space, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scale, ours in ((2, double(maps)), (2, enlarge(maps, 2)), (8, enlarge(maps, 8))):
        expected = F.interpolate(maps, scale_factor=scale, mode="trilinear", align_corners=False)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert gradcheck(double, [maps.requires_grad_()])


def test_probabilities_are_interpolated_in_float32_where_the_network_computes_in_bfloat16():
    maps = torch.rand(1, 4, 2, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(enlarge(maps, 4), enlarge(maps, 4).float())
        assert enlarge(maps, 4).dtype == torch.float32
