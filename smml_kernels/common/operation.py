"""An operation of PyTorch whose kernels are launched from Python, registered so that a call costs the host little.

``torch.library.custom_op`` does the same for any signature, and looks at every argument of every call for it: lists are
taken apart and put together again, outputs are compared with inputs, and gradients of what nobody differentiates are
filled with zeros. That was about a fifth of what a call of a loss cost the host (benchmarks/results/host.md). Here it
is known what an operation looks like:

- some tensors, of which at most one argument is a list of them, and plain values, all positional and without defaults;
- outputs are new memory;
- the first ``differentiable`` outputs have gradients, the others are kept for the backward pass.

It is an operation of the dispatcher all the same: ``torch.compile`` puts it into its graph, fake tensors and dispatch
modes see it.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

_NAMESPACE = "smml_kernels"
# Kept for as long as the process lives: what it has registered goes with it.
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")


class Operation:
    """``torch.ops.smml_kernels.NAME``, made from an annotated function that launches its kernels; called like it.

    Args:
        name: without the namespace.
        function: its annotations are the schema (``torch.library.infer_schema``). It returns new memory alone.
    """

    def __init__(self, name: str, function: Callable) -> None:
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, _unseen_by_dynamo(function), "CompositeExplicitAutograd")
        self._name = name
        self._call = getattr(getattr(torch.ops, _NAMESPACE), name).default
        lists = [at for at, a in enumerate(self._call._schema.arguments) if a.type.kind() == "ListType"]
        of_tensors = [at for at in lists if "Tensor" in str(self._call._schema.arguments[at].type)]
        assert len(of_tensors) <= 1, f"{name}: at most one argument may be a list of tensors"
        self._list = of_tensors[0] if of_tensors else None
        self._others = len(self._call._schema.arguments) - len(of_tensors)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def register_fake(self, function: Callable) -> Callable:
        """Decorates the form without data: outputs of the right shapes, strides, dtypes and device."""
        return torch.library.register_fake(f"{_NAMESPACE}::{self._name}", function, lib=_LIBRARY)

    def register_autograd(self, differentiate: Callable, save: Callable | None = None, differentiable: int = 1) -> None:
        """Give it a gradient.

        Args:
            differentiate: ``(context, *upstream)``, the gradients of the first ``differentiable`` outputs, to the
                gradients of the arguments, None where there is none. Of several upstream gradients some may be None; if
                all are, it is not called. ``context.needs_input_grad`` has the form of the arguments.
            save: ``(context, arguments, outputs)``, run after the forward pass; None keeps nothing.
            differentiable: how many outputs, from the first, have gradients.
        """
        call, flatten, unflatten = self._call, self._flatten, self._unflatten

        class Differentiated(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *flat):
                arguments = unflatten(flat)
                with torch._C._AutoDispatchBelowAutograd():
                    outputs = call(*arguments)
                if isinstance(outputs, tuple):
                    ctx.mark_non_differentiable(*outputs[differentiable:])
                # Nobody is to fill zeros for the gradients that there are not.
                ctx.set_materialize_grads(False)
                if save is not None:
                    save(ctx, arguments, outputs)
                return tuple(outputs) if isinstance(outputs, list) else outputs

            @staticmethod
            def backward(ctx, *upstream):
                needs = ctx.needs_input_grad
                if all(g is None for g in upstream):
                    return (None,) * len(needs)
                try:
                    ctx.needs_input_grad = unflatten(needs)
                    gradients = differentiate(ctx, *upstream[:differentiable])
                finally:
                    ctx.needs_input_grad = needs
                return flatten(gradients)

        Differentiated.__name__ = Differentiated.__qualname__ = f"{self._name}_autograd"

        def below_or_through(*arguments):
            if torch.is_grad_enabled():
                outputs = Differentiated.apply(*flatten(arguments))
                return list(outputs) if returns_list else outputs
            with torch._C._AutoDispatchBelowAutograd():
                return call(*arguments)

        returns_list = call._schema.returns[0].type.kind() == "ListType"
        _LIBRARY.impl(self._name, below_or_through, "Autograd")

    def _flatten(self, arguments: tuple) -> tuple:
        """With the elements of the list of tensors behind all other arguments: autograd looks at tensors alone."""
        at = self._list
        return arguments if at is None else (*arguments[:at], *arguments[at + 1 :], *arguments[at])

    def _unflatten(self, flat: tuple) -> tuple:
        at, others = self._list, self._others
        return flat if at is None else (*flat[:at], list(flat[others:]), *flat[at:others])


def operation(name: str) -> Callable[[Callable], Operation]:
    """Decorates the function that an :class:`Operation` of that name is made from."""
    return functools.partial(Operation, name)


def forbid_double_backward(backward_op: Operation, public_name: str) -> None:
    """Give the op that computes a gradient a derivative of its own: a clear error.

    Without it, differentiating twice would stop with a message about a missing formula that names no way out.
    """

    def refuse(ctx, *gradients):
        raise RuntimeError(
            f"{public_name} by Triton can be differentiated once: for second derivatives pass implementation='torch'"
        )

    backward_op.register_autograd(refuse, differentiable=sys.maxsize)


def _unseen_by_dynamo(function: Callable) -> Callable:
    """The function, which torch.compile does not look into where it meets a call of it outside of its graphs.

    ``torch.compiler.disable`` imports all of ``torch._dynamo`` for that, seconds that only those wait for who have
    imported it already.
    """
    disabled: Callable | None = None

    @functools.wraps(function)
    def call(*arguments):
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*arguments)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*arguments)

    return call
