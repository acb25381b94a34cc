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
# - start, watch, interrupt and resume a training, and say what its curves mean;
# - write down what a step minimises and when each term switches on;
# - design an ablation whose arms differ in one thing, and read its intervals;
# - train with several processes and know which losses are *not* means of the processes' losses.
#
# Two minutes on two CPU cores, 2 GB of memory. Runs by itself; the terms of the sum are derived in notebooks 3, 4 and
# 6. All images are **simulated**.

# %%
from functools import partial

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from smml import course, figures
from smml.evaluation.bootstrap import bootstrap_mean
from smml.losses import feature_consistency, pixel_consistency, refinement_loss, segmentation_loss
from smml.models import SMML
from smml.models.checkpoint import load_checkpoint
from smml.study import ARMS, READINGS, compare_arms, read_study
from smml.study.report import MEASURES
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
# rises to 1 over the next. $L_{fc}$ copies no answers and counts from the start. The rate falls as
# $\eta(t) = \eta_0 (1 - t/T)^{0.9}$.

# %%
plan = TrainingConfig(steps=1000)
t = np.arange(plan.steps)
r = np.clip((t / plan.steps - 0.1) / 0.1, 0, 1)
eta = plan.learning_rate * (1 - t / plan.steps) ** 0.9
assert np.allclose(r, [consistency_ramp(plan, step) for step in t])
assert np.allclose(eta, [learning_rate(plan, step) for step in t])
print(f"l_fc = {plan.feature_weight:g}, l_pc = {plan.pixel_weight:g}, l_ref = {plan.refinement_weight:g}; "
      f"class weights are at least {plan.min_class_weight:g}, so that a patch of one class still counts, "
      f"and {plan.gate_min_class_weight:g} in L_pc's gates, {plan.refinement_min_class_weight:g} in S_b")  # fmt: skip
for step in (0, 99, 150, 200, 900):
    print(f"step {step:3d} of {plan.steps}: r = {r[step]:.2f}, rate = {eta[step]:.1e}")

# %% [markdown]
# $L_b$ sums every head of student $b$, each with cross-entropy and Dice: the fused output, each modality alone through
# the shared decoder, and deep supervision at four levels. With refinement, $S_b$ teaches the refinement network and
# $\mathrm{KL}_b$ carries what it knows back to the student:
# $$L_b = L_{fuse} + \sum_m L_{sep,m} + \sum_l L_{prm,l},\qquad
#   S_b = \mathrm{CE}(p_{ref}) + \mathrm{Dice}(p_{ref}),\qquad
#   \mathrm{KL}_b = \mathrm{KL}\bigl(\mathrm{sg}[p_{ref}]\,\|\,p_b\bigr).$$
# The whole sum by hand, on noise, half-way up the ramp:

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
total = 0
for student, refined in zip(output.branches, output.refined, strict=True):
    deep = sum(head(p, from_logits=False) for p in student.deep)
    mine = head(student.logits) + sum(map(head, student.separate)) + deep
    theirs = segmentation_loss(student, y, min_class_weight=plan.min_class_weight)
    assert torch.allclose(mine, theirs.total)
    log_ref, log_p = refined.log_softmax(dim=1), student.logits.log_softmax(dim=1)
    kl = (log_ref.exp() * (log_ref - log_p)).sum(dim=1).mean()
    supervised = dice_ce_loss(refined, y, **even)
    terms = refinement_loss(refined, student.logits, y, **even)
    assert torch.allclose(supervised + kl, terms.segmentation + terms.divergence)
    total += mine + supervised + r[step] * kl
teaching = pixel_consistency(one.logits, two.logits, y, min_class_weight=plan.gate_min_class_weight)
total += r[step] * sum(teaching) + feature_consistency(one.bottleneck, two.bottleneck, one.logits, two.logits, y).total
assert torch.allclose(total, objective(output, y, plan, step).total)
print(f"10 heads a branch, refined included, and the constraints: {total:.2f}")

# %% [markdown]
# ## A short training, live
#
# Starting from the shipped `tiny` students, with a moving average of the weights (EMA) and two validations on cases
# that are held out. Too short to teach them much; it is here to be watched.

# %%
files = course.training_cohort(course.size(full=12, fast=4))
steps = course.size(full=30, fast=2)
config = TrainingConfig(
    preset="tiny", steps=steps, learning_rate=3e-4, ema=0.9, validate_every=course.size(full=15, fast=2)
)
run = course.build_folder() / f"run-07-{steps}-steps"
result = train(files, run, config, weights="tiny", resume=True)
figures.curves_figure(run, smooth=course.size(full=5, fast=1))

# %% [markdown]
# Read it like this: *fused* heads are what you will use; what the branches exchange starts at $r(t) > 0$; a gradient
# norm that climbs is the first sign of trouble, and each network's gradient is clipped by its own norm. The star marks
# `best.pt`. Everything that made the run is kept beside it:

# %%
facts = pd.read_json(run / "config.json", typ="series")
log = pd.read_csv(run / "log.csv")
print(facts[["preset", "steps", "gate", "pixel_weight", "feature_weight", "ema", "seed", "versions", "commit"]])
print(f"{log['seconds'].median():.2f} s a step (median)")

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
# another number. Two processes with one sample each, where only the second has a tumour:


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
# So the sums themselves are added up over the processes, and $L_{rel}$ needs nothing but its $C \times C$ moments. Each
# process then has the loss of the whole batch (a test of the suite compares two processes with one, term by term).
#
# One GPU: `smml train data/train runs/one --preset paper --patch 128 --precision bf16 --device cuda --workers 8`.
# Several: put `torchrun --standalone --nproc-per-node 4 -m` before `smml train`, and add `--batch-size 8`: a batch is
# that of all processes together. Several machines and Slurm: the commands stand in the [README](../README.md).
#
# ## An ablation: one thing at a time
#
# The claim is that each part helps when sequences are missing. To credit a gain to the right part, every part has a
# pair of arms that differ in it alone: (b) and (a) in averaging, (c) and (b), (e) and (d) in pixel consistency, (d) and
# (b), (e) and (c) in feature consistency, (f) and (e) in refinement. The other comparisons are of sums:

# %%
lines = ["| arm | compared with |", "|---|---|"]
for arm in ARMS.values():
    lines.append(f"| {arm.title} | {'; '.join(ARMS[parent].title for parent in arm.parents) or '–'} |")
Markdown("\n".join(lines))

# %% [markdown]
# Arm (b) is the one that is easily forgotten. Averaging two networks can help *by itself*; without (b), the ensemble's
# gain would be credited to teaching. And (a) costs nothing extra: between the students of (b) nothing is exchanged, so
# branch 1 of (b) *is* a student trained alone, to the bit.
#
# ## Is a difference real? Pair it
#
# Cases differ far more than methods do. The same cases, segmented by two methods, one 2 points better; the interval of
# the mean by drawing cases anew (bootstrap), once for each method by itself and once for the difference of each case:

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

# %% [markdown]
# The two intervals overlap almost entirely, and yet the difference is far from 0. Seeds are drawn anew too: a gain that
# one seed has and another has not is no gain.
#
# ## The committed study
#
# `smml study FOLDER --preset cpu` trains arms (a) to (f) for three seeds on simulated subjects and scores them on
# held-out ones, over the 15 subsets; `--arms` names others, as the end of the report does. What is committed in
# [results/study/cpu](../results/study/cpu/study.md) was made with the first simulator, at the commit that it names:

# %%
folder = course.results_folder() / "study" / "cpu"
study = read_study(folder)
titles = {name: arm.title for name, arm in (ARMS | READINGS).items()}
rows = [
    {"arm": titles[name], "seeds": len(study.seeds(name))}
    | {f"Dice {m}": f"{100 * study.values(name, m).to_numpy().mean():.1f}" for m in MEASURES}
    | {"WT volume, predicted / true": f"{study.volume_ratio(name, 'WT'):.2f}"}
    for name in study.arms
]
pd.DataFrame(rows).set_index("arm")

# %%
changes = compare_arms(study)
figures.study_figure(study, "What each part is worth: simulated cases, 95 % intervals", changes=changes)

# %%
rows = []
for _, row in changes.iterrows():
    gain, low, high = row["mean"], row["mean low"], row["mean high"]
    shown = "not shown" if low < 0 < high else "a gain" if gain > 0 else "a loss"
    points = f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    rows.append((titles[row["arm"]], titles[row["parent"]], points, row["signs mean"], shown))
if not study.complete:
    print("Unfinished: some arms or seeds are still missing.")
pd.DataFrame(rows, columns=["arm", "against", "mean Dice, points (95 %)", "by seed", "shown"]).set_index("arm")

# %% [markdown]
# **A loss can be right to the letter and wrong by a factor.** Arms (a) to (f) were fixed before the first run. Those
# with pixel consistency lose to (b) with every seed: their gates were weighted by class, our first reading of what the
# paper leaves open, and the whole tumour comes out too large (last column; notebook 4 shows the gradients). The arms
# with *even gates* came afterwards, from a search on other subjects and seeds (`--preset probe`), and are the default
# now. They win back what was lost, and (e) then stands above (b) with every seed, mostly for the whole tumour.
# Refinement took that back, and for the same reason: its cross-entropy had the students' class weights, and a rim of
# oedema was added everywhere. With even weights there too, (f) stands above (a) and (b) with every seed; its interval
# against (b) leaves 0 behind for the whole tumour only ([findings](../results/study/cpu/findings.md)).
#
# **What a gate is for.** The last arms change one open reading each of (e) with even gates. Without L_cls, or with
# heads of single sequences that are supervised only where the mask has them, the study sees no difference, nor between
# the two gates that ask the truth. Without any gate every seed loses a little. And `entropy`, the gate that asks only
# who is surer, ruins the training: look at its volume. Who does not see a tumour may be sure that there is none, and
# then teaches it.
#
# A short training on coarse, simulated images is a weak judge: an interval that crosses 0 says that this study cannot
# tell (*not shown*), not that a part is worthless, and three equal signs come up one time in four by chance alone. A
# gain here need not be one on patients' images.
#
# ## Key points
#
# - One backward for both branches; the exchange starts when there is something to exchange.
# - A run is a function of its options: it resumes to the bit, and its folder says how it was made.
# - Losses that divide sums or relate samples are not means over processes; their sums are what is exchanged.
# - An ablation needs the arm that isolates averaging, several seeds, and paired intervals; and when it disappoints, a
#   search for the reason on other subjects than those of the report.
#
# ## Exercises
#
# Solutions stand [apart](solutions/07_training_and_ablation.py).
#
# ### Exercise 7.1: When does the exchange begin?
#
# Write $r(t)$ for any start and length of the ramp, both as shares of the training. A ramp of length 0 is a switch.


# %%
# Exercise 7.1
def ramp(step, steps, start, length):
    """r(t) of step 0, 1, ... of ``steps``: 0 before ``start``, then linear up to 1 over ``length``."""
    return ...


# %%
with course.check("7.1"):
    for start, length in ((0.1, 0.1), (0.0, 0.5), (0.3, 0.0)):
        options = TrainingConfig(steps=200, consistency_start=start, consistency_ramp=length)
        for step in (0, 19, 20, 30, 59, 60, 61, 199):
            expected = consistency_ramp(options, step)
            found = ramp(step, 200, start, length)
            assert np.isclose(found, expected), f"step {step}, start {start}, length {length}: {found}, not {expected}"

# %% [markdown]
# ### Exercise 7.2: The Dice term over two processes
#
# Each process has sums over its own voxels, per class: $I = \sum p\,y$, $P = \sum p$, $Y = \sum y$. What must be added
# up before which division, so that the result is the term of the whole batch?


# %%
# Exercise 7.2
def dice_of_all(sums):
    """Soft Dice loss of the whole batch from ``sums``, one (I, P, Y) a process, each float [K]."""
    return ...


# %%
with course.check("7.2"):
    torch.manual_seed(1)
    logits, target = torch.randn(4, 4, 3, 3, 3), torch.randint(0, 4, (4, 3, 3, 3))
    p, y = logits.softmax(dim=1), torch.nn.functional.one_hot(target, 4).movedim(-1, 1).float()
    over = (0, 2, 3, 4)
    sums = [((p[s] * y[s]).sum(over), p[s].sum(over), y[s].sum(over)) for s in (slice(0, 1), slice(1, 4))]
    w = 1 - y.mean(dim=(2, 3, 4), keepdim=True)
    ce = -(w * y * p.clamp_min(0.005).log()).sum(dim=1).mean()
    found = dice_of_all(sums)
    assert torch.is_tensor(found), "the function is still to be written"
    expected = dice_ce_loss(logits, target) - ce
    assert torch.allclose(found, expected, atol=1e-6), f"{found:.4f}, but the whole batch has {expected:.4f}"

# %% [markdown]
# ### Exercise 7.3: Who earned the gain?
#
# Suppose one student reaches 60.0, and two students that teach each other, averaged, 63.5. You train two students
# *without* teaching and find 62.5 for their average. How many points are due to averaging, how many to teaching?


# %%
# Exercise 7.3
def shares(single, pair, both):
    """(points due to averaging, points due to teaching)."""
    return ...


# %%
with course.check("7.3"):
    averaging, teaching = shares(60.0, 62.5, 63.5)
    assert np.isclose(averaging + teaching, 3.5), "together they are the whole gain"
    assert np.isclose(teaching, 1.0), "teaching is what the same average gains from it"

# %% [markdown]
# ## Read next
#
# **Next:** [8. Evaluation](08_evaluation.ipynb). In the code: `smml/training/step.py`, `smml/ranks.py`,
# `smml/study/presets.py`.
