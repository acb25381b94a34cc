# %% [markdown]
# # Solutions to [6. Refinement](../06_refinement.ipynb)

# %%
import numpy as np
import torch

from smml.evaluation import bootstrap_mean

# %% [markdown]
# ## Exercise 6.1
#
# The overlap of a map with the prediction over the whole volume, as the package's gate is given it. A map in another
# place has hardly any, a map that marks everything little, an empty one none. Where the prediction is in the wrong
# place the gate trusts the map that errs with it: it can know agreement, not truth. That is why refinement mends
# outlines and finds nothing that the student has missed.


# %%
# Exercise 6.1
def my_gate(p, s):
    """Trust in each map, float [M] in [0, 1]; p [X, Y, Z] is the prediction, s [M, X, Y, Z] are SAM's maps."""
    return 2 * (p * s).sum(dim=(1, 2, 3)) / (p.sum() + s.sum(dim=(1, 2, 3))).clamp_min(1e-6)


# %% [markdown]
# ## Exercise 6.2
#
# First whether anything is shown, then whether one case decides it: of noise the mean is near 0, and taking any case
# out changes its sign. One case in ten with 20 points makes a mean of two and a half, above 0 in nearly every resample,
# and the other nine gained half a point.


# %%
# Exercise 6.2
def verdict(changes):
    """ "one case", "gain", "loss" or "not shown", from an array of the cases' changes in points."""
    interval = bootstrap_mean(changes)
    if interval.low <= 0 <= interval.high:
        return "not shown"
    most = np.abs(changes).argmax()
    rest, mean = np.delete(changes, most).mean(), changes.mean()
    if rest * mean <= 0 or abs(rest) < abs(mean) / 2:
        return "one case"
    return "gain" if mean > 0 else "loss"


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
