"""L_pc: two branches teach each other, voxel by voxel, where one of them is the better.

    L_{a->b} = sum_v g(v) KL(sg[p_a(v)] || p_b(v)) / sum_v g(v),        0 where the denominator is 0

over all voxels v of the batch, with p = softmax(logits). The gate g says where a may teach b and how much it counts;
c_b(v) = -log p_b(v)[y_v] is the cross-entropy of the detached logits, H_b the entropy, w the class weights:

=============  ====================================================  ==============================================
gate           g(v) for a -> b                                       reading
=============  ====================================================  ==============================================
``lower_ce``   w[y_v] where c_a(v) < c_b(v)                          the one that fits the truth better teaches
``correct``    w[y_v] where argmax p_a(v) = y_v                      whoever is right teaches
``entropy``    relu(H_b(v) - H_a(v)), no class weights, no target    the surer teaches, as in M3AE
``none``       w[y_v]                                                plain deep mutual learning
=============  ====================================================  ==============================================

With ``lower_ce`` and ``entropy`` a tie teaches nobody.
"""

from typing import Literal, get_args

import torch
import torch.distributed as dist

from smml_kernels.common.ranks import sum_over_ranks
from smml_kernels.common.targets import (
    check_min_class_weight,
    check_prediction,
    check_target,
    class_counts,
    class_weights,
    working_dtype,
)

# Who teaches at a voxel: the table above.
Gate = Literal["lower_ce", "correct", "entropy", "none"]
GATES: tuple[Gate, ...] = get_args(Gate)


def exchange_loss(
    logits1: torch.Tensor,
    logits2: torch.Tensor,
    target: torch.Tensor | None,
    *,
    gate: Gate = "lower_ce",
    min_class_weight: float = 0.0,
    group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_pc in both directions; each sends its gradient to the learner alone.

    Args:
        logits1: of branch 1, [B, K, X, Y, Z], floating.
        logits2: of branch 2, [B, K, X, Y, Z], floating.
        target: y, [B, X, Y, Z], uint8 or int64; may be None for ``gate="entropy"``, which does not look at it.
        gate: one of ``GATES``.
        min_class_weight: w_min of the class weights max(w_min, 1 - n_k / n) of each sample.
        group: of ranks that hold other samples of the same batch; the sums then run over all of them.

    Returns:
        (L_{1->2}, L_{2->1}), scalars in the dtype of the logits, float32 at least.

    Raises:
        ValueError: shapes or dtypes that do not fit, an unknown gate, or no target where the gate needs one.
    """
    check_exchange(logits1, logits2, target, gate, min_class_weight)
    dtype = working_dtype(logits1, logits2)
    log_p1, log_p2 = (logits.to(dtype).log_softmax(dim=1).flatten(2) for logits in (logits1, logits2))  # [B, K, V]
    fixed1, fixed2 = log_p1.detach(), log_p2.detach()
    if gate == "entropy":
        h1, h2 = (-(fixed.exp() * fixed).sum(dim=1) for fixed in (fixed1, fixed2))
        gate12, gate21 = (h2 - h1).relu(), (h1 - h2).relu()
    else:
        assert target is not None  # check_exchange has seen to it
        gate12, gate21 = _gates(gate, fixed1, fixed2, target, min_class_weight)
    loss12 = gated_mean(gate12, divergence(fixed1, log_p2), group)
    loss21 = gated_mean(gate21, divergence(fixed2, log_p1), group)
    return loss12, loss21


def check_exchange(
    logits1: torch.Tensor, logits2: torch.Tensor, target: torch.Tensor | None, gate: Gate, min_class_weight: float
) -> None:
    """Raise ``ValueError`` for what :func:`exchange_loss` does not take."""
    if gate not in GATES:
        raise ValueError(f"unknown gate {gate!r}: choose from {', '.join(GATES)}")
    check_min_class_weight(min_class_weight)
    check_prediction("logits1", logits1)
    if logits1.shape != logits2.shape:
        raise ValueError(f"logits must share one shape, found {tuple(logits1.shape)} and {tuple(logits2.shape)}")
    check_prediction("logits2", logits2)
    if gate != "entropy":
        if target is None:
            raise ValueError(f"gate {gate!r} needs a target; only 'entropy' does without")
        check_target(logits1, target)


def _gates(
    gate: Gate, log_p1: torch.Tensor, log_p2: torch.Tensor, target: torch.Tensor, min_class_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """g for 1 -> 2 and for 2 -> 1, [B, V], of the three gates that look at the target."""
    counts = class_counts(target, log_p1.shape[1])
    y = target.flatten(1).long()
    weights = class_weights(counts, min_class_weight, log_p1.dtype).gather(1, y)
    if gate == "none":
        return weights, weights
    if gate == "correct":
        # max(...).indices is argmax, ten times faster over a strided dimension on a CPU.
        open12, open21 = (log_p.max(dim=1).indices == y for log_p in (log_p1, log_p2))
    else:
        # The larger log-probability of the true class is the lower cross-entropy.
        true1, true2 = (log_p.gather(1, y[:, None])[:, 0] for log_p in (log_p1, log_p2))
        open12, open21 = true1 > true2, true2 > true1
    return weights * open12, weights * open21


def divergence(log_teacher: torch.Tensor, log_student: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) at each voxel: [B, K, V] -> [B, V]."""
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)


def gated_mean(gate: torch.Tensor, divergence: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """sum g d / sum g, and 0 (with a zero gradient) where no voxel is gated."""
    gated, total = sum_over_ranks(torch.stack([(gate * divergence).sum(), gate.sum()]), group)
    return gated / torch.where(total > 0, total, 1.0)
