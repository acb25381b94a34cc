"""L_refine: what trains the refinement network, and what the student learns from it (docs/METHOD.md).

    L_refine = CE + Dice of the refined segmentation + KL between student and refined

The supervised part trains the refinement network alone: the refined logits are the student's *detached* logits plus a
correction. The divergence is what carries the knowledge back, ``KL(sg[p_refined] || p_student)``, a mean over voxels;
its teacher is a constant. It is returned apart from the supervised part because the schedule switches it on later.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from smml_kernels import dice_ce_loss
from smml_kernels.common.ranks import sum_over_ranks

# w_min of the class weights in the cross-entropy of what is refined, here and in training: every voxel counts alike.
# With the students' class weights the oedema came out larger than it is (results/study).
REFINEMENT_MIN_CLASS_WEIGHT = 1.0


@dataclass(frozen=True)
class RefinementTerms:
    """The two parts of L_refine of one branch.

    Attributes:
        segmentation: cross-entropy and Dice of the refined logits, a scalar []; trains the refinement alone.
        divergence: the KL between refined and student, a scalar [].
    """

    segmentation: torch.Tensor
    divergence: torch.Tensor


def refinement_loss(
    refined_logits: torch.Tensor,
    student_logits: torch.Tensor,
    target: torch.Tensor,
    *,
    min_class_weight: float = REFINEMENT_MIN_CLASS_WEIGHT,
    group: dist.ProcessGroup | None = None,
) -> RefinementTerms:
    """L_refine of one branch.

    Args:
        refined_logits: of :class:`smml.models.refinement.RefinementNetwork`, [B, K, X, Y, Z], floating.
        student_logits: the student's fused logits, [B, K, X, Y, Z], *not* detached: the divergence teaches them.
        target: y, [B, X, Y, Z], uint8 or int64.
        min_class_weight: w_min of the class weights max(w_min, 1 - n_k / n) of the cross-entropy.
        group: of ranks that hold other samples of the same batch; means and sums then run over all of them.

    Returns:
        The terms, in float32 at least. ``segmentation`` sends its gradient to ``refined_logits`` alone, ``divergence``
        to ``student_logits`` alone.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    if refined_logits.dim() != 5 or refined_logits.shape != student_logits.shape:
        raise ValueError(
            "refined_logits and student_logits must be two 5-D tensors of one shape, found "
            f"{[*refined_logits.shape]} and {[*student_logits.shape]}"
        )
    segmentation = dice_ce_loss(refined_logits, target, min_class_weight=min_class_weight, group=group)
    divergence = _divergence(refined_logits, student_logits, group)
    return RefinementTerms(segmentation=segmentation, divergence=divergence)


def _divergence(teacher: torch.Tensor, learner: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """KL(sg[p_teacher] || p_learner), mean over the voxels of the batch; a scalar."""
    dtype = torch.promote_types(torch.promote_types(teacher.dtype, learner.dtype), torch.float32)
    # Autocast would keep the softmax in float32 but not the products; the loss is computed as its callers expect.
    with torch.autocast(learner.device.type, enabled=False):
        log_teacher = teacher.detach().to(dtype).log_softmax(dim=1)
        log_learner = learner.to(dtype).log_softmax(dim=1)
        per_voxel = F.kl_div(log_learner, log_teacher, reduction="none", log_target=True).sum(dim=1)
        if group is None:
            return per_voxel.mean()
        total, voxels = sum_over_ranks(torch.stack([per_voxel.sum(), per_voxel.new_tensor(per_voxel.numel())]), group)
        return total / voxels
