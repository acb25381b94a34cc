"""Attention within one modality, and across the modalities that are present.

Public code of this family concatenates the tokens of the modalities as (M * S, C) and then views them as (S, M * C),
which mixes up space and modality, and lets zeroed tokens of missing modalities be attended to. Here the modality keeps
its own axis throughout, missing tokens are masked as keys, and their slots are zero again before they are decoded.
"""

import torch
import torch.nn.functional as F
from torch import nn


class TransformerLayer(nn.Module):
    """Pre-norm attention and MLP on tokens [B, N, D], the position embedding added to the input.

    Args:
        width: D.
        heads: attention heads.
        mlp_width: hidden channels of the MLP.
        dropout: after attention and inside the MLP.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor, position: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """``position`` [N, D] or [B, N, D]; ``keys`` [B, N] bool, True where a token may be attended to (None: all)."""
        tokens = tokens + position
        batch, count, width = tokens.shape
        qkv = self.qkv(self.attention_norm(tokens)).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        allowed = None if keys is None else keys[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        mixed = mixed.transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + self.dropout(self.project(mixed))
        return tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))


def interpolate_position(position: torch.Tensor, grid: torch.Size | tuple[int, int, int]) -> torch.Tensor:
    """Resample learned position embeddings [M, D, g, g, g] to another token grid, [M, D, x, y, z]."""
    if tuple(position.shape[2:]) == tuple(grid):
        return position
    return F.interpolate(position, size=tuple(grid), mode="trilinear", align_corners=False)


class IntraModalTransformer(nn.Module):
    """Attention among the positions of one modality's deepest features, [B, C, x, y, z] -> the same shape.

    1x1x1 convolution to D, learned position embedding, transformer, 1x1x1 convolution back to C.
    """

    def __init__(
        self, channels: int, width: int, heads: int, mlp_width: int, depth: int, token_grid: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed = nn.Conv3d(channels, width, 1)
        self.position = nn.Parameter(0.02 * torch.randn(1, width, token_grid, token_grid, token_grid))
        self.layers = nn.ModuleList(TransformerLayer(width, heads, mlp_width, dropout) for _ in range(depth))
        self.decode = nn.Conv3d(width, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        embedded = self.embed(features)
        grid = embedded.shape[2:]
        position = interpolate_position(self.position, grid).flatten(2).transpose(1, 2)
        tokens = embedded.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, position)
        return self.decode(tokens.transpose(1, 2).reshape(embedded.shape))


class InterModalTransformer(nn.Module):
    """Attention among all positions of all present modalities; its decoded output is the bottleneck.

    Takes M maps [B, C, x, y, z] (None where a modality is missing from the whole batch) and the mask [B, M]; returns
    [B, M * C, x, y, z], where channels m * C to (m + 1) * C are no longer modality m alone: the decoding convolution
    sees all present modalities at a position, so nothing is masked in it any more.
    """

    def __init__(
        self,
        channels: int,
        modalities: int,
        width: int,
        heads: int,
        mlp_width: int,
        depth: int,
        token_grid: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.ModuleList(nn.Conv3d(channels, width, 1) for _ in range(modalities))
        self.position = nn.Parameter(0.02 * torch.randn(modalities, width, token_grid, token_grid, token_grid))
        self.layers = nn.ModuleList(TransformerLayer(width, heads, mlp_width, dropout) for _ in range(depth))
        self.decode = nn.Conv3d(modalities * width, modalities * channels, 1)

    def forward(self, features: list[torch.Tensor | None], mask: torch.Tensor) -> torch.Tensor:
        example = next(feature for feature in features if feature is not None)
        batch, grid = example.shape[0], example.shape[2:]
        cells = grid.numel()
        slots = []
        for m, feature in enumerate(features):
            if feature is None:
                slots.append(example.new_zeros(batch, cells, self.width))
                continue
            # Select, never multiply: a NaN in a missing modality must not get through. A masked key's value would
            # still meet a weight of 0, and 0 * NaN is NaN.
            present = mask[:, m].view(batch, 1, 1, 1, 1)
            kept = torch.where(present, feature, torch.zeros((), dtype=feature.dtype, device=feature.device))
            slots.append(self.embed[m](kept).flatten(2).transpose(1, 2))
        tokens = torch.stack(slots, dim=1)  # [B, M, S, D]
        position = interpolate_position(self.position, grid).flatten(2).transpose(1, 2)  # [M, S, D]
        modalities = len(features)
        tokens = tokens.view(batch, modalities * cells, self.width)
        position = position.reshape(1, modalities * cells, self.width)
        keys = mask.repeat_interleave(cells, dim=1)
        for layer in self.layers:
            tokens = layer(tokens, position, keys)
        tokens = tokens.view(batch, modalities, cells, self.width)
        tokens = torch.where(mask[:, :, None, None], tokens, torch.zeros((), dtype=tokens.dtype, device=tokens.device))
        # (B, M, S, D) -> (B, M, D, S): the modality and channel axes become channels, space stays space.
        decoded = tokens.permute(0, 1, 3, 2).reshape(batch, modalities * self.width, *grid)
        return self.decode(decoded)
