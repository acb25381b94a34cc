"""L_seg: every head of one branch against the truth.

    L_seg = L_fuse + sum over the M modalities of L_sep + sum over the levels of L_prm

L_fuse is the segmentation from all modalities present; L_sep asks the weight-shared decoder to segment from each
modality alone, which teaches the encoders; L_prm supervises the decoder at its coarser levels. Each is weighted
cross-entropy plus soft Dice (:func:`smml_kernels.dice_ce_loss`), all with weight 1.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist

from smml_kernels import dice_ce_loss

# w_min of the cross-entropy's class weights, here and in training. Under 0, the public code's, a patch of background
# alone has no cross-entropy.
MIN_CLASS_WEIGHT = 0.05


class Heads(Protocol):
    """What the loss reads of a student's output."""

    @property
    def logits(self) -> torch.Tensor: ...

    @property
    def separate(self) -> tuple[torch.Tensor | None, ...] | None: ...

    @property
    def seen(self) -> torch.Tensor | None: ...

    @property
    def deep(self) -> tuple[torch.Tensor, ...] | None: ...


@dataclass(frozen=True)
class SegmentationTerms:
    """The three parts of L_seg.

    Attributes:
        fuse: of the fused output, a scalar [].
        separate: of the heads that see one modality, their sum, a scalar [].
        deep: of the heads of deep supervision, their sum, a scalar [].
    """

    fuse: torch.Tensor
    separate: torch.Tensor
    deep: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """L_seg, what a branch is trained on."""
        return self.fuse + self.separate + self.deep


def segmentation_loss(
    output: Heads,
    target: torch.Tensor,
    *,
    min_class_weight: float = MIN_CLASS_WEIGHT,
    group: dist.ProcessGroup | None = None,
) -> SegmentationTerms:
    """L_seg of one branch.

    Args:
        output: a student's output: ``logits`` [B, K, X, Y, Z]; ``separate``, M times logits of that shape, or None for
            a modality that no sample showed to its head; ``seen``, bool [B, M], which samples did: a head is judged on
            those, Dice sums and all (None: on all of them); ``deep``, *probabilities* of that shape (softmax, then
            upsampled). ``separate`` and ``deep`` may be empty or None, as at inference, and then count 0.
        target: y, [B, X, Y, Z], uint8 or int64.
        min_class_weight: w_min of the class weights of the cross-entropy.
        group: of ranks that hold other samples of the same batch; every head is then judged over all of them, also
            where this rank has no sample with its modality. All ranks have ``seen``, or none does.

    Raises:
        ValueError: shapes that do not fit, or a separate head that is None though it saw a sample.
    """
    loss = partial(dice_ce_loss, min_class_weight=min_class_weight, group=group)
    fuse = loss(output.logits, target)

    separate = []
    heads = _separate_rows(output.separate or (), output.seen, len(target))
    wanted = _heads_of_all_ranks(heads, target.device, group)
    for m, ((logits, rows), elsewhere) in enumerate(zip(heads, wanted, strict=True)):
        here = logits is not None if rows is None else bool(rows.any())
        if not here:
            # Another rank has the modality: its loss is that of the whole batch only if this rank adds its nothing.
            if elsewhere:
                separate.append(loss(output.logits.detach()[:0], target[:0]))
        elif logits is None:
            raise ValueError(f"separate head {m} is None, but `seen` says that it saw a sample")
        elif rows is None or bool(rows.all()):
            separate.append(loss(logits, target))
        else:
            kept = rows.nonzero()[:, 0]
            separate.append(
                loss(logits.index_select(0, kept.to(logits.device)), target.index_select(0, kept.to(target.device)))
            )

    deep = [loss(probabilities, target, from_logits=False) for probabilities in output.deep or ()]
    nothing = torch.zeros_like(fuse)
    return SegmentationTerms(fuse=fuse, separate=sum(separate, nothing), deep=sum(deep, nothing))


Rows = list[tuple[torch.Tensor | None, torch.Tensor | None]]


def _heads_of_all_ranks(heads: Rows, device: torch.device, group: dist.ProcessGroup | None) -> list[bool]:
    """Which separate heads any rank has something to judge by; without a group none but the own matter."""
    if group is None or not heads:
        return [False] * len(heads)
    own = [logits is not None if rows is None else bool(rows.any()) for logits, rows in heads]
    flags = torch.tensor(own, dtype=torch.int32, device=device)
    dist.all_reduce(flags, group=group)
    return [count > 0 for count in flags.tolist()]


def _separate_rows(heads: tuple[torch.Tensor | None, ...], seen: torch.Tensor | None, batch: int) -> Rows:
    """Each separate head with the samples [B] that it is judged on (None: all)."""
    if not heads or seen is None:
        return [(head, None) for head in heads]
    if seen.dtype != torch.bool or tuple(seen.shape) != (batch, len(heads)):
        raise ValueError(f"seen must be bool [{batch}, {len(heads)}], found {seen.dtype} {list(seen.shape)}")
    # One copy to the host instead of a wait for the device at every head.
    return list(zip(heads, seen.cpu().T, strict=True))
