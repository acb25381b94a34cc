# %% [markdown]
# # Solutions to [7. Training and ablation](../07_training_and_ablation.ipynb)

# %% [markdown]
# ## Exercise 7.1
#
# Before the start the difference is negative and the answer 0. A ramp of length 0 would divide by 0, so it is a case of
# its own: a switch at the start.


# %%
# Exercise 7.1
def ramp(step, steps, start, length):
    """r(t) of step 0, 1, ... of ``steps``: 0 before ``start``, then linear up to 1 over ``length``."""
    progress = step / steps - start
    if progress < 0:
        return 0.0
    return min(1.0, progress / length) if length > 0 else 1.0


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
# The average of two students that never met is the baseline that teaching has to beat. Without that arm, all of the
# gain would have been put down to teaching.


# %%
# Exercise 7.3
def shares(single, pair, both):
    """(points due to averaging, points due to teaching)."""
    return pair - single, both - pair
