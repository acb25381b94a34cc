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
# # 0. A tour: one brain, four sequences, and what is missing
#
# **Question.** What is the problem, and what does this course do about it?
#
# After this notebook you can
# - say why a network that needs four MRI sequences is of little use to a patient who has three;
# - switch sequences off in the viewer and read what becomes of the segmentation;
# - name the sequence that each region of a tumour depends on, in this cohort;
# - find the notebook that answers your own question.
#
# A minute or two on two CPU cores (`make run` prints the time and the memory of each notebook). It needs nothing from
# other notebooks.
#
# All images are **simulated**: heads grown from average anatomy, a grown tumour, the scanner's physics. They let the
# whole course run on a laptop without a patient's data. What the weights made from them do on patients stands below, as
# numbers.

# %%
import numpy as np
import pandas as pd
import plotly.express as px
from IPython.display import display
from PIL import Image

from smml import course, figures
from smml.data import REGIONS, read_case
from smml.evaluation import Scores, dice, overlap_table, summary_table
from smml.figures.theme import REGION_COLOURS
from smml.inference import Predictor
from smml.modalities import DISPLAY_NAMES, MODALITIES, SUBSETS, subset_name
from smml.viewer import ModalityViewer, viewer_picture

figures.use_theme()

# %% [markdown]
# ## The problem
#
# A brain tumour is imaged with four MRI sequences, because each shows something else: FLAIR and T2 the oedema (**ED**)
# around it, T1ce the part that takes up contrast agent (**ET**), T1 the anatomy beside it. What is scored are three
# nested regions: the whole tumour (**WT**), its core without the oedema (**TC**), and ET.
#
# Methods that were trained on all four need all four. In a clinic one may not be there: no contrast agent for this
# kidney, a scan cut short, a protocol of years ago. Here is a simulated case that no training has seen, complete:

# %%
files = course.held_out_cohort(course.size(full=6, fast=2))
cases = [read_case(file) for file in files]
case = max(cases, key=lambda case: int((case.label == 3).sum()))  # in memory label 3 is ET
figures.modality_figure(case)

# %% [markdown]
# ## Take a sequence away
#
# The viewer gives the model what you check, and nothing else. Uncheck T1ce and wait a moment; then try T1 alone. (The
# weights, `"tiny"`, ship with the package. The controls need a running kernel: `make lab`. A page without one shows the
# viewer's picture, and more pictures follow.)

# %%
predictor = Predictor.from_checkpoint("tiny")
viewer = ModalityViewer(case, predictor)
viewer.wait(timeout=None)  # as long as this machine needs
display(viewer)

# %% [markdown]
# ## One subset after another
#
# Four sequences have 15 non-empty subsets. One network serves them all: it encodes each sequence by itself, once, and
# fuses whatever is there. Dice measures overlap with the truth, from 0 (none) to 1 (the same voxels).

# %%
encoding = predictor.encode(case)
results, rows = {}, []
for subset in (*SUBSETS[:4], SUBSETS[11], SUBSETS[14]) if course.FAST else SUBSETS:
    name = subset_name(subset)
    results[name] = predictor.segment(encoding, subset)
    for region in REGIONS:
        found, truth = predictor.scheme.region(results[name].labels, region), case.scheme.region(case.label, region)
        rows.append({"subset": name, "region": region, "Dice": dice(found, truth)})
scores = pd.DataFrame(rows)
Image.fromarray(viewer_picture(case, results["FLAIR+T1+T2"]))

# %% [markdown]
# That was everything but T1ce, which is what a scan without contrast agent leaves. Now T1 alone. How much paint lies
# where there is no tumour, and how much tumour has none?

# %%
said, there = results["T1"].labels > 0, case.label > 0
voxel_ml = float(np.prod(case.spacing)) / 1000
print(f"from T1 alone: {(said & ~there).sum() * voxel_ml:.0f} ml called where there is no tumour, "
      f"{(there & ~said).sum() * voxel_ml:.0f} of {there.sum() * voxel_ml:.0f} ml of tumour not called")  # fmt: skip
Image.fromarray(viewer_picture(case, results["T1"]))

# %%
title = f"{case.id}, simulated: Dice from {len(results)} subsets"
figure = px.bar(scores, x="subset", y="Dice", color="region", barmode="group", title=title, height=400, width=900,
                color_discrete_map=REGION_COLOURS, labels={"subset": ""})  # fmt: skip
figure.update_traces(marker_line={"color": "#555555", "width": 1}).update_xaxes(tickangle=-40)
figure.update_layout(margin={"b": 120})

# %%
one = scores.pivot(index="subset", columns="region", values="Dice")
everything, no_contrast = one.loc[subset_name(MODALITIES)], one.loc["FLAIR+T1+T2"]
print(f"all four sequences:  WT {everything['WT']:.2f}, TC {everything['TC']:.2f}, ET {everything['ET']:.2f}")
print(f"without T1ce:        WT {no_contrast['WT']:.2f}, TC {no_contrast['TC']:.2f}, ET {no_contrast['ET']:.2f}")
alone = one.loc[list(DISPLAY_NAMES.values())]
print("best single sequence:", ", ".join(f"{region} {alone[region].idxmax()}" for region in ("WT", "TC", "ET")))

# %% [markdown]
# One case is an anecdote. The same, as means over more held-out cases, from the committed measurement
# ([results/simulator](../results/simulator/tiny/typical/sequences.md)):

# %%
committed = Scores.read(course.results_folder() / "simulator" / "tiny" / "typical")
table = overlap_table(committed)
print(f"{committed.frame['case'].nunique()} simulated cases; Dice over those that have the region")
table.loc[[subset_name(MODALITIES), "FLAIR+T1+T2", "T1ce", "T1", "mean"], ["Dice WT", "Dice TC", "Dice ET"]].round(2)

# %% [markdown]
# No method can see ET where no sequence shows it; a Dice well above 0 without T1ce would be a guess from what usually
# lies inside a core. What a method *can* do is to lose no more than that: to find in the
# sequences at hand all that they hold, and not to fall apart because one is gone.
#
# Some of these subjects have no tumour, and some tumours no ET. There Dice has nothing to measure: what counts is how
# often something is called all the same. The literature counts a correct "nothing" as Dice 1 and a false alarm as 0,
# and averages that with the rest, so its mean mixes the two:

# %%
mixed = summary_table(committed)
for subset in ("T1ce", "T1"):
    own = table.loc[subset]
    print(f"ET from {subset:4s} alone: Dice {own['Dice ET']:.2f} where there is ET, called in "
          f"{own['false alarms ET']:.0%} of the cases without it; the literature's mean of both: "
          f"{mixed.loc[subset, 'Dice ET']:.2f}")  # fmt: skip

# %% [markdown]
# ## And on patients?
#
# No image of one was used for these weights, though what was seen in the following five led to changes of the
# simulator. These five patients were scored with the larger ones, `"small"` ([card](../smml/weights/small.md)), from
# the sequences that all five have. Mean Dice over all of them as the literature takes it: where a region is absent, a
# correct "nothing" counts 1 and a false alarm 0. Beside it the weights of the [first
# edition](../results/first-edition/README.md), whose simulator was simpler:

# %%
subsets = ["FLAIR", "T1ce", "FLAIR+T1ce"]
folder = course.results_folder() / "patients"
looks = pd.read_csv(folder / "looks.csv").query("group == 'all' and cases == 5")
first = looks[(looks["weights"] == "small") & (looks["preprocessing"] == 2)]
last = looks[looks["weights"] == pd.read_json(folder / "shipped.json", typ="series")["small"]]
patients = pd.concat({words: rows.set_index("subset").loc[subsets, list(REGIONS)]
                      for words, rows in (("first edition", first), ("now", last))}, axis=1)  # fmt: skip
assert not patients.isna().any(axis=None), "a subset has no rows among these weights'"
change = 100 * (patients["now"] - patients["first edition"])
for region in REGIONS:
    print(f"{region}: " + ", ".join(f"{value:+.0f} points from {name}" for name, value in change[region].items()))
patients.round(2)

# %% [markdown]
# ## What this course does about it
#
# It builds, explains and tests one such method, *masked mutual learning* (Liang et al., AAAI 2025,
# [arXiv:2507.07592](https://arxiv.org/abs/2507.07592)), and says where the paper leaves something open:

# %%
figures.method_figure("tiny")

# %% [markdown]
# Both see the same brain through different masks, so each knows something that the other does not. An optional
# refinement then asks a Segment Anything Model about what they found.
#
# ## Where to go from here
#
# | notebook | question |
# |---|---|
# | [1. The data](01_data.ipynb) | Why does a tumour need four sequences, and what do files and labels mean? |
# | [2. Missing modalities](02_missing_modalities.ipynb) | How does one network serve 15 subsets? |
# | [3. Masked mutual learning](03_masked_mutual_learning.ipynb) | What can two networks teach each other? |
# | [4. Hierarchical consistency](04_hierarchical_consistency.ipynb) | What is exchanged, gate by gate? |
# | [5. Evaluation](05_evaluation.ipynb) | How good is each subset, and how is that number made? |
# | [6. Refinement](06_refinement.ipynb) | What may SAM see, and what is it worth? |
# | [7. Training and ablation](07_training_and_ablation.ipynb) | Which of the method's parts earn their keep? |
# | [8. Your own case](08_your_own_case.ipynb) | How do I run it on my images, and when may I believe it? |
# | [9. Fused kernels](09_fused_kernels.ipynb) | Why is a short loss slow on a GPU, and what helps? |
#
# | if you ask | read |
# |---|---|
# | "I have scans of my own, with sequences missing." | notebook 8, then 2 |
# | "I have BraTS and want to train." | notebooks 1, 3 and 7, then `smml train --help` |
# | "Is it any good, and compared with what?" | notebook 5, and [results](../results/simulator/tiny/typical/table.md) |
# | "What exactly are the losses?" | notebooks 3 and 4, then [docs/EQUATIONS.md](../docs/EQUATIONS.md) |
# | "Why is L_rel linear in N, and when is it not worth it?" | notebook 4, then 9 |
# | "I build my own model and want the parts." | notebooks 2, 4 and 9, and *The kernels* in the [README](../README.md) |
# | "Does a foundation model help, and what may it see?" | notebook 6 |
# | "Does teaching help, or is it the average of two? How would I find out?" | notebook 7 |
# | "What does that word mean?" | [docs/GLOSSARY.md](../docs/GLOSSARY.md) |
#
# ## Key points
#
# - What a sequence does not show cannot be segmented from it; what can be asked for is to lose nothing else.
# - One network for all 15 subsets: encoders that do not know what is missing, a fusion that takes what is there.
# - Simulated cases show that the method does what it says. They cannot show how well it does on patients.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/00_tour.py) say why.
#
# ### Exercise 0.1: Which sequence would be missed most?
#
# From a table over the subsets (rows named like "FLAIR+T2", columns "Dice WT", "Dice TC", "Dice ET", over the cases
# that have the region): which one of the four costs a region most, if it alone is taken away from all four? Let the
# table answer, not what you know.


# %%
# Exercise 0.1
def most_missed(table, region):
    """Name ("FLAIR", "T1ce", "T1" or "T2") of the sequence without which the Dice of the region falls most."""
    return ...


# %%
with course.check("0.1"):
    table = overlap_table(Scores.read(course.results_folder() / "simulator" / "tiny" / "typical"))
    answers = {region: most_missed(table, region) for region in ("WT", "TC", "ET")}
    assert set(answers.values()) <= set(DISPLAY_NAMES.values()), f"{answers['ET']} is not the name of a sequence"
    assert answers["ET"] == "T1ce", "compare the row of all four with the four rows of three"
    made = pd.DataFrame(0.9, index=table.index, columns=[f"Dice {region}" for region in answers])
    wanted = {"ET": "flair", "TC": "t1", "WT": "t2"}
    for region, name in wanted.items():
        made.loc[subset_name(set(MODALITIES) - {name}), f"Dice {region}"] = 0.5
        assert most_missed(made, region) == DISPLAY_NAMES[name], "in another table each region misses another one"
    print("missed most:", ", ".join(f"{name} for {region}" for region, name in answers.items()))

# %% [markdown]
# ### Exercise 0.2: Time for one more
#
# A patient has been scanned with some sequences, and the scanner is free for one more. Which one? The answer depends on
# the region that matters and on what is there already: is the best *single* sequence always the best one to *add*? (The
# table's means include subjects without ET: what is best to add may be what best avoids a false alarm.)


# %%
# Exercise 0.2
def next_sequence(table, given, region):
    """Which of MODALITIES to add to `given`, such as ("flair", "t2"), for the highest Dice of the region."""
    return ...


# %%
with course.check("0.2"):
    table = summary_table(Scores.read(course.results_folder() / "simulator" / "tiny" / "typical"))
    assert next_sequence(table, ("flair", "t1ce", "t1"), "WT") == "t2", "with three given, only the fourth is left"
    assert next_sequence(table, ("flair", "t2"), "ET") == "t1ce", (
        "look up the rows of given + one; subset_name names them"
    )
    assert next_sequence(table, ("t1ce",), "ET") != "t1ce", "never one that is there already"
    rows = {name: table.loc[subset_name(("t1ce", name)), "Dice ET"] for name in ("flair", "t1", "t2")}
    assert next_sequence(table, ("t1ce",), "ET") == max(rows, key=rows.get), (
        "compare the three rows of T1ce and one more"
    )
    made = pd.DataFrame(0.5, index=table.index, columns=[f"Dice {region}" for region in ("WT", "TC", "ET")])
    for region, name in (("WT", "t2"), ("TC", "t1"), ("ET", "t1ce")):
        made.loc[subset_name(("flair", name)), f"Dice {region}"] = 0.9
        assert next_sequence(made, ("flair",), region) == name, "each region has a column of its own"
    best = table.loc[list(DISPLAY_NAMES.values()), "Dice ET"].nlargest(2).index.tolist()
    print(f"ET: the best single sequences are {' and '.join(best)}; the best to add to T1ce is "
          f"{DISPLAY_NAMES[next_sequence(table, ('t1ce',), 'ET')]}")  # fmt: skip

# %% [markdown]
# ## Read next
#
# **Next:** [1. The data](01_data.ipynb), or any row of the tables above: each notebook runs by itself.
