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
# - say for any voxel who teaches whom under each gate of the pixel loss, and what happens on a tie;
# - derive the linear form of the relation loss, and say when it is not worth it;
# - compute class prototypes, `L_cls` and the entropy weights by hand;
# - show what the feature terms change in trained features, and what they leave alone.
#
# One to two minutes on two CPU cores, 2 GB of memory. All images are **simulated**. From
# [notebook 2](02_missing_modalities.ipynb) it needs what a *token* and the *bottleneck* are;
# [3. Masked mutual learning](03_masked_mutual_learning.ipynb) says why there are two students.
#
# **How we read the paper.** The bodies of these losses are missing from the authors' public code. Gates, weights and
# forms below are this project's reading ([docs/METHOD.md](../docs/METHOD.md)).

# %%
import copy

import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from smml import course, figures
from smml.data import read_case
from smml.data.dataset import CohortDataset
from smml.data.preprocessing import prepare
from smml.inference.windows import plan_windows
from smml.losses import feature_consistency, pixel_consistency
from smml.losses.feature import token_weights
from smml.modalities import subset_mask
from smml.models.checkpoint import load_checkpoint
from smml_kernels import dice_ce_loss, relation_loss
from smml_kernels.benchmarks import floors
from smml_kernels.relation.reference import choose_form

figures.use_theme()
torch.manual_seed(0)
GATES = ("lower_ce", "correct", "entropy", "none")

# %% [markdown]
# ## Pixel level: one divergence, four gates
#
# At a voxel where branch $a$ teaches branch $b$, what is exchanged is the teacher's whole *distribution over classes*:
# $b$ pays $\mathrm{KL}(\mathrm{sg}[p_a]\,\|\,p_b)$, and $a$ gets no gradient. Whether $a$ teaches, and how much the
# voxel counts, is the gate $g$:
# $$L_{a\to b} = \frac{\sum_v g(v)\,\mathrm{KL}\bigl(\mathrm{sg}[p_a(v)]\,\|\,p_b(v)\bigr)}{\sum_v g(v)},\qquad
#   0 \text{ where } \textstyle\sum_v g(v) = 0 .$$
#
# | gate | $g(v)$ for $a \to b$ | reading |
# |---|---|---|
# | `lower_ce` (default) | $w_{y_v}\,[c_a(v) < c_b(v)]$, $c = -\log p(y_v)$ | the one nearer the truth teaches |
# | `correct` | $w_{y_v}\,[\arg\max p_a(v) = y_v]$ | whoever is right teaches, be it both |
# | `entropy` | $\max(0, H_b(v) - H_a(v))$ | the surer teaches; no truth needed |
# | `none` | $w_{y_v}$ | both teach everywhere |
#
# with the entropy $H(p) = -\sum_k p_k\log p_k$, and $w_k = 1 - n_k/n$ from the voxel counts of the sample. The sums run
# over all voxels of the *batch*. In training every voxel counts alike, $w_k = 1$ (`gate_min_class_weight`); you will
# see why. Five voxels of three classes, each with a point to make:

# %%
y = torch.tensor([0, 1, 0, 1, 0])
z1 = torch.tensor([[2.0, 0, 1, 0, 9], [0, 1, 2, 0, 0], [0, 0, 0, 3, 0]])  # [K, V]
z2 = torch.tensor([[1.0, 0, 1, 0, 9], [0, 2, 0, 0, 0], [0, 0, 2, 1, 0]])
log_p1, log_p2 = z1.log_softmax(0), z2.log_softmax(0)
c1, c2 = (-log_p.gather(0, y[None])[0] for log_p in (log_p1, log_p2))
h1, h2 = (-(log_p.exp() * log_p).sum(0) for log_p in (log_p1, log_p2))
w = (1 - torch.bincount(y, minlength=3) / len(y))[y]
gates = {
    "lower_ce": (w * (c1 < c2), w * (c2 < c1)),
    "correct": (w * (log_p1.argmax(0) == y), w * (log_p2.argmax(0) == y)),
    "entropy": ((h2 - h1).relu(), (h1 - h2).relu()),
    "none": (w, w),
}
kl12, kl21 = ((a.exp() * (a - b)).sum(0) for a, b in ((log_p1, log_p2), (log_p2, log_p1)))
for gate, (g12, g21) in gates.items():
    mine = torch.stack([(g12 * kl12).sum() / g12.sum(), (g21 * kl21).sum() / g21.sum()])
    shape = (1, 3, 5, 1, 1)
    theirs = pixel_consistency(z1.view(shape), z2.view(shape), y.view(1, 5, 1, 1), gate=gate)
    assert torch.allclose(mine, torch.stack(theirs))

# %%
arrows = {(True, False): "1 → 2", (False, True): "2 → 1", (True, True): "both ways", (False, False): "nobody"}
rows = {"error of branch 1": c1, "error of branch 2": c2, "KL(1‖2)": kl12}
table = pd.DataFrame({name: [f"{v:.2f}" for v in values] for name, values in rows.items()})
for gate, (g12, g21) in gates.items():
    table[gate] = [arrows[bool(a), bool(b)] for a, b in zip(g12 > 0, g21 > 0, strict=True)]
table.set_axis(["1 is nearer", "2 is nearer", "a tie", "both wrong, 1 surer", "certain and alike"])

# %% [markdown]
# Read it line by line:
#
# - **A tie teaches nobody.** In the third voxel both give the true class the same probability and disagree about the
#   other two. There is a divergence, but no reason to prefer either: the comparison is strict, so `lower_ce` leaves the
#   voxel out of numerator and denominator. The fifth is a tie too, and there is nothing to teach.
# - The fourth voxel tells the gates apart. Both are wrong; branch 2 is less wrong and teaches under `lower_ce`. Under
#   `entropy` branch 1 teaches *because* it is surer, though it is further from the truth. Under `correct` nobody does.
# - Under `correct` and `none` two branches can pull each other at one voxel; under `lower_ce` and `entropy` never.
#
# And if *every* voxel is a tie, the denominator is 0. The loss is then 0, with a gradient of 0, not NaN:

# %%
same = z1.view(1, 3, 5, 1, 1).clone().requires_grad_()
loss = pixel_consistency(same, same.detach().clone(), y.view(1, 5, 1, 1))
sum(loss).backward()
print(
    f"identical branches: L(1→2) = {loss[0]:.0f}, L(2→1) = {loss[1]:.0f}, gradient {float(same.grad.abs().max()):.0f}"
)
assert not any(loss)
assert not same.grad.any()

# %% [markdown]
# ## The gates on two trained students
#
# The shipped students (`"tiny"`) on a simulated case that training has not seen. Branch 1 is given FLAIR and T2,
# branch 2 T1ce alone. Encoders do not see masks, so each runs once; what it gives is kept for the rest of the notebook.

# %%
files = course.held_out_cohort(course.size(full=6, fast=2))
case = max((read_case(file) for file in files), key=lambda case: int((case.label == 3).sum()))
prepared = prepare(case)
plan = plan_windows(tuple(prepared.image.shape[1:]), window=96)
masks = torch.stack([subset_mask("flair+t2"), subset_mask("t1ce")])[:, None]  # [2 branches, B = 1, M]
model = load_checkpoint("tiny").build()
with torch.no_grad():
    image, target = plan.pad(prepared.image)[None], plan.pad(prepared.label[None])
    held_out = [s.encode(image, mask) for s, mask in zip(model.branches, masks, strict=True)]
    outputs = [s.fuse(e, mask) for s, e, mask in zip(model.branches, held_out, masks, strict=True)]
log_p1, log_p2 = (plan.crop(output.logits.log_softmax(dim=1))[0] for output in outputs)
label = prepared.label.long()
counts = torch.bincount(label.flatten(), minlength=4)
w = (1 - counts / counts.sum())[label]
c1, c2 = (-log_p.gather(0, label[None])[0] for log_p in (log_p1, log_p2))
h1, h2 = (-(log_p.exp() * log_p).sum(0) for log_p in (log_p1, log_p2))

# %%
right1, right2 = (log_p.max(0).indices == label for log_p in (log_p1, log_p2))
real = {
    "lower_ce": (w * (c1 < c2), w * (c2 < c1)),
    "correct": (w * right1, w * right2),
    "entropy": ((h2 - h1).relu(), (h1 - h2).relu()),
    "none": (w, w),
}
kl = [(a.exp() * (a - b)).sum(0) for a, b in ((log_p1, log_p2), (log_p2, log_p1))]
z = figures.widest_slice(label.numpy())
shown = {}
for direction, colour in ((0, "#0072B2"), (1, "#D55E00")):
    for gate, pair in real.items():
        taught = pair[direction] * kl[direction]
        strength = (taught / taught[:, :, z].quantile(0.995).clamp_min(1e-9)).clamp(0, 1).numpy()
        name = f"{gate}: {('1 → 2', '2 → 1')[direction]}"
        shown[name] = figures.heat_picture(prepared.image[0].numpy(), z, strength, colour)
figures.panels(
    shown, columns=4, title="What is taught where: gate × divergence, each picture on its own scale", size=205
)

# %% [markdown]
# Above, what branch 1 (FLAIR + T2) teaches; below, what branch 2 (T1ce) teaches. How the weight $g$ is shared out:

# %%
rows = {}
for gate, (g12, g21) in real.items():
    fits = (log_p1[None], log_p2[None], label[None])
    l12, l21 = pixel_consistency(*fits, gate=gate)
    assert torch.isclose(l12, (g12 * kl[0]).sum() / g12.sum(), rtol=1e-3)
    rows[gate] = {"L(1→2)": f"{l12:.3f}", "L(2→1)": f"{l21:.3f}"}
    for k, name in enumerate(case.scheme.classes):
        share = g12[label == k].sum() / (g12 + g21)[label == k].sum()
        rows[gate][f"1 teaches {name}"] = f"{100 * share:.0f} %"
ties = int((c1 == c2).sum())
print(f"exact ties: {ties} of {c1.numel():,} voxels")
pd.DataFrame.from_dict(rows, orient="index")

# %% [markdown]
# A percentage is branch 1's share of the weight with which that class is taught at all: T1ce has more to say where the
# share is small. Between real-valued predictions a tie must be exact; the count above says how rare that is. The rule
# matters where two branches agree by construction, and it prefers neither for being called 1 or 2. Note also what
# `entropy` cannot know: it never looks at the truth, so a branch that is surely wrong teaches. What comes of that,
# notebook 7 shows.
#
# **What do the class weights do?** Cross-entropy needs them, or a small tumour would drown in background. Here they
# meet a denominator, $\sum_v g(v)$, that the background hardly enlarges. What branch 2 teaches branch 1, with gates
# weighted by class as cross-entropy is, and with gates in which every voxel counts alike; a push is how far a step
# against the gradient raises the logits of the tumour's classes:

# %%
rows, inside = {}, target[0] > 0
for name, w_min in (("by class", 0.05), ("alike", 1.0)):
    logits = [output.logits.detach().requires_grad_() for output in outputs]
    lesson = pixel_consistency(*logits, target, min_class_weight=w_min)[1]
    truth = dice_ce_loss(logits[0], target, min_class_weight=0.05)
    taught, told = (torch.autograd.grad(term, logits[0])[0][0] for term in (lesson, truth))
    push = -taught[1:].sum(dim=0)
    weight = (1 - counts / counts.sum()).clamp_min(w_min)[label] * (c2 < c1)
    rows[name] = {
        "weight on the tumour": f"{100 * weight[label > 0].sum() / weight.sum():.0f} %",
        "gradient, times that of the fused head's loss": f"{taught.norm() / told.norm():.2f}",
        "push inside the tumour": f"{push[inside].sum():+.4f}",
        "push outside": f"{push[~inside].sum():+.4f}",
        "inside / outside": f"{(push[inside].sum() / push[~inside].sum()).abs():.2f}",
    }
pd.DataFrame.from_dict(rows, orient="index")

# %% [markdown]
# Weighted by class, the lesson is as loud as the truth, and what calls for more tumour stands many times stronger
# against what calls for less. Both students learn to segment too much; notebook 7 shows what that cost.
#
# ## Feature level: relations of tokens
#
# Two branches that see different sequences need not have equal features. $L_{rel}$ asks for less: if token $i$ is like
# token $j$ in one branch, it should be in the other. The tokens of a batch are the rows of
# $F_b \in \mathbb{R}^{N\times C}$; $G_b = F_b F_b^\top$ holds all pairwise products; every row $g_i$ is divided by its
# length, and
# $$L_{rel} = \sum_i w_i\,\bigl\|\hat g^{\,1}_i - \hat g^{\,2}_i\bigr\|^2 .$$
# Six tokens, three of one kind and three of another; branch 2 has moved token 2 to the other kind:

# %%
torch.manual_seed(0)
kinds = torch.tensor([[2.0, 0, 0]] * 3 + [[0, 2.0, 0]] * 3)
f1 = kinds + 0.3 * torch.randn(6, 3)
f2 = kinds[[0, 1, 3, 3, 4, 5]] + 0.3 * torch.randn(6, 3)
w = torch.tensor([0.1, 0.1, 0.3, 0.1, 0.2, 0.2])
rows1, rows2 = (g / g.norm(dim=1, keepdim=True) for g in (f1 @ f1.T, f2 @ f2.T))
per_token = ((rows1 - rows2) ** 2).sum(dim=1)
assert torch.allclose((w * per_token).sum(), relation_loss(f1, f2, w))
print("per token:", [f"{value:.2f}" for value in per_token.tolist()])
figures.matrix_figure({"rows of G₁": rows1, "rows of G₂": rows2, "difference": rows1 - rows2})

# %% [markdown]
# Token 2 differs most: its whole row is wrong. Every other token sees one neighbour leave or arrive.
#
# **What costs nothing.** $FR(FR)^\top = FF^\top$ for a rotation $R$, and a common factor cancels in the normalised
# rows. A common *shift* is another matter: it changes every product. (Rounding can leave a loss of 0 a little below 0,
# hence `abs`.)

# %%
rotation = torch.linalg.qr(torch.randn(3, 3)).Q
for name, other in {"rotated": f1 @ rotation, "times 2.5": 2.5 * f1, "channels reordered": f1[:, [2, 0, 1]],
                    "shifted by 1": f1 + 1, "tokens reordered": f1[[5, 0, 1, 2, 3, 4]]}.items():  # fmt: skip
    print(f"L_rel of features and the same {name:19s} {abs(relation_loss(f1, other)):.1e}")
assert abs(relation_loss(f1, 2.5 * f1 @ rotation)) < 1e-6 < relation_loss(f1, f1 + 1)

# %% [markdown]
# ## Why it is linear in N
#
# $\hat g$ has unit length, so $\|\hat g^1_i - \hat g^2_i\|^2 = 2 - 2\,\hat g^1_i \cdot \hat g^2_i$, and only three
# numbers a token are needed: $s_i = g^1_i \cdot g^2_i$, $a_i = |g^1_i|^2$, $b_i = |g^2_i|^2$. Now write one of them
# out. Row $i$ of $G_b$ is $F_b f^b_i$, so
# $$s_i = (F_1 f^1_i)^\top (F_2 f^2_i) = f^{1\top}_i\, \underbrace{F_1^\top F_2}_{M}\, f^2_i ,\qquad
#   a_i = f^{1\top}_i \underbrace{F_1^\top F_1}_{A_1} f^1_i ,\qquad
#   b_i = f^{2\top}_i \underbrace{F_2^\top F_2}_{A_2} f^2_i .$$
# The sum over all *partners* $j$ has gone into three matrices of $C \times C$, the **moments**, which are the same for
# every token. They are sums over tokens, $M = \sum_j f^1_j f^{2\top}_j$: made once in $NC^2$ multiplications, used once
# per token in $C^2$. No number of size $N \times N$ is left:

# %%
m, a1, a2 = f1.T @ f2, f1.T @ f1, f2.T @ f2
s = ((f1 @ m) * f2).sum(dim=1)
a, b = ((f1 @ a1) * f1).sum(dim=1), ((f2 @ a2) * f2).sum(dim=1)
assert torch.allclose(s, ((f1 @ f1.T) * (f2 @ f2.T)).sum(dim=1))
assert torch.allclose(a, (f1 @ f1.T).square().sum(dim=1))
mine = (w * (2 - 2 * s / (a * b).sqrt())).sum()
assert torch.allclose(mine, relation_loss(f1, f2, w, form="linear"), atol=1e-6)
assert torch.allclose(mine, relation_loss(f1, f2, w, form="direct"), atol=1e-6)
print(f"N × N: {(w * per_token).sum():.6f}   C × C: {mine:.6f}")

# %% [markdown]
# The moments of a batch are sums of the moments of its parts, so they also add up over GPUs: relations *across*
# machines for $3C^2$ numbers of traffic forward, and as many backward.
#
# ## When it is not worth it
#
# Linear in $N$ is not cheap: the moments cost $C^2$ for every token, whether there are partners or not. Count the
# multiplications of both forms instead of trusting the algebra:


# %%
def multiplications(tokens, channels):
    """Of the matrix products of both forms, forward: (direct, linear)."""
    f1, f2 = torch.randn(2, tokens, channels, device="meta")
    with FlopCounterMode(display=False) as direct:
        f1 @ f1.T, f2 @ f2.T
    with FlopCounterMode(display=False) as linear:
        [(x @ (x.T @ y)) * y for x, y in ((f1, f2), (f1, f1), (f2, f2))]
    return direct.get_total_flops() // 2, linear.get_total_flops() // 2


N, C = 1000, 64
assert multiplications(N, C) == (2 * N * N * C, 6 * N * C * C)
print("forward alone: 2 N²C = 6 NC² at N = 3 C:", multiplications(3 * C, C))
direct, linear = (floors.relation_loss(N, C, 4, form).flops("both") for form in ("direct", "linear"))
print(f"with the backward pass {direct / (N * N * C):.0f} N²C and {linear / (N * C * C):.0f} NC²: break-even at "
      f"N = {linear / direct * N / C:.2f} C")  # fmt: skip
switch = next(n for n in range(1, 10 * C) if choose_form("auto", n, C, grouped=False) == "linear")
print(f"relation_loss(form='auto') with C = {C} goes over to the linear form at N = {switch} = {switch / C:.2f} C")
assert abs(switch / C - linear / direct * N / C) < 0.1

# %% [markdown]
# So **below about three tokens per channel the linear form does more work than the matrix it avoids**. At equal
# speed per operation, that is; memory is a second reason for it, as $N \times N$ must fit (the package goes over early
# where it would not). Which side is this project on? The paper's rows follow [docs/METHOD.md](../docs/METHOD.md): two
# patches of $128^3$ voxels at a stride of 16, so $8^3$ tokens each, and $C = 512$ for four modalities of 128 channels
# (the preset `"paper"`). The batch over GPUs and the finer level are examples.

# %%
places = {
    "tiny, training (2 patches of 32³)": (2 * 2**3, 128),
    "tiny, the case above": (outputs[0].bottleneck[0, 0].numel(), 128),
    "paper, training (2 patches of 128³)": (2 * 8**3, 512),
    "paper's size, 16 patches over 8 GPUs": (16 * 8**3, 512),
    "features at 64³, 16 channels": (64**3, 16),
}
rows = []
for name, (n, c) in places.items():
    direct, linear = (floors.relation_loss(n, c, 4, form).flops("both") / 1e6 for form in ("direct", "linear"))
    row = {"": name, "N": n, "C": c, "N / C": f"{n / c:,.1f}"}
    row |= {"direct, MFLOP": f"{direct:,.1f}", "linear, MFLOP": f"{linear:,.1f}", "N × N, MB": f"{4e-6 * n * n:,.1f}"}
    rows.append(row | {"form": choose_form("auto", n, c, grouped="GPUs" in name)})
pd.DataFrame(rows).set_index("")

# %% [markdown]
# The published bottleneck is on the *direct* side. The linear form is for batches over many GPUs (where it is the only
# one that adds up) and for finer levels, where $N \times N$ cannot exist. [5. Fused kernels](05_fused_kernels.ipynb)
# measures both.
#
# ## Where to look: entropy weights
#
# $w_i$ is large where the branches are unsure: the voxel entropies of both predictions, averaged, pooled to the token
# grid, divided by their sum. Where every voxel is certain, all weights are equal. No gradient flows through them.

# %%
logits = [3 * torch.randn(2, 4, 32, 32, 32) for _ in range(2)]
p1, p2 = (z.softmax(dim=1) for z in logits)
entropy = -((p1 * p1.log()).sum(1, keepdim=True) + (p2 * p2.log()).sum(1, keepdim=True)) / 2
w = F.avg_pool3d(entropy, 16).flatten()
assert torch.allclose(w / w.sum(), token_weights(*logits, grid=(2, 2, 2)))
certain = torch.zeros(2, 4, 32, 32, 32)
certain[:, 0] = 1000
print("certain everywhere:", token_weights(certain, certain, grid=(2, 2, 2)).tolist()[:4], "...")
real_weights = token_weights(*(output.logits for output in outputs), outputs[0].bottleneck.shape[2:])
share = real_weights.sort(descending=True).values[: len(real_weights) // 10].sum()
print(f"the case above: a tenth of the tokens has {100 * share:.0f} % of the weight")

# %% [markdown]
# ## Relations of classes
#
# The prototype of class $k$ in sample $s$ is the mean of the token features, weighted by how much of each token the
# class fills (its *occupancy*: the one-hot target, pooled to the token grid). $R_b$ holds the cosines of all
# prototypes, and
# $$L_{cls} = \operatorname{mean}_{i<j}\,\bigl(R_1[i,j] - R_2[i,j]\bigr)^2 .$$
# A class that a sample lacks has no mean and takes no part. One sample, $4\times2\times2$ voxels, two tokens, no ED:

# %%
target_toy = torch.tensor([0, 0, 0, 1, 3, 3, 1, 0]).view(4, 2, 1).expand(4, 2, 2)[None]  # [1, 4, 2, 2]
b1, b2 = torch.randn(2, 1, 5, 2, 1, 1)  # bottlenecks [1, C = 5, 2, 1, 1]
occupancy = torch.stack([F.avg_pool3d((target_toy == k).float(), 2).flatten() for k in range(4)])  # [K, 2 tokens]
present = occupancy.sum(dim=1) > 0
similarity = []
for bottleneck in (b1, b2):
    tokens = bottleneck.flatten(2)[0].T  # [2, C]
    prototypes = (occupancy @ tokens / occupancy.sum(1, keepdim=True))[present]
    unit = F.normalize(prototypes, dim=1)
    similarity.append(unit @ unit.T)
i, j = torch.triu_indices(3, 3, offset=1)
mine = (similarity[0] - similarity[1])[i, j].square().mean()
theirs = feature_consistency(b1, b2, *torch.randn(2, 1, 4, 4, 2, 2), target_toy)
assert torch.allclose(mine, theirs.classes)
print("occupancy by class and token:", occupancy.tolist())
print(f"{int(present.sum())} prototypes, L_cls = {mine:.3f}, L_fc = L_rel + L_cls = {theirs.total:.3f}")

# %% [markdown]
# With several samples, prototypes of all of them are compared: ET of one patient with ET of another (inter-sample),
# and ET with ED (inter-class).
#
# ## What each term does to features, alone
#
# Tokens that can move freely show what a term wants. Two branches with 18 tokens of three classes in the plane, whose
# classes lie in different directions; gradient descent on *one* term.

# %%
kinds = torch.arange(3).repeat_interleave(6)
grid, none = (1, 2, 18, 1, 1), torch.zeros(1, 3, 18, 1, 1)
angles = torch.tensor([[0.0, 120, 240], [0, 50, 170]]).deg2rad()[:, kinds]  # of the classes, in each branch
start = (torch.stack([angles.cos(), angles.sin()], dim=1) + 0.3 * torch.randn(2, 2, 18)).view(2, *grid)


def descend(term, steps):
    """Both branches' features [2, 18, 2] after descending one term of L_fc, and both terms' values."""
    features = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([features], lr=0.03)
    for _ in range(steps):
        optimiser.zero_grad()
        getattr(feature_consistency(*features, none, none, kinds.view(1, 18, 1, 1)), term).backward()
        optimiser.step()
    terms = feature_consistency(*features.detach(), none, none, kinds.view(1, 18, 1, 1))
    return features.detach().view(2, 2, 18).mT, terms


# %%
steps = course.size(full=400, fast=100)
moved = {name: descend(term, steps) for name, term in {"L_rel": "relation", "L_cls": "classes"}.items()}
before = feature_consistency(*start, none, none, kinds.view(1, 18, 1, 1))
print(f"at the start          L_rel {before.relation:.4f}  L_cls {before.classes:.6f}")
for name, (_, terms) in moved.items():
    print(f"after descending {name}  L_rel {terms.relation:.4f}  L_cls {terms.classes:.6f}")


def turned(points, onto):
    """``points`` [N, 2] turned or mirrored so that they lie nearest to ``onto`` (Procrustes)."""
    u, _, vh = torch.linalg.svd(points.T @ onto)
    return points @ u @ vh


both = {"start": start.view(2, 2, 18).mT} | {f"after {name}": points for name, (points, _) in moved.items()}
both = {name: points / points.norm(dim=(1, 2), keepdim=True) for name, points in both.items()}
panels = {f"{name}, branch 1": points[0] for name, points in both.items()}
panels |= {f"{name}, branch 2": turned(points[1], points[0]) for name, points in both.items()}
colours = dict(zip("ABC", ("#0072B2", "#E69F00", "#009E73"), strict=True))
figures.token_figure(panels, ["ABC"[kind] for kind in kinds], colours, columns=3, size=220,
                     title="Free tokens of three classes; branch 2 turned onto branch 1")  # fmt: skip

# %% [markdown]
# $L_{rel}$ makes branch 2 a copy of branch 1 up to rotation, reflection and one common factor: turned, the middle
# column shows one picture twice. $L_{cls}$ only moves the three class means until their angles agree; tokens within a
# class stay as they were, and its $L_{rel}$ above stays far from 0. Neither pulls classes apart: **two branches may
# agree on features that are useless.** That is what the supervised terms are for.
#
# ## What they do to the students' features
#
# From the shipped students, a few dozen steps with $L_{fc}$ and without, from the same start on the same patches.
# To make it cheap the encoders stand still: they run once, and only the transformer across modalities and the decoder
# learn, from the fused head's loss.

# %%
patches = CohortDataset(course.training_cohort(course.size(full=6, fast=2)), patch=32, samples=12, tumour_share=1.0)
batches = []
with torch.no_grad():
    for first in range(0, course.size(full=12, fast=4), 4):
        samples = [patches[i] for i in range(first, first + 4)]
        x, label = (torch.stack([sample[name] for sample in samples]) for name in ("image", "label"))
        both = [s.encode(x, mask.expand(4, 4)) for s, mask in zip(model.branches, masks, strict=True)]
        batches.append((both, label))


def bottlenecks(students):
    """Of both branches on the held-out case, [1, C, x, y, z] each."""
    with torch.no_grad():
        return [s.inter(list(e.tokens), mask) for s, e, mask in zip(students, held_out, masks, strict=True)]


# %%
def learn(feature_weight, steps):
    """The students after training, and (L_rel, L_cls, supervised loss) of each step's batch."""
    students, log = copy.deepcopy(model.branches), []
    parts = [p for s in students for part in (s.inter, s.fusion_decoder) for p in part.parameters()]
    optimiser = torch.optim.Adam(parts, lr=1e-3)
    for step in range(steps):
        both, label = batches[step % len(batches)]
        out = [s.fuse(e, mask.expand(4, 4)) for s, e, mask in zip(students, both, masks, strict=True)]
        terms = feature_consistency(*(o.bottleneck for o in out), *(o.logits for o in out), label)
        supervised = sum(dice_ce_loss(o.logits, label, min_class_weight=0.05) for o in out)
        optimiser.zero_grad()
        (supervised + feature_weight * terms.total).backward()
        optimiser.step()
        log.append([term.item() for term in (terms.relation, terms.classes, supervised)])
    return students, log


steps = course.size(full=24, fast=2)
results = {"without L_fc": learn(0.0, steps), "with L_fc": learn(1.0, steps)}

# %%
features = {"start": bottlenecks(model.branches)}
features |= {name: bottlenecks(students) for name, (students, _) in results.items()}
rows = {}
for name, pair in features.items():
    # Logits of zeros are equally unsure everywhere: all tokens weigh the same.
    terms = feature_consistency(*pair, *(torch.zeros(1, 4, *target.shape[1:]) for _ in range(2)), target)
    # The last three steps saw the same patches as the first three.
    log = results["with L_fc"][1][:3] if name == "start" else results[name][1][-3:]
    rows[name] = {
        "L_rel, held-out": f"{terms.relation:.4f}",
        "L_cls, held-out": f"{terms.classes:.6f}",
        "L_rel, training": f"{sum(step[0] for step in log) / len(log):.4f}",
        "supervised, training": f"{sum(step[2] for step in log) / len(log):.3f}",
    }
pd.DataFrame.from_dict(rows, orient="index")

# %% [markdown]
# And the tokens themselves, as their first two principal components. Branches may differ by a rotation, so each panel
# is turned onto the first one before it is drawn; that leaves all distances as they are.


# %%
def plane(bottleneck):
    """First two principal components of the tokens, [N, 2], in units of their spread."""
    tokens = bottleneck.flatten(2)[0].T
    centred = tokens - tokens.mean(dim=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    return u[:, :2] * s[:2] / s[0]


first = plane(features["start"][0])
panels = {f"{name}, branch {b + 1}": turned(plane(features[name][b]), first) for b in range(2) for name in features}
tumour, brain = (F.adaptive_avg_pool3d(v.float(), features["start"][0].shape[2:]).flatten()
                 for v in (target[:, None] > 0, (image != 0).any(dim=1, keepdim=True)))  # fmt: skip
groups = ["tumour" if t > 0.05 else "brain" if b > 0.1 else "outside" for t, b in zip(tumour, brain, strict=True)]
colours = {"outside": "#999999", "brain": "#56B4E9", "tumour": "#D55E00"}
figures.token_figure(panels, groups, colours, columns=3, size=240, title="Tokens of the held-out case, 48 mm each")

# %%
rows = {}
for name, pair in features.items():
    tokens = [bottleneck.flatten(2)[0].T for bottleneck in pair]
    common = [f"{t.mean(dim=0).norm() / t.norm(dim=1).mean():.3f}" for t in tokens]
    rows[name] = {"mean token / token length, branch 1": common[0], "branch 2": common[1]}
    rows[name]["L_rel of tokens less their mean"] = f"{relation_loss(*(t - t.mean(dim=0) for t in tokens)):.3f}"
pd.DataFrame.from_dict(rows, orient="index")

# %% [markdown]
# What is to be seen, and what is not:
#
# - Compare the lines of the table above the pictures: does the loss do what it says, are $L_{rel}$ and $L_{cls}$
#   smallest after training with $L_{fc}$, also on the case that was not trained on? And is the supervised loss any
#   better for it, in so few steps?
# - **Look at how it got there.** Tokens share a large common part: for the mean token's length in units of a token's,
#   see the first columns of the last table. Near 1, all rows of $G$ are nearly one and the same, in both branches, and
#   $L_{rel}$ is small whatever the rest does. Making the common part larger lowers the loss without any agreement about
#   what differs from token to token. Compare the last two lines: if the mean token grew with $L_{fc}$ while $L_{rel}$
#   *less the mean* did not fall, this is what happened. (The loss is defined without centring; with it, it would be
#   another loss, and one worth trying.)
# - Compare the panels along a row: in the plane of the first two components, is there anything that the eye would call
#   a change?
#
# That $L_{fc}$ helps segmentation is a claim for an ablation over whole trainings, and this is not one.
#
# ## Key points
#
# - Exchanged at pixel level: the teacher's whole class distribution, one way, where its cross-entropy is *strictly*
#   lower. A tie teaches nobody and leaves the mean; no gated voxel at all gives 0.
# - $L_{rel}$ is linear in $N$ because all partners of a token enter through three $C \times C$ moments. Below about
#   3 tokens per channel the $N \times N$ form does less work, and the package takes it.
# - $L_{rel}$ ignores rotation and scale, not a shift: features with a large common part look alike for free.
# - $L_{cls}$ compares angles between class means, of the classes that are there.
# - Consistency is agreement, not correctness: it needs the supervised terms beside it.
#
# ## Exercises
#
# Solutions: [solutions/04_hierarchical_consistency.py](solutions/04_hierarchical_consistency.py).
#
# ### Exercise 4.1: The gate that needs no truth
#
# Under `entropy` the surer branch teaches, and counts by how much surer it is. Write both directions. What does it do
# on a tie?


# %%
# Exercise 4.1
def entropy_gates(logits1, logits2):
    """(g of 1 -> 2, g of 2 -> 1), each [V], from logits [K, V]."""
    return ...


# %%
with course.check("4.1"):
    torch.manual_seed(1)
    z1, z2 = 2 * torch.randn(2, 3, 50)
    z2[:, 0] = z1[[2, 0, 1], 0]
    g12, g21 = entropy_gates(z1, z2)
    assert g12.shape == (50,), "one weight a voxel"
    assert min(g12.min(), g21.min()) >= 0, "a weight is never negative"
    assert max(g12[0], g21[0]) < 1e-5, "voxel 0 is a tie: its probabilities are the same, in another order"
    p1, p2 = z1.log_softmax(0), z2.log_softmax(0)
    mine, swapped = ((g * (p1.exp() * (p1 - p2)).sum(0)).sum() / g.sum() for g in (g12, g21))
    theirs = pixel_consistency(z1.view(1, 3, 50, 1, 1), z2.view(1, 3, 50, 1, 1), None, gate="entropy")[0]
    assert not torch.isclose(swapped, theirs, rtol=1e-4), "swapped: the branch with the *lower* entropy teaches"
    assert torch.isclose(mine, theirs, rtol=1e-4), "compare with pixel_consistency(..., gate='entropy')"

# %% [markdown]
# ### Exercise 4.2: The linear form, from memory
#
# Three moments, three numbers a token, one sum. The check counts your multiplications.


# %%
# Exercise 4.2
def linear_relation(f1, f2, w):
    """L_rel of tokens [N, C] and [N, C] with weights [N], without any matrix of N x N."""
    return ...


# %%
with course.check("4.2"):
    torch.manual_seed(2)
    f1, f2 = torch.randn(2, 300, 8)
    w = torch.rand(300)
    with FlopCounterMode(display=False) as counter:
        mine = linear_relation(f1, f2, w)
    assert torch.isclose(mine, relation_loss(f1, f2, w), rtol=1e-4), "compare with relation_loss(f1, f2, w)"
    used = counter.get_total_flops() // 2
    assert used < 300 * 300 * 8, f"{used} multiplications: somewhere all pairs of tokens are still made"

# %% [markdown]
# ### Exercise 4.3: Relations of classes
#
# Prototypes, their cosines, the mean over the pairs. Mind the class that is not there.


# %%
# Exercise 4.3
def class_loss(tokens1, tokens2, occupancy):
    """L_cls of one sample: tokens [N, C] of each branch, occupancy [K, N] of the classes."""
    return ...


# %%
with course.check("4.3"):
    torch.manual_seed(3)
    tokens = torch.randn(2, 6, 5)
    classes = torch.tensor([0, 0, 1, 3, 3, 1])  # class 2 is absent
    mine = class_loss(*tokens, F.one_hot(classes, 4).T.float())
    maps = [t.T.reshape(1, 5, 6, 1, 1) for t in tokens]
    theirs = feature_consistency(*maps, *torch.zeros(2, 1, 4, 6, 1, 1), classes.view(1, 6, 1, 1)).classes
    assert not torch.isnan(mine), "an absent class has no mean: leave it out"
    assert torch.isclose(mine, theirs, rtol=1e-4), "compare with feature_consistency(...).classes: pairs i < j only"

# %% [markdown]
# ## Read next
#
# The reference in code: `smml_kernels/exchange/reference.py`, `smml_kernels/relation/reference.py`,
# `smml/losses/feature.py`.
#
# **Next:** [5. Fused kernels](05_fused_kernels.ipynb).
