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
# The sums are what adds up over the processes; the quotient comes last, per class, and the mean over the classes after
# it. Averaging the processes' Dice instead would let a process without tumour count as much as one with.


# %%
# Exercise 7.2
def dice_of_all(sums):
    """Soft Dice loss of the whole batch from ``sums``, one (I, P, Y) a process, each float [K]."""
    i, p, y = (sum(parts) for parts in zip(*sums, strict=True))
    return 1 - (2 * i / (p + y + 1e-7)).mean()


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
