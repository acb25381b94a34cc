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
# # 6. Refinement: what may SAM see, and what is it worth?
#
# **Question.** Can a model that segments anything you point at improve a tumour segmentation, if nobody who knows the
# truth does the pointing?
#
# After this notebook you can
# - prompt a Segment Anything Model (SAM) in voxel coordinates and say what a good *prompt*, the box or points that ask
#   it, is in each sequence;
# - make prompts from a network's own prediction, and from SAM's answers *priors*: a probability at each voxel that a
#   second network may trust or not;
# - show that neither the label nor a missing sequence can reach them;
# - explain what the gate looks at, train the refinement, and judge with numbers whether it helped.
#
# Two to three minutes on two CPU cores, 2 GB of memory. From [notebook 3](03_masked_mutual_learning.ipynb) it needs
# what the two branches and their losses are.
#
# All images are **simulated**. The SAM used here is the *tiny*
# one that ships with the package (segment-anything's modules and a few convolutions for fine detail, trained on
# simulated slices of other seeds); Meta's own checkpoints are loaded with `load_sam("vit_b")` and are far slower on
# such a machine.
#
# **How we read the paper.** The authors' public code shows SAM the ground truth, weighs its answers by their overlap
# with the ground truth, and leaves the refinement out at test time. Here neither prompts, priors nor gate ever see a
# label ([docs/METHOD.md](../docs/METHOD.md), "Refinement").

# %%
import time

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from smml import course, figures
from smml.data import read_case
from smml.data.labels import REGIONS
from smml.evaluation import Scores, evaluate, false_alarms, format_table, refinement_table
from smml.inference import Predictor
from smml.modalities import DISPLAY_NAMES, MODALITIES, subset_mask
from smml.models.checkpoint import load_checkpoint
from smml.models.refinement import RefinementNetwork
from smml.sam import PromptRules, SAMPrior, best_answers, coarse_prompts, load_sam
from smml.sam.training.prompts import fill_box, iou, mask_box
from smml.training import TrainingConfig, train

figures.use_theme()
torch.manual_seed(0)
sam = load_sam("tiny")
print(f"{sum(p.numel() for p in sam.parameters()):,} parameters, slices of {sam.image_encoder.img_size} pixels")

# %% [markdown]
# ## One box, four sequences
#
# SAM knows no classes: it is given a place and answers with a mask. It reads a slice once, into an *embedding* (a grid
# of features), and answers any number of prompts from that. A held-out case, its widest axial slice, and the exact box
# round the *whole tumour*. (In this section and the next, boxes are drawn from the truth, to look at SAM. After that
# the truth only supervises a training and scores.) IoU is what two masks share, divided by what they cover together.

# %%
from smml.sam import Prompts, SquareFit, answer, encode, intensity_window

cases = [read_case(file) for file in course.held_out_cohort(course.size(full=6, fast=2))]
case = max(cases, key=lambda case: int((case.label == 3).sum()))
volumes = {name: figures.to_canonical(volume, case.affine) for name, volume in case.volumes.items()}
label = figures.to_canonical(case.label, case.affine)
z = figures.widest_slice(label)
truth = {region: case.scheme.region(label[:, :, z], region) for region in REGIONS}


def ask(name: str, box, points=None, labels=None, multimask=False):
    """SAM's probability for one prompt in slice z of one sequence; with multimask its three answers."""
    volume = torch.from_numpy(volumes[name].copy())
    embedding = encode(sam, volume.movedim(2, 0)[z : z + 1], window=intensity_window(volume))
    box = None if box is None else torch.tensor([box], dtype=torch.float32)
    prompt, fit = Prompts(box, points, labels), SquareFit.of(sam, label.shape[:2])
    (logits,), _ = answer(sam, embedding, prompt, fit, multimask=multimask)  # [K, H, W], and the IoU that SAM expects
    return logits.sigmoid().numpy() if multimask else logits[0].sigmoid().numpy()


# %%
box = mask_box(truth["WT"])
pictures = {}
for name in volumes:
    found = ask(name, box) > 0.5
    title = f"{DISPLAY_NAMES[name]}, IoU {iou(found, truth['WT']):.2f}"
    pictures[title] = figures.prompt_picture(volumes[name], z, mask=found, truth=truth["WT"], boxes=[box])
figures.panels(pictures, title="The same box (yellow), SAM's answer (blue), the truth (white outline)", size=220)

# %% [markdown]
# The same question, for each region in each sequence. Each column has one box; what differs down a column is only what
# the sequence shows. Where it shows nothing, SAM falls back on what boxes usually hold.

# %%
rows = {
    DISPLAY_NAMES[name]: {
        region: iou(ask(name, mask_box(truth[region])) > 0.5, truth[region])
        for region in REGIONS
        if truth[region].any()
    }
    for name in volumes
}
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# ## Good prompts, bad prompts
#
# A prompt from a network's prediction is never exact. How forgiving is SAM? The same slice of FLAIR, worse and worse:

# %%
top, left, bottom, right = box
height, width = bottom - top, right - left
centre = torch.tensor([[[(top + bottom) / 2, (left + right) / 2]]])
prompts = {
    "exact box": (box, None, None),
    "a fifth larger": ((top - height / 5, left - width / 5, bottom + height / 5, right + width / 5), None, None),
    "shifted a third": ((top + height / 3, left, bottom + height / 3, right), None, None),
    "one point": (None, centre, torch.ones(1, 1, dtype=torch.int64)),
}
pictures = {}
for name, (asked, points, labels) in prompts.items():
    found = ask("flair", asked, points, labels) > 0.5
    shown = {"boxes": None if asked is None else [asked]}
    if points is not None:
        shown |= {"points": points[0], "point_labels": labels[0]}
    pictures[f"{name}, IoU {iou(found, truth['WT']):.2f}"] = figures.prompt_picture(
        volumes["flair"], z, mask=found, truth=truth["WT"], **shown
    )
figures.panels(pictures, title="FLAIR, whole tumour: what a prompt is worth", size=220)

# %% [markdown]
# ## One box, three answers
#
# A box round an enhancing rim is nearly always that of the core inside it as well
# ([results/sam](../results/sam/tiny.md) counts them), and nothing in the image says which of the two is meant. For such
# prompts SAM has three more masks. In training only the best of them learns, so they come to differ. T1ce, the box of
# ET:

# %%
box = mask_box(truth["ET"])
answers = ask("t1ce", box, multimask=True)  # [3, H, W]
fits = {region: [iou(a > 0.5, truth[region]) for a in answers] for region in ("ET", "TC")}
pictures = {
    f"{i + 1}: IoU with ET {fits['ET'][i]:.2f}, TC {fits['TC'][i]:.2f}": figures.prompt_picture(
        volumes["t1ce"], z, mask=answer > 0.5, truth=truth["ET"], boxes=[box]
    )
    for i, answer in enumerate(answers)
}
figures.panels(pictures, columns=3, title="One box (yellow), SAM's three answers (blue), ET (white outline)", size=290)

# %% [markdown]
# Whoever asked knows what was meant. A branch asks because it predicts a region there, with probability $p_r$. Of the
# three answers $a$ the prior takes the one with the highest soft IoU with $p_r$ in the box,
# $$s^{*} = \operatorname*{arg\,max}_{a}\
#   \frac{\sum_{v\in\text{box}}\min(a,p_r)}{\sum_{v\in\text{box}}\max(a,p_r) + \sum_{v\notin\text{box}} a}.$$
# With the rim and with the core in the place of a prediction:


# %%
def best_answer(answers, p, box):
    p = p * fill_box(box, p.shape)
    return max(answers, key=lambda a: np.minimum(a, p).sum() / np.maximum(a, p).sum())


for region in ("ET", "TC"):
    p = truth[region].astype(np.float32)
    chosen = best_answer(answers, p, box)
    package = best_answers(*(torch.tensor(np.array([array], np.float32)) for array in (answers, p, box)))
    assert torch.equal(package[0], torch.from_numpy(chosen))
    print(f"asked for {region}: IoU {iou(chosen > 0.5, truth[region]):.2f}; "
          f"with its one mask {iou(ask('t1ce', box) > 0.5, truth[region]):.2f}")  # fmt: skip

# %% [markdown]
# ## Prompts from the prediction itself
#
# At test time there is no truth, so each branch prompts SAM with its *own* coarse prediction: per slice and region the
# connected pieces, a box with a margin round each, and points well inside and just outside. Branch 1 of the shipped
# students, given T1ce and T2 only:

# %%
predictor = Predictor.from_checkpoint("tiny", refine=False)
encoding = predictor.encode(case)
given = subset_mask("t1ce+t2")
coarse = predictor.coarse(encoding, given)  # [2 branches, K, x, y, z], on the network's own grid
image = encoding.prepared.image
members = list(case.scheme.regions["WT"])
whole = coarse[0, members].sum(dim=0)
prompted = coarse_prompts(whole.movedim(2, 0))  # axial slices first
middle = int(whole.sum(dim=(0, 1)).argmax())
here = prompted.slices == middle
picture = figures.prompt_picture(
    image[1].numpy(), middle, mask=whole[:, :, middle].numpy(), boxes=prompted.boxes[here].numpy(),
    points=prompted.points[here].flatten(0, 1).numpy(), point_labels=prompted.point_labels[here].flatten().numpy(),
)  # fmt: skip
print(f"{len(prompted)} prompts for the whole tumour in {len(prompted.slices.unique())} slices")
figures.panels({"prediction (blue) and what it asks SAM": picture}, size=330)

# %% [markdown]
# ## Prior volumes, and who cannot get in
#
# `SAMPrior` asks all of this, region by region, in every sequence present, and returns
# $s \in [0,1]^{M\times R\times X\times Y\times Z}$. SAM sees two things: slices of the sequences that are *given*, each
# alone, and boxes and points made from the branch's own prediction. It never sees a missing sequence, the label, or the
# other branch: there is no argument for a label, and a missing sequence is not read. Here its voxels are not a number,
# a new `SAMPrior` has no embedding in its cache, and not one bit changes.

# %%
prior = SAMPrior(sam)
began = time.perf_counter()
maps = prior(image[None], coarse[:1], given[None])
cold = time.perf_counter() - began
poisoned = image[None].clone()
poisoned[:, ~given] = float("nan")
assert torch.equal(maps, SAMPrior(sam)(poisoned, coarse[:1], given[None]))
assert not maps[0, ~given].any()
began = time.perf_counter()
prior(image[None], coarse[:1], given[None])
print(f"priors {list(maps.shape)}: {cold:.1f} s, with embeddings in the cache {time.perf_counter() - began:.1f} s")

# %%
pictures = {}
for m in given.nonzero()[:, 0].tolist():
    for r, region in enumerate(REGIONS):
        pictures[f"{region} in {DISPLAY_NAMES[MODALITIES[m]]}"] = figures.prompt_picture(
            image[m].numpy(), middle, mask=maps[0, m, r, :, :, middle].numpy(), opacity=0.7
        )
figures.panels(pictures, columns=3, title="What SAM made of the prediction: two sequences, three regions", size=210)

# %% [markdown]
# ## The gate
#
# Two sequences, two answers. Which to trust, and where? The refinement network has a gate $g_{m,r}$ between 0 and 1
# that sees the student's probability $p$, SAM's map $s$, their agreement $1-|p-s|$, the student's entropy, and how much
# the two overlap over the whole patch,
# $$o = \frac{2\sum_v p\,s}{\sum_v p + \sum_v s}.$$
# Public code takes the overlap with the *truth* (docs/METHOD.md). The refined logits are the student's plus a
# correction from a small U-Net that sees $p$, its logarithm, and two means over the sequences present: of the gated
# maps, $\operatorname{mean}_m g_{m,r} s_{m,r}$, and of the gates. Untrained, the correction is exactly zero:

# %%
network = RefinementNetwork(widths=(4, 8))
logits, s = torch.randn(1, 4, 16, 16, 16), torch.rand(1, 4, 3, 16, 16, 16)
with torch.no_grad():
    output = network(logits, s, given[None])
assert torch.equal(output.logits, logits)
assert not output.gate[0, ~given].any()
mine = (output.gate * torch.where(given.view(1, 4, 1, 1, 1, 1), s, 0.0)).sum(dim=1) / given.sum()
assert torch.allclose(mine, output.prior, atol=1e-6)
print(
    f"gate {list(output.gate.shape)}, between {output.gate[0, given].min():.2f} and {output.gate[0, given].max():.2f}"
)

# %% [markdown]
# ## Training it, live
#
# $$L_{ref} = \mathrm{CE}(p_{ref}) + \mathrm{Dice}(p_{ref})
#   + \mathrm{KL}\bigl(\mathrm{sg}[p_{ref}]\,\|\,p_{student}\bigr)$$
# The first two train the refinement alone, the last brings back to the student what it found. The CE counts every voxel
# alike, whatever its class: the students' class weights made what is refined too large
# ([findings](../results/study/cpu/findings.md)). In the total the KL is multiplied by the ramp $r(t)$, which starts at
# 0; the first two are not ([docs/EQUATIONS.md](../docs/EQUATIONS.md), "The total"). SAM is far too slow to be asked in
# every step: every case is segmented once under a few pairs of masks,
# and the priors are kept and turned with the image. One option switches it on, and the log says what it costs. A few
# steps, from the shipped students:

# %%
files = course.training_cohort(course.size(full=5, fast=1))
steps = course.size(full=20, fast=2)
config = TrainingConfig(preset="tiny", steps=steps, refinement="tiny", refinement_start=0.0, prior_masks=1, seed=0)
run = course.build_folder() / f"run-refined-{steps}-steps"
train(files, run, config, weights="tiny", resume=True)
log = pd.read_csv(run / "log.csv")
print(
    f"priors of {len(files)} cases: {log['prior_seconds'].sum():.1f} s, once; a step: {log['seconds'].median():.2f} s"
)

# %% [markdown]
# ## What the gate learnt
#
# `"tiny-refined"` ships with the package: the students `"tiny"`, trained on with the refinement (its
# [card](../smml/weights/tiny-refined.md) says how). Its mean gate where SAM marked anything at all, on this case with
# all four sequences, in branch 1:

# %%
checkpoint = load_checkpoint("tiny-refined")
model = checkpoint.build()
refined = Predictor(
    model, checkpoint.spacing, window=checkpoint.patch + 16, prior=prior, preprocessing=checkpoint.preprocessing
)
encoding = refined.encode(case)
everything = subset_mask(MODALITIES)
coarse = refined.coarse(encoding, everything)[:1]
maps = prior(image[None], coarse, everything[None])
with torch.inference_mode():
    probabilities, s = (encoding.plan.pad(volume[0])[None] for volume in (coarse, maps))
    output = model.refinements[0](probabilities.clamp_min(1e-30).log(), s, everything[None])
marked = s > 0.5
trust = (output.gate * marked).sum(dim=(0, 3, 4, 5)) / marked.sum(dim=(0, 3, 4, 5)).clamp_min(1)
trust = pd.DataFrame(trust.numpy(), index=[DISPLAY_NAMES[m] for m in MODALITIES], columns=list(REGIONS))
trust.round(2)

# %%
best = trust.idxmax()
print("; ".join(f"{region}: most trusted in {best[region]}, {trust[region].max():.2f}" for region in REGIONS))
print(
    f"from the least to the most trusted sequence: {float((trust.max() - trust.min()).mean()):.2f}, mean over regions"
)

# %% [markdown]
# ET can be seen in T1ce alone. If another sequence is trusted more there, the gate has not learnt that yet: this
# training was short, and the correction that follows may do without the gate's help.
#
# ## Before and after
#
# The same students with and without refinement, on a few held-out cases here (the literature's mean):

# %%
subsets = [("flair",), ("t1ce",), ("t1ce", "t2"), MODALITIES][-course.size(full=4, fast=1) :]
scores = evaluate(refined, cases[: course.size(full=2, fast=1)], subsets=subsets, progress=False)
Markdown(format_table(refinement_table(scores)))

# %% [markdown]
# And over all fifteen subsets and more cases, from the committed measurement
# ([results/refinement](../results/refinement/table.md)):

# %%
committed = Scores.read(course.results_folder() / "refinement")
there = committed.frame[committed.frame["truth_ml"] > 0]
wide = there.pivot_table(index=["case", "subset", "region"], columns="output", values="dice")
change = 100 * (wide["refined"] - wide["student"])  # Dice points, where the region is there
by_case = change.groupby(["region", "case"]).mean()
for region in REGIONS:
    values = by_case[region].sort_values(key=abs)
    rest = values.iloc[:-1].mean()
    print(
        f"{region}: {values.mean():+.1f} points on average over the cases that have it, better in "
        f"{(values > 0).sum()} of {len(values)}; without {values.index[-1]}, which changed most "
        f"({values.iloc[-1]:+.1f}): {rest:+.1f}"
    )

# %%
for name, place in (("gained", change.idxmax()), ("lost", change.idxmin())):
    before, after = wide.loc[place, "student"], wide.loc[place, "refined"]
    print(f"{name} most: {', '.join(place)}: Dice {before:.2f} -> {after:.2f}")
apart = {output: false_alarms(committed.output(output), by=("region",)) for output in ("student", "refined")}
for region in REGIONS:
    before, after = (apart[output].loc[region] for output in ("student", "refined"))
    if before["absent"]:
        print(f"{region}, where there is none ({before['absent']:.0f} cases and subsets): called in "
              f"{before['share']:.0%} by the students, in {after['share']:.0%} after refinement")  # fmt: skip

# %% [markdown]
# Overlap and false alarms are told apart here: in one mean of both, a single false alarm more or less is as much as all
# that refinement does to the outlines. A mean over few cases can hang on one of them; the numbers after "without" say
# how much of it is left then.
#
# These students and this SAM were trained on the same simulator, and SAM sees two-dimensional slices of one sequence at
# a time: it cannot know what the fused student knows. Its use is bounded by the prompts, and the prompts by the
# student: a lesion that the student misses is never asked about. Read the numbers above before paying SAM's time.
#
# ## Key points
#
# - Prompts come from the prediction, priors from the sequences that are given; the label has no way in.
# - SAM answers from what a sequence shows. Where that is nothing, its answer is what such boxes usually hold.
# - The gate replaces the truth in the public code (docs/METHOD.md) by what can be known at test time: agreement and
#   overlap.
# - Refinement is an option with a price; the log shows the price and the evaluation shows both outputs.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/06_refinement.py) say why.
#
# ### Exercise 6.1: A box with a margin
#
# A predicted mask is usually a little too small or too large, so the box that asks SAM leaves room on every side. Boxes
# here are half-open: (top, left, bottom, right), the first row and column inside, and the first ones *behind*. A box
# cannot leave the slice.


# %%
# Exercise 6.1
def prompt_box(mask, margin):
    """(top, left, bottom, right) round a boolean mask [H, W] that is not empty, with so many voxels of margin."""
    return ...


# %%
with course.check("6.1"):
    blob = torch.zeros(1, 20, 30, dtype=torch.bool)
    blob[0, 1:6, 10:27] = True
    tight, wide = prompt_box(blob[0].numpy(), 0), prompt_box(blob[0].numpy(), 4)
    assert tuple(tight) == (1, 10, 6, 27), f"without a margin it is mask[1:6, 10:27], found {tuple(tight)}"
    assert min(wide) >= 0, "row -3 does not exist"
    assert tuple(wide) == (0, 6, 10, 30), f"the slice has 20 rows and 30 columns, and the box reaches {tuple(wide)}"
    package = coarse_prompts(blob, PromptRules(margin=4)).boxes[0].tolist()
    assert package == list(wide), f"the package asks with {package}"

# %% [markdown]
# ### Exercise 6.2: How much do two masks agree?
#
# The pictures above state the IoU, the scores below them the Dice. For two masks each follows from the other, so they
# can never disagree about which of two answers is the better one. Write both; two empty masks agree perfectly.


# %%
# Exercise 6.2
def iou_and_dice(a, b):
    """(IoU, Dice) of two boolean arrays; compute the Dice from the IoU alone."""
    return ...


# %%
with course.check("6.2"):
    random = np.random.default_rng(0)
    for share in (0.2, 0.6, 0.95):
        a, b = random.random((2, 8, 8)) < share
        mine, formula = iou_and_dice(a, b), 2 * (a & b).sum() / (a.sum() + b.sum())
        assert np.isclose(mine[0], iou(a, b)), f"IoU {mine[0]:.3f}: what both have, over what either has"
        assert np.isclose(mine[1], formula), (
            f"Dice {mine[1]:.3f} instead of {formula:.3f}; write |a| + |b| with the union"
        )
    empty = np.zeros((8, 8), bool)
    assert tuple(iou_and_dice(empty, empty)) == (1, 1), "nothing is there, and both say so"

# %% [markdown]
# ### Exercise 6.3: Catch a gate that looks at the truth
#
# A gate that has seen the truth works splendidly until there is none: the network then meets, at test time, a gate it
# has never met. Write the test that finds out. You get a gate, its honest inputs, and one true mask; call it as often
# as you like. Three of the gates below cheat, each in its own way: which changes of the truth would leave each unmoved?


# %%
# Exercise 6.3
def sees_the_truth(gate, p, s, truth):
    """True if gate(p, s, truth) changes with the truth alone; p, s in [0, 1] and truth in {0, 1} are [X, Y, Z]."""
    return ...


# %%
with course.check("6.3"):
    p, s, truth = torch.rand(4, 4, 4), torch.rand(4, 4, 4), torch.zeros(4, 4, 4)
    truth[:2] = 1  # half of the voxels, so that its complement is of the same size
    honest = sees_the_truth(lambda p, s, truth: 2 * (p * s).sum() / (p.sum() + s.sum()), p, s, truth)
    overlap = sees_the_truth(lambda p, s, truth: 2 * (s * truth).sum() / (s.sum() + truth.sum()), p, s, truth)
    counts = sees_the_truth(lambda p, s, truth: p * (truth.sum() > 20), p, s, truth)
    inside = sees_the_truth(lambda p, s, truth: s + truth[3, 3, 3], p, s, truth)
    assert honest in (True, False), "the answer is True or False"
    assert not honest, "the first gate knows p and s only"
    assert overlap, "this one weighs SAM's answer by its overlap with the truth, as public code does"
    assert counts, "this one knows how large the truth is: try truths of other sizes"
    assert inside, "this one knows the truth at one voxel"

# %% [markdown]
# ## Read next
#
# **Next:** [7. Training and ablation](07_training_and_ablation.ipynb).
