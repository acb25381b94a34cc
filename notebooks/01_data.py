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
# # 1. The data: what each sequence shows
#
# **Question.** Why does a tumour need four MRI sequences, and what is lost when one is missing?
#
# After this notebook you can
# - say what FLAIR, T1ce, T1 and T2 show of a glioma, from the signal equation down to the voxels;
# - read a case from disk in any BraTS layout, and know what its labels and axes mean;
# - prepare it for a network, one sequence at a time, and bring a result back to the original grid;
# - name what the simulated cohort can and cannot stand for.
#
# About one minute on two CPU cores, 1 GB of memory. Everything shown is **simulated**: real average anatomy (MNI152),
# a grown tumour, the scanner's physics. No patient's data is used, and no result here says anything about patients.

# %%
import numpy as np
import pandas as pd
import plotly.express as px

from smml import course, figures
from smml.data import read_case
from smml.data.preprocessing import normalise, prepare
from smml.data.simulation.signal import SEQUENCES, T1_ENHANCED, TISSUES

figures.use_theme()
files = course.training_cohort(course.size(full=16, fast=4))
cases = [read_case(file) for file in files]
print(f"{len(cases)} simulated cases of {cases[0].shape} voxels, {cases[0].spacing[0]:g} mm")

# %% [markdown]
# ## One case, four sequences
#
# The same slice through the case with the largest enhancing tumour. Right and left are the patient's, in
# radiological convention. **ED** is oedema, water in the tissue around the tumour; **ET** is tumour that takes up
# contrast agent; **NCR/NET** is its dead or non-enhancing part.

# %%
largest = max(cases, key=lambda case: int((case.label == 3).sum()))
figures.modality_figure(largest)

# %% [markdown]
# Look for the bright rim: it is in T1ce and nowhere else. Look for the full extent of the oedema: FLAIR shows it best,
# because it makes the fluid in the ventricles dark; T2 shows it too, beside equally bright fluid. T1 shows little.
#
# ## Why: the signal equation
#
# A spin-echo image weighs each tissue by its proton density and relaxation times,
# $$S = \mathrm{PD}\,\bigl(1 - e^{-T_R/T_1}\bigr)\,e^{-T_E/T_2},$$
# and FLAIR inverts the magnetisation first, so that one $T_1$ (that of fluid) is nulled:
# $$S = \mathrm{PD}\,\bigl|1 - 2e^{-T_I/T_1} + e^{-T_R/T_1}\bigr|\,e^{-T_E/T_2}.$$
# Contrast agent does one thing: it shortens $T_1$ where it leaks into the tissue. By hand, then against the package:


# %%
def flair(t1, t2, pd, tr=9000, te=120, ti=2500):
    return pd * abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


oedema, fluid = TISSUES["ED"], TISSUES["csf"]
for tissue in (oedema, fluid):
    assert np.isclose(flair(tissue.t1, tissue.t2, tissue.pd), SEQUENCES["flair"].signal(tissue))
print(f"FLAIR: oedema {flair(oedema.t1, oedema.t2, oedema.pd):.3f}, fluid {flair(fluid.t1, fluid.t2, fluid.pd):.3f}")

# %%
signals = {}
for sequence, settings in SEQUENCES.items():
    for name in ("white", "grey", "csf", "ED", "ET", "NCR"):
        tissue = TISSUES[name]
        if sequence == "t1ce" and name in T1_ENHANCED:
            tissue = type(tissue)(np.mean(T1_ENHANCED[name]), tissue.t2, tissue.pd)
        signals[sequence, name] = settings.signal(tissue) / settings.signal(TISSUES["white"])
frame = pd.Series(signals).rename_axis(["sequence", "tissue"]).rename("signal / white matter").reset_index()
px.bar(frame, x="sequence", y="signal / white matter", color="tissue", barmode="group",
       title="What the equations give: signal relative to white matter", height=360, width=900)  # fmt: skip

# %% [markdown]
# ## And in the images
#
# The equations know nothing of noise, bias fields, blur and mixed voxels. Measured in the simulated cohort: the median
# of each class over the median of normal brain.

# %%
rows = []
for case in cases:
    for name, volume in case.volumes.items():
        normal = np.median(volume[(volume > 0) & (case.label == 0)])
        for value, label in enumerate(case.scheme.classes[1:], start=1):
            if (case.label == value).sum() > 30:
                ratio = np.median(volume[case.label == value]) / normal
                rows.append({"sequence": name, "class": label, "ratio": ratio})
contrast = pd.DataFrame(rows).groupby(["sequence", "class"])["ratio"].mean().unstack().loc[list(SEQUENCES)]
contrast.round(2)

# %%
enhancing = contrast["ET"] - contrast["NCR/NET"]
print(f"ET stands out from the rest of the core by {enhancing['t1ce']:+.2f} on T1ce, {enhancing['t1']:+.2f} on T1,")
print(f"{enhancing['flair']:+.2f} on FLAIR and {enhancing['t2']:+.2f} on T2 (units: normal brain = 1).")
assert enhancing["t1ce"] > 3 * enhancing.drop("t1ce").abs().max()

# %% [markdown]
# ## What lies on disk
#
# The simulator writes the files of a real data set, so what reads them here reads yours. The layout is told from the
# names; label values and axes are the data set's own (BraTS stores ET as 4, and its images run to the left and to the
# back: LPS).

# %%
case = largest
for name, path in case.sources.items():
    print(f"{name:6s} {path.name}")
print("axes", "".join(case.orientation), "| on disk", case.scheme.on_disk, "| here", case.scheme.classes)
print("layout", case.layout)

# %% [markdown]
# ## Preparing a case: each sequence by itself
#
# Turn to RAS+, resample, then give the brain of *each sequence* mean 0 and standard deviation 1, and leave the
# background at 0. Public code crops and normalises with all four sequences, "missing" ones too; then a sequence that
# the network must not know still decides what it sees. Here nothing is shared:

# %%
prepared = prepare(case)
image = normalise(prepared.geometry.forward(case.volumes["flair"]))
assert np.array_equal(prepared.image[0].numpy(), image.numpy())
inside = prepared.image[0][prepared.image[0] != 0]
print(f"FLAIR inside the brain: mean {inside.mean():.3f}, standard deviation {inside.std():.3f}")

# %% [markdown]
# The way back is part of the preparation: one-hot labels that go there and back are unchanged, to the voxel.

# %%
one_hot = np.stack([prepared.label == k for k in range(4)]).astype(np.float32)
back = prepared.geometry.inverse(prepared.image.new_tensor(one_hot)).argmax(dim=0).numpy()
assert np.array_equal(back, case.label)
voxel_ml = np.prod(case.spacing) / 1000
volumes = pd.DataFrame(
    [{r: c.scheme.region(c.label, r).sum() * voxel_ml for r in ("WT", "TC", "ET")} | {"case": c.id} for c in cases]
)
px.box(volumes.melt("case", var_name="region", value_name="ml"), x="region", y="ml", points="all",
       title="Tumour volumes in the simulated cohort", height=340, width=600)  # fmt: skip

# %% [markdown]
# ## Key points
#
# - T1ce alone separates ET; FLAIR and T2 carry the oedema; T1 adds little on its own.
# - A case keeps its own grid, axes and label values; the network's view is made per sequence and can be undone.
# - The simulator has these contrasts because it was given them. It has no surgery cavities, no haemorrhage, no motion,
#   one scanner, and average anatomy. A method that works here has passed a first test, no more.
#
# **Your own data:** `find_cases("/path/to/BraTS")` lists it, `read_case` reads it, everything else is the same.
#
# **Next:** [2. Missing modalities](02_missing_modalities.ipynb).
