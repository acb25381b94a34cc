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
# A minute or two on two CPU cores. From [notebook 3](03_masked_mutual_learning.ipynb) it needs what the
# two branches and their losses are, from [notebook 5](05_evaluation.ipynb) how overlap and false alarms are told apart.
#
# All images are **simulated**. The SAM used here is the *tiny* one that ships with the package (segment-anything's
# modules and a few convolutions for fine detail, trained on simulated slices of other seeds); Meta's own checkpoints
# are loaded with `load_sam("vit_b")` and are far slower on such a machine.
#
# **How we read the paper.** In the
# [authors' public code](https://github.com/banbooliang/SMML/tree/d40154138dc0e7cc0ab7e7413ee4e51332b3ca8f) SAM's maps
# come from files that nothing in it makes. Each is weighed by a network that is given its mean over the mean of the
# *ground truth* (`sam_weight_f` in its layers), and the refinement runs in training only (`is_training` in its
# `Model.forward`). Here neither prompts, priors nor gate ever see a label, so it works where there is none
# ([docs/METHOD.md](../docs/METHOD.md), "Refinement").

# %%
import time

import numpy as np
import pandas as pd
import torch
from IPython.display import display

from smml import course, figures
from smml.data import read_case
from smml.data.labels import REGIONS
from smml.evaluation import Scores, bootstrap_mean, false_alarms
from smml.inference import Predictor
from smml.modalities import DISPLAY_NAMES, MODALITIES, subset_mask
from smml.models.refinement import RefinementNetwork
from smml.sam import SAMPrior, best_answers, coarse_prompts, load_sam
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
# round the *whole tumour*. (In this section and the next two, boxes are drawn from the truth, to look at SAM. After
# that the truth only supervises a training and scores.) IoU is what two masks share, divided by what they cover
# together.
#
# The table asks the same for each region in each sequence. Down a column the box is the same; what differs is what the
# sequence shows. Where it shows nothing, SAM has only the box to go by.

# %%
from smml.sam import Prompts, SquareFit, answer, encode, intensity_window

cases = [read_case(file) for file in course.held_out_cohort(course.size(full=6, fast=1))]
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
display(
    figures.panels(pictures, title="The same box (yellow), SAM's answer (blue), the truth (white outline)", size=220)
)
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
# A prompt from a network's prediction is never exact. How forgiving is SAM? The same slice of FLAIR, four prompts:

# %%
top, left, bottom, right = box
height, width = bottom - top, right - left
centre = torch.tensor([[[(top + bottom) / 2, (left + right) / 2]]])
prompts = {
    "exact box": (box, None, None),
    "a fifth wider on each side": (
        (top - height / 5, left - width / 5, bottom + height / 5, right + width / 5),
        None,
        None,
    ),
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
# Enhancing tumour often lies round the rest of the core, so that both have the same box, and nothing in the image says
# which of the two is meant. For such prompts SAM has three more masks. In training only the best of them learns, so
# they come to differ.
#
# Whoever asked knows what was meant. A branch asks because it predicts a region there, with probability $p_r$. Of the
# three answers $a$ the prior takes the one with the highest soft IoU with $p_r$ in the box,
# $$s^{*} = \operatorname*{arg\,max}_{a}\
#   \frac{\sum_{v\in\text{box}}\min(a,p_r)}{\sum_{v\in\text{box}}\max(a,p_r) + \sum_{v\notin\text{box}} a}.$$
# T1ce and the box of ET, with ET and then with the core in the place of a prediction:

# %%
box = mask_box(truth["ET"])
answers = ask("t1ce", box, multimask=True)  # [3, H, W]


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
pictures = {}
for number, found in enumerate(answers > 0.5, start=1):
    fits = ", ".join(f"{region} {iou(found, truth[region]):.2f}" for region in ("ET", "TC"))
    picture = figures.prompt_picture(volumes["t1ce"], z, mask=found, truth=truth["ET"], boxes=[box])
    pictures[f"{number}: IoU with {fits}"] = picture
figures.panels(pictures, columns=3, title="One box (yellow), SAM's three answers (blue), ET (white outline)", size=290)

# %% [markdown]
# ## Prompts from the prediction itself
#
# At test time there is no truth, so each branch prompts SAM with its *own* coarse prediction: per slice and region the
# connected pieces, a box with a margin round each, and points well inside and just outside. Branch 1 of the shipped
# students, given T1ce and T2 only.

# %%
predictor = Predictor.from_checkpoint("tiny-refined")
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
title = "T1ce: prediction (blue), boxes, points inside (green) and outside (red)"
figures.panels({title: picture}, size=330)

# %% [markdown]
# ## Prior volumes, and who cannot get in
#
# `SAMPrior` asks all of this, region by region, in every sequence present, and returns
# $s \in [0,1]^{M\times R\times X\times Y\times Z}$. SAM sees two things: slices of the sequences that are *given*, each
# alone, and boxes and points made from the branch's own prediction. It never sees a missing sequence, the label, or the
# other branch: there is no argument for a label, and a missing sequence is not read. Here its voxels are not a number,
# a new `SAMPrior` has no embedding in its cache, and not one bit changes.

# %%
prior = predictor.prior
began = time.perf_counter()
maps = prior(image[None], coarse[:1], given[None])
print(f"priors {list(maps.shape)}: {time.perf_counter() - began:.1f} s")
poisoned = image[None].clone()
poisoned[:, ~given] = float("nan")
assert torch.equal(maps, SAMPrior(sam)(poisoned, coarse[:1], given[None]))
assert not maps[0, ~given].any()
pictures = {}
for m in given.nonzero()[:, 0].tolist():
    for r, region in enumerate(REGIONS):
        pictures[f"{region} in {DISPLAY_NAMES[MODALITIES[m]]}"] = figures.prompt_picture(
            image[m].numpy(), middle, mask=maps[0, m, r, :, :, middle].numpy(), opacity=0.7
        )
figures.panels(pictures, columns=3, title="What SAM made of the prediction: two sequences, three regions", size=210)

# %% [markdown]
# ## The gate, the correction, and what trains them
#
# Two sequences, two answers. Which to trust, and where? The refinement network has a gate $g_{m,r}$ between 0 and 1
# that sees the student's probability $p$, SAM's map $s$, their agreement $1-|p-s|$, the student's entropy, and how much
# the two overlap over the whole patch, $o = 2\sum_v p\,s\,/\,(\sum_v p + \sum_v s)$. The refined logits are the
# student's, as constants, plus a correction by a small U-Net:
# $$z_{ref} = \mathrm{sg}[z] + \mathrm{UNet}\bigl(p,\ \log p,\ \operatorname{mean}_m g_{m,r}\,s_{m,r},\
#   \operatorname{mean}_m g_{m,r}\bigr).$$
# The U-Net's last layer starts at 0, so an untrained refinement *is* the student, to the bit. A random correction would
# begin by spoiling a good segmentation, and the KL below would teach the student that noise.
# $$L_{ref} = \mathrm{CE}(p_{ref}) + \mathrm{Dice}(p_{ref})
#   + \mathrm{KL}\bigl(\mathrm{sg}[p_{ref}]\,\|\,p_{student}\bigr)$$
# The first two train the refinement alone; the last brings back to the student what it found. The CE counts every voxel
# alike: the students' class weights made what is refined too large ([findings](../results/study/cpu/findings.md)).
#
# SAM is far too slow to be asked in every step. When the refinement begins, every case is segmented once under a few
# pairs of masks; those priors are kept, and turned and flipped with the image. Normally it begins half-way
# (`refinement_start=0.5`), when the students' predictions are worth asking with. Here it begins at once (`0.0`),
# because the students come trained. They go on learning beside it; with `refinement_only=True` they would stay as they
# are, and the KL would teach nobody.

# %%
network = RefinementNetwork(widths=(4, 8))
logits, s = torch.randn(1, 4, 16, 16, 16), torch.rand(1, 4, 3, 16, 16, 16)
with torch.no_grad():
    output = network(logits, s, given[None])
assert torch.equal(output.logits, logits)
assert not output.gate[0, ~given].any()
mine = (output.gate * torch.where(given.view(1, 4, 1, 1, 1, 1), s, 0.0)).sum(dim=1) / given.sum()
assert torch.allclose(mine, output.prior, atol=1e-6)
low, high = output.gate[0, given].aminmax()
print(f"untrained: logits unchanged, gate {list(output.gate.shape)}, between {low:.2f} and {high:.2f}")

# %%
files = course.training_cohort(course.size(full=3, fast=1))
steps = course.size(full=20, fast=2)
config = TrainingConfig(steps=steps, refinement="tiny", refinement_start=0.0, prior_masks=1, seed=0)
run = course.build_folder() / f"run-refined-{steps}-steps"
train(files, run, config, weights="tiny", resume=True)
log = pd.read_csv(run / "log.csv")
print(
    f"priors of {len(files)} cases: {log['prior_seconds'].sum():.1f} s, once; a step: {log['seconds'].median():.2f} s"
)

# %% [markdown]
# ## What the gate learnt
#
# `"tiny-refined"` ships with the package: the students of `tiny`, and behind each a refinement network that was trained
# while they stayed as they are (its [card](../smml/weights/tiny-refined.md) says how). Its mean gate where SAM marked
# anything at all, on this case with all four sequences, in branch 1. ET can be seen in T1ce alone; a gate that has
# learnt this trusts T1ce most there.

# %%
everything = subset_mask(MODALITIES)
coarse = predictor.coarse(encoding, everything)[:1]
maps = prior(image[None], coarse, everything[None])
with torch.inference_mode():
    # Its U-Net halves the volume three times.
    beyond = [edge for n in reversed(image.shape[1:]) for edge in (0, -n % 8)]
    probabilities, s = (torch.nn.functional.pad(volume, beyond) for volume in (coarse, maps))
    output = predictor.model.refinements[0](probabilities.clamp_min(1e-30).log(), s, everything[None])
marked = s > 0.5
trust = (output.gate * marked).sum(dim=(0, 3, 4, 5)) / marked.sum(dim=(0, 3, 4, 5))  # NaN where none is marked
trust = pd.DataFrame(trust.numpy(), index=[DISPLAY_NAMES[m] for m in MODALITIES], columns=list(REGIONS))
et = trust["ET"].dropna().sort_values(ascending=False)
place = list(et.index).index("T1ce") + 1 if "T1ce" in et else 0
if not place:
    print(
        "ET: SAM marked none in T1ce here, so there was nothing to trust. It is asked about what the students predict."
    )
else:
    print(f"ET: most trusted in {et.index[0]} ({et.iloc[0]:.2f}), least in {et.index[-1]} ({et.iloc[-1]:.2f}); T1ce is "
          f"number {place} of {len(et)} ({et['T1ce']:.2f})")  # fmt: skip
    learnt = {len(et): "the opposite of where ET can be seen", 1: "where ET can be seen"}
    print(f"In this case the gate goes by {learnt.get(place, 'something else than where ET can be seen')}.")
print(f"spread over the sequences: {', '.join(f'{r} {trust[r].max() - trust[r].min():.2f}' for r in REGIONS)}")
trust.round(2)

# %% [markdown]
# ## Before and after
#
# Students and refined, side by side over all fifteen subsets, from the committed measurement
# ([results/refinement](../results/refinement/table.md)). Two questions, apart: is a region that is there outlined
# better, and is less called where there is none? A mean over few cases can hang on one of them, so the case that
# changed most is taken out once.

# %%
committed = Scores.read(course.results_folder() / "refinement")
there = committed.frame[committed.frame["truth_ml"] > 0]
wide = there.pivot_table(index=["case", "subset", "region"], columns="output", values="dice")
change = 100 * (wide["refined"] - wide["student"])  # Dice points, where the region is there
by_case = change.groupby(["region", "case"]).mean()
alarms = {name: false_alarms(committed.output(name), by=("region",)) for name in ("student", "refined")}
more, verdicts = alarms["refined"]["called"] / alarms["student"]["called"], []
for region in REGIONS:
    values = by_case[region].sort_values(key=abs)
    mean, rest, n = bootstrap_mean(values.to_numpy()), values.iloc[:-1].mean(), len(values)
    verdict = "not shown" if mean.low < 0 < mean.high else "a gain" if mean.mean > 0 else "a loss"
    if verdict != "not shown" and (rest * mean.mean <= 0 or abs(rest) < abs(mean.mean) / 2):
        verdict += " that hangs on one case"
    verdicts.append(verdict)
    print(f"{region}, where it is: {mean.mean:+.1f} points ({mean.low:+.1f} to {mean.high:+.1f}), {verdict}; better in "
          f"{(values > 0).sum()} of {n} cases; without the most changed, {values.index[-1]}, {rest:+.1f}")  # fmt: skip
    before, after = (alarms[name].loc[region] for name in ("student", "refined"))
    print(f"{region}, where it is not ({before['absent']:.0f} pairs of case and subset): called in "
          f"{before['called']:.0f} by the students, in {after['called']:.0f} after refinement")  # fmt: skip
for name, at in (("gained", change.idxmax()), ("lost", change.idxmin())):
    print(f"{name} most: {', '.join(at)}: Dice {wide.loc[at, 'student']:.2f} -> {wide.loc[at, 'refined']:.2f}")
assert verdicts == ["a loss", "not shown", "not shown"]  # as said below
assert more["WT"] > 2
assert 0.5 < more["ET"] < 0.6

# %% [markdown]
# **With these weights the refinement does not pay in outlines**: a little of WT is lost where it is, and of TC and ET
# neither a gain nor a loss is shown. Where there is none, WT is called more than twice as often, most of it in one
# healthy subject, and ET little more than half as often. It costs a pass of SAM beside. In the
# [second study](../results/study/cpu2/findings.md), on a coarser grid and with students trained less, it was the one
# part beside averaging that gained in both means of the Dice.
#
# These students and this SAM were trained on the same simulator, and SAM sees two-dimensional slices of one sequence at
# a time: it cannot know what the fused student knows. Its use is bounded by the prompts, and the prompts by the
# student: a lesion that the student misses is never asked about.
#
# ## Key points
#
# - Prompts come from the prediction, priors from the sequences that are given; the label has no way in.
# - SAM answers from what a sequence shows. Where that is nothing, it has only the prompt to go by.
# - The gate asks what can be known at test time, agreement and overlap with the prediction, not with the truth.
# - Refinement is an option with a price; the log shows the price and the evaluation shows both outputs.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/06_refinement.py) say why.
#
# ### Exercise 6.1: A gate of your own
#
# Four sequences, four maps of one region; some went astray. Give each map one number between 0 and 1, from the
# prediction and the maps alone, so that their weighted mean is closer to the truth than their even mean. **Predict
# first:** what will your gate do where the prediction itself is in the wrong place?


# %%
# Exercise 6.1
def my_gate(p, s):
    """Trust in each map, float [M] in [0, 1]; p [X, Y, Z] is the prediction, s [M, X, Y, Z] are SAM's maps."""
    return ...


# %%
with course.check("6.1"):
    grid = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij"))

    def ball(x, radius):
        return ((grid - torch.tensor([x, 12.0, 12.0]).view(3, 1, 1, 1)).square().sum(0) < radius**2).float()

    def soft_dice(a, b):
        return float(2 * (a * b).sum() / (a.sum() + b.sum()))

    lesion = ball(9, 5)
    maps_of = torch.stack([ball(9, 5), ball(17, 5), torch.ones_like(lesion), torch.zeros_like(lesion)])
    scores = {}
    for where, p in (("right", 0.8 * ball(10, 5)), ("wrong", 0.8 * ball(17, 5))):
        g = my_gate(p, maps_of)
        assert tuple(g.shape) == (4,), f"one number a map, found {list(g.shape)}"
        assert ((g >= 0) & (g <= 1)).all(), "trust lies between 0 and 1"
        weighted = (g.view(4, 1, 1, 1) * maps_of).sum(0) / g.sum().clamp_min(1e-6)
        scores[where] = (soft_dice(weighted, lesion), soft_dice(maps_of.mean(0), lesion))
        assert torch.allclose(my_gate(p, maps_of.flip(0)), g.flip(0)), (
            "look at the maps, not at their places in the row"
        )
    assert scores["right"][0] > scores["right"][1] + 0.1, "no better than to trust all maps alike"
    for where, (gated, even) in scores.items():
        print(f"prediction in the {where} place: soft Dice {gated:.2f} gated, {even:.2f} evenly")

# %% [markdown]
# ### Exercise 6.2: Is it a gain?
#
# You have the change of Dice of every case, in points. Say "not shown" if the interval of `bootstrap_mean` holds 0: a
# mean near 0 hangs on one case or another always. Else say "one case" if the mean hangs on a single one, so that
# without the case that changed most it has another sign or less than half its size; else "gain" or "loss". **Predict
# first:** what will it say of a method that helps one case in ten by 20 points and the others by half a point?


# %%
# Exercise 6.2
def verdict(changes):
    """ "one case", "gain", "loss" or "not shown", from an array of the cases' changes in points."""
    return ...


# %%
with course.check("6.2"):
    steady, noisy = np.linspace(0.5, 2.5, 12), np.tile([2.0, -1.0], 10)
    expected = {"gain": steady, "loss": -steady, "not shown": noisy, "one case": np.r_[20.0, np.full(9, 0.5)]}
    for word, changes in expected.items():
        found = verdict(changes)
        assert found in expected, f"the answer is one of {', '.join(expected)}, not {found!r}"
        assert found == word, f"{np.round(changes[:7], 1).tolist()} ... is {word!r}, not {found!r}"
    assert verdict(-expected["one case"]) == "one case", "the case that changed most may have lost"
    print(f"of a method that helps one case in ten by 20 points: {verdict(expected['one case'])!r}")

# %% [markdown]
# ### Exercise 6.3: Catch a gate that looks at the truth
#
# A gate that has seen the truth works splendidly until there is none: the network then meets, at test time, a gate it
# has never met. Write the test that finds out. You get a gate, its honest inputs, and one true mask; call it as often
# as you like. Four of the gates below cheat, each in its own way: which changes of the truth would leave each unmoved?


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
    ratio = sees_the_truth(lambda p, s, truth: s * s.mean() / (truth.mean() + 1e-7), p, s, truth)
    overlap = sees_the_truth(lambda p, s, truth: 2 * (s * truth).sum() / (s.sum() + truth.sum()), p, s, truth)
    counts = sees_the_truth(lambda p, s, truth: p * (truth.sum() > 20), p, s, truth)
    inside = sees_the_truth(lambda p, s, truth: s + truth[3, 3, 3], p, s, truth)
    assert honest in (True, False), "the answer is True or False"
    assert not honest, "the first gate knows p and s only"
    assert overlap, "this one weighs SAM's answer by its overlap with the truth"
    assert counts, "this one knows how large the truth is: try truths of other sizes"
    assert ratio, "this one weighs SAM's answer by its size over that of the truth, as public code does"
    assert inside, "this one knows the truth at one voxel"

# %% [markdown]
# ## Read next
#
# **Next:** [7. Training and ablation](07_training_and_ablation.ipynb).
