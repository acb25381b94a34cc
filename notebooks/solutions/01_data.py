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
# ET is stored as 4 because a class 3 of earlier years was given up; BraTS 2023 stores 3. TC leaves out the oedema, WT
# is everything. In the package, `LabelScheme` knows this for each data set, so that no other line of code has to.


# %%
# Exercise 1.2
def region_on_disk(stored, region):
    """True where an array of BraTS 2021's stored values lies in "WT", "TC" or "ET"."""
    return np.isin(stored, {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}[region])


# %% [markdown]
# ## Exercise 1.3
#
# The columns of the 3 x 3 part are the edges of a voxel as vectors in millimetres; the absolute determinant is the
# volume that they span. Its sign only says whether the axes are right- or left-handed, and a thousand cubic millimetres
# are a millilitre.


# %%
# Exercise 1.3
def voxel_volume(affine):
    """Volume of a voxel in ml, from the 4 x 4 affine."""
    return abs(np.linalg.det(affine[:3, :3])) / 1000


# %% [markdown]
# ## Exercise 1.4
#
# Over all voxels, mean and deviation measure how much air the file happens to hold: two crops of one brain would reach
# the network with different contrasts. The brain's own voxels are the same in both.


# %%
# Exercise 1.4
def my_normalise(volume):
    """z-scores of a float array [X, Y, Z] over its non-zero voxels; zeros stay zero."""
    brain = volume != 0
    result = np.zeros_like(volume)
    result[brain] = (volume[brain] - volume[brain].mean()) / volume[brain].std()
    return result
