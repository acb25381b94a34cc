# %% [markdown]
# # Solutions to [7. Training and ablation](../07_training_and_ablation.ipynb)

# %%
import numpy as np

from smml.evaluation.bootstrap import bootstrap_mean

# %% [markdown]
# ## Exercise 7.1
#
# One row of the differences is one seed. The interval over its cases says how sure the difference of *these two
# trainings* is, and nothing of what another seed would give. So one seed calls differences shown that three seeds do
# not confirm, and now and then with the other sign.


# %%
# Exercise 7.1
def one_seed(study, arm, parent):
    """{seed: Interval} of arm - parent in mean Dice (0 to 1), each seed by itself."""
    differences = study.values(arm, "mean") - study.values(parent, "mean")
    return {seed: bootstrap_mean(row.to_numpy()) for seed, row in differences.iterrows()}


# %% [markdown]
# ## Exercise 7.2
#
# The opponent is (b), whose students are averaged too and exchange nothing. Against (a), a single student, the gain of
# averaging would be credited to the method. A word is only said where the whole interval lies on one side of 0. So the
# method as fixed first loses, and what was changed afterwards takes the loss away; a gain in the mean is not shown.


# %%
# Exercise 7.2
def worth(changes, arm, measure):
    """ "gain", "loss" or "not shown": the arm against (b), two students that exchange nothing."""
    row = changes[(changes["arm"] == arm) & (changes["parent"] == "pair")].iloc[0]
    if row[f"{measure} low"] < 0 < row[f"{measure} high"]:
        return "not shown"
    return "gain" if row[measure] > 0 else "loss"


# %% [markdown]
# ## Exercise 7.3
#
# The patients are shuffled, not the scans, and sorted first, so that the order of the names does not matter. `smml
# train` holds out by patient in the same way when it validates without a folder of its own.


# %%
# Exercise 7.3
def split(names, shares, seed):
    """Lists of names, one for each share (they add up to 1), by patient."""
    patients = sorted({name.rpartition("-")[0] for name in names})
    np.random.default_rng(seed).shuffle(patients)
    ends = np.cumsum(np.multiply(shares, len(patients))).round().astype(int)
    parts = [set(patients[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    return [sorted(name for name in names if name.rpartition("-")[0] in part) for part in parts]
