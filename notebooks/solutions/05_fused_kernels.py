# %% [markdown]
# # Solutions to [5. Fused kernels](../05_fused_kernels.ipynb)

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
# ## Exercise 5.1
#
# A contiguous tensor is one long row, whatever its shape. The mask does two things: lanes beyond the end load nothing,
# and they store nothing; without it the last program writes into somebody else's memory.


# %%
# Exercise 5.1
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
# ## Exercise 5.2
#
# `p * t` reads two maps and writes one; its sum reads that one; the sums of `p` and `t` read one each. Fused: `p` and
# `t` are read once, the product lives in registers.


# %%
# Exercise 5.2
def dice_traffic():
    """(maps moved by eager code, maps moved by one fused pass), forward only; numbers of a few bytes count 0."""
    product, its_sum, sums = 3, 1, 2
    return product + its_sum + sums, 2


# %% [markdown]
# ## Exercise 5.3
#
# $12N^2C / r_d = 34NC^2 / r_l$. A machine that is half as fast in float64 needs twice the tokens before the linear form
# pays; and where $N \times N$ does not fit into memory, no rate can help the direct one.


# %%
# Exercise 5.3
def break_even(channels, direct_rate=1.0, linear_rate=1.0):
    """The N at which both forms take the same time, from rates in operations a second."""
    return 34 / 12 * channels * direct_rate / linear_rate
