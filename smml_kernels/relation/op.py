"""relation_loss by Triton: which form runs, and its registration with PyTorch.

``linear``
    C x C moments in float64, for many tokens per channel and for process groups:
    :mod:`~smml_kernels.relation.linear`.
``linear`` where float32 products may be TensorFloat-32
    Moments of the difference of the branches: :mod:`~smml_kernels.relation.difference`.
``direct``
    N x N similarities in tiles that are never stored, for few tokens per channel:
    :mod:`~smml_kernels.relation.direct`.

TensorFloat-32 is used where ``torch.set_float32_matmul_precision`` has allowed it, as for PyTorch's own products.
"""

from types import ModuleType

import torch

from smml_kernels.common import launch
from smml_kernels.common.operation import forbid_double_backward, operation
from smml_kernels.dispatch import constant_when_traced
from smml_kernels.relation import difference, direct, linear
from smml_kernels.relation.reference import Form, check_tokens, choose_form

# Up to how many tokens per channel "auto" takes the direct form. It has fewer operations up to 2.8, but an H200 takes
# 3.1 ms for (1024, 512) and, in the linear form, 10.7 ms for (32768, 512): for each N^2 C of the one 4.6 times as long
# as for each N C^2 of the other (smml_kernels/benchmarks/results/nvidia-h200.md). The linear form is more exact, too.
_CROSSOVER = 0.2
_FORMS = {"linear": linear, "linear tf32": difference, "direct": direct}


def launchers_of(form: str) -> tuple[ModuleType, dict]:
    """The file of a form as the ops name it, with " tf32" or without, and the options of its launchers."""
    name, _, precision = form.partition(" ")
    return (_FORMS["direct"], {"tf32": precision == "tf32"}) if name == "direct" else (_FORMS[form], {})


@operation("relation")
def _op(
    f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, form: str, group: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    launch.require(f1, "relation_loss")
    launchers, options = launchers_of(form)
    return launchers.forward(f1, f2, weight, group, **options)


@_op.register_fake
def _(f1, f2, weight, form, group):
    return f1.new_empty((), dtype=launch.accumulator(f1)), *launchers_of(form)[0].saved(f1)


@operation("relation_backward")
def _backward_op(
    upstream: torch.Tensor, f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, rows: torch.Tensor,
    moments: torch.Tensor, form: str, group: str,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    launch.require(f1, "relation_loss")
    launchers, options = launchers_of(form)
    return launchers.backward(upstream, f1, f2, weight, rows, moments, group, **options)


@_backward_op.register_fake
def _(upstream, f1, f2, weight, rows, moments, form, group):
    return tuple(torch.empty(f.shape, dtype=f.dtype, device=f.device) for f in (f1, f2))


def _save(ctx, inputs, output):
    f1, f2, weight, ctx.form, ctx.group = inputs
    ctx.save_for_backward(f1, f2, weight, *output[1:])


def _differentiate(ctx, upstream):
    return *_backward_op(upstream, *ctx.saved_tensors, ctx.form, ctx.group), None, None, None


_op.register_autograd(_differentiate, _save)
forbid_double_backward(_backward_op, "relation_loss")


def relation_loss(
    f1: torch.Tensor, f2: torch.Tensor, weight: torch.Tensor | None, *, form: Form, group: str
) -> torch.Tensor:
    """The loss by Triton, differentiable once in the features; see :func:`smml_kernels.relation_loss`.

    Args:
        f1: F_1 [N, C].
        f2: F_2 [N, C].
        weight: w [N] or None.
        form: "auto", "linear" or "direct".
        group: name of a process group, or "".
    """
    check_tokens(f1, f2, weight, form)
    chosen: str = choose_form(form, *f1.shape, grouped=bool(group), crossover=_CROSSOVER)
    dtype = torch.promote_types(f1.dtype, f2.dtype)
    if dtype != torch.float64 and _tf32_allowed():
        chosen += " tf32"
    weight = None if weight is None else weight.detach()
    loss = _op(f1.to(dtype), f2.to(dtype), weight, chosen, group)[0]
    return loss.to(torch.promote_types(dtype, torch.float32))


@constant_when_traced
def _tf32_allowed() -> bool:
    """Whether products of float32 matrices may use TensorFloat-32. Compiled code is made again when that changes."""
    return torch.get_float32_matmul_precision() != "highest"
