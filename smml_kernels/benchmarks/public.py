"""The four operations as published codes of this family usually write them: the baseline of every ratio.

Written from the equations, with the habits of such codes and none of their lines: the N x N matrix is stored, labels
become one-hot float volumes, classes are looped over in Python, missing modalities are cut out of a stacked tensor
and then carried through every step as zeros. Same signatures and same values as :mod:`smml_kernels.reference`.
Below float32 they begin with ``float()``, as autocast does for a softmax and a logarithm.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F


def relation_loss(f1: torch.Tensor, f2: torch.Tensor) -> torch.Tensor:
    """L_rel of [N, C] and [N, C] through two stored N x N matrices; a scalar."""
    g1 = F.normalize(torch.matmul(f1, f1.transpose(0, 1)), dim=1)
    g2 = F.normalize(torch.matmul(f2, f2.transpose(0, 1)), dim=1)
    return ((g1 - g2) ** 2).sum(dim=1).mean()


def masked_fusion(
    features: Sequence[torch.Tensor], mask: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Stack the M maps [B, C, X, Y, Z], copy what the mask [B, M] has into zeros, normalise, activate, convolve.

    The mask belongs on the maps' device. Returns [B, Cout, X, Y, Z].
    """
    stacked = torch.stack(tuple(features), dim=1)  # [B, M, C, X, Y, Z]
    kept = torch.zeros_like(stacked)
    kept[mask] = stacked[mask]
    return _norm_act_conv(kept.flatten(1, 2), weight, bias)


def masked_fusion_multiplied(
    features: Sequence[torch.Tensor], mask: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """The same with the mask as a factor, which is leaner, but lets NaN of a missing map through."""
    kept = [f * mask[:, m].view(-1, 1, 1, 1, 1).to(f.dtype) for m, f in enumerate(features)]
    return _norm_act_conv(torch.cat(kept, dim=1), weight, bias)


def _norm_act_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    x = F.instance_norm(x)
    x = F.leaky_relu(x, 0.2)
    return F.conv3d(x, weight[:, :, None, None, None], bias)


def exchange_loss(
    logits1: torch.Tensor, logits2: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(L_{1->2}, L_{2->1}) with the gate "lower_ce", from one-hot volumes and softmaxes of [B, K, X, Y, Z]."""
    logits1, logits2 = _float32_at_least(logits1), _float32_at_least(logits2)
    one_hot = _one_hot(target, logits1)
    p1, p2 = F.softmax(logits1, dim=1), F.softmax(logits2, dim=1)
    ce1 = -(one_hot * torch.log(p1.detach())).sum(dim=1)
    ce2 = -(one_hot * torch.log(p2.detach())).sum(dim=1)
    weight = torch.zeros_like(ce1)
    for k in range(logits1.shape[1]):
        share = one_hot[:, k].flatten(1).mean(dim=1).view(-1, 1, 1, 1)
        weight = weight + (1.0 - share) * one_hot[:, k]
    gate12 = weight * (ce1 < ce2).to(weight.dtype)
    gate21 = weight * (ce2 < ce1).to(weight.dtype)
    kl12 = F.kl_div(F.log_softmax(logits2, dim=1), p1.detach(), reduction="none").sum(dim=1)
    kl21 = F.kl_div(F.log_softmax(logits1, dim=1), p2.detach(), reduction="none").sum(dim=1)
    return (gate12 * kl12).sum() / gate12.sum(), (gate21 * kl21).sum() / gate21.sum()


def dice_ce_loss(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Weighted cross-entropy plus soft Dice of logits [B, K, X, Y, Z], class by class; a scalar."""
    x = _float32_at_least(x)
    classes = x.shape[1]
    one_hot = _one_hot(target, x)
    p = F.softmax(x, dim=1)
    ce: Any = 0.0  # tensors from the first class on, both
    for k in range(classes):
        share = one_hot[:, k].flatten(1).mean(dim=1).view(-1, 1, 1, 1)
        ce = ce - (1.0 - share) * one_hot[:, k] * torch.log(torch.clamp(p[:, k], min=0.005, max=1.0))
    dice: Any = 0.0
    for k in range(classes):
        overlap = (p[:, k] * one_hot[:, k]).sum()
        dice = dice + 2.0 * overlap / (p[:, k].sum() + one_hot[:, k].sum() + 1e-7)
    return ce.mean() + 1.0 - dice / classes


def _float32_at_least(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _one_hot(target: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B, X, Y, Z] -> [B, K, X, Y, Z] in the dtype of ``like``."""
    return F.one_hot(target.long(), like.shape[1]).movedim(-1, 1).contiguous().to(like.dtype)
