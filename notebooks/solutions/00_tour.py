# %% [markdown]
# # Solutions to [0. A tour](../00_tour.ipynb)

# %%
from smml.modalities import DISPLAY_NAMES, MODALITIES, subset_name

# %% [markdown]
# ## Exercise 0.1
#
# The row of all four is the same for each candidate, so the lowest of the four rows of three decides. That is a
# statement about this model on this cohort: a model trained differently might need a sequence less.


# %%
# Exercise 0.1
def most_missed(table, region):
    """Name ("FLAIR", "T1ce", "T1" or "T2") of the sequence without which the Dice of the region falls most."""
    left = {name: subset_name(other for other in MODALITIES if other != name) for name in MODALITIES}
    worst = min(MODALITIES, key=lambda name: table.loc[left[name], f"Dice {region}"])
    return DISPLAY_NAMES[worst]


# %% [markdown]
# ## Exercise 0.2
#
# Sequences are worth what they add to the others. The second best alone can repeat what is there already, and one that
# is poor alone can complete it: that is why a table of 15 subsets says more than four bars.


# %%
# Exercise 0.2
def next_sequence(table, given, region):
    """Which of MODALITIES to add to `given`, such as ("flair", "t2"), for the highest Dice of the region."""
    candidates = [name for name in MODALITIES if name not in given]
    return max(candidates, key=lambda name: table.loc[subset_name((*given, name)), f"Dice {region}"])
