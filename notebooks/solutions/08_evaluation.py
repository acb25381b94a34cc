# %% [markdown]
# # Solutions to [8. Evaluation](../08_evaluation.ipynb)

# %%
import numpy as np
from scipy import ndimage

# %% [markdown]
# ## Exercise 8.1
#
# 0/0 has to mean something. With 0 instead of 1, a cohort with many patients without ET could never score well, however
# good the method; leaving them out would make false alarms in them free of charge.


# %%
# Exercise 8.1
def my_dice(prediction, truth):
    """Dice of two boolean arrays; 1 where both are empty."""
    sizes = prediction.sum() + truth.sum()
    return 2 * (prediction & truth).sum() / sizes if sizes else 1.0


# %% [markdown]
# ## Exercise 8.2
#
# The distance transform measures to the nearest zero, so it is given the other surface inverted. The percentile makes
# it robust: a single far voxel does not count as long as it is among the furthest twentieth of its surface, which a
# small region's few voxels soon are not.


# %%
# Exercise 8.2
def my_hd95(prediction, truth, spacing):
    """HD95 in mm of two boolean arrays [X, Y, Z] that are not empty; spacing is the voxel's edges in mm."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth)]
    far = []
    for one, other in (surfaces, surfaces[::-1]):
        distance = ndimage.distance_transform_edt(~other, sampling=spacing)
        far.append(np.percentile(distance[one], 95))
    return max(far)


# %% [markdown]
# ## Exercise 8.3
#
# The mean of means gives every subset one vote; the mean over rows gives a subset fewer votes the more often it failed,
# which flatters a method that fails. The package averages over cases, then over subsets, and prints how many were left
# out.


# %%
# Exercise 8.3
def two_means(scores):
    """(mean over the subsets' means, mean over all rows) of the column "hd95"; NaN is left out of every mean."""
    return scores.groupby("subset")["hd95"].mean().mean(), scores["hd95"].mean()
