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
# # 2. Missing modalities: a network for all 15 subsets
#
# **Question.** How does one network segment from whatever sequences there are, without a trace of those there are not?
#
# After this notebook you can
# - tell *selecting* from *zero filling*, and say why only one of them is safe;
# - explain the fusion layer and check it against its equation;
# - show how a plain `view` mixes up space and modality, a fault of public code of this family;
# - segment one case from any subset after encoding it once.
#
# About one minute on two CPU cores, 1 GB of memory. All images are **simulated**. The weights used here, `"tiny"`, were
# trained on simulated cases that are not among these.

# %%
import time

import torch
import torch.nn.functional as F

from smml import course, figures
from smml.data import read_case
from smml.inference import Predictor
from smml.modalities import SUBSETS, subset_mask, subset_name
from smml.models import Student
from smml_kernels import masked_fusion

figures.use_theme()
print(len(SUBSETS), "subsets:", "; ".join(subset_name(subset) for subset in SUBSETS))

# %% [markdown]
# ## Select, never multiply
#
# Public code removes a missing modality by multiplying its features with 0. That is only right while the features are
# finite, and it still lets the encoder run on them:

# %%
features = torch.tensor([[1.0, 2.0], [float("nan"), 3.0]])  # two modalities, two channels
mask = torch.tensor([True, False])
print("multiplied:", (features * mask[:, None]).tolist())
print("selected:  ", torch.where(mask[:, None], features, torch.zeros(())).tolist())

# %% [markdown]
# ## The fusion layer
#
# At every level the maps of the present modalities are normalised, activated and mixed by a 1×1×1 convolution,
# $$y = b + \sum_{m \in \text{present}} W_m\,\mathrm{LReLU}\bigl(\mathrm{IN}(f_m)\bigr).$$
# A missing modality is exactly zero after InstanceNorm and LeakyReLU, so its term can be *skipped*: no read, no
# multiplication, no gradient. With two modalities of two channels, by hand:

# %%
torch.manual_seed(0)
maps = [torch.randn(1, 2, 4, 4, 4) for _ in range(2)]
weight, bias = torch.randn(3, 4), torch.randn(3)
present = torch.tensor([[True, False]])

active = F.leaky_relu(F.instance_norm(maps[0]), 0.2)
mine = torch.einsum("oc,bcxyz->boxyz", weight[:, :2], active) + bias.view(1, 3, 1, 1, 1)
assert torch.allclose(mine, masked_fusion(maps, present, weight, bias), atol=1e-5)

maps[1].fill_(float("nan"))
assert torch.equal(masked_fusion(maps, present, weight, bias), masked_fusion([maps[0], None], present, weight, bias))
print("the missing map may be NaN, or not exist at all: same bits")

# %% [markdown]
# ## Tokens: keep the modality's own axis
#
# A transformer then mixes the deepest features of all present modalities. Its output, tokens `[B, M·S, D]`, must become
# a map with `M·D` channels. Public code writes `tokens.view(B, S, M·D)`. Label each token with where it came from and
# see what that does:

# %%
M, S = 2, 3
tokens = torch.tensor([[10 * m + s for m in range(M) for s in range(S)]])[..., None]  # modality m, place s
wrong = tokens.view(1, S, M)
right = tokens.view(1, M, S, 1).permute(0, 2, 1, 3).reshape(1, S, M)
print("by place, plain view:", wrong[0].tolist())
print("by place, permuted:  ", right[0].tolist())
assert all(len({int(value) % 10 for value in place}) == 1 for place in right[0])

# %% [markdown]
# With the plain `view`, one "place" holds tokens of different places: space is scrambled. The package keeps
# `(B, M, S, D)` and permutes; a test shuffles the cells of the grid and wants the output shuffled alike.
#
# ## The student
#
# One encoder per modality, fusion at five levels, one decoder. Nothing of a missing modality gets through: here the
# voxels of T1ce and T1 are not a number, and not one bit of the output changes.

# %%
student = Student("tiny").eval()
volume = torch.randn(1, 4, 32, 32, 32)
mask = subset_mask("flair+t2")[None]
poisoned = volume.clone()
poisoned[:, ~mask[0]] = float("nan")
with torch.inference_mode():
    clean, output = student(volume, mask), student(poisoned, mask)
assert torch.equal(clean.logits, output.logits)
assert torch.equal(clean.bottleneck, output.bottleneck)
parameters = sum(p.numel() for p in student.parameters())
print(f"logits {list(output.logits.shape)}, bottleneck {list(output.bottleneck.shape)}, {parameters:,} parameters")

# %% [markdown]
# ## Encode once, fuse any subset
#
# Encoders do not see the mask. So a case is encoded once, and each of the 15 subsets only repeats fusion and decoding.
# The trained pair of students on a simulated case that it has never seen:

# %%
files = course.held_out_cohort(course.size(full=6, fast=2))
cases = [read_case(file) for file in files]
case = max(cases, key=lambda case: int((case.label == 3).sum()))
predictor = Predictor.from_checkpoint("tiny")
began = time.perf_counter()
encoding = predictor.encode(case)
print(f"encoded {case.id} in {time.perf_counter() - began:.1f} s")
results = {}
for subset in ("all", "flair+t1ce", "t1ce", "flair", "t2", "t1", "flair+t1+t2"):
    began = time.perf_counter()
    result = predictor.segment(encoding, subset)
    results[subset_name(subset)] = result.labels
    print(f"{subset_name(subset):18s} {time.perf_counter() - began:.1f} s")

# %%
figures.segmentation_figure(case, results, columns=4, title="One simulated case, seven subsets")

# %%
truth = case.label == 3
for name, labels in results.items():
    overlap = 2 * ((labels == 3) & truth).sum() / max(1, (labels == 3).sum() + truth.sum())
    print(f"{name:18s} Dice of ET {overlap:.2f}")

# %% [markdown]
# Enhancing tumour is guessed at without T1ce, and found with it. Which subsets suffice for what, over many cases, is
# the subject of the evaluation notebook.
#
# ## Key points
#
# - A missing modality is skipped, not zeroed: no read, no gradient, no attention, no position embedding.
# - Encoders are independent of the subset; fusion and decoding are what a subset costs.
# - "Robust to missing modalities" is a property that can be tested to the bit. It is, for every subset.
#
# **Next:** [3. Masked mutual learning](03_masked_mutual_learning.ipynb).
