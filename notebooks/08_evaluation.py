# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8. Evaluation over the 15 subsets
#
# **Question.** How good is a segmentation from each subset of sequences, and how is that number made?
#
# After this notebook you can
# - compute Dice and HD95 by hand, and say what an empty region counts as;
# - produce the table over the 15 subsets that the field prints, with its protocol;
# - read from it which sequence carries which region.
#
# About a minute and a half on two CPU cores, 2 GB of memory. From [notebook 1](01_data.ipynb) it needs the regions,
# from [notebook 2](02_missing_modalities.ipynb) how a subset is segmented.
#
# All images are **simulated**: these numbers compare subsets with each
# other, on this cohort. They must not be put beside results on BraTS.

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown
from scipy import ndimage

from smml import course, figures
from smml.data import read_case
from smml.evaluation import dice, evaluate, format_table, hd95, overlap_table, summary_table, write_report
from smml.evaluation.metrics import CHALLENGE_PENALTY
from smml.inference import Predictor

figures.use_theme()

# %% [markdown]
# ## Dice and HD95
#
# $\mathrm{Dice} = 2|A\cap B| / (|A|+|B|)$ measures overlap. HD95 is the 95th percentile of the distances from each
# surface to the other, in mm, the larger of the two directions. Two bars, one of them shifted by one voxel of 3 mm:

# %%
a = np.zeros((12, 5, 5), bool)
b = a.copy()
a[2:8, 1:4, 1:4] = True
b[3:9, 1:4, 1:4] = True
overlap, sizes = (a & b).sum(), a.sum() + b.sum()
assert np.isclose(dice(a, b), 2 * overlap / sizes)
assert np.isclose(hd95(a, b, (3.0, 3.0, 3.0)), 3.0)
print(f"Dice 2·{overlap}/{sizes} = {dice(a, b):.3f}, HD95 {hd95(a, b, (3.0, 3.0, 3.0)):.1f} mm")

# %% [markdown]
# An empty region needs a convention, and it moves tables: a tumour without ET that is segmented without ET counts
# Dice 1 and HD95 0; a single false voxel makes that Dice 0, and HD95 has no value: it is left out and counted, unless
# you ask for the challenge's penalty of 373.13 mm, the diagonal of BraTS's grid of 240 × 240 × 155 mm.

# %%
empty, speck = np.zeros((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
speck[2, 2, 2] = True
print("both empty:", dice(empty, empty), hd95(empty, empty, (1, 1, 1)))
print("false alarm:", dice(speck, empty), hd95(speck, empty, (1, 1, 1)))
penalty = hd95(speck, empty, (1, 1, 1), one_empty=CHALLENGE_PENALTY)
assert penalty == round((240**2 + 240**2 + 155**2) ** 0.5, 2)
print(f"false alarm, with the penalty: {penalty} mm")

# %% [markdown]
# ## The table
#
# The shipped weights `"tiny"` on simulated cases that training has not seen. Each case is encoded once; each subset
# costs fusion and decoding.

# %%
files = course.held_out_cohort(course.size(full=5, fast=1))
predictor = Predictor.from_checkpoint("tiny")
scores = evaluate(predictor, files)
write_report(scores, course.build_folder() / "evaluation", f"tiny on {len(files)} simulated cases")
print(scores.protocol)
Markdown(format_table(summary_table(scores)))

# %% [markdown]
# That is the literature's mean. The simulator also makes tumour-free subjects and tumours without ET, as there are
# patients without ET. So this mean mixes two things: how well a region that is there is outlined, and whether anything
# is called where there is none (Dice 0, else 1). For ET, from a subset with T1ce:

# %%
rows = scores.frame
et = rows[(rows["region"] == "ET") & (rows["subset"] == "FLAIR+T1ce")]
has_et = et["truth_ml"] > 0
print(f"mean Dice of ET from FLAIR+T1ce: all {len(et)} cases {et['dice'].mean():.3f}; "
      f"the {has_et.sum()} that have ET {et['dice'][has_et].mean():.3f}")  # fmt: skip
print("Dice of the others:", et["dice"][~has_et].round(3).tolist())

# %% [markdown]
# Three numbers keep apart what that mean mixes: the Dice over the cases that *have* the region; the share of these in
# which no voxel of it is found (*missed*); and the share of the others in which some of it is called (*false alarms*),
# with the median of what is called in ml. A dash says that no case here can tell. From here on this table is used.

# %%
table = overlap_table(scores)
shown = [column for column in table.columns if not column.startswith("NSD")]
Markdown(format_table(table[shown]))

# %%
figures.subset_figure(table, f"Mean Dice (%) over the simulated cases that have the region, of {len(files)}")

# %% [markdown]
# ## Which sequence carries what
#
# Take one sequence away and keep the best subset of the rest:

# %%
figures.drop_figure(table, "Best subset without a sequence (simulated cases)")

# %%
regions = ["Dice WT", "Dice TC", "Dice ET"]
has_t1ce = ["T1ce" in name for name in table.index]
with_t1ce = table[has_t1ce]["Dice ET"].mean()
without = table[[not flag for flag in has_t1ce]].drop(index="mean")["Dice ET"].mean()
print(f"mean Dice ET over subsets with T1ce {with_t1ce:.2f}, without {without:.2f}")
singles = table.loc[["T2", "T1ce", "T1", "FLAIR"], regions]
print("lowest mean over the regions among single sequences:", singles.mean(axis=1).idxmin())
singles.round(2)

# %% [markdown]
# ## Where it fails
#
# Of the cases with a tumour, the one with the lowest mean Dice from all four sequences, and what becomes of it from
# each of three alone:

# %%
full = rows[(rows["modalities"] == 4) & (rows["truth_ml"] > 0)].groupby("case")["dice"].mean()
worst = read_case(next(file for file in files if file.id == full.idxmin()))
encoding = predictor.encode(worst)
shown = {name: predictor.segment(encoding, name).labels for name in ("all", "flair", "t1ce", "t1")}
print(f"{worst.id}: mean Dice {full.min():.2f} from all four")
figures.segmentation_figure(worst, shown, title=f"{worst.id}, the hardest of these simulated cases")

# %% [markdown]
# The two branches can disagree. Where they do, the result is less certain. (The air around the brain is easy, and left
# out of the second mean.)

# %%
result = predictor.segment(encoding, "all")
wrong = result.labels != worst.label
inside = worst.volumes["flair"] != 0  # the brain
print(f"disagreement where the label is wrong {result.uncertainty[wrong].mean():.3f}, "
      f"where it is right {result.uncertainty[inside & ~wrong].mean():.3f}")  # fmt: skip
z = figures.widest_slice(figures.to_canonical(worst.label, worst.affine))
volume = figures.to_canonical(next(iter(worst.volumes.values())), worst.affine)
doubt = figures.to_canonical(result.uncertainty, worst.affine)
mistakes = figures.to_canonical(wrong.astype(np.float32), worst.affine)
pictures = {"disagreement": (doubt / max(doubt.max(), 1e-6), "#D55E00"), "wrong labels": (mistakes, "#CC79A7")}
figures.panels({name: figures.heat_picture(volume, z, *picture) for name, picture in pictures.items()}, size=280)

# %% [markdown]
# ## Key points
#
# - A score means nothing without its protocol: cases, averaging, empty regions, post-processing. It is printed with
#   the table, and stored with it.
# - Overlap, misses and false alarms are three numbers. The literature's mean is one of them all; it is shown where
#   others' figures stand beside ours, and called so.
# - A mean over 15 subsets hides what matters to a clinic: which sequence it may lack.
# - `smml evaluate FOLDER --checkpoint tiny` makes the same table on the command line, for any layout, and a page of all
#   tables.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/08_evaluation.py) say why.
#
# ### Exercise 8.1: Dice, with its convention
#
# Overlap of two masks, and the case that formulas forget: a tumour without ET, segmented without ET.


# %%
# Exercise 8.1
def my_dice(prediction, truth):
    """Dice of two boolean arrays; 1 where both are empty."""
    return ...


# %%
with course.check("8.1"):
    a, b = np.random.default_rng(0).random((2, 6, 6, 6)) < 0.3
    none = np.zeros_like(a)
    assert np.isclose(my_dice(a, b), dice(a, b)), f"Dice {my_dice(a, b):.3f} instead of {dice(a, b):.3f}"
    assert my_dice(a, none) == 0, "a false alarm counts 0"
    assert my_dice(none, none) == 1, "nothing there, and nothing found: that is right, not undefined"
    both = (my_dice(a, a) + my_dice(none, none)) / 2
    print(f"two patients, one without ET, both segmented perfectly: mean Dice {both:.1f}")

# %% [markdown]
# ### Exercise 8.2: HD95 from its definition
#
# The *surface* of a mask: its voxels that have a neighbour outside (a mask without its erosion). For each voxel on one
# surface take the distance in mm to the nearest voxel on the other; of these the 95th percentile; of both directions
# the larger. `ndimage.distance_transform_edt(x, sampling=spacing)` gives each voxel its distance to the nearest zero.


# %%
# Exercise 8.2
def my_hd95(prediction, truth, spacing):
    """HD95 in mm of two boolean arrays [X, Y, Z] that are not empty; spacing is the voxel's edges in mm."""
    return ...


# %%
with course.check("8.2"):
    small, large = np.zeros((2, 14, 14, 14), bool)
    small[5:9, 5:9, 5:9] = True
    large[3:11, 4:10, 5:9] = True
    for spacing in ((1.0, 1.0, 1.0), (1.0, 1.0, 4.0), (3.0, 1.0, 1.0)):
        mine, theirs = my_hd95(small, large, spacing), hd95(small, large, spacing)
        assert np.isclose(my_hd95(large, small, spacing), mine), (
            "the larger of the *two* directions is the same both ways"
        )
        assert np.isclose(mine, theirs), f"voxels of {spacing} mm: {mine:.2f} instead of {theirs:.2f} mm"
    speck = small.copy()
    speck[0, 0, 0] = True
    print(f"one false voxel far away adds {my_hd95(speck, small, (1, 1, 1)):.1f} mm; "
          f"the largest distance is {ndimage.distance_transform_edt(~small)[0, 0, 0]:.1f} mm")  # fmt: skip

# %% [markdown]
# ### Exercise 8.3: Which mean?
#
# Papers print one number for HD95, "the mean": of all rows thrown together, or of the subsets' own means?
# Where no score is left out, the two agree. Where a subset has false alarms, its HD95 are left out: then they do not.


# %%
# Exercise 8.3
def two_means(scores):
    """(mean over the subsets' means, mean over all rows) of the column "hd95"; NaN is left out of every mean."""
    return ...


# %%
with course.check("8.3"):
    nan = float("nan")
    made_up = pd.DataFrame({"subset": ["all"] * 4 + ["T1"] * 4, "hd95": [2.0, 3, 2, 3, 40, nan, nan, nan]})
    by_subset, by_row = two_means(made_up)
    assert np.isclose(by_row, 10), f"rows: {by_row:.1f}; five have a value, and they add up to 50"
    assert np.isclose(by_subset, 21.25), f"subsets: {by_subset:.1f}; the two have 2.5 and 40, each counts once"
    complete = made_up.fillna(60.0)
    assert np.isclose(*two_means(complete)), "without gaps both are the same"
    print(f"{by_subset:.1f} or {by_row:.1f} mm, and no word of the three false alarms: state the rule, count the gaps")

# %% [markdown]
# ## Read next
#
# **Next:** [9. Your own case](09_your_own_case.ipynb).
