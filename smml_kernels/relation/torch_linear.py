"""The linear form of L_rel in PyTorch, by hand: what ``implementation="torch"`` runs where tokens are many.

Where tokens are few the direct form is cheaper, and :mod:`smml_kernels.relation.reference` runs it; for second
derivatives, too, call the reference.

The equations are the reference's. Left to autograd they read and write some thirty
matrices [N, C] in float64, which on a CPU takes as long as the products themselves. Here the gradient is written out,
and products that share a factor are one wide product, which keeps the cores busier than two narrow ones. With
c = s / sqrt(a b) and, for each token,

    sbar = - 2 w / sqrt(a b),    abar = w c / a,    bbar = w c / b,

three more moments P = F1^T diag(sbar) F2, Q1 = F1^T diag(abar) F1, Q2 = F2^T diag(bbar) F2 give

    dF1 = sbar o (F2 M^T) + F2 P^T + 2 abar o (F1 A1) + 2 F1 Q1,
    dF2 = sbar o (F1 M)   + F1 P   + 2 bbar o (F2 A2) + 2 F2 Q2.

**Why float64.** Its products are what costs, and a processor multiplies float32 faster. The form without cancellation
(:mod:`smml_kernels.relation.difference`) makes do with float32 where the branches nearly agree, but not where one is a
rotated copy of the other: there it loses the digits that tests/kernels/test_torch_linear.py asks for. Nor would it gain
much: it multiplies more, and its forward pass was little faster where it was tried, with AVX512.

Beyond inputs and gradients it keeps five matrices [N, C] in float64, and three more in the backward pass: memory grows
with N, not with N^2. Over a process group the moments are added up over the ranks, and each rank differentiates the one
global loss by its own tokens.
"""

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from smml_kernels.common.ranks import sum_over_ranks
from smml_kernels.relation import reference
from smml_kernels.relation.reference import Form, check_tokens, choose_form

# Tokens of a block of a moment: with 128 channels a block of float64 is 1 MB.
_BLOCK = 1024


def torch_relation_loss(
    f1: torch.Tensor,
    f2: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    form: Form = "auto",
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """L_rel by PyTorch, differentiable once; arguments, result and errors are those of the reference."""
    check_tokens(f1, f2, weight, form)
    if choose_form(form, *f1.shape, grouped=group is not None) == "direct":
        return reference.relation_loss(f1, f2, weight, form="direct")
    if weight is None:
        tokens = sum_over_ranks(torch.tensor(float(len(f1)), dtype=torch.float64, device=f1.device), group)
        weight = torch.ones(len(f1), dtype=torch.float64, device=f1.device) / tokens
    loss = _Linear.apply(f1, f2, weight.detach().double(), group)
    return loss.to(torch.promote_types(torch.promote_types(f1.dtype, f2.dtype), torch.float32))


class _Linear(torch.autograd.Function):
    """L_rel, float64, of F_1 and F_2 [N, C] and the weights w [N], float64; differentiable once in the features."""

    @staticmethod
    def forward(ctx, f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup | None):
        x, y = f1.double(), f2.double()
        both = torch.cat([y, x], dim=1)
        moments = sum_over_ranks(torch.cat([_moment(x, both), _moment(y, y)], dim=1), group)
        m, _, a2 = moments.split(x.shape[1], dim=1)  # M, A1, A2
        # F1 M, F1 A1 and F2 A2, which the gradient needs again: kept, as each costs as much as a moment.
        torch.mm(x, moments[:, : 2 * x.shape[1]], out=both)
        f1_m, f1_a1 = both.chunk(2, dim=1)
        f2_a2 = y @ a2
        s, a, b = (torch.einsum("nc,nc->n", *pair) for pair in ((f1_m, y), (f1_a1, x), (f2_a2, y)))
        # ``x <= 0`` rather than ``not x > 0``, so that NaN in the features stays visible.
        cosine = s * _inverse_root(a) * _inverse_root(b)
        loss = (weight * ((a > 0).double() + (b > 0).double() - 2 * cosine)).sum()
        ctx.save_for_backward(x, y, weight, m, f1_m, f1_a1, f2_a2, s, a, b)
        ctx.group, ctx.dtypes = group, (f1.dtype, f2.dtype)
        return sum_over_ranks(loss, group)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: torch.Tensor):
        x, y, weight, m, f1_m, f1_a1, f2_a2, s, a, b = ctx.saved_tensors
        root_a, root_b = _inverse_root(a), _inverse_root(b)
        weight = weight * upstream
        sbar = -2 * weight * root_a * root_b
        slope = -0.5 * sbar * s
        abar, bbar = slope * root_a.square(), slope * root_b.square()
        sbar, abar, bbar = sbar[:, None], abar[:, None], bbar[:, None]

        # Twice the moments Q: that is how the gradient takes them. Each buffer is used twice, as fresh memory is slow.
        wide, narrow = x.new_empty(len(x), 2 * x.shape[1]), torch.empty_like(x)
        d1, d2 = wide.chunk(2, dim=1)
        torch.mul(x, 2 * abar, out=d1)
        torch.mul(y, sbar, out=d2)
        torch.mul(y, 2 * bbar, out=narrow)
        products = torch.cat([_moment(x, wide), _moment(narrow, y)], dim=1)
        q1, p, q2 = sum_over_ranks(products, ctx.group).split(x.shape[1], dim=1)

        # [dF1, dF2] = F1 [2 Q1, P] + F2 [P^T, 2 Q2] + what is scaled by tokens.
        torch.mm(x, torch.cat([q1, p], dim=1), out=wide)
        wide.addmm_(y, torch.cat([p.T, q2], dim=1))
        d1.addcmul_(torch.mm(y, m.T, out=narrow), sbar).addcmul_(f1_a1, abar, value=2)
        d2.addcmul_(f1_m, sbar).addcmul_(f2_a2, bbar, value=2)
        # The loss jumps where a row is zero: its own gradient is 0 by convention.
        d1 = d1.to(ctx.dtypes[0]).masked_fill_((a == 0)[:, None], 0.0)
        d2 = d2.to(ctx.dtypes[1]).masked_fill_((b == 0)[:, None], 0.0)
        return d1, d2, None, None


def _moment(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left^T right, [C, C'], as a batch of blocks of tokens.

    One product with so few rows and columns and so many terms keeps one core busy; of a batch each core has a share.
    """
    full = len(left) // _BLOCK * _BLOCK
    x, y = (f[:full].unflatten(0, (-1, _BLOCK)) for f in (left, right))
    return torch.bmm(x.mT, y).sum(dim=0).addmm_(left[full:].T, right[full:])


def _inverse_root(squared: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(x) where x > 0, and 0 where it is 0."""
    return squared.rsqrt().masked_fill_(squared <= 0, 0.0)
