"""The encoder of one modality."""

import itertools

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from smml.models.convolution import PreNormConv, ReflectConv, in_order


def apply_stage(stage: nn.Module, *inputs: torch.Tensor, recompute: bool) -> torch.Tensor:
    """``stage(*inputs)``; with ``recompute`` its activations are not kept but computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        # No stage draws random numbers, so there is no generator to set back.
        return checkpoint(stage, *inputs, use_reentrant=False, preserve_rng_state=False)
    return stage(*inputs)


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
        make = ReflectConv if raw_input else PreNormConv
        self.enter = make(in_channels, out_channels, stride=stride)
        self.residual = nn.Sequential(PreNormConv(out_channels, out_channels), PreNormConv(out_channels, out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = in_order(self.enter(x))
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
