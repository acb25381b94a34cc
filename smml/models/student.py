"""One student: the network that segments from any subset of the modalities (mmFormer's trunk, made right)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from torch import nn

from smml.errors import InputError
from smml.models.blocks import Encoder
from smml.models.decoder import FusionDecoder, SeparateDecoder
from smml.models.fusion import FusionLayer
from smml.models.presets import StudentConfig, preset
from smml.models.transformer import InterModalTransformer, IntraModalTransformer
from smml_kernels.channels_last import as_voxels, is_channels_last, of_voxels

SeparateHeads = Literal["available", "masked"]


@dataclass(frozen=True)
class StudentOutput:
    """What a student returns.

    Attributes:
        logits: the fused segmentation, [B, K, X, Y, Z].
        separate: in training, logits [B, K, X, Y, Z] from each modality alone, None where no sample showed it to its
            head; rows of samples that did not are 0. Empty at inference.
        seen: bool [B, M], which samples each separate head saw: those that it is judged on. All False at inference.
        deep: in training, probabilities [B, K, X, Y, Z] from decoder levels 2 to 5. Empty at inference.
        bottleneck: decoded output of the inter-modal block, [B, M * C, X/16, Y/16, Z/16].
    """

    logits: torch.Tensor
    separate: tuple[torch.Tensor | None, ...]
    seen: torch.Tensor
    deep: tuple[torch.Tensor, ...]
    bottleneck: torch.Tensor


@dataclass(frozen=True)
class StudentEncoding:
    """What the encoders make of the modalities; it does not depend on the subset that is fused later.

    Attributes:
        levels: at strides 1, 2, 4, 8: M maps [B, widths[l], ...], None where nobody in the batch has the modality.
        deepest: at stride 16, before the intra-modal transformer: M maps [B, widths[4], ...], likewise.
        tokens: at stride 16, after it: M maps of the same shape [B, widths[4], ...], likewise.
        present: [B, M] bool, which modalities were encoded for which sample.
    """

    levels: tuple[tuple[torch.Tensor | None, ...], ...]
    deepest: tuple[torch.Tensor | None, ...]
    tokens: tuple[torch.Tensor | None, ...]
    present: torch.Tensor


@dataclass(frozen=True)
class StudentShares:
    """An encoding of which only adding up, the inter-modal transformer and decoding are left to do.

    Attributes:
        levels: at strides 1, 2, 4, 8: the shares of M modalities, [B, widths[l], ...] each, None where nobody in the
            batch has the modality.
        tokens: at stride 16, after the intra-modal transformer: M maps [B, widths[4], ...], likewise.
        present: [B, M] bool, which modalities were encoded for which sample.
    """

    levels: tuple[tuple[torch.Tensor | None, ...], ...]
    tokens: tuple[torch.Tensor | None, ...]
    present: torch.Tensor


class Student(nn.Module):
    """A segmentation network for any subset of M modalities.

    Args:
        config: a preset's name ("tiny", "tiny-wide", "small", "paper") or a :class:`StudentConfig`.
        separate_heads: which modalities the separate heads see in training: "available" (each that the case has, masked
            from this branch or not, as in the public code) or "masked" (only those of the branch's mask).

    Raises:
        InputError: an unknown preset, or an unknown word for ``separate_heads``.
    """

    STRIDE = 16
    MINIMUM = 32

    def __init__(self, config: str | StudentConfig = "small", *, separate_heads: SeparateHeads = "available") -> None:
        super().__init__()
        config = preset(config) if isinstance(config, str) else config
        if separate_heads not in get_args(SeparateHeads):
            raise InputError(f"separate_heads must be 'available' or 'masked', found {separate_heads!r}")
        self.config = config
        self.separate_heads = separate_heads
        c, deepest = config, config.widths[-1]
        transformer = (c.token_width, c.heads, c.mlp_width, c.depth, c.token_grid, c.dropout)
        self.encoders = nn.ModuleList(Encoder(c.widths) for _ in range(c.num_modalities))
        self.intra = nn.ModuleList(IntraModalTransformer(deepest, *transformer) for _ in range(c.num_modalities))
        self.inter = InterModalTransformer(deepest, c.num_modalities, *transformer)
        self.fusion_decoder = FusionDecoder(c.widths, c.num_modalities, c.num_classes)
        self.separate_decoder = SeparateDecoder(c.widths, c.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, available: torch.Tensor | None = None) -> StudentOutput:
        """Segment from the modalities that the mask lets through.

        Args:
            x: float [B, M, X, Y, Z], normalised; each edge at least 32 and divisible by 16. Voxels of a modality that
                is neither in the mask nor, in training, available are never read: they may be NaN.
            mask: bool [B, M], at least one True a row.
            available: bool [B, M], the modalities that the case has on disk (None: all of them). Only training asks:
                there the separate heads see them, masked or not.

        Returns:
            See :class:`StudentOutput`. In evaluation mode the encoder of a missing modality is not called.

        Raises:
            InputError: a shape or a mask is unusable.
        """
        mask = self._check(x, mask)
        if self.training and self.separate_heads == "available":
            present = torch.ones_like(mask) if available is None else available.to(mask.device) | mask
        else:
            present = mask
        encoding = self.encode(x, present)
        output = self.fuse(encoding, mask)
        if not self.training:
            return output
        return replace(output, separate=self._segment_separately(encoding), seen=present)

    def encode(self, x: torch.Tensor, present: torch.Tensor) -> StudentEncoding:
        """Run the encoder and the intra-modal transformer of each modality that is present.

        Args:
            x: [B, M, X, Y, Z] as in :meth:`forward`.
            present: bool [B, M]; the others are not read and their encoders not called.
        """
        per_modality: list[tuple[torch.Tensor, ...] | None] = []
        for m in range(self.config.num_modalities):
            rows = present[:, m]
            if not bool(rows.any()):
                per_modality.append(None)
                continue
            everyone = bool(rows.all())
            image = x[:, m : m + 1] if everyone else x[rows, m : m + 1]
            features = self.encoders[m](image)
            features = (*features, self.intra[m](features[-1]))
            if not everyone:
                features = tuple(_spread(feature, rows) for feature in features)
            per_modality.append(features)
        by_level = [tuple(f[level] if f is not None else None for f in per_modality) for level in range(6)]
        return StudentEncoding(
            levels=tuple(by_level[:4]), deepest=by_level[4], tokens=by_level[5], present=present.clone()
        )

    def fuse(self, encoding: StudentEncoding, mask: torch.Tensor) -> StudentOutput:
        """Fuse and decode one subset of what was encoded.

        Args:
            encoding: of :meth:`encode`.
            mask: bool [B, M], within ``encoding.present``.

        Raises:
            InputError: the mask asks for a modality that was not encoded.
        """
        if bool((mask & ~encoding.present).any()):
            raise InputError("the mask asks for a modality that was not encoded: encode it first")
        # A map that no sample of the batch may use is not even looked at.
        used = mask.any(dim=0).tolist()
        tokens = [token if flag else None for token, flag in zip(encoding.tokens, used, strict=True)]
        levels = tuple([f if flag else None for f, flag in zip(level, used, strict=True)] for level in encoding.levels)
        bottleneck = self.inter(tokens, mask)
        logits, deep = self.fusion_decoder(levels, bottleneck, mask, deep_supervision=self.training)
        return StudentOutput(logits, (), torch.zeros_like(mask), deep, bottleneck)

    def share(self, encoding: StudentEncoding) -> StudentShares:
        """Each modality's share of the fusion at strides 1 to 8, for inference alone.

        Args:
            encoding: of :meth:`encode`.
        """
        fusions = cast(Iterable[FusionLayer], self.fusion_decoder.fusions)
        levels = tuple(
            tuple(None if features is None else fusion.share(features, m) for m, features in enumerate(maps))
            for fusion, maps in zip(fusions, encoding.levels, strict=False)
        )
        return StudentShares(levels, encoding.tokens, encoding.present)

    def segment(self, shares: StudentShares, subsets: torch.Tensor) -> torch.Tensor:
        """Fuse and decode every subset for every sample: the logits of :meth:`fuse`, at a lower price.

        Args:
            shares: of :meth:`share`, for B samples.
            subsets: bool [S, M], at least one True a row.

        Returns:
            Logits [S * B, K, X, Y, Z]; all samples of the first subset come first.

        Raises:
            InputError: a subset asks for a modality that was not encoded for every sample.
        """
        present = shares.present
        subsets = subsets.to(present.device)
        if bool((subsets & ~present.all(dim=0)).any()):
            raise InputError("a subset asks for a modality that was not encoded: encode it first")
        chosen = [row.nonzero()[:, 0].tolist() for row in subsets.cpu()]
        fusions = cast(Iterable[FusionLayer], self.fusion_decoder.fusions)
        fused = [fusion.combine(level, chosen) for fusion, level in zip(fusions, shares.levels, strict=False)]
        # A map that no subset names is not even looked at.
        used = {m for modalities in chosen for m in modalities}
        tokens = [
            None if token is None or m not in used else token.repeat(len(chosen), 1, 1, 1, 1)
            for m, token in enumerate(shares.tokens)
        ]
        bottleneck = self.inter(tokens, subsets.repeat_interleave(len(present), dim=0))
        return self.fusion_decoder.head(self.fusion_decoder.decode(fused, bottleneck)[-1])

    def _segment_separately(self, encoding: StudentEncoding) -> tuple[torch.Tensor | None, ...]:
        """Logits from each modality alone; the decoder is shared, so all of them go through it as one batch."""
        rows = encoding.present.T
        chosen = [m for m, deepest in enumerate(encoding.deepest) if deepest is not None]
        counts = [int(rows[m].sum()) for m in chosen]
        stacked = [
            torch.cat([f if bool(rows[m].all()) else f[rows[m]] for m, f in enumerate(maps) if f is not None])
            for maps in (*encoding.levels, encoding.deepest)
        ]
        logits = dict(zip(chosen, self.separate_decoder(stacked).split(counts), strict=True))
        return tuple(
            None if m not in logits else logits[m] if bool(rows[m].all()) else _spread(logits[m], rows[m])
            for m in range(len(encoding.deepest))
        )

    def _check(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        modalities = self.config.num_modalities
        if x.ndim != 5 or x.shape[1] != modalities:
            raise InputError(f"x must be [B, {modalities}, X, Y, Z], found {list(x.shape)}")
        if any(edge < self.MINIMUM or edge % self.STRIDE for edge in x.shape[2:]):
            raise InputError(
                f"each edge of x must be at least {self.MINIMUM} and divisible by {self.STRIDE}, found "
                f"{list(x.shape[2:])}; pad the volume or choose another patch"
            )
        if mask.dtype != torch.bool or tuple(mask.shape) != (x.shape[0], modalities):
            raise InputError(f"mask must be bool [{x.shape[0]}, {modalities}], found {mask.dtype} {list(mask.shape)}")
        if not bool(mask.any(dim=1).all()):
            raise InputError("a row of the mask is empty: at least one modality must be present")
        return mask.to(x.device)


def _spread(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Put the rows that were computed back into a batch, zero elsewhere."""
    # Voxels before channels where they lie so in memory, or the maps would be turned round.
    if is_channels_last(features):
        return of_voxels(_spread(as_voxels(features), rows))
    full = features.new_zeros(len(rows), *features.shape[1:])
    return full.index_copy(0, rows.nonzero()[:, 0], features)
