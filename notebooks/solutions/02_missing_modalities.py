# %% [markdown]
# # Solutions to [2. Missing modalities](../02_missing_modalities.ipynb)

# %%
import torch

from smml.modalities import SUBSETS
from smml_kernels import masked_fusion

# %% [markdown]
# ## Exercise 2.1
#
# A sequence is in 8 of the 15 subsets, a pair in 4: a branch sees T1ce in 8/15 of its samples and T1ce with FLAIR in
# 4/15. The two branches draw different subsets, so in many samples one of them sees T1ce while the other has to do
# without, and that is when there is something to teach.


# %%
# Exercise 2.1
def subsets_with(names):
    """The subsets out of SUBSETS, in their order, that contain every one of the names."""
    return [subset for subset in SUBSETS if set(names) <= set(subset)]


# %% [markdown]
# ## Exercise 2.2
#
# `torch.where` takes a value or leaves it; multiplication by 0 keeps NaN and infinity, and `nan_to_num` would also hide
# a NaN that should be seen. The gradient of what was not taken is exactly zero. The divisor is the number present in
# that sample.


# %%
# Exercise 2.2
def masked_mean(maps, present):
    """Mean over the present modalities: maps [B, M, C, X, Y, Z] and bool present [B, M] -> [B, C, X, Y, Z]."""
    mask = present[:, :, None, None, None, None]
    return torch.where(mask, maps, 0.0).sum(dim=1) / mask.sum(dim=1)


# %% [markdown]
# ## Exercise 2.3
#
# Zeros go in, but biases make constants of them, a border padded with zeros makes edges of the constants, and the norm
# blows whatever varies up to standard deviation 1, however faint it was. So the trace is as loud as a real sequence's
# map. Free of it are encoders whose map of zeros is constant, which the norm takes away: those without biases, or with
# reflected borders, as the package's own. There the trace would enter through the tokens of the deepest level, whose
# biases no norm removes.


# %%
# Exercise 2.3
def trace_of_zero_filling(encoders, images, present, weight, bias):
    """Largest |zero filling - selection| of the fused maps; images [B, 1, X, Y, Z] per modality, present [1, M]."""
    given = present[0].tolist()
    filled = [
        encoder(image if here else torch.zeros_like(image))
        for encoder, image, here in zip(encoders, images, given, strict=True)
    ]
    selected = [features if here else None for features, here in zip(filled, given, strict=True)]
    as_if_all = masked_fusion(filled, torch.ones_like(present), weight, bias)
    return (as_if_all - masked_fusion(selected, present, weight, bias)).abs().max()
