"""L_fc, the feature level of the hierarchical consistency constraints: L_rel + lambda L_cls.

L_rel (:mod:`smml_kernels.relation.reference`) compares how the tokens of the batch relate to each other, within and
across samples. It looks hardest where the predictions are unsure: a token's weight is the mean entropy of both
branches over the voxels that it covers.

L_cls compares how the classes relate. The prototype of class k in sample s is the mean of the features, weighted by how
much of each token the class fills; R_b holds the cosines of all prototypes present in branch b, and

    L_cls = mean over pairs i < j of (R_1[i, j] - R_2[i, j])^2

One class in two samples is an inter-sample relation, two classes an inter-class one.

The paper's public code lacks the body of this loss; this is the reading that this project fixes.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from smml_kernels import relation_loss
from smml_kernels.common.ranks import sum_over_ranks

# A prototype shorter than this points nowhere: its cosines count as 0.
_SHORTEST = 1e-8


@dataclass(frozen=True)
class FeatureTerms:
    """The two parts of L_fc and what weighs them.

    Attributes:
        relation: L_rel, a scalar [].
        classes: L_cls, a scalar [].
        class_weight: lambda.
    """

    relation: torch.Tensor
    classes: torch.Tensor
    class_weight: float = 1.0

    @property
    def total(self) -> torch.Tensor:
        """L_fc = L_rel + lambda L_cls. Symmetric, it teaches both branches and enters the total loss once."""
        return self.relation + self.class_weight * self.classes


def feature_consistency(
    bottleneck1: torch.Tensor,
    bottleneck2: torch.Tensor,
    logits1: torch.Tensor,
    logits2: torch.Tensor,
    target: torch.Tensor,
    *,
    class_weight: float = 1.0,
    group: dist.ProcessGroup | None = None,
) -> FeatureTerms:
    """L_fc of the two branches, differentiable in both bottlenecks; no gradient goes through the logits.

    Args:
        bottleneck1: output of the inter-modal block of branch 1, [B, C, x, y, z].
        bottleneck2: of branch 2, [B, C, x, y, z].
        logits1: fused logits of branch 1, [B, K, X, Y, Z]; they only say where the prediction is unsure.
        logits2: of branch 2, [B, K, X, Y, Z].
        target: y, [B, X, Y, Z], uint8 or int64, with labels 0 to K-1.
        class_weight: lambda.
        group: of ranks that hold other samples of the same batch; tokens and prototypes are then those of all of them.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(bottleneck1, bottleneck2, logits1, logits2, target)
    x, y, z = bottleneck1.shape[2:]
    grid = (x, y, z)
    weight = token_weights(logits1, logits2, grid, group)
    relation = relation_loss(_tokens(bottleneck1), _tokens(bottleneck2), weight, group=group)
    # Autocast would multiply the prototypes and their cosines in half precision.
    with torch.autocast(bottleneck1.device.type, enabled=False):
        occupancy = _occupancy(target, logits1.shape[1], grid, dtype=_at_least_float32(bottleneck1))
        similarity1, similarity2 = (_class_similarity(f, occupancy, group) for f in (bottleneck1, bottleneck2))
        prototypes = len(similarity1)
        i, j = torch.triu_indices(prototypes, prototypes, offset=1, device=similarity1.device)
        # With fewer than two prototypes the sum is empty: 0, still attached to both branches.
        classes = (similarity1 - similarity2)[i, j].square().sum() / max(1, len(i))
    return FeatureTerms(relation=relation, classes=classes, class_weight=class_weight)


def token_weights(
    logits1: torch.Tensor,
    logits2: torch.Tensor,
    grid: tuple[int, int, int],
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """w of L_rel, [B*x*y*z] with sum 1 (over all ranks, with a group), without gradient.

    The voxel entropies of both predictions, averaged over the branches and pooled to the feature grid, divided by their
    sum; uniform if both branches are certain everywhere.

    Args:
        logits1: [B, K, X, Y, Z].
        logits2: the same shape.
        grid: (x, y, z) of the features.
        group: of ranks that hold other samples of the same batch.
    """
    with torch.no_grad(), torch.autocast(logits1.device.type, enabled=False):
        # entr is -p log p, and 0 at p = 0 where the formula itself would be NaN.
        entropy = sum(
            torch.special.entr(logits.to(_at_least_float32(logits)).softmax(dim=1)).sum(dim=1, keepdim=True)
            for logits in (logits1, logits2)
        )
        weight = F.adaptive_avg_pool3d(entropy / 2, grid).flatten()
        if group is None:
            total, count = weight.sum(), len(weight)
        else:
            total, count = sum_over_ranks(torch.stack([weight.sum(), weight.new_tensor(len(weight))]), group)
        return torch.where(total > 0, weight / total, torch.ones_like(weight) / count)


def _tokens(bottleneck: torch.Tensor) -> torch.Tensor:
    """[B, C, x, y, z] -> F in R^{N x C}, N = B*x*y*z, sample by sample in the order of ``token_weights``."""
    return bottleneck.movedim(1, -1).flatten(0, -2)


def _occupancy(target: torch.Tensor, classes: int, grid: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
    """How much of each token each class fills: [B, X, Y, Z] -> [B, K, x*y*z], one-hot averages between 0 and 1."""
    one_hot = torch.stack([(target == k) for k in range(classes)], dim=1).to(dtype)
    return F.adaptive_avg_pool3d(one_hot, grid).flatten(2)


def _class_similarity(
    bottleneck: torch.Tensor, occupancy: torch.Tensor, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """R_b: the cosines [P, P] between the prototypes of the P classes that the samples hold, sample by sample."""
    size = occupancy.sum(dim=2)  # [B, K]
    features = bottleneck.to(occupancy.dtype).flatten(2)  # [B, C, n]
    sums = torch.bmm(occupancy, features.transpose(1, 2))  # [B, K, C]
    if group is not None:
        # Every rank then computes the one L_cls of the batch, with a gradient to its own prototypes: dL/d(own) whole.
        sums, size = _of_all_ranks(torch.cat([sums, size[..., None]], dim=2), group).split([sums.shape[2], 1], dim=2)
        size = size[..., 0]
    present = size > 0  # an absent class has no mean
    prototypes = sums[present] / size[present][:, None]
    squared = prototypes.square().sum(dim=1, keepdim=True)
    short = squared <= _SHORTEST**2
    # Not max(norm, eps): dividing by eps would blow the gradient of a short prototype up.
    unit = (prototypes * squared.masked_fill(short, 1.0).rsqrt()).masked_fill(short, 0.0)
    return unit @ unit.T


def _of_all_ranks(rows: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The samples' rows [B, ...] of every rank, one rank after the other; ranks may hold different numbers of them.

    A sum over ranks of what is zero but for the own rows: exact, and its gradient passes through to them.
    """
    own = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=rows.device)
    own[dist.get_rank(group)] = len(rows)
    counts = sum_over_ranks(own, group).tolist()
    before = sum(counts[: dist.get_rank(group)])
    after = sum(counts) - before - len(rows)
    padding = [0, 0] * (rows.dim() - 1) + [before, after]
    return sum_over_ranks(F.pad(rows, padding), group)


def _at_least_float32(x: torch.Tensor) -> torch.dtype:
    """The dtype to compute in: that of x, float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def _check(
    bottleneck1: torch.Tensor,
    bottleneck2: torch.Tensor,
    logits1: torch.Tensor,
    logits2: torch.Tensor,
    target: torch.Tensor,
) -> None:
    """Raise ``ValueError`` for inputs that do not belong together."""
    for name, one, two in (("bottlenecks", bottleneck1, bottleneck2), ("logits", logits1, logits2)):
        if one.dim() != 5 or one.shape != two.shape:
            raise ValueError(f"{name} must be two 5-D tensors of one shape, found {[*one.shape]} and {[*two.shape]}")
    if len(bottleneck1) != len(logits1):
        raise ValueError(f"bottlenecks hold {len(bottleneck1)} samples, logits {len(logits1)}")
    expected = (logits1.shape[0], *logits1.shape[2:])
    if tuple(target.shape) != expected:
        raise ValueError(f"target must be {list(expected)}, found {list(target.shape)}")
