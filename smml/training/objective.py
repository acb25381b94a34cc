"""What a step minimises: both branches' segmentation losses and the constraints between them, in one sum."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from smml.losses import feature_consistency, pixel_consistency, refinement_loss, segmentation_loss
from smml.models import SMMLOutput
from smml.training.config import TrainingConfig, consistency_ramp


@dataclass(frozen=True)
class Objective:
    """The total and its terms.

    Attributes:
        total: L_1 + L_2 + l_fc L_fc + r(t) (l_pc (L_{1->2} + L_{2->1}) + l_ref (KL_1 + KL_2)), a scalar with a graph.
        terms: each term's value for the log, detached scalars by name.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]


TERMS = (
    *(f"{part}_{branch}" for branch in (1, 2) for part in ("fuse", "separate", "deep")),
    *("teach_12", "teach_21", "relation", "classes"),
    *(f"{part}_{branch}" for branch in (1, 2) for part in ("refine", "refine_kl")),
)


def term_weights(config: TrainingConfig, step: int) -> dict[str, float]:
    """What each of ``TERMS`` counts in the total of a step: the total is the sum of the products.

    Args:
        config: weights and schedule.
        step: 0, 1, ...
    """
    schedule = consistency_ramp(config, step)
    # Students that are not trained teach each other nothing.
    exchange = 0.0 if config.refinement_only else 1.0
    others = {
        "teach_12": exchange * schedule * config.pixel_weight,
        "teach_21": exchange * schedule * config.pixel_weight,
        "relation": exchange * config.feature_weight,
        "classes": exchange * config.feature_weight * config.class_weight,
        "refine_kl_1": schedule * config.refinement_weight,
        "refine_kl_2": schedule * config.refinement_weight,
    }
    return dict.fromkeys(TERMS, 1.0) | others


def objective(
    output: SMMLOutput,
    target: torch.Tensor,
    config: TrainingConfig,
    step: int,
    group: dist.ProcessGroup | None = None,
) -> Objective:
    """The loss of one step (docs/METHOD.md, "Total"), for one backward through both branches.

    Args:
        output: of :class:`smml.models.SMML` in training mode.
        target: y, uint8 or int64 [B, X, Y, Z].
        config: weights and schedule.
        step: 0, 1, ...
        group: of ranks that hold other samples of the same batch. Total and terms are those of the whole batch then,
            on every rank, and the gradients of the ranks add up to its own (:meth:`smml.ranks.Ranks.add_gradients`).
    """
    first, second = output.branches
    weights = term_weights(config, step)
    terms: dict[str, torch.Tensor] = {}
    total = target.new_zeros((), dtype=torch.float32)
    for number, branch in enumerate((first, second), start=1):
        segmentation = segmentation_loss(branch, target, min_class_weight=config.min_class_weight, group=group)
        total = total + segmentation.total
        for part in ("fuse", "separate", "deep"):
            terms[f"{part}_{number}"] = getattr(segmentation, part)
    # A term whose weight is 0 now is not computed: the log then shows 0, and the step costs less.
    zero = torch.zeros_like(total)
    terms = dict.fromkeys(TERMS, zero) | terms
    if weights["teach_12"] > 0:
        teach_12, teach_21 = pixel_consistency(
            first.logits,
            second.logits,
            target,
            gate=config.gate,
            min_class_weight=config.gate_min_class_weight,
            group=group,
        )
        total = total + weights["teach_12"] * (teach_12 + teach_21)
        terms |= {"teach_12": teach_12, "teach_21": teach_21}
    if weights["relation"] > 0:
        features = feature_consistency(
            first.bottleneck,
            second.bottleneck,
            first.logits,
            second.logits,
            target,
            class_weight=config.class_weight,
            group=group,
        )
        total = total + weights["relation"] * features.total
        terms |= {"relation": features.relation, "classes": features.classes}
    for number, (branch, refined) in enumerate(zip((first, second), output.refined or (), strict=False), start=1):
        refinement = refinement_loss(
            refined, branch.logits, target, min_class_weight=config.refinement_min_class_weight, group=group
        )
        total = total + refinement.segmentation + weights[f"refine_kl_{number}"] * refinement.divergence
        terms |= {f"refine_{number}": refinement.segmentation, f"refine_kl_{number}": refinement.divergence}
    return Objective(total, {name: terms[name].detach() for name in TERMS})
