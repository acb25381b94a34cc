"""The decoders: of what is fused, to the segmentation, and of one modality alone."""

import itertools

import torch
from torch import nn

from smml.models.blocks import apply_stage
from smml.models.convolution import PreNormConv, ReflectConv, in_order
from smml.models.fusion import FusionLayer
from smml.models.upsampling import double, enlarge


class UpBlock(nn.Module):
    """Double the resolution and merge with the skip connection: [B, Cin, x, y, z], [B, C, 2x, 2y, 2z] -> the latter."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.narrow = PreNormConv(in_channels, channels)
        self.merge = PreNormConv(2 * channels, channels)
        self.out = PreNormConv(channels, channels, kernel_size=1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        # mmFormer narrows after upsampling; before it, the same convolution costs an eighth.
        x = double(self.narrow(x))
        return self.out(self.merge(torch.cat([in_order(skip), x], dim=1)))


class Decoder(nn.Module):
    """From five levels [B, widths[l], X / 2^l, ...] to the decoder's features at every level, deepest first.

    ``recompute`` (see :func:`smml.models.blocks.apply_stage`) may be switched on at any time.
    """

    recompute = False

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.ups = nn.ModuleList(UpBlock(deep, shallow) for shallow, deep in itertools.pairwise(widths))

    def forward(self, levels: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Features at strides 16, 8, 4, 2, 1."""
        features = [levels[-1]]
        for up, skip in zip(reversed(self.ups), reversed(levels[:-1]), strict=True):
            features.append(apply_stage(up, features[-1], skip, recompute=self.recompute))
        return features


class FusionDecoder(nn.Module):
    """Fusion at five levels, decoder, and the heads: the fused logits and, on wish, deep supervision ("prm")."""

    def __init__(self, widths: tuple[int, ...], modalities: int, num_classes: int) -> None:
        super().__init__()
        self.modalities = modalities
        self.fusions = nn.ModuleList(FusionLayer(width, modalities) for width in widths)
        self.decoder = Decoder(widths)
        self.head = ReflectConv(widths[0], num_classes, 1)
        self.deep_heads = nn.ModuleList(ReflectConv(width, num_classes, 1) for width in widths[1:])

    def forward(
        self,
        levels: tuple[list[torch.Tensor | None], ...],
        bottleneck: torch.Tensor,
        mask: torch.Tensor,
        deep_supervision: bool,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Logits [B, K, X, Y, Z], and probabilities of that shape from levels 2 to 5 (empty if not asked for).

        Args:
            levels: at strides 1, 2, 4, 8, M maps each.
            bottleneck: the decoded output of the inter-modal block, [B, M * C, x, y, z].
            mask: [B, M] bool.
            deep_supervision: compute the deep heads too.
        """
        fused = [fuse(maps, mask) for fuse, maps in zip(self.fusions, levels, strict=False)]
        features = self.decode(fused, bottleneck)
        deep: tuple[torch.Tensor, ...] = ()
        if deep_supervision:
            deep = tuple(
                enlarge(_probabilities(head(feature)), 2**level)
                for level, head, feature in zip((1, 2, 3, 4), self.deep_heads, features[-2::-1], strict=True)
            )
        return self.head(features[-1]), deep

    def decode(self, fused: list[torch.Tensor], bottleneck: torch.Tensor) -> list[torch.Tensor]:
        """Fuse the bottleneck and decode: fused maps at strides 1, 2, 4, 8 -> features at strides 16, 8, 4, 2, 1."""
        # Nothing of the bottleneck is masked any more.
        everything = torch.ones(len(bottleneck), self.modalities, dtype=torch.bool, device=bottleneck.device)
        deepest = self.fusions[-1](list(bottleneck.chunk(self.modalities, dim=1)), everything)
        return self.decoder([*fused, deepest])


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    """In float32 at least: near 1 bfloat16 tells only every 256th part."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)


class SeparateDecoder(nn.Module):
    """One decoder, shared by the modalities, that segments from a single one ("sep"; training only)."""

    def __init__(self, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.decoder = Decoder(widths)
        self.head = ReflectConv(widths[0], num_classes, 1)

    def forward(self, levels: list[torch.Tensor]) -> torch.Tensor:
        return self.head(self.decoder(levels)[-1])
