"""How many bytes eager PyTorch moves: what each of its operations reads and writes, counted while it runs.

It counts as if nothing stayed in a cache between two operations, which is so for volumes that are larger than one.
"""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):
    """Counts inside a ``with`` block, forward and backward.

    An operation reads each tensor that it is given and writes each that it returns. One that only looks at memory in
    another way (``view``, ``transpose``, ``detach``) moves nothing, and an expanded tensor counts as what is stored.
    What an operation does inside is not seen: a norm that reads its input twice counts as reading it once.

    Attributes:
        bytes: by the operation's name.
        calls: by the operation's name, those that moved something.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Bytes read and written."""
        return sum(self.bytes.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        storages = {tensor.untyped_storage()._cdata for tensor in read}
        name = func.__name__.partition(".")[0]
        shares = bool(written) and all(tensor.untyped_storage()._cdata in storages for tensor in written)
        if shares and not name.endswith("_"):  # a view; what changes in place has a name that ends so
            return out
        # Memory that is only asked for is written by nobody yet.
        moved = 0 if name.startswith(("empty", "new_empty")) else sum(_stored(tensor) for tensor in (*read, *written))
        if moved:
            self.bytes[name] += moved
            self.calls[name] += 1
        return out


def _stored(tensor: torch.Tensor) -> int:
    """Bytes of memory that a tensor spans, each counted once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * tensor.element_size() if tensor.numel() else 0
