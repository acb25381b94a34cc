"""The supervised term of every head: class-weighted cross-entropy plus soft Dice.

    CE   = - mean over the voxels of the batch of  w[b, y_v] log clamp(p_v[y_v], 0.005, 1)
    Dice = 1 - mean over k of  2 sum p_k y_k / (sum p_k + sum y_k + 1e-7),     sums over the whole batch

Background counts as a class in both. The clamp bounds what one hopeless voxel can add, and stops its gradient.
"""

import torch
import torch.distributed as dist

from smml_kernels.common.ranks import sum_over_ranks
from smml_kernels.common.targets import check_prediction, check_target, class_counts, class_weights, working_dtype

CLAMP = 0.005
DICE_EPS = 1e-7


def dice_ce_loss(
    x: torch.Tensor,
    target: torch.Tensor,
    *,
    from_logits: bool = True,
    min_class_weight: float = 0.0,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Weighted cross-entropy plus soft Dice of one head.

    Args:
        x: [B, K, X, Y, Z], floating: logits, or with ``from_logits=False`` probabilities (heads that are upsampled
            after their softmax).
        target: y, [B, X, Y, Z], uint8 or int64.
        from_logits: whether a softmax over K is still to be taken.
        min_class_weight: w_min of the class weights w[b, k] = max(w_min, 1 - n_k / n) of each sample.
        group: of ranks that hold other samples of the same batch; mean and sums then run over all of them. A rank
            may then hold none of them, B = 0.

    Returns:
        A scalar in the dtype of ``x``, float32 at least.

    Raises:
        ValueError: shapes or dtypes that do not fit, or a label without a class.
    """
    check_prediction("x", x, may_lack_samples=group is not None)
    check_target(x, target)
    x = x.to(working_dtype(x)).flatten(2)
    p = x.softmax(dim=1) if from_logits else x  # [B, K, V]
    counts = class_counts(target, x.shape[1])
    y = target.flatten(1).long()[:, None]  # [B, 1, V]

    # A gather instead of one-hot volumes: only the true class enters the CE and the overlap.
    p_true = p.gather(1, y)
    w_true = class_weights(counts, min_class_weight, p.dtype).gather(1, y[:, 0])[:, None]
    ce = -(w_true * p_true.clamp(CLAMP, 1.0).log()).sum()

    # Scattered back to [B, K, V] and summed pairwise: adding millions of voxels one by one into K float32 cells would
    # lose digits, and on a GPU their order.
    overlap = torch.zeros_like(p).scatter(1, y, p_true).sum(dim=(0, 2))
    size = p.sum(dim=(0, 2)) + counts.sum(dim=0)
    # Dice is a quotient of sums: the mean of the ranks' own values would be another number.
    totals = sum_over_ranks(torch.cat([overlap, size, ce[None], ce.new_tensor([y.numel()])]), group)
    overlap, size, ce, voxels = totals.split([len(overlap), len(size), 1, 1])
    dice = 1.0 - (2.0 * overlap / (size + DICE_EPS)).mean()
    return (ce / voxels)[0] + dice
