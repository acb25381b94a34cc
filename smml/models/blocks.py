"""The convolutions that encoders and decoders are made of."""

import itertools

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

NEGATIVE_SLOPE = 0.2


def apply_stage(stage: nn.Module, *inputs: torch.Tensor, recompute: bool) -> torch.Tensor:
    """``stage(*inputs)``; with ``recompute`` its activations are not kept but computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(stage, *inputs, use_reentrant=False)
    return stage(*inputs)


class PreNormConv(nn.Module):
    """InstanceNorm -> LeakyReLU(0.2) -> convolution with reflect padding, [B, Cin, X, Y, Z] -> [B, Cout, X', Y', Z'].

    The pre-normalised order of mmFormer. The norm has no affine part: its scale is absorbed by the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(in_channels)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE)
        self.conv = reflect_conv(in_channels, out_channels, kernel_size, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.activation(self.norm(x)))


def reflect_conv(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Conv3d:
    """A convolution that keeps the size (divided by the stride) and reflects at the border."""
    padding = kernel_size // 2
    return nn.Conv3d(
        in_channels, out_channels, kernel_size, stride, padding, padding_mode="reflect" if padding else "zeros"
    )


class ResidualStage(nn.Module):
    """One level of the encoder: three 3x3x3 convolutions, the last two with a residual round them.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: of the first convolution.
        raw_input: the input is an image; it is neither normalised nor passed through an activation first.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, raw_input: bool = False) -> None:
        super().__init__()
        make = reflect_conv if raw_input else PreNormConv
        self.enter = make(in_channels, out_channels, stride=stride)
        self.residual = nn.Sequential(PreNormConv(out_channels, out_channels), PreNormConv(out_channels, out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return x + self.residual(x)


class Encoder(nn.Module):
    """One modality's encoder: [B, 1, X, Y, Z] -> five levels [B, widths[l], X / 2^l, Y / 2^l, Z / 2^l].

    ``recompute`` (see :func:`apply_stage`) may be switched on at any time; the results are the same.
    """

    recompute = False

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        stages = [ResidualStage(1, widths[0], raw_input=True)]
        stages += [ResidualStage(a, b, stride=2) for a, b in itertools.pairwise(widths)]
        self.stages = nn.ModuleList(stages)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        levels = []
        for stage in self.stages:
            x = apply_stage(stage, x, recompute=self.recompute)
            levels.append(x)
        return tuple(levels)
