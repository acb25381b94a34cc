# %% [markdown]
# # Solutions to [3. Masked mutual learning](../03_masked_mutual_learning.ipynb)

# %%
import torch

# %% [markdown]
# ## Exercise 3.1
#
# The strict comparison in both directions leaves ties to nobody. They do happen: where both branches are certain and
# right, both errors round to 0.


# %%
# Exercise 3.1
def gates(c1, c2, w):
    """(g of 1 -> 2, g of 2 -> 1), each [V], from the errors c1, c2 and the weights w, all [V]."""
    return w * (c1 < c2), w * (c2 < c1)


# %% [markdown]
# ## Exercise 3.2
#
# `detach` is the sg[.] of the equation: without it the loss could be lowered by making the teacher worse. Taking the
# logarithm of a softmax in one step keeps probabilities near 0 finite.


# %%
# Exercise 3.2
def divergence(teacher, learner):
    """KL(teacher || learner) per voxel, from logits [K, V] each -> [V]; no gradient reaches the teacher."""
    log_p, log_q = teacher.detach().log_softmax(dim=0), learner.log_softmax(dim=0)
    return (log_p.exp() * (log_p - log_q)).sum(dim=0)


# %% [markdown]
# ## Exercise 3.3
#
# $FQ(FQ)^\top = FQQ^\top F^\top = FF^\top$ for any orthogonal $Q$. Reordering the channels is the simplest such $Q$;
# a rotation or a reflection does as well. Each branch may name its channels as it likes.


# %%
# Exercise 3.3
def other_features(f):
    """Features [N, C] with the relations of f [N, C], but not f nor a multiple of it."""
    return torch.roll(f, shifts=1, dims=1)
