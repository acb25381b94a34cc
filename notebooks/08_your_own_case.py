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
# # 8. Your own case: from a folder of patients to a result you can question
#
# **Question.** How do I segment images of my own, with whatever sequences there are, and when may I believe the result?
#
# After this notebook you can
# - name the files so that they are understood, and check cases before a network sees them;
# - segment a whole folder in one call, with a sequence on another grid, a damaged file and two visits in it;
# - say how far a volume may be off, what each sequence contributed, and which scan would help most;
# - run the same on a case of your own, and say what the result must not be used for.
#
# A minute or two on two CPU cores. From [notebook 1](01_data.ipynb) it needs labels and axes, from
# [notebook 2](02_missing_modalities.ipynb) what a subset is. The last cell does it all on a folder of yours.
#
# "Your own" folder is made here from **simulated** cases, so that the notebook runs anywhere. The shipped weights have
# seen simulated images only. On five patients `"tiny"` was nearly as good as `"small"` from FLAIR and T1ce together;
# from T1ce alone it found less of the core, and it called more ET in the patient who has none (cards:
# [small](../smml/weights/small.md), [tiny](../smml/weights/tiny.md)). The notebook takes `"tiny"`, which is faster.
# Where you have labelled patients, train on them (`smml train --weights small`) and put your own checkpoint in the
# place of `tiny`.

# %%
import contextlib
import html
import os
import shutil
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import plotly.express as px
from IPython.display import HTML, display
from PIL import Image

from smml import cli, course, figures
from smml.data import REGIONS, Case, find_case, find_cases, read_case, write_case
from smml.evaluation import Scores, fit_gains, fit_intervals
from smml.figures.theme import REGION_COLOURS
from smml.inference import ContributionSums, Predictor
from smml.info import describe_checkpoint
from smml.modalities import DISPLAY_NAMES, subset_name
from smml.models.checkpoint import load_checkpoint, save_checkpoint
from smml.models.intervals import Volume, volume_change
from smml.viewer import viewer_picture

# %% [markdown]
# ## A folder of one's own
#
# What is expected of a case: a folder with one file per sequence, 3-D NIfTI (or .mha), **skull-stripped**: outside the
# brain the voxels are 0, or nearly. The names tell the sequence: `*_flair.nii.gz`, `*_t1ce.nii.gz`, `*_t1.nii.gz`,
# `*_t2.nii.gz`, or those of any BraTS; what says nothing is assigned (`--case flair=scan_07.nii.gz`). Intensities may
# have any unit and scale, because each sequence is normalised by itself. Five patients, none of them complete and easy:
#
# | patient | what is there |
# |---|---|
# | 00701 | FLAIR and T1ce alone |
# | 00702 | all four, at two visits; at the second the scanner was another one, and **nothing had grown** |
# | 00703 | T2 in thick slices, on a grid of its own |
# | 00704 | T1ce was cut off while it was copied |
# | 00705 | no contrast agent: FLAIR, T1 and T2 |

# %%
figures.use_theme()
own = course.build_folder().resolve() / "own"
shutil.rmtree(own, ignore_errors=True)
subjects = [read_case(file) for file in course.held_out_cohort(course.size(full=6, fast=2))]
subjects.sort(key=lambda subject: -int((subject.label == 3).sum()))  # in memory label 3 is ET


def write(number, names, visit=0, change=lambda volume: volume):
    """One visit of a patient to disk, without its label; its files."""
    subject = subjects[(number - 1) % len(subjects)]
    volumes = {name: change(subject.volumes[name]) for name in names.split("+")}
    made = Case(f"BraTS-GLI-{700 + number:05d}-{visit:03d}", volumes, None, subject.affine, "brats2023")
    return write_case(made, own / "data")


def other_scanner(volume):
    """Other units of brightness, and noise of its own."""
    noise = np.random.default_rng(int(volume.sum())).normal(0, 0.05 * volume[volume > 0].mean(), volume.shape)
    return np.where(volume > 0, np.maximum(1.3 * (volume + noise), 1), 0).round().astype(np.float32)


# %%
two = write(1, "flair+t1ce")
visits = [write(2, "flair+t1ce+t1+t2"), write(2, "flair+t1ce+t1+t2", 1, other_scanner)]
thick, cut, _ = write(3, "flair+t1ce+t2"), write(4, "flair+t1ce"), write(5, "flair+t1+t2")

path = thick.images["t2"].path
image = nib.load(path)
slices = image.get_fdata(dtype=np.float32)[:, :, : image.shape[2] // 2 * 2]
mean = slices.reshape(*slices.shape[:2], -1, 2).mean(axis=3)  # every two slices averaged
# The first new slice lies in the middle of those that it averages.
nib.save(nib.Nifti1Image(mean, image.affine @ nib.affines.from_matvec(np.diag([1, 1, 2]), [0, 0, 0.5])), path)
path = cut.images["t1ce"].path
path.write_bytes(path.read_bytes()[:5000])


def smml(line):
    """A command as in a terminal in the folder `own`, without the seconds that a new Python needs to start."""
    print(f"$ smml {line}")
    sys.argv = ["smml", *line.split()]
    with contextlib.chdir(own), contextlib.redirect_stderr(sys.stdout), contextlib.suppress(SystemExit):
        cli.main()


# %% [markdown]
# ## Look first
#
# `smml info FOLDER` says what was recognised, and `smml info --check FOLDER` reads every file. No program can tell that
# FLAIR and T2 were swapped, or left and right. The numbers below are for you to look at: the letters of the axes (where
# each one points to), the share of zeros (none means that the skull may still be there) and the brain's volume: one to
# two litres in an adult, so an affine in the wrong unit betrays itself at once.


# %%
def facts(case):
    """What to look at before trusting a case; one row."""
    brain = np.any([volume != 0 for volume in case.volumes.values()], axis=0)
    return {
        "sequences": subset_name(case.modalities),
        "axes": "".join(case.orientation),
        "spacing, mm": " x ".join(f"{edge:.3g}" for edge in case.spacing),
        "zeros": f"{1 - brain.mean():.0%}",
        "brain, ml": round(float(brain.sum() * np.prod(case.spacing) / 1000)),
    }


smml("info --check data")
case = read_case(two)
display(pd.DataFrame({files.id: facts(read_case(files)) for files in (two, *visits)}).transpose())
Image.fromarray(viewer_picture(case, overlay="none", shown="t1ce", size=240))

# %% [markdown]
# The viewer puts R on the left always, as the affine says. What you can check: is it a head, upright and of normal
# size, and does a side that you know, such as that of a known lesion, lie where it should? Whether the patient's right
# really is on that side, only the scanner's own record knows.
#
# ## How sure? Ask before you segment
#
# `small` ships with intervals of its volumes; `tiny`, which this notebook takes, gives volumes without saying how far
# these may be off. `smml intervals` learns that from cases that
# the weights were not trained on: an interval for each volume, and a table of what a further sequence brings.
#
# ```
# smml evaluate held-out --checkpoint tiny --output more
# smml intervals more --checkpoint tiny --output told.safetensors
# ```
#
# The same from Python, with the scores of `tiny` that are committed: **of simulated subjects**, so the intervals are
# calibrated on simulation and promise nothing of patients; and of few. With labelled patients of yours, fit them anew.

# %%
scores = Scores.read(course.results_folder() / "simulator" / "tiny" / "typical")
told = replace(load_checkpoint("tiny"), intervals=fit_intervals(scores), gains=fit_gains(scores))
if course.FAST:  # coarser: the numbers below are then worse, and there sooner
    told = replace(told, spacing=(4.0, 4.0, 4.0))
save_checkpoint(told, own / "told.safetensors")
print(describe_checkpoint("tiny"))
print(describe_checkpoint(own / "told.safetensors").replace(f"{own}/", ""))

# %% [markdown]
# ## The folder in one call
#
# Each case from all that it has (`--modalities` limits it). `--align flair` brings what lies on another grid to that of
# FLAIR, which all of them have; `--register` would first find how the head moved. The damaged case is one line, the
# rest goes on, and the exit status is 1. The same call again does only what is missing. From Python it is
# `smml.cohort.predict_cohort(predictor, "data", "answers", align="flair")`.

# %%
smml("predict data --checkpoint told.safetensors --align flair --workers 1 --output answers")
table = pd.read_csv(own / "answers" / "cases.csv").set_index("case")
columns = ["sequences", *(f"{region} {what}" for region in REGIONS for what in ("ml", "from 90 %", "to 90 %"))]
assert table["reason"].notna().sum() == 1
table[columns].round(1).astype(object).fillna("")

# %% [markdown]
# The folder `answers` holds the labels, on each case's own grid and in the label values of its data set, and this page,
# with a slice of every case to look through; do look, before you use a number of it. `--output-layout bids` writes a
# derivative of BIDS instead, `--probabilities FOLDER` the classes' probabilities too.

# %%
page = (own / "answers" / "cases.html").read_text(encoding="utf-8")
HTML(f'<div><iframe srcdoc="{html.escape(page)}" width="100%" height="620" title="cases.html"></iframe></div>')

# %% [markdown]
# ## What errors look like
#
# Bad input ends in one sentence that says what was expected, what was found and what to do, before a network has seen
# anything; the command returns exit status 2 and writes no file. Four ways to get there:

# %%
bad = own / "bad"
for name in ("unclear", "nan"):
    (bad / name).mkdir(parents=True)
flair = nib.load(two.images["flair"].path)
nib.save(flair, bad / "unclear" / "scan_07.nii.gz")
holes = flair.get_fdata(dtype=np.float32)
nib.save(nib.Nifti1Image(np.where(holes > 0, holes, np.nan), flair.affine), bad / "nan" / "flair.nii.gz")

smml(f"predict --case data/{thick.id} --output never.nii.gz")  # without --align
smml(f"predict --case data/{two.id} --modalities flair,t2 --output never.nii.gz")
for name in ("unclear/scan_07.nii.gz", "nan"):
    smml(f"predict --case bad/{name} --output never.nii.gz")
assert not (own / "never.nii.gz").exists()

# %% [markdown]
# What is *not* an error: a skull that was left on (a warning at best), sequences under each other's names, a wrong
# side, a kind of image that training has not seen (after surgery, a child's, another disease). The network answers all
# of them, in the same confident colours. Hence the look before.
#
# ## Two visits
#
# Ids of one patient that end in the number of the visit are compared. The volumes of patient 00702 differ, and we know
# that the tumour is the same: all of the change is the scanner's and the network's. The interval of a change reaches
# from the least to the most that both volumes at 95 % allow, so it holds the true change in at least 90 % of pairs of
# which both visits are like the cases that the intervals were fitted on. The second visit here has more noise than
# those, so nothing is promised of it; the true change is 0.

# %%
changes = pd.read_csv(own / "answers" / "changes.csv")
display(changes.round(1))
predictor = Predictor.from_checkpoint(own / "told.safetensors")
predictor.temperatures = None  # contributions are of the network's own probabilities
before, after = (predictor.predict(read_case(files)).volume("WT", level=0.95) for files in visits)
change = volume_change(before, after)
print(f"WT {before.ml:.1f} ml, then {after.ml:.1f}: {change.ml:+.1f}, from {change.low:+.1f} to {change.high:+.1f}")
shown = "no change is shown" if change.low <= 0 <= change.high else "a change is shown, though there is none"
print(f"{shown}; a change of less than {max(-change.low, change.high):.0f} ml cannot be told from none")

# %% [markdown]
# How wide an interval is is a result too, which a number without it would have hidden.
#
# ## One case, and what each sequence contributed
#
# The network gives a probability for every subset of what is there. From these follow the *contributions* (Shapley
# values, [docs/CONVENTIONS.md](../docs/CONVENTIONS.md)): what a sequence adds to the probability of a region when it
# joins the others, averaged over all orders. They add up to the answer, from what one would say of any voxel of a brain
# without any image. In the viewer they are the overlay "contribution".


# %%
def every_subset(case):
    """The segmentation from all sequences and the contributions; shows the sequences, and volumes by subset."""
    encoding, sums, rows = predictor.encode(case), ContributionSums(case, predictor.prevalence), []
    for result in predictor.segment_all(encoding):  # the last is that from all
        sums.add(result.subset, result.probabilities, result.scheme)
        for region in REGIONS:
            volume = result.volume(region)
            more, less = volume.high - volume.ml, volume.ml - volume.low
            rows.append([subset_name(result.subset), region, volume.ml, more, less])
    display(
        figures.modality_figure(
            case, z=figures.widest_slice(figures.to_canonical(result.labels, case.affine), result.scheme)
        )
    )
    table = pd.DataFrame(rows, columns=["given", "region", "ml", "more", "less"])
    display(px.bar(table, x="given", y="ml", color="region", barmode="group", error_y="more", error_y_minus="less",
                   color_discrete_map=REGION_COLOURS, labels={"given": ""}, height=380, width=900,
                   title="Volume from each subset, with its 90 % interval"))  # fmt: skip
    return result, sums.result()


# %%
def whole_picture(case, region="ET"):
    """The course's pictures of a case: sequences, volumes from every subset, contributions to a region."""
    result, found = every_subset(case)
    labels = figures.to_canonical(result.labels, case.affine)
    brain = figures.to_canonical(np.any([one.mask for one in case.brains.values()], axis=0), case.affine)
    maps = {
        f"{DISPLAY_NAMES[name]}: {found.ml[name][region]:+.1f} ml":
            figures.to_canonical(found.map(name, region), case.affine)
        for name in case.modalities
    }  # fmt: skip
    title = f"Contributions to the probability of {region}"
    z, pixel = figures.widest_slice(labels, result.scheme), figures.axial_pixel(case.affine)
    display(figures.map_figure(maps, labels, brain, z=z, limit=0.5, unit="probability", title=title, pixel=pixel))
    return result, found


result, found = whole_picture(case if course.FAST else read_case(visits[0]))
start = {region: found.prevalence[region] * found.brain_ml for region in REGIONS}
rows = {DISPLAY_NAMES[name]: found.ml[name] for name in found.modalities}
pd.DataFrame({"without any": start, **rows, "expected volume": found.expected_ml}).transpose().round(1)

# %% [markdown]
# Blue speaks for ET, orange against it; lines go round what is called tumour (solid) and ET (dotted). A contribution
# says what moved the network's answer, not whether it moved it to the truth.
#
# Which scan would be worth most for patients who lack some? The table knows the mean over held-out cases, simulated
# ones here, and looks at no image of yours. A gain within two standard errors of nothing is not known to be one.

# %%
for files in find_cases(own / "data", labels=False):
    if len(files.modalities) < 4:
        gain = predictor.next_scan(files.modalities)
        known = "" if abs(gain.dice) > 2 * gain.error else "; within two standard errors of nothing"
        print(f"{files.id}: has {subset_name(files.modalities)}; next {gain}{known}")

# %% [markdown]
# What else can be written: `predictor.save(result, "labels.nii.gz", probabilities="probabilities.nii.gz")`, and
# `result.uncertainty`, the disagreement of the two branches from 0 to 1: an error that both make alike leaves none.
#
# ## What it must not be used for
#
# - not for diagnosis, treatment or any decision about a patient; this is no medical device;
# - not with the shipped weights' word alone: they have seen no patient, and were measured on five;
# - no volumes over time from different scanners or sequences without measuring what that change alone does, as above;
# - no interval as a promise about patients where it was fitted on simulation;
# - no claim about your data without a score on labelled cases *of your data* (`smml evaluate`, and
#   [notebook 5](05_evaluation.ipynb) on what the score means).
#
# ## Key points
#
# - The files' names say which sequence it is, and only what is named is read; what is missing is simply missing.
# - A folder is one call; what cannot be read is one line with a reason, and the same call again goes on.
# - Results come back on the input's own grid and with its label values, volumes with intervals where some were fitted.
# - Contributions say what moved the answer. Intervals and the next scan hold for cases like those they were fitted on.
# - What can be checked by a program is checked. Sides, swapped sequences and skulls are for your eyes.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/08_your_own_case.py) say why.
#
# ### Exercise 8.1: Has it grown?
#
# A colleague reads "12 ml, then 15 ml" and writes "progression". Write the sentence that the two volumes allow, from
# their intervals (`smml.models.intervals.Volume`, imported above). Mind what is needed if there are no intervals.


# %%
# Exercise 8.1
def verdict(before, after):
    """ "larger", "smaller" or "cannot tell", from two volumes at 95 %."""
    return ...


# %%
with course.check("8.1"):
    small, large = Volume(12.0, 9.0, 14.0, 0.95), Volume(15.0, 14.5, 19.0, 0.95)
    wide, none = Volume(15.0, 11.0, 19.0, 0.95), Volume(15.0, level=0.95)
    assert verdict(small, large) == "larger", "from 9 to 14 ml, then from 14.5 to 19: even the closest ends grew"
    assert verdict(large, small) == "smaller", "the same two in the other order"
    assert verdict(small, wide) == "cannot tell", "14 ml at both visits is possible"
    assert verdict(small, none) == "cannot tell", "without an interval (NaN) nothing is known"
    assert verdict(Volume(1.0, 1.0, 1.0, 0.95), Volume(1.0, 1.0, 1.0, 0.95)) == "cannot tell", "no change is none"

# %% [markdown]
# ### Exercise 8.2: What the second to come still gets
#
# Two sequences, one voxel, the probability of a region: `nothing` without images (the prevalence), `first` and `second`
# from either alone, `both` from both. What does each contribute? Before you run it, predict: the second says what the
# first says, and adds nothing beside it. Does it get 0?


# %%
# Exercise 8.2
def contributions_of_two(nothing, first, second, both):
    """The contributions of the first and of the second sequence; each is a mean over both orders of joining."""
    return ...


# %%
with course.check("8.2"):
    brain = np.zeros((6, 6, 6), np.float32)
    brain[1:-1, 1:-1, 1:-1] = np.arange(64).reshape(4, 4, 4) + 5
    toy = Case("toy", {"flair": brain, "t1ce": brain}, None, np.eye(4), "brats2023")
    for nothing, *said in ((0.1, 0.8, 0.8, 0.8), (0.1, 0.1, 0.9, 0.9), (0.2, 0.5, 0.3, 0.9)):
        sums = ContributionSums(toy, dict.fromkeys(REGIONS, nothing))
        for subset, p in zip(("flair", "t1ce", "flair+t1ce"), said, strict=True):
            ones = np.ones((1, *brain.shape), np.float32)
            sums.add(subset, np.concatenate([ones * (1 - p), ones * 0, ones * 0, ones * p]), toy.scheme)
        mine, wanted = contributions_of_two(nothing, *said), sums.result().values[:, 2, 0]
        assert np.isclose(sum(mine), said[-1] - nothing), "together they must make the whole way from nothing to both"
        assert np.allclose(mine, wanted, atol=1e-6), f"from {nothing} by {said}: expected {wanted.round(3).tolist()}"
    mine = contributions_of_two(0.1, 0.8, 0.8, 0.8)
    print(f"two that say the same: {mine[0]:.2f} and {mine[1]:.2f}; neither gets 0, although either alone would do")

# %% [markdown]
# ## Read next
#
# **Next:** [9. Fused kernels](09_fused_kernels.ipynb), for those who want to know what makes training fast on a GPU.
# Else back to [0. A tour](00_tour.ipynb), on to training with your own data (the [README](../README.md) has the
# commands), or to [docs/EQUATIONS.md](../docs/EQUATIONS.md) for every equation. And last, **your own case**: all of the
# course's pictures, from whatever sequences the folder holds.

# %%
folder = os.environ.get("PATIENT")
if folder is None:
    print("Start Jupyter as `PATIENT=/path/to/the/folder/of/one/case make lab`, and run this notebook.")
else:
    mine = read_case(find_case(folder))
    display(pd.DataFrame({mine.id: facts(mine)}).transpose())
    result, found = whole_picture(mine)
    tumour = result.scheme.region(result.labels, "WT")
    widest = [int(tumour.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1))]
    place = tuple(widest) if tumour.any() else None
    for overlay in ("prediction", "uncertainty"):
        display(Image.fromarray(viewer_picture(mine, result, overlay=overlay, position=place)))
