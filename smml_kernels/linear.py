"""The linear form of L_rel in PyTorch, by hand: what ``implementation="torch"`` runs where tokens are many.

:mod:`smml_kernels.reference` runs the direct form, and both where second derivatives are wanted.

The equations are those of :mod:`smml_kernels.reference.relation`. Left to autograd they read and write some thirty
matrices [N, C] in float64, which on a CPU takes as long as the products themselves. Here tokens go through in blocks
that stay in the cache, and the gradient is written out. With c = s / sqrt(a b) and, for each token,

    sbar = - 2 w / sqrt(a b),    abar = w c / a,    bbar = w c / b,

three more moments P = F1^T diag(sbar) F2, Q1 = F1^T diag(abar) F1, Q2 = F2^T diag(bbar) F2 give

    dF1 = sbar o (F2 M^T) + F2 P^T + 2 abar o (F1 A1) + 2 F1 Q1,
    dF2 = sbar o (F1 M)   + F1 P   + 2 bbar o (F2 A2) + 2 F2 Q2.

Beyond inputs and gradients it keeps five matrices [N, C] in float64, and one more for a moment: memory grows with N,
not with N^2. Over a process group the moments are added up over the ranks, and each rank differentiates the one global
loss by its own tokens.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from smml_kernels import reference
from smml_kernels.reference.ranks import sum_over_ranks
from smml_kernels.reference.relation import check_tokens, choose_form

# Tokens of a block: with 128 channels a block of float64 is 1 MB.
_BLOCK = 1024


def torch_relation_loss(
    f1: torch.Tensor,
    f2: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    form: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """L_rel by PyTorch, differentiable once; arguments, result and errors are those of the reference."""
    check_tokens(f1, f2, weight, form)
    if choose_form(form, *f1.shape, grouped=group is not None) == "direct":
        return reference.relation_loss(f1, f2, weight, form="direct")
    if weight is None:
        tokens = sum_over_ranks(torch.tensor(float(len(f1)), dtype=torch.float64, device=f1.device), group)
        weight = torch.ones(len(f1), dtype=torch.float64, device=f1.device) / tokens
    loss = relation_linear(f1, f2, weight.detach().double(), group)
    return loss.to(torch.promote_types(torch.promote_types(f1.dtype, f2.dtype), torch.float32))


def relation_linear(
    f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """L_rel by the linear form, differentiable once in ``f1`` and ``f2``.

    Args:
        f1: F_1, [N, C], floating.
        f2: F_2, [N, C].
        weight: w, float64 [N], taken as given.
        group: of ranks that hold other tokens of the same batch.

    Returns:
        A float64 scalar.
    """
    return _Linear.apply(f1, f2, weight, group)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup | None):
        tokens, channels = f1.shape
        whole = f1.double(), f2.double()
        x, y = whole
        moments = sum_over_ranks(torch.stack([_moment(x, y), _moment(x, x), _moment(y, y)]), group)
        # F1 M, F1 A1 and F2 A2, which the gradient needs again: kept, as each costs as much as a moment.
        projections = f1.new_empty((3, tokens, channels), dtype=torch.float64)
        rows = f1.new_empty((3, tokens), dtype=torch.float64)
        for place, x, y in _blocks(*whole):
            for row, projection, moment, (left, right) in zip(
                rows, projections, moments, ((x, y), (x, x), (y, y)), strict=True
            ):
                torch.mm(left, moment, out=projection[place])
                torch.sum(projection[place] * right, dim=1, out=row[place])
        s, a, b = rows
        # ``x <= 0`` rather than ``not x > 0``, so that NaN in the features stays visible.
        cosine = s * _inverse_root(a) * _inverse_root(b)
        loss = (weight * ((a > 0).double() + (b > 0).double() - 2 * cosine)).sum()
        ctx.save_for_backward(*whole, weight, moments[0], projections, rows)
        ctx.group, ctx.dtypes = group, (f1.dtype, f2.dtype)
        return sum_over_ranks(loss, group)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: torch.Tensor):
        f1, f2, weight, m, projections, rows = ctx.saved_tensors
        s, a, b = rows
        root_a, root_b = _inverse_root(a), _inverse_root(b)
        weight = weight * upstream
        sbar = -2 * weight * root_a * root_b
        slope = -0.5 * sbar * s
        abar, bbar = slope * root_a.square(), slope * root_b.square()

        products = [_moment(f1 * sbar[:, None], f2), _moment(f1 * abar[:, None], f1), _moment(f2 * bbar[:, None], f2)]
        p, q1, q2 = sum_over_ranks(torch.stack(products), ctx.group)

        gradients = [torch.empty_like(f, dtype=dtype) for f, dtype in zip((f1, f2), ctx.dtypes, strict=True)]
        for place, x, y in _blocks(f1, f2):
            f1_m, f1_a1, f2_a2 = projections[:, place]
            block1 = (y @ m.T).mul_(sbar[place, None]).addcmul_(f1_a1, abar[place, None], value=2)
            block2 = (f1_m * sbar[place, None]).addcmul_(f2_a2, bbar[place, None], value=2)
            block1.addmm_(y, p.T).addmm_(x, q1, alpha=2)
            block2.addmm_(x, p).addmm_(y, q2, alpha=2)
            # The loss jumps where a row is zero: its own gradient is 0 by convention.
            gradients[0][place] = block1.masked_fill_((a[place] == 0)[:, None], 0.0)
            gradients[1][place] = block2.masked_fill_((b[place] == 0)[:, None], 0.0)
        return *gradients, None, None


def _moment(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left^T right, [C, C], as a batch of blocks of tokens.

    One product with so few rows and columns and so many terms keeps one core busy; of a batch each core has a share.
    """
    full = len(left) // _BLOCK * _BLOCK
    x, y = (f[:full].unflatten(0, (-1, _BLOCK)) for f in (left, right))
    return torch.bmm(x.mT, y).sum(dim=0).addmm_(left[full:].T, right[full:])


def _blocks(f1: torch.Tensor, f2: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Blocks of tokens: where they lie, of F_1, of F_2."""
    for start in range(0, len(f1), _BLOCK):
        place = slice(start, min(start + _BLOCK, len(f1)))
        yield place, f1[place], f2[place]


def _inverse_root(squared: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(x) where x > 0, and 0 where it is 0."""
    return squared.rsqrt().masked_fill_(squared <= 0, 0.0)
