# %% [markdown]
# # Solutions to [3. Masked mutual learning](../03_masked_mutual_learning.ipynb)

# %%

# %% [markdown]
# ## Exercise 3.1
#
# `detach` is the sg[.] of the equation: without it the loss could be lowered by making the teacher worse. Taking the
# logarithm of a softmax in one step keeps probabilities near 0 finite.


# %%
# Exercise 3.1
def divergence(teacher, learner):
    """KL(teacher || learner) per voxel, from logits [K, V] each -> [V]; no gradient reaches the teacher."""
    log_p, log_q = teacher.detach().log_softmax(dim=0), learner.log_softmax(dim=0)
    return (log_p.exp() * (log_p - log_q)).sum(dim=0)


# %% [markdown]
# ## Exercise 3.2
#
# A teacher has the lowest error of all, and its learner errs strictly more. Two that share the lowest error both teach
# the others and leave each other alone; where all err alike there is nobody to teach. Forbidding them to teach at all
# would reduce to the same rule for two branches: the check lets you decide.


# %%
# Exercise 3.2
def gates_of_many(errors):
    """g [A, A, V] from the errors [A, V] of A branches: g[a, b, v] is 1 where a teaches b at voxel v, else 0."""
    best = errors == errors.min(dim=0).values
    return (best[:, None] & (errors[:, None] < errors[None])).float()


# %% [markdown]
# ## Exercise 3.3
#
# Copying is off for the first tenth. The heads and the relations count from the first step, whatever the schedule. And
# without refinement its terms are 0 for good: half-way nothing begins.


# %%
# Exercise 3.3
def silent(step):
    """The set of names among the seven that are 0 at this step."""
    return {"teach_12", "refine_1"} if step < 100 else {"refine_1"}
