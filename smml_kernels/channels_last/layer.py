"""InstanceNorm -> LeakyReLU -> reflected border -> convolution, as one step with one map to keep."""

import torch
from torch.autograd.function import once_differentiable

from smml_kernels.channels_last.convolution import forward, gradient_of_maps, gradient_of_weight
from smml_kernels.channels_last.norm import norm_activation, norm_activation_gradient
from smml_kernels.channels_last.rows import FORMAT


def pre_norm_convolution(
    maps: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: int = 1,
    negative_slope: float = 0.2,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A convolution of LeakyReLU(InstanceNorm(maps)), whose border is reflected; differentiable once.

    Mean and biased variance are those of each channel of each sample, about the mean and in float32 at least; the norm
    has no affine part.

    Args:
        maps: [B, Cin, X, Y, Z], floating, on the CPU; brought into channels-last format if it is not.
        weight: [Cout, Cin, k, k, k], floating, k 1 or 3; with k = 3 each edge of the maps is at least 2.
        bias: [Cout], or None.
        stride: 1 or 2.
        negative_slope: of the LeakyReLU, above 0: the backward pass undoes it.
        eps: added to the variance.
        dtype: in which the convolution computes, and of the result; None: the wider of maps and weight.

    Returns:
        [B, Cout, X / stride, ...], rounded up, in channels-last format.
    """
    dtype = dtype or torch.promote_types(maps.dtype, weight.dtype)
    return _PreNormConvolution.apply(maps, weight, bias, stride, negative_slope, eps, dtype)


class _PreNormConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps, weight, bias, stride, negative_slope, eps, dtype):
        maps = maps.contiguous(memory_format=FORMAT)
        border = weight.shape[2] // 2
        normal, inverse = norm_activation(maps, negative_slope, eps, border, dtype)
        kernel = weight.to(dtype)
        ctx.save_for_backward(normal, inverse, kernel)
        ctx.settings = stride, negative_slope, border, maps.dtype
        ctx.parameters = weight.dtype, None if bias is None else bias.dtype
        return forward(normal, kernel, None if bias is None else bias.to(dtype), stride)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        normal, inverse, kernel = ctx.saved_tensors
        stride, negative_slope, border, dtype = ctx.settings
        of_maps = of_weight = of_bias = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            of_weight, of_bias = gradient_of_weight(upstream, normal, kernel, stride, ctx.parameters[1] is not None)
            of_weight = of_weight.to(ctx.parameters[0])
            of_bias = None if of_bias is None else of_bias.to(ctx.parameters[1])
        if ctx.needs_input_grad[0]:
            inside = gradient_of_maps(upstream, normal, kernel, stride)
            of_maps = norm_activation_gradient(inside, normal, inverse, negative_slope, border, dtype)
        return of_maps, of_weight, of_bias, None, None, None, None
