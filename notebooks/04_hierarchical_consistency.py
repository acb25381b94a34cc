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
# # 4. Hierarchical consistency: what is exchanged, term by term
#
# **Question.** What exactly do two students exchange, and what does each term do to the features?
#
# After this notebook you can
# - say for any voxel who teaches whom under each gate, and why some gates fail;
# - derive the linear form of the relation loss, and say when it is not worth it;
# - compute token weights, class prototypes and `L_cls` by hand.
#
# A minute or two on two CPU cores. From [notebook 3](03_masked_mutual_learning.ipynb) it needs what the two
# branches exchange. All images are **simulated**. Gates and forms are this project's reading of the paper
# ([docs/METHOD.md](../docs/METHOD.md)).

# %%
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display

from smml import course, figures
from smml.data import read_case
from smml.data.dataset import CohortDataset
from smml.inference import Predictor
from smml.losses import feature_consistency, pixel_consistency
from smml.losses.feature import token_weights
from smml.modalities import subset_mask
from smml.study import read_study
from smml_kernels import dice_ce_loss, relation_loss
from smml_kernels.benchmarks import floors
from smml_kernels.relation.reference import choose_form

figures.use_theme()
_ = torch.manual_seed(0)

# %% [markdown]
# ## Pixel level: one divergence, four gates
#
# Where branch $a$ teaches branch $b$, $b$ pays $\mathrm{KL}(\mathrm{sg}[p_a]\,\|\,p_b)$ and $a$ gets no gradient.
# Whether $a$ teaches, and how much the voxel counts, is the gate $g$:
# $$L_{a\to b} = \frac{\sum_v g(v)\,\mathrm{KL}\bigl(\mathrm{sg}[p_a(v)]\,\|\,p_b(v)\bigr)}{\sum_v g(v)},\qquad
#   0 \text{ where } \textstyle\sum_v g(v) = 0 .$$
#
# | gate | $g(v)$ for $a \to b$ | reading |
# |---|---|---|
# | `lower_ce` (default) | $w_{y_v}\,[c_a(v) < c_b(v)]$, $c = -\log p(y_v)$ | the one nearer the truth teaches |
# | `correct` | $w_{y_v}\,[\arg\max p_a(v) = y_v]$ | whoever is right teaches, be it both |
# | `entropy` | $\max(0, H_b(v) - H_a(v))$, $H = -\sum_k p_k\log p_k$ | the surer teaches; no truth needed |
# | `none` | $w_{y_v}$ | both teach everywhere |
#
# $w = 1$ by default. Five voxels of three classes, each with a point to make:


# %%
def gates_of(log_p1, log_p2, y):
    c1, c2 = (-log_p.gather(0, y[None])[0] for log_p in (log_p1, log_p2))
    h1, h2 = (-(log_p.exp() * log_p).sum(0) for log_p in (log_p1, log_p2))
    return {"lower_ce": ((c1 < c2).float(), (c2 < c1).float()),
            "correct": ((log_p1.argmax(0) == y).float(), (log_p2.argmax(0) == y).float()),
            "entropy": ((h2 - h1).relu(), (h1 - h2).relu()),
            "none": (torch.ones_like(c1), torch.ones_like(c1))}  # fmt: skip


y = torch.tensor([0, 1, 0, 1, 0])
z1 = torch.tensor([[2.0, 0, 1, 0, 9], [0, 1, 2, 0, 0], [0, 0, 0, 3, 0]])  # [K, V]
z2 = torch.tensor([[1.0, 0, 1, 0, 9], [0, 2, 0, 0, 0], [0, 0, 2, 1, 0]])
log_p1, log_p2, shape = z1.log_softmax(0), z2.log_softmax(0), (1, 3, 5, 1, 1)
kl12 = (log_p1.exp() * (log_p1 - log_p2)).sum(0)
arrows = {(True, False): "1 → 2", (False, True): "2 → 1", (True, True): "both ways", (False, False): "nobody"}
table = pd.DataFrame({"KL(1‖2)": [f"{v:.2f}" for v in kl12]})
for gate, (g12, g21) in gates_of(log_p1, log_p2, y).items():
    theirs = pixel_consistency(z1.view(shape), z2.view(shape), y.view(1, 5, 1, 1), gate=gate)
    assert torch.allclose((g12 * kl12).sum() / g12.sum(), theirs[0])
    table[gate] = [arrows[bool(a), bool(b)] for a, b in zip(g12 > 0, g21 > 0, strict=True)]
assert not any(pixel_consistency(z1.view(shape), z1.view(shape), y.view(1, 5, 1, 1)))  # ties everywhere: 0, not NaN
table.set_axis(["1 is nearer", "2 is nearer", "a tie", "both wrong, 1 surer", "certain and alike"])

# %% [markdown]
# **A tie teaches nobody**: in the third voxel both give the true class the same probability, and there is no reason to
# prefer either. In the fourth both are wrong. Branch 2 is less wrong and teaches under `lower_ce`; under `entropy`
# branch 1 teaches *because* it is surer.
#
# ## The gates on two trained students
#
# On a simulated case that they have not seen. Branch 1 is given FLAIR and T2, branch 2 T1ce alone. Windows have the
# size of the training patches: larger ones shift the norms (notebook 3).

# %%
files = course.held_out_cohort(course.size(full=6, fast=2))
case = max((read_case(file) for file in files), key=lambda case: int((case.label == 3).sum()))
predictor = Predictor.from_checkpoint("tiny")
encoding = predictor.encode(case)
label, brain = encoding.prepared.label.long(), encoding.prepared.brain.any(dim=0)
log_p1, log_p2 = (predictor.coarse(encoding, subset_mask(given))[branch].clamp_min(1e-9).log()
                  for branch, given in enumerate(("flair+t2", "t1ce")))  # fmt: skip
kl12, kl21 = ((a.exp() * (a - b)).sum(0) for a, b in ((log_p1, log_p2), (log_p2, log_p1)))
flat = gates_of(log_p1.flatten(1), log_p2.flatten(1), label.flatten())
taught = {gate: (g12.view_as(label), g21.view_as(label)) for gate, (g12, g21) in flat.items()}
z = figures.widest_slice(label.numpy())
# Over the mean weight in the brain, so that gates of different units share a scale.
nets = {gate: (g12 * kl12 / g12[brain].mean() - g21 * kl21 / g21[brain].mean()) for gate, (g12, g21) in taught.items()}
limit = float(nets["lower_ce"][:, :, z][brain[:, :, z]].abs().quantile(0.99))
figures.map_figure(
    {gate: net.numpy() for gate, net in nets.items()}, label.numpy(), brain.numpy(), z=z, limit=limit,
    unit="g × KL / mean g, nats", title="Blue: 1 (FLAIR + T2) teaches more. Orange: 2 (T1ce) does", size=225,
)  # fmt: skip

# %% [markdown]
# ## The gate that ruins a training
#
# `entropy` asks who is surer and never looks at the truth. A student that does not see the tumour is surer that there
# is none than one that sees it is of its border; so it teaches, the other calls less, and both become surer. A toy (two
# readers, of which one sees the tumour better: `course.train_two_readers`) beside the
# [committed study](../results/study/cpu/findings.md):

# %%
study = read_study(course.results_folder() / "study" / "cpu")
arms = {None: "pair", "lower_ce": "both-even"} | {gate: f"gate-{gate}" for gate in ("correct", "entropy", "none")}
rows = {
    gate or "no exchange": [
        course.train_two_readers(gate),
        study.volume_ratio(arm, "WT"),
        study.values(arm, "mean").to_numpy().mean(),
    ]
    for gate, arm in arms.items()
}
toy = {gate: row[0] for gate, row in rows.items()}
assert toy["entropy"] == 0 < min(toy[gate] for gate in ("lower_ce", "correct", "none"))  # as said below
assert max(toy, key=toy.get) == "no exchange"
columns = ["toy: volume", "study: WT volume", "study: mean Dice"]
pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(2).rename_axis("volumes: predicted / true")

# %% [markdown]
# In the toy every exchange lowers the volume: the reader who sees worse is often the less wrong one about a healthy
# voxel (exercise 4.1), and teaches that. `entropy` alone lowers it to nothing, here and with one seed of the study.
#
# ## Why class weights do not belong in a gate
#
# Our first reading weighted the gates by class, $w_k = 1 - n_k/n$, as cross-entropy is. But here $w$ meets a
# denominator, $\sum_v g(v)$, which background then hardly enlarges. With a small tumour this sum is small too, so each
# tumour voxel gets a large share of the loss. On patches of the training's size, what branch 2 teaches branch 1, and
# that *plus* the truth (the fused head's loss). A push is how far a step against the gradient raises the tumour
# classes' logits:

# %%
samples = CohortDataset(files, patch=32, samples=6, seed=1, augment=False)
image, target = (torch.stack([samples[i][name] for i in range(len(samples))]) for name in ("image", "label"))
masks = torch.stack([subset_mask("flair+t2"), subset_mask("t1ce")])[:, None].expand(2, len(image), 4)
with torch.no_grad():
    outputs = [student(image, mask) for student, mask in zip(predictor.model.branches, masks, strict=True)]
leaf, other = outputs[0].logits.requires_grad_(), outputs[1].logits
truth = torch.autograd.grad(dice_ce_loss(leaf, target, min_class_weight=0.05), leaf)[0]
lessons = {name: torch.autograd.grad(pixel_consistency(leaf, other, target, min_class_weight=w)[1], leaf)[0]
           for name, w in (("by class", 0.05), ("alike", 1.0))}  # fmt: skip
rows, inside = {}, target > 0
for name, gradient in ({"truth": truth} | lessons | {f"truth + {n}": truth + g for n, g in lessons.items()}).items():
    push = -gradient[:, 1:].sum(dim=1)
    rows[name] = [gradient.norm() / truth.norm(), push[inside].sum(), push[~inside].sum(), push.sum()]
columns = ["size / truth's", "push inside tumour", "outside", "in all"]
table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).astype(float)
display(table.round(3))
by_class, alike = table["in all"].iloc[3:]
volumes = [f"{study.volume_ratio(arm, 'WT'):.2f}" for arm in ("both", "both-even", "pair")]
Markdown(f"By class the lesson is {table.iloc[1, 0]:.1f} times as large as the truth, alike {table.iloc[2, 0]:.1f} "
         f"times. With the truth, by class ({by_class:+.3f}) calls {'more' if by_class > alike else 'less'} tumour "
         f"than alike ({alike:+.3f}), at this moment. Over whole trainings, in the study, the tumour had {volumes[0]} "
         f"times its true volume by class, {volumes[1]} alike, {volumes[2]} without exchange.")  # fmt: skip

# %% [markdown]
# ## Feature level: relations of tokens
#
# If token $i$ is like token $j$ in one branch, it should be in the other. The tokens of a batch are the rows of
# $F_b \in \mathbb{R}^{N\times C}$, every row $g_i$ of $G_b = F_b F_b^\top$ is divided by its length, and
# $L_{rel} = \sum_i w_i\,\|\hat g^{\,1}_i - \hat g^{\,2}_i\|^2$. Six tokens of two kinds; branch 2 has moved token 2 to
# the other kind:

# %%
torch.manual_seed(0)
kinds = torch.tensor([[2.0, 0, 0]] * 3 + [[0, 2.0, 0]] * 3)
f1 = kinds + 0.3 * torch.randn(6, 3)
f2 = kinds[[0, 1, 3, 3, 4, 5]] + 0.3 * torch.randn(6, 3)
w = torch.tensor([0.1, 0.1, 0.3, 0.1, 0.2, 0.2])
rows1, rows2 = (g / g.norm(dim=1, keepdim=True) for g in (f1 @ f1.T, f2 @ f2.T))
per_token = ((rows1 - rows2) ** 2).sum(dim=1)
assert torch.allclose((w * per_token).sum(), relation_loss(f1, f2, w))
rotation = torch.linalg.qr(torch.randn(3, 3)).Q
changed = {"rotated, times 2.5": 2.5 * f1 @ rotation, "shifted by 1": f1 + 1}
print("L_rel of features and the same", {name: f"{abs(relation_loss(f1, f)):.1e}" for name, f in changed.items()})
title = "Similarity of token i (row) to token j (column), over the row's length"
figures.matrix_figure({"rows of G₁": rows1, "rows of G₂": rows2, "difference": rows1 - rows2}, title=title)

# %% [markdown]
# ## Linear in N, without N × N
#
# $\hat g$ has length 1, so $\|\hat g^1_i - \hat g^2_i\|^2 = 2 - 2\,s_i/\sqrt{a_i b_i}$ with three scalars a token,
# $s_i = g^1_i \cdot g^2_i$, $a_i = |g^1_i|^2$, $b_i = |g^2_i|^2$. Row $i$ of $G_b$ is $F_b f^b_i$, so
# $$s_i = f^{1\top}_i\, (F_1^\top F_2)\, f^2_i ,\qquad
#   a_i = f^{1\top}_i (F_1^\top F_1) f^1_i ,\qquad
#   b_i = f^{2\top}_i (F_2^\top F_2) f^2_i .$$
# All partners of a token enter through three **moments** of $C \times C$, the same for every token. But these cost
# $C^2$ a token, whether it has partners or not:

# %%
s, a, b = (((x @ (x.T @ y)) * y).sum(dim=1) for x, y in ((f1, f2), (f1, f1), (f2, f2)))
mine = (w * (2 - 2 * s / (a * b).sqrt())).sum()
for form in ("linear", "direct"):
    assert torch.allclose(mine, relation_loss(f1, f2, w, form=form), atol=1e-6)
N, C = 2 * 8**3, 4 * 128  # the paper: two patches of 128³ at stride 16, four sequences of 128 channels
direct, linear = (floors.relation_loss(N, C, 4, form).flops("both") for form in ("direct", "linear"))
Markdown(f"Forward and backward: direct {direct / (N * N * C):.0f} N²C operations, linear {linear / (N * C * C):.0f} "
         f"NC². Direct is cheaper below N = {linear / direct * N / C:.2f} C. The paper's training has N = {N} and "
         f"C = {C}: in plain PyTorch `form=\"auto\"` takes the {choose_form('auto', N, C, grouped=False)} form "
         f"there.")  # fmt: skip

# %% [markdown]
# The GPU kernels change over at fewer tokens, because on a GPU their linear form took less time an operation
# ([measured](../smml_kernels/relation/op.py)).
#
# ## Token weights: look where the prediction is unsure
#
# $w_i$ is the entropy of the predictions, averaged over both branches and over the voxels of token $i$, divided by the
# sum over all tokens; without gradient. Certain everywhere, all weights are $1/N$.
#
# ## Relations of classes
#
# The prototype of class $k$ in sample $s$ is the mean of the token features, weighted by how much of each token the
# class fills (its *occupancy*). $R_b$ holds the cosines of all prototypes, and
# $L_{cls} = \operatorname{mean}_{i<j}\,(R_1[i,j] - R_2[i,j])^2$. Prototypes of *all* samples of the batch are compared:
# ET of one patient with ET of another (inter-sample), ET with ED (inter-class). A class that a sample lacks has no mean
# and takes no part. Both on one sample of $4\times2\times2$ voxels, two tokens, no ED:

# %%
target_toy = torch.tensor([0, 0, 0, 1, 3, 3, 1, 0]).view(4, 2, 1).expand(4, 2, 2)[None]  # [1, 4, 2, 2]
b1, b2 = torch.randn(2, 1, 5, 2, 1, 1)  # bottlenecks [1, C = 5, 2, 1, 1]
logits = torch.randn(2, 1, 4, 4, 2, 2)
entropy = sum(torch.special.entr(z.softmax(1)).sum(1, keepdim=True) for z in logits) / 2
w = F.avg_pool3d(entropy, 2).flatten()
assert torch.allclose(w / w.sum(), token_weights(*logits, grid=(2, 1, 1)))
occupancy = torch.stack([F.avg_pool3d((target_toy == k).float(), 2).flatten() for k in range(4)])  # [K, 2 tokens]
present = occupancy.sum(dim=1) > 0
similarity = []
for bottleneck in (b1, b2):
    prototypes = (occupancy @ bottleneck.flatten(2)[0].T / occupancy.sum(1, keepdim=True))[present]
    similarity.append(F.normalize(prototypes, dim=1) @ F.normalize(prototypes, dim=1).T)
i, j = torch.triu_indices(3, 3, offset=1)
theirs = feature_consistency(b1, b2, *logits, target_toy)
assert torch.allclose((similarity[0] - similarity[1])[i, j].square().mean(), theirs.classes)
print(f"{int(present.sum())} prototypes, L_cls = {theirs.classes:.3f}, L_fc = L_rel + L_cls = {theirs.total:.3f}")

# %% [markdown]
# ## What agreement does not guarantee
#
# The shipped students on the patches above:

# %%
tokens = [output.bottleneck.movedim(1, -1).flatten(0, -2) for output in outputs]
common = [f"{float(t.mean(0).norm() / t.norm(dim=1).mean()):.3f}" for t in tokens]
whole, own = relation_loss(*tokens), relation_loss(*(t - t.mean(0) for t in tokens))
print(
    f"L_rel {whole:.4f}; the mean token has {' and '.join(common)} of a token's length; without it L_rel is {own:.3f}"
)

# %% [markdown]
# $L_{rel}$ ignores rotation and scale, not a shift: the larger the part that all tokens share, the more alike all rows
# of $G$, and the smaller the loss, for free. Nor does either term of $L_{fc}$ pull classes apart: two branches may
# agree on useless features.
#
# ## Key points
#
# - The teacher's class distribution passes one way, where its cross-entropy is *strictly* lower.
# - A gate that asks only who is surer lets those teach who see nothing. Class weights in a gate make the lesson loud.
# - $L_{rel}$ is linear in $N$ through three moments; with few tokens a channel the direct form is cheaper.
# - $L_{cls}$ compares angles between class means, of the classes that are there.
# - Consistency is agreement, not correctness.
#
# ## Exercises
#
# Solutions: [solutions/04_hierarchical_consistency.py](solutions/04_hierarchical_consistency.py).
#
# ### Exercise 4.1: A gate of your own
#
# Write a new gate, and **predict before you run**: after 50 steps of the toy, does the reader call more tumour than
# with `lower_ce`, or less? ("How to add a gate" in [CONTRIBUTING](../CONTRIBUTING.md) says how real trainings get it.)


# %%
# Exercise 4.1
def my_gate(log_p1, log_p2, y):
    """(g of 1 -> 2, g of 2 -> 1), each [V] and not negative, from log-probabilities [K, V] and the truth [V]."""
    return ...


prediction = ...  # "more" or "less"

# %%
with course.check("4.1"):
    torch.manual_seed(1)
    log_p1, log_p2, y = torch.randn(2, 50).log_softmax(0), torch.randn(2, 50).log_softmax(0), torch.arange(50) % 2
    g12, g21 = my_gate(log_p1, log_p2, y)
    assert min(g12.min(), g21.min()) >= 0, "a weight is never negative"
    assert prediction in ("more", "less"), "predict before you run"
    mine, usual = course.train_two_readers(my_gate), course.train_two_readers("lower_ce")
    assert abs(mine - usual) > 1e-3, "this is lower_ce again"
    came = f"{mine:.2f} of the true volume, {usual:.2f} with lower_ce"
    assert (prediction == "more") == (mine > usual), f"{came}: what did the prediction overlook?"
    print(came)

# %% [markdown]
# ### Exercise 4.2: Against the common token
#
# Change $L_{rel}$ so that a shift of all tokens of a branch costs nothing either.


# %%
# Exercise 4.2
def shift_free_relation(f1, f2):
    """L_rel of tokens [N, C] and [N, C], 1/N each, that ignores what all tokens of a branch have in common."""
    return ...


# %%
with course.check("4.2"):
    torch.manual_seed(3)
    f1, f2, common = torch.randn(40, 6), torch.randn(40, 6), 30 * torch.randn(6)
    mine = shift_free_relation(f1, f2)
    moved = shift_free_relation(f1 + common, f2 - 2 * common)
    assert torch.isclose(mine, moved, rtol=1e-2), f"a shift still changes it: {mine:.3f} and {moved:.3f}"
    assert mine > 0.5, f"these two have nothing in common, and yet the loss is {mine:.3f}"
    assert abs(shift_free_relation(f1, 2.5 * f1.roll(1, dims=1))) < 1e-4, "a turned, scaled copy should cost nothing"

# %% [markdown]
# ## Read next
#
# The reference in code: `smml_kernels/exchange/reference.py`, `smml_kernels/relation/reference.py`,
# `smml/losses/feature.py`.
#
# **Next:** [5. Evaluation](05_evaluation.ipynb), the rules by which the next notebooks judge refinement and ablation.
# Why these losses are slow on a GPU, and what a fused kernel does about it: [9. Fused kernels](09_fused_kernels.ipynb).
