# %% [markdown]
# # Solutions to [1. The data](../01_data.ipynb)

# %%
import numpy as np

# %% [markdown]
# ## Exercise 1.1
#
# With $x = e^{-T_I/T_1}$ the equation is linear: $x = (1 + e^{-T_R/T_1})/2$. For infinite $T_R$ this is the textbook's
# $T_1 \ln 2$; a finite one leaves the magnetisation less time to recover, so it is nulled earlier. Simulated subjects
# and real ones differ in $T_1$, so no single $T_I$ makes fluid quite black.


# %%
# Exercise 1.1
def nulling_time(t1, tr):
    """The inversion time at which a tissue with this T1 gives no signal."""
    return t1 * np.log(2 / (1 + np.exp(-tr / t1)))


# %% [markdown]
# ## Exercise 1.2
#
# Over all voxels, mean and deviation measure how much air the file happens to hold: two crops of one brain would reach
# the network with different contrasts. The brain's own voxels are the same in both.


# %%
# Exercise 1.2
def my_normalise(volume):
    """z-scores of a float array [X, Y, Z] over its non-zero voxels; zeros stay zero."""
    brain = volume != 0
    result = np.zeros_like(volume)
    result[brain] = (volume[brain] - volume[brain].mean()) / volume[brain].std()
    return result
