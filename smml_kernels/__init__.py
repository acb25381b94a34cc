"""Fused operations of masked mutual learning, usable without the rest of the project.

Four functions, each with one meaning (:mod:`smml_kernels.reference`) and one public name here, which picks how it is
computed. At present every operation runs its PyTorch form, on every device: Triton kernels are not part of this
version yet. :func:`report` says so at run time.

``implementation`` is "auto" (the default), "torch" or "triton". The environment variable ``SMML_KERNELS``, with the
same three words, decides wherever a call leaves it at "auto".
"""

import os
from collections.abc import Sequence

import torch

from smml_kernels import reference

__all__ = ["dice_ce_loss", "exchange_loss", "masked_fusion", "relation_loss", "report"]

IMPLEMENTATIONS = ("auto", "torch", "triton")
OPERATIONS = ("relation_loss", "masked_fusion", "exchange_loss", "dice_ce_loss")
ENVIRONMENT_VARIABLE = "SMML_KERNELS"

_NO_TRITON = "Triton kernels are not part of this version yet"


def relation_loss(
    f1: torch.Tensor,
    f2: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    form: str = "auto",
    implementation: str = "auto",
) -> torch.Tensor:
    """L_rel of two sets of tokens [N, C]; see :func:`smml_kernels.reference.relation_loss`."""
    _choose("relation_loss", implementation)
    return reference.relation_loss(f1, f2, weight, form=form)


def masked_fusion(
    features: Sequence[torch.Tensor | None],
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    negative_slope: float = 0.2,
    eps: float = 1e-5,
    implementation: str = "auto",
) -> torch.Tensor:
    """Norm, activation and 1x1x1 convolution of the modalities present; see
    :func:`smml_kernels.reference.masked_fusion`."""
    _choose("masked_fusion", implementation)
    return reference.masked_fusion(features, mask, weight, bias, negative_slope=negative_slope, eps=eps)


def exchange_loss(
    logits1: torch.Tensor,
    logits2: torch.Tensor,
    target: torch.Tensor | None,
    *,
    gate: str = "lower_ce",
    min_class_weight: float = 0.0,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(L_{1->2}, L_{2->1}) of L_pc; see :func:`smml_kernels.reference.exchange_loss`."""
    _choose("exchange_loss", implementation)
    return reference.exchange_loss(logits1, logits2, target, gate=gate, min_class_weight=min_class_weight)


def dice_ce_loss(
    x: torch.Tensor,
    target: torch.Tensor,
    *,
    from_logits: bool = True,
    min_class_weight: float = 0.0,
    implementation: str = "auto",
) -> torch.Tensor:
    """Weighted cross-entropy plus soft Dice; see :func:`smml_kernels.reference.dice_ce_loss`."""
    _choose("dice_ce_loss", implementation)
    return reference.dice_ce_loss(x, target, from_logits=from_logits, min_class_weight=min_class_weight)


def report() -> dict[str, str]:
    """Which implementation each operation would use now, and why: ``{operation: "torch: reason"}``.

    It never raises, so that a wrong environment variable can be reported instead of hiding everything else.
    """
    lines = {}
    for name in OPERATIONS:
        try:
            lines[name] = f"{_choose(name, 'auto')}: {_NO_TRITON}; every device runs the PyTorch form"
        except (ValueError, NotImplementedError) as error:
            lines[name] = f"none: {error}"
    return lines


def _choose(operation: str, implementation: str) -> str:
    """The implementation that an operation runs with, today "torch".

    Raises:
        ValueError: an unknown word, in the call or in the environment.
        NotImplementedError: Triton is asked for.
    """
    asked, source = implementation, f"implementation={implementation!r}"
    if asked == "auto" and (from_environment := os.environ.get(ENVIRONMENT_VARIABLE, "")):
        asked, source = from_environment, f"{ENVIRONMENT_VARIABLE}={from_environment}"
    if asked not in IMPLEMENTATIONS:
        raise ValueError(f"{source} is unknown: choose from {', '.join(IMPLEMENTATIONS)}")
    if asked == "triton":
        raise NotImplementedError(f"{source} was asked for {operation}, but {_NO_TRITON}: use 'auto' or 'torch'")
    return "torch"
