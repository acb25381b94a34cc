"""L_rel: do the two branches agree about which tokens of the batch resemble which?

Rows f_i of F_b in R^{N x C} are the tokens of branch b. G_b = F_b F_b^T holds every pairwise similarity, inside a
sample and across samples; each of its rows, divided by its L2 norm, says what token i is like, whatever the scale and
the orientation of the feature space:

    L_rel = sum_i w_i || g1_i / |g1_i|  -  g2_i / |g2_i| ||^2

Written like that (``form="direct"``) it needs N x N numbers. With M = F1^T F2, A_b = F_b^T F_b and

    s_i = g1_i . g2_i = f1_i^T M f2_i,    a_i = |g1_i|^2 = f1_i^T A_1 f1_i,    b_i = |g2_i|^2 = f2_i^T A_2 f2_i

the same number is ``sum_i w_i (1[a_i > 0] + 1[b_i > 0] - 2 s_i / sqrt(a_i b_i))`` (``form="linear"``): C x C numbers,
and a cost that grows linearly with N.

Why float64 whatever the input: training drives the branches together, and 2 - 2 cos then subtracts two nearly equal
numbers. In float32 a loss of 1e-6 is off by 2 % and its gradient by more; in float64 a loss of 1e-8 is right to 2e-7.
"""

from typing import Literal, get_args

import torch
import torch.distributed as dist

from smml_kernels.common.ranks import sum_moments_over_ranks, sum_over_ranks

# How L_rel is computed: by C x C moments, by N x N similarities, or whichever is cheaper.
Form = Literal["auto", "linear", "direct"]
FORMS: tuple[Form, ...] = get_args(Form)

# 12 N^2 C operations of the direct form against 34 N C^2 of the linear one.
_TOKENS_PER_CHANNEL = 2.8
# Forward and backward of the direct form keep about eight N x N float64 matrices at once.
_DIRECT_BYTES_PER_PAIR = 8 * 8
_DIRECT_BYTES_LIMIT = 2**31


def relation_loss(
    f1: torch.Tensor,
    f2: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    form: Form = "auto",
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """L_rel of two sets of N tokens, differentiable in both.

    A zero row resembles nothing: it adds w_i (1[a_i > 0] + 1[b_i > 0]) to the loss, and as the loss jumps there, its
    own gradient is zero by convention.

    Args:
        f1: F_1, [N, C], floating.
        f2: F_2, [N, C], floating.
        weight: w, [N], taken as given (no normalisation, no gradient); None means 1/N each, N of the whole batch.
        form: "linear", "direct", or "auto", which takes the one with fewer operations (direct up to N = 2.8 C).
        group: the tokens are those of all its ranks together, each of which calls with its own (and differentiates,
            if any does). Every rank gets the loss of the whole batch, and the derivative of that one number by its own
            features. The form is linear then: moments add up over ranks, similarities do not. None: one process.

    Returns:
        A scalar in the dtype of the features, float32 at least. It is never NaN for finite features; rounding can
        leave it at -1e-16 for branches that agree exactly.

    Raises:
        ValueError: unequal or unsuitable shapes, no token, an unknown form.
    """
    check_tokens(f1, f2, weight, form)
    form = choose_form(form, *f1.shape, grouped=group is not None)
    rows1, rows2 = (_without_gradient_of_zero_rows(f.double()) for f in (f1, f2))
    per_token = _direct(rows1, rows2) if form == "direct" else _linear(rows1, rows2, group)
    if weight is not None:
        loss = (weight.detach().double() * per_token).sum()
    else:
        loss = per_token.mean() if group is None else per_token.sum() / _tokens_of_all_ranks(f1, group)
    loss = sum_over_ranks(loss, group)
    return loss.to(torch.promote_types(torch.promote_types(f1.dtype, f2.dtype), torch.float32))


def check_tokens(f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, form: Form) -> None:
    """Raise ``ValueError`` for what :func:`relation_loss` does not take."""
    if f1.dim() != 2 or f1.shape != f2.shape:
        raise ValueError(f"features must be two [N, C] of one shape, found {tuple(f1.shape)} and {tuple(f2.shape)}")
    if not (f1.is_floating_point() and f2.is_floating_point()):
        raise ValueError(f"features must be floating-point tensors, found {f1.dtype} and {f2.dtype}")
    tokens, channels = f1.shape
    if tokens == 0 or channels == 0:
        raise ValueError(f"features are empty: shape {tuple(f1.shape)}")
    if weight is not None and tuple(weight.shape) != (tokens,):
        raise ValueError(f"weight must be [{tokens}], one for each token, found {list(weight.shape)}")
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}: choose from {', '.join(FORMS)}")


def choose_form(
    form: Form, tokens: int, channels: int, *, grouped: bool, crossover: float = _TOKENS_PER_CHANNEL
) -> Form:
    """ "linear" or "direct": what ``form`` asks for, linear with a process group, the cheaper one for "auto".

    Args:
        form: "auto", "linear" or "direct".
        tokens: N.
        channels: C.
        grouped: whether tokens of other ranks belong to the batch.
        crossover: tokens per channel up to which the direct form is the cheaper one.
    """
    if grouped:
        return "linear"
    if form == "auto":
        return "direct" if _direct_is_cheaper(tokens, channels, crossover) else "linear"
    return form


def _direct_is_cheaper(tokens: int, channels: int, crossover: float = _TOKENS_PER_CHANNEL) -> bool:
    """Which form "auto" takes: the faster one, unless N x N matrices would not fit comfortably."""
    return tokens <= crossover * channels and _DIRECT_BYTES_PER_PAIR * tokens**2 <= _DIRECT_BYTES_LIMIT


def _tokens_of_all_ranks(f: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The number of rows of the batch, without waiting for the device."""
    return sum_over_ranks(torch.full((), f.shape[0], dtype=torch.float64, device=f.device), group)


def _direct(f1: torch.Tensor, f2: torch.Tensor) -> torch.Tensor:
    """|| g1_i/|g1_i| - g2_i/|g2_i| ||^2, [N], by the definition."""
    unit1, unit2 = (_unit_rows(f @ f.T) for f in (f1, f2))
    return (unit1 - unit2).square().sum(dim=1)


def _linear(f1: torch.Tensor, f2: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The same [N] numbers from the three C x C moments, which are those of all ranks' tokens."""
    m, a1, a2 = sum_moments_over_ranks(torch.stack([f1.T @ f2, f1.T @ f1, f2.T @ f2]), group)
    s = ((f1 @ m) * f2).sum(dim=1)
    a = ((f1 @ a1) * f1).sum(dim=1)
    b = ((f2 @ a2) * f2).sum(dim=1)
    # Two roots, not the root of a product: a_i b_i of large features would overflow first.
    return (a > 0).double() + (b > 0).double() - 2 * s * _inverse_root(a) * _inverse_root(b)


def _unit_rows(g: torch.Tensor) -> torch.Tensor:
    """Each row of G [N, N] divided by its L2 norm; a zero row stays zero."""
    return g * _inverse_root(g.square().sum(dim=1, keepdim=True))


def _inverse_root(squared: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(x) where x > 0 and 0 elsewhere, with a gradient of 0 there instead of 0 * inf = NaN."""
    # ``x <= 0`` rather than ``not x > 0``, so that NaN in the features stays visible in the loss.
    zero = squared <= 0
    return squared.masked_fill(zero, 1.0).rsqrt().masked_fill(zero, 0.0)


def _without_gradient_of_zero_rows(f: torch.Tensor) -> torch.Tensor:
    """F itself, but its zero rows are constants: other tokens' similarity to them would still pull at them."""
    return f.masked_fill((f == 0).all(dim=1, keepdim=True), 0.0)
