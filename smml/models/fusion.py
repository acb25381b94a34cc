"""What each modality adds to a fusion, computed once for all subsets.

Every fusion layer begins with a sum over the present modalities (:func:`smml_kernels.masked_fusion`): a modality's
summand, its *share*, is its own normalised and activated map times its own columns of the mixing weight, and knows
nothing of the others. So shares can be kept like the maps themselves, and a subset only adds up those it has.
"""

from dataclasses import dataclass

import torch

from smml.errors import InputError
from smml.models.student import Student, StudentEncoding
from smml_kernels import masked_fusion


@dataclass(frozen=True)
class StudentShares:
    """An encoding of which only adding up, the inter-modal transformer and decoding are left to do.

    Attributes:
        levels: at strides 1, 2, 4, 8: the shares of M modalities, [B, widths[l], ...] each, None where nobody in the
            batch has the modality.
        tokens: at stride 16, after the intra-modal transformer, likewise.
        present: [B, M] bool, which modalities were encoded for which sample.
    """

    levels: tuple[tuple[torch.Tensor | None, ...], ...]
    tokens: tuple[torch.Tensor | None, ...]
    present: torch.Tensor

    @property
    def window(self) -> tuple[int, int, int]:
        """Voxels of what was encoded."""
        return tuple(next(share for share in self.levels[0] if share is not None).shape[2:])


def shares_of(student: Student, encoding: StudentEncoding) -> StudentShares:
    """Each modality's share of the fusion at strides 1 to 8.

    Args:
        student: that encoded; for inference, the shares are not meant to be trained through.
        encoding: of its ``encode``.
    """
    levels = []
    for fusion, maps in zip(student.fusion_decoder.fusions, encoding.levels, strict=False):
        no_bias = torch.zeros_like(fusion.bias)
        columns = fusion.weight.chunk(len(maps), dim=1)
        levels.append(
            tuple(
                None if feature is None else masked_fusion([feature], encoding.present[:, m, None], column, no_bias)
                for m, (feature, column) in enumerate(zip(maps, columns, strict=True))
            )
        )
    return StudentShares(tuple(levels), encoding.tokens, encoding.present)


def fuse_shares(
    student: Student, shares: StudentShares, subsets: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Fuse every subset for every sample; the decoder's input.

    Args:
        student: that encoded.
        shares: of :func:`shares_of`, for B samples.
        subsets: bool [S, M], at least one True a row.

    Returns:
        The fused maps [S * B, widths[l], ...] at strides 1, 2, 4, 8, and the bottleneck [S * B, M * C, X/16, ...]; all
        samples of the first subset come first.

    Raises:
        InputError: a subset asks for a modality that was not encoded for every sample.
    """
    present = shares.present
    subsets = subsets.to(present.device)
    if bool((subsets & ~present.all(dim=0)).any()):
        raise InputError("a subset asks for a modality that was not encoded: encode it first")
    chosen = [row.nonzero()[:, 0].tolist() for row in subsets.cpu()]
    fused = [
        fusion.refine(_added_up(level, fusion.bias, chosen))
        for fusion, level in zip(student.fusion_decoder.fusions, shares.levels, strict=False)
    ]
    # A map that no subset names is not even looked at.
    used = {m for modalities in chosen for m in modalities}
    tokens = [token.repeat(len(chosen), 1, 1, 1, 1) if m in used else None for m, token in enumerate(shares.tokens)]
    return fused, student.inter(tokens, subsets.repeat_interleave(len(present), dim=0))


def decode_fused(student: Student, fused: list[torch.Tensor], bottleneck: torch.Tensor) -> torch.Tensor:
    """Logits [S * B, K, X, Y, Z] of what :func:`fuse_shares` gives: those of ``student.fuse``, at a lower price."""
    return student.fusion_decoder.head(student.fusion_decoder.decode(fused, bottleneck)[-1])


def _added_up(level: tuple[torch.Tensor | None, ...], bias: torch.Tensor, chosen: list[list[int]]) -> torch.Tensor:
    """Bias and shares of each subset, [S * B, C, ...]; a modality outside a subset is not looked at."""
    example = next(share for share in level if share is not None)
    batch = len(example)
    out = example.new_empty(len(chosen) * batch, *example.shape[1:])
    for number, modalities in enumerate(chosen):
        part = out[number * batch : (number + 1) * batch]
        torch.add(level[modalities[0]], bias.to(out.dtype).view(1, -1, 1, 1, 1), out=part)
        for m in modalities[1:]:
            part += level[m]
    return out
