"""Fused operations of masked mutual learning, usable without the rest of the project.

Four functions, each with one meaning (:mod:`smml_kernels.reference`, plain PyTorch) and one public name here, which
picks how it is computed: by Triton kernels on NVIDIA GPUs, by PyTorch anywhere else. :mod:`smml_kernels.dispatch` has
the rules; :func:`report` says what runs here, and why.

An operation has a folder: ``relation``, ``fusion``, ``exchange``, ``dice_ce``, each with ``reference`` (its meaning)
and ``op`` (its Triton kernels from the top down); ``common`` is what they share. ``aot`` compiles every kernel for GPUs
that are not there, ``benchmarks`` measures.

All take ``implementation``: "auto" (the default), "torch" or "triton". The environment variable ``SMML_KERNELS``, with
the same three words, decides wherever a call leaves it at "auto". The words that a call can be given are types for a
type checker (``Form``, ``Gate``, ``Implementation``) and tuples for a program (``FORMS``, ``GATES``,
``IMPLEMENTATIONS``).

Three take ``group``, a ``torch.distributed.ProcessGroup``: the batch is then the one of all its ranks, every rank gets
the loss of the whole batch, and as its gradient the derivative of that one number by its own inputs. All ranks must
call together, forward and backward. (DistributedDataParallel divides gradients by the number of ranks: multiply the
loss by it.)
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from smml_kernels import reference
from smml_kernels.dispatch import IMPLEMENTATIONS, Implementation, report, use_triton
from smml_kernels.exchange.reference import GATES, Gate
from smml_kernels.fusion.torch_fusion import torch_masked_fusion
from smml_kernels.relation.reference import FORMS, Form
from smml_kernels.relation.torch_linear import torch_relation_loss

__all__ = [
    "FORMS",
    "GATES",
    "IMPLEMENTATIONS",
    "Form",
    "Gate",
    "Implementation",
    "dice_ce_loss",
    "exchange_loss",
    "masked_fusion",
    "relation_loss",
    "report",
]


def relation_loss(
    f1: torch.Tensor,
    f2: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    form: Form = "auto",
    group: dist.ProcessGroup | None = None,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """L_rel of two sets of tokens, differentiable once in both.

    Args:
        f1: F_1, [N, C], floating.
        f2: F_2, [N, C], floating.
        weight: w, [N], taken as given (no normalisation, no gradient); None means 1/N each.
        form: "linear", "direct", or "auto", which takes the cheaper one by shape. With a group it is always linear.
        group: of ranks that hold other tokens of the same batch.
        implementation: "auto", "torch" or "triton".

    Returns:
        A scalar in the dtype of the features, float32 at least. Both implementations add up in float64 by default;
        Triton follows ``torch.set_float32_matmul_precision``: other than "highest" it multiplies in tf32, much faster,
        in a form that stays accurate where the branches nearly agree unless one is a rotated copy of the other.

    Raises:
        ValueError: unequal or unsuitable shapes, no token, an unknown form or implementation.
        RuntimeError: ``implementation="triton"`` where Triton cannot run.
    """
    if use_triton("relation_loss", implementation, f1.device):
        from smml_kernels.common import launch
        from smml_kernels.relation import op

        return op.relation_loss(f1, f2, weight, form=form, group=launch.group_name(group))
    return torch_relation_loss(f1, f2, weight, form=form, group=group)


def masked_fusion(
    features: Sequence[torch.Tensor | None],
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    negative_slope: float = 0.2,
    eps: float = 1e-5,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """conv1x1x1(LeakyReLU(InstanceNorm(.))) over the modalities that each sample has.

    Args:
        features: M maps [B, C, X, Y, Z]; None for a modality that no sample of the batch has.
        mask: [B, M] bool, True where the sample has the modality; a missing map is never read.
        weight: [Cout, M*C]; columns m*C to (m+1)*C belong to modality m.
        bias: [Cout].
        negative_slope: of the LeakyReLU.
        eps: added to the variance.
        implementation: "auto", "torch" or "triton".

    Returns:
        [B, Cout, X, Y, Z], in the autocast dtype where autocast is on, else in the wider dtype of maps and weight.

    Raises:
        ValueError: shapes that disagree, a map that is None though the mask says that it is there (a mask on a GPU,
            where looking would make the host wait, stops the device instead), no map at all.
        RuntimeError: ``implementation="triton"`` where Triton cannot run.
    """
    device = next((f.device for f in features if f is not None), weight.device)
    if use_triton("masked_fusion", implementation, device):
        from smml_kernels.fusion import op

        return op.masked_fusion(features, mask, weight, bias, negative_slope=negative_slope, eps=eps)
    return torch_masked_fusion(features, mask, weight, bias, negative_slope=negative_slope, eps=eps)


def exchange_loss(
    logits1: torch.Tensor,
    logits2: torch.Tensor,
    target: torch.Tensor | None,
    *,
    gate: Gate = "lower_ce",
    min_class_weight: float = 0.0,
    group: dist.ProcessGroup | None = None,
    implementation: Implementation = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_pc in both directions; each sends its gradient to the learner alone.

    Args:
        logits1: of branch 1, [B, K, X, Y, Z], floating.
        logits2: of branch 2, [B, K, X, Y, Z], floating.
        target: y, [B, X, Y, Z], uint8 or int64; may be None for ``gate="entropy"``.
        gate: "lower_ce", "correct", "entropy" or "none"; :mod:`smml_kernels.exchange.reference` has their meaning.
        min_class_weight: w_min of the class weights max(w_min, 1 - n_k / n) of each sample.
        group: of ranks that hold other samples of the same batch.
        implementation: "auto", "torch" or "triton".

    Returns:
        (L_{1->2}, L_{2->1}), scalars in the dtype of the logits, float32 at least.

    Raises:
        ValueError: shapes or dtypes that do not fit, an unknown gate, or no target where the gate needs one. A label
            outside 0 .. K-1 raises on the CPU; on a GPU, where looking would make the host wait, both losses are NaN
            (Triton) or the device stops (PyTorch).
        RuntimeError: ``implementation="triton"`` where Triton cannot run.
    """
    if use_triton("exchange_loss", implementation, logits1.device):
        from smml_kernels.common import launch
        from smml_kernels.exchange import op

        name = launch.group_name(group)
        return op.exchange_loss(logits1, logits2, target, gate=gate, min_class_weight=min_class_weight, group=name)
    return reference.exchange_loss(logits1, logits2, target, gate=gate, min_class_weight=min_class_weight, group=group)


def dice_ce_loss(
    x: torch.Tensor,
    target: torch.Tensor,
    *,
    from_logits: bool = True,
    min_class_weight: float = 0.0,
    group: dist.ProcessGroup | None = None,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """Class-weighted cross-entropy plus soft Dice of one head.

    Args:
        x: [B, K, X, Y, Z], floating: logits, or with ``from_logits=False`` probabilities.
        target: y, [B, X, Y, Z], uint8 or int64.
        from_logits: whether a softmax over K is still to be taken.
        min_class_weight: w_min of the class weights max(w_min, 1 - n_k / n) of each sample.
        group: of ranks that hold other samples of the same batch; with one, this rank may hold none (B = 0).
        implementation: "auto", "torch" or "triton".

    Returns:
        A scalar in the dtype of ``x``, float32 at least.

    Raises:
        ValueError: shapes or dtypes that do not fit. A label outside 0 .. K-1 raises on the CPU; on a GPU, where
            looking would make the host wait, the loss is NaN (Triton) or the device stops (PyTorch).
        RuntimeError: ``implementation="triton"`` where Triton cannot run.
    """
    if use_triton("dice_ce_loss", implementation, x.device):
        from smml_kernels.common import launch
        from smml_kernels.dice_ce import op

        name = launch.group_name(group)
        return op.dice_ce_loss(x, target, from_logits=from_logits, min_class_weight=min_class_weight, group=name)
    return reference.dice_ce_loss(x, target, from_logits=from_logits, min_class_weight=min_class_weight, group=group)
