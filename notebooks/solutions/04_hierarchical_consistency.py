# %% [markdown]
# # Solutions to [4. Hierarchical consistency](../04_hierarchical_consistency.ipynb)

# %%
import torch
import torch.nn.functional as F

# %% [markdown]
# ## Exercise 4.1
#
# Where both are equally unsure the difference is 0, so a tie teaches nobody here either. No target appears anywhere:
# this gate could be used on unlabelled cases, and for the same reason it lets a branch teach that is surely wrong.


# %%
# Exercise 4.1
def entropy_gates(logits1, logits2):
    """(g of 1 -> 2, g of 2 -> 1), each [V], from logits [K, V]."""
    h1, h2 = (-(z.softmax(dim=0) * z.log_softmax(dim=0)).sum(dim=0) for z in (logits1, logits2))
    return (h2 - h1).relu(), (h1 - h2).relu()


# %% [markdown]
# ## Exercise 4.2
#
# The order of the products is the whole trick: `f1 @ (f1.T @ f2)` makes C x C and N x C matrices, `(f1 @ f1.T) @ f2`
# has the same value and makes an N x N one.


# %%
# Exercise 4.2
def linear_relation(f1, f2, w):
    """L_rel of tokens [N, C] and [N, C] with weights [N], without any matrix of N x N."""
    s, a, b = (((x @ (x.T @ y)) * y).sum(dim=1) for x, y in ((f1, f2), (f1, f1), (f2, f2)))
    return (w * (2 - 2 * s / (a.sqrt() * b.sqrt()))).sum()


# %% [markdown]
# ## Exercise 4.3
#
# Dividing by the occupancy makes a sum a mean; the cosine then forgets its length, so one could skip the division. What
# cannot be skipped is the selection: 0 / 0 is NaN.


# %%
# Exercise 4.3
def class_loss(tokens1, tokens2, occupancy):
    """L_cls of one sample: tokens [N, C] of each branch, occupancy [K, N] of the classes."""
    present = occupancy[occupancy.sum(dim=1) > 0]
    means = (present @ tokens / present.sum(dim=1, keepdim=True) for tokens in (tokens1, tokens2))
    r1, r2 = (F.normalize(mean, dim=1) @ F.normalize(mean, dim=1).T for mean in means)
    i, j = torch.triu_indices(len(r1), len(r1), offset=1)
    return (r1 - r2)[i, j].square().mean()
