"""Fusing the modalities that are present, at one level: for one mask, or from shares for many subsets.

Every fusion layer begins with a sum over the present modalities (:func:`smml_kernels.masked_fusion`): a modality's
summand, its *share*, is its own normalised and activated map times its own columns of the mixing weight, and knows
nothing of the others. So shares can be kept like the maps themselves, and a subset only adds up those it has.
"""

from collections.abc import Sequence

import torch
from torch import nn

from smml.models.convolution import NEGATIVE_SLOPE, PreNormConv
from smml_kernels import masked_fusion


class FusionLayer(nn.Module):
    """Fuse one level: InstanceNorm -> LeakyReLU -> 1x1x1 convolution of the present maps, then two more convolutions.

    A missing modality adds exactly nothing and gets no gradient.

    Args:
        channels: C of every map and of the result.
        modalities: M.
    """

    def __init__(self, channels: int, modalities: int) -> None:
        super().__init__()
        self.modalities = modalities
        weight, bias = nn.Conv3d(modalities * channels, channels, 1).parameters()
        self.weight = nn.Parameter(weight.detach().flatten(1))
        self.bias = nn.Parameter(bias.detach())
        self.refine = nn.Sequential(PreNormConv(channels, channels), PreNormConv(channels, channels, kernel_size=1))

    def forward(self, maps: Sequence[torch.Tensor | None], mask: torch.Tensor) -> torch.Tensor:
        """Fuse the maps that the mask lets through, [B, C, X, Y, Z].

        Args:
            maps: M maps [B, C, X, Y, Z], None where nobody in the batch has the modality.
            mask: bool [B, M].
        """
        fused = masked_fusion(maps, mask, self.weight, self.bias, negative_slope=NEGATIVE_SLOPE)
        return self.refine(fused)

    def share(self, map: torch.Tensor, m: int) -> torch.Tensor:
        """What modality ``m`` adds to every fusion that it is part of; for inference, not to be trained through.

        Args:
            map: of modality ``m``, [B, C, X, Y, Z].
            m: its number.

        Returns:
            [B, C, X, Y, Z].
        """
        everyone = torch.ones(len(map), 1, dtype=torch.bool, device=map.device)
        columns = self.weight.chunk(self.modalities, dim=1)[m]
        return masked_fusion([map], everyone, columns, torch.zeros_like(self.bias), negative_slope=NEGATIVE_SLOPE)

    def combine(self, shares: Sequence[torch.Tensor | None], subsets: Sequence[Sequence[int]]) -> torch.Tensor:
        """Fuse every subset of the modalities for every sample: bit for bit one sum of shares in their order.

        Args:
            shares: M of :meth:`share`, [B, C, X, Y, Z]; those outside every subset are not looked at and may be None.
            subsets: numbers of the modalities of each of S subsets, at least one.

        Returns:
            [S * B, C, X, Y, Z]; all samples of the first subset come first.
        """
        given = {m: share for m, share in enumerate(shares) if share is not None}
        example = next(iter(given.values()))
        batch = len(example)
        added = example.new_empty(len(subsets) * batch, *example.shape[1:])
        for number, (first, *others) in enumerate(subsets):
            part = added[number * batch : (number + 1) * batch]
            torch.add(given[first], self.bias.to(added.dtype).view(1, -1, 1, 1, 1), out=part)
            for m in others:
                part += given[m]
        return self.refine(added)
