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
# A minute or two on two CPU cores. From [notebook 1](01_data.ipynb) it needs what the sequences show.
#
# All images are **simulated**. The weights used here, `"tiny"`, were trained on simulated cases that are not among
# these.

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
# The authors' code (`MaskModal` and `Model.forward` in the `smml.py` of [their
# repository](https://github.com/banbooliang/SMML/tree/d40154138dc0e7cc0ab7e7413ee4e51332b3ca8f)) runs every encoder and
# then sets the features of missing modalities to 0. It is tempting to write that as a product with the mask. A product
# is only right while the features are finite, and either way the encoder run was for nothing:

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
# IN is InstanceNorm, LReLU LeakyReLU. A feature *map* set to 0 stays 0 under both, so its term can be *skipped*: no
# read, no multiplication, no gradient. (An *image* set to 0 does not stay 0 in its encoder: exercise 2.3.) With two
# modalities of two channels, by hand:

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
# A transformer then mixes the deepest features of all present modalities. A *token* is the vector of `D` channels that
# one modality has at one place of the deepest, coarsest grid. With `B` samples, `M` modalities and `S` places the
# output `[B, M·S, D]` must become a map with `M·D` channels. The authors' `Model.forward` writes `tokens.view(B, S,
# M·D)` ([docs/METHOD.md](../docs/METHOD.md), "The two branches"). Label each token with where it came from and see what
# that does:

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
# `(B, M, S, D)` and permutes. A test shuffles the cells of the grid *together with their position embeddings*, and the
# output must come out shuffled alike.
#
# **What a missing part holds.** Tokens of a missing modality are no keys: no other token attends to them. After the
# transformer they are set to 0, and a 1×1×1 convolution over *all* modalities' tokens makes the output, so each of its
# `M` parts is made of the present modalities, also the part that bears a missing one's name. That is why, at this
# deepest level alone, fusion takes all parts and skips none.
#
# ## The student
#
# One encoder per modality, fusion at five levels, one decoder. The *bottleneck* is the map made of the transformer's
# tokens, where all modalities meet; later notebooks compare two students there. Drawn from the network that the next
# cells use:

# %%
figures.student_figure("tiny")

# %% [markdown]
# The published size has the same parts with other numbers: `figures.student_figure("paper")` draws it. Nothing of a
# missing modality gets through: here the voxels of T1ce and T1 are not a number, and not one bit of the output changes.

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
# Encoders do not see the mask. So a case is encoded once, and each of the 15 subsets only repeats
# the transformer across modalities, fusion and decoding.
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
truth, found = case.label == 3, {}
for name, labels in results.items():
    called = labels == 3
    found[name] = 2 * (called & truth).sum() / max(1, called.sum() + truth.sum())
    print(f"{name:18s} Dice of ET {found[name]:.2f}, {called.sum() / max(1, truth.sum()):.2f} times its true volume")
with_t1ce = [value for name, value in found.items() if "T1ce" in name]
without = [value for name, value in found.items() if "T1ce" not in name]
print(f"with T1ce {min(with_t1ce):.2f} to {max(with_t1ce):.2f}, without it {min(without):.2f} to {max(without):.2f}")

# %% [markdown]
# Of the four sequences only T1ce tells enhancing tumour from the rest of the core, so without it ET is a guess. This is
# one case. Which subsets suffice for what, over many, is the subject of [notebook 5](05_evaluation.ipynb).
#
# ## Key points
#
# - A missing modality's image is skipped, not zeroed: no read, no gradient, no attention, no position embedding.
# - Encoders are independent of the subset; what follows them is what a subset costs.
# - "No trace of what is missing" can be tested to the bit; the test suite does so for every subset. That a network is
#   robust does not follow from it.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/02_missing_modalities.py) say why.
#
# ### Exercise 2.1: Which subsets have it?
#
# Training draws each of the 15 subsets equally often. List those that contain *all* of some sequences. In what share of
# the samples does a branch then see T1ce? In what share T1ce *and* FLAIR?


# %%
# Exercise 2.1
def subsets_with(names):
    """The subsets out of SUBSETS, in their order, that contain every one of the names."""
    return ...


# %%
with course.check("2.1"):
    found = {names: subsets_with(names) for names in (("t1ce",), ("flair", "t1ce"), ("flair", "t1ce", "t1", "t2"))}
    assert len(found["t1ce",]) == 8, "each sequence is in or out, whatever the other three do: 2 x 2 x 2 with T1ce"
    assert len(found["flair", "t1ce"]) == 4, "every name must be there, not just one of them"
    for names, subsets in found.items():
        assert list(subsets) == [s for s in SUBSETS if not set(names) - set(s)], "all that have them, in that order"
    print(", ".join(f"{subset_name(names)} in {len(subsets)} of 15" for names, subsets in found.items()))

# %% [markdown]
# ### Exercise 2.2: A mean over what is there
#
# The simplest fusion of all: average the maps of the sequences that are present. A missing one may hold anything, NaN
# too; it must change neither the value nor any gradient. And a NaN in a sequence that *is* present must not be hidden:
# it is an error that somebody should see.


# %%
# Exercise 2.2
def masked_mean(maps, present):
    """Mean over the present modalities: maps [B, M, C, X, Y, Z] and bool present [B, M] -> [B, C, X, Y, Z]."""
    return ...


# %%
with course.check("2.2"):
    torch.manual_seed(1)
    maps, present = torch.randn(2, 4, 3, 2, 2, 2), torch.tensor([[True, False, True, False], [False, True, True, True]])
    expected = torch.stack([maps[b][present[b]].mean(dim=0) for b in range(2)])
    maps[~present] = float("nan")
    mine = masked_mean(maps.requires_grad_(), present)
    assert not torch.isnan(mine).any(), "a missing map got in: 0 x NaN is NaN"
    assert torch.allclose(mine, expected, atol=1e-6), "divide by how many are present in that sample, not by four"
    mine.sum().backward()
    assert torch.equal(maps.grad[~present], torch.zeros_like(maps.grad[~present])), "a missing map gets a gradient"
    assert masked_mean(torch.full_like(maps, float("nan")), present).isnan().all(), "a NaN that is present was hidden"

# %% [markdown]
# ### Exercise 2.3: Zero filling leaves a trace
#
# "Set the missing image to zero, the encoder will make nothing of it." Measure what it makes. With zero filling every
# encoder runs, a missing modality's on zeros, and all maps are fused as if all were present; with selection, missing
# encoders do not run, and `masked_fusion` is told who is present. Return the largest difference between the two fused
# maps. Where does it come from, and for which encoders is there none?


# %%
# Exercise 2.3
def trace_of_zero_filling(encoders, images, present, weight, bias):
    """Largest |zero filling - selection| of the fused maps; images [B, 1, X, Y, Z] per modality, present [1, M]."""
    return ...


# %%
with course.check("2.3"):
    torch.manual_seed(2)
    images, weight, bias = [torch.randn(1, 1, 6, 6, 6) for _ in range(2)], torch.randn(3, 8), torch.randn(3)
    conv, given = torch.nn.Conv3d, torch.tensor([[True, False]])
    usual = [torch.nn.Sequential(conv(1, 4, 3, padding=1), conv(4, 4, 3, padding=1)) for _ in range(2)]
    unbiased = [conv(1, 4, 3, padding=1, bias=False) for _ in range(2)]
    with torch.no_grad():
        trace, everything, none = (
            float(trace_of_zero_filling(encoders, images, mask, weight, bias))
            for encoders, mask in ((usual, given), (usual, torch.tensor([[True, True]])), (unbiased, given))
        )
    assert everything < 1e-5, "where nothing is missing, the two are the same"
    assert none < 1e-5, "without biases zeros stay zeros; did you fill the right image?"
    assert trace > 0.1, "a missing image still speaks: let every encoder run, and fuse as if all were present"
    print(f"zero filling changes the fused map by up to {trace:.2f}")

# %% [markdown]
# ## Read next
#
# **Next:** [3. Masked mutual learning](03_masked_mutual_learning.ipynb).
