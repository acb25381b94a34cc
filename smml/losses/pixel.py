"""L_pc, the pixel level of the hierarchical consistency constraints.

The two branches see the same volume through different modalities; at each voxel the one that reads it better teaches
the other. The paper says that reliable knowledge is selected and exchanged, and its public code lacks the body; the
reading used here ("lower_ce": the branch with the lower cross-entropy at a voxel teaches there) and the alternatives
are spelled out in :mod:`smml_kernels.exchange.reference`.
"""

import torch
import torch.distributed as dist

from smml_kernels import Gate, exchange_loss

# w_min of the gates' class weights, here and in training: every voxel counts alike. Weighted by class as the
# cross-entropy is, L_pc pulls at the few tumour voxels as hard as the truth does and costs Dice (results/study).
GATE_MIN_CLASS_WEIGHT = 1.0


def pixel_consistency(
    logits1: torch.Tensor,
    logits2: torch.Tensor,
    target: torch.Tensor | None,
    *,
    gate: Gate = "lower_ce",
    min_class_weight: float = GATE_MIN_CLASS_WEIGHT,
    group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(L_{1->2}, L_{2->1}): what branch 1 teaches branch 2, and the reverse.

    Each is a gated mean of KL(teacher || learner) over the voxels of the batch, 0 where nothing is gated. The teacher
    is a constant: L_{1->2} sends no gradient to branch 1.

    Args:
        logits1: fused logits of branch 1, [B, K, X, Y, Z].
        logits2: fused logits of branch 2, [B, K, X, Y, Z].
        target: y, [B, X, Y, Z], uint8 or int64 (None is enough for ``gate="entropy"``).
        gate: "lower_ce", "correct", "entropy" or "none".
        min_class_weight: w_min of the gate's class weights max(w_min, 1 - n_k / n); 1 counts every voxel alike.
        group: of ranks that hold other samples of the same batch; the mean then runs over the voxels of all of them.

    Raises:
        ValueError: shapes that do not fit, an unknown gate, a gate without the target that it needs.
    """
    return exchange_loss(logits1, logits2, target, gate=gate, min_class_weight=min_class_weight, group=group)
