# %% [markdown]
# # Solutions to [6. Refinement](../06_refinement.ipynb)

# %%
import numpy as np
import torch

# %% [markdown]
# ## Exercise 6.1
#
# Half-open boxes make the margin symmetric: subtract it from the first, add it to the one behind the last, then cut to
# the slice. `mask_box` gives the box without a margin; in the package the margin is `PromptRules.margin`.


# %%
# Exercise 6.1
def prompt_box(mask, margin):
    """(top, left, bottom, right) round a boolean mask [H, W] that is not empty, with so many voxels of margin."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    return top, left, min(mask.shape[0], rows[-1] + 1 + margin), min(mask.shape[1], columns[-1] + 1 + margin)


# %% [markdown]
# ## Exercise 6.2
#
# With the intersection i and the union u, |a| + |b| = u + i, so Dice = 2i / (u + i) = 2 IoU / (1 + IoU), which grows
# with the IoU. *Means* over several cases are another matter: they can rank two methods differently.


# %%
# Exercise 6.2
def iou_and_dice(a, b):
    """(IoU, Dice) of two boolean arrays; compute the Dice from the IoU alone."""
    union = (a | b).sum()
    share = (a & b).sum() / union if union else 1.0
    return share, 2 * share / (1 + share)


# %% [markdown]
# ## Exercise 6.3
#
# The complement of the truth has the same size here, so it catches a gate that looks at places and misses one that
# counts; an empty and a full truth catch that one. No number of tries *proves* honesty. A signature without the truth
# does, and that is how the package's gate is written; for a missing sequence, NaN that changes no bit comes close.


# %%
# Exercise 6.3
def sees_the_truth(gate, p, s, truth):
    """True if gate(p, s, truth) changes with the truth alone; p, s in [0, 1] and truth in {0, 1} are [X, Y, Z]."""
    usual = gate(p, s, truth)
    others = (1 - truth, torch.zeros_like(truth), torch.ones_like(truth))
    return not all(torch.equal(gate(p, s, other), usual) for other in others)
