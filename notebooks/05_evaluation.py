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
# # 5. Evaluation over the 15 subsets
#
# **Question.** How good is a segmentation from each subset of sequences, how is that number made, and what does it
# hide?
#
# After this notebook you can
# - compute Dice and HD95 by hand, and say what an empty region counts as;
# - tell overlap, misses and false alarms apart, case by case and lesion by lesion;
# - say which sequence carries which region, what one more brings, and when it costs;
# - look at failures by their cause, and at what windows and post-processing do to a score;
# - compare two results with an interval, and say when a published number may stand beside them.
#
# A minute or two on two CPU cores. From [notebook 1](01_data.ipynb) it needs the regions, from
# [notebook 2](02_missing_modalities.ipynb) how a subset is segmented.
#
# All images are **simulated**: these numbers compare subsets with each other, on this cohort. They must not be put
# beside results on BraTS.

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy import ndimage

from smml import course, figures
from smml.data import REGIONS, read_case
from smml.errors import InputError
from smml.evaluation import dice, evaluate, format_table, hd95, summary_table, write_report
from smml.evaluation.metrics import CHALLENGE_PENALTY
from smml.inference import Predictor
from smml.modalities import DISPLAY_NAMES, MODALITIES, subset_name

figures.use_theme()

# %% [markdown]
# ## Dice and HD95
#
# $\mathrm{Dice} = 2|A\cap B| / (|A|+|B|)$ measures overlap. HD95 is the 95th percentile of the distances from each
# surface to the other, in mm, the larger of the two directions. Below: two bars, one of them shifted by one voxel of 3
# mm.
#
# An empty region needs a convention, and it moves tables: a tumour without ET that is segmented without ET counts
# Dice 1 and HD95 0. A single false voxel makes that Dice 0, and HD95 has no value: it is left out and counted, unless
# you ask for the challenge's penalty, the diagonal of BraTS's grid of 240 × 240 × 155 mm.

# %%
a = np.zeros((12, 5, 5), bool)
b = a.copy()
a[2:8, 1:4, 1:4] = True
b[3:9, 1:4, 1:4] = True
overlap, sizes = (a & b).sum(), a.sum() + b.sum()
assert np.isclose(dice(a, b), 2 * overlap / sizes)
assert np.isclose(hd95(a, b, (3.0, 3.0, 3.0)), 3.0)
print(f"Dice 2·{overlap}/{sizes} = {dice(a, b):.3f}, HD95 {hd95(a, b, (3.0, 3.0, 3.0)):.1f} mm")
empty, speck = np.zeros((2, 5, 5, 5), bool)
speck[2, 2, 2] = True
print("both empty:", dice(empty, empty), hd95(empty, empty, (1, 1, 1)))
print("false alarm:", dice(speck, empty), hd95(speck, empty, (1, 1, 1)))
penalty = hd95(speck, empty, (1, 1, 1), one_empty=CHALLENGE_PENALTY)
assert penalty == round((240**2 + 240**2 + 155**2) ** 0.5, 2)
print(f"false alarm, with the penalty: {penalty} mm")

# %% [markdown]
# ## The field's table
#
# The shipped weights `"tiny"` on a few simulated cases that training has not seen. Each case is encoded once; each
# subset costs fusion and decoding. The table is the literature's mean, with the protocol under which it was made:

# %%
files = course.held_out_cohort(course.size(full=4, fast=1))
predictor = Predictor.from_checkpoint("tiny")
scores = evaluate(predictor, files)
write_report(scores, course.build_folder() / "evaluation", f"tiny on {len(files)} simulated cases")
print(scores.protocol)
Markdown(format_table(summary_table(scores)))

# %% [markdown]
# ## Three numbers instead of one
#
# The simulator also makes subjects without a tumour and tumours without ET, as there are such patients. The
# literature's mean therefore mixes how well a region that is there is outlined with whether anything is called where
# there is none. Apart they are three numbers:
#
# - the **Dice** over the cases that *have* the region;
# - the share of these in which no voxel of it is found: it is *missed*;
# - the share of the *others* in which some of it is called: *false alarms*.
#
# From here on these are read, over more subjects than a notebook has time for: the committed scores of the same weights
# ([results/simulator/tiny](../results/simulator/tiny/typical/table.md)).

# %%
from smml.evaluation import Scores, overlap_table

committed = Scores.read(course.results_folder() / "simulator" / "tiny" / "typical")
table, mixed = overlap_table(committed), summary_table(committed)
few, many = (each.frame["case"].nunique() for each in (scores, committed))
print(f"One false alarm more moves the literature's mean of {few} cases by {100 / few:.1f} points, of {many} cases by "
      f"{100 / many:.1f}. In the {many} committed cases:")  # fmt: skip
for name in (subset_name(MODALITIES), "FLAIR"):
    row = table.loc[name]
    print(f"ET from {name}: Dice {row['Dice ET']:.2f} where there is ET, missed in {row['missed ET']:.0%} of these, "
          f"called in {row['false alarms ET']:.0%} of the others; the literature's mean is "
          f"{mixed.loc[name, 'Dice ET']:.2f}")  # fmt: skip
display(Markdown(format_table(table[[f"{k} {r}" for k in ("Dice", "missed", "false alarms") for r in REGIONS]])))
figures.subset_figure(table, f"Mean Dice (%) over the simulated cases that have the region, of {many}")

# %% [markdown]
# ## Which sequence carries what, and what one more costs
#
# Physics says what a sequence *can* show: FLAIR and T2 the oedema, T1ce the enhancing tumour. The table says what
# *these weights* take from it, which may be less. Each region by its best single sequence, by the one that is missed
# most when it alone is taken away, and by the number of sequences given.
#
# One more sequence should never cost. A fall of more than two standard errors suggests that the network trusts it more
# than it deserves; the least of many means is a fall by chance alone, too.
#
# **ET from T1 alone.** Without contrast agent, T1 shows ET as it shows the rest of the core (notebook 1): a network can
# only guess from where ET usually lies. A Dice above 0 is then no sight. Somebody who is *shown* the true core and
# calls all of it ET has the Dice that stands last in its line.

# %%
from smml.evaluation import added_sequences, by_number_of_sequences, largest_loss

names, everything = list(DISPLAY_NAMES.values()), subset_name(MODALITIES)
for region in REGIONS:
    dices = table[f"Dice {region}"]
    without = {m: dices[subset_name(set(MODALITIES) - {m})] for m in MODALITIES}
    loss = {DISPLAY_NAMES[m]: 100 * (dices[everything] - left) for m, left in without.items()}
    alone, most = dices[names], max(loss, key=loss.get)
    print(f"{region}: alone best {alone.idxmax()} ({alone.max():.2f}), worst {alone.idxmin()} ({alone.min():.2f}); "
          f"missed most among four: {most}, {-loss[most]:+.1f} points without it")  # fmt: skip
wt = table.loc[["FLAIR", "T2"], "Dice WT"]
verdict = "as expected" if wt.idxmax() == "FLAIR" else "unexpected: the weights, or how FLAIR is simulated"
print(f"WT from FLAIR alone {wt['FLAIR']:.2f}, from T2 alone {wt['T2']:.2f}: {verdict}")
there = Scores(committed.frame[committed.frame["truth_ml"] > 0])
added = added_sequences(there)
changes = added[list(REGIONS)].stack()
print(f"one sequence more: {(changes < 0).sum()} of {len(changes)} pairs of subset and region lose, the mean change "
      f"is {100 * changes.mean():+.1f} points; the largest loss: {largest_loss(added)}")  # fmt: skip
volumes = there.frame[there.frame["subset"] == "T1"].pivot(index="case", columns="region", values="truth_ml")
guess = (2 * volumes["ET"] / (volumes["ET"] + volumes["TC"])).mean()
print("ET: " + "; ".join(f"from {name} alone Dice {table.loc[name, 'Dice ET']:.2f}, missed in "
      f"{table.loc[name, 'missed ET']:.0%}, called in {table.loc[name, 'false alarms ET']:.0%} of those without it"
      for name in ("T1", "T1ce")) + f"; all of the true core called ET: {guess:.2f}")  # fmt: skip
display(by_number_of_sequences(committed).filter(like="Dice").round(2))
figures.drop_figure(table, f"Best subset without a sequence ({many} simulated cases)")

# %% [markdown]
# ## Two rules that move a table
#
# **Lesion by lesion.** A score of the whole region hardly notices a small lesion that is missed beside a large one. The
# challenges therefore score each lesion, by rules that changed from year to year
# ([smml/evaluation/lesions.py](../smml/evaluation/lesions.py) compares 2023 and 2026). In 2026 the means are over
# matched lesions (a predicted and a true one that overlap), and missed and false ones are counted beside them.
#
# **Small ET.** Many published tables remove a predicted ET of less than 500 voxels, because most of these are false. On
# voxels of 1 mm that is half a millilitre. The authors' code prints ET twice, with and without it (`predict` in
# [their repository](https://github.com/banbooliang/SMML/tree/d40154138dc0e7cc0ab7e7413ee4e51332b3ca8f)). Here such an
# ET becomes NCR, so TC keeps its size, and the threshold is in mm³. Every score here is without it unless it says
# `post_processed`.

# %%
from smml.evaluation import lesion_table

some = files[: course.size(full=3, fast=1)]
lesions = evaluate(predictor, some, ("t1ce", "flair", "all"), distances=False, lesion_wise="2026", progress=False)
shown = lesion_table(lesions)[[f"{k} {r}" for k in ("Dice", "missed", "false lesions") for r in REGIONS]]
display(Markdown(format_table(shown)))
plain = Predictor.from_checkpoint("tiny", decision="argmax")
rules = {"the argmax": evaluate(plain, some, ("t1ce", "flair", "all"), distances=False, progress=False)}
rules |= {"the weights' own rule": lesions, f"their own rule, {many} committed cases": committed}
for name, result in rules.items():
    et = result.frame[result.frame["region"] == "ET"]
    changed = et[et["dice"] != et["dice_post"]]
    before, after = et[["dice", "dice_post"]].mean()
    print(f"small ET removed from labels of {name}: {len(changed)} of {len(et)} scores change, "
          f"mean Dice {before:.3f} -> {after:.3f}")  # fmt: skip
assert changed.empty  # in the last of them, the committed cases, as said below

# %% [markdown]
# Post-processing removes specks, and false alarms with them; of a lesion that is there it may remove what little was
# found. From the labels of these weights' own rule, the greatest expected Dice, it has nothing to remove in the
# committed cases: that rule leaves out the parts of ET of which little is expected, which is the same kind of
# gain under another name. A published ET with such a step and another without it must not stand side by side, and the
# threshold must not have been chosen on the cases that are reported (exercise 5.3).
#
# ## Where it fails
#
# Every score below 0.5 of a region that is there, by what went wrong. Volumes tell: predicted over true.


# %%
def cause(row):
    """What went wrong with a region that is there."""
    if row["dice"] == 0:
        return "nothing called" if row["predicted_ml"] == 0 else "called elsewhere only"
    ratio = row["predicted_ml"] / row["truth_ml"]
    return "too small" if ratio < 2 / 3 else "too large" if ratio > 3 / 2 else "right size, wrong place"


failed = there.frame[there.frame["dice"] < 0.5]
print(f"{len(failed)} of {len(there.frame)} scores of regions that are there lie below 0.5")
by_cause = pd.crosstab([failed["region"], failed["modalities"].rename("sequences")], failed.apply(cause, axis=1))
display(by_cause.rename_axis(columns=None))
whole = there.frame[(there.frame["subset"] == everything) & (there.frame["region"] == "WT")]
small = whole["truth_ml"] <= whole["truth_ml"].median()
halves = [whole.loc[chosen, "dice"].mean() for chosen in (small, ~small)]
print(f"WT from all four: mean Dice {halves[0]:.2f} in the smaller half of the tumours, up to "
      f"{whole.loc[small, 'truth_ml'].max():.0f} ml, and {halves[1]:.2f} in the larger half")  # fmt: skip

# %%
rows = scores.output().frame.query(f"truth_ml > 0 and subset == '{everything}'")
order = rows.groupby("case")["dice"].mean().sort_values()
cases = {file.id: read_case(file) for file in files}
worst = cases[order.index[0]] if len(order) else cases[files[0].id]
encoding = predictor.encode(worst)
results = {name: predictor.segment(encoding, name) for name in ("all", "flair", "t1ce", "t1")}
for row in rows[rows["case"] == worst.id].to_dict("records"):
    what = cause(row) if row["dice"] < 0.5 else "not a failure"
    print(f"{worst.id}, {row['region']} from all four: Dice {row['dice']:.2f}, {row['predicted_ml']:.1f} of "
          f"{row['truth_ml']:.1f} ml, {what}")  # fmt: skip
wrong, brain = results["all"].labels != worst.label, worst.volumes["flair"] != 0
for words, chosen in (("wrong", wrong), ("right, in the brain", brain & ~wrong)):
    print(f"the branches' disagreement where the label is {words}: {results['all'].uncertainty[chosen].mean():.3f}")
display(figures.segmentation_figure(worst, {name: result.labels for name, result in results.items()},
                                    title=f"{worst.id}, hardest of these {len(files)} simulated cases"))  # fmt: skip
seen = figures.to_canonical(worst.volumes["flair"], worst.affine)
z, pictures = figures.widest_slice(figures.to_canonical(worst.label, worst.affine)), {}
for name, values, colour in (
    ("wrong labels", wrong, "#CC79A7"),
    ("disagreement", results["all"].uncertainty, "#D55E00"),
):
    values = figures.to_canonical(values.astype(np.float32), worst.affine)
    most = max(float(values[:, :, z].max()), 1e-6)
    pictures[f"{name}, full colour at {most:.2f}"] = figures.heat_picture(seen, z, values / most, colour)
figures.panels(pictures, size=330)

# %% [markdown]
# ## What the size of the windows does
#
# A volume is segmented in overlapping windows, and **instance norm takes its mean and deviation from the window**: the
# same voxel becomes another number in another window. Training patches of 48 voxels lie mostly in the brain. A window
# that holds the whole head is mostly empty, so its deviation is smaller and its mean nearer to that of the background,
# and every layer behind it sees values that training never showed. Below, what the first norm of FLAIR's encoder
# subtracts and divides by, and how far one voxel in the tumour moves by it.
#
# The default is the size of the patches; larger windows have fewer seams and take less time, and `window=` asks for
# them. Does it matter for the scores? The same cases, weights and subsets with three sizes, put side by side by
# `compare`: differences to the first, paired by case, with an interval from drawing cases anew (notebook 7 derives it).
# An interval that holds 0 has not shown a difference, and an interval over so few cases is wide or lucky.

# %%
import torch

big = max(cases.values(), key=lambda case: int((case.label > 0).sum()))
flair = predictor.encode(big).prepared.image[0]  # as the network sees it, [X, Y, Z]
middle = np.argwhere(figures.to_canonical(big.label > 0, big.affine)).mean(axis=0) if big.label.any() else [30, 30, 30]
stage, rows, first = predictor.model.branches[0].encoders[0].stages[0], {}, None
for edge in (48, 64, 96):
    start = [min(max(0, int(m) - edge // 2), max(0, n - edge)) for m, n in zip(middle, flair.shape, strict=True)]
    window = flair[tuple(slice(s, s + edge) for s in start)]
    with torch.inference_mode():
        features = stage.enter(window[None, None])[0]  # [C, x, y, z]
    voxel = features[(slice(None), *(int(m) - s for m, s in zip(middle, start, strict=True)))]
    mean, deviation = features.flatten(1).mean(dim=1), features.flatten(1).std(dim=1)
    normed = (voxel - mean) / deviation
    first = normed if first is None else first  # in a window of the patch's size
    rows[f"{edge}³" if window.shape == (edge,) * 3 else f"{edge}³, cut to the head"] = {
        "empty voxels": f"{(window == 0).float().mean():.0%}", "mean, channel 0": round(float(mean[0]), 3),
        "deviation, channel 0": round(float(deviation[0]), 3),
        "tumour voxel after the norm, moved by": round(float((normed - first).abs().mean()), 3),
    }  # fmt: skip
pd.DataFrame.from_dict(rows, orient="index").rename_axis("window")

# %%
from smml.evaluation import compare, published
from smml.evaluation.published import PROTOCOLS

subsets = ("flair+t1ce", "all")
ours = scores.frame[scores.frame["subset"].isin(["FLAIR+T1ce", everything])]
by_window = {f"{predictor.window}, the patch": Scores(ours)}
for name, window in {"64, a third more": 64, "the whole head": 96}.items():
    own = Predictor.from_checkpoint("tiny", window=window)
    by_window[name] = evaluate(own, files, subsets, distances=False, progress=False)
comparison = compare(by_window)
for name, row in comparison.frame.iterrows():
    change = "" if name == comparison.frame.index[0] else "".join(
        f"; {r} {100 * row[f'Dice {r} change']:+.1f} ({100 * row[f'Dice {r} low']:+.1f} to "
        f"{100 * row[f'Dice {r} high']:+.1f})" for r in REGIONS)  # fmt: skip
    wt = by_window[name].frame.query("region == 'WT' and truth_ml > 0")[["predicted_ml", "truth_ml"]].sum()
    print(f"windows of {name}: Dice WT {100 * row['present Dice WT']:.1f} where it is, of "
          f"{wt['predicted_ml'] / max(wt['truth_ml'], 1e-6):.2f} times its true size{change}")  # fmt: skip
print(f"({comparison.protocol})")
try:
    published("brats2020", comparison.pairs)
except InputError as error:
    print("published numbers beside these?", error)
best = max(PROTOCOLS["brats2020"].figures.items(), key=lambda item: sum(item[1].means))
print(f"{PROTOCOLS['brats2020'].title}: highest published mean {best[0]}, {best[1].means} ({best[1].source})")

# %% [markdown]
# ## Published numbers beside yours
#
# The last lines above: published numbers stand in the package with the file in which each was read, and `smml compare
# --published brats2020` puts them beside results on as many cases of that data set, over all 15 subsets, and never
# beside others. How such protocols differ, and what to ask of a table: [Reading results](../docs/READING_RESULTS.md).
#
# ## Does the model know how sure it may be?
#
# Where a model says seven in ten, seven in ten of the voxels should belong to the region. The figure shows, for each
# number of sequences, the share that does. The mean distance from the diagonal is the expected calibration error (ECE).
# One number for each number of sequences is meant to mend it: a *temperature* by which logits are divided, fitted on
# subjects of their own. It changes no label. Fitted on few subjects it may suit these and no others, so the cell
# measures it on cases that the fit has not seen.
#
# The *doubt* that pictures and the viewer draw is another thing: how far the two branches disagree, from 0 to 1. It is
# not calibrated, and an error that both make alike leaves none. Low doubt is no proof ("Where it fails" measures it).

# %%
from smml.evaluation import fit_temperatures, format_calibration, measure_calibration

fitted = fit_temperatures(predictor, course.training_cohort(course.size(full=2, fast=1)), progress=False)
some = files[: course.size(full=2, fast=1)]
before, after = measure_calibration(predictor, some, fitted.temperatures, progress=False)
print(f"temperatures for one to four sequences: {', '.join(f'{t:.2f}' for t in fitted.temperatures)}")
plain, tempered = (100 * each.errors().mean().mean() for each in (before, after))
carries = "a gain" if tempered < plain else "no gain, it does not carry over"
print(f"ECE, mean over regions and numbers of sequences: {plain:.2f} %, tempered {tempered:.2f} %; {len(some)} cases "
      f"of which the fit knows nothing: {carries}")  # fmt: skip
start = 4 * before.voxels.shape[-1] // 5  # bins of probability that begin at four fifths
for number in (1, 4):
    sure = before.voxels[number - 1, 0, start:].sum()
    said, true = (each[number - 1, 0, start:].sum() / max(sure, 1) for each in (before.probability, before.inside))
    print(f"from {number}: of the voxels called WT with at least {start / before.voxels.shape[-1]:.0%}, it says "
          f"{said:.0%} on average, and {true:.0%} are")  # fmt: skip
display(Markdown(format_calibration(before, after, fitted.temperatures)))
figures.reliability_figure(before, f"{len(some)} simulated cases, as the model says it")

# %% [markdown]
# ## Key points
#
# - A score means nothing without its protocol: cases, averaging, empty regions, post-processing, windows. It is printed
#   with the table, and stored with it.
# - Overlap, misses and false alarms are three numbers. The literature's mean is one of them all; it is shown where
#   others' figures stand beside ours, and called so.
# - A mean over 15 subsets hides what matters to a clinic: which sequence it may lack.
# - A difference needs pairs, an interval, and as many cases as it claims to speak for.
# - `smml evaluate FOLDER --checkpoint tiny --lesion-wise 2026` makes these tables for any layout, `smml compare` puts
#   results side by side, `smml calibrate` fits the temperatures.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/05_evaluation.py) say why.
#
# ### Exercise 5.1: Where does the gain come from?
#
# Method B has a higher mean Dice than method A on the same cases. Is that because it outlines better, or because it
# calls less where there is nothing? Divide the difference of the two means, in points, into what the cases that have
# the region bring and what the others bring. **Predict first:** A outlines with 0.80 and has two false alarms in ten
# cases, eight of which have the region; B outlines with 0.70 and has none. Which has the higher mean?


# %%
# Exercise 5.1
def where_from(one, other):
    """(points from overlap, points from false alarms) of mean Dice other - one.

    Both are tables with a row per case, the same cases in the same order, and columns "dice" (0 to 1) and "truth_ml".
    """
    return ...


# %%
with course.check("5.1"):
    truth_ml = [30.0] * 8 + [0.0] * 2
    one = pd.DataFrame({"dice": [0.8] * 8 + [0.0] * 2, "truth_ml": truth_ml})
    other = pd.DataFrame({"dice": [0.7] * 8 + [1.0] * 2, "truth_ml": truth_ml})
    outlines, alarms = where_from(one, other)
    total = 100 * (other["dice"].mean() - one["dice"].mean())
    assert np.isclose(outlines + alarms, total), (
        f"the two parts add up to {total:.1f} points, yours to {outlines + alarms:.1f}"
    )
    assert np.isclose(outlines, -8), "the eight cases with the region lose 10 points each, and are 8 of 10 cases"
    missed = one.assign(dice=[0.0, *one["dice"][1:]])
    assert np.isclose(where_from(missed, one)[0], 8), (
        "a tumour that was missed has the region: its Dice is 0 all the same"
    )
    same = where_from(one, one)
    assert np.allclose(same, 0), "a method against itself gains nothing"
    print(
        f"B stands {total:+.1f} points above A: {outlines:+.1f} by its outlines, {alarms:+.1f} by two false alarms less"
    )

# %% [markdown]
# ### Exercise 5.2: HD95 from its definition
#
# The *surface* of a mask: its voxels that have a neighbour outside (a mask without its erosion). For each voxel on one
# surface take the distance in mm to the nearest voxel on the other; of these the 95th percentile; of both directions
# the larger. `ndimage.distance_transform_edt(x, sampling=spacing)` gives each voxel its distance to the nearest zero.


# %%
# Exercise 5.2
def my_hd95(prediction, truth, spacing):
    """HD95 in mm of two boolean arrays [X, Y, Z] that are not empty; spacing is the voxel's edges in mm."""
    return ...


# %%
with course.check("5.2"):
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
# ### Exercise 5.3: A threshold, chosen honestly
#
# Predicted ET below a threshold is removed. Which threshold? Choose the one with the highest mean Dice; of equally
# good ones the lowest. The check chooses on one random half of made-up subjects and looks at both halves, a hundred
# times. **Predict first:** on which half is the gain larger, and by how much?


# %%
# Exercise 5.3
def best_threshold(rows, thresholds):
    """The threshold in ml. Rows: a table with "dice" (0 to 1), "truth_ml" and "predicted_ml", a row per subject."""
    return ...


# %%
def after_removal(rows, threshold):
    """Dice of each row after a predicted ET below the threshold was removed."""
    return rows["dice"].where(rows["predicted_ml"] >= threshold, (rows["truth_ml"] == 0).astype(float))


with course.check("5.3"):
    random, n = np.random.default_rng(0), 40
    truth_ml = np.where(random.random(n) < 0.4, 0.0, random.exponential(2.0, n))
    called = np.where(truth_ml > 0, truth_ml * random.uniform(0.5, 1.5, n), random.exponential(0.8, n))
    made_up = pd.DataFrame({"truth_ml": truth_ml, "predicted_ml": called})
    made_up["dice"] = np.where(truth_ml > 0, random.uniform(0.3, 0.9, n), 0.0)
    thresholds, gains = np.arange(0, 4.1, 0.25), []
    for order in (random.permutation(n) for _ in range(100)):
        chosen, reported = made_up.iloc[order[: n // 2]], made_up.iloc[order[n // 2 :]]
        threshold, means = best_threshold(chosen, thresholds), [after_removal(chosen, t).mean() for t in thresholds]
        assert threshold in thresholds, f"{threshold} is none of the thresholds"
        assert means[list(thresholds).index(threshold)] >= max(means), "another threshold has a higher mean there"
        assert threshold == thresholds[int(np.argmax(means))], "of equally good ones the lowest: it removes least"
        gains.append([100 * (after_removal(half, threshold) - half["dice"]).mean() for half in (chosen, reported)])
    own, others = np.mean(gains, axis=0)
    print(f"over 100 random halves: {own:+.1f} points on the half that chose the threshold, {others:+.1f} on the other")

# %% [markdown]
# ## Read next
#
# **Next:** [6. Refinement](06_refinement.ipynb), judged by these rules. How to read the ablation study, and others'
# tables: [Reading results](../docs/READING_RESULTS.md).
