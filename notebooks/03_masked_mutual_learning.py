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
# - say what each branch is given, and what is exchanged at pixel level and at feature level;
# - compute both constraints by hand for a toy and match the package;
# - train the two students and read the curves;
# - see on a map which branch is to be believed where.
#
# Two to three minutes on two CPU cores, 2 GB of memory. From [notebook 2](02_missing_modalities.ipynb) it needs what a
# student is and how a mask acts on it. All images are **simulated**.
#
# **How we read the paper.** The loss functions are missing from the authors' public code. Their names and signatures
# are there, their bodies are not: the gate of the pixel loss and the exact form of the feature loss below are this
# project's reading, stated as such. The package lets you switch the gate.

# %%
import numpy as np
import pandas as pd
import torch

from smml import course, figures
from smml.data import read_case
from smml.data.dataset import CohortDataset
from smml.data.preprocessing import prepare
from smml.inference.windows import plan_windows
from smml.losses import feature_consistency, pixel_consistency
from smml.modalities import mask_subset, subset_mask, subset_name
from smml.models.checkpoint import load_checkpoint
from smml.training import TrainingConfig, train
from smml.training.objective import objective
from smml_kernels import relation_loss

figures.use_theme()
torch.manual_seed(0)
print("cohort, runs and results go to the folder", course.build_folder().name)

# %%
files = course.training_cohort(course.size(full=16, fast=4))

# %% [markdown]
# ## Two different masks per sample
#
# Every training sample draws two different subsets of the 15, one for each branch. Both branches see the same patch,
# turned and flipped alike.

# %%
dataset = CohortDataset(files, patch=32, samples=8, seed=0)
for i in range(6):
    first, second = dataset[i]["masks"]
    names = [subset_name(mask_subset(mask)) for mask in (first, second)]
    print(f"sample {i}: branch 1 gets {names[0]:18s} branch 2 gets {names[1]}")
    assert not torch.equal(first, second)

# %% [markdown]
# ## Pixel level: reliable knowledge is exchanged
#
# Let $c_b(v) = -\log p_b(y_v)$ be branch $b$'s error at voxel $v$. Where $c_1(v) < c_2(v)$, branch 1 teaches branch 2:
# $$L_{1\to2} = \frac{\sum_v g(v)\,\mathrm{KL}\bigl(\mathrm{sg}[p_1]\,\|\,p_2\bigr)}{\sum_v g(v)},\qquad
#   g(v) = w_{y_v}\,[c_1(v) < c_2(v)],$$
# with $w_k = \max(w_{min},\,1 - n_k/n)$; $\mathrm{sg}$ stops the gradient: the teacher does not move. Here
# $w_{min} = 0$, so that a rare class weighs more, our first reading; in training it is 1, so that every voxel counts
# alike (notebook 4 shows why).
# What is exchanged is the teacher's whole class distribution at that voxel. The comparison is strict: where both err
# alike, nobody teaches, and the voxel leaves the mean; if no voxel is left, the loss is 0. Sums run over the batch.
# Four voxels and two classes, by hand:

# %%
y = torch.tensor([0, 0, 0, 1])
z1, z2 = torch.tensor([[2.0, 0, 1, 0], [0, 1, 0, 3]]), torch.tensor([[1.0, 1, 0, 0], [0, 0, 2, 0]])
p1, p2 = z1.softmax(0), z2.softmax(0)
c1, c2 = -p1.gather(0, y[None]).log()[0], -p2.gather(0, y[None]).log()[0]
w = 1 - torch.bincount(y) / len(y)
g = w[y] * (c1 < c2)
mine = (g * (p1 * (p1 / p2).log()).sum(0)).sum() / g.sum()
shape = (1, 2, 4, 1, 1)
theirs = pixel_consistency(z1.view(shape), z2.view(shape), y.view(1, 4, 1, 1))
assert torch.allclose(mine, theirs[0])
print(
    "branch 1 teaches at voxels", (c1 < c2).nonzero()[:, 0].tolist(), f"L(1→2) = {mine:.3f}, L(2→1) = {theirs[1]:.3f}"
)

# %% [markdown]
# ## Feature level: relations agree, features need not
#
# Two branches that see different sequences should not have equal features. But if branch 1 finds two places (of one
# brain or of two) alike, branch 2 should too. $G_b = F_b F_b^\top$ holds all pairwise similarities of the $N$ tokens;
# with its rows divided by their length,
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
# A rotation of all features costs nothing: only relations count. The same idea between *classes* compares the cosine
# similarities of class prototypes (`L_cls`). $G$ need not be built at all: a $C \times C$ form gives the same loss, and
# notebooks 4 and 5 are about that. Both parts on random bottlenecks, with $w$ from the predictions' entropy:

# %%
bottlenecks = [torch.randn(2, 16, 2, 2, 2) for _ in range(2)]
logits = [torch.randn(2, 4, 32, 32, 32) for _ in range(2)]
terms = feature_consistency(*bottlenecks, *logits, torch.randint(0, 4, (2, 32, 32, 32)))
print(f"L_rel {terms.relation:.3f}  L_cls {terms.classes:.3f}  L_fc {terms.total:.3f}")

# %% [markdown]
# ## Training, live
#
# One sum, one backward, one step for both branches:
# $$L = L_1 + L_2 + L_{fc} + r(t)\,(L_{1\to2} + L_{2\to1}).$$
# $r(t)$ is 0 for the first tenth: at first neither branch's class probabilities are worth copying. ($L_{fc}$ asks for
# agreement from the start: it copies no answers.) This run is far too short for a good model; it is here to be watched.

# %%
steps = course.size(full=70, fast=4)
config = TrainingConfig(preset="tiny", steps=steps, seed=0)
run = course.build_folder() / f"run-{steps}-steps"
result = train(files, run, config, resume=True)
log = pd.read_csv(run / "log.csv")
figures.curves_figure(run)

# %%
tenth = max(1, steps // 10)
first, last = log["total"].head(tenth).mean(), log["total"].tail(tenth).mean()
print(f"total loss over the first {tenth} steps {first:.2f}, over the last {tenth} {last:.2f}")
print(f"{log['seconds'].median():.2f} s a step (median)")

# %% [markdown]
# ## One sample through every loss
#
# What the last step of that run would make of one sample: its sequences under the two masks, and every term with its
# value, its weight and their product. The products add up to the total, or the figure refuses to be drawn. Most of the
# total is supervised, because a branch has nine heads, each with a loss about as large as that of the fused one.

# %%
model = load_checkpoint(result.checkpoint).build().train()
sample = CohortDataset(files, patch=config.patch, samples=1, seed=config.seed)[0]
with torch.no_grad():
    output = model(sample["image"][None], sample["masks"][:, None], sample["available"][None])
loss = objective(output, sample["label"][None], config, step=steps - 1)
figures.sample_figure(sample, loss, config, steps - 1, files[0].scheme)

# %% [markdown]
# ## Who is to be believed where
#
# Now with trained students (`"tiny"`): branch 1 gets FLAIR only, branch 2 gets T1ce only, on a simulated case that
# neither has seen. Blue where branch 1 has the lower error and would teach, orange where branch 2 would.

# %%
cases = [read_case(file) for file in course.held_out_cohort(course.size(full=6, fast=2))]
case = max(cases, key=lambda case: int((case.label == 3).sum()))
prepared = prepare(case)
plan = plan_windows(tuple(prepared.image.shape[1:]), window=96)
students = load_checkpoint("tiny").build().branches
errors = []
for student, subset in zip(students, ("flair", "t1ce"), strict=True):
    with torch.inference_mode():
        output = student(plan.pad(prepared.image)[None], subset_mask(subset)[None])
    probabilities = plan.crop(output.logits.softmax(dim=1))[0]
    errors.append(-probabilities.gather(0, prepared.label[None].long())[0].clamp_min(1e-6).log().numpy())

# %%
gain = errors[1] - errors[0]  # positive: branch 1 errs less
z = figures.widest_slice(prepared.label.numpy())
volume = figures.to_canonical(case.volumes["flair"], case.affine)
labels = figures.to_canonical(case.label, case.affine)
figures.panels(
    {
        "truth": figures.axial_picture(volume, z, labels, case.scheme),
        "branch 1 (FLAIR) teaches": figures.heat_picture(volume, z, np.clip(gain, 0, 2) / 2, "#0072B2"),
        "branch 2 (T1ce) teaches": figures.heat_picture(volume, z, np.clip(-gain, 0, 2) / 2, "#D55E00"),
    },
    title="Reliable knowledge, by lower cross-entropy",
    size=280,
)

# %%
for value, name in enumerate(case.scheme.classes):
    inside = prepared.label.numpy() == value
    if inside.any():
        print(f"{name:10s} branch 1 (FLAIR) errs less in {100 * (gain[inside] > 0).mean():3.0f} % of its voxels")

# %% [markdown]
# ## Key points
#
# - The branches differ in what they see, not in what they are; each knows something that the other does not.
# - Pixel level: the branch that is nearer the truth at a voxel teaches the other there, one way.
# - Feature level: similarities between places and between classes must agree; features themselves need not.
# - Whether this helps, and how much of the gain is only that of averaging two networks, is what the ablation asks
#   (notebook 7). Nothing on this page answers it.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/03_masked_mutual_learning.py) say
# why.
#
# ### Exercise 3.1: Who teaches where?
#
# From the errors $c_1, c_2$ of the two branches and the class weight $w$ of each voxel, make the two gates
# $g_{1\to2}$ and $g_{2\to1}$. Who should teach where both err alike? If nobody has an advantage, an exchange could
# only make the two more alike, so here nobody teaches.


# %%
# Exercise 3.1
def gates(c1, c2, w):
    """(g of 1 -> 2, g of 2 -> 1), each [V], from the errors c1, c2 and the weights w, all [V]."""
    return ...


# %%
with course.check("3.1"):
    c1, c2 = torch.tensor([0.1, 2.0, 0.7, 0.7]), torch.tensor([0.5, 0.3, 0.7, 0.9])
    w = torch.tensor([0.25, 0.75, 0.75, 0.25])
    g12, g21 = gates(c1, c2, w)
    assert not ((g12 > 0) & (g21 > 0)).any(), "at one voxel knowledge goes one way only"
    assert not (g12 + g21)[2], "voxel 2 is a tie: nobody teaches"
    assert min(g12[0], g21[1]) > 0, "the branch with the *lower* error teaches"
    assert torch.equal(g12, torch.tensor([0.25, 0, 0, 0.25])), "a voxel counts as much as its class weighs"
    same = torch.randn(1, 4, 2, 2, 2)
    assert not any(pixel_consistency(same, same, torch.zeros(1, 2, 2, 2, dtype=torch.int64))), "as in the package"

# %% [markdown]
# ### Exercise 3.2: Which way round is the divergence?
#
# $\mathrm{KL}(p\,\|\,q) = \sum_k p_k \log (p_k / q_k)$ is not symmetric. With the teacher in front, the learner pays
# wherever the teacher sees a class and it does not. Only the learner may move.


# %%
# Exercise 3.2
def divergence(teacher, learner):
    """KL(teacher || learner) per voxel, from logits [K, V] each -> [V]; no gradient reaches the teacher."""
    return ...


# %%
with course.check("3.2"):
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
# ### Exercise 3.3: What does the feature level not ask for?
#
# Two branches see different sequences, and nobody wants their features to be equal. Find features that *differ* from
# `f`, by more than a common factor, and cost nothing under $L_{rel}$.


# %%
# Exercise 3.3
def other_features(f):
    """Features [N, C] with the relations of f [N, C], but not f nor a multiple of it."""
    return ...


# %%
with course.check("3.3"):
    torch.manual_seed(3)
    f = torch.randn(6, 4)
    other = other_features(f)
    assert other.shape == f.shape, "the same number of tokens and channels"
    along = torch.nn.functional.cosine_similarity(f.flatten(), other.flatten(), dim=0)
    assert abs(along) < 0.999, "that is f again, up to a factor"
    cost = float(relation_loss(f, other))
    assert cost < 1e-6, f"these relate differently: L_rel is {cost:.3f}. Which changes keep all products f_i . f_j?"

# %% [markdown]
# ## Read next
#
# **Next:** [4. Hierarchical consistency](04_hierarchical_consistency.ipynb).
