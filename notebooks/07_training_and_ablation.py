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
# # 7. Training, and what each part of the method is worth
#
# **Question.** How is the method trained, from a laptop to a cluster, and which of its parts earn their keep?
#
# After this notebook you can
# - write down what a step minimises and when each term switches on;
# - start, watch, interrupt and resume a training, and train with several processes;
# - design an ablation whose arms differ in one thing, and say what its intervals can tell and what not;
# - plan a training on your own BraTS folder: split, steps, hours, memory, commands.
#
# A minute or two on two CPU cores. It runs by itself; the terms of the sum are derived in notebooks 3, 4
# and 6. From [notebook 5](05_evaluation.ipynb) it needs how a mean over the subsets is made. All images are
# **simulated**.

# %%
import json
from functools import partial

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from smml import course, figures
from smml.evaluation.bootstrap import bootstrap_mean
from smml.losses import feature_consistency, pixel_consistency, refinement_loss, segmentation_loss
from smml.models import SMML
from smml.models.checkpoint import load_checkpoint
from smml.study import EVERY_ARM, arm_label, compare_arms, read_study
from smml.study.witnesses import differences_by_seed
from smml.training import TrainingConfig, train
from smml.training.config import consistency_ramp, learning_rate
from smml.training.objective import objective
from smml_kernels.reference import dice_ce_loss

figures.use_theme()

# %% [markdown]
# ## What a step minimises, and when
#
# One sum, one backward through both branches, one step of Adam:
# $$L = L_1 + L_2 + S_1 + S_2 + l_{fc} L_{fc}
#   + r(t)\,\bigl(l_{pc}(L_{1\to2} + L_{2\to1}) + l_{ref}(\mathrm{KL}_1 + \mathrm{KL}_2)\bigr)$$
# with weights $l_{fc}$, $l_{pc}$ and $l_{ref}$ that are 1 unless you say otherwise. At first neither branch's class
# probabilities are worth copying, so what copies them waits: $r(t)$ is 0 for the first tenth of the training and then
# rises to 1 over the next. $L_{fc}$ copies no answers and counts from the start. The refinement, $S_b$ and
# $\mathrm{KL}_b$, begins half-way. The rate falls as $\eta(t) = \eta_0 (1 - t/T)^{0.9}$.

# %%
plan = TrainingConfig(steps=1000, refinement="tiny")
t = np.arange(plan.steps)
r = np.clip((t / plan.steps - 0.1) / 0.1, 0, 1)
eta = plan.learning_rate * (1 - t / plan.steps) ** 0.9
assert np.allclose(r, [consistency_ramp(plan, step) for step in t])
assert np.allclose(eta, [learning_rate(plan, step) for step in t])
print(f"l_fc = {plan.feature_weight:g}, l_pc = {plan.pixel_weight:g}, l_ref = {plan.refinement_weight:g}; "
      f"class weights are at least {plan.min_class_weight:g}, so that a patch of one class still counts, "
      f"and {plan.gate_min_class_weight:g} in L_pc's gates, {plan.refinement_min_class_weight:g} in S_b")  # fmt: skip
for step in (0, 99, 150, 200, 500, 900):
    begun = "with" if step >= plan.refinement_step else "without"
    print(f"step {step:3d} of {plan.steps}: r = {r[step]:.2f}, rate = {eta[step]:.1e}, {begun} refinement")

# %% [markdown]
# $L_b$ sums every head of student $b$, each with cross-entropy and Dice: the fused output, each modality alone through
# the shared decoder, and deep supervision at four levels (prm). With refinement, $S_b$ teaches the refinement network
# and $\mathrm{KL}_b$ carries what it knows back to the student:
# $$L_b = L_{fuse} + \sum_m L_{sep,m} + \sum_l L_{prm,l},\qquad
#   S_b = \mathrm{CE}(p_{ref}) + \mathrm{Dice}(p_{ref}),\qquad
#   \mathrm{KL}_b = \mathrm{KL}\bigl(\mathrm{sg}[p_{ref}]\,\|\,p_b\bigr).$$
# The whole sum by hand, on noise, half-way up the ramp. It is large because it has many heads, not because any of them
# does badly: the log's `fuse` columns alone say how good the segmentation is.

# %%
torch.manual_seed(0)
step, ones = 150, torch.ones(1, 4, dtype=torch.bool)
masks = torch.tensor([[[1, 0, 1, 0]], [[0, 1, 1, 1]]]).bool()  # [2, B, M]
x, y = torch.randn(1, 4, 32, 32, 32), torch.randint(0, 4, (1, 32, 32, 32))
with torch.no_grad():
    output = SMML("tiny", refine=True)(x, masks, ones, torch.rand(2, 1, 4, 3, 32, 32, 32))
one, two = output.branches
head = partial(dice_ce_loss, target=y, min_class_weight=plan.min_class_weight)
even = {"min_class_weight": plan.refinement_min_class_weight}
total, heads = 0, []
for student, refined in zip(output.branches, output.refined, strict=True):
    heads += [head(student.logits), *map(head, student.separate)]
    heads += [head(p, from_logits=False) for p in student.deep]
    theirs = segmentation_loss(student, y, min_class_weight=plan.min_class_weight)
    assert torch.allclose(sum(heads[-9:]), theirs.total)
    log_ref, log_p = refined.log_softmax(dim=1), student.logits.log_softmax(dim=1)
    kl = (log_ref.exp() * (log_ref - log_p)).sum(dim=1).mean()
    supervised, terms = dice_ce_loss(refined, y, **even), refinement_loss(refined, student.logits, y, **even)
    assert torch.allclose(supervised + kl, terms.segmentation + terms.divergence)
    total += sum(heads[-9:]) + supervised + r[step] * kl
teaching = pixel_consistency(one.logits, two.logits, y, min_class_weight=plan.gate_min_class_weight)
total += r[step] * sum(teaching) + feature_consistency(one.bottleneck, two.bottleneck, one.logits, two.logits, y).total
assert torch.allclose(total, objective(output, y, plan, step).total)
print(f"{len(heads)} heads of the students, {sum(heads) / len(heads):.2f} each on average, in a total of {total:.1f}")

# %% [markdown]
# ## A short training, live
#
# Starting from the shipped `tiny` students, with a moving average of the weights (EMA) and two validations on cases
# that are held out; too short to teach them much. Read the curves like this: *fused* heads are what you will use; what
# the branches exchange starts at $r(t) > 0$; a gradient norm that climbs is the first sign of trouble, and each
# network's gradient is clipped by its own norm. The star marks `best.pt`. Everything that made the run is kept beside
# it.

# %%
files = course.training_cohort(course.size(full=8, fast=4))
steps = course.size(full=30, fast=2)
config = TrainingConfig(steps=steps, learning_rate=3e-4, ema=0.9, validate_every=course.size(full=15, fast=2))
run = course.build_folder() / f"run-07-{steps}-steps"
train(files, run, config, weights="tiny", resume=True)
facts, log = pd.read_json(run / "config.json", typ="series"), pd.read_csv(run / "log.csv")
print(facts[["preset", "steps", "gate", "pixel_weight", "feature_weight", "ema", "seed", "versions", "commit"]])
print(f"{log['seconds'].median():.2f} s a step (median)")
figures.curves_figure(run, smooth=course.size(full=5, fast=1))

# %% [markdown]
# ## Interrupted and resumed, to the bit
#
# A checkpoint holds weights, optimiser, averages and random states; sample $i$ is a function of the seed and $i$. So a
# run that was killed goes on as if nothing had happened. Interrupted half-way and resumed, against the same at once:

# %%
half = course.size(full=2, fast=1)
whole, parts = (course.build_folder() / f"run-07-{name}-{2 * half}-steps" for name in ("whole", "parts"))
short = TrainingConfig(steps=2 * half, checkpoint_every=half)


class Stop(Exception):
    """Stands for the power cut."""


def power_cut(row):
    if row["step"] == half:  # half are done and saved; what follows is lost
        raise Stop


train(files[:2], whole, short, resume=True, progress=False)
try:
    train(files[:2], parts, short, resume=True, progress=False, on_step=power_cut)
except Stop:
    print(f"the power went in step {half + 1} of {short.steps}")
train(files[:2], parts, short, resume=True, progress=False)
weights = [load_checkpoint(folder).weights for folder in (whole, parts)]
print("largest difference of any weight:", max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0]))
assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])

# %% [markdown]
# ## More than one process
#
# `torchrun` starts one process a GPU; each takes its share of the batch, and gradients are added up. For a mean over
# samples that is all. **It is not all here.** Soft Dice divides sums over the whole batch $\Omega$,
# $$\mathrm{Dice} = 1 - \frac1K\sum_k \frac{2\sum_\Omega p_k y_k}{\sum_\Omega p_k + \sum_\Omega y_k + 10^{-7}},\qquad
#   \mathrm{CE} = -\frac{1}{|\Omega|}\sum_\Omega w_y \log\max(p_y, 0.005),$$
# $L_{pc}$ divides gated sums, $L_{rel}$ relates every token to every other: the mean of the processes' losses is
# another number. So the sums themselves are added up over the processes, and $L_{rel}$ needs nothing but its
# $C \times C$ moments; each process then has the loss of the whole batch (a test compares two processes with one, term
# by term). Two processes with one sample each, where only the second has a tumour:


# %%
def soft_dice(p, y):
    """1 - mean over the classes of 2 I / (P + Y), sums over the batch; p and y are [B, K, X, Y, Z]."""
    over = (0, 2, 3, 4)
    return 1 - (2 * (p * y).sum(over) / (p.sum(over) + y.sum(over) + 1e-7)).mean()


torch.manual_seed(0)
logits = torch.randn(2, 4, 4, 4, 4)
target = torch.zeros(2, 4, 4, 4, dtype=torch.int64)
target[1, :2] = 3
p, y = logits.softmax(dim=1), torch.nn.functional.one_hot(target, 4).movedim(-1, 1).float()
w = 1 - y.mean(dim=(2, 3, 4), keepdim=True)  # class weights of each sample
ce = -(w * y * p.clamp_min(0.005).log()).sum(dim=1).mean()
assert torch.allclose(ce + soft_dice(p, y), dice_ce_loss(logits, target))
apart = (soft_dice(p[:1], y[:1]) + soft_dice(p[1:], y[1:])) / 2
print(f"Dice term of the whole batch {soft_dice(p, y):.4f}, mean of the two processes' terms {apart:.4f}")

# %% [markdown]
# ## An ablation: one thing at a time, in pairs
#
# The arms are (a) one student; (b) two, averaged, that exchange nothing; (c) b and pixel consistency; (d) b and feature
# consistency; (e) both; (f) e and refinement. To credit a gain to the right part, every part has a pair of arms that
# differ in it alone: (b) and (a) in averaging,
# (c) and (b), (e) and (d) in pixel consistency, (d) and (b), (e) and (c) in feature consistency, (f) and (e) in
# refinement. Arm (b) is easily forgotten: averaging two networks can help *by itself*, and without (b) that gain would
# be credited to teaching. Arm (a) costs nothing extra: the students of (b) exchange nothing, so branch 1 of (b) *is* a
# student trained alone, to the bit.
#
# Cases differ far more than methods do, so differences are taken case by case. Below: the same cases by two methods,
# one 2 points better, with the interval of the mean by drawing cases anew (bootstrap), for each method and for the
# difference.
#
# Seeds are drawn anew too. With **three seeds** that says little: one draw in 27 takes the lowest seed three times,
# which is more than 2.5 %, so without any spread over cases the interval reaches from the lowest to the highest seed.
# It leaves 0 out as soon as all three signs agree.

# %%
random = np.random.default_rng(0)
one = random.uniform(0.3, 0.9, 16)
other = one + 0.02 + random.normal(0, 0.02, 16)
draws = random.integers(16, size=(10_000, 16))
by_hand = np.quantile((other - one)[draws].mean(axis=1), [0.025, 0.975])
paired = bootstrap_mean(other - one)
assert np.allclose(by_hand, [paired.low, paired.high], atol=2e-3)
for name, values in (("one method", one), ("the other", other), ("difference, paired", other - one)):
    interval = bootstrap_mean(values)
    print(
        f"{name:19s} {100 * interval.mean:5.1f}, 95 % interval {100 * interval.low:5.1f} to {100 * interval.high:5.1f}"
    )
seeds = np.array([[0.4], [1.3], [2.1]])  # points gained with three seeds, no spread over cases
interval = bootstrap_mean(seeds)
assert np.allclose([interval.low, interval.high], [seeds.min(), seeds.max()])
signs = np.sign(random.normal(0, 1, (100_000, 3))).sum(axis=1)  # three seeds of a method that gains nothing
print(f"three seeds that gain nothing agree in their sign in {np.mean(abs(signs) == 3):.0%} of the cases, and their "
      f"'95 %' interval leaves 0 out as often")  # fmt: skip

# %% [markdown]
# ## The committed study
#
# `smml study FOLDER --preset cpu2` trains (a), (b) and (d), and (c), (e) and (f) in the readings that are the defaults
# now: *even gates*, every voxel counts alike in the gates of $L_{pc}$; *even refinement*, also in the cross-entropy of
# $S_b$. A second student costs as much as the first, so two rivals show what the same money buys otherwise: (g) one
# student with the parameters of two, (h) one student, twice the steps, the moving average of its weights. Arms, seeds
# and subjects were fixed before the first run ([report](../results/study/cpu2/study.md)). The *probe* came after it,
# with other subjects and other seeds, and asks one thing more: what is left of (e) if the cross-entropy is not weighted
# by class either? ([report](../results/study/probe2/study.md)). Under the labels below the figure and the tables know
# the arms.

# %%
folder = course.results_folder() / "study"
study, probe = read_study(folder / "cpu2"), read_study(folder / "probe2")
for words, each in (("cpu2", study), ("probe2, other subjects and seeds", probe)):
    sizes, options = each.settings, each.settings["training"]
    print(f"{words}: {sizes['training_cases']} subjects to train on, {each.scores['case'].nunique()} held out, "
          f"{sizes['spacing']:g} mm; {options['steps']} steps of {options['batch_size']} patches of "
          f"{options['patch']}³; {each.scores['seed'].nunique()} seeds")  # fmt: skip
et = study.scores[study.scores["region"] == "ET"].groupby("case")["truth_ml"].max()
print(f"cpu2: {(et == 0).sum()} of {len(et)} held-out subjects without ET; calling it in one of them with every subset "
      f"costs {100 / len(et):.1f} points of its mean Dice")  # fmt: skip
rows = [
    {"label": arm_label(name), "what it is": EVERY_ARM[name].title.replace("`", "")}
    | {m: f"{100 * study.values(name, m).to_numpy().mean():.1f}" for m in ("WT", "TC", "ET", "mean")}
    | {"WT volume": f"{study.volume_ratio(name, 'WT'):.2f}"}
    for name in study.arms
]
display(pd.DataFrame(rows).set_index("label"))
changes = compare_arms(study)
figures.study_figure(study, "Dice, arm minus arm: simulated cases, 95 % intervals", changes=changes)

# %% [markdown]
# A triangle at the edge of the figure is a mean far outside, with its value: drawn to scale it would squeeze all
# others. A bar that runs off the edge goes on outside. The same as a table: **bold** is a difference that is *shown*,
# because its interval leaves 0 out. Where all seeds agree and the interval holds 0, the cases disagree, and nothing is
# shown. The last column repeats a comparison on the probe's subjects, where it was made there too.


# %%
def bold_if_shown(row, m):
    text = f"{100 * row[m]:+.1f} ({100 * row[f'{m} low']:+.1f} to {100 * row[f'{m} high']:+.1f})"
    return text if row[f"{m} low"] < 0 < row[f"{m} high"] else f"**{text}**"


again, of = (each.set_index(["arm", "parent"]) for each in (compare_arms(probe), changes))
lines = ["| arm | against | WT | TC | ET | mean | by seed | mean, probe |", "|---|---|---:|---:|---:|---:|:-:|---:|"]
for _, row in changes.iterrows():
    pair = (row["arm"], row["parent"])
    cells = [*map(arm_label, pair), *(bold_if_shown(row, m) for m in ("WT", "TC", "ET", "mean"))]
    repeat = bold_if_shown(again.loc[pair], "mean") if pair in again.index else "–"
    lines.append("| " + " | ".join([*cells, row["signs mean"].replace("-", "−"), repeat]) + " |")
display(Markdown("\n".join(lines)))
holds = (changes["mean low"] < 0) & (changes["mean high"] > 0)
print(f"{len(changes)} comparisons: {(~holds).sum()} shown in the mean")
last, rivals = of.loc[("refined-flat", "pair")], [of.loc[("refined-flat", rival)] for rival in ("wide", "average")]
assert min(row["mean low"] for row in (last, *rivals)) > 0  # as said below

# %% [markdown]
# **Does the method beat an ensemble?** (b) is one: two students that exchange nothing, averaged. Over all cases yes:
# (f) stands above (b), and above both rivals, and the intervals leave 0 out. Before you believe that it outlines
# tumours better, read on.
#
# ### Find more, or call less
#
# A case without a region scores 1 if none of it is called and 0 if any is. So a mean over all cases has two ways up: to
# outline better what is there, or to call less of everything. The same differences over all cases and over those that
# have the region, with the share of the segmentations that call the core where there is none, and the mean over five
# patients, who are too few for an interval:

# %%
told_of = [("both-even", "pair"), ("refined-flat", "both-even")]
told_of += [("refined-flat", parent) for parent in ("pair", "wide", "average")]
there = compare_arms(study, present=True).set_index(["arm", "parent"])
heads = ["arm", "against", "all cases, mean", *(f"where it is, {m}" for m in ("WT", "TC", "ET", "mean"))]
lines = ["| " + " | ".join([*heads, "false alarms of TC, %", "patients"]) + " |", "|---|---|" + "---:|" * 7]
for arm, parent in told_of:
    without = (rows[(rows["region"] == "TC") & (rows["truth_ml"] == 0)] for rows in map(study.rows, (parent, arm)))
    alarms = " -> ".join(f"{100 * (rows['predicted_ml'] > 0).mean():.0f}" for rows in without)
    cells = [bold_if_shown(of.loc[(arm, parent)], "mean")]
    cells += [bold_if_shown(there.loc[(arm, parent)], m) for m in ("WT", "TC", "ET", "mean")]
    patients = f"{100 * differences_by_seed(study.patients, arm, parent).mean():+.1f}"
    lines.append(f"| {arm_label(arm)} | {arm_label(parent)} | {' | '.join(cells)} | {alarms} | {patients} |")
display(Markdown("\n".join(lines)))
pull = there.loc[("both-even", "pair")]
assert pull["mean"] < 0 < of.loc[("both-even", "pair"), "mean low"]  # as said below
assert there.loc[("refined-flat", "both-even"), "mean low"] > 0 > there.loc[("refined-flat", "pair"), "mean low"]

# %% [markdown]
# **The gain of (e) over (b) is that it calls less.** Where the region is, (e) stands below (b). The cross-entropy is
# weighted by class, so the students of (b) call tumour in nearly every healthy head; what (e)'s students exchange is
# not, and pulls back from that. The refinement gains where the region is, too; beside (b) nothing of both together is
# left there. And the patients disagree with the simulated subjects: on them (e) gains.
#
# **So take the weights away.** The probe trains (b) and (e) once more with a cross-entropy that counts every voxel
# alike:

# %%
where = compare_arms(probe, present=True).set_index(["arm", "parent"])
pairs = (("both-even", "pair"), ("pair-unweighted", "pair"), ("both-unweighted", "pair-unweighted"))
for arm, parent in pairs:
    gains = [bold_if_shown(table.loc[(arm, parent)], "mean").strip("*") for table in (again, where)]
    print(f"{arm_label(arm)} less {arm_label(parent)}: all cases {gains[0]}, where the region is {gains[1]}; "
          f"WT volume {probe.volume_ratio(parent, 'WT'):.2f} -> {probe.volume_ratio(arm, 'WT'):.2f}")  # fmt: skip
assert again.loc[pairs[1], "mean low"] > 0 > where.loc[pairs[2], "mean high"]  # as said below

# %% [markdown]
# Two students who exchange nothing have most of the gain, for nothing, once their cross-entropy is not weighted by
# class (the second line). The exchange then makes them call less still, and miss more. **A part of a method is worth
# what it adds to a good rest**: beside a loss that calls too much, whatever calls less looks like a gain.
#
# **A loss can be right to the letter and wrong by a factor.** In the first, smaller
# [study](../results/study/cpu/study.md) (c), (e) and (f) had gates weighted by class, our first reading of what the
# paper leaves open, and lost; notebook 4 shows the gradients. Counting every voxel alike came from a search on other
# subjects ([findings](../results/study/cpu/findings.md)). **What a gate is for:** `entropy` asks only who is surer. A
# student that does not see the tumour can be sure that there is none, and teaches that:

# %%
first = read_study(folder / "cpu")
earlier = compare_arms(first).set_index(["arm", "parent"])
for arm, parent in (("pixel", "pair"), ("refined", "pair"), ("both-even", "pair"), ("gate-entropy", "both-even")):
    print(f"{arm_label(arm)} less {arm_label(parent)}: {bold_if_shown(earlier.loc[(arm, parent)], 'mean').strip('*')}, "
          f"volume of WT {first.volume_ratio(parent, 'WT'):.2f} -> {first.volume_ratio(arm, 'WT'):.2f}")  # fmt: skip
assert max(earlier.loc[(arm, "pair"), "mean high"] for arm in ("pixel", "refined")) < 0  # as said above

# %% [markdown]
# How to read such a study, line by line, and others' tables: [Reading results](../docs/READING_RESULTS.md).
#
# What can calling less do by itself? Take trained networks of the study, and multiply the probability of
# background by a factor before the likeliest class is taken. No weight changes, nothing is learnt
# ([results](../results/study/operating-point/operating-point.md)).

# %%
points = pd.read_csv(folder / "operating-point" / "operating-point.csv")
means = points.groupby(["arm", "factor"])[["dice", "dice_present", "false_alarms"]].mean().mul(100).round(1)
print(f"(b), training seeds {sorted(points['seed'].unique().tolist())}, means over WT, TC and ET")
display(means.loc["pair"].set_axis(["Dice, all cases, %", "Dice where the region is, %", "false alarms, %"], axis=1))
lazy, as_it_is = means.loc["pair", 64], means.loc["pair", 1]
assert lazy["dice"] > as_it_is["dice"]
assert lazy["dice_present"] < as_it_is["dice_present"]
matched = json.loads((folder / "operating-point" / "operating-point.json").read_text("utf-8"))["matched"]
for arm, regions in matched.items():
    for region, row in regions.items():
        print(f"{region}, Dice where both raise {row['false alarms']:.0f} % false alarms: {arm_label('pair')} "
              f"{row['pair']:.1f}, {arm_label(arm)} {row[arm]:.1f}")  # fmt: skip

# %% [markdown]
# **A mean over all cases can be bought.** (b) with a large factor loses tumours and wins in the mean. Two arms are
# compared fairly where they raise as many false alarms: what then remains is no effect of calling less. With one seed
# and no interval it may still be chance, and the factors were found on these subjects.
#
# ## A training on your own BraTS folder, planned
#
# **Split** by patient, not by scan (exercise 7.3), into three folders of links: one to train, one to choose with
# (checkpoint, temperatures, thresholds), one to report. For numbers beside published ones take the published split.
# **Steps**: the authors run 1000 epochs with batches of two (`job_2020` and `train` in
# [their repository](https://github.com/banbooliang/SMML/tree/d40154138dc0e7cc0ab7e7413ee4e51332b3ca8f)), over the 219
# subjects of the usual split of BraTS 2020 ([published.py](../smml/evaluation/published.py)). **Hours** below come from
# [results/speed](../results/speed/speed.md) for the two CPU cores of that page, and from a
# [card](../smml/weights/small.md) for one GPU. What nobody here has measured says so: twenty steps on your machine tell
# you (`seconds` in the run's `log.csv`). **Memory** is counted, not measured, and a lower bound: what the forward pass
# keeps for the backward pass of one step in float32, plus 20 bytes a parameter for weights, gradient and Adam.
# `--recompute` and `--accumulate` lower it.
#
# ```
# smml info --check data/train
# smml train data/train runs/timing --preset paper --patch 128 --steps 20 --precision bf16 --device cuda --workers 8
# smml train data/train runs/brats --preset paper --patch 128 --steps 110000 --learning-rate 0.0002 --precision bf16 \
#     --device cuda --workers 8 --ema 0.999 --validation data/choose --validate-every 5000 --resume
# smml calibrate data/choose --checkpoint runs/brats --output runs/brats.safetensors
# smml evaluate data/report --checkpoint runs/brats.safetensors --lesion-wise 2026 --output evaluation
# smml compare ours=evaluation --published brats2020
# ```
#
# Several GPUs: put `torchrun --standalone --nproc-per-node 4 -m` before `smml train`, and add `--batch-size 8`: a batch
# is that of all processes together. Several machines and Slurm: the commands stand in the [README](../README.md).


# %%
def kept_bytes(preset: str, edge: int = 32) -> tuple[float, int]:
    """Bytes a voxel that a forward pass of one sample keeps for the backward pass; parameters of both students."""
    model, kept = SMML(preset), {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        model(torch.randn(1, 4, *[edge] * 3), torch.ones(2, 1, 4, dtype=torch.bool))
    parameters = sum(p.numel() for p in model.parameters())  # they are kept too, and counted apart
    return (sum(t.untyped_storage().nbytes() for t in kept.values()) - 4 * parameters) / edge**3, parameters


steps, slow = -(-219 // 2) * 1000, "2 CPU cores, bf16"
speed = json.loads((course.results_folder() / "speed" / "speed.json").read_text())["steps"]
seconds = {(slow, row["preset"], row["edge"], 2): row["seconds"]["now bf16"] for row in speed}
seconds |= {("one H200, shared by four trainings, bf16", "small", 64, 4): 5 * 60 / 425}
seconds |= {(machine, "paper", 128, 2): None for machine in (slow, "one GPU", "four GPUs")}
need, rows = {preset: kept_bytes(preset) for preset in ("tiny", "small", "paper")[: course.size(full=3, fast=1)]}, []
for (machine, preset, edge, batch), each in seconds.items():
    voxel, parameters = need.get(preset, (np.nan, 0))
    hours = ["not measured"] * 2 if each is None else [f"{each * n / 3600:.1f}" for n in (2000, steps)]
    memory = (batch * edge**3 * voxel + 20 * parameters) / 2**30
    shown = "–" if each is None else f"{each:.2f}"
    rows.append((machine, preset, f"{batch} x {edge}³", shown, *hours, f"{memory:.1f}"))
heads = ["machine", "preset", "batch", "s a step", "hours, 2000 steps", f"hours, {steps:,} steps", "GiB, counted"]
pd.DataFrame(rows, columns=heads).set_index("machine")

# %% [markdown]
# ## Key points
#
# - One backward for both branches; the exchange starts when there is something to exchange.
# - A run is a function of its options: it resumes to the bit, and its folder says how it was made.
# - Losses that divide sums or relate samples are not means over processes; their sums are what is exchanged.
# - An ablation needs the arm that isolates averaging, several seeds, and paired intervals. Three seeds whose signs
#   agree are no proof, and arms that came after the results need other subjects.
# - A mean over all cases rises when a method calls less. Look at the cases that have the region, and at false alarms.
# - Measure twenty steps before you plan a hundred thousand.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/07_training_and_ablation.py) say
# why.
#
# ### Exercise 7.1: A paper with one seed
#
# Suppose the study had been run with one seed only, as most are. Give for each seed the difference of two arms in mean
# Dice with the interval over *cases* alone. `study.values(arm, "mean")` is a table with a row for each seed and a
# column for each case. **Predict first:** of the comparisons that one seed would call shown, how many do three
# seeds confirm?


# %%
# Exercise 7.1
def one_seed(study, arm, parent):
    """{seed: Interval} of arm - parent in mean Dice (0 to 1), each seed by itself."""
    return ...


# %%
with course.check("7.1"):
    found = read_study(course.results_folder() / "study" / "cpu")
    mine, seeds = one_seed(found, "both-even", "pair"), found.seeds("pair")
    assert list(mine) == seeds, f"the study has the seeds {seeds}, yours are {list(mine)}"
    gains = found.values("both-even", "mean").mean(axis=1) - found.values("pair", "mean").mean(axis=1)
    assert np.allclose([mine[seed].mean for seed in seeds], gains), (
        "the mean over the cases of arm - parent, of that seed"
    )
    widths = {mine[seed].high - mine[seed].low for seed in seeds}
    assert len(widths) == len(seeds), "each seed has its own differences, and so its own interval"
    all_seeds, lone, confirmed, opposite = compare_arms(found), 0, 0, 0
    for _, row in all_seeds.iterrows():
        for each in one_seed(found, row["arm"], row["parent"]).values():
            if not each.low < 0 < each.high:
                lone += 1
                confirmed += not row["mean low"] < 0 < row["mean high"]
                opposite += each.mean * row["mean"] < 0
    print(f"one seed calls {lone} of {len(seeds) * len(all_seeds)} comparisons shown; three seeds confirm {confirmed}, "
          f"and {opposite} have the other sign in the mean of all")  # fmt: skip

# %% [markdown]
# ### Exercise 7.2: Does it beat the average of two?
#
# Interpret: one word an arm. Did what its students exchange, with all that stands beside it, bring a gain or a loss in
# Dice, or is nothing shown? Choose the opponent that differs in nothing else, and let the interval decide. **Predict
# first:** which word have (f), as it was fixed before the first run, and (f) with even gates and even refinement?


# %%
# Exercise 7.2
def worth(changes, arm, measure):
    """ "gain", "loss" or "not shown"; ``changes`` is the table of compare_arms: a row for each arm and parent.

    For a measure m ("WT", "TC", "ET", "mean") it has the columns m, "m low" and "m high", as shares of 1.
    """
    return ...


# %%
with course.check("7.2"):
    changes = compare_arms(read_study(course.results_folder() / "study" / "cpu"))
    table, arms = changes.set_index(["arm", "parent"]), ("both", "refined", "both-even", "refined-flat")

    def verdict(arm, parent, m):
        mean, low, high = table.loc[(arm, parent), [m, f"{m} low", f"{m} high"]]
        return "not shown" if low < 0 < high else "gain" if mean > 0 else "loss"

    for arm in arms:
        for m in ("WT", "TC", "ET", "mean"):
            mine, fair = worth(changes, arm, m), verdict(arm, "pair", m)
            assert mine in ("gain", "loss", "not shown"), f"the answer is one of three words, not {mine!r}"
            assert mine == fair or mine != verdict(arm, "single", m), (
                f"{m} of {arm_label(arm)}: two networks averaged may be better than one without any teaching; take (b)"
            )
            assert mine == fair, f"{m} of {arm_label(arm)} is {fair!r}: does the interval leave 0 out?"
    print("; ".join(f"{arm_label(arm)}: {worth(changes, arm, 'mean')}" for arm in arms))

# %% [markdown]
# ### Exercise 7.3: Split by patient
#
# In BraTS 2023 a name such as BraTS-GLI-00005-001 is the second scan of patient 5. If one scan is trained on and
# another reported, the score is that of a patient whom the network knows. Divide scans into parts of given shares of
# the *patients*, so that no patient is in two parts, and the same seed always gives the same parts, however the names
# are ordered.


# %%
# Exercise 7.3
def split(names, shares, seed):
    """Lists of names, one for each share (they add up to 1), by patient."""
    return ...


# %%
with course.check("7.3"):
    scans = [f"BraTS-GLI-{patient:05d}-{scan:03d}" for patient in range(50) for scan in range(1 + patient % 3)]
    parts = split(scans, (0.7, 0.1, 0.2), seed=1)
    assert sorted(name for part in parts for name in part) == scans, "every scan is in exactly one part"
    patients = [{name[:-4] for name in part} for part in parts]
    shared = set.intersection(*patients[:2]) | set.intersection(*patients[1:]) | (patients[0] & patients[2])
    assert not shared, f"{len(shared)} patients are in two parts, {sorted(shared)[0]} for one"
    counts = [len(part) for part in patients]
    assert counts == [35, 5, 10], f"of 50 patients the parts hold {counts}, expected [35, 5, 10]"
    again = split(scans[::-1], (0.7, 0.1, 0.2), seed=1)
    assert [set(part) for part in again] == [set(part) for part in parts], "another order of the names, another split"
    assert split(scans, (0.7, 0.1, 0.2), seed=2)[2] != parts[2], "another seed should give another split"
    print(f"{len(scans)} scans of 50 patients: {', '.join(f'{len(part)} scans' for part in parts)}")

# %% [markdown]
# ## Read next
#
# **Next:** [8. Your own case](08_your_own_case.ipynb). In the code: `smml/training/step.py`, `smml/ranks.py`,
# `smml/study/presets.py`.
