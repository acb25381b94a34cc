# %% [markdown]
# # Solutions to [8. Your own case](../08_your_own_case.ipynb)

# %%
from smml.models.intervals import volume_change

# %% [markdown]
# ## Exercise 8.1
#
# The change lies between the least that the later volume can be less the most that the earlier one can, and the
# reverse. Only where that interval lies on one side of 0 is there a direction. A comparison with NaN is False, so two
# volumes without intervals fall through to "cannot tell", which is what they say.


# %%
# Exercise 8.1
def verdict(before, after):
    """ "larger", "smaller" or "cannot tell", from two volumes at 95 %."""
    change = volume_change(before, after)
    if change.low > 0:
        return "larger"
    return "smaller" if change.high < 0 else "cannot tell"


# %% [markdown]
# ## Exercise 8.2
#
# In one order a sequence joins nothing, in the other it joins the other sequence; its contribution is the mean of both
# steps. Two sequences that say the same share what they say, because neither is first by nature. So a contribution is
# not what would be lost without the sequence: that is `both - first`, which is 0 here for either.


# %%
# Exercise 8.2
def contributions_of_two(nothing, first, second, both):
    """The contributions of the first and of the second sequence; each is a mean over both orders of joining."""
    return ((first - nothing) + (both - second)) / 2, ((second - nothing) + (both - first)) / 2
