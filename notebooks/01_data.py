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
# A minute or two on two CPU cores. It needs nothing from other notebooks.
#
# Every image here is **simulated**: real average anatomy (MNI152), a grown tumour, the scanner's physics. Two tables
# below use numbers that were measured in patients, and say so; no patient's image is shown or was trained on.

# %%
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import torch

from smml import course, figures
from smml.data import read_case
from smml.data.preprocessing import normalise, prepare
from smml.data.simulation.contrast import draw_protocol, draw_tissues
from smml.data.simulation.draws import Middle
from smml.evaluation import Scores, overlap_table
from smml.modalities import MODALITIES

figures.use_theme()

# Every simulated subject has tissues and protocols of its own; these are the middle of what they are drawn from.
tissues, enhanced = draw_tissues(Middle())
protocols = {name: draw_protocol(Middle(), name) for name in MODALITIES}

# %%
files = course.training_cohort(course.size(full=16, fast=4))
cases = [read_case(file) for file in files]
print(f"{len(cases)} simulated cases of {cases[0].shape} voxels, {cases[0].spacing[0]:g} mm")

# %% [markdown]
# ## One case, four sequences
#
# The same slice through the case with the largest enhancing tumour. Right and left are the patient's, in radiological
# convention. **ED** is oedema, swollen tissue around the tumour with tumour cells in it; **ET** is tumour that takes up
# contrast agent; **NCR/NET** is its dead or non-enhancing part.

# %%
largest = max(cases, key=lambda case: int((case.label == 3).sum()))
figures.modality_figure(largest)

# %% [markdown]
# Look for the enhancing tumour: only on T1ce does it stand out from the rest of the core. Not all that is bright there
# is tumour: vessels and the brain's coverings take up the agent too. Look for the full extent of the oedema: FLAIR
# shows it best, because it makes the fluid in the ventricles dark; T2 shows it too, beside equally bright fluid. On T1
# all of the tumour is somewhat dark, its core more than the oedema.
#
# ## Why: the signal equation
#
# A spin-echo image weighs each tissue by its proton density and relaxation times,
# $$S = \mathrm{PD}\,\bigl(1 - e^{-T_R/T_1}\bigr)\,e^{-T_E/T_2},$$
# (the *sequence* T1 is named after the *relaxation time* $T_1$ that it emphasises; times are set in italics, in ms),
# and FLAIR inverts the magnetisation first, so that one $T_1$ (that of fluid) is nulled:
# $$S = \mathrm{PD}\,\bigl|1 - 2e^{-T_I/T_1} + e^{-T_R/T_1}\bigr|\,e^{-T_E/T_2}.$$
# What matters here of contrast agent is that it shortens $T_1$: where it leaks into the tissue, and in vessels. By
# hand, then against the package:


# %%
def flair(t1, t2, pd, tr, te, ti):
    return pd * abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


times = protocols["flair"]
for name in ("ED", "csf"):
    tissue = tissues[name]
    by_hand = flair(tissue.t1, tissue.t2, tissue.pd, times.tr, times.te, times.ti)
    assert np.isclose(by_hand, times.signal(tissue))
    print(f"{name:3s} T1 {tissue.t1:.0f} ms, T2 {tissue.t2:.0f} ms, so {by_hand:.3f} on FLAIR")

# %%
signals = {}
for sequence, protocol in protocols.items():
    shown = tissues | enhanced if sequence == "t1ce" else tissues
    for name in ("white", "grey", "csf", "ED", "ET", "NCR", "vessel"):
        signals[sequence, name] = protocol.signal(shown[name]) / protocol.signal(shown["white"])
frame = pd.Series(signals).rename_axis(["sequence", "tissue"]).rename("signal / white matter").reset_index()
px.bar(frame, x="sequence", y="signal / white matter", color="tissue", barmode="group",
       title="What the equations give: signal relative to white matter", height=360, width=900)  # fmt: skip

# %% [markdown]
# T1ce is a T1 sequence after contrast agent; here with the same $T_R$ and $T_E$. **This is why T1 alone is hopeless for
# ET:** without the agent, enhancing tumour has nearly the $T_1$ of oedema and of tumour that does not enhance. Only
# necrosis is longer, and a little darker, which is not much beside the noise of an image.

# %%
assert protocols["t1"] == protocols["t1ce"]
for name in ("white", "ED", "NET", "NCR", "ET"):
    print(f"{name:5s} T1 {tissues[name].t1:4.0f} ms, so {protocols['t1'].signal(tissues[name]):.3f} on the sequence T1")
after = enhanced["ET"]
print(f"ET with contrast agent: T1 {after.t1:.0f} ms, so {protocols['t1ce'].signal(after):.3f} on T1ce")

# %% [markdown]
# What the voxels do not show, no network can read from them: a mask of ET from T1 alone is a guess from the shape of
# the core and the faint shade of its necrosis, and notebook 5 shows what such guesses are worth.
#
# ## And in the images
#
# The equations know nothing of noise, bias fields, thick slices and mixed voxels, and every subject has tissues and
# protocols of its own. Measured in the simulated cohort: the median of each class over the median of normal brain,
# grey matter and fluid too.

# %%
rows = []
for case in cases:
    for name, volume in case.volumes.items():
        normal = np.median(volume[(volume > 0) & (case.label == 0)])
        for value, label in enumerate(case.scheme.classes[1:], start=1):
            if (case.label == value).sum() > 30:
                ratio = np.median(volume[case.label == value]) / normal
                rows.append({"sequence": name, "class": label, "ratio": ratio})
contrast = pd.DataFrame(rows).groupby(["sequence", "class"])["ratio"].mean().unstack().loc[list(MODALITIES)]
enhancing = contrast["ET"] - contrast["NCR/NET"]
print(f"ET stands out from the rest of the core by {enhancing['t1ce']:+.2f} on T1ce, {enhancing['t1']:+.2f} on T1,")
print(f"{enhancing['flair']:+.2f} on FLAIR and {enhancing['t2']:+.2f} on T2 (units: normal brain = 1).")
assert enhancing["t1ce"] > 3 * enhancing.drop("t1ce").abs().max()
contrast.round(2)

# %% [markdown]
# ## What lies on disk
#
# The simulator writes files as BraTS has them (it stores ET as 4, and its images run to the left and to the back: LPS),
# so what reads them here reads yours. Only the ids are its own: what is simulated must never be taken for a patient.
# The layout is told from the names; with `layout="brats2023"`, say, the names and label values are that data set's.

# %%
case = largest
for name, path in case.sources.items():
    print(f"{name:6s} {path.name}")
print("axes", "".join(case.orientation), "| on disk", case.scheme.on_disk, "| here", case.scheme.classes)
print("layout", case.layout)

# %% [markdown]
# ## Preparing a case: each sequence by itself
#
# Turn to RAS+, tell the brain from the background, cut off extreme voxels, resample, divide out the slow shading of the
# coil, then give the brain of *each sequence* mean 0 and standard deviation 1, and leave the background at 0. Public
# code crops and normalises with all four sequences, "missing" ones too; then a sequence that the network must not know
# still decides what it sees. Here nothing is shared:

# %%
prepared = prepare(case)
alone = prepare(replace(case, volumes={"flair": case.volumes["flair"]}))
assert torch.equal(alone.image[0], prepared.image[0])  # the other three changed no bit of it
image, brain = prepared.image[0], prepared.brain[0]
print(f"FLAIR inside the brain: mean {image[brain].mean():.3f}, standard deviation {image[brain].std():.3f}")

scanner = torch.where(brain, 900 + 250 * image, 0)  # other units of brightness
by_hand = (scanner[brain] - scanner[brain].mean()) / scanner[brain].std(correction=0)
assert torch.allclose(normalise(scanner, brain)[brain], by_hand, atol=1e-4)
assert torch.allclose(by_hand, image[brain], atol=1e-3)

# %% [markdown]
# The way back is part of the preparation. Here nothing is resampled, only axes are turned, and one-hot labels that go
# there and back are unchanged, to the voxel.

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
# ## Simulated and real
#
# What must a simulator get right? Not beauty: what a network could lean on. If ET on T1ce were always brighter than
# everything else, a threshold would find it, and a network that has learnt the threshold fails at the first vessel. So
# brightness was measured in patients (numbers alone; no image of theirs is here) and in simulated subjects, in
# standard deviations from the mean of the brain. Two *looks* aim at it: `typical`, whose median is to lie in the
# patients' range, and `varied`, for training, which is to reach beyond both of its ends.

# %%
folder = course.results_folder() / "simulator-statistics"
patients, *looks = (
    json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("patients", "typical", "varied")
)
seen, names = {row["name"]: row for row in patients["rows"]}, [row["name"] for row in patients["rows"]]
for said in (patients, *looks):
    print(said["what"])
for look, name in zip(looks, ("typical", "varied"), strict=True):
    pairs = [(row, look["rows"][what]) for what, row in seen.items()]
    inside = sum(row["low"] <= found["median"] <= row["high"] for row, found in pairs)
    covered = sum(found["p5"] <= row["low"] and row["high"] <= found["p95"] for row, found in pairs)
    print(f"{name}: of {len(seen)} ranges, the median lies in {inside}, and the middle 90 % cover {covered}")

# %%
figure, places = go.Figure(), np.arange(len(names), 0, -1)
bars = [("patients, whole range", [(seen[name]["low"], seen[name]["high"]) for name in names], None)]
for look, title in zip(looks, ("typical, middle 90 %", "varied, middle 90 %"), strict=True):
    rows = [look["rows"][name] for name in names]
    bars.append((title, [(row["p5"], row["p95"]) for row in rows], [row["median"] for row in rows]))
styles = zip((0.25, 0, -0.25), ("#222222", "#0072B2", "#E69F00"), bars, strict=True)
for shift, colour, (title, ends, medians) in styles:
    x, y = [end for pair in ends for end in (*pair, None)], np.repeat(places + shift, 3)
    figure.add_scatter(x=x, y=y, name=title, mode="lines", line={"color": colour, "width": 6})
    if medians:
        circle = {"color": "white", "size": 7, "line": {"color": colour, "width": 2}}
        figure.add_scatter(x=medians, y=places + shift, mode="markers", showlegend=False, marker=circle)
figure.update_yaxes(tickvals=places, ticktext=names)
floors, tops = zip(*(pair for _, ends, _ in bars for pair in ends), strict=True)
figure.update_layout(
    title="Brightness in patients and in simulated subjects; circles are medians", height=520, width=900,
    xaxis_title="z-score within the brain", xaxis_range=[min(floors) - 0.3, max(tops) + 0.3], margin={"l": 260},
)  # fmt: skip

# %% [markdown]
# Each of these numbers could be measured and tuned. What nobody measured may still be wrong.
#
# The first simulator had no such numbers to meet. What became of weights that were trained on it (`small`, first
# edition, [its scores then](../results/first-edition/README.md)), and of weights of the new one? Dice on held-out
# simulated subjects, each edition's own, and on the same five patients for both, over those that have the region; WT
# and TC, as one of the patients has no ET:

# %%
results, rows = course.results_folder(), {}
looks = pd.read_csv(results / "patients" / "looks.csv").query("group == 'all' and cases == 5")
shipped = pd.read_json(results / "patients" / "shipped.json", typ="series")["small"]
for edition, weights, folder in (
    ("first edition", "small", "first-edition/simulator/small"),
    ("now", shipped, "simulator/small/typical"),
):
    simulated = overlap_table(Scores.read(results / folder))
    # The first row of each is of the weights as they were made; what follows prepares the images in other ways.
    patients = looks[looks["weights"] == weights].groupby("subset").first()
    for case in (f"{region} from {subset}" for region in ("WT", "TC") for subset in ("FLAIR", "T1ce", "FLAIR+T1ce")):
        region, _, subset = case.split()
        rows[case, edition] = {
            "simulated": simulated.loc[subset, f"Dice {region}"], "patients": patients.loc[subset, region]
        }  # fmt: skip
frame = pd.DataFrame(rows).transpose()
change = frame["patients"].unstack()
worse = change.index[change["now"] < change["first edition"]]
gap = (frame["simulated"] - frame["patients"]).unstack()
for case, row in gap.iterrows():
    print(f"{case}: Dice in patients lower by {row['first edition']:.2f} in the first edition, by {row['now']:.2f} now")
assert (gap["now"] < gap["first edition"]).all()  # as said below
print(f"on these {int(patients['cases'].max())} patients now worse than then: {', '.join(worse) or 'nothing'}")
frame.unstack().round(2)

# %% [markdown]
# ## Key points
#
# - T1ce alone separates ET, though vessels are bright there too; FLAIR and T2 carry the oedema; T1 shows
#   the core somewhat dark, and hardly what of it enhances.
# - A case keeps its own grid, axes and label values; the network's view is made per sequence, and there is a way back.
# - The simulator has these contrasts because it was given them. Its heads are one average head, warped, folded and
#   aged; it has no surgery cavities, no motion, no disease but gliomas and the scars of age. A method that works here
#   has passed a first test, no more. With a new simulator, training and preparation the gap to five patients is
#   smaller; which of the three did it was not measured.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/01_data.py) say why.
#
# ### Exercise 1.1: When is fluid dark?
#
# FLAIR's inversion time is chosen so that fluid gives no signal. Solve $1 - 2e^{-T_I/T_1} + e^{-T_R/T_1} = 0$ for
# $T_I$, in the unit of $T_1$ and $T_R$. Then compare with the sequence's own $T_I$: how dark is fluid in these images?


# %%
# Exercise 1.1
def nulling_time(t1, tr):
    """The inversion time at which a tissue with this T1 gives no signal."""
    return ...


# %%
with course.check("1.1"):
    t1, tr = tissues["csf"].t1, protocols["flair"].tr
    ti = nulling_time(t1, tr)
    assert 0 < ti < tr, f"{ti:.0f} ms: the inversion lies between two excitations, 0 and {tr:.0f} ms apart"
    left = 1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)
    assert abs(left) < 1e-9, (
        f"at {ti:.0f} ms {left:+.3f} of the magnetisation is left; solve for the time where none is"
    )
    print(f"fluid is nulled at {ti:.0f} ms; this FLAIR's inversion time is {protocols['flair'].ti:.0f} ms")

# %% [markdown]
# ### Exercise 1.2: Statistics of the brain, not of the air
#
# Bring the non-zero voxels to mean 0 and standard deviation 1 and leave the zeros. What would go wrong if mean and
# deviation were taken over all voxels, and the next scanner's files had a wider rim of air?


# %%
# Exercise 1.2
def my_normalise(volume):
    """z-scores of a float array [X, Y, Z] over its non-zero voxels; zeros stay zero."""
    return ...


# %%
with course.check("1.2"):
    brain = np.zeros((10, 10, 10), np.float32)
    brain[2:8, 2:8, 2:8] = np.random.default_rng(1).uniform(50, 150, (6, 6, 6))
    mine = my_normalise(brain)
    expected = normalise(torch.from_numpy(brain), torch.from_numpy(brain != 0)).numpy()
    wide = my_normalise(np.pad(brain, 5))[5:-5, 5:-5, 5:-5]
    assert np.allclose(mine, wide, atol=1e-4), "more air around the brain must not change the brain"
    assert not mine[brain == 0].any(), "the background is no longer 0"
    # Whether the deviation is divided by n or by n - 1 does not matter here.
    assert np.allclose(mine, expected, atol=0.01), "compare mean and standard deviation inside the brain with 0 and 1"
    print(f"over all voxels the mean would be {brain.mean():.0f} instead of {brain[brain > 0].mean():.0f}")

# %% [markdown]
# ## Read next
#
# **Your own data:** `find_cases("/path/to/BraTS")` lists it, `read_case` reads it, everything else is the same.
#
# **Next:** [2. Missing modalities](02_missing_modalities.ipynb).
