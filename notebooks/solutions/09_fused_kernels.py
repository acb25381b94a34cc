# %% [markdown]
# # Solutions to [9. Fused kernels](../09_fused_kernels.ipynb)

# %%
import os

import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

# %% [markdown]
# ## Exercise 9.1
#
# A contiguous tensor is one long row, whatever its shape. The mask does two things: lanes beyond the end load nothing,
# and they store nothing; without it the last program writes into somebody else's memory.


# %%
# Exercise 9.1
if triton:

    @triton.jit
    def scale_shift_leaky_kernel(x, out, n, a, b, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        values = a * tl.load(x + at, mask=inside, other=0.0) + b
        tl.store(out + at, tl.where(values > 0, values, 0.2 * values), mask=inside)


def scale_shift_leaky(x, a, b):
    """LeakyReLU(a x + b) of a contiguous float32 tensor, a and b numbers; by one Triton kernel."""
    if triton is None:
        return F.leaky_relu(a * x + b, 0.2)
    out = torch.empty_like(x)
    scale_shift_leaky_kernel[(triton.cdiv(x.numel(), 256),)](x, out, x.numel(), a, b, BLOCK=256)
    return out


# %% [markdown]
# ## Exercise 9.2
#
# The least time is the larger of two: bytes over bandwidth, operations over rate. The pixel loss waits for memory on
# both cards and gains nothing. The relation loss waits for the arithmetic on the first card; it gains until its bytes
# bind.


# %%
# Exercise 9.2
def speed_up(nbytes, operations):
    """The factor between the least times of the two cards, for an op of so many bytes and operations."""
    slow, fast = (max(nbytes / 4e12, operations / rate) for rate in (50e12, 800e12))
    return slow / fast
