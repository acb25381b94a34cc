# %% [markdown]
# # Solutions to [5. Evaluation](../05_evaluation.ipynb)

# %%
import numpy as np
from scipy import ndimage

# %% [markdown]
# ## Exercise 5.1
#
# The mean over all cases is a sum over two groups. Add up the change of each group and divide by the number of all
# cases, not by that of the group: then the two parts add up to the difference. B has the higher mean and the worse
# outlines. A table of means alone tells the opposite of what a reader of outlines wants to know.


# %%
# Exercise 5.1
def where_from(one, other):
    """(points from overlap, points from false alarms) of mean Dice other - one.

    Both are tables with a row per case, the same cases in the same order, and columns "dice" (0 to 1) and "truth_ml".
    """
    change = 100 * (other["dice"] - one["dice"]) / len(one)
    there = one["truth_ml"] > 0
    return change[there].sum(), change[~there].sum()


# %% [markdown]
# ## Exercise 5.2
#
# The distance transform measures to the nearest zero, so it is given the other surface inverted. The percentile makes
# it robust: a single far voxel does not count as long as such voxels are less than a twentieth of the surface. A region
# with fewer than some twenty surface voxels has no such reserve.


# %%
# Exercise 5.2
def my_hd95(prediction, truth, spacing):
    """HD95 in mm of two boolean arrays [X, Y, Z] that are not empty; spacing is the voxel's edges in mm."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth)]
    far = []
    for one, other in (surfaces, surfaces[::-1]):
        distance = ndimage.distance_transform_edt(~other, sampling=spacing)
        far.append(np.percentile(distance[one], 95))
    return max(far)


# %% [markdown]
# ## Exercise 5.3
#
# Removing an ET makes its Dice 1 where there is none and 0 where there is some. `argmax` takes the first of equals,
# which is the lowest. The gain on the half that chose the threshold is the highest of seventeen means, so chance
# flatters it; on the other half the same threshold meets other small tumours. That is why a threshold, like any option,
# is chosen on subjects that are not reported.


# %%
# Exercise 5.3
def best_threshold(rows, thresholds):
    """The threshold in ml. Rows: a table with "dice" (0 to 1), "truth_ml" and "predicted_ml", a row per subject."""
    means = []
    for threshold in thresholds:
        removed = rows["predicted_ml"] < threshold
        means.append(np.where(removed, rows["truth_ml"] == 0, rows["dice"]).mean())
    return thresholds[int(np.argmax(means))]
