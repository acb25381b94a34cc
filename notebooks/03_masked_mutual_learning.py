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
# # 3. Masked mutual learning: two students, two masks
#
# **Question.** What can two networks teach each other when each sees different sequences of the same brain?
#
# After this notebook you can
# - say what each branch is given, and what a case with a single sequence does;
# - compute both constraints by hand for a toy and match the package;
# - list what a training step adds up, and when each term switches on;
# - read a map of who teaches where, and say what the size of a window does to it.
#
# A minute or two on two CPU cores. From [notebook 2](02_missing_modalities.ipynb) it needs what a
# student is and how a mask acts on it. All images are **simulated**.
#
# **How we read the paper.** The loss functions are missing from the authors' public code: names and signatures are
# there, bodies are not. The gate of the pixel loss and the form of the feature loss below are this project's reading
# ([docs/METHOD.md](../docs/METHOD.md)).

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from smml import course, figures
from smml.data import read_case
from smml.data.dataset import CohortDataset, draw_masks
from smml.inference import Predictor
from smml.losses import pixel_consistency
from smml.modalities import mask_subset, subset_mask, subset_name
from smml.models import SMML
from smml.models.checkpoint import load_checkpoint
from smml.training import TrainingConfig, train
from smml.training.config import consistency_ramp
from smml.training.objective import objective
from smml_kernels import relation_loss

figures.use_theme()
torch.manual_seed(0)
print("cohort, runs and results go to the folder", course.build_folder().name)

# %% [markdown]
# ## Two different masks per sample
#
# Every training sample draws two *different* subsets, one for each branch, uniformly and without replacement from the
# subsets of what the case has: 15 if it has all four sequences, three if it has two. Both branches see the same patch,
# turned and flipped alike. A case with one sequence has one subset, so both branches get it. They still differ in their
# weights, and exchange what these make of it.

# %%
files = course.training_cohort(course.size(full=12, fast=4))
dataset = CohortDataset(files, patch=32, samples=8, seed=0)
for i in range(4):
    first, second = dataset[i]["masks"]
    names = [subset_name(mask_subset(mask)) for mask in (first, second)]
    print(f"sample {i}: branch 1 gets {names[0]:18s} branch 2 gets {names[1]}")
    assert not torch.equal(first, second)
first, second = draw_masks(subset_mask("t1"), np.random.default_rng(0))
assert torch.equal(first, second)
print(f"a case with T1 alone: both get {subset_name(mask_subset(first))}")

# %% [markdown]
# ## Pixel level: the better branch teaches, one way
#
# Let $c_b(v) = -\log p_b(y_v)$ be the error of branch $b$ at voxel $v$. Where $c_1(v) < c_2(v)$, branch 1 teaches
# branch 2:
# $$L_{1\to2} = \frac{\sum_v g(v)\,\mathrm{KL}\bigl(\mathrm{sg}[p_1]\,\|\,p_2\bigr)}{\sum_v g(v)},\qquad
#   g(v) = w_{y_v}\,[c_1(v) < c_2(v)].$$
# KL is the Kullback-Leibler divergence, $\mathrm{KL}(p\,\|\,q) = \sum_k p_k \log(p_k/q_k)$: 0 where both agree. What
# passes is the teacher's whole class distribution at that voxel. The divergence has the teacher in front, and
# $\mathrm{sg}$ stops the gradient: the learner moves, the teacher does not. **A tie** ($c_1 = c_2$) teaches nobody and
# leaves the mean; if no voxel is left, the loss is 0. Every voxel counts alike, $w = 1$, unless you say otherwise. Sums
# run over the batch. Four voxels and two classes by hand; the third is a tie:

# %%
y = torch.tensor([0, 0, 0, 1])
z1, z2 = torch.tensor([[2.0, 0, 1, 0], [0, 1, 0, 3]]), torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 0]])
p1, p2 = z1.softmax(0), z2.softmax(0)
c1, c2 = -p1.gather(0, y[None]).log()[0], -p2.gather(0, y[None]).log()[0]
g = (c1 < c2).float()
mine = (g * (p1 * (p1 / p2).log()).sum(0)).sum() / g.sum()
shape = (1, 2, 4, 1, 1)
theirs = pixel_consistency(z1.view(shape), z2.view(shape), y.view(1, 4, 1, 1))
assert torch.allclose(mine, theirs[0])
for name, gate in (("1 teaches 2", c1 < c2), ("2 teaches 1", c2 < c1), ("nobody teaches", c1 == c2)):
    print(f"{name} at voxels {gate.nonzero()[:, 0].tolist()}")
print(f"L(1→2) = {mine:.3f}, L(2→1) = {theirs[1]:.3f}")

# %% [markdown]
# ## Feature level: relations agree, features need not
#
# Two branches that see different sequences should not have equal features. But if branch 1 finds two places alike (of
# one brain or of two), branch 2 should too. A *token* is the feature vector of one place of the bottleneck. With the
# $N$ tokens of branch $b$ as the rows of $F_b$, $G_b = F_b F_b^\top$ holds all pairwise similarities; with its rows
# divided by their length,
# $$L_{rel} = \sum_i w_i\,\bigl\|\hat g^{\,1}_i - \hat g^{\,2}_i\bigr\|^2 ,$$
# with weights $w_i$ of sum 1, here $1/N$. Six tokens, a 6 × 6 matrix:

# %%
f1, f2 = torch.randn(6, 3), torch.randn(6, 3)
rows = [torch.nn.functional.normalize(f @ f.T, dim=1) for f in (f1, f2)]
mine = ((rows[0] - rows[1]) ** 2).sum(dim=1).mean()
assert torch.allclose(mine, relation_loss(f1, f2), atol=1e-6)
rotation = torch.linalg.qr(torch.randn(3, 3)).Q
print(f"L_rel of two random sets {mine:.3f}; of a set and its rotated, scaled copy "
      f"{relation_loss(f1, 2.5 * f1 @ rotation):.1e}")  # fmt: skip
assert relation_loss(f1, 2.5 * f1 @ rotation) < 1e-6

# %% [markdown]
# $L_{cls}$ does the same for the mean features of the *classes*, and $L_{fc} = L_{rel} + L_{cls}$. It is symmetric:
# both branches move. Notebook 4 derives both terms.
#
# ## What a step adds up, and when
#
# One sum, one backward, one step for both branches:
# $$L = L_1 + L_2 + S_1 + S_2 + L_{fc} + r(t)\,\bigl(L_{1\to2} + L_{2\to1} + \mathrm{KL}_1 + \mathrm{KL}_2\bigr).$$
# $L_b$ judges every head of student $b$ by the truth, each with cross-entropy plus Dice: the *fused* output, the shared
# decoder on each of 4 sequences alone, and deep supervision at 4 coarser levels. That is 9 heads a branch. With
# refinement ([notebook 6](06_refinement.ipynb)), $S_b$ judges a tenth head, the refined output, and $\mathrm{KL}_b$
# carries what it found back to the student. On noise:

# %%
plan, ones = TrainingConfig(steps=1000), torch.ones(1, 4, dtype=torch.bool)
image, label = torch.randn(1, 4, 32, 32, 32), torch.randint(0, 4, (1, 32, 32, 32))
masks = torch.stack([subset_mask("flair+t1"), subset_mask("t1ce")])[:, None]  # [2 branches, B = 1, M]
with torch.no_grad():
    output = SMML("tiny")(image, masks, ones)
heads = [1 + len(branch.separate) + len(branch.deep) for branch in output.branches]
ramp = [consistency_ramp(plan, step) for step in range(plan.steps)]
off, full = ramp.count(0.0), ramp.index(1.0)
table = {
    f"L_1, L_2: {heads[0]} and {heads[1]} heads against the truth": "the first step",
    "L_fc = L_rel + L_cls": "the first step: it copies no answers",
    "L_1→2, L_2→1": f"{off / plan.steps:.0%} of the training, at full weight from {full / plan.steps:.0%}",
    "S_1, S_2 (with refinement)": f"{plan.refinement_start:.0%}, when SAM's priors are made",
    "KL_1, KL_2 (with refinement)": f"{plan.refinement_start:.0%} too, times r(t), which is 1 by then",
}
pd.DataFrame(table.items(), columns=["term", "counts from"]).set_index("term")

# %% [markdown]
# Copying waits, since at first neither branch's answers are worth it.
#
# ## Training, live
#
# Random weights, no refinement, and far too few steps for a good model. Below the curves: how large each part of the
# total is at the end.

# %%
steps = course.size(full=40, fast=4)
config = TrainingConfig(preset="tiny", steps=steps, seed=0)
run = course.build_folder() / f"run-{steps}-steps"
result = train(files, run, config, resume=True)
figures.curves_figure(run)

# %%
log = pd.read_csv(run / "log.csv")
tenth = max(1, steps // 10)
start, end = log.head(tenth).mean(), log.tail(tenth).mean()
parts = {"fused": "fuse", "each sequence alone": "separate", "deep supervision": "deep"}
sums = {name: end[f"{part}_1"] + end[f"{part}_2"] for name, part in parts.items()}
sums |= {"L_fc": end["relation"] + end["classes"], "L_1→2 + L_2→1": end["teach_12"] + end["teach_21"]}
lines = [f"| {name} | {value:.2f} | {100 * value / end['total']:.0f} % |" for name, value in sums.items()]
text = f"The total went from {start['total']:.1f} to {end['total']:.1f}. It is so much larger than the loss of one "
text += f"fused head ({end['fuse_1']:.2f} and {end['fuse_2']:.2f}) because {sum(heads)} heads are judged. What the "
text += f"branches exchange is {(sums['L_fc'] + sums['L_1→2 + L_2→1']) / end['total']:.0%} of it.\n\n"
Markdown(text + "| both branches | at the end | of the total |\n|---|---:|---:|\n" + "\n".join(lines))

# %% [markdown]
# ## One sample through every loss
#
# What the last step of that run would make of one sample: its sequences under the two masks, and every term with its
# value, its weight and their product. The products add up to the total, or the figure refuses to be drawn. More than
# half of the total is supervised, as the cell asserts, because a branch has nine heads.

# %%
model = load_checkpoint(result.checkpoint).build().train()
sample = CohortDataset(files, patch=config.patch, samples=1, seed=config.seed)[0]
with torch.no_grad():
    output = model(sample["image"][None], sample["masks"][:, None], sample["available"][None])
loss = objective(output, sample["label"][None], config, step=steps - 1)
supervised = sum(float(loss.terms[f"{part}_{branch}"]) for part in parts.values() for branch in (1, 2))
assert supervised > float(loss.total) / 2
figures.sample_figure(sample, loss, config, steps - 1, files[0].scheme)

# %% [markdown]
# ## Windows: how large a piece a student may see
#
# A volume is segmented in overlapping windows. Instance norm takes its mean and variance *from the window*, so the
# window is part of the input: one that holds the whole head and the empty space round it has other statistics than the
# patches of the training, which lie in the brain. The trained students (`"tiny"`, patches of 48) on a simulated case
# that neither has seen, all sequences given:

# %%
cases = [read_case(file) for file in course.held_out_cohort(course.size(full=6, fast=2))]
case = max(cases, key=lambda case: int((case.label == 3).sum()))
truth, rows = case.label > 0, []
for window in (96, 64, 48)[:: course.size(full=1, fast=2)]:
    predictor = Predictor.from_checkpoint("tiny", window=window)
    encoding = predictor.encode(case)
    said = predictor.segment(encoding).labels > 0
    filled = encoding.prepared.brain.any(dim=0)
    share = max(float(encoding.plan.pad(filled)[place].float().mean()) for place in encoding.plan.places)
    rows.append({"window": f"{window}³", "brain in the fullest window": f"{100 * share:.0f} %",
                 "WT, predicted / true volume": said.sum() / truth.sum(),
                 "Dice of WT": 2 * (said & truth).sum() / (said.sum() + truth.sum())})  # fmt: skip
table = pd.DataFrame(rows).set_index("window").round(2)
display(table)
volumes = table["WT, predicted / true volume"]
Markdown(f"From the largest to the smallest window the predicted volume goes from {volumes.iloc[0]:.2f} to "
         f"{volumes.iloc[-1]:.2f} times the true one.")  # fmt: skip

# %% [markdown]
# One case does not tell which size is best; notebook 5 compares them over several. In the study at 4 mm windows of 48³
# instead of 32³ made the whole tumour of (b), two students without exchange, 1.55 instead of 1.10 times its size
# ([findings](../results/study/cpu/findings.md), "Windows"). The default of `Predictor` is the size of the training's
# patches, which the maps below take too.
#
# ## Who is to be believed where
#
# Branch 1 is given one sequence, branch 2 another, and the colour is $c_2 - c_1$: blue where branch 1 has the lower
# error and would teach, orange where branch 2 would. (Natural logarithms: the unit is the nat.)


# %%
def who_teaches(encoding):
    """c2 - c1 in nats at every voxel, [D, H, W], when branch 1 sees FLAIR and 2 T1ce, and when 1 sees T2 and 2 T1."""
    label, errors = encoding.prepared.label.long()[None], {}
    for branch, name in enumerate(("flair", "t1ce", "t2", "t1")):
        p = predictor.coarse(encoding, subset_mask(name))[branch % 2]
        errors[name] = -p.gather(0, label)[0].clamp_min(1e-6).log().numpy()
    return {"1: FLAIR, 2: T1ce": errors["t1ce"] - errors["flair"], "1: T2, 2: T1": errors["t1"] - errors["t2"]}


# Predictor and encoding are those of the last, smallest window.
label, brain = (t.numpy() for t in (encoding.prepared.label, encoding.prepared.brain.any(dim=0)))
figures.map_figure(
    who_teaches(encoding), label, brain, z=figures.widest_slice(label), limit=2.0,
    unit="c₂ − c₁, nats; 2 and more in full colour",
    title="Who would teach (lines: whole tumour; dotted: enhancing)", size=330,
)  # fmt: skip

# %% [markdown]
# One tumour may be an exception, so we count the voxels of all held-out cases:

# %%
rows = []
for each in cases:
    encoding = predictor.encode(each)
    label = encoding.prepared.label.numpy()
    for title, gain in who_teaches(encoding).items():
        for k, name in enumerate(each.scheme.classes):
            inside = gain[label == k]  # 0 is a tie, where nobody teaches
            rows.append((title, name, len(inside), (inside > 0).sum(), (inside < 0).sum()))
table = pd.DataFrame(rows, columns=["branches", "class", "voxels", "1 teaches 2", "2 teaches 1"])
counts = table.groupby(["branches", "class"], sort=False).sum()
shares = counts[["1 teaches 2", "2 teaches 1"]].div(counts["voxels"], axis=0)
display((100 * shares).round().astype(int).rename_axis(["in % of the voxels of", ""]))
for title in shares.index.levels[0]:
    own = shares.loc[title]
    name = (own["1 teaches 2"] - own["2 teaches 1"]).abs().idxmax()
    said = ", ".join(f"{words} at {share:.0%} of the voxels" for words, share in own.loc[name].items())
    print(f"{title}. Most one-sided in {name}: {said}")
t1ce, t1 = (shares.loc[title]["2 teaches 1"] for title in ("1: FLAIR, 2: T1ce", "1: T2, 2: T1"))
assert t1ce["ET"] > 0.5 > t1ce["ED"]
assert abs(t1["ET"] - 0.5) < abs(t1ce["ET"] - 0.5)

# %% [markdown]
# Against FLAIR, T1ce teaches in most of ET and FLAIR in most of ED, as the cell asserts: that is physics (notebook 1).
# T1 and T2 do not show ET, so neither has much of an advantage in it.
#
# ## Key points
#
# - The branches differ in what they see and in their weights, not in their architecture.
# - Pixel level: the branch that is nearer the truth at a voxel teaches the other there, one way; a tie teaches nobody.
# - Feature level: similarities between places and between classes must agree; features themselves need not.
# - Heads against the truth and $L_{fc}$ count from the first step, copying from a tenth, refinement from half-way.
# - Instance norm makes a window part of the input: another size calls another volume, so it belongs beside a score.
# - Whether the exchange helps, and how much of the gain is that of averaging two networks, is the question of
#   notebook 7. Nothing on this page answers it.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/03_masked_mutual_learning.py) say
# why.
#
# ### Exercise 3.1: Which way round is the divergence?
#
# $\mathrm{KL}(p\,\|\,q) = \sum_k p_k \log (p_k / q_k)$ is not symmetric. With the teacher in front, the learner pays
# wherever the teacher sees a class and it does not. Only the learner may move.


# %%
# Exercise 3.1
def divergence(teacher, learner):
    """KL(teacher || learner) per voxel, from logits [K, V] each -> [V]; no gradient reaches the teacher."""
    return ...


# %%
with course.check("3.1"):
    teacher = torch.tensor([[3.0, 0, 0], [0, 0, 1]], requires_grad=True)
    learner = torch.tensor([[0.0, 0, 2], [0, 0, 0]], requires_grad=True)
    mine = divergence(teacher, learner)
    ways = [torch.nn.functional.kl_div(b.log_softmax(0), a.log_softmax(0), reduction="none", log_target=True).sum(0)
            for a, b in ((teacher, learner), (learner, teacher))]  # fmt: skip
    assert mine.shape == (3,), "one number a voxel: sum over the classes"
    assert not torch.allclose(mine, ways[1], atol=1e-5), "this is KL(learner || teacher)"
    assert torch.allclose(mine, ways[0], atol=1e-5), "compare with the sum above, and remember the softmax"
    mine.sum().backward()
    assert learner.grad.any(), "the learner does not learn"
    assert teacher.grad is None or not teacher.grad.any(), "the teacher moves: stop its gradient"

# %% [markdown]
# ### Exercise 3.2: Three students
#
# Change the method: any number of branches. At a voxel the branch with the lowest error teaches all that err more. What
# becomes of a voxel where two branches share the lowest error? Decide so that with two branches nothing changes.


# %%
# Exercise 3.2
def gates_of_many(errors):
    """g [A, A, V] from the errors [A, V] of A branches: g[a, b, v] is 1 where a teaches b at voxel v, else 0."""
    return ...


# %%
with course.check("3.2"):
    errors = torch.tensor([[0.1, 0.7, 0.5, 0.3], [0.4, 0.7, 0.2, 0.3], [0.9, 0.7, 0.8, 0.6]])
    two, three = gates_of_many(errors[:2]), gates_of_many(errors)
    assert three.shape == (3, 3, 4), "one gate for each teacher, learner and voxel"
    assert torch.equal(two[0, 1].bool(), errors[0] < errors[1]), "with two branches: 1 teaches 2 where it errs less"
    assert torch.equal(two[1, 0].bool(), errors[1] < errors[0]), "with two branches: 2 teaches 1 where it errs less"
    assert not three[..., 1].any(), "voxel 1 is a tie of all three: nobody teaches"
    assert three[0, 1:, 0].all(), "voxel 0: branch 0 teaches both others"
    assert three.sum(dim=(0, 1))[2] == 2, "voxel 2: the best alone teaches, though another is better than the third"
    assert not three[:2, :2, 3].any(), "voxel 3: the two that share the lowest error do not teach each other"

# %% [markdown]
# ### Exercise 3.3: Predict before you run
#
# A training of 1000 steps with the default schedule and *without* refinement. Which columns of its log are exactly 0 at
# steps 50, 150 and 600? Choose from `fuse_1`, `separate_1`, `deep_1`, `teach_12`, `relation`, `classes` and `refine_1`.


# %%
# Exercise 3.3
def silent(step):
    """The set of names among the seven that are 0 at this step."""
    return ...


# %%
with course.check("3.3"):
    names = {"fuse_1", "separate_1", "deep_1", "teach_12", "relation", "classes", "refine_1"}
    torch.manual_seed(0)
    image, label = torch.randn(1, 4, 32, 32, 32), torch.randint(0, 4, (1, 32, 32, 32))
    masks = torch.stack([subset_mask("flair+t1"), subset_mask("t1ce")])[:, None]
    with torch.no_grad():
        output = SMML("tiny")(image, masks, torch.ones(1, 4, dtype=torch.bool))
        for step in (50, 150, 600):
            terms = objective(output, label, TrainingConfig(steps=1000), step).terms
            truly = {name for name in names if float(terms[name]) == 0}
            said = set(silent(step))
            assert said == truly, f"step {step}: look again at {', '.join(sorted(said ^ truly))}"

# %% [markdown]
# ## Read next
#
# **Next:** [4. Hierarchical consistency](04_hierarchical_consistency.ipynb).
