# %% [markdown]
# # Solutions to [8. Your own case](../08_your_own_case.ipynb)

# %%
import nibabel as nib
import numpy as np

# %% [markdown]
# ## Exercise 8.1
#
# The affine, not the array's shape, knows the size of a voxel, and the data set, not the file, knows what a 4 means. A
# file without its layout is therefore half a result; the package keeps `case.layout` with every case.


# %%
# Exercise 8.1
def volumes_of_file(path):
    """{"WT": ml, "TC": ml, "ET": ml} of a segmentation on disk with BraTS 2021's label values."""
    image = nib.load(path)
    stored, voxel = np.asanyarray(image.dataobj), abs(np.linalg.det(image.affine[:3, :3])) / 1000
    members = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
    return {region: float(np.isin(stored, values).sum() * voxel) for region, values in members.items()}


# %% [markdown]
# ## Exercise 8.2
#
# A brain does not fill its box: even cropped closely, the box's corners are background. Asking for zeros there, in most
# of the eight, is robust to a single voxel and to how wide the rim is. It is a screen, not a proof: software that
# zeroes the air but leaves the skull passes, and only a look finds it.


# %%
# Exercise 8.2
def looks_stripped(volume):
    """True if the background of [X, Y, Z] is exactly 0, False if it is noise."""
    corners = volume[np.ix_([0, -1], [0, -1], [0, -1])]
    return bool((corners == 0).sum() >= 6)
